//! The user's own proof that placement changes no number: some steps of a slice of the model under
//! the run's plan, and again with everything resident, compared bit for bit.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use lowtide_config as config;
use lowtide_config::{Init, ModelSource, Run};
use lowtide_executor::Trace;
use lowtide_model::{Checkpoint, Decoder, Options, file_params, random_init};
use lowtide_planner::{Budgets, Choice, Clip, LaneKind, PieceId, Plan, build, check};
use lowtide_units::{Bytes, List};
use lowtide_workload::{ModelShape, ParamId};
use serde::Serialize;

use crate::basis::Basis;
use crate::device;
use crate::error::TrainError;
use crate::fit::{hyper, schedule_of};
use crate::hub;
use crate::inputs::{dealing, load_inputs, open_tokenizer, sample_of};
use crate::open::open_session;
use crate::paths;
use crate::planning::{check_length, clip_of, decoder_of, numbers_of, options_of, shape_of};
use crate::report::{Nobody, moved_bytes};
use crate::threads::threads_of;
use crate::wear;
use lowtide_data::{BatchShape, Micro};
use lowtide_measure::random_micro;
use lowtide_session::{DiskChoice, Session, SessionOptions};

mod slice;

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Every loss, every norm and every byte of weights and optimizer state is the same.
    pub equal: bool,
    /// Steps that each of the two trained.
    pub steps: u64,
    /// Blocks of the slice.
    pub blocks: u32,
    /// Bytes of weights and optimizer state compared.
    pub compared_bytes: u64,
    /// What the run's plan does and the slice's plan too, in words.
    pub exercised: Vec<String>,
    /// What the run's plan does and the slice's does not: too few blocks.
    pub not_exercised: Vec<String>,
    /// The run's plan keeps everything on the device; the slice was sent away all the same.
    pub sent_away: bool,
    /// Hash of the run's plan for the slice.
    pub plan_hash: String,
    /// Hash of the resident plan.
    pub resident_hash: String,
    /// Bytes that the run's plan moved, by lane.
    pub moved_bytes: BTreeMap<String, u64>,
    /// What differs first.
    pub first_difference: Option<String>,
}

/// Trains `steps` steps of the first `blocks` blocks of a run's model under the run's budgets and
/// knobs and again all resident, and compares. `plant_fault` spoils one weight between two steps of
/// the planned run, to show that a difference is found.
///
/// The slice's plan has the choices of the run's own plan for the whole model, of those blocks that
/// together show the most of them; every tier that holds weights or state there does so here. Where the
/// run's plan keeps everything on the device, the slice is sent away all the same, so that something is
/// compared.
///
/// # Errors
/// As for training the run.
pub fn verify(
    run: &Run,
    steps: u64,
    blocks: u32,
    plant_fault: bool,
) -> Result<VerifyReport, TrainError> {
    if run.training_ready().is_ok() {
        paths::inputs(run)?;
    }
    let whole = shape_of(run)?;
    check_length(run, &whole)?;
    let device = device::open(run, &whole)?;
    let options = options_of(run, &whole, run.batch(), device.target)?;
    let all = lowtide_model::describe(&whole, &options)?;
    let (blocks, shape) = slice::cut(&whole, &all, blocks);
    let options = Options {
        frozen: slice::frozen(&whole, &options.frozen, &blocks),
        ..options
    };
    let blocks = shape.layers + shape.stacks.map_or(0, |stacks| stacks.encoder);
    let decoder = Decoder::new(&shape, &options)?
        .of_ranks(run.gpus)
        .in_a_tree(run.train.leaves);
    let decoder = Arc::new(numbers_of(run, decoder));
    let mut clip = clip_of(run);
    // A step is compared whatever its norm.
    clip.spikes = None;
    let basis = Basis::here(
        run,
        &device,
        Arc::clone(&decoder),
        || sample_of(run),
        &mut Nobody,
    )?;
    let sliced = slice_plan(&basis)?;
    let plan = Arc::clone(&sliced.plan);
    wear::check(run, &plan, (0, wear::fill(&plan), steps))?;
    let resident = all_resident(&basis, clip.mode)?;
    let inputs = batches(run, &shape, steps)?;
    let planned = basis.planned(device.clone(), Plan::clone(&plan), Trace::NONE);
    let mut first = open_session(run, &planned)?;
    let got = train(run, &mut first, &whole, &inputs, plant_fault)?;
    let measured = first.measured();
    let options = SessionOptions {
        threads: threads_of(run),
        disk: DiskChoice::None,
        gpu: device.gpu.clone(),
        group: device.group.clone(),
        process: planned.resident.beside,
        ..SessionOptions::default()
    };
    let mut second = Session::open(decoder, Arc::clone(&resident), clip, options)?;
    let want = train(run, &mut second, &whole, &inputs, false)?;
    let (state, compared_bytes) = compare(&mut first, &mut second)?;
    let difference = different_step(&got, &want).or(state);
    let moved_bytes = moved_bytes(|lane| measured.lane(lane).bytes);
    Ok(VerifyReport {
        equal: difference.is_none(),
        steps,
        blocks,
        compared_bytes,
        exercised: sliced.exercised,
        not_exercised: sliced.not_exercised,
        sent_away: sliced.sent_away,
        plan_hash: format!("{:016x}", plan.hash()),
        resident_hash: format!("{:016x}", resident.hash()),
        moved_bytes,
        first_difference: difference,
    })
}

