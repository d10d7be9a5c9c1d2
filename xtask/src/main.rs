//! Project chores.
//!
//! - `cargo xtask tidy` checks what the compiler does not. The same checks are tests, so that
//!   `cargo test --workspace` runs them.
//! - `cargo xtask kernels` compiles every CUDA source on a machine without a GPU.
//! - `cargo xtask miri` runs the tests that Miri can, of all crates or of those named.
//! - `cargo xtask results` writes `bench/RESULTS.md` and README's tables from the records.
//! - `cargo xtask pictures` draws those of README and ARCHITECTURE.md.
//! - `cargo xtask words` counts words of STYLE.md's glossary, comments and names of types, and lowers what is allowed.
//! - `cargo xtask gpu` builds what a machine with a GPU and without Rust needs to test and bench.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command for developers"
)]

mod docs;
mod edges;
mod figures;
mod gpu;
mod kernels;
mod miri;
mod pictures;
mod results;
mod sources;
mod words;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy(),
        Some("kernels") => kernels::run(&root()),
        Some("miri") => miri::run(&root(), &std::env::args().skip(2).collect::<Vec<_>>()),
        Some("gpu") => gpu::run(&root()),
        Some("pictures") => pictures::run(&root()),
        Some("results") => results::run(&root()),
        Some("words") => words::run(&root(), &sources::rust_files(&root())),
        _ => {
            eprintln!(
                "usage: cargo xtask tidy | kernels | miri [CRATE ...] | gpu | pictures | results | words"
            );
            ExitCode::from(2)
        }
    }
}

/// Runs every check and prints what it found.
fn tidy() -> ExitCode {
    let root = root();
    let files = sources::rust_files(&root);
    let findings: Vec<String> = [
        edges::check(&root),
        sources::unsafe_code(&files),
        sources::leftovers(&files),
        sources::prints(&files),
        sources::inside(&files),
        sources::long_files(&files),
        sources::long_functions(&files),
        docs::check(&root, &files),
        results::check(&root),
        figures::check(&root),
        pictures::check(&root),
        words::check(&root, &files),
    ]
    .into_iter()
    .flatten()
    .collect();
    for finding in &findings {
        println!("{finding}");
    }
    println!("{} files, {} findings", files.len(), findings.len());
    if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The repository's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = here.canonicalize().expect("this package's folder");
    here.parent().expect("it lies in the workspace").to_owned()
}

#[cfg(test)]
fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}
