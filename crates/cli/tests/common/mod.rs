//! Starts the built binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `lowtide` with these arguments.
pub fn lowtide(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
    command.args(args);
    // Not in the tester's home.
    command.env(
        "LOWTIDE_CACHE",
        concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
    );
    command
}

/// What it printed on standard error.
pub fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs with `--json`; the exit code and the last line of standard output.
#[track_caller]
pub fn answer(args: &[&str]) -> (i32, Value) {
    let output = lowtide(args)
        .arg("--json")
        .output()
        .expect("the binary starts");
    let code = output.status.code().expect("no signal ended it");
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let json = serde_json::from_str(last);
    (
        code,
        json.unwrap_or_else(|e| panic!("{e}: {last:?}\n{}", complaint(&output))),
    )
}

/// Arguments of `lowtide plan` for a built-in shape: micro-batch, sequence and accumulation, then
/// budgets of device, host and disk.
pub fn plan_of<'a>(shape: &'a str, batch: [&'a str; 3], budgets: [&'a str; 3]) -> Vec<&'a str> {
    let [micro_batch, seq, accumulate] = batch;
    let [device, host, disk] = budgets;
    [
        ["plan", "--shape", shape].as_slice(),
        &["--micro-batch", micro_batch, "--seq", seq],
        &["--accumulate", accumulate, "--device-memory", device],
        &["--host-memory", host, "--disk", disk],
    ]
    .concat()
}
