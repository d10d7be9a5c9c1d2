//! How a run begins: its output, data and device, its plan, the memory that it reserves, the state that it goes on
//! from, and the logs that it writes.
//!
//! One file because each of these needs what those before it made.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lowtide_config::{KeepBest, Length, Run, Warmup};
use lowtide_data::{BatchShape, Batches, Packed, Rows, Tokenizer};
use lowtide_executor::Trace;
use lowtide_model::Decoder;
use lowtide_planner::{Pins, Plan};
use lowtide_report::outcome::TrainReport;
use lowtide_session::{Requests, Totals};
use lowtide_units::Bytes;
use serde_json::{Value, json};

use super::background::{self, Backdrop};
use super::best::Evaluations;
use super::branch::Origin;
use super::every::Every;
use super::saving::{self, Cadence, Sizes};
use super::start::Start;
use super::{Fit, Saves, ends, lost, schedule_of, write_json};
use crate::adaptive::Adaptive;
use crate::answers::{Extract, Question, questions};
use crate::basis::{Basis, alike};
use crate::checkpoint::{self, Change, RunState};
use crate::device::{self, Device};
use crate::dropout::note_of_dropout;
use crate::error::TrainError;
use crate::inputs::{Inputs, dealing, load_inputs, open_tokenizer, steps_line};
use crate::launch::Others;
use crate::metrics::{EventFile, MetricsLog};
use crate::open::check_weights;
use crate::output::{self, Output};
use crate::planning::{Planned, check_budgets, decoder_of, load_machine, shape_of};
use crate::report::{Observer, Phase};
use crate::stops::{Stops, stops_of};
use crate::threads::host_note;
use crate::wear::{self, Wear};
use crate::{paths, projectors};

/// A run whose memory is reserved and whose state is in its place, or one that has nothing left to do.
pub(super) enum Opened<'a> {
    Finished(Box<TrainReport>),
    Begun(Box<Fit<'a>>, Box<Planned>),
}

