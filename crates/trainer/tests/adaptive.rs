//! A run whose lanes are off the rates of its plan plans again, once, and ends in the same bits.

#![allow(clippy::print_stderr, reason = "times are worth reading")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::places::{beside, planned};
use crate::common::{Trained, batch, choice, decoder, hyper, llama, open, quick, train};
use lowtide_config::Run as Settings;
use lowtide_executor::Measured;
use lowtide_model::Decoder;
use lowtide_planner::slowdown::AS_RATED;
use lowtide_planner::{Choice, Clip, LaneKind, Machine, Pins, Plan, Saved, Tier};
use lowtide_session::{DiskChoice, Requests, SessionOptions};
use lowtide_tiers::{Pace, RamConfig, RamDisk};
use lowtide_trainer::inside::{Adaptive, Rates, train_slowed};
use lowtide_trainer::{Observer, Replan, StepLine};
use lowtide_units::BytesPerSecond;
use lowtide_workload::Dtype;

const CLIP: Clip = Clip::Exact;
const STEPS: u64 = 50;

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart")
}

/// Saved tensors on a drive, everything else in memory.
fn spilled(d: &Decoder) -> Choice {
    let mut c = choice(d, Tier::Host, Tier::Host, Tier::Host);
    let blocks = 1..c.saved.len() - 1;
    c.saved[blocks].iter_mut().for_each(|s| s.fill(Saved::Disk));
    c
}

/// On a drive of a rate.
fn on_drive(plan: &Plan, rate: f64) -> SessionOptions {
    let rate = BytesPerSecond(rate);
    let config = RamConfig {
        pace: Some(Pace {
            read: rate,
            write: rate,
        }),
        ..RamConfig::new(plan.tier(Tier::Disk).planned_bytes)
    };
    let disk = RamDisk::open(&config).expect("memory for a disk").0;
    SessionOptions {
        disk: DiskChoice::Open(disk),
        ..quick()
    }
}

struct Run {
    trained: Trained,
    replans: Vec<Replan>,
    notes: Vec<String>,
    /// Seconds of each step.
    seconds: Vec<f64>,
}

/// Steps as a run makes them, planned for a machine, on a drive of a rate.
fn run(d: &Arc<Decoder>, c: &Choice, machine: &Machine, rate: f64) -> Run {
    let mut plan = Plan::clone(&planned(d, c, CLIP, machine));
    // Room for what another plan has on the device in a drive's place.
    for tier in [Tier::Device, Tier::Host] {
        plan.tiers[tier as usize].planned_bytes = plan.tier(tier).planned_bytes * 2;
    }
    let plan = Arc::new(plan);
    let mut session = open(d, &plan, CLIP, on_drive(&plan, rate));
    let mut adaptive = Adaptive::new(d, &plan, machine, CLIP, Pins::default(), STEPS);
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    let (mut replans, mut notes) = (Vec::new(), Vec::new());
    let (mut last, mut before) = (Instant::now(), session.measured());
    for step in 1..=STEPS {
        let data = session
            .submit(batch(step, 1), hyper(step))
            .expect("submitted");
        let o = session.outcome(&data).expect("done");
        losses.push((o.loss().to_bits(), o.norm.to_bits()));
        let measured = session.measured();
        let took = last.elapsed().as_secs_f64();
        notes.extend(adaptive.step(step, &measured.since(&before), took));
        seconds.push(took);
        (last, before) = (Instant::now(), measured);
        // Planning is done within a few steps, however busy the machine is that tests run on.
        if step == 40 && replans.is_empty() {
            let begin = Instant::now();
            while notes.is_empty() && !adaptive.is_ready() && begin.elapsed().as_secs() < 60 {
                std::thread::sleep(Duration::from_millis(1));
                notes.extend(adaptive.step(step, &measured, took));
            }
        }
        if adaptive.is_ready() {
            let replan = adaptive.take(step).expect("it is ready");
            session
                .replace(Arc::clone(&replan.to_run))
                .expect("replaced");
            replans.push(replan);
            (last, before) = (Instant::now(), session.measured());
        }
    }
    session.drain().expect("drained");
    let state = session.homes().expect("staging").fingerprint();
    let state = state.expect("read").0;
    Run {
        trained: Trained { losses, state },
        replans,
        notes,
        seconds,
    }
}

fn mean(seconds: &[f64]) -> f64 {
    seconds.iter().sum::<f64>() / seconds.len() as f64
}

