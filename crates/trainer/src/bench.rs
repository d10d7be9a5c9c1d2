//! A synthetic run of a named shape, to time its steps or the answers that it makes.

mod answers;
mod checkpoints;

pub use answers::generate;

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use lowtide_config::Run;
use lowtide_device::cuda::process_memory;
use lowtide_executor::{Measured, Trace};
use lowtide_planner::{Lane, Tier};
use lowtide_report::bench::StepReport;
use lowtide_tiers::process;

use crate::basis::Basis;
use crate::checkpoint::background::describe;
use crate::device;
use crate::error::TrainError;
use crate::fit::{background, hyper};
use crate::open::{disk_of, open_on};
use crate::planning::{decoder_of, pins_of, shape_of};
use crate::report::{Observer, Phase, compare, median, moved_bytes};
use crate::threads::host_note;
use crate::wear;
use lowtide_data::Micro;
use lowtide_measure::random_micro;
use lowtide_random::Philox;
use lowtide_session::Session;

/// What a bench of steps is to find beside their time.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions<'a> {
    /// Steps before the first that is timed.
    pub warm_up: u64,
    /// A file for what every lane did.
    pub trace: Option<&'a Path>,
    /// A directory for checkpoints, of which one is made each so many steps: what they cost.
    pub checkpoints: Option<(&'a Path, u64)>,
}

impl StepOptions<'_> {
    /// Steps before the first that is timed, where nobody says.
    pub const WARM_UP: u64 = 2;
}

/// Plans and reserves a run, fills its weights with random numbers, trains a few steps on random
/// tokens and `steps` more that are timed. Long because it is one report, of which each figure is read off once.
///
/// # Errors
/// As for training a run.
pub fn step(
    run: &Run,
    steps: u64,
    StepOptions {
        warm_up,
        trace,
        checkpoints,
    }: StepOptions<'_>,
    observer: &mut dyn Observer,
) -> Result<StepReport, TrainError> {
    let begin = Instant::now();
    let place = match checkpoints {
        Some((dir, every)) => Some((checkpoints::Place::in_dir(dir)?, every)),
        None => None,
    };
    let shape = shape_of(run)?;
    let device = device::open(run, &shape)?;
    observer.device(&device.note, device.gpu.is_some());
    observer.detail(&host_note(run, device.gpu.is_some()));
    let decoder = decoder_of(run, run.batch(), device.target)?;
    let basis = Basis::here(run, &device, decoder, || None, observer)?;
    // One more than those that are timed is in the lanes.
    let made = (warm_up + 1).saturating_add(steps);
    let made = match checkpoints {
        Some(_) => made.saturating_mul(3),
        None => made,
    };
    let make = |pins| basis.plan_pinned(pins);
    let plan = wear::within(run, pins_of(run), (0, made), wear::fill, make, |p| p)?;
    wear::check(run, &plan, (0, wear::fill(&plan), made))?;
    let traced = trace.map_or(Trace::NONE, |_| Trace::ALL);
    let planned = basis.clone().planned(device, plan, traced);
    let staging = checkpoints.map(|_| background::plan(run, basis.host_left(&planned), &planned));
    let planned = match staging {
        Some(Ok(staging)) => planned.staged(staging),
        _ => planned,
    };
    observer.planned(&planned);
    if let Some(staging) = &staging {
        observer.note(&describe(staging));
    }
    observer.phase(Some(Phase::Weights));
    let gpu = planned.device.gpu.as_ref();
    let reserved = planned
        .staging
        .map(|staging| staging.reserve(gpu))
        .transpose()?;
    let plan = &planned.plan;
    let mut session = open_on(run, &planned, traced, disk_of(run, &planned.plan))?;
    fill(&mut session)?;
    observer.phase(None);
    let start_seconds = begin.elapsed().as_secs_f64();
    observer.note(&format!("ready after {start_seconds:.1} s"));

    let w = planned.decoder.workload();
    let ranks = u64::from(w.ranks);
    let tokens = w.batch.tokens() * ranks;
    let inputs: Vec<Micro> = (0..u64::from(w.batch.accumulate) * ranks)
        .map(|m| random_micro(&shape, w.batch, m))
        .collect();
    let Timed {
        times,
        losses,
        lanes,
    } = timed(run, &mut session, &inputs, (warm_up, steps), observer)?;
    if let Some(path) = trace {
        let file = std::fs::File::create(path).map_err(TrainError::io(path))?;
        let traced = session.write_trace(&mut std::io::BufWriter::new(file));
        traced.map_err(TrainError::io(path))?;
    }
    let cost = match (&place, staging) {
        (Some((place, every)), Some(plan)) => {
            let saves = checkpoints::Saves {
                every: *every,
                folder: place.path(),
                plan,
                staging: reserved,
            };
            Some(checkpoints::timed(
                run,
                &mut session,
                &inputs,
                steps,
                saves,
                observer,
            )?)
        }
        _ => None,
    };
    let step_seconds = median(&times).expect("one step at least");
    let model_tflops = w.model_flops.0 * ranks as f64 / step_seconds / 1e12;
    let matmul_tflops = planned.machine.matmul_bf16.0 * ranks as f64 / 1e12;
    let (by_lane, gpu_waits) = compare(&planned, &lanes, steps as f64);
    let gpu_busy = lanes.lane(Lane::GPU).busy_seconds / steps as f64;
    let gpu = planned.device.gpu.as_ref();
    let device_bytes = gpu
        .and_then(|gpu| process_memory(gpu.bus()))
        .map(|m| m.process.unwrap_or(m.used).0);
    Ok(StepReport {
        model: plan.model.clone(),
        machine: planned.machine.name.clone(),
        device: planned.device.note.clone(),
        parameters: w.parameters(),
        gpus: run.gpus,
        tokens_per_step: tokens,
        step_seconds,
        step_seconds_range: [times[0], times[times.len() - 1]],
        tokens_per_second: tokens as f64 / step_seconds,
        model_tflops,
        matmul_tflops,
        share_of_matmul: model_tflops / matmul_tflops,
        predicted_step_seconds: plan.prediction.step_seconds.0,
        lanes: by_lane,
        gpu_waits,
        gpu_gap_share: trace.map(|_| 1.0 - gpu_busy / step_seconds),
        device_bytes,
        planned_device_bytes: plan.tier(Tier::Device).planned_bytes.0
            + planned.machine.device_reserve.0,
        host_peak_bytes: process::peak_rss_bytes().map(|b| b.0),
        planned_host_bytes: planned.resident.planned(plan, &planned.machine).0,
        moved_bytes_per_step: moved_bytes(|lane| lanes.lane(lane).bytes / steps),
        recomputed_blocks: plan.choice.recomputed_blocks(),
        losses: [losses[0], losses[losses.len() - 1]],
        start_seconds,
        plan_hash: format!("{:016x}", plan.hash()),
        checkpoints: cost,
    })
}

