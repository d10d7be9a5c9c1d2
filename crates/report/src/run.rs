//! A run as its output directory tells it.
//!
//! One file because it is one directory, file by file.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use lowtide_files::{FileError, open_any, read_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::account::{self, Account, PlanReport, Process};
use crate::answers::answers;
use crate::curve::{Curve, LastLosses, Median, Smoothed};
use crate::error::ReportError;
use crate::memory::is_zero;
use crate::people::hub_name;

/// What a run tells of itself beside its metrics.
pub const REPORT: &str = "report.json";
/// Name of a run's page in its output directory.
pub const PAGE: &str = "report.html";

/// Bytes of a JSON file of a run, at most.
const FILE_MAX: u64 = 64 << 20;
/// Bytes of a line of its logs, at most: answers hold whole prompts.
const LINE_MAX: u64 = 64 << 20;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has nothing left to do.
    Finished,
    /// It goes on, was stopped, or was killed.
    Unfinished,
}

/// A step, as `metrics.jsonl` has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Which, from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Mean loss of a supervised token; absent where it was no number.
    pub loss: Option<f64>,
    /// Norm of the gradients before clipping.
    pub grad_norm: Option<f64>,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Tokens of the step without padding.
    pub tokens: u64,
    /// Seconds since the loss before.
    pub seconds: Option<f64>,
    /// Real tokens a second; not of the first step of a process.
    pub tokens_per_second: Option<f64>,
    /// Seconds of a step, by the plan.
    pub predicted_seconds: Option<f64>,
    /// Real tokens of the run so far, whichever steps are recorded. Earlier versions wrote neither this nor the two
    /// below.
    #[serde(default)]
    pub tokens_total: Option<u64>,
    /// Updates that were left out so far; absent where none.
    #[serde(default)]
    pub skipped_total: u64,
    /// Spikes so far; absent where none.
    #[serde(default)]
    pub spikes_total: u64,
    /// The update was left out.
    #[serde(default)]
    pub skipped: bool,
    /// Where its norm is a spike: how many times the median of those before it.
    #[serde(default)]
    pub spike: Option<f64>,
}

/// What an evaluation found, after a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After which step; 0 is before the first.
    pub step: u64,
    /// Mean loss of a supervised token of the evaluation data.
    pub eval_loss: f64,
    /// Share of its tokens that greedy decoding would take; runs of earlier versions did not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_accuracy: Option<f64>,
    /// F1 of a model that classifies, whose accuracy is the share of right documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_f1: Option<f64>,
    /// Hash of its data and settings: figures of two are not compared. Runs of earlier versions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_data: Option<String>,
}

/// Exact match of the answers to the evaluation's prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Match {
    /// After which step; 0 is before the first.
    pub step: u64,
    /// `before`, `during` or `after` training.
    pub when: String,
    /// Share of the prompts whose answer equals the reference, 0 to 1.
    pub exact_match: f64,
    /// Right ones of them.
    pub right: u64,
    /// How many prompts were answered.
    pub prompts: u64,
    /// Hash of the prompts and of the settings that decide the answers, as [`Evaluation::eval_data`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_data: Option<String>,
}

/// An answer to a prompt. Texts are cut to what is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// After which step.
    pub step: u64,
    /// The text gone on from.
    pub prompt: String,
    /// What the data says.
    pub reference: String,
    /// What the model said.
    pub answer: String,
    /// Whether they match.
    pub right: bool,
}

