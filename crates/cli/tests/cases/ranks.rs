//! Several ranks in whole runs, on the CPU device: the same bits again, checkpoints for any number of them, and
//! settings that do not go together are refused.
//!
//! One file because its tests train the same run on other numbers of ranks.

use std::fs;

use serde_json::Value;

use super::scratch::{Ended, Scratch, example_rates};
use super::signals::{Going, stepped};
use crate::common::plan_of;

const RUN: &str = r"
model: {path: m}
device: cpu
threads: 2
budget: {device: 200MiB, host: 1GiB}
data: {train: train.jsonl, eval: eval.jsonl}
train: {steps: 4, micro_batch: 1, seq: 64, accumulate: 4, learning_rate: 0.01, schedule: constant}
eval: {every_steps: 2, batches: 2}
checkpoint: {every_steps: 2}
log: {trace: false, tensorboard: false}
output: out
";

fn scratch() -> Scratch {
    let scratch = Scratch::bare();
    scratch.write("run.yaml", RUN);
    scratch
}

fn train(scratch: &Scratch, gpus: &str, sets: &[&str]) -> Ended {
    let mut args = vec!["train", "run.yaml", "--gpus", gpus];
    for set in sets {
        args.extend(["--set", set]);
    }
    scratch.run(&args)
}

fn model(scratch: &Scratch, output: &str) -> Vec<u8> {
    std::fs::read(scratch.at(output).join("model/model.safetensors")).expect("a model")
}

/// A field of all lines of metrics.
fn column(scratch: &Scratch, output: &str, field: &str) -> Vec<f64> {
    let lines = scratch.read(&format!("{output}/metrics.jsonl"));
    let lines = lines
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"));
    lines.filter_map(|l: Value| l[field].as_f64()).collect()
}

#[test]
fn a_run_of_two_ranks_goes_on_with_any_number() {
    let scratch = scratch();
    let one = scratch.train(&["output=one"]);
    let two = train(&scratch, "2", &["output=two"]);
    let again = train(&scratch, "2", &["output=again"]);
    for ended in [&one, &two, &again] {
        ended.fine();
    }
    assert!(two.text().contains("shared by 2 ranks"), "{}", two.text());
    assert!(
        model(&scratch, "two") == model(&scratch, "again"),
        "from run to run"
    );
    // The first forward is that of one rank, micro-batch by micro-batch, and all of it is near.
    let losses = |output| column(&scratch, output, "loss");
    let (a, b) = (losses("one"), losses("two"));
    assert_eq!((a.len(), a[0]), (4, b[0]));
    let tokens = |output| column(&scratch, output, "tokens");
    assert_eq!(tokens("one"), tokens("two"));
    let evaluated = |output| column(&scratch, output, "eval_loss");
    assert_eq!(evaluated("one").len(), evaluated("two").len());
    for (a, b) in [a, evaluated("one")]
        .concat()
        .iter()
        .zip(&[b, evaluated("two")].concat())
    {
        assert!((a / b - 1.0).abs() < 5e-3, "{a}, {b}");
    }

    // The machine as it is, not as each rank has it: it can be given again for any number of them.
    let machine = |output: &str| -> Value {
        serde_json::from_str(&scratch.read(&format!("{output}/machine.json"))).expect("JSON")
    };
    let given = "plan.machine=two/machine.json";
    train(&scratch, "2", &[given, "output=given"]).fine();
    assert_eq!(machine("given"), machine("two"));

    let resume = "checkpoint.resume=two/checkpoints/step-00000002";
    train(&scratch, "2", &[resume, "output=same"]).fine();
    assert!(
        model(&scratch, "same") == model(&scratch, "two"),
        "as if unbroken"
    );
    for gpus in ["1", "4"] {
        let output = format!("output=on-{gpus}");
        train(&scratch, gpus, &[resume, &output]).refused(&["gpus", "checkpoint.change"]);
        let changed = train(&scratch, gpus, &[resume, &output, "checkpoint.change=gpus"]);
        changed.fine();
        let own = column(&scratch, &format!("on-{gpus}"), "loss");
        let (a, b) = (own[own.len() - 2], losses("two")[2]);
        assert_eq!(a, b, "the first loss of {gpus} ranks");
    }
}

