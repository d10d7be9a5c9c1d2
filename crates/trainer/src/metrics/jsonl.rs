//! The metrics file: one JSON object a step, one line an object.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use serde::Serialize;
use serde_json::Value;

use super::appender::Appender;
use crate::error::TrainError;
use crate::output::folder::{Folder, Found};

/// A metrics file open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    lines: Appender,
}

impl MetricsLog {
    /// Opens the file of this name for appending, or creates it, keeping only what a run at `last_step` has written:
    /// from the first line on that has a `step` beyond `last_step`, and behind the last whole one, the file is cut. So
    /// the file of a run that died and was resumed is that of an unbroken run. A damaged line between whole ones stays.
    ///
    /// `None`: a run that begins; nothing that has a step is kept.
    pub fn open(folder: &Folder, name: &str, last_step: Option<u64>) -> Result<Self, TrainError> {
        let path = folder.at(name);
        let file = folder.append(name)?;
        let cut = bytes_up_to(&file, last_step).and_then(|keep| file.set_len(keep));
        cut.map_err(TrainError::io(&path))?;
        let lines = Appender::new(file, path);
        Ok(Self { lines })
    }

    /// Cuts the file at the first line that is a record of this step and occasion (`when`): a run that died has
    /// written part of what will be written again.
    pub fn forget(&mut self, step: u64, when: &str) -> Result<(), TrainError> {
        let same = |r: &Value| r["step"] == step && r["when"] == when;
        let file = self.lines.file();
        let cut = bytes_while(file, |r| !same(r)).and_then(|keep| self.lines.cut(keep));
        cut.map_err(TrainError::io(self.lines.path()))
    }

    /// Appends `record` as one line; see [`Appender::append`].
    pub fn write(&mut self, record: &impl Serialize) -> Option<String> {
        let mut line = serde_json::to_vec(record).expect("plain values");
        line.push(b'\n');
        self.lines.append(&line)
    }

    /// See [`Appender::follow`].
    pub fn follow(&mut self, folder: &Folder, name: &str) -> Option<String> {
        self.lines.follow(folder, name)
    }

    /// See [`Appender::missing`].
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.lines.missing()
    }
}

/// The last step that a metrics file has a loss of; `None` where it has none, or is not there.
///
/// # Errors
/// When it cannot be read.
pub fn last_step(folder: &Folder, name: &str) -> Result<Option<u64>, TrainError> {
    greatest(folder, name, |record| {
        record.get("loss").and_then(|_| record["step"].as_u64())
    })
}

/// The most bytes that a line of a metrics file says were written to the drives.
///
/// # Errors
/// When it cannot be read.
pub fn last_written(folder: &Folder, name: &str) -> Result<u64, TrainError> {
    let written = greatest(folder, name, |record| record["disk_written"].as_u64())?;
    Ok(written.unwrap_or(0))
}

/// The greatest of what is found in a file's lines; `None` where there is none, or no file.
fn greatest(
    folder: &Folder,
    name: &str,
    of: impl Fn(&Value) -> Option<u64>,
) -> Result<Option<u64>, TrainError> {
    if folder.found(name)? == Found::Nothing {
        return Ok(None);
    }
    let path = folder.at(name);
    let fail = TrainError::io(&path);
    let mut reader = BufReader::new(folder.read(name)?);
    let (mut last, mut line) = (None, Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(&fail)? == 0 {
            return Ok(last);
        }
        let record = serde_json::from_slice::<Value>(&line).unwrap_or_default();
        last = last.max(of(&record));
    }
}

/// Whether a metrics file has a line of `step` with a value `key`.
///
/// # Errors
/// When it cannot be read.
pub fn has_step(folder: &Folder, name: &str, step: u64, key: &str) -> Result<bool, TrainError> {
    let text = text(folder, name)?;
    // Lines come in the order of their steps, so the one looked for is among the last.
    let lines = text.lines().rev().map_while(|line| {
        let record = serde_json::from_str::<Value>(line).ok()?;
        record["step"]
            .as_u64()
            .is_none_or(|s| s >= step)
            .then_some(record)
    });
    Ok(lines
        .into_iter()
        .any(|r| r["step"] == step && r.get(key).is_some()))
}

/// The value of `key` in a metrics file's line of `step`, with this `when` where one is given, and of the evaluations
/// with this hash.
///
/// # Errors
/// When the file cannot be read.
pub fn value_at(
    folder: &Folder,
    name: &str,
    step: u64,
    (when, data): (Option<&str>, &str),
    key: &str,
) -> Result<Option<f64>, TrainError> {
    let text = text(folder, name)?;
    let records = text.lines().rev().map(serde_json::from_str::<Value>);
    let of = |r: &Value| {
        r["step"] == step && r["eval_data"] == data && when.is_none_or(|when| r["when"] == when)
    };
    let found = records.flatten().filter(of).find_map(|r| r[key].as_f64());
    Ok(found)
}

/// The first evaluation of some data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FirstEvaluation {
    /// After which step it was made; 0 is before the first.
    pub step: u64,
    /// Mean loss of a supervised token.
    pub loss: f64,
    /// Share of its tokens that greedy decoding would take; earlier versions did not count them.
    pub accuracy: Option<f64>,
}

