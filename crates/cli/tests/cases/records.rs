//! Data files: formats, marks in records, truncation, broken lines, keys that must do what they say.