/// In a tree the number of ranks is nothing that decides a number: any of them goes on from any other's checkpoint.
#[test]
fn a_tree_gives_the_bits_of_one_rank_on_any_number() {
    let scratch = scratch();
    let tree = "train.reduce=tree";
    let trained = |gpus: &str, output: &str, sets: &[&str]| {
        let output = format!("output={output}");
        train(&scratch, gpus, &[&[tree, &output], sets].concat())
    };
    trained("1", "one", &[]).fine();
    trained("4", "four", &[]).fine();
    let resume = "checkpoint.resume=four/checkpoints/step-00000002";
    trained("2", "two", &[resume]).fine();
    let all = |output: &str| {
        ["loss", "grad_norm", "eval_loss"].map(|field| column(&scratch, output, field))
    };
    assert_eq!(all("one"), all("four"));
    assert_eq!(model(&scratch, "one"), model(&scratch, "four"));
    assert!(model(&scratch, "one") == model(&scratch, "two"), "resumed");
    trained("1", "order", &[resume, "train.reduce=order"]).refused(&["train.leaves"]);
    // Not those of one rank in order.
    scratch.train(&["output=plain"]).fine();
    assert!(model(&scratch, "one") != model(&scratch, "plain"));
    let verify = ["verify", "run.yaml", "--json", "--gpus", "2", "--set", tree];
    assert_eq!(scratch.run(&verify).fine().json()["equal"], true);
    // Its price is in the plan, and goes with its leaves.
    for (leaves, words) in [("4", "2 sums of each gradient"), ("2", "at no price")] {
        let leaves = format!("train.leaves={leaves}");
        let plan = [
            "plan", "run.yaml", "--gpus", "2", "--set", tree, "--set", &leaves,
        ];
        let text = scratch.run(&plan).fine().text();
        assert!(text.contains(words), "{text}");
    }
    for (gpus, sets, words) in [
        (
            "1",
            &["train.leaves=3"][..],
            &["train.leaves", "a power of two"][..],
        ),
        (
            "1",
            &["train.leaves=8"],
            &["train.accumulate", "train.leaves", "multiple of 8"],
        ),
        (
            "4",
            &["train.leaves=2"],
            &["train.leaves", "gpus", "not enough"],
        ),
        (
            "2",
            &["plan.loop=batch-major"],
            &["plan.loop", "train.reduce"],
        ),
        (
            "2",
            &["train.reduce=order", "train.leaves=2"],
            &["train.leaves", "train.reduce: tree"],
        ),
    ] {
        trained(gpus, "never", sets).refused(words);
    }
}

/// State files of all ranks of a drive's directory.
fn state_files(scratch: &Scratch) -> usize {
    let folders = (0..4).map(|rank| scratch.at(&format!("out/disk/rank-{rank}")));
    let files = folders.flat_map(|dir| fs::read_dir(dir).into_iter().flatten());
    let large = |file: &fs::DirEntry| {
        file.metadata()
            .is_ok_and(|m| m.is_file() && m.len() >= 4096)
    };
    files.flatten().filter(large).count()
}

/// Ranks that are killed leave a state file each; the next start takes them away, of however many ranks it is, and
/// where it uses no drive.
#[test]
fn what_killed_ranks_left_in_their_folders_goes_with_the_next_start() {
    let scratch = scratch();
    let sets = [
        "train.steps=60",
        "eval.every_steps=0",
        "checkpoint.every_steps=0",
        "budget.disk=1GiB",
    ];
    for (before, after, home) in [("4", "2", "disk"), ("2", "1", "host")] {
        let run = |gpus: &str, home: &str| {
            let home = format!("plan.optimizer={home}");
            let mut args = vec!["train", "run.yaml", "--json", "--gpus", gpus];
            for set in sets.iter().copied().chain([&*home]) {
                args.extend(["--set", set]);
            }
            scratch.command(&args)
        };
        let killed = Going::start(run(before, "disk"));
        stepped(&killed, &scratch, 0);
        killed.signal("KILL");
        killed.end();
        let ranks = before.parse::<usize>().expect("a number");
        assert_eq!(state_files(&scratch), ranks, "a killed run removes nothing");
        let going = Going::start(run(after, home));
        let end = going.end();
        assert_eq!(end.code, Some(0), "{:#?}", end.lines);
        assert_eq!(state_files(&scratch), 0);
        fs::remove_dir_all(scratch.at("out")).expect("removed");
    }
}

