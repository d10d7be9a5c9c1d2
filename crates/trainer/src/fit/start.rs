//! Where a run begins or goes on: nothing, a checkpoint, or the journal of a durable run that died.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowtide_config::{Resume, Run};
use lowtide_executor::Trace;
use lowtide_planner::{Pieces, Pins, Plan};
use lowtide_tiers::{self as tiers, Disk, DiskConfig, Open, TierError};
use lowtide_units::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Fit;
use super::change::changes;
use crate::checkpoint::{self, Change, RunState};
use crate::error::TrainError;
use crate::metrics::{has_step, value_at};
use crate::open::{disk_of, open_on};
use crate::planning::{Planned, directories_of, pins_of};
use crate::report::StepLine;
use crate::step::{About, CommitRecord, DiskChoice, Session, StepNumbers};

/// Version of [`AboutRun`].
const FORMAT: u32 = 1;

/// What a journal says of its run as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AboutRun {
    format: u32,
    /// How the parameters are cut: where everything lies follows from it.
    pieces: Pieces,
    /// [`Plan::durable_layout`].
    layout: u64,
    data_fingerprint: u64,
    numerics: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Change>,
    products: BTreeMap<String, Vec<u64>>,
    now_unix_s: i64,
}

/// A state that is on disk, in extents.
#[derive(Debug)]
pub(super) struct Journal {
    /// The first drive's state file.
    path: PathBuf,
    state: RunState,
    /// Whose files they are.
    run: u128,
    version: u32,
    pieces: Pieces,
    layout: u64,
    steps: Vec<StepNumbers>,
}

/// Where a run goes on from.
#[derive(Debug)]
pub(super) enum Start {
    Anew,
    Checkpoint(PathBuf, Box<RunState>),
    Journal(Box<Journal>),
}

impl Start {
    /// What a run's settings and files say: the newest of its checkpoints and its journal.
    pub(super) fn find(run: &Run) -> Result<Self, TrainError> {
        let dir = match &run.checkpoint.resume {
            Resume::Never => None,
            Resume::Path(dir) => Some(dir.clone()),
            Resume::Auto => checkpoint::list(&run.output).pop().map(|(_, dir)| dir),
        };
        let found = dir
            .map(|dir| checkpoint::read_run(&dir).map(|state| (dir, Box::new(state))))
            .transpose()?;
        if run.checkpoint.resume == Resume::Auto
            && let Some(journal) = Journal::find(run)?
            && found
                .as_ref()
                .is_none_or(|(_, s)| s.step < journal.state.step)
        {
            if !run.checkpoint.durable {
                return Err(journal.unusable("checkpoint.durable is off"));
            }
            return Ok(Self::Journal(Box::new(journal)));
        }
        Ok(found.map_or(Self::Anew, |(dir, state)| Self::Checkpoint(dir, state)))
    }

    pub(super) fn state(&self) -> Option<&RunState> {
        match self {
            Self::Anew => None,
            Self::Checkpoint(_, state) => Some(state),
            Self::Journal(journal) => Some(&journal.state),
        }
    }

    /// What of its settings this run changes, and that it is not at its end already.
    pub(super) fn changes(
        &self,
        run: &Run,
        numerics: &Value,
        total: u64,
    ) -> Result<Vec<Change>, TrainError> {
        let (path, state) = match self {
            Self::Anew => return Ok(Vec::new()),
            Self::Checkpoint(dir, state) => (dir, &**state),
            Self::Journal(journal) => (&journal.path, &journal.state),
        };
        let changes = changes(run, path, state, numerics)?;
        if state.step > total {
            return Err(TrainError::Beyond {
                path: path.clone(),
                step: state.step,
                total,
            });
        }
        Ok(changes)
    }

