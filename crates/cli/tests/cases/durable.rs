//! State that outlives a killed run: truncated, damaged or given-up files of `checkpoint.durable`.
