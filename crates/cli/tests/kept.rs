//! Plans for named models on the reference machines, kept as text: a changed decision shows as a
//! changed line. `LOWTIDE_RENEW=1 cargo test --release -p lowtide kept::` writes them anew.

use crate::common::{answer, lowtide, plan_of, root};
use serde_json::Value;

#[track_caller]
fn kept(name: &str, text: &str) {
    let path = root().join("crates/cli/tests/kept").join(name);
    if std::env::var_os("LOWTIDE_RENEW").is_some() {
        std::fs::write(&path, text).expect("writable");
        return;
    }
    let want = std::fs::read_to_string(&path).expect("kept beside this test");
    assert_eq!(
        text,
        want,
        "{} differs; LOWTIDE_RENEW=1 renews it",
        path.display()
    );
}

#[test]
fn the_plan_of_3b_in_24_gib() {
    let args = "plan --shape qwen2.5-3b --micro-batch 8 --seq 2048 --accumulate 1 \
                --device-memory 24GiB --host-memory 60GiB";
    let args: Vec<&str> = args.split_whitespace().collect();
    let output = lowtide(&args).output().expect("the binary starts");
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n");
    kept("qwen2.5-3b-24GiB.txt", &text);
}

/// Model, micro-batch, accumulation, device, host, disk.
const RUNS: [(&str, &str, &str, &str, &str, &str); 5] = [
    ("qwen2.5-0.5b", "8", "1", "8GiB", "16GiB", "0"),
    ("qwen2.5-3b", "8", "4", "24GiB", "60GiB", "0"),
    ("qwen2.5-3b", "8", "1", "24GiB", "16GiB", "64GiB"),
    ("llama2-7b", "8", "1", "24GiB", "105GiB", "0"),
    ("qwen2.5-14b", "8", "1", "24GiB", "105GiB", "100GiB"),
];

#[test]
fn models_on_machines() {
    let mut text = String::from(
        "machine         model        batch    budgets                  step s  ruled by  device GiB  host GiB  disk GiB\n",
    );
    let folder = tempfile::tempdir().expect("a folder");
    let picture = folder.path().join("step.svg").display().to_string();
    for machine in ["h200", "rtx4090-12ssd"] {
        let file = root().join(format!("examples/machines/{machine}.json"));
        let file = file.to_str().expect("UTF-8");
        for (model, micro_batch, accumulate, device, host, disk) in RUNS {
            let mut args = plan_of(
                model,
                [micro_batch, "2048", accumulate],
                [device, host, disk],
            );
            args.extend(["--machine", file, "--brief"]);
            // One of them is README's picture.
            let drawn = (machine, model) == ("h200", "llama2-7b");
            if drawn {
                args.extend(["--svg", &picture]);
            }
            let (code, plan) = answer(&args);
            assert_eq!(code, 0, "{plan}");
            if drawn {
                let picture = std::fs::read_to_string(&picture).expect("written");
                kept("../../../../docs/step.svg", &picture);
            }
            let gib = |tier: &str| {
                let bytes = &plan["tiers"][tier]["planned_bytes"];
                bytes.as_u64().expect("bytes") as f64 / f64::from(1 << 30)
            };
            let batch = format!("{micro_batch}x2048x{accumulate}");
            let budgets = format!("{device}/{host}/{disk}");
            text += &format!(
                "{machine:<16}{model:<13}{batch:<9}{budgets:<23}{:>8.4}  {:<8}{:>12.2}{:>10.2}{:>10.2}\n",
                plan["step_seconds"].as_f64().expect("seconds"),
                plan["ruling_lane"].as_str().unwrap_or_default(),
                gib("device"),
                gib("host"),
                gib("disk"),
            );
            assert_ne!(plan["choice"], Value::Null);
        }
    }
    kept("models.txt", &text);
}