#[test]
fn two_ranks_are_verified_and_evaluate_as_one() {
    let scratch = scratch();
    let verified = scratch.run(&["verify", "run.yaml", "--json", "--gpus", "2"]);
    assert_eq!(verified.fine().json()["equal"], true);
    let planted = scratch.run(&[
        "verify",
        "run.yaml",
        "--json",
        "--gpus",
        "2",
        "--plant-fault",
    ]);
    assert_eq!(planted.json()["equal"], false, "{}", planted.text());
    let loss = |gpus| {
        let ended = scratch.run(&["eval", "run.yaml", "--json", "--gpus", gpus]);
        ended.fine().json()["eval_loss"].clone()
    };
    assert!(loss("1").is_number());
    assert_eq!(loss("1"), loss("2"));
}

#[test]
fn what_several_ranks_cannot_do_is_refused() {
    let scratch = scratch();
    for (gpus, sets, words) in [
        (
            "3",
            &["train.accumulate=3"][..],
            &["gpus", "a power of two"][..],
        ),
        (
            "2",
            &["train.accumulate=3"],
            &["train.accumulate", "gpus", "multiple of 2"],
        ),
        (
            "2",
            &["optimizer.name=adafactor"],
            &["optimizer.name", "gpus", "whole tensors"],
        ),
    ] {
        train(&scratch, gpus, sets).refused(words);
        assert!(!scratch.at("out").exists(), "{sets:?}");
    }
    let generate = ["generate", "run.yaml", "--gpus", "2", "--prompt", "a"];
    scratch.run(&generate).refused(&["--gpus"]);
    // A machine file that does not say what its GPUs exchange.
    fs::copy(example_rates(), scratch.at("machine.json")).expect("copied");
    let plan = |machine: &str| {
        let machine = format!("plan.machine={machine}");
        scratch.run(&[
            "plan", "run.yaml", "--json", "--gpus", "2", "--set", &machine,
        ])
    };
    plan("machine.json").refused(&["machine.json", "2 GPUs", "lowtide probe --gpus 2"]);
    let probed = [
        "probe", "--device", "cpu", "--gpus", "2", "--out", "two.json",
    ];
    let text = scratch.run(&probed).fine().text();
    assert!(text.contains("2 ranks, each gets"), "{text}");
    // However the machine is named; the reference is of one GPU.
    for machine in [&["--machine", "machine.json"][..], &[]] {
        let args = [
            "plan",
            "--shape",
            "qwen2.5-0.5b",
            "--accumulate",
            "2",
            "--gpus",
            "2",
            "--json",
            "--device-memory",
            "24GiB",
            "--host-memory",
            "64GiB",
        ];
        let named = machine.last().map_or("h200.json", |file| *file);
        let refused = scratch.run(&[&args[..], machine].concat());
        refused.refused(&[named, "2 GPUs", "lowtide probe --gpus 2"]);
    }
    let planned = plan("two.json");
    let answer = planned.fine().json();
    // Both of all ranks.
    let figure = |key: &str| answer[key].as_f64().expect(key);
    let token = 1e12 * figure("model_tflops") / figure("tokens_per_second");
    let one = scratch.run(&[
        "plan",
        "run.yaml",
        "--json",
        "--set",
        "plan.machine=machine.json",
    ]);
    let one = one.fine().json();
    let figure = |key: &str| one[key].as_f64().expect(key);
    let want = 1e12 * figure("model_tflops") / figure("tokens_per_second");
    assert!(
        (token / want - 1.0).abs() < 1e-9,
        "{token} {want} FLOP a token"
    );
    assert!(
        answer["lanes"]["net"]["bytes"]
            .as_f64()
            .is_some_and(|n| n > 0.0),
        "{answer}"
    );
}

