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
    pub fn open(path: &Path, last_step: u64) -> Result<Self, DataError> {
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

/// Length of the whole lines whose step is at most `last_step`.
fn bytes_up_to(file: &File, last_step: u64) -> std::io::Result<u64> {
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
            Some(r) if r["step"].as_u64().is_none_or(|step| step <= last_step) => {
                keep += line.len() as u64;
            }
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
        let mut log = MetricsLog::open(&path, 0).unwrap();
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
            MetricsLog::open(&path, 2)
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
    fn an_unwritable_path_is_an_error_with_its_name() {
        let error = MetricsLog::open(Path::new("/nonexistent/m.jsonl"), 0).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/m.jsonl"),
            "{error}"
        );
    }
}
