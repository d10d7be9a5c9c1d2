//! The tests that Miri can run: what it finds is undefined behaviour, or memory that is lost.
//!
//! It runs a thousand times slower than the processor and knows neither GPUs nor `io_uring`, so each crate
//! has the tests that are small, and the reason for what is left out.

use std::path::Path;
use std::process::{Command, ExitCode};

/// A crate, and what of it Miri runs.
struct Run {
    package: &'static str,
    /// Only tests with one of these in their names; all where there is none.
    only: &'static [&'static str],
    /// Not those with one of these.
    skip: &'static [&'static str],
    /// Why not all of it.
    why: &'static str,
}

/// What is run, in this order. Crates with `unsafe` first: the others can only be wrong by what they use.
const RUNS: &[Run] = &[
    Run {
        package: "lowtide-device",
        only: &["memory::", "lend::"],
        skip: &[],
        why: "the rest is the driver's, or threads that are timed; views are doc tests",
    },
    Run {
        package: "lowtide-tiers",
        only: &["arena::", "stripe::"],
        skip: &[
            "an_arena_is_exact",
            "a_large_arena",
            "touching_makes_it_resident",
        ],
        why: "Miri has no madvise, which arenas from 2 MiB on call, no io_uring and no direct I/O; a drive's threads take too long",
    },
    Run {
        package: "lowtide-units",
        only: &[],
        skip: &[],
        why: "",
    },
    Run {
        package: "lowtide-random",
        only: &[],
        skip: &["every_order_is_as_likely", "unit_and_below"],
        why: "statistics of thousands of draws take too long",
    },
    Run {
        package: "lowtide-files",
        only: &["foreign::", "json::"],
        skip: &["depth_is_bounded"],
        why: "Miri opens no file without blocking; deep JSON takes too long",
    },
    Run {
        package: "lowtide-workload",
        only: &[],
        skip: &[],
        why: "",
    },
    Run {
        package: "lowtide-config",
        only: &[],
        skip: &["the_nearest_name_or_none"],
        why: "comparing every name with every other takes too long",
    },
    Run {
        package: "lowtide-planner",
        only: &["layout::", "rounds::", "machine::", "updates::"],
        skip: &["living_slots_never_overlap"],
        why: "a search takes hours, and drawn slots minutes",
    },
    Run {
        package: "lowtide-data",
        only: &["foreign::", "packing::", "dates::"],
        skip: &[],
        why: "tokenizers and templates take hours, and come with C",
    },
];

fn short(run: &Run) -> &'static str {
    run.package.trim_start_matches("lowtide-")
}

/// Runs Miri over all crates, or those named as their folders are.
pub fn run(root: &Path, names: &[String]) -> ExitCode {
    let known = |name: &String| RUNS.iter().any(|run| short(run) == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        eprintln!("{name} is none of the crates that Miri runs");
        return ExitCode::from(2);
    }
    let mut failed = Vec::new();
    for run in RUNS {
        if !names.is_empty() && !names.iter().any(|name| name == short(run)) {
            continue;
        }
        println!("miri: {} {}", run.package, run.why);
        let mut command = Command::new("cargo");
        command
            .current_dir(root)
            .args([
                "+nightly",
                "miri",
                "test",
                "--locked",
                "--lib",
                "--target-dir",
                "target/miri",
            ])
            .args(["-p", run.package, "--"])
            .args(run.only)
            .args(run.skip.iter().flat_map(|s| ["--skip", s]))
            // Tests make folders; a backtrace costs more than the test.
            .env("MIRIFLAGS", "-Zmiri-disable-isolation")
            .env("RUST_BACKTRACE", "0");
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(_) => failed.push(run.package),
            Err(e) => {
                eprintln!("cargo: {e}");
                return ExitCode::from(2);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("miri: {}", failed.join(", "));
    ExitCode::FAILURE
}
