//! `lowtide plan`: what it prints, for what fits and for what does not.
//!
//! One file because its tests read the same answers of one command.

use std::process::Command;

use crate::common::{answer, complaint, lowtide, plan_of, root};
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

fn number(json: &Value, path: &str) -> f64 {
    json.pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} in {json}"))
}

fn shape<'a>(name: &'a str, device: &'a str, host: &'a str, disk: &'a str) -> Vec<&'a str> {
    plan_of(name, ["1", "512", "1"], [device, host, disk])
}

/// The device holds what the host has no room for, and copies ahead of their use are not what is in its place.
#[test]
fn a_refusal_names_less_host_memory_than_all_that_can_lie_there() {
    let (code, refused) = answer(&shape("qwen2.5-7b", "24GiB", "32GiB", "0"));
    assert_eq!(code, 2, "{refused}");
    let (all, host) = (86 * GIB, number(&refused, "/nearest/host"));
    assert!(host < 0.95 * all as f64, "{host}");
    let error = refused["error"].as_str().expect("an error");
    assert!(
        error.contains("does not fit in device 24.0 GiB, host 32.0 GiB"),
        "{error}"
    );
}

#[test]
fn a_plan_that_fits_says_where_and_how_long() {
    let (code, plan) = answer(&shape("qwen2.5-0.5b", "2GiB", "4GiB", "20GiB"));
    assert_eq!(code, 0, "{plan}");
    assert_eq!(plan["fits"], true);
    let step = number(&plan, "/step_seconds");
    let ruling = plan["ruling_lane"].as_str().expect("a name");
    let busiest = number(&plan, &format!("/lanes/{ruling}/busy_seconds"));
    for lane in ["gpu", "h2d", "d2h", "disk", "host"] {
        let busy = number(&plan, &format!("/lanes/{lane}/busy_seconds"));
        assert!(
            busy <= step && busy <= busiest,
            "{lane} {busy} of {step}, {ruling} rules"
        );
    }
    for (tier, budget) in [("device", 2), ("host", 4), ("disk", 20)] {
        let planned = number(&plan, &format!("/tiers/{tier}/planned_bytes"));
        assert!(planned <= (budget * GIB) as f64, "{tier}: {planned}");
        let parts: f64 = ["weights", "optimizer", "gradients", "transient"]
            .iter()
            .map(|part| number(&plan, &format!("/tiers/{tier}/{part}")))
            .sum();
        assert_eq!(planned, parts, "{tier}");
    }
    let tokens = number(&plan, "/tokens_per_second");
    assert!((tokens * step - 512.0).abs() < 1e-6, "{tokens}");
    assert!(number(&plan, "/model_tflops") > 0.0);
    assert!(plan["hash"].is_string() && plan["choice"].is_object());
    let units: f64 = ["host", "resident", "streamed"]
        .iter()
        .map(|way| number(&plan, &format!("/updates/{way}/units")))
        .sum();
    assert_eq!(units, 26.0, "24 blocks, embedding, head");
    let waited: f64 = plan["gpu_waits"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|w| number(w, "/seconds"))
        .sum();
    let gpu = number(&plan, "/lanes/gpu/busy_seconds");
    assert!(
        (waited + gpu - step).abs() < 0.02 * step,
        "{waited} + {gpu}, {step}"
    );
    let what_if = &plan["outlook"];
    for other in what_if["alternatives"].as_array().expect("a list") {
        let bytes: Vec<f64> = (0..3)
            .map(|t| number(other, &format!("/bytes/{t}")))
            .collect();
        assert!(
            bytes[0] <= 2.0 * GIB as f64 && bytes[1] <= 4.0 * GIB as f64,
            "{other}"
        );
        assert!(number(other, "/step_seconds") > 0.0);
    }
    let more = what_if["more"].as_array().expect("a list");
    assert_eq!(more.len(), 3, "one for each budget");
    for unit in more {
        assert!(
            number(unit, "/step_seconds") <= step * (1.0 + 1e-9),
            "{unit}"
        );
    }
    let faster = what_if["faster"].as_array().expect("a list");
    let links: Vec<&str> = faster.iter().filter_map(|f| f["link"].as_str()).collect();
    assert_eq!(links, ["host-to-device", "device-to-host", "disk"]);
    for link in faster {
        let seconds = number(link, "/step_seconds");
        assert!(seconds <= step * 1.001 && seconds > step / 2.0, "{link}");
    }
    // This plan waits for what it moves, and a GB/s more brings it sooner.
    let gained = |f: &Value| number(f, "/step_seconds") < step;
    assert!(faster.iter().any(gained), "{what_if}");
}