/// Its picture is that of ARCHITECTURE.md.
#[test]
fn the_step_of_the_quickstart() {
    let folder = tempfile::tempdir().expect("a folder");
    let picture = folder.path().join("step.svg").display().to_string();
    let at = |file: &str| root().join(file).display().to_string();
    let (run, machine) = (
        at("examples/quickstart/run.yaml"),
        at("examples/machines/h200.json"),
    );
    let (code, plan) = answer(&[
        "plan",
        &run,
        "--machine",
        &machine,
        "--brief",
        "--svg",
        &picture,
    ]);
    assert_eq!(code, 0, "{plan}");
    let picture = std::fs::read_to_string(&picture).expect("written");
    kept("../../../../docs/step-quickstart.svg", &picture);
}

/// A mixture of experts on the reference machine, state on its drive: work is that of the experts that are chosen, and
/// bytes are those of all.
#[test]
fn experts_of_which_few_are_chosen() {
    let machine = root().join("examples/machines/h200.json");
    let mut args = plan_of(
        "qwen3-30b-a3b",
        ["8", "2048", "1"],
        ["24GiB", "105GiB", "400GiB"],
    );
    args.extend(["--machine", machine.to_str().expect("UTF-8"), "--brief"]);
    let (code, plan) = answer(&args);
    assert_eq!(code, 0, "{plan}");
    let seconds = plan["step_seconds"].as_f64().expect("seconds");
    let text = format!("step {seconds:.4} s\n{:#}\n", plan["tiers"]);
    kept("qwen3-30b-a3b.txt", &text);
}

/// Training in subspaces beside exact training: a 4 GB laptop and an RTX 4090 by published rates, and the reference
/// H200 with its links at 12 GB/s, where a search that ends too early has taken 1.96 s.
#[test]
fn subspaces_beside_exact() {
    let folder = tempfile::tempdir().expect("a folder");
    let slow = folder.path().join("h200-12.json");
    let read = |file: &str| std::fs::read_to_string(root().join(file)).expect("a machine");
    let mut machine: Value =
        serde_json::from_str(&read("examples/machines/h200.json")).expect("JSON");
    machine["h2d"] = 12e9.into();
    machine["d2h"] = 12e9.into();
    std::fs::write(&slow, machine.to_string()).expect("written");
    let at = |file: &str| root().join(file).display().to_string();
    let laptop = at("bench/lsp/laptop-a1000.json");
    let rtx4090 = at("examples/machines/rtx4090-12ssd.json");
    let slow = slow.display().to_string();
    let both = ["exact", "lsp"].as_slice();
    let runs = [
        (
            &laptop,
            "laptop",
            "qwen2.5-1.5b",
            ["1", "512"],
            ["3.4GiB", "32GiB"],
            both,
        ),
        (
            &rtx4090,
            "rtx4090",
            "llama2-7b",
            ["2", "2048"],
            ["22GiB", "128GiB"],
            both,
        ),
        (
            &slow,
            "h200, 12 GB/s",
            "llama2-7b",
            ["8", "2048"],
            ["24GiB", "105GiB"],
            &both[1..],
        ),
    ];
    let mut text = String::from(
        "machine        model         batch   budgets        strategy  step s  ruled by  device GiB  host GiB\n",
    );
    for (file, name, model, [rows, seq], [device, host], strategies) in runs {
        for strategy in strategies {
            let strategy = format!("strategy.name={strategy}");
            let mut args = plan_of(model, [rows, seq, "1"], [device, host, "0"]);
            args.extend(["--machine", file, "--set", &strategy, "--brief"]);
            let (code, plan) = answer(&args);
            assert_eq!(code, 0, "{plan}");
            let gib = |tier: &str| {
                let bytes = &plan["tiers"][tier]["planned_bytes"];
                bytes.as_u64().expect("bytes") as f64 / f64::from(1 << 30)
            };
            let (batch, budgets) = (format!("{rows}x{seq}"), format!("{device}/{host}"));
            text += &format!(
                "{name:<15}{model:<14}{batch:<8}{budgets:<15}{:<8}{:>8.4}  {:<8}{:>12.2}{:>10.2}\n",
                strategy.trim_start_matches("strategy.name="),
                plan["step_seconds"].as_f64().expect("seconds"),
                plan["ruling_lane"].as_str().unwrap_or_default(),
                gib("device"),
                gib("host"),
            );
        }
    }
    kept("subspaces.txt", &text);
}