/// Opens a run, with the other ranks where they are processes, to save so much of it. Long because it is the order in
/// which a run begins: each of its steps has a name of its own, and most need what all before them made.
pub(super) fn open<'a>(
    run: &'a Run,
    observer: &'a mut dyn Observer,
    requests: &Requests,
    (others, saves): (Option<&Others>, Saves),
) -> Result<Opened<'a>, TrainError> {
    let (mut output, mut start, origin) = beginning(run, observer)?;
    let material = Material::read(run, &start, others, observer)?;
    let mut batches = material.batches(run)?;
    let total = match run.train.length {
        Length::Steps(n) => n,
        Length::Epochs(e) => batches.batches_for(e)?,
    };
    let numerics = numerics_of(run, &material.device, &material.decoder, &material.train);
    let changes = start.changes(run, &numerics, total)?;
    let evaluations = Evaluations::of(run, material.eval.as_deref(), &material.questions);
    // It ended before, for want of a better evaluation.
    let whole = total;
    let total = match start.state() {
        Some(state) if evaluations.ended(run, &state.best) => total.min(state.step),
        _ => total,
    };
    if let Some(state) = start.state().filter(|_| total < whole) {
        observer.note(&state.best.why_ended(run, total, whole));
    }
    if let Some(report) = ends::finished(run, &start, total, &evaluations) {
        observer.phase(None);
        return Ok(Opened::Finished(Box::new(report)));
    }
    if let (Length::Epochs(epochs), Warmup::Steps(warmup)) =
        (run.train.length, run.train.schedule.warmup)
        && warmup > whole
    {
        return Err(TrainError::WarmUp {
            warmup,
            epochs,
            steps: whole,
        });
    }
    if let Rows::Whole(packed) = &material.train {
        let rows = packed.report().n_rows;
        observer.note(&steps_line(run, rows, batches.batches_per_epoch()?, whole));
    }
    let mut preview = material.batches(run)?;
    let mut learned_from = material.batches(run)?;
    let Material {
        tokenizer,
        stops,
        device,
        decoder,
        train,
        eval,
        extract,
        questions,
    } = material.with_products(&start, &numerics)?;
    let mut rest = None;
    let sample = || {
        let micro = preview.next_batch().ok()?.micro.swap_remove(0);
        // Rates are measured alone. An error is returned where the run itself asks for the batch.
        if let Rows::Stream(stream) = &train {
            rest = Some(stream.rest());
        }
        Some(micro)
    };
    // Answers beside the steps have a place for each prompt at most, and there may be fewer than are allowed.
    let mut own = run.clone();
    let most = &mut own.eval.generate.max_examples;
    *most = (*most).min(questions.len().max(1) as u64);
    let basis = Basis::here(&own, &device, decoder, sample, observer)?.with_answers()?;
    drop(rest);
    let ahead = total - start.state().map_or(0, |s| s.step);
    let (plan, written) = plan(run, &basis, &output, &start, ahead)?;
    let answers = basis.plan_answers(&plan)?;
    let trace = if run.log.trace {
        Trace::FIRST_STEPS
    } else {
        Trace::NONE
    };
    let planned = basis.clone().planned(device.clone(), plan, trace);
    let planned = planned.beside(answers);
    let planned = match run.plan.adaptive {
        true => planned.with_planning(),
        false => planned,
    };
    let on_the_way = background::saves_on_the_way(run);
    let left = basis.host_left(&planned);
    let staging = on_the_way.then(|| background::plan(run, left, &planned));
    let planned = match staging {
        Some(Ok(staging)) => planned.staged(staging),
        _ => planned,
    };
    observer.planned(&planned);
    if let Some(answers) = &planned.answers {
        observer.note(&answers.line());
    }
    observer.phase(Some(Phase::Reserving));
    let sizes = match saves {
        Saves::All => Sizes::of(run, &planned),
        Saves::Nothing => Sizes::NONE,
    };
    let room = saving::take_room(sizes, run, &planned, &output, ahead)?;
    let projectors = match start {
        Start::Anew if projectors::are_learned(run) => {
            observer.phase(Some(Phase::Learning));
            let begin = Instant::now();
            let batch = learned_from.next_batch()?.micro;
            let dir = output.folder().path();
            let learned = projectors::learn(run, &basis, &device, batch, dir)?;
            observer.phase(Some(Phase::Reserving));
            Some((learned, begin.elapsed().as_secs_f64()))
        }
        _ => None,
    };
    let (projectors, learning_seconds) = projectors.unzip();
    let mut session = start.open(run, &planned, trace)?;
    let gpu = planned.device.gpu.as_ref();
    let reserved = planned
        .staging
        .map(|staging| staging.reserve(gpu))
        .transpose()?;
    let answering = planned.answers.as_ref();
    let answering = answering
        .map(|answers| answers.open(run, &planned))
        .transpose()?;
    if let Some(how) = session.describe_disk() {
        observer.detail(&format!("disk: {how}"));
    }
    observer.phase(Some(match start {
        Start::Anew => Phase::Weights,
        _ => Phase::Resuming,
    }));
    // Nothing of an earlier run is changed before this has worked.
    start.load(run, &mut session, &mut batches, projectors.as_ref())?;
    drop(projectors);
    let durable = planned.plan.choice.durable;
    let writes = wear::untold(run, &planned.plan, written);
    let told = origin.begin(run, &start, &mut output, writes, || {
        start.publish(run, &session)?;
        let file = session.disk_paths().into_iter().next();
        Ok(file.filter(|_| durable))
    })?;
    told.iter().for_each(|t| observer.note(t));
    write_json(output.folder(), output::MACHINE, &planned.whole)?;
    write_json(output.folder(), output::RUN, run)?;

    let adaptive = run.plan.adaptive.then(|| {
        let Planned {
            decoder,
            plan,
            machine,
            clip,
            ..
        } = &planned;
        let pins = Pins {
            // What a killed process may have written untold is known by the first plan's steps.
            writes: Some(plan.prediction.disk_bytes_written),
            ..start.pins(run)
        };
        Adaptive::new(decoder, plan, machine, clip.mode, pins, total)
    });
    if adaptive.is_some() {
        observer
            .note("the run is planned again while it goes on, where its lanes are off their rates");
    }
    let state = RunState {
        data: batches.state(),
        data_fingerprint: train.fingerprint(),
        clip: session.clip_words().map(f64::to_bits),
        numerics: numerics.clone(),
        now_unix_s: tokenizer.now_unix_s(),
        ..RunState::new()
    };
    let logs = Logs::open(run, &output, &start, !questions.is_empty())?;
    let cadence = Cadence::of(run, &batches)?;
    let evaluates = (run.eval.every_steps, run.eval.every_epochs);
    let evaluates = Every::of(run, &batches, evaluates)?;
    if saves == Saves::All {
        let best = run.checkpoint.keep_best != KeepBest::None;
        observer.note(&cadence.told(run.checkpoint.keep, best, run.checkpoint.on_error));
    }
    if let Some(staging) = &staging {
        observer.note(&checkpoint::background::describe(staging));
    }
    let mut fit = Fit {
        run,
        observer,
        requests: requests.clone(),
        output,
        room,
        sizes,
        cadence,
        evaluates,
        background: reserved.map(Backdrop::new),
        beside: None,
        session,
        answering,
        tokenizer: Arc::new(tokenizer),
        stops,
        train,
        batches,
        eval,
        questions,
        extract,
        numerics,
        gpu: planned.device.gpu.clone(),
        total,
        schedule: schedule_of(run, total),
        metrics: logs.metrics,
        answers: logs.answers,
        events: logs.events,
        page: None,
        state,
        dealt: 0,
        earlier: Totals::default(),
        machine: planned.whole.clone(),
        predicted_seconds: planned.plan.prediction.step_seconds.0,
        adaptive,
        wear: Wear::of(&planned.plan, &planned.machine),
        durable,
        last_checkpoint: None,
        saved: None,
        unsaved: Vec::new(),
        evaluations,
        best_before: None,
        gone_back: false,
        best_lost: false,
        undescribed: false,
        saves,
        learning_seconds,
    };
    fit.begin(start, changes, written)?;
    if fit.durable {
        fit.write_journal(&planned.plan);
    }
    Ok(Opened::Begun(Box::new(fit), Box::new(planned)))
}

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

