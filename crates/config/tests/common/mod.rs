//! Run files in tests: read, run, refused.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::path::{Path, PathBuf};

use lowtide_config::{ConfigError, Run};

pub const BASE: &str = "/runs/first";

pub fn parse(yaml: &str, sets: &[&str]) -> Result<Run, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    Run::parse(yaml, "run.yaml", Path::new(BASE), &sets)
}

/// The run of a file with a model and, in `yaml`, other sections.
#[track_caller]
pub fn run(yaml: &str, sets: &[&str]) -> Run {
    let yaml = format!("model: {{path: m}}\n{yaml}");
    parse(&yaml, sets).unwrap_or_else(|e| panic!("{yaml}\n{sets:?}\n{e}"))
}

/// The whole error of a file.
#[track_caller]
pub fn check(yaml: &str, sets: &[&str], want: &str) {
    match parse(yaml, sets) {
        Ok(run) => panic!("accepted: {yaml}\n{sets:?}\n{run:?}"),
        Err(e) => assert_eq!(e.to_string(), want, "{yaml}\n{sets:?}"),
    }
}

/// As `check`, with a model above `yaml`, whose lines therefore count from 2.
#[track_caller]
pub fn refused(yaml: &str, want: &str) {
    check(&format!("model: {{path: m}}\n{yaml}"), &[], want);
}

pub fn current() -> PathBuf {
    std::env::current_dir().unwrap()
}
