//! Every target on its seeds and on some thousand changes of them, the same ones each time.
#![allow(clippy::print_stdout, reason = "tells what was done")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use lowtide_fuzz::mutate::{Mutator, Random};
use lowtide_fuzz::{TARGETS, Target, seeds};

/// Changed files of each target, where time allows: a machine that is busy does fewer.
const CHANGES: u64 = 4000;
const TIME: Duration = Duration::from_secs(2);
/// No file takes as long as this, on a busy machine either.
const LONGEST: Duration = Duration::from_secs(20);

/// Reads one file; panics with its text where that panics or takes long.
fn read(target: &Target, bytes: &[u8], what: &str) -> Result<(), String> {
    let began = Instant::now();
    let read = catch_unwind(AssertUnwindSafe(|| target.read(bytes)));
    let text = || String::from_utf8_lossy(bytes).into_owned();
    let Ok(said) = read else {
        panic!("{}, {what}: it panics on\n{}", target.name, text());
    };
    let took = began.elapsed();
    assert!(
        took < LONGEST,
        "{}, {what}: {took:?} for\n{}",
        target.name,
        text()
    );
    said
}

fn check(name: &str) {
    let target = Target::named(name).expect("a target");
    let seeds = seeds(name);
    assert!(
        seeds.iter().filter(|s| s.good()).count() >= 2,
        "{name} has good seeds"
    );
    for seed in &seeds {
        let said = read(target, &seed.bytes, &seed.name);
        let label = format!("{name}/{}: {said:?}", seed.name);
        assert_eq!(said.is_ok(), seed.good(), "{label}");
    }
    let mutator = Mutator::new(target, &seeds);
    let (began, mut done, mut accepted) = (Instant::now(), 0, 0);
    while done < CHANGES && began.elapsed() < TIME {
        let mut random = Random::new(done);
        let seed = &seeds[random.below(seeds.len())];
        let changed = mutator.change(&seed.bytes, &mut random);
        let said = read(target, &changed, &format!("change {done}"));
        accepted += u64::from(said.is_ok());
        done += 1;
    }
    println!(
        "{name}: {} seeds, {done} changes, {accepted} of them accepted",
        seeds.len()
    );
    // Changes that are all refused would test the parser only.
    assert!(
        accepted * 50 >= done,
        "{name}: {accepted} of {done} changes are accepted"
    );
}

#[test]
fn config() {
    check("config");
}

#[test]
fn tokenizer() {
    check("tokenizer");
}

#[test]
fn template() {
    check("template");
}

#[test]
fn run() {
    check("run");
}

#[test]
fn data() {
    check("data");
}

#[test]
fn manifest() {
    check("manifest");
}

#[test]
fn weights() {
    check("weights");
}

#[test]
fn state() {
    check("state");
}

#[test]
fn machine() {
    check("machine");
}

/// A target without a test here would be fuzzed by nobody; a seed that libFuzzer named says nothing.
#[test]
fn every_target_is_tested_and_has_seeds() {
    let source = include_str!("short.rs");
    for target in &TARGETS {
        let call = format!("check(\"{}\")", target.name);
        assert!(source.contains(&call), "{call}");
        for seed in seeds(target.name) {
            let (name, bytes) = (&seed.name, seed.bytes.len());
            assert!(bytes <= target.longest, "{name}");
            let is_hash = name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(!is_hash, "{}/{name}", target.name);
        }
    }
}
