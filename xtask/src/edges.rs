//! Who may use whom, as a table that `cargo metadata` is compared with.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Each crate with the crates of this workspace that it may use. Tests may use more.
pub const EDGES: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("files", &[]),
    ("random", &[]),
    ("data", &["units", "files", "random"]),
    ("report", &["files"]),
    ("workload", &["units"]),
    ("config", &["units", "files", "workload"]),
    ("planner", &["units", "workload"]),
    ("tiers", &["units"]),
    ("device", &["units", "tiers"]),
    ("kernels", &["units", "workload", "device"]),
    (
        "model",
        &["units", "files", "workload", "device", "kernels"],
    ),
    (
        "executor",
        &["units", "workload", "tiers", "device", "planner"],
    ),
    (
        "session",
        &[
            "units", "data", "workload", "planner", "tiers", "device", "kernels", "model",
            "executor",
        ],
    ),
    (
        "measure",
        &[
            "units", "files", "random", "data", "workload", "planner", "tiers", "device",
            "kernels", "model", "executor", "report",
        ],
    ),
    (
        "trainer",
        &[
            "units", "files", "random", "data", "workload", "config", "planner", "tiers", "device",
            "kernels", "model", "executor", "session", "measure", "report",
        ],
    ),
    (
        "cli",
        &[
            "config", "data", "report", "planner", "session", "measure", "trainer",
        ],
    ),
    (
        "fuzz",
        &[
            "units", "files", "data", "workload", "config", "planner", "tiers", "model", "trainer",
        ],
    ),
];

/// Crates whose tests, too, use only what [`EDGES`] allows: the planner never sees a model, and
/// what has no dependencies keeps none.
const STRICT: &[&str] = &["units", "random", "workload", "planner"];

/// Compares the workspace at `root` with [`EDGES`].
pub fn check(root: &Path) -> Vec<String> {
    compare(&metadata(root))
}

fn metadata(root: &Path) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
            "--manifest-path",
        ])
        .arg(root.join("Cargo.toml"))
        .output()
        .expect("cargo can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON")
}

/// The folder of a package under `crates/`, by its name.
fn folder(package: &str) -> &str {
    match package {
        "lowtide" => "cli",
        name => name.strip_prefix("lowtide-").unwrap_or(name),
    }
}

fn compare(metadata: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = folder(package["name"].as_str().expect("a name"));
        if name == "xtask" {
            continue;
        }
        seen.push(name);
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            findings.push(format!("crate {name} is not in the table of edges"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let to = dependency["name"].as_str().expect("a name");
            let kind = dependency["kind"].as_str().unwrap_or("normal");
            if !to.starts_with("lowtide") || (kind == "dev" && !STRICT.contains(&name)) {
                continue;
            }
            let to = folder(to);
            if !allowed.contains(&to) {
                findings.push(format!(
                    "{name} uses {to} ({kind}), which the table does not allow"
                ));
            }
        }
    }
    for (name, _) in EDGES {
        if !seen.contains(name) {
            findings.push(format!("crate {name} of the table does not exist"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_edge_is_in_the_table() {
        crate::assert_none(&check(&crate::root()));
    }

    #[test]
    fn the_table_has_no_cycle() {
        for (i, (name, allowed)) in EDGES.iter().enumerate() {
            for to in *allowed {
                let at = EDGES
                    .iter()
                    .position(|(n, _)| n == to)
                    .expect("a row of the table");
                assert!(at < i, "{name} may use {to}, which stands below it");
            }
        }
    }

    #[test]
    fn forbidden_edges_and_unknown_crates_are_found() {
        let package = |name: &str, dependencies: &[(&str, Option<&str>)]| {
            let list: Vec<Value> = dependencies
                .iter()
                .map(|(n, k)| json!({ "name": n, "kind": k }))
                .collect();
            json!({ "name": name, "dependencies": list })
        };
        let mut packages: Vec<Value> = EDGES
            .iter()
            .map(|(n, _)| match *n {
                "cli" => package("lowtide", &[("clap", None)]),
                "model" => package("lowtide-model", &[("lowtide-planner", Some("dev"))]),
                n => package(&format!("lowtide-{n}"), &[]),
            })
            .collect();
        assert_eq!(compare(&json!({ "packages": packages })), [""; 0]);
        let at = |name: &str| EDGES.iter().position(|(n, _)| *n == name).unwrap();
        packages[at("planner")] = package(
            "lowtide-planner",
            &[("lowtide-units", None), ("lowtide-model", Some("dev"))],
        );
        packages[at("kernels")] = package("lowtide-kernels", &[("lowtide-planner", None)]);
        packages.remove(at("cli"));
        packages.push(package("lowtide-odds", &[]));
        let found = compare(&json!({ "packages": packages }));
        assert_eq!(found.len(), 4, "{found:?}");
    }
}