/// The search knows what one rank has of a host's memory and drives; what is advised is what a user gives.
#[test]
fn what_more_of_a_budget_buys_is_of_the_budget_whatever_the_ranks() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("machine.json");
    let file = root().join("examples/machines/h200.json");
    let text = std::fs::read_to_string(file).expect("a file of the repository");
    let mut machine: Value = serde_json::from_str(&text).expect("JSON");
    machine["net"] = json!({ "ranks": 4, "rate": 2e11, "latency": 3e-5 });
    std::fs::write(&path, machine.to_string()).expect("written");
    let path = path.to_str().expect("text");
    let advice = |gpus: &str, budgets: [&str; 3]| {
        let plan = plan_of("qwen2.5-0.5b", ["1", "512", "4"], budgets);
        let (code, plan) = answer(&[&plan[..], &["--gpus", gpus, "--machine", path]].concat());
        assert_eq!(code, 0, "{plan}");
        ["device", "host"].map(|tier| {
            let all = plan["outlook"]["more"].as_array().expect("a list");
            let found = all.iter().find(|more| more["tier"] == tier);
            number(
                found.unwrap_or_else(|| panic!("{tier} in {plan}")),
                "/bytes",
            )
        })
    };
    // Each of four has a quarter of the host, and needs a quarter of what one needs there.
    let one = advice("1", ["2GiB", "4GiB", "20GiB"]);
    let four = advice("4", ["2GiB", "4GiB", "20GiB"]);
    assert_eq!(four[0], one[0], "a GPU's own");
    assert!((four[1] / one[1] - 1.0).abs() < 0.01, "{four:?} {one:?}");
}

#[test]
fn what_is_refused_says_what_would_fit_and_that_fits() {
    let (code, refused) = answer(&shape("qwen2.5-0.5b", "512MiB", "1GiB", "1GiB"));
    assert_eq!(code, 2, "{refused}");
    assert_eq!(
        (&refused["fits"], &refused["exit_code"]),
        (&Value::from(false), &Value::from(2))
    );
    assert!(
        refused["error"]
            .as_str()
            .expect("text")
            .starts_with("does not fit")
    );
    assert_eq!(refused["allowed"]["host"], GIB);
    let nearest = |tier: &str| {
        refused["nearest"][tier]
            .as_u64()
            .expect("bytes")
            .to_string()
    };
    assert!(
        ["device", "host", "disk"]
            .iter()
            .any(|t| refused["nearest"][t] != refused["allowed"][t])
    );
    let (device, host, disk) = (nearest("device"), nearest("host"), nearest("disk"));
    let (code, plan) = answer(&shape("qwen2.5-0.5b", &device, &host, &disk));
    assert_eq!((code, &plan["fits"]), (0, &Value::from(true)), "{plan}");
}

/// Of a budget that is smaller than what a process holds outside of its arena, too, what was allowed is what was given.
#[test]
fn a_budget_below_the_reserve_is_told_as_it_was_given() {
    let rates = std::fs::read_to_string(root().join("examples/machines/h200.json")).expect("rates");
    let mut rates: Value = serde_json::from_str(&rates).expect("JSON");
    rates["device_reserve"] = json!(GIB / 2);
    let machine = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("with-a-reserve.json");
    std::fs::write(&machine, rates.to_string()).expect("written");
    let mut args = shape("qwen2.5-0.5b", "256MiB", "1GiB", "1GiB");
    args.extend(["--machine", machine.to_str().expect("text")]);
    let (code, refused) = answer(&args);
    assert_eq!(code, 2, "{refused}");
    assert_eq!(refused["allowed"]["device"], GIB / 4, "{refused}");
    assert!(
        refused["nearest"]["device"].as_u64() > Some(GIB / 2),
        "{refused}"
    );
}