/// Figures of all steps, evaluations and answers, whichever process made them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// The last step that is recorded; 0: none is.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Real tokens of the steps up to that one. Of a run of an earlier version only of those that are recorded
    /// (`log.every_steps`), as the two counts of odd steps below.
    pub tokens: u64,
    /// Real tokens a second over all steps that are recorded and whose time and rate are known.
    pub tokens_per_second: Option<f64>,
    /// The median time of a step.
    pub step_seconds: Option<f64>,
    /// A step's time by the plan.
    pub predicted_seconds: Option<f64>,
    /// Loss of step 1, where it is recorded or in the run's account.
    pub loss_first: Option<f64>,
    /// Mean loss of the last ten steps, or of as many as there are: by the run's account, or, where that is of
    /// another step, of those that are recorded.
    pub loss_last: Option<f64>,
    /// Steps without an update.
    pub skipped: u64,
    /// Steps whose gradient norm was far above those before.
    pub spikes: u64,
    /// How often it went on with another plan.
    pub replans: u64,
    /// The first evaluation on the data of the last one.
    pub evaluation_first: Option<Evaluation>,
    /// The last one.
    pub evaluation_last: Option<Evaluation>,
    /// The one with the least loss on the data of the last one.
    pub evaluation_best: Option<Evaluation>,
    /// Exact match before training, where it is of the prompts of the last one.
    pub match_before: Option<Match>,
    /// The last one.
    pub match_last: Option<Match>,
    /// Evaluations and shares of right answers that are of other data or settings than the last one. They are in none
    /// of these figures and in no curve.
    #[serde(skip_serializing_if = "is_zero")]
    pub evaluations_of_others: u64,
}

/// Curves by step. Of very many steps each stretch has its lowest and its highest value.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Loss of a step.
    pub loss: Curve,
    /// The same, of which older steps count less and less.
    pub loss_smoothed: Curve,
    /// Loss of evaluations on the data of the last one; so of the two below.
    pub eval_loss: Curve,
    /// Accuracy of tokens in evaluations, a share.
    pub eval_accuracy: Curve,
    /// Exact match, a share.
    pub exact_match: Curve,
    /// Norm of the gradients before clipping.
    pub grad_norm: Curve,
    /// Learning rate by step.
    pub learning_rate: Curve,
    /// Real tokens a second.
    pub tokens_per_second: Curve,
}

/// A run as its output directory tells it: the same while it goes on, when it has ended, and on another machine.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The output directory that was read.
    #[serde(serialize_with = "lowtide_files::shown::path")]
    pub dir: PathBuf,
    /// Version of lowtide that wrote it, where its mark says so.
    pub version: Option<String>,
    /// Where it stands.
    pub state: State,
    /// The run as checked: `run.json`.
    pub run: Value,
    /// The rates it was planned with: `machine.json`, without its single operations. Null where it is not there.
    pub machine: Value,
    /// What of its metrics is missing, where some is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// What it did, by its own account: of `finished.json`, else of `report.json`. Null where none is there.
    pub report: Value,
    /// Processes that made the run's steps, the first one first.
    pub processes: Vec<Process>,
    /// The step as it is planned, where that is known.
    pub plan: Option<PlanReport>,
    /// Figures of its metrics.
    pub figures: Figures,
    /// Curves of its metrics.
    pub curves: Curves,
    /// The first prompts' answers before training and the last ones, in this order, where a run asks for any.
    pub answers: Vec<[Option<Answer>; 2]>,
}

/// The file of a run's metrics.
pub(crate) const METRICS: &str = "metrics.jsonl";

/// A line of it; which kind it is, its keys say.
#[derive(Deserialize)]
#[serde(untagged)]
enum Metric {
    Event(Event),
    Evaluation(Evaluation),
    Match(Match),
    Step(Step),
}

/// Something that happened between two steps.
#[derive(Deserialize)]
struct Event {
    event: String,
}

