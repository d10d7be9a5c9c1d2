//! Errors and summaries: the key or file, the cause, what to do; nothing an insider alone can read.