    /// The run's knobs. Extents are found by how the parameters are cut, so that is held fast.
    pub(super) fn pins(&self, run: &Run) -> Pins {
        let mut pins = pins_of(run);
        if let Self::Journal(journal) = self {
            pins.pieces.get_or_insert(journal.pieces);
        }
        pins
    }

    /// A session of the plan, on the state that is there or on nothing.
    pub(super) fn open(
        &self,
        run: &Run,
        planned: &Planned,
        trace: Trace,
    ) -> Result<Session, TrainError> {
        let durable = planned.plan.choice.durable;
        if let Self::Journal(journal) = self {
            if journal.layout != planned.plan.durable_layout() {
                return Err(journal.unusable("the parameters are cut into other pieces now"));
            }
        } else {
            clear(run)?;
        }
        let disk = match (self, disk_of(run, &planned.plan)) {
            (_, disk) if !durable => disk,
            (Self::Journal(journal), DiskChoice::Directories(drives)) => DiskChoice::Durable {
                drives,
                run: journal.run,
                open: Open::Existing,
            },
            (_, DiskChoice::Directories(drives)) => DiskChoice::Durable {
                drives,
                run: id(run),
                open: Open::Create,
            },
            (_, other) => other,
        };
        let opened = open_on(run, planned, trace, disk);
        match (self, opened) {
            (Self::Journal(j), Err(TrainError::Tier(TierError::BadFile { path, what }))) => {
                Err(j.unusable(&format!("{}: {what}", path.display())))
            }
            (_, opened) => opened,
        }
    }
}

impl Journal {
    fn find(run: &Run) -> Result<Option<Self>, TrainError> {
        let Some(dir) = directories_of(run).into_iter().next() else {
            return Ok(None);
        };
        let Some(found) = tiers::committed(&dir)? else {
            return Ok(None);
        };
        if !ours(run, &dir, found.run) {
            return Ok(None);
        }
        let path = tiers::state_path(&dir);
        let unreadable = |e: &dyn std::fmt::Display| TrainError::File {
            path: path.clone(),
            what: format!("its journal is not this program's: {e}"),
        };
        let about: AboutRun = serde_json::from_slice(&found.about).map_err(|e| unreadable(&e))?;
        let record: CommitRecord =
            serde_json::from_slice(&found.record).map_err(|e| unreadable(&e))?;
        if about.format != FORMAT {
            let what = format!(
                "format {}, this program reads format {FORMAT}",
                about.format
            );
            return Err(unreadable(&what));
        }
        let mark = record.mark;
        let state = RunState {
            step: mark.step,
            data: mark.data,
            data_fingerprint: about.data_fingerprint,
            clip: record.clip,
            numerics: about.numerics,
            changes: about.changes,
            products: about.products,
            now_unix_s: about.now_unix_s,
            tokens: mark.tokens,
            loss_first: mark.loss_first.map(f64::from_bits),
            exact_match_before: mark.exact_match_before.map(f64::from_bits),
            totals: mark.totals,
            ..RunState::new()
        };
        Ok(Some(Self {
            path,
            state,
            run: found.run,
            version: found.version,
            pieces: about.pieces,
            layout: about.layout,
            steps: record.steps,
        }))
    }

    fn unusable(&self, what: &str) -> TrainError {
        TrainError::Durable {
            path: self.path.clone(),
            step: self.state.step,
            what: what.to_owned(),
        }
    }
}

/// Which run kept files belong to: that of this output directory.
fn id(run: &Run) -> u128 {
    let path = run.output.as_os_str().as_encoded_bytes();
    let hash = |seed: u64| {
        path.iter().fold(seed, |h, &b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        })
    };
    u128::from(hash(0xcbf2_9ce4_8422_2325)) << 64 | u128::from(hash(0x9e37_79b9_7f4a_7c15))
}

/// A file inside the output directory is ours even if both were moved.
fn ours(run: &Run, dir: &Path, kept_by: u128) -> bool {
    kept_by == id(run) || dir.starts_with(&run.output)
}