impl RunReport {
    /// Reads an output directory. A last line that was not written whole is left out: the run may be at it.
    ///
    /// # Errors
    /// [`ReportError::NoRun`]; a file of it that cannot be read, or that no run writes so.
    pub fn read(dir: &Path) -> Result<Self, ReportError> {
        let run = match read_json(&dir.join("run.json"), FILE_MAX) {
            Ok(run) => run,
            Err(FileError::Missing { .. }) => {
                return Err(ReportError::NoRun {
                    dir: dir.to_owned(),
                });
            }
            Err(e) => return Err(e.into()),
        };
        let run = object(&dir.join("run.json"), run)?;
        let mut machine = optional(&dir.join("machine.json"))?;
        if let Some(machine) = machine.as_object_mut() {
            machine.shift_remove("ops");
        }
        let mark = optional(&dir.join(".lowtide"))?;
        let mut finished = optional(&dir.join("finished.json"))?;
        let account = account(&dir.join(REPORT))?.unwrap_or_default();
        let mut gathered = Gathered {
            processes: &account.processes,
            ..Gathered::default()
        };
        let there = lines(&dir.join(METRICS), |line| {
            gathered.add(serde_json::from_slice(line)?);
            Ok(())
        })?;
        let hole = gathered.hole();
        let (figures, curves) = gathered.done();
        let figures = figures.with(&account.report);
        let known = finished["report"]["steps"]
            .as_u64()
            .max(account.report["steps"].as_u64());
        let ends = missing(there, figures.step, known, (&run, &account.processes));
        let missing: Vec<String> = [hole, ends].into_iter().flatten().collect();
        let missing = (!missing.is_empty()).then(|| missing.join("; "));
        // One that goes on for longer than it did before has another's mark.
        let (whole, done) = (
            &account.report["compared"],
            account.report["steps"].as_u64(),
        );
        let state = match finished["report"]["steps"].as_u64() {
            // One of a comparison has no checkpoint that such a mark would be about.
            _ if whole.as_bool() == Some(true) && done == Some(figures.steps) => State::Finished,
            _ if finished.is_null() => State::Unfinished,
            Some(steps) if steps < figures.step => State::Unfinished,
            _ => State::Finished,
        };
        Ok(Self {
            dir: dir.to_owned(),
            version: mark["version"].as_str().map(str::to_owned),
            state,
            run,
            machine,
            missing,
            report: match state {
                State::Finished if !finished.is_null() => finished["report"].take(),
                _ => account.report,
            },
            processes: account.processes,
            plan: (!account.plan.lanes.is_empty()).then_some(account.plan),
            figures,
            curves,
            answers: answers(&dir.join("answers.jsonl"))?,
        })
    }

    /// A name for people: the last part of the directory's path that is not `out`.
    #[must_use]
    pub fn name(&self) -> String {
        let dir = std::path::absolute(&self.dir).unwrap_or_else(|_| self.dir.clone());
        let mut parts = dir.iter().rev().map(|p| p.to_string_lossy().into_owned());
        let last = parts.next().unwrap_or_default();
        match (last.as_str(), parts.next()) {
            ("out", Some(above)) => format!("{above}/out"),
            _ => last,
        }
    }

    /// The model that is trained: a directory's last part, of a snapshot in the Hub's cache the model's name there, or
    /// the name of a built-in shape.
    #[must_use]
    pub fn model(&self) -> String {
        let source = &self.run["model"]["source"];
        let path = source["path"].as_str().or(source["config"].as_str());
        let named = path.map(|p| {
            let last = || {
                Path::new(p)
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned())
            };
            hub_name(Path::new(p)).or_else(last).unwrap_or(p.to_owned())
        });
        named
            .or_else(|| source["shape"].as_str().map(str::to_owned))
            .unwrap_or_else(|| "?".to_owned())
    }
}

/// What of a run's metrics is missing: all of it, or the lines of its last steps up to the one that is known of.
fn missing(
    there: bool,
    last: u64,
    known: Option<u64>,
    (run, processes): (&Value, &[Process]),
) -> Option<String> {
    if !there {
        return Some(format!(
            "{METRICS} is not there: nothing is known of single steps"
        ));
    }
    // Not every step has a line. Who made them says which; of an output without that it is today's setting.
    let every = run["log"]["every_steps"].as_u64().unwrap_or(1);
    let due = |known: u64| match account::lines(processes, last, known) {
        Some((lines, _)) => lines > 0,
        None => known >= last.saturating_add(every),
    };
    let known = known.filter(|&known| due(known))?;
    Some(match last {
        0 => format!("{METRICS} has no step, of {known} that were made"),
        _ => format!("{METRICS} ends at step {last}, of {known} that were made"),
    })
}

impl Figures {
    /// With what the run's account knows of steps that have no line.
    fn with(self, account: &Value) -> Self {
        let same = account["steps"].as_u64() == Some(self.step);
        let last = account["loss_last"].as_f64().filter(|_| same);
        Self {
            loss_first: self.loss_first.or_else(|| account["loss_first"].as_f64()),
            loss_last: last.or(self.loss_last),
            ..self
        }
    }
}

