//! The journal of a durable run that died: what it says, and how a run goes on from it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use lowtide_config::Run;
use lowtide_planner::{Pieces, Plan};
use lowtide_tiers::{self as tiers, Committed};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Fit;
use super::best::Measure;
use super::start::{folders, kept_otherwise, kept_state, of_ranks, ours, readable};
use crate::checkpoint::{self, Change, RunState};
use crate::error::TrainError;
use crate::metrics::has_step;
use crate::output::METRICS;
use crate::report::{StepLine, When};
use lowtide_session::{About, CommitRecord, StepNumbers, committed_by_all};

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
    /// How many ranks have a share each.
    #[serde(default = "one")]
    ranks: u32,
    /// The branch of its output that it is of.
    #[serde(default)]
    branch: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Change>,
    products: BTreeMap<String, Vec<u64>>,
    now_unix_s: i64,
}

/// What a journal means that says no number of ranks.
fn one() -> u32 {
    1
}

/// States that are on disk, in extents, as the journal tells of them.
#[derive(Debug)]
pub(super) struct Journal {
    /// The first drive's state file.
    path: PathBuf,
    /// Whose files they are.
    run: u128,
    /// The one that counts: the newest, until it is known which is whole.
    at: usize,
    /// The commits that count, newest first.
    told: Vec<Told>,
}

/// One commit, with what its record says decoded.
#[derive(Debug)]
struct Told {
    sequence: u64,
    state: RunState,
    pieces: Pieces,
    layout: u64,
    steps: Vec<StepNumbers>,
}

impl Told {
    fn read(found: &Committed) -> Result<Self, String> {
        let unreadable = |e: &dyn Display| format!("its journal is not this program's: {e}");
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
            branch: about.branch,
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
        Ok(Self {
            sequence: found.sequence,
            state,
            pieces: about.pieces,
            layout: about.layout,
            steps: record.steps,
        })
    }
}

impl Journal {
    /// The journal of this run among its drives; `None` where there is none or nothing was committed.
    pub(super) fn find(run: &Run, notes: &mut Vec<String>) -> Result<Option<Self>, TrainError> {
        if let Some((dir, what)) = kept_otherwise(run)? {
            return Err(kept_state(run, &tiers::state_path(&dir), what));
        }
        let ranks = folders(run);
        let Some((dir, others)) = ranks[0].split_first() else {
            return Ok(None);
        };
        let path = tiers::state_path(dir);
        match tiers::kept_by(dir).map_err(|e| readable(run, e))? {
            Some(by) if ours(run, dir, by) => {}
            first => {
                // Without the journal the others say nothing; but it may be on a drive that is not there.
                for other in others {
                    let by = tiers::kept_by(other).map_err(|e| readable(run, e))?;
                    if first.is_none() && by.is_some_and(|by| ours(run, other, by)) {
                        let what = format!(
                            "holds a part of this run's state, but the file with its journal is not \
                             there: {}",
                            path.display()
                        );
                        return Err(kept_state(run, &tiers::state_path(other), what));
                    }
                }
                return Ok(None);
            }
        }
        let kept = tiers::kept(dir).map_err(|e| readable(run, e))?;
        let Some(kept) = kept else {
            return Ok(None);
        };
        if let Some(damaged) = &kept.damaged {
            notes.push(format!("{}: {damaged}", path.display()));
        }
        let run_id = kept.run;
        let Some(commits) = Self::of_all(run, &path, &ranks, kept.commits)? else {
            return Ok(None);
        };
        let all = commits.iter().map(Told::read);
        let told = all
            .collect::<Result<Vec<_>, _>>()
            .map_err(|what| kept_state(run, &path, what))?;
        Ok((!told.is_empty()).then_some(Self {
            path,
            run: run_id,
            at: 0,
            told,
        }))
    }

    /// Of the first rank's commits those that all ranks have made; none where a rank has committed nothing.
    fn of_all(
        run: &Run,
        path: &Path,
        ranks: &[Vec<PathBuf>],
        first: Vec<Committed>,
    ) -> Result<Option<Vec<Committed>>, TrainError> {
        let about = first
            .first()
            .map(|c| serde_json::from_slice::<AboutRun>(&c.about));
        if let Some(Ok(about)) = about
            && about.ranks != run.gpus
        {
            return Err(kept_state(run, path, of_ranks(run, about.ranks)));
        }
        if ranks.len() == 1 {
            return Ok(Some(first));
        }
        let mut all = vec![first];
        for (rank, dirs) in ranks.iter().enumerate().skip(1) {
            let dir = &dirs[0];
            let there = tiers::kept_by(dir).map_err(|e| readable(run, e))?;
            let kept = match there.filter(|&by| ours(run, dir, by)) {
                Some(_) => tiers::kept(dir).map_err(|e| readable(run, e))?,
                None => None,
            };
            let Some(kept) = kept else {
                let what = format!(
                    "holds a part of this run's state, but that of rank {rank} is not there: {}",
                    tiers::state_path(dir).display()
                );
                return Err(kept_state(run, path, what));
            };
            all.push(kept.commits);
        }
        if all.iter().any(Vec::is_empty) {
            return Ok(None);
        }
        let common = committed_by_all(&all);
        let mut first = all.swap_remove(0);
        first.retain(|c| common.contains(&c.sequence));
        if first.is_empty() {
            let what = "ranks have committed other steps, and none that all have".to_owned();
            return Err(kept_state(run, path, what));
        }
        Ok(Some(first))
    }