/// What may be written to the drives is of all ranks: a filling and two steps, to the byte, and no byte less.
#[test]
fn what_all_ranks_write_to_the_drives_is_bounded() {
    let scratch = scratch();
    let rates = std::fs::read(super::scratch::example_rates()).expect("rates");
    scratch.write("machine.json", rates);
    let run = |gpus: &str, output: &str, allowed: Option<u64>| {
        let allowed = allowed.map(|n| format!("budget.disk_writes={n}"));
        let output = format!("output={output}");
        let mut sets = vec![
            "budget.disk=1GiB",
            "plan.optimizer=disk",
            // What ranks exchange is measured by each run, so what else may go to the drive is given.
            "plan.activations=keep",
            "plan.inputs=device",
            "plan.machine=machine.json",
            "train.steps=2",
            "eval.every_steps=0",
            &output,
        ];
        sets.extend(allowed.as_deref());
        let mut args = vec!["train", "run.yaml", "--json", "--gpus", gpus];
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        scratch.run(&args)
    };
    let written = |ended: &Ended| {
        ended.fine().json()["disk_written"]
            .as_u64()
            .expect("a number")
    };
    let (one, two) = (
        written(&run("1", "one", None)),
        written(&run("2", "two", None)),
    );
    // Each rank's share is padded.
    assert!(
        two >= one && two < one * 11 / 10,
        "{two} of two, {one} of one"
    );
    run("2", "less", Some(two - 1)).refused(&["budget.disk_writes", "2 steps to come"]);
    assert!(!scratch.at("less/metrics.jsonl").exists());
    let enough = run("2", "enough", Some(two));
    assert_eq!(written(&enough), two);
    assert!(model(&scratch, "enough") == model(&scratch, "two"));
}

/// A plan for the eight GPUs of a machine file: each has an eighth of the work and of the state, and figures for all
/// of them add up.
#[test]
fn eight_gpus_of_a_machine_file_are_planned() {
    let scratch = scratch();
    let rates = std::fs::read(super::scratch::example_rates()).expect("rates");
    let mut rates: Value = serde_json::from_slice(&rates).expect("JSON");
    rates["cuda"] = true.into();
    scratch.write("one.json", rates.to_string());
    rates["net"] = serde_json::json!({ "ranks": 8, "rate": 2e11, "latency": 3e-5 });
    scratch.write("eight.json", rates.to_string());
    let plan = |gpus: &str, machine: &str| {
        let mut args = plan_of("qwen2.5-0.5b", ["1", "512", "8"], ["8GiB", "64GiB", "0"]);
        args.extend(["--json", "--brief", "--gpus", gpus, "--machine", machine]);
        for set in [
            "plan.optimizer=host",
            "optimizer.update=host",
            "plan.weights=host",
        ] {
            args.extend(["--set", set]);
        }
        scratch.run(&args)
    };
    let (one, eight) = (plan("1", "one.json"), plan("8", "eight.json"));
    let (one, eight) = (one.fine().json(), eight.fine().json());
    let figure = |answer: &Value, key: &str| answer[key].as_f64().expect(key);
    for answer in [&one, &eight] {
        let tokens = figure(answer, "tokens_per_second") * figure(answer, "step_seconds");
        assert!(
            (tokens / (8.0 * 512.0) - 1.0).abs() < 1e-9,
            "{tokens} tokens a step"
        );
    }
    let token = |answer| figure(answer, "model_tflops") / figure(answer, "tokens_per_second");
    assert!((token(&one) / token(&eight) - 1.0).abs() < 1e-9);
    let lane =
        |answer: &Value, lane: &str, key: &str| answer["lanes"][lane][key].as_f64().expect(key);
    let share = lane(&eight, "gpu", "busy_seconds") / lane(&one, "gpu", "busy_seconds");
    assert!((0.11..0.16).contains(&share), "{share} of the work");
    let host = |answer: &Value| {
        answer["tiers"]["host"]["planned_bytes"]
            .as_f64()
            .expect("bytes")
    };
    let share = host(&eight) / host(&one);
    assert!((0.11..0.25).contains(&share), "{share} of the state");
    // What is not its own of gradients in f32 and of weights in bf16 comes from the others, once at least.
    let parameters = figure(&one, "parameters");
    let least = parameters * 6.0 * 7.0 / 8.0;
    let net = lane(&eight, "net", "bytes");
    assert!(net >= least && net < 2.0 * least, "{net} of {least}");
    plan("8", "one.json").refused(&["one.json", "8 GPUs", "lowtide probe --gpus 8"]);
    plan("4", "eight.json").refused(&["eight.json", "4 GPUs", "which is of 8"]);
}