/// Metrics, line by line.
#[derive(Default)]
struct Gathered<'a> {
    /// Who made the steps, as far as that is known: which of them have a line.
    processes: &'a [Process],
    /// Steps that have no line though they are before one that has, and the first of them.
    holes: (u64, u64),
    figures: Figures,
    curves: Curves,
    times: Median,
    last: LastLosses,
    smoothed: Smoothed,
    /// Tokens and seconds of the steps whose rate is known.
    timed: (f64, f64),
    /// By their data.
    evaluations: HashMap<Option<String>, Evaluations>,
    matches: HashMap<Option<String>, Matches>,
    /// The data of the last evaluation, and of the last answers.
    evaluated: Option<Option<String>>,
    answered: Option<Option<String>>,
}

/// Evaluations on the same data.
#[derive(Default)]
struct Evaluations {
    count: u64,
    /// The first, the last and the best one.
    three: Option<[Evaluation; 3]>,
    loss: Curve,
    accuracy: Curve,
}

impl Evaluations {
    fn add(&mut self, e: Evaluation) {
        self.count += 1;
        self.loss.push(e.step as f64, e.eval_loss);
        if let Some(share) = e.eval_accuracy {
            self.accuracy.push(e.step as f64, share);
        }
        match &mut self.three {
            None => self.three = Some([e.clone(), e.clone(), e]),
            Some([_, last, best]) => {
                if e.eval_loss < best.eval_loss {
                    *best = e.clone();
                }
                *last = e;
            }
        }
    }
}

/// Answers to the same prompts.
#[derive(Default)]
struct Matches {
    count: u64,
    before: Option<Match>,
    last: Option<Match>,
    shares: Curve,
}

impl Matches {
    fn add(&mut self, m: Match) {
        self.count += 1;
        self.shares.push(m.step as f64, m.exact_match);
        // Each is measured once; of a file that says otherwise, the last.
        match m.when.as_str() {
            "before" => self.before = Some(m),
            _ => self.last = Some(m),
        }
    }
}

impl Gathered<'_> {
    fn add(&mut self, metric: Metric) {
        match metric {
            Metric::Event(e) => self.figures.replans += u64::from(e.event == "replan"),
            Metric::Evaluation(e) => {
                self.evaluated = Some(e.eval_data.clone());
                self.evaluations
                    .entry(e.eval_data.clone())
                    .or_default()
                    .add(e);
            }
            Metric::Match(m) => {
                self.answered = Some(m.eval_data.clone());
                self.matches.entry(m.eval_data.clone()).or_default().add(m);
            }
            Metric::Step(s) => self.step(&s),
        }
    }

    /// Counts the lines that should stand between two that are there.
    fn between(&mut self, before: u64, step: u64) {
        let until = step.saturating_sub(1);
        let Some((lines, first)) = account::lines(self.processes, before, until) else {
            return;
        };
        if lines > 0 && self.holes.0 == 0 {
            self.holes.1 = first;
        }
        self.holes.0 = self.holes.0.saturating_add(lines);
    }

    /// What is missing before the last line.
    fn hole(&self) -> Option<String> {
        let (lines, first) = self.holes;
        match lines {
            0 => None,
            1 => Some(format!("{METRICS} has no line of step {first}")),
            n => Some(format!(
                "{METRICS} has no lines of {n} steps, from step {first} on"
            )),
        }
    }

    fn step(&mut self, s: &Step) {
        self.between(self.figures.step, s.step);
        let (all, curves) = (&mut self.figures, &mut self.curves);
        let x = s.step as f64;
        (all.step, all.steps) = (s.step, s.steps);
        all.predicted_seconds = s.predicted_seconds;
        // Not every step has a line, so the lines' own totals count where there are any.
        let known = s.tokens_total;
        all.tokens = known.unwrap_or(all.tokens.saturating_add(s.tokens));
        // A run that goes on from a checkpoint of before there were these totals begins them again.
        let skipped = all.skipped + u64::from(s.skipped);
        let spikes = all.spikes + u64::from(s.spike.is_some());
        (all.skipped, all.spikes) = (skipped.max(s.skipped_total), spikes.max(s.spikes_total));
        if let Some(loss) = s.loss {
            if s.step == 1 {
                all.loss_first = Some(loss);
            }
            self.last.push(loss);
            curves.loss.push(x, loss);
            let over = (s.steps as f64 / 100.0).clamp(3.0, 300.0);
            curves.loss_smoothed.push(x, self.smoothed.with(loss, over));
        }
        if let Some(norm) = s.grad_norm {
            curves.grad_norm.push(x, norm);
        }
        curves.learning_rate.push(x, s.learning_rate);
        if let Some(rate) = s.tokens_per_second {
            curves.tokens_per_second.push(x, rate);
            if let Some(seconds) = s.seconds {
                self.times.push(seconds);
                self.timed.0 += s.tokens as f64;
                self.timed.1 += seconds;
            }
        }
    }

    fn done(mut self) -> (Figures, Curves) {
        let (tokens, seconds) = self.timed;
        let last = self
            .evaluated
            .and_then(|data| self.evaluations.remove(&data));
        let last = last.unwrap_or_default();
        let answers = self.answered.and_then(|data| self.matches.remove(&data));
        let answers = answers.unwrap_or_default();
        let others = self.evaluations.values().map(|e| e.count).sum::<u64>();
        let others = others + self.matches.values().map(|m| m.count).sum::<u64>();
        let [first, newest, best] = match last.three {
            Some(three) => three.map(Some),
            None => [None, None, None],
        };
        let figures = Figures {
            tokens_per_second: (seconds > 0.0).then(|| tokens / seconds),
            step_seconds: self.times.value(),
            loss_last: self.last.mean(),
            evaluation_first: first,
            evaluation_last: newest,
            evaluation_best: best,
            match_before: answers.before,
            match_last: answers.last,
            evaluations_of_others: others,
            ..self.figures
        };
        let curves = Curves {
            eval_loss: last.loss,
            eval_accuracy: last.accuracy,
            exact_match: answers.shares,
            ..self.curves
        };
        (figures, curves)
    }
}

