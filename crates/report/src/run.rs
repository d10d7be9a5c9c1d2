//! A run as its output directory tells it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use lowtide_files::{FileError, open_any, read_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ReportError;

/// Bytes of a JSON file of a run, at most.
const FILE_MAX: u64 = 64 << 20;
/// Bytes of a line of its logs, at most: answers hold whole prompts.
const LINE_MAX: u64 = 64 << 20;
/// Prompts whose answers are shown.
const SHOWN: usize = 8;
/// Characters of a text that are shown.
const TEXT_MAX: usize = 2000;

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
    /// Learning rate.
    pub learning_rate: f64,
    /// Real tokens.
    pub tokens: u64,
    /// Seconds since the loss before.
    pub seconds: Option<f64>,
    /// Real tokens a second; not of the first step of a process.
    pub tokens_per_second: Option<f64>,
    /// Seconds of a step, by the plan.
    pub predicted_seconds: Option<f64>,
    /// The update was left out.
    #[serde(default)]
    pub skipped: bool,
}

/// An evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After which step; 0 is before the first.
    pub step: u64,
    /// Mean loss of a supervised token of the evaluation data.
    pub eval_loss: f64,
}

/// Exact match of the answers to the evaluation's prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Match {
    /// After which step; 0 is before the first.
    pub step: u64,
    /// `before`, `during` or `after` training.
    pub when: String,
    /// A share.
    pub exact_match: f64,
    /// Right ones of them.
    pub right: u64,
    /// Prompts.
    pub prompts: u64,
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

/// A run as its output directory tells it: the same while it goes on, when it has ended, and on another machine.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The directory.
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
    /// What it did, by its own account: the report in `finished.json`. Null until it has ended.
    pub report: Value,
    /// Every step.
    pub steps: Vec<Step>,
    /// Every evaluation.
    pub evaluations: Vec<Evaluation>,
    /// Every measure of exact match.
    pub matches: Vec<Match>,
    /// The first prompts' answers before training and the last ones, in this order, where a run asks for any.
    pub answers: Vec<[Option<Answer>; 2]>,
}

/// A line of `metrics.jsonl`; which kind it is, its keys say.
#[derive(Deserialize)]
#[serde(untagged)]
enum Metric {
    Evaluation(Evaluation),
    Match(Match),
    Step(Step),
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
        let mut all = Self {
            dir: dir.to_owned(),
            version: mark["version"].as_str().map(str::to_owned),
            state: match finished {
                Value::Null => State::Unfinished,
                _ => State::Finished,
            },
            run,
            machine,
            report: finished["report"].take(),
            steps: Vec::new(),
            evaluations: Vec::new(),
            matches: Vec::new(),
            answers: Vec::new(),
        };
        lines(&dir.join("metrics.jsonl"), |line| {
            match serde_json::from_slice(line)? {
                Metric::Evaluation(e) => all.evaluations.push(e),
                Metric::Match(m) => all.matches.push(m),
                Metric::Step(s) => all.steps.push(s),
            }
            Ok(())
        })?;
        all.answers = answers(&dir.join("answers.jsonl"))?;
        Ok(all)
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

    /// The model that is trained: a directory's last part, or the name of a built-in shape.
    #[must_use]
    pub fn model(&self) -> String {
        let source = &self.run["model"]["source"];
        let path = source["path"].as_str().or(source["config"].as_str());
        let named = path.map(|p| {
            let last = Path::new(p).file_name();
            last.map_or(p.to_owned(), |n| n.to_string_lossy().into_owned())
        });
        named
            .or_else(|| source["shape"].as_str().map(str::to_owned))
            .unwrap_or_else(|| "?".to_owned())
    }

    /// Mean loss of the last ten steps, or of as many as there are; `None` before the first.
    #[must_use]
    pub fn last_loss(&self) -> Option<f64> {
        let known: Vec<f64> = self
            .steps
            .iter()
            .rev()
            .filter_map(|s| s.loss)
            .take(10)
            .collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    /// Real tokens a second over all steps whose time and rate are known.
    #[must_use]
    pub fn tokens_per_second(&self) -> Option<f64> {
        let timed = self.steps.iter().filter(|s| s.tokens_per_second.is_some());
        let (tokens, seconds) = timed
            .filter_map(|s| Some((s.tokens as f64, s.seconds?)))
            .fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        (seconds > 0.0).then(|| tokens / seconds)
    }

    /// The median time of a step; `None` where none is known.
    #[must_use]
    pub fn step_seconds(&self) -> Option<f64> {
        let timed = self.steps.iter().filter(|s| s.tokens_per_second.is_some());
        let mut times: Vec<f64> = timed.filter_map(|s| s.seconds).collect();
        times.sort_by(f64::total_cmp);
        let upper = times.get(times.len() / 2)?;
        Some(f64::midpoint(times[(times.len() - 1) / 2], *upper))
    }
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
fn lines(
    path: &Path,
    mut take: impl FnMut(&[u8]) -> Result<(), serde_json::Error>,
) -> Result<(), ReportError> {
    let file = match open_any(path) {
        Ok(regular) => regular.file,
        Err(FileError::Missing { .. }) => return Ok(()),
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
    Ok(())
}

/// Of the first prompts, the answers before training and the newest ones.
fn answers(path: &Path) -> Result<Vec<[Option<Answer>; 2]>, ReportError> {
    let mut pairs: Vec<[Option<Answer>; 2]> = Vec::new();
    // Answers of one measure follow each other, in the order of the prompts.
    let (mut measure, mut at) = (None, 0);
    lines(path, |line| {
        #[derive(Deserialize)]
        struct Line {
            when: String,
            #[serde(flatten)]
            answer: Answer,
        }
        let Line { when, answer } = serde_json::from_slice(line)?;
        let this = (answer.step, when);
        if measure.as_ref() != Some(&this) {
            (measure, at) = (Some(this), 0);
        }
        if at < SHOWN {
            if pairs.len() == at {
                pairs.push([None, None]);
            }
            let cut = Answer {
                prompt: shortened(&answer.prompt),
                reference: shortened(&answer.reference),
                answer: shortened(&answer.answer),
                ..answer
            };
            let before = measure.as_ref().is_some_and(|(_, when)| when == "before");
            pairs[at][usize::from(!before)] = Some(cut);
        }
        at += 1;
        Ok(())
    })?;
    Ok(pairs)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{} […]", &text[..at]),
        None => text.to_owned(),
    }
}