#[test]
fn advice_can_be_pasted_back() {
    let args = shape("qwen2.5-0.5b", "512MiB", "1GiB", "1GiB");
    let output = lowtide(&args).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    let text = complaint(&output);
    let line = text
        .lines()
        .find(|l| l.contains("budgets that are enough"))
        .expect("advice");
    let sets: Vec<&str> = line
        .split_once("enough: ")
        .expect("a list")
        .1
        .split(' ')
        .collect();
    let again = [&args[..], &sets].concat();
    let (code, plan) = answer(&again);
    assert_eq!(code, 0, "{plan}");
}

/// Processor time that the command takes with these arguments, as the shell counts it.
fn processor_seconds(args: &[&str]) -> f64 {
    let command = lowtide(args);
    let output = Command::new("sh")
        .args(["-c", "\"$0\" \"$@\" > /dev/null; times"])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    // Its own times, then its children's: `0m5.49s 0m0.10s`.
    let children = text.lines().nth(1).expect("two lines");
    let each = children.split_whitespace().map(|t| {
        let (minutes, seconds) = t.trim_end_matches('s').split_once('m').expect("0m0.0s");
        let number = |n: &str| n.parse::<f64>().expect("a number");
        60.0 * number(minutes) + number(seconds)
    });
    let seconds = each.sum();
    assert!(seconds > 0.0, "{text}");
    seconds
}

#[test]
fn a_model_of_175b_is_planned_in_seconds() {
    let args = plan_of("gpt3-175b", ["1", "2048", "1"], ["24GiB", "256GiB", "4TB"]);
    let plan = answer(&args).1;
    // Processor seconds, all threads together: the machine may be busy with other tests. Half of
    // them are the look around the plan, which a run does without. It takes 5.8 of them on a quiet 2-core
    // EPYC and more where another thread shares the core; a test of the search itself counts its work.
    let seconds = processor_seconds(&args);
    assert!(cfg!(debug_assertions) || seconds < 15.0, "{seconds}");
    assert_eq!(plan["fits"], true, "{plan}");
    let step = number(&plan, "/step_seconds");
    for lane in ["gpu", "h2d", "d2h", "disk", "host"] {
        assert!(
            number(&plan, &format!("/lanes/{lane}/busy_seconds")) <= step,
            "{lane}"
        );
    }
    let written = number(&plan, "/disk_bytes_written_per_step");
    // 12 bytes a parameter; what host and device cannot hold of them is rewritten every step.
    let state = 12.0 * number(&plan, "/parameters");
    let left = state
        - number(&plan, "/tiers/host/budget_bytes")
        - number(&plan, "/tiers/device/budget_bytes");
    assert!(
        left > 1e12 && written >= left,
        "{written} written, {left} do not fit"
    );
    let resident = number(&plan, "/tiers/disk/optimizer") + number(&plan, "/tiers/disk/weights");
    assert!(
        written >= resident,
        "{written} written, {resident} live on disk"
    );
}

#[test]
fn every_machine_of_the_examples_can_be_planned_for() {
    let dir = root().join("examples/machines");
    let mut seen = 0;
    for entry in std::fs::read_dir(&dir).expect("the examples are there") {
        let path = entry.expect("readable").path();
        let file = path.to_str().expect("UTF-8");
        let mut args = shape("qwen2.5-0.5b", "4GiB", "8GiB", "20GiB");
        args.extend(["--machine", file]);
        let (code, plan) = answer(&args);
        assert_eq!(code, 0, "{file}: {plan}");
        let source = if file.contains("4090") {
            "published"
        } else {
            "measured"
        };
        assert_eq!(plan["machine"]["source"], source, "{file}");
        seen += 1;
    }
    assert!(seen >= 2, "{seen} machines in {}", dir.display());
}

#[test]
fn several_drives_are_one_budget() {
    let mut args = shape("qwen2.5-0.5b", "2GiB", "4GiB", "/a b=4GiB");
    args.extend(["--disk", "/c=2GiB"]);
    let (code, plan) = answer(&args);
    assert_eq!(code, 0, "{plan}");
    assert_eq!(plan["tiers"]["disk"]["budget_bytes"], 6 * GIB);
    args.extend(["--disk", "2GiB"]);
    let (code, answer) = answer(&args);
    assert_eq!(code, 2, "{answer}");
}