/// What `report.json` says; `None` where it is not there: an earlier version wrote none.
///
/// # Errors
/// It cannot be read, or no run writes it so.
pub fn account(path: &Path) -> Result<Option<Account>, ReportError> {
    let value = optional(path)?;
    if value.is_null() {
        return Ok(None);
    }
    let unlike = |what: String| ReportError::Unlike {
        path: path.to_owned(),
        what,
    };
    match value["format"].as_u64() {
        Some(n) if n == u64::from(account::FORMAT) => {}
        n => {
            return Err(unlike(format!(
                "format {}, and this version reads {}",
                n.map_or("none".to_owned(), |n| n.to_string()),
                account::FORMAT
            )));
        }
    }
    let all = serde_json::from_value(value).map_err(|e| unlike(e.to_string()))?;
    Ok(Some(all))
}

/// A value of a file, which is an object in every file of a run.
fn object(path: &Path, value: Value) -> Result<Value, ReportError> {
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(ReportError::NotWritten {
            path: path.to_owned(),
        }),
    }
}

/// What a JSON file says; null where there is none.
fn optional(path: &Path) -> Result<Value, ReportError> {
    match read_json(path, FILE_MAX) {
        Ok(value) => object(path, value),
        Err(FileError::Missing { .. }) => Ok(Value::Null),
        Err(e) => Err(e.into()),
    }
}

/// Calls `take` with each whole line of a file; a file that is not there has none.
pub(crate) fn lines(
    path: &Path,
    mut take: impl FnMut(&[u8]) -> Result<(), serde_json::Error>,
) -> Result<bool, ReportError> {
    let file = match open_any(path) {
        Ok(regular) => regular.file,
        Err(FileError::Missing { .. }) => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    for n in 1.. {
        line.clear();
        let mut limited = std::io::Read::take(&mut reader, LINE_MAX);
        let read = limited.read_until(b'\n', &mut line);
        read.map_err(|source| FileError::Io {
            path: path.to_owned(),
            source,
        })?;
        let wrong = |what: String| ReportError::Line {
            path: path.to_owned(),
            line: n,
            what,
        };
        if line.len() as u64 == LINE_MAX {
            return Err(wrong(format!("more than {LINE_MAX} bytes")));
        }
        if line.pop() != Some(b'\n') {
            break;
        }
        take(&line).map_err(|e| wrong(format!("not a line that a run writes: {e}")))?;
    }
    Ok(true)
}
