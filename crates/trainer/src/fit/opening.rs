//! What a run opens before it is planned: its output, its data, its device; and the logs that it writes.

use std::sync::Arc;

use lowtide_config::Run;
use lowtide_data::{BatchShape, Batches, Packed, Rows, Tokenizer};
use lowtide_model::Decoder;
use lowtide_planner::Plan;
use lowtide_units::Bytes;
use serde_json::Value;

use super::branch::Origin;
use super::lost;
use super::start::Start;
use crate::answers::{Extract, Question, questions};
use crate::basis::{Basis, alike};
use crate::device::{self, Device};
use crate::dropout::note_of_dropout;
use crate::error::TrainError;
use crate::inputs::{Inputs, dealing, load_inputs, open_tokenizer};
use crate::launch::Others;
use crate::metrics::{EventFile, MetricsLog};
use crate::open::check_weights;
use crate::output::{self, Output};
use crate::planning::{check_budgets, decoder_of, load_machine, shape_of};
use crate::report::{Observer, Phase};
use crate::stops::{Stops, stops_of};
use crate::threads::host_note;
use crate::{checkpoint, paths, wear};

/// Locks the output, and finds where the run resumes. Changes nothing.
pub(super) fn beginning(
    run: &Run,
    observer: &mut dyn Observer,
) -> Result<(Output, Start, Origin), TrainError> {
    run.training_ready()?;
    paths::inputs(run)?;
    paths::outputs(run)?;
    let mut output = Output::open(run)?;
    output.take_notes().iter().for_each(|n| observer.note(n));
    checkpoint::recover(&output)?
        .iter()
        .for_each(|n| observer.note(n));
    let mut notes = Vec::new();
    let (start, origin) = Start::find(run, &output, &mut notes)?;
    notes.extend(origin.note(run, &output, &start));
    notes.extend(lost::refuse(run, &output, &start, &origin)?);
    notes.iter().for_each(|n| observer.note(n));
    if start.state().is_none() {
        check_weights(run, &shape_of(run)?)?;
    }
    Ok((output, start, origin))
}

/// What a run is made of, before anything is measured, planned or reserved.
pub(super) struct Material {
    pub tokenizer: Tokenizer,
    pub stops: Stops,
    pub device: Device,
    pub decoder: Arc<Decoder>,
    pub train: Rows,
    pub eval: Option<Arc<Packed>>,
    pub extract: Extract,
    pub questions: Arc<[Question]>,
}

impl Material {
    /// Reads the data, and looks at everything that would be found wrong only after minutes.
    pub fn read(
        run: &Run,
        start: &Start,
        others: Option<&Others>,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        observer.phase(Some(Phase::Data));
        note_of_dropout(run)?.iter().for_each(|n| observer.note(n));
        let tokenizer = open_tokenizer(run, start.state().map(|s| s.now_unix_s))?;
        let mut stops = stops_of(run, &tokenizer)?;
        let device = device::open_with(run, &shape_of(run)?, others)?;
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
        if let Some(path) = &run.plan.machine {
            load_machine(path)?;
        }
        Ok(Self {
            tokenizer,
            stops,
            device,
            decoder,
            train,
            eval,
            extract,
            questions: questions.into(),
        })
    }

    /// The training set's batches from the first on.
    pub fn batches(&self, run: &Run) -> Result<Batches, TrainError> {
        let shape = BatchShape {
            micro_batch: run.train.micro_batch as usize,
            accumulate: run.train.accumulate as usize,
        };
        Ok(self.train.batches(shape, dealing(run))?)
    }

    /// A resumed run keeps the product algorithms of its GPU; on another GPU it chooses anew.
    pub fn with_products(self, start: &Start, numerics: &Value) -> Result<Self, TrainError> {
        if let (Some(gpu), Some(state)) = (&self.device.gpu, start.state())
            && state.numerics["device"] == numerics["device"]
        {
            gpu.set_choices(&state.products)?;
            alike(&self.device)?;
        }
        Ok(self)
    }
}

/// Plans a run. Returns also how many bytes are written to its drives once this start has filled them. Refused if the
/// steps ahead would write more than the run may.
pub(super) fn plan(
    run: &Run,
    basis: &Basis<'_>,
    output: &Output,
    start: &Start,
    ahead: u64,
) -> Result<(Plan, u64), TrainError> {
    let filled = |plan: &Plan| match start {
        // Its state is on the drives.
        Start::Journal(_) => Bytes::ZERO,
        Start::Anew | Start::Checkpoint(..) => wear::fill(plan),
    };
    // A killed process has reported more than its last checkpoint knows, and may have written more than it reported.
    let saved = start.state().map_or(0, |s| s.totals.disk_written);
    let written = saved.max(wear::told(run, output)?);
    let make = |pins| basis.plan_pinned(pins);
    let plan = wear::within(run, start.pins(run), (written, ahead), filled, make, |p| p)?;
    let filled = filled(&plan);
    wear::check(run, &plan, (written, filled, ahead))?;
    Ok((plan, written + filled.0))
}

/// What a run writes while it goes.
pub(super) struct Logs {
    pub metrics: MetricsLog,
    pub answers: Option<MetricsLog>,
    pub events: Option<EventFile>,
}

impl Logs {
    /// Opens them at the step from which the run resumes.
    pub fn open(
        run: &Run,
        output: &Output,
        start: &Start,
        answers: bool,
    ) -> Result<Self, TrainError> {
        let resumed_step = start.state().map(|s| s.step);
        let log = |name| MetricsLog::open(output.folder(), name, resumed_step);
        let metrics = log(output::METRICS)?;
        let answers = answers.then(|| log(output::ANSWERS)).transpose()?;
        let events = if run.log.tensorboard {
            let folder = output.folder().make(output::TENSORBOARD)?;
            Some(EventFile::create(&folder)?)
        } else {
            None
        };
        Ok(Self {
            metrics,
            answers,
            events,
        })
    }
}
