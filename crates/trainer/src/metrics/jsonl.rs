//! The metrics file: one JSON object a step, one line an object.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::DataError;

/// A metrics file open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens `path` for appending, or creates it, keeping only what a run at `last_step` has
    /// written: from the first line on that is torn, not JSON or has a `step` beyond `last_step`,
    /// the file is cut. So the file of a run that died and went on is that of an unbroken run.
    ///
    /// `None`: a run that begins; nothing that has a step is kept.
    pub fn open(path: &Path, last_step: Option<u64>) -> Result<Self, DataError> {
        let fail = |e| DataError::io(path, e);
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .map_err(fail)?;
        let keep = bytes_up_to(&file, last_step).map_err(fail)?;
        file.set_len(keep).map_err(fail)?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Cuts the file from the first line that is a record of this step and occasion (`when`) on: what
    /// a run that died has written of something it is to write again.
    pub fn forget(&mut self, step: u64, when: &str) -> Result<(), DataError> {
        let fail = |e| DataError::io(&self.path, e);
        let same = |r: &Value| r["step"] == step && r["when"] == when;
        let keep = bytes_while(&self.file, |r| !same(r)).map_err(fail)?;
        self.file.set_len(keep).map_err(fail)
    }

    /// Appends `record` as one line. The line is with the system when the call returns (a killed
    /// process does not lose it; power loss may).
    pub fn write(&mut self, record: &impl Serialize) -> Result<(), DataError> {
        let fail = |e| DataError::io(&self.path, e);
        let mut line = serde_json::to_vec(record).map_err(|e| fail(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(fail)?;
        self.file.flush().map_err(fail)
    }
}

/// Whether a metrics file has a line of `step` with a value `key`.
///
/// # Errors
/// When it cannot be read.
pub fn has_step(path: &Path, step: u64, key: &str) -> Result<bool, DataError> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))?;
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

/// The value of `key` in a metrics file's line of `step`, with this `when` where one is given.
///
/// # Errors
/// When the file cannot be read.
pub fn value_at(
    path: &Path,
    step: u64,
    when: Option<&str>,
    key: &str,
) -> Result<Option<f64>, DataError> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))?;
    let records = text.lines().rev().map(serde_json::from_str::<Value>);
    let of = |r: &Value| r["step"] == step && when.is_none_or(|when| r["when"] == when);
    let found = records.flatten().filter(of).find_map(|r| r[key].as_f64());
    Ok(found)
}

/// Length of the whole lines whose step is at most `last_step`; of none of a step where it is `None`.
fn bytes_up_to(file: &File, last_step: Option<u64>) -> std::io::Result<u64> {
    bytes_while(file, |r| {
        r["step"]
            .as_u64()
            .is_none_or(|step| Some(step) <= last_step)
    })
}

/// Length of the whole lines, from the first on, that are records which `keeps` keeps.
fn bytes_while(file: &File, keeps: impl Fn(&Value) -> bool) -> std::io::Result<u64> {
    let mut file = file;
    std::io::Seek::rewind(&mut file)?;
    let mut reader = BufReader::new(file);
    let (mut keep, mut line) = (0, Vec::new());
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        let whole = line.ends_with(b"\n");
        let record = serde_json::from_slice::<Value>(&line)
            .ok()
            .filter(|_| whole);
        // A line without a step (a header) belongs to the run, not to a step.
        match record {
            Some(r) if keeps(&r) => keep += line.len() as u64,
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
        let mut log = MetricsLog::open(&path, Some(0)).unwrap();
        log.write(&json!({"step": 1, "loss": 2.5})).unwrap();
        log.write(&json!({"step": 2, "loss": 2.25})).unwrap();
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
            MetricsLog::open(&path, Some(2))
                .unwrap()
                .write(&json!({"step": 3, "new": true}))
                .unwrap();
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
        let mut log = MetricsLog::open(&path, None).unwrap();
        let text = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(text(), "{\"run\":\"a\"}\n");
        for when in ["before", "after"] {
            log.write(&json!({"step": 0, "when": when, "x": 0.5}))
                .unwrap();
        }
        let whole = text();
        log.forget(0, "never").unwrap();
        assert_eq!(text(), whole);
        assert_eq!(value_at(&path, 0, Some("after"), "x").unwrap(), Some(0.5));
        assert_eq!(value_at(&path, 1, None, "x").unwrap(), None);
        log.forget(0, "after").unwrap();
        assert_eq!(value_at(&path, 0, Some("after"), "x").unwrap(), None);
        log.write(&json!({"step": 0, "when": "after", "x": 0.5}))
            .unwrap();
        assert_eq!(text(), whole);
    }

    #[test]
    fn an_unwritable_path_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone/m.jsonl");
        let error = MetricsLog::open(&path, None).unwrap_err();
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
    }
}