/// The first evaluation in a metrics file that is of the data with this hash.
///
/// # Errors
/// When the file cannot be read.
pub fn first_of(
    folder: &Folder,
    name: &str,
    data: &str,
) -> Result<Option<FirstEvaluation>, TrainError> {
    let text = text(folder, name)?;
    let records = text.lines().flat_map(serde_json::from_str::<Value>);
    let mut of = records.filter(|r| r["eval_data"] == data);
    Ok(of.find_map(|r| {
        Some(FirstEvaluation {
            step: r["step"].as_u64()?,
            loss: r["eval_loss"].as_f64()?,
            accuracy: r["eval_accuracy"].as_f64(),
        })
    }))
}

fn text(folder: &Folder, name: &str) -> Result<String, TrainError> {
    let mut bytes = Vec::new();
    let read = folder.read(name)?.read_to_end(&mut bytes);
    read.map_err(TrainError::io(&folder.at(name)))?;
    // A damaged line may hold anything.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Length of the whole lines whose step is at most `last_step`; of none of a step where it is `None`.
fn bytes_up_to(file: &File, last_step: Option<u64>) -> std::io::Result<u64> {
    bytes_while(file, |r| {
        r["step"]
            .as_u64()
            .is_none_or(|step| Some(step) <= last_step)
    })
}

/// Length of the lines, from the first on, up to the last whole record before the first that `keeps` does not keep.
fn bytes_while(file: &File, keeps: impl Fn(&Value) -> bool) -> std::io::Result<u64> {
    let mut file = file;
    std::io::Seek::rewind(&mut file)?;
    let mut reader = BufReader::new(file);
    let (mut keep, mut at, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        at += reader.read_until(b'\n', &mut line)? as u64;
        let whole = line.ends_with(b"\n");
        let record = serde_json::from_slice::<Value>(&line)
            .ok()
            .filter(|_| whole);
        // A line without a step (a header) belongs to the run, not to a step.
        match record {
            Some(r) if keeps(&r) => keep = at,
            // What is damaged costs itself alone: what stands behind it is as good as before.
            None if whole => {}
            _ => return Ok(keep),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_record_is_a_line_that_is_there_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let folder = Folder::open(dir.path()).unwrap();
        let mut log = MetricsLog::open(&folder, "metrics.jsonl", Some(0)).unwrap();
        assert_eq!(log.write(&json!({"step": 1, "loss": 2.5})), None);
        assert_eq!(log.write(&json!({"step": 2, "loss": 2.25})), None);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":2.25}\n"
        );
    }

    #[test]
    fn a_resumed_run_continues_after_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let kept = "{\"run\":\"a\"}\n{\"step\":1}\n{\"step\":2}\n";
        for rest in [
            "",
            "{\"step\":3}\n{\"step\":4}\n",
            "{\"step\":3,\"lo",
            "{\"step\":2}",
            "\0\n",
        ] {
            std::fs::write(&path, format!("{kept}{rest}")).unwrap();
            let folder = Folder::open(dir.path()).unwrap();
            let mut log = MetricsLog::open(&folder, "metrics.jsonl", Some(2)).unwrap();
            assert_eq!(log.write(&json!({"step": 3, "new": true})), None);
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(
                text,
                format!("{kept}{{\"step\":3,\"new\":true}}\n"),
                "after {rest:?}"
            );
        }
    }

    #[test]
    fn a_run_that_begins_keeps_no_step_and_what_is_written_again_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let old = "{\"run\":\"a\"}\n{\"step\":0,\"when\":\"before\"}\n{\"step\":1}\n";
        std::fs::write(&path, old).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut log = MetricsLog::open(&folder, "m.jsonl", None).unwrap();
        let text = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(text(), "{\"run\":\"a\"}\n");
        for when in ["before", "after"] {
            let line = json!({"step": 0, "when": when, "x": 0.5, "eval_data": "d"});
            assert_eq!(log.write(&line), None);
        }
        let whole = text();
        log.forget(0, "never").unwrap();
        assert_eq!(text(), whole);
        let value = |step, when| value_at(&folder, "m.jsonl", step, (when, "d"), "x").unwrap();
        assert_eq!(value(0, Some("after")), Some(0.5));
        assert_eq!(value(1, None), None);
        let of_others = value_at(&folder, "m.jsonl", 0, (None, "e"), "x").unwrap();
        assert_eq!(of_others, None, "of other evaluation data");
        log.forget(0, "after").unwrap();
        assert_eq!(value(0, Some("after")), None);
        assert_eq!(
            log.write(&json!({"step": 0, "when": "after", "x": 0.5, "eval_data": "d"})),
            None
        );
        assert_eq!(text(), whole);
    }

    #[test]
    fn a_damaged_stretch_costs_no_line_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let good =
            b"{\"step\":1}\n{\"ste\0\0\xff\n\0\0\n{\"step\":2,\"eval_data\":\"d\",\"x\":2.0}\n";
        let all = [&good[..], b"\0\n{\"step\":3}\n{\"st"].concat();
        std::fs::write(&path, all).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        drop(MetricsLog::open(&folder, "m.jsonl", Some(2)).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), good);
        let value = value_at(&folder, "m.jsonl", 2, (None, "d"), "x").unwrap();
        assert_eq!(value, Some(2.0));
    }

    #[test]
    fn a_name_that_cannot_be_written_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("m.jsonl")).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let error = MetricsLog::open(&folder, "m.jsonl", None).unwrap_err();
        assert!(
            error.to_string().contains("m.jsonl: is not a plain"),
            "{error}"
        );
    }
}
