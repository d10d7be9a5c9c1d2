//! From a run's settings to a session: rates, plan, memory, weights.

use std::sync::Arc;

use lowtide_config::{Init, ModelSource, Run};
use lowtide_executor::{Mode, Trace};
use lowtide_model::{Checkpoint, Decoder, Decoding, random_init};
use lowtide_planner::{Plan, Tier};
use lowtide_workload::ModelShape;

use crate::basis::Basis;
use crate::device::{self};
use crate::error::TrainError;
use crate::hub;
use crate::inputs::sample_of;
use crate::planning::{Planned, decoder_of, options_of, shape_of};
use crate::projectors::Projectors;
use crate::report::Nobody;
use crate::threads::threads_of;
use crate::wear;
use lowtide_session::{DiskChoice, Session, SessionOptions};

/// Decoder, rates and plan of a run that makes no steps: nothing of it is durable.
///
/// # Errors
/// Anything wrong with shape, machine file or budgets.
pub fn plan_run(run: &Run) -> Result<Planned, TrainError> {
    let mut run = run.clone();
    run.checkpoint.durable = false;
    let run = &run;
    let device = device::open(run, &shape_of(run)?)?;
    let decoder = decoder_of(run, run.batch(), device.target)?;
    let basis = Basis::here(run, &device, decoder, || sample_of(run), &mut Nobody)?;
    let plan = basis.plan()?;
    Ok(basis.planned(device, plan, Trace::NONE))
}

/// As [`plan_run`], of a run that only makes answers, token by token with keys and values that are kept.
///
/// # Errors
/// As [`plan_run`]; places of more tokens than the model has positions.
pub fn plan_decoding(run: &Run, how: Decoding) -> Result<Planned, TrainError> {
    let mut run = run.clone();
    (run.checkpoint.durable, run.gpus) = (false, 1);
    // Attention over what is kept is always the own kernels': there is nothing to ask cuDNN.
    run.data.packing = true;
    let run = &run;
    let shape = shape_of(run)?;
    if how.keys > shape.max_positions {
        return Err(TrainError::LongAnswers {
            tokens: how.keys,
            positions: shape.max_positions,
        });
    }
    let device = device::open(run, &shape)?;
    let options = options_of(run, &shape, run.batch(), device.target)?;
    let decoder = Arc::new(Decoder::decoding(&shape, &options, how)?);
    let basis = Basis::here(run, &device, decoder, || None, &mut Nobody)?;
    let plan = basis.plan()?;
    Ok(basis.planned(device, plan, Trace::NONE))
}

/// A model, ready to be asked: its plan's session with the run's weights.
///
/// # Errors
/// What cannot be reserved or read.
pub fn load_model(run: &Run, planned: &Planned) -> Result<Session, TrainError> {
    let mut session = open_session(run, planned)?;
    load_weights(run, &mut session)?;
    Ok(session)
}

/// Opens a session for a plan on the run's own disks. Nothing is traced.
///
/// # Errors
/// What cannot be reserved; drives that may not be written so much.
pub fn open_session(run: &Run, planned: &Planned) -> Result<Session, TrainError> {
    wear::check(run, &planned.plan, (0, wear::fill(&planned.plan), 0))?;
    open_on(run, planned, Trace::NONE, disk_of(run, &planned.plan))
}

/// The run's drives, where its plan has bytes on them.
pub(crate) fn disk_of(run: &Run, plan: &Plan) -> DiskChoice {
    if plan.tier(Tier::Disk).planned_bytes.0 == 0 {
        return DiskChoice::None;
    }
    let drives = run.budget.disk.iter();
    DiskChoice::Directories(drives.map(|d| (d.dir.clone(), d.size.0 as f64)).collect())
}

/// Opens a session for a plan on these disks.
pub(crate) fn open_on(
    run: &Run,
    planned: &Planned,
    trace: Trace,
    disk: DiskChoice,
) -> Result<Session, TrainError> {
    let options = SessionOptions {
        threads: threads_of(run),
        mode: Mode::Threads,
        trace,
        snapshots: planned.staging.is_some(),
        disk,
        gpu: planned.device.gpu.clone(),
        group: planned.device.group.clone(),
        process: planned.resident.beside,
        ..SessionOptions::default()
    };
    Ok(Session::open(
        Arc::clone(&planned.decoder),
        Arc::clone(&planned.plan),
        planned.clip,
        options,
    )?)
}

/// Looks at the files that [`load_weights`] will read, and fetches those of a model on the Hub: they are there, whole
/// by their headers, and fit the model. Reads no weights.
///
/// # Errors
/// As [`load_weights`].
pub fn check_weights(run: &Run, shape: &ModelShape) -> Result<(), TrainError> {
    if let (ModelSource::Path(dir), Init::Pretrained) = (&run.model.source, run.model.init) {
        hub::weights(run)?;
        Checkpoint::open(dir, shape)?;
    }
    Ok(())
}

/// Fills the weights from the run's model directory, or at random.
///
/// # Errors
/// Files that do not fit the model.
pub fn load_weights(run: &Run, session: &mut Session) -> Result<(), TrainError> {
    load_with(run, session, None)
}

/// As [`load_weights`], with projectors that were learned in place of drawn ones.
pub(crate) fn load_with(
    run: &Run,
    session: &mut Session,
    projectors: Option<&Projectors>,
) -> Result<(), TrainError> {
    let decoder = Arc::clone(session.decoder());
    let shape = decoder.shape();
    let homes = session.homes()?;
    match (&run.model.source, run.model.init) {
        (ModelSource::Path(dir), Init::Pretrained) => {
            hub::weights(run)?;
            let files = Checkpoint::open(dir, shape)?;
            files.check_tied_head()?;
            homes.initialise(|p, range, out| {
                if let (Some(from), Some(matrix)) = (projectors, decoder.projects(p)) {
                    return from.read(matrix, &range, out);
                }
                let of_files = |p, range, out: &mut [f32]| match files.is_new(p) {
                    true => {
                        random_init(shape, run.seed, p, range, out);
                        Ok(())
                    }
                    false => files.read(p, range, out),
                };
                Ok(decoder.first_values(run.seed, p, range, out, of_files)?)
            })
        }
        _ => homes.initialise(|p, range, out| {
            if let (Some(from), Some(matrix)) = (projectors, decoder.projects(p)) {
                return from.read(matrix, &range, out);
            }
            decoder.first_values(run.seed, p, range, out, |p, range, out| {
                random_init(shape, run.seed, p, range, out);
                Ok::<(), TrainError>(())
            })
        }),
    }
}
