//! A run whose lanes are off the rates of its plan plans again, once, and ends in the same bits.

#![allow(clippy::print_stderr, reason = "times are worth reading")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::places::{beside, planned};
use crate::common::{Trained, batch, choice, decoder, hyper, llama, open, quick, train};
use lowtide_model::Decoder;
use lowtide_planner::{Choice, Clip, Machine, Pins, Plan, Saved, Tier};
use lowtide_session::{DiskChoice, SessionOptions};
use lowtide_tiers::{Pace, RamConfig, RamDisk};
use lowtide_trainer::Replan;
use lowtide_trainer::inside::{Adaptive, Rates};
use lowtide_units::BytesPerSecond;
use lowtide_workload::Dtype;

const CLIP: Clip = Clip::Exact;
const STEPS: u64 = 50;

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
    let mut adaptive = Adaptive::new(d, &plan, machine, CLIP, Pins::default());
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