/// Removes the files of this run's earlier state, which is given up or in a checkpoint too.
fn clear(run: &Run) -> Result<(), TrainError> {
    for dir in directories_of(run) {
        if let Some(kept_by) = tiers::kept_by(&dir)?
            && ours(run, &dir, kept_by)
        {
            let config = DiskConfig {
                open: Open::Replace,
                ..DiskConfig::new([(dir, 1.0)])
            };
            // Taken over, under its lock, as a file that is not kept; closing it removes it.
            drop(Disk::open(&config.fit(Bytes(tiers::ALIGN))?, None)?);
        }
    }
    Ok(())
}

impl Fit<'_> {
    /// Has the journal say what holds for the whole run.
    pub(super) fn write_journal(&mut self, plan: &Plan) {
        let about = AboutRun {
            format: FORMAT,
            pieces: plan.choice.pieces,
            layout: plan.durable_layout(),
            data_fingerprint: self.state.data_fingerprint,
            numerics: self.numerics.clone(),
            changes: self.state.changes.clone(),
            products: self.state.products.clone(),
            now_unix_s: self.state.now_unix_s,
        };
        let gpu = self.gpu.clone();
        let about: About = Box::new(move || {
            // Products of new shapes get their algorithms while the run goes on.
            let products = gpu.as_ref().map(|gpu| gpu.choices());
            let about = AboutRun {
                products: products.unwrap_or_default(),
                ..about.clone()
            };
            serde_json::to_vec(&about).expect("plain values")
        });
        self.session.set_about(about);
    }

    /// Goes on from the extents.
    pub(super) fn go_on(&mut self, journal: Journal) -> Result<(), TrainError> {
        self.batches.restore(journal.state.data)?;
        self.session.resume_version(journal.version)?;
        self.session
            .restore_clip(journal.state.clip.map(f64::from_bits));
        self.observer.note(&format!(
            "went on from {} after step {}",
            journal.path.display(),
            journal.state.step
        ));
        self.last_checkpoint = checkpoint::list(&self.run.output).pop().map(|(_, p)| p);
        self.state = journal.state;
        for step in &journal.steps {
            self.state.totals.loss(step.step, step.loss);
            self.catch_up(step)?;
        }
        Ok(())
    }

    /// Writes a step's metrics line if the run died before it did. How long the step took is lost.
    fn catch_up(&mut self, step: &StepNumbers) -> Result<(), TrainError> {
        let due = step.step.is_multiple_of(self.run.log.every_steps) || step.step == self.total;
        if !due || has_step(&self.run.output.join("metrics.jsonl"), step.step, "loss")? {
            return Ok(());
        }
        Ok(self.metrics.write(&StepLine {
            step: step.step,
            steps: self.total,
            loss: f64::from_bits(step.loss),
            grad_norm: f64::from_bits(step.norm),
            learning_rate: f64::from_bits(step.learning_rate),
            tokens: step.tokens,
            seconds: None,
            tokens_per_second: None,
            predicted_seconds: self.predicted_seconds,
            ruling_lane: None,
            skipped: step.skipped,
        })?)
    }

    /// Evaluates and saves where the run ended after a step and before what was due behind it.
    pub(super) fn make_up(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        let due = self.due(step);
        if !self.durable && self.saved != Some(step) {
            return Ok(()); // another directory's run has recorded it there
        }
        let metrics = self.run.output.join("metrics.jsonl");
        if due.evaluation && !has_step(&metrics, step, "eval_loss")? {
            self.evaluate(step)?;
        }
        let answered = value_at(&metrics, step, Some("during"), "exact_match")?;
        if due.answers && answered.is_none() {
            self.exact_match("during")?;
        }
        let newest = checkpoint::list(&self.run.output).pop();
        if self.durable && due.save && newest.is_none_or(|(at, _)| at < step) {
            self.save_now()?;
        }
        Ok(())
    }
}