/// Where all fits on the device at several points, each strategy is planned for once.
#[test]
fn points_of_a_curve_that_repeat_each_other_are_planned_once() {
    let mut args = plan_of("qwen2.5-0.5b", ["1", "64", "1"], ["24GiB", "24GiB", "0"]);
    args.extend(["--curve", "device"]);
    let (code, plan) = answer(&args);
    assert_eq!(code, 0, "{plan}");
    let curve = &plan["curve"];
    let found = curve["points"].as_array().expect("a list");
    let refused = curve["refused"].as_array().expect("a list");
    assert_eq!(found.len() + refused.len(), 21, "{curve}");
    let searched = curve["searched"].as_u64().expect("a number");
    let mut plans: Vec<String> = found
        .iter()
        .map(|p| format!("{} {}", p["activations"], p["hash"]))
        .collect();
    plans.dedup();
    // One more where none fits.
    assert!(
        searched as usize <= plans.len() + 3 && searched < 12,
        "{curve}"
    );
}

/// A plan that writes more to its drives than the run may is no point, and one that writes less is.
#[test]
fn points_of_a_curve_write_no_more_than_the_run_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 1024, "vocab_size": 4000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": true
    });
    std::fs::write(&file, config.to_string()).expect("a file");
    let run = root().join("bench/shapes/empty.yaml").display().to_string();
    let rates = crate::cases::scratch::example_rates();
    let (model, rates) = (
        format!("model.config={}", file.display()),
        rates.display().to_string(),
    );
    let mut args = vec!["plan", &run, "--set", &model, "--machine", &rates];
    let sizes = [
        ["--micro-batch", "4"],
        ["--seq", "256"],
        ["--device-memory", "48MiB"],
        ["--host-memory", "16MiB"],
        ["--disk", "1GiB"],
        ["--curve", "device"],
        ["--set", "train.steps=10"],
        ["--set", "budget.disk_writes=64MiB"],
    ];
    args.extend(sizes.iter().flatten());
    args.push("--brief");
    let (code, plan) = answer(&args);
    assert_eq!(code, 0, "{plan}");
    let curve = &plan["curve"];
    let points = curve["points"].as_array().expect("a list");
    assert!(points.iter().all(|p| p["disk_written"] == 0), "{curve}");
    // 36 MiB hold no state: plans there write 192 MiB in ten steps.
    let refused = curve["refused"].as_array().expect("a list");
    assert_eq!((points.len(), refused.len()), (9, 12), "{curve}");
}

