//! Model directories that are a stranger's: hostile, damaged, of another make.
