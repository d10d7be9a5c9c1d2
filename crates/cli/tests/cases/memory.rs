//! Host memory: a run never holds more than what it reported as planned, from its first instruction to its last.

use std::fmt::Write;

use crate::cases::scratch::Scratch;

const RUN: &str = "
model: { path: m }
output: out
budget: { device: 96MiB, host: 256MiB, disk: 256MiB }
plan: { weights: host, optimizer: disk, gradients: host }
data: { train: train.jsonl }
train: { steps: 3, micro_batch: 4, seq: 256, learning_rate: 1e-3 }
checkpoint: { every_steps: 2 }
";
const MIB: u64 = 1 << 20;

/// Planned covers measured, however many micro-batches a step has; and not by promising anything.
#[test]
fn planned_host_memory_covers_what_is_resident_at_any_accumulation() {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    let mut rows = String::new();
    let mut slack = Vec::new();
    for accumulate in [1, 8, 64] {
        let sets = [
            format!("train.accumulate={accumulate}"),
            format!("output=out{accumulate}"),
        ];
        // Short rows: it is the number of micro-batches that something might grow with.
        let args = [
            "train",
            "run.yaml",
            "--json",
            "--set",
            &sets[0],
            "--set",
            &sets[1],
            "--set",
            "train.seq=64",
        ];
        let ended = case.run(&args);
        let json = ended.fine().json();
        let bytes = |key: &str| json[key].as_u64().expect(key);
        let (planned, peak) = (bytes("planned_rss_bytes"), bytes("peak_rss_bytes"));
        let arenas: u64 = ["device", "host"]
            .map(|t| json["planned_bytes"][t].as_u64().expect(t))
            .iter()
            .sum();
        writeln!(
            rows,
            "accumulate {accumulate}: {} MiB planned ({} in arenas), {} resident, {} at the start",
            planned / MIB,
            arenas / MIB,
            peak / MIB,
            bytes("start_rss_bytes") / MIB,
        )
        .expect("a string");
        assert!(peak <= planned, "{rows}");
        slack.push(planned - peak);
    }
    // Threads' stacks and staging, which a run of this size does not fill.
    assert!(slack.iter().all(|&s| s < 300 * MIB), "{slack:?}\n{rows}");
}

/// The tokenizers' crate takes 140 bytes for each byte of a text; a long one is given to it in windows. What still
/// does not fit is refused before it is tried.
#[test]
fn a_long_record_is_read_in_bounds_or_refused() {
    let case = Scratch::bare();
    // Rates of before, and no drive: what is held before the plan is the data alone.
    let run = RUN.replace(", disk: 256MiB", "").replace(
        "plan: { weights: host, optimizer: disk, gradients: host }",
        "",
    );
    case.write("run.yaml", &run);
    case.train(&["train.steps=1", "output=first"]).fine();
    case.write("run.yaml", run + "plan: { machine: first/machine.json }\n");
    let quick = case.read("train.jsonl");
    let record = |mib: u64| {
        let text = "How do we call the young of the pig? ".repeat((mib * MIB / 37) as usize);
        let (user, answer) = (
            "{\"role\": \"user\", \"content\": ",
            "{\"role\": \"assistant\", \"content\": ",
        );
        format!("{{\"messages\": [{user}\"{text}\"}}, {answer}\"A piglet.\"}}]}}\n")
    };
    let lines = quick.lines().count();
    case.write("train.jsonl", format!("{quick}{}", record(4)));
    let args = ["train", "run.yaml", "--json", "--set", "train.steps=1"];
    let json = case.run(&args).fine().json();
    let start = json["start_rss_bytes"].as_u64().expect("measured");
    assert!(
        start < 120 * MIB,
        "{} MiB while 4 MiB were read",
        start / MIB
    );
    case.write("train.jsonl", format!("{quick}{}", record(8)));
    let line = format!("train.jsonl:{}: ", lines + 1);
    // Which records fit is not for the data to change: with `skip` too the load ends.
    for on_error in ["stop", "skip"] {
        let set = format!("data.on_error={on_error}");
        let ended = case.train(&["train.steps=1", &set]);
        ended.refused(&[&line, "host memory", "256.0 MiB are allowed", "budget.host"]);
        assert!(
            !ended.text().contains("leaves out records"),
            "{}",
            ended.text()
        );
    }
}

/// Reading the data counts: here it takes more than all arenas.
#[test]
fn reading_the_data_is_in_what_is_told() {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    let lines: String = case.read("train.jsonl").repeat(150);
    assert!(lines.len() as u64 > 15 * MIB, "{}", lines.len());
    case.write("train.jsonl", lines);
    // Tokens that are found are not read, and those in a file take no memory.
    let sets = ["--set", "train.steps=1", "--set", "data.cache=none"];
    let ended = case.run(&[&["train", "run.yaml", "--json"], &sets[..]].concat());
    let json = ended.fine().json();
    let bytes = |key: &str| json[key].as_u64().expect(key);
    let (planned, peak) = (bytes("planned_rss_bytes"), bytes("peak_rss_bytes"));
    assert!(peak <= planned, "{peak} resident, {planned} planned");
    assert!(bytes("start_rss_bytes") <= peak);
}