/// Device memory buys speed whatever becomes of saved tensors, and the planner's choice is no slower than the others
/// wherever all of them fit.
#[test]
fn a_curve_has_every_plan_and_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (picture, page) = (file("curve.svg"), file("curve.html"));
    // As wide as qwen2.5-0.5b, and a quarter as deep: a plan of it takes a second.
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 896, "num_hidden_layers": 6,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 16000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": true
    });
    std::fs::write(file("config.json"), config.to_string()).expect("a file");
    let run = root().join("bench/shapes/empty.yaml").display().to_string();
    let model = format!("model.config={}", file("config.json"));
    let machine = root().join("examples/machines/h200.json");
    let mut args = vec![
        "plan",
        &run,
        "--set",
        &model,
        "--micro-batch",
        "4",
        "--seq",
        "1024",
    ];
    let machine = machine.display().to_string();
    args.extend([
        "--device-memory",
        "1GiB",
        "--host-memory",
        "8GiB",
        "--machine",
        &machine,
    ]);
    args.extend([
        "--curve", "device", "--svg", &picture, "--html", &page, "--brief",
    ]);
    let (code, plan) = answer(&args);
    assert_eq!(code, 0, "{plan}");
    assert!(plan["outlook"].is_null(), "nobody asked for it");
    let curve = &plan["curve"];
    let points = curve["points"].as_array().expect("a list");
    let refused = curve["refused"].as_array().expect("a list");
    assert_eq!(points.len() + refused.len(), 21);
    let rate = |strategy: &str, allowed: f64| {
        let mut of = points.iter().filter(|p| p["activations"] == strategy);
        let point = of.find(|p| number(p, "/allowed") == allowed)?;
        assert!(number(point, "/activation_peak") <= number(point, "/device"));
        assert!(number(point, "/device") <= allowed);
        Some(number(point, "/tokens_per_second"))
    };
    let mut compared = 0;
    for eighths in [2, 3, 4, 6, 8, 12, 16] {
        let allowed = (eighths * GIB / 8) as f64;
        let Some(auto) = rate("auto", allowed) else {
            assert_eq!(rate("recompute", allowed), None, "{eighths}");
            continue;
        };
        for other in ["recompute", "offload"] {
            if let Some(other) = rate(other, allowed) {
                compared += 1;
                assert!(auto >= 0.99 * other, "{eighths}: {auto} {other}");
            }
        }
    }
    assert!(compared > 6, "{curve}");
    assert_eq!(
        number(curve, "/own/step_seconds"),
        number(&plan, "/step_seconds")
    );
    let read = |path: &str| std::fs::read_to_string(path).expect("a file");
    assert!(read(&picture).ends_with("</svg>"));
    assert!(read(&page).contains(read(&picture).as_str()));
    // Its own files it replaces, and nothing else.
    let refused = |args: &[&str], word: &str| {
        let output = lowtide(args).output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(2));
        assert!(complaint(&output).contains(word), "{}", complaint(&output));
    };
    let mine = file("mine.yaml");
    std::fs::write(&mine, "mine").expect("a file");
    let mut args = plan_of("qwen2.5-0.5b", ["4", "1024", "1"], ["4GiB", "24GiB", "0"]);
    args.extend(["--curve", "device", "--svg"]);
    refused(
        &[&args[..], &[&mine]].concat(),
        "a file of that name is there",
    );
    refused(
        &[&args[..], &[&page]].concat(),
        "a file of that name is there",
    );
    let new = file("new");
    refused(&[&args[..], &[&new, "--html", &new]].concat(), "both");
    std::fs::write(file(".new.pending"), "mine").expect("a file");
    refused(&[&args[..], &[&new]].concat(), "in the way");
    assert_eq!(read(&mine) + &read(&file(".new.pending")), "minemine");
    // A page is a curve's alone.
    let mut args = shape("qwen2.5-0.5b", "2GiB", "4GiB", "20GiB");
    args.extend(["--html", &page]);
    assert!(complaint(&lowtide(&args).output().expect("the binary starts")).contains("--curve"));
}

/// Shape, batch, device and host budgets, machine file, and predicted seconds.
type Row = (
    &'static str,
    [&'static str; 3],
    &'static str,
    &'static str,
    &'static str,
    f64,
);

/// Shape, batch, device, host, machine file of the record, and what the search of before the timetable predicted
/// (commit 58e95d3), on the rates of a real H100.
const BEFORE: [Row; 5] = [
    (
        "qwen2.5-3b",
        ["8", "2048", "1"],
        "24GiB",
        "60GiB",
        "a",
        0.8182,
    ),
    (
        "qwen2.5-3b",
        ["8", "2048", "4"],
        "24GiB",
        "60GiB",
        "a",
        2.7154,
    ),
    (
        "qwen2.5-3b",
        ["1", "32768", "1"],
        "24GiB",
        "60GiB",
        "b",
        2.4442,
    ),
    (
        "llama2-7b",
        ["8", "2048", "1"],
        "24GiB",
        "100GiB",
        "c",
        1.9646,
    ),
    (
        "qwen2.5-3b",
        ["8", "2048", "1"],
        "8GiB",
        "60GiB",
        "a",
        1.0512,
    ),
];

#[test]
fn no_plan_for_a_real_h100_is_slower_than_before_the_timetable() {
    for (name, batch, device, host, machine, before) in BEFORE {
        let records = "bench/runs/h100-2026-11-26/timetable";
        let file = root().join(format!("{records}/{machine}.json"));
        let mut args = plan_of(name, batch, [device, host, "0"]);
        args.extend(["--machine", file.to_str().expect("UTF-8")]);
        let (code, plan) = answer(&args);
        assert_eq!(code, 0, "{plan}");
        let step = number(&plan, "/step_seconds");
        assert!(
            step <= before,
            "{name} {batch:?} in {device}: {step}, {before} before"
        );
    }
}