/// Hosts share nothing but the network: each has the budgets, and its line carries what its GPUs get from others.
#[test]
fn eight_hosts_of_a_machine_file_are_planned() {
    let scratch = scratch();
    let rates = std::fs::read(super::scratch::example_rates()).expect("rates");
    let mut rates: Value = serde_json::from_slice(&rates).expect("JSON");
    rates["cuda"] = true.into();
    rates["net"] = serde_json::json!({ "ranks": 2, "rate": 2e11, "latency": 3e-5 });
    scratch.write("alone.json", rates.to_string());
    rates["network"] = serde_json::json!({ "rate": 2.5e10, "latency": 1e-4 });
    scratch.write("fast.json", rates.to_string());
    rates["network"]["rate"] = 2.5e9.into();
    scratch.write("slow.json", rates.to_string());
    let plan = |gpus: &str, hosts: &str, machine: &str| {
        let mut args = plan_of("qwen2.5-0.5b", ["1", "512", "16"], ["4GiB", "16GiB", "0"]);
        args.extend([
            "--brief",
            "--json",
            "--gpus",
            gpus,
            "--hosts",
            hosts,
            "--machine",
            machine,
        ]);
        scratch.run(&args)
    };
    let one = plan("2", "1", "fast.json").fine().json();
    let fast = plan("16", "8", "fast.json").fine().json();
    let slow = plan("16", "8", "slow.json").fine().json();
    let host = |answer: &Value| answer["tiers"]["host"]["budget_bytes"].as_u64();
    assert_eq!(host(&fast), Some(8 << 30), "half of a host's");
    assert_eq!(host(&one), host(&fast));
    let net = |answer: &Value| answer["lanes"]["net"].clone();
    let got = |answer: &Value| net(answer)["bytes"].as_f64().expect("bytes");
    let busy = |answer: &Value| net(answer)["busy_seconds"].as_f64().expect("seconds");
    assert!(
        got(&fast) > 1.5 * got(&one),
        "15 shares of a sixteenth, one of a half"
    );
    // 28 shares of the 15 that a rank gets go through a host's line.
    let carried = got(&slow) * 28.0 / 15.0 / 2.5e9;
    assert!(
        busy(&slow) > carried && busy(&slow) < 1.1 * carried + 0.1,
        "{slow}"
    );
    let step = |answer: &Value| answer["step_seconds"].as_f64().expect("seconds");
    assert!(step(&fast) < step(&slow), "{} {}", step(&fast), step(&slow));
    plan("16", "8", "alone.json").refused(&["alone.json", "16 GPUs on 8 hosts", "'network'"]);
    plan("16", "4", "fast.json").refused(&["of 2", "lowtide probe --gpus 4"]);
    plan("4", "8", "fast.json").refused(&["--hosts 8", "multiple"]);
    let durable = "plan --shape qwen2.5-0.5b --micro-batch 1 --seq 512 --accumulate 16 --device-memory 4GiB \
                   --host-memory 16GiB --disk drive=1TB --gpus 16 --hosts 8 --machine fast.json \
                   --set checkpoint.durable=true";
    let args: Vec<&str> = durable.split_whitespace().collect();
    let refused = scratch.run(&args);
    refused.refused(&["checkpoint.durable", "several hosts", "save checkpoints"]);
}