    fn told(&self) -> &Told {
        &self.told[self.at]
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn run(&self) -> u128 {
        self.run
    }

    pub(super) fn state(&self) -> &RunState {
        &self.told().state
    }

    pub(super) fn pieces(&self) -> Pieces {
        self.told().pieces
    }

    /// The plan finds everything where it lies.
    pub(super) fn fits(&self, plan: &Plan) -> Result<(), TrainError> {
        if self.told().layout == plan.durable_layout() {
            return Ok(());
        }
        Err(self.unusable("the parameters are cut into other pieces now"))
    }

    /// The commit of this number is the one whose bytes are whole.
    pub(super) fn settle(&mut self, sequence: u64) {
        let at = self.told.iter().position(|t| t.sequence == sequence);
        self.at = at.expect("nobody else writes this journal: its directory is locked");
    }

    pub(super) fn unusable(&self, what: &str) -> TrainError {
        TrainError::Durable {
            path: self.path.clone(),
            step: self.state().step,
            what: what.to_owned(),
        }
    }
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
            ranks: plan.ranks,
            branch: self.state.branch,
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

    /// Goes on from extents that were found whole.
    pub(super) fn go_on(&mut self, journal: Journal) -> Result<(), TrainError> {
        let Journal {
            path, at, mut told, ..
        } = journal;
        let path = path.display();
        if at > 0 {
            self.observer.note(&format!(
                "{path}: the state after step {} is not whole, the one before it is",
                told[0].state.step
            ));
        }
        let told = told.swap_remove(at);
        let step = told.state.step;
        self.observer
            .note(&format!("went on from {path} after step {step}"));
        self.last_checkpoint = checkpoint::newest_of(&self.output).map(|(_, p)| p);
        self.state = told.state;
        let mut behind: u64 = told.steps.iter().map(|s| s.tokens).sum();
        for step in &told.steps {
            self.state.totals.loss(step.step, step.loss);
            self.state.totals.odd.count(step.step, step.skipped, false);
            behind -= step.tokens;
            self.catch_up(step, behind)?;
        }
        Ok(())
    }

    /// Writes a step's metrics line if the run died before it did, with so many tokens of the steps behind it. How
    /// long the step took is lost.
    fn catch_up(&mut self, step: &StepNumbers, behind: u64) -> Result<(), TrainError> {
        let due = step.step.is_multiple_of(self.run.log.every_steps) || step.step == self.total;
        let logged = |key| has_step(self.output.folder(), METRICS, step.step, key);
        if !due || logged("learning_rate")? {
            return Ok(());
        }
        let missing = self.metrics.write(&StepLine {
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
            lanes: Vec::new(),
            disk_written: self.state.totals.disk_written,
            wear: self.wear,
            tokens_total: self.state.tokens - behind,
            skipped_total: self.state.totals.odd.skipped,
            spikes_total: self.state.totals.odd.spikes,
            skipped: step.skipped,
            spike: None,
            checkpoint_wait_seconds: None,
        });
        self.tell(missing);
        Ok(())
    }

    /// Evaluates and saves where the run ended after a step and before what was due behind it. What is recorded of the
    /// step is not done again, but compared with the best where that was not saved: the evaluation with which a run
    /// ends is later than its last checkpoint, and the run may have been made longer.
    pub(super) fn make_up(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        let due = self.due(step);
        if step == 0 || !self.durable && self.saved != Some(step) {
            return Ok(()); // another directory's run has recorded it there
        }
        let recorded = |f: &Self, when: Option<When>, key| f.value_at(when, key);
        let mut of = (
            recorded(self, None, "eval_loss")?,
            recorded(self, None, "eval_accuracy")?,
        );
        if due.evaluation && of.0.is_none() {
            let made = self.evaluate(step)?;
            of = (made.map(|e| e.loss), made.map(|e| e.accuracy));
        }
        let mut best = self.judge_evaluation(of.0, of.1)?;
        let mut share = recorded(self, Some(When::During), "exact_match")?;
        if due.answers && share.is_none() {
            share = self.exact_match(When::During)?;
        }
        best |= self.judge(Measure::ExactMatch, share)?;
        let newest = checkpoint::newest_of(&self.output);
        if self.durable && (due.save || best) && newest.is_none_or(|(at, _)| at < step) {
            self.save()?;
        }
        Ok(())
    }
}
