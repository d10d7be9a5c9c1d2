//! `cargo xtask gpu`: one folder with everything that a machine with a GPU and without Rust needs:
//! test programs, the command, and a script that runs them and writes a summary.
//!
//! The tests read files of the repository by the path at which they were built: the script makes
//! that path a link to where the repository is there.

use std::path::Path;
use std::process::{Command, ExitCode};

use serde_json::Value;

/// Tests that use a GPU where there is one: folder of the package, and target.
const TESTS: [(&str, &str); 6] = [
    ("crates/kernels", "lowtide_kernels"),
    ("crates/trainer", "golden"),
    ("crates/trainer", "generate"),
    ("crates/trainer", "equality"),
    ("crates/trainer", "cuda"),
    ("crates/trainer", "ranks"),
];

/// A program that cargo has built.
struct Program {
    /// Where its package is described.
    manifest: String,
    name: String,
    path: String,
}

impl Program {
    /// Whether it is one of [`TESTS`].
    fn is_wanted(&self) -> bool {
        TESTS.iter().any(|(package, name)| {
            self.name == *name && self.manifest.ends_with(&format!("/{package}/Cargo.toml"))
        })
    }
}

/// Builds into `target/gpu`.
pub fn run(root: &Path) -> ExitCode {
    let folder = root.join("target/gpu");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder under target");
    // Of the whole workspace, as the README's command builds them: of one package features may differ, and everything
    // below would be compiled again.
    let tests = programs(root, &["test", "--no-run", "--workspace"]);
    let command = programs(root, &["build", "--workspace", "--bin", "lowtide"]);
    let built = match (tests, command) {
        (Ok(mut tests), Ok(command)) => {
            tests.retain(Program::is_wanted);
            tests.extend(command);
            tests
        }
        (Err(what), _) | (_, Err(what)) => {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    };
    let mut tests = Vec::new();
    for Program { name, path, .. } in built {
        let to = folder.join(&name);
        std::fs::copy(&path, &to).expect("a program that was just built");
        // What is carried over a slow line is small; a machine without binutils carries more.
        let _ = Command::new("strip").arg(&to).status();
        if name != "lowtide" {
            tests.push(name);
        }
    }
    tests.sort();
    std::fs::write(folder.join("commit"), commit(root)).expect("a file under target");
    let script = script(root, &tests);
    let path = folder.join("run.sh");
    std::fs::write(&path, script).expect("a file under target");
    println!(
        "{}: {} test programs, lowtide, run.sh",
        folder.display(),
        tests.len()
    );
    ExitCode::SUCCESS
}

/// The commit that the programs are of, and whether tracked files differ from it, for `bench/head.sh`.
fn commit(root: &Path) -> String {
    let git = |args: &[&str]| -> Option<String> {
        let out = Command::new("git").current_dir(root).args(args).output();
        let out = out.ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]);
    match (git(&["rev-parse", "HEAD"]), changes) {
        (Some(commit), Some(changes)) => format!("{commit} {}\n", !changes.is_empty()),
        _ => "unknown null\n".to_owned(),
    }
}

/// Every program that a cargo command builds.
fn programs(root: &Path, args: &[&str]) -> Result<Vec<Program>, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let out = Command::new(cargo)
        .current_dir(root)
        .args(args)
        .args(["--release", "--message-format=json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| e.to_string())?;
    if !out.status.success() {
        return Err(format!("cargo {} failed", args.join(" ")));
    }
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|m| {
            Some(Program {
                manifest: m["manifest_path"].as_str()?.to_owned(),
                name: m["target"]["name"].as_str()?.to_owned(),
                path: m["executable"].as_str()?.to_owned(),
            })
        })
        .collect())
}

fn script(root: &Path, tests: &[String]) -> String {
    let root = root.display();
    let tests = tests.join(" ");
    format!(
        r#"#!/usr/bin/env bash
# Runs the GPU tests from the repository's root; logs and summary.json go to the folder named first.
# Further arguments are passed to every test program.
set -u
out=${{1:-gpu-results}}; shift || true
mkdir -p "$out"
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
built={root}
if [ ! -e "$built" ]; then mkdir -p "$(dirname "$built")" && ln -s "$PWD" "$built"; fi
export LOWTIDE_REQUIRE_CUDA=1
failed=0
printf '{{' >"$out/summary.json"
for t in {tests}; do
    chmod +x "$here/$t"
    began=$(date +%s.%N)
    ${{LOWTIDE_UNDER:-}} "$here/$t" --show-output "$@" >"$out/$t.log" 2>&1
    rc=$?
    [ $rc = 0 ] || failed=1
    line=$(grep '^test result' "$out/$t.log" | tail -n 1)
    passed=$(sed -n 's/.* \([0-9]*\) passed.*/\1/p' <<<"$line")
    lost=$(sed -n 's/.* \([0-9]*\) failed.*/\1/p' <<<"$line")
    took=$(echo "$(date +%s.%N) - $began" | bc 2>/dev/null || echo 0)
    printf '"%s": {{"rc": %d, "passed": %s, "failed": %s, "seconds": %s}}, '         "$t" "$rc" "${{passed:-0}}" "${{lost:-0}}" "$took" >>"$out/summary.json"
    echo "$t: rc $rc, $line"
    grep -E '^test .*FAILED|panicked at' -A2 "$out/$t.log" | head -n 60
done
printf '"failed": %d}}
' "$failed" >>"$out/summary.json"
exit $failed
"#
    )
}
