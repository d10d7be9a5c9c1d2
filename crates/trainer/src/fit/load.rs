//! What a run reads and plans before anything of it is reserved: all that can be wrong is found here.

use std::sync::Arc;

use lowtide_config::{Length, Run};
use lowtide_executor::Trace;
use lowtide_model::Decoder;

use super::start::Start;
use crate::answers::{Extract, Question, questions};
use crate::data::{BatchShape, Batches, Packed, Tokenizer};
use crate::device::{self, Device};
use crate::error::TrainError;
use crate::inputs::{Inputs, dealing, load_inputs, open_tokenizer};
use crate::open::{check_weights, machine_of};
use crate::planning::{
    Planned, budgets_of, check_budgets, clip_of, decoder_of, load_machine, plan_pinned, shape_of,
};
use crate::report::{Observer, Phase};
use crate::resident::Resident;
use crate::stops::{Stops, stops_of};
use crate::threads::host_note;

/// A run's model, device and data.
pub(super) struct Loaded {
    pub tokenizer: Tokenizer,
    pub stops: Stops,
    pub device: Device,
    pub decoder: Arc<Decoder>,
    pub train: Arc<Packed>,
    pub eval: Option<Arc<Packed>>,
    pub questions: Vec<Question>,
    pub extract: Extract,
    /// Steps of the run.
    pub total: u64,
}

/// Reads it all, and tells what was noticed.
pub(super) fn load(
    run: &Run,
    start: &Start,
    observer: &mut dyn Observer,
) -> Result<Loaded, TrainError> {
    let now = start.state().map(|s| s.now_unix_s);
    if start.state().is_none() {
        check_weights(run, &shape_of(run)?)?;
    }
    observer.phase(Some(Phase::Data));
    let tokenizer = open_tokenizer(run, now)?;
    let mut stops = stops_of(run, &tokenizer)?;
    let device = device::open(run, &shape_of(run)?)?;
    observer.device(&device.note, device.gpu.is_some());
    check_budgets(run, &device)?;
    observer.detail(&host_note(run, device.gpu.is_some()));
    let decoder = decoder_of(run, run.batch(), device.target)?;
    let inputs = load_inputs(run, &tokenizer)?;
    if inputs.is_chat() {
        stops = stops.with_turns(&tokenizer);
    }
    let Inputs {
        train,
        eval,
        notes,
        details,
    } = inputs;
    notes.iter().for_each(|n| observer.note(n));
    details.iter().for_each(|n| observer.detail(n));
    let extract = Extract::of(run);
    let questions = questions(run, &tokenizer, &extract)?;
    // What would be found wrong after minutes of measuring and planning is looked at now.
    if let Some(path) = &run.plan.machine {
        load_machine(path)?;
    }
    let total = match run.train.length {
        Length::Steps(n) => n,
        Length::Epochs(e) => batches(run, &train)?.batches_for(e),
    };
    Ok(Loaded {
        tokenizer,
        stops,
        device,
        decoder,
        train,
        eval,
        questions,
        extract,
        total,
    })
}

/// The run's batches, from the first on.
pub(super) fn batches(run: &Run, train: &Arc<Packed>) -> Result<Batches, TrainError> {
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: run.train.accumulate as usize,
    };
    Ok(Batches::new(Arc::clone(train), shape, dealing(run))?)
}

/// Measures the machine, where no file has its rates, and plans.
pub(super) fn plan(
    run: &Run,
    start: &Start,
    loaded: &Loaded,
    trace: Trace,
    observer: &mut dyn Observer,
) -> Result<Planned, TrainError> {
    let (device, decoder) = (&loaded.device, &loaded.decoder);
    let sample = batches(run, &loaded.train)?
        .next_batch()
        .micro
        .swap_remove(0);
    observer.phase(run.plan.machine.is_none().then_some(Phase::Measuring));
    let machine = machine_of(run, device, decoder, Some(&sample))?;
    observer.phase(Some(Phase::Planning));
    let budgets = budgets_of(run, device)?;
    let pins = start.pins(run);
    let plan = plan_pinned(run, decoder, &machine, budgets, device.target, pins)?;
    let plan = Arc::new(plan);
    observer.planned(&plan, &machine);
    let resident = Resident::count(&plan, decoder.workload(), &machine, trace);
    Ok(Planned {
        device: device.clone(),
        decoder: Arc::clone(decoder),
        plan,
        machine,
        clip: clip_of(run),
        resident,
    })
}