#[test]
fn a_run_on_a_drive_that_is_slower_than_planned_plans_again_once() {
    let d = decoder(&llama(2, true), Dtype::Bf16, 1);
    let (c, machine) = (spilled(&d), beside(1e9));
    let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
    let plan = planned(&d, &resident, CLIP, &machine);
    let want = train(&mut open(&d, &plan, CLIP, quick()), STEPS, 1);
    let run = run(&d, &c, &machine, 1.2e7);
    assert_eq!(run.trained, want, "the bits of a run that plans once");
    assert_eq!(run.replans.len(), 1, "{:?}", run.notes);
    let replan = &run.replans[0];
    eprintln!("{}", replan.line());
    assert!((22..=41).contains(&replan.step), "{}", replan.step);
    let off = replan.lanes.iter().find(|l| l.lane == "disk");
    let off = off.expect("the drive is off");
    assert!(off.measured_seconds > 2.0 * off.planned_seconds, "{off:?}");
    let read = |r: Rates| r.disk_read.expect("a drive");
    assert!(read(replan.rates) < 0.5 * read(replan.rates_before));
    assert!(replan.predicted_seconds < 0.98 * replan.predicted_seconds_before);
    assert_ne!(replan.plan, replan.plan_before);
    let written = |p: &Plan| p.prediction.disk_bytes_written;
    assert!(written(&replan.to_run) < written(&planned(&d, &c, CLIP, &machine)));
    let at = replan.step as usize;
    let (slow, fast) = (mean(&run.seconds[2..at]), mean(&run.seconds[at..]));
    eprintln!("{:.4} s a step before, {:.4} s behind it", slow, fast);
    assert!(fast < slow, "{fast} behind {slow}");
    let json = serde_json::to_value(replan).expect("plain values");
    assert_eq!(json["event"], "replan");
    for key in [
        "step",
        "lanes",
        "rates_before",
        "rates",
        "plan_before",
        "plan",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
}

/// What no other plan makes shorter is not planned otherwise, though its lanes are off.
#[test]
fn a_plan_that_gains_too_little_is_not_taken() {
    let d = decoder(&llama(2, true), Dtype::Bf16, 1);
    let c = choice(&d, Tier::Device, Tier::Device, Tier::Device);
    // A thousandth of any processor's rate.
    let run = run(&d, &c, &beside(1e9), 1e9);
    assert_eq!(run.replans.len(), 0);
    assert_eq!(run.notes.len(), 1, "{:?}", run.notes);
    assert!(run.notes[0].contains("not worth it"), "{:?}", run.notes);
}

/// Rates of a device that is slow and of drives that are not, so that saved tensors go to a drive.
fn write_rates(path: &Path) {
    let text = fs::read_to_string(quickstart().join("../machines/h200.json")).expect("rates");
    let mut machine: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in [
        ("cuda", json!(false)),
        ("matmul_bf16", json!(1e8)),
        ("matmul_f32", json!(1e8)),
        ("op_overhead", json!(1e-3)),
        ("device_memory", json!(1e9)),
        ("copy_overhead", json!(1e-9)),
        ("h2d", json!(1e12)),
        ("d2h", json!(1e12)),
        ("shared", json!([])),
        (
            "disk",
            json!({"read": 1e13, "write": 1e13, "mixed": 2e13, "latency": 1e-9}),
        ),
    ] {
        machine[key] = value;
    }
    fs::write(path, machine.to_string()).expect("written");
}

fn run_to(dir: &Path, output: &str, adaptive: bool) -> Settings {
    let text = format!(
        "
model: {{path: {base}}}
output: {output}
threads: 1
device: cpu
budget: {{device: 2MiB, host: 128MiB, disk: 64MiB}}
plan: {{adaptive: {adaptive}, offload: disk, machine: rates.json, min_gain: 0}}
data: {{train: {train}, eval: {eval}, max_examples: 16}}
train: {{steps: 70, micro_batch: 1, seq: 32, learning_rate: 1e-3}}
eval: {{every_steps: 30}}
checkpoint: {{every_steps: 40}}
log: {{trace: false, tensorboard: false, report: false, every_steps: 1}}
",
        base = quickstart().join("base").display(),
        train = quickstart().join("train.jsonl").display(),
        eval = quickstart().join("eval.jsonl").display(),
    );
    let file = dir.join(format!("{output}.yaml"));
    fs::write(&file, text).expect("written");
    Settings::load(&file, &[]).expect("a valid run file")
}

struct Watcher<'a> {
    requests: &'a Requests,
    stop_after: u64,
    replans: Vec<Replan>,
    notes: Vec<String>,
}

impl Observer for Watcher<'_> {
    fn detail(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    fn step(&mut self, line: &StepLine) {
        if line.step == self.stop_after {
            self.requests.stop();
        }
    }

    fn replanned(&mut self, replan: &Replan) {
        self.replans.push(replan.clone());
    }
}

