//! What is fuzzed: every kind of untrusted file, read by the functions that the commands
//! read it with. A panic, an abort, a wrapped number, a hang or memory without bound is a bug of ours.
//!
//! - [`TARGETS`]: one function a kind of file, with the seeds of `seeds/NAME`. A seed whose name begins with
//!   `refused-` must be refused; those were found to panic or worse once. Every other one must be accepted.
//! - [`mutate`]: changes of a file, blind ones and such that keep its form.
//! - `src/bin/fuzz.rs`, with the feature `libfuzzer`: the coverage-guided program.
//! - `tests/short.rs`: all seeds and some thousand mutations of them, in CI.
//!
//! How to run it longer, and what was found: docs/robustness.md.

#![forbid(unsafe_code)]

pub mod mutate;
mod scratch;
mod seeds;
mod targets;

pub use seeds::{Seed, seeds, seeds_in};
pub use targets::{Form, TARGETS, Target};
