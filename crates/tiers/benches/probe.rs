//! Disk bandwidth of a directory, to hold against fio with the same block size, depth and mix.
//!
//! `cargo bench -p lowtide-tiers --bench probe -- DIR [GIB [SECONDS [uring|threads]]]`

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::path::PathBuf;
use std::time::Duration;

use lowtide_tiers::{Backend, ProbeConfig, TierError, probe};
use lowtide_units::Bytes;

fn main() -> Result<(), TierError> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mut number = |default: u64| args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (gib, seconds) = (number(2), number(3));
    let backend = match args.next().as_deref() {
        Some("uring") => Backend::Uring,
        Some("threads") => Backend::Threads,
        _ => Backend::Auto,
    };
    let time = Duration::from_secs(seconds);
    let config = ProbeConfig {
        bytes: Bytes::GIB * gib,
        time,
        backend,
        ..Default::default()
    };
    let rates = probe(&dir, &config)?;
    println!("{}", rates.how);
    println!(
        "read {}, write {}, mixed 1:1 {}",
        rates.read, rates.write, rates.mixed
    );
    Ok(())
}