/// A whole run finds another plan of which it is certain that it gains, and changes to it once. Its checkpoints, its
/// evaluations and the run that goes on from where it stopped are those of a run with one plan.
#[test]
fn a_run_changes_its_plan_once_and_is_resumed_behind_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_rates(&dir.path().join("rates.json"));
    // The device is a thousand times as fast as planned, and the drive a millionth.
    let mut slowdown = AS_RATED;
    slowdown[LaneKind::Gpu as usize] = 1e-3;
    slowdown[LaneKind::Disk as usize] = 1e6;
    let go = |output: &str, adaptive: bool, stop_after: u64| {
        let requests = Requests::new();
        let mut watcher = Watcher {
            requests: &requests,
            stop_after,
            replans: Vec::new(),
            notes: Vec::new(),
        };
        let run = run_to(dir.path(), output, adaptive);
        let report = train_slowed(&run, &mut watcher, &requests, &slowdown).expect("trains");
        (report, watcher.replans, watcher.notes)
    };
    let (_, none, _) = go("whole", false, u64::MAX);
    assert!(none.is_empty());
    let (stopped, replans, notes) = go("out", true, 50);
    assert_eq!(replans.len(), 1, "{notes:?}");
    let replan = &replans[0];
    assert!((22..30).contains(&replan.step), "{}", replan.step);
    assert!(replan.predicted_seconds < 0.5 * replan.predicted_seconds_before);
    assert!(stopped.stopped && stopped.steps < 70);
    assert_eq!(stopped.background.map(|b| b.checkpoints), Some(1));
    assert_eq!(stopped.predicted_step_seconds, replan.predicted_seconds);
    // Too few steps are left for another one.
    let (report, replans, _) = go("out", true, u64::MAX);
    assert_eq!((report.steps, replans.len()), (70, 0));
    assert_eq!(report.part.after_step, stopped.steps);
    let model = |output: &str| {
        let path = dir.path().join(output).join("model/model.safetensors");
        fs::read(path).expect("a model")
    };
    assert!(model("out") == model("whole"), "another model");
    let lines = |output: &str| -> Vec<Value> {
        let path = dir.path().join(output).join("metrics.jsonl");
        let text = fs::read_to_string(path).expect("metrics");
        let all = text.lines();
        all.map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    };
    let numbers = |output: &str| -> Vec<[String; 4]> {
        let numbers =
            |l: &Value| ["step", "loss", "grad_norm", "eval_loss"].map(|k| l[k].to_string());
        let all = lines(output).into_iter().filter(|l| l["event"].is_null());
        all.map(|l| numbers(&l)).collect()
    };
    assert_eq!(numbers("out"), numbers("whole"));
    let events: Vec<Value> = lines("out");
    let events = events.iter().filter(|l| l["event"] == "replan");
    assert_eq!(events.count(), 1);
}

/// A plan that the device had no streams for is forgotten, and is not looked for again at once; planning that is under
/// way ends with who asked for it.
#[test]
fn what_is_given_up_is_forgotten() {
    let d = decoder(&llama(2, true), Dtype::Bf16, 1);
    let machine = beside(1e9);
    let mut plan = Plan::clone(&planned(&d, &spilled(&d), CLIP, &machine));
    for tier in [Tier::Device, Tier::Host] {
        plan.tiers[tier as usize].planned_bytes = plan.tier(tier).planned_bytes * 2;
    }
    let plan = Arc::new(plan);
    let mut slowdown = AS_RATED;
    slowdown[LaneKind::Disk as usize] = 1e3;
    let new = |last: u64| {
        let mut adaptive = Adaptive::new(&d, &plan, &machine, CLIP, Pins::default(), last);
        adaptive.pretend(&slowdown);
        adaptive
    };
    let none = Measured::default();
    let step = |adaptive: &mut Adaptive, at: u64| {
        let notes = adaptive.step(at, &none, 1.0);
        assert_eq!(notes, None, "{at}");
    };
    let mut adaptive = new(1000);
    (1..=23).for_each(|at| step(&mut adaptive, at));
    assert!(
        adaptive
            .better()
            .is_some_and(|better| better.hash() != plan.hash())
    );
    adaptive.give_up();
    assert!(!adaptive.is_ready() && adaptive.take(23).is_none());
    for at in 24..=150 {
        step(&mut adaptive, at);
        assert!(!adaptive.is_ready(), "{at}");
    }
    // Begun behind step 22, and dropped meanwhile.
    let mut adaptive = new(1000);
    (1..=22).for_each(|at| step(&mut adaptive, at));
    drop(adaptive);
    // None is begun where few steps are left.
    let mut adaptive = new(40);
    (1..=40).for_each(|at| step(&mut adaptive, at));
    assert!(!adaptive.is_ready());
}
