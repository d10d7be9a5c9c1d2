//! Reading files that somebody else has written.
//!
//! A model directory, a data file, a run file and a machine file are untrusted. What stands
//! under their names may be a pipe that never answers, a device without an end, a pointer of Git
//! LFS, or a page of HTML that a download left. So every such file is opened here: only a regular
//! file, only up to a size, and with an error that says what it is instead.

#![forbid(unsafe_code)]

mod error;
mod foreign;
mod json;
mod read;
pub mod shown;

pub use error::FileError;
pub use foreign::{Foreign, NotRegular};
pub use json::{JsonProblem, Unique, json_from_slice, json_words, unique_json};
pub use read::{Regular, find, open, open_any, read, read_json, read_text};

/// Most bytes of a `config.json`, a `generation_config.json`, a run file, a machine file or a chat
/// template. Real ones have a few KiB.
pub const SMALL: u64 = 4 << 20;
/// Most bytes of a `tokenizer_config.json`, an index of shards or a checkpoint's manifest, which list
/// tokens or tensors. Real ones have up to 10 MiB.
pub const LIST: u64 = 64 << 20;
/// Most bytes of a `tokenizer.json`. Real ones have up to 40 MiB.
pub const VOCABULARY: u64 = 256 << 20;