/// The plan that has everything on the device.
fn all_resident(basis: &Basis<'_>, clip: Clip) -> Result<Arc<Plan>, TrainError> {
    let w = basis.decoder.workload();
    let choice = Choice::resident(w);
    let plan = build(w, &choice, clip, Budgets::UNLIMITED, &basis.machine);
    check::check(&plan, w, clip).map_err(TrainError::WrongPlan)?;
    Ok(Arc::new(plan))
}

/// The first step with another loss or norm, each as its bits: under the plan, and resident.
fn different_step(got: &[(u64, u64)], want: &[(u64, u64)]) -> Option<String> {
    let mut steps = got.iter().zip(want).enumerate();
    let (i, (a, b)) = steps.find(|(_, (a, b))| a != b)?;
    Some(format!(
        "step {}: loss {} and norm {} under the plan, {} and {} resident",
        i + 1,
        f64::from_bits(a.0),
        f64::from_bits(a.1),
        f64::from_bits(b.0),
        f64::from_bits(b.1)
    ))
}

/// A slice's plan, and how much of the run's plan it shows.
struct Sliced {
    plan: Arc<Plan>,
    exercised: Vec<String>,
    not_exercised: Vec<String>,
    sent_away: bool,
}

/// The plan of the slice: the choices of the run's own plan. Of a run that is resident altogether: under
/// device budgets halved until something moves, or with everything sent away by hand.
fn slice_plan(basis: &Basis<'_>) -> Result<Sliced, TrainError> {
    let (run, decoder) = (basis.run, &basis.decoder);
    let whole = decoder_of(run, run.batch(), basis.target)?;
    let own = Basis {
        decoder: Arc::clone(&whole),
        ..basis.clone()
    };
    let own = own.plan()?;
    let (w, clip) = (decoder.workload(), clip_of(run).mode);
    let does = slice::told(whole.workload(), &own.choice);
    let mut choice = slice::slice_choice(whole.workload(), &own.choice, w);
    slice::use_every_tier(&own.choice, &mut choice, w);
    let resident = slice::told(whole.workload(), &Choice::resident(whole.workload()));
    let sent_away = does.is_subset(&resident);
    let plan = if sent_away {
        away(basis)?
    } else {
        let plan = build(w, &choice, clip, Budgets::UNLIMITED, &basis.machine);
        check::check(&plan, w, clip).map_err(TrainError::WrongPlan)?;
        plan
    };
    let shows = slice::told(w, &plan.choice);
    Ok(Sliced {
        plan: Arc::new(plan),
        exercised: does.intersection(&shows).cloned().collect(),
        not_exercised: does.difference(&shows).cloned().collect(),
        sent_away,
    })
}

/// A plan of the slice that moves something, whatever the run's budgets.
fn away(basis: &Basis<'_>) -> Result<Plan, TrainError> {
    // The weights go up at least once a step, two bytes a number.
    let moves = |plan: &Plan| {
        plan.prediction.lanes[LaneKind::H2d as usize].bytes.0
            > basis.decoder.workload().parameters()
    };
    let mut smaller = basis.clone();
    let mut best = smaller.plan()?;
    while !moves(&best) {
        smaller.budgets.device = Bytes(smaller.budgets.device.0 / 2);
        match smaller.plan() {
            Ok(plan) => best = plan,
            Err(_) => break,
        }
    }
    // A slice so small that it is resident whatever the budgets: offload it all the same.
    if !moves(&best) {
        let mut pinned = basis.run.clone();
        pinned.plan.weights = Some(config::Tier::Host);
        pinned.plan.optimizer = Some(if pinned.budget.disk.is_empty() {
            config::Tier::Host
        } else {
            config::Tier::Disk
        });
        let pinned = Basis {
            run: &pinned,
            ..basis.clone()
        };
        best = pinned.plan().unwrap_or(best);
    }
    Ok(best)
}