/// The run's numerics key with everything resolved that the run leaves open, and what the files
/// hold.
fn numerics_of(run: &Run, device: &Device, decoder: &Decoder, train: &Rows) -> Value {
    let mut key = run.numerics_key();
    key["device"] = match &device.gpu {
        None => json!("cpu"),
        Some(gpu) => json!({
            "cuda": gpu.name(),
            "attention": format!("{:?}", device.target.attention).to_lowercase(),
        }),
    };
    key["train"]["logits_chunk"] = json!(decoder.logits_chunk());
    // Patterns as they are typed say less than what they find.
    let params = &decoder.workload().params;
    let frozen: Vec<&str> = params
        .iter()
        .filter(|p| p.frozen && p.kind.is_own())
        .map(|p| &*p.name)
        .collect();
    if let Some(train) = key["train"].as_object_mut() {
        // Chunks of all rows or more are none.
        if decoder.rows_chunk().is_none() {
            train.remove("rows_chunk");
        }
        train.remove("unfreeze");
        train.remove("freeze");
        if !frozen.is_empty() {
            train.insert("freeze".to_owned(), json!(frozen));
        }
    }
    if let Some(optimizer) = key["optimizer"].as_object_mut()
        && optimizer.remove("groups").is_some()
    {
        let own = params.pairs().filter(|(_, p)| !p.frozen);
        let own =
            own.filter_map(|(i, p)| Some((&p.name, &run.optimizer.groups[decoder.group(i)?])));
        let own: Vec<_> = own
            .map(|(name, group)| json!([name, group.learning_rate, group.weight_decay]))
            .collect();
        optimizer.insert("groups".to_owned(), json!(own));
    }
    key["shape"] = json!(decoder.shape());
    key["data"]["fingerprint"] = json!(format!("{:016x}", train.fingerprint()));
    key
}

impl Fit<'_> {
    /// Goes on from a checkpoint that was loaded.
    fn resume(&mut self, dir: &Path, state: RunState) {
        self.observer.note(&format!(
            "resumed from {} after step {}",
            dir.display(),
            state.step
        ));
        let own = dir.starts_with(checkpoint::directory(&self.run.output));
        self.saved = own.then_some(state.step);
        self.last_checkpoint = Some(dir.to_owned());
        self.state = state;
    }

    /// Takes up the state that the run goes on from. `written` are the bytes on its drives by now.
    fn begin(
        &mut self,
        start: Start,
        changes: Vec<Change>,
        written: u64,
    ) -> Result<(), TrainError> {
        match start {
            Start::Journal(journal) => self.go_on(*journal)?,
            Start::Checkpoint(dir, state) => self.resume(&dir, *state),
            Start::Anew => {}
        }
        self.state.branch = self.output.kept().number();
        self.observer.phase(None);
        self.change(changes);
        self.same_best();
        self.same_evaluations()?;
        self.dealt = self.state.tokens;
        self.state.totals.disk_written = written;
        self.earlier = self.state.totals.clone();
        Ok(())
    }
}