/// What timed steps gave.
struct Timed {
    /// Seconds of each, sorted.
    times: Vec<f64>,
    /// Losses of all steps, those of the warm-up too.
    losses: Vec<f64>,
    /// What the lanes did in the timed ones: from a norm to a norm, the work of so many steps on every lane.
    lanes: Measured,
}

/// Trains `warm_up` steps and `steps` that are timed.
fn timed(
    run: &Run,
    session: &mut Session,
    inputs: &[Micro],
    (warm_up, steps): (u64, u64),
    observer: &mut dyn Observer,
) -> Result<Timed, TrainError> {
    // A step ends when its norm is known; the next one is in the lanes by then, after the last that is
    // timed too.
    let total = warm_up + steps;
    let mut flying = VecDeque::new();
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    let mut last = Instant::now();
    let (mut before, mut after) = (session.measured(), session.measured());
    for s in 1..=total + 1 {
        flying.push_back(session.submit(inputs.to_vec(), hyper(run, 1e-5, s))?);
        if s == 1 {
            continue;
        }
        let data = flying.pop_front().expect("one was submitted");
        let outcome = session.outcome(&data)?;
        losses.push(outcome.loss());
        let seconds = last.elapsed().as_secs_f64();
        observer.note(&format!(
            "step {}: {seconds:.4} s, loss {:.4}, gradient norm {:.3}",
            losses.len(),
            outcome.loss(),
            outcome.norm
        ));
        last = Instant::now();
        after = session.measured();
        if losses.len() as u64 > warm_up {
            times.push(seconds);
        } else {
            before = after;
        }
    }
    session.drain()?;
    times.sort_by(f64::total_cmp);
    Ok(Timed {
        times,
        losses,
        lanes: after.since(&before),
    })
}

/// Weights from a table of random numbers: their values do not matter, only that they are not all
/// alike, and a large model is filled in seconds.
pub(super) fn fill(session: &mut Session) -> Result<(), TrainError> {
    let random = Philox::new(0, 0);
    let table: Vec<f32> = (0..1u64 << 20)
        .map(|i| (random.below(i, 1 << 20) as f32 / (1u64 << 19) as f32 - 1.0) * 0.035)
        .collect();
    // A prime, so that rows differ.
    const PERIOD: u64 = 1_048_573;
    session.homes()?.initialise(|p, range, out: &mut [f32]| {
        let mut at = ((u64::from(p.0) * 7919 + range.start) % PERIOD) as usize;
        for x in out {
            *x = table[at];
            at = (at + 1) % PERIOD as usize;
        }
        Ok::<(), TrainError>(())
    })
}