/// The run's own batches, or random ones where it names no data.
fn batches(run: &Run, shape: &ModelShape, steps: u64) -> Result<Vec<Vec<Micro>>, TrainError> {
    if run.training_ready().is_ok() {
        let tokenizer = open_tokenizer(run, Some(0))?;
        let data = load_inputs(run, &tokenizer)?;
        let batch = BatchShape {
            micro_batch: run.train.micro_batch as usize,
            accumulate: run.train.accumulate as usize,
        };
        let mut batches = data.train.batches(batch, dealing(run))?;
        let mut micro = || Ok(batches.next_batch()?.micro);
        return (0..steps).map(|_| micro()).collect();
    }
    let b = run.batch();
    let each = u64::from(b.accumulate);
    Ok((0..steps)
        .map(|s| {
            (0..each)
                .map(|m| random_micro(shape, b, run.seed + s * each + m))
                .collect()
        })
        .collect())
}

/// Loss and norm of each step, as bits.
fn train(
    run: &Run,
    session: &mut Session,
    whole: &ModelShape,
    inputs: &[Vec<Micro>],
    plant_fault: bool,
) -> Result<Vec<(u64, u64)>, TrainError> {
    load_slice(run, session, whole)?;
    let total = inputs.len() as u64;
    // The schedule of a short run would be all warm-up; the peak moves weights from step 1.
    let schedule = schedule_of(run, total);
    let mut results = Vec::new();
    for (i, micro) in inputs.iter().enumerate() {
        let step = i as u64 + 1;
        let hyper = hyper(run, schedule.peak, step);
        let data = session.submit(micro.clone(), hyper)?;
        let outcome = session.outcome(&data)?;
        results.push((outcome.loss().to_bits(), outcome.norm.to_bits()));
        if plant_fault && step == 1 {
            session.drain()?;
            session.homes()?.flip_bit(PieceId(0))?;
        }
    }
    session.drain()?;
    Ok(results)
}

/// Weights of the slice: its blocks are the model's first; embedding and head are the model's.
fn load_slice(run: &Run, session: &mut Session, whole: &ModelShape) -> Result<(), TrainError> {
    let shape = session.decoder().shape().clone();
    let decoder = Arc::clone(session.decoder());
    let homes = session.homes()?;
    match (&run.model.source, run.model.init) {
        (ModelSource::Path(dir), Init::Pretrained) => {
            hub::weights(run)?;
            let files = Checkpoint::open(dir, whole)?;
            let all = file_params(whole);
            let of_whole: List<ParamId, ParamId> = file_params(&shape)
                .iter()
                .map(|p| {
                    let found = all.position(|q| q.name == p.name);
                    found.expect("a slice's parameters are the model's")
                })
                .collect();
            homes.initialise(|p, range, out| {
                let of_files = |p: ParamId, range: Range<u64>, out: &mut [f32]| match files
                    .is_new(of_whole[p])
                {
                    true => {
                        random_init(whole, run.seed, of_whole[p], range, out);
                        Ok(())
                    }
                    false => files.read(of_whole[p], range, out),
                };
                Ok::<(), TrainError>(decoder.first_values(run.seed, p, range, out, of_files)?)
            })
        }
        _ => homes.initialise(|p, range, out| {
            decoder.first_values(run.seed, p, range, out, |p, range, out| {
                random_init(&shape, run.seed, p, range, out);
                Ok::<(), TrainError>(())
            })
        }),
    }
}

/// The first array that differs, and the bytes compared.
fn compare(a: &mut Session, b: &mut Session) -> Result<(Option<String>, u64), TrainError> {
    const CHUNK: u64 = 1 << 19;
    let decoder = Arc::clone(a.decoder());
    let w = decoder.workload();
    let (ha, hb) = (a.homes()?, b.homes()?);
    let mut difference = None;
    let mut compared = 0;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for (p, param) in w.params.pairs() {
        for spec in w.arrays(param) {
            let (role, size) = (spec.role, spec.size());
            let entries = spec.entries(param);
            for from in (0..entries).step_by(CHUNK as usize) {
                let to = (from + CHUNK).min(entries);
                x.resize(((to - from) * size) as usize, 0u8);
                y.resize(x.len(), 0u8);
                ha.read(p, role, from..to, &mut x)?;
                hb.read(p, role, from..to, &mut y)?;
                compared += x.len() as u64;
                if difference.is_none()
                    && let Some(i) = (0..x.len()).find(|&i| x[i] != y[i])
                {
                    let at = from + i as u64 / size;
                    difference = Some(format!("{} of {}, number {at}", role.name(), param.name));
                }
            }
        }
    }
    Ok((difference, compared))
}
