//! A file of records that is never worth a run: what cannot be written now is written later, or reported as lost.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Most bytes that wait for a file that cannot be written.
const MOST_HELD: usize = 8 << 20;

/// A file that records are appended to, each whole or not at all.
#[derive(Debug)]
pub struct Appender {
    file: File,
    path: PathBuf,
    held: Vec<u8>,
    failing: bool,
    /// Records that there was no room to hold.
    lost: u64,
}

impl Appender {
    /// Appends to `file`, which is open for writing at its end (`O_APPEND`: it is cut where a write fails) and is
    /// called `path` in messages.
    pub fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            held: Vec::new(),
            failing: false,
            lost: 0,
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record. It is with the system when the call returns (a killed process does not lose it; power loss
    /// may), or waits for the next call if the system refuses it. Returns a message for the user at the first
    /// refusal, and at the first success after it.
    pub fn append(&mut self, record: &[u8]) -> Option<String> {
        if self.held.len() + record.len() > MOST_HELD {
            self.lost += 1;
        } else {
            self.held.extend_from_slice(record);
        }
        let done = self.flush();
        let path = self.path.display();
        match done {
            Ok(()) if std::mem::take(&mut self.failing) => {
                Some(format!("{path}: can be written again; {}", self.gap()))
            }
            Ok(()) => None,
            Err(e) if !std::mem::replace(&mut self.failing, true) => Some(format!(
                "warning: {path}: {e}; the run goes on, and its records wait in memory"
            )),
            Err(_) => None,
        }
    }

    fn gap(&self) -> String {
        match self.lost {
            0 => "nothing is missing in it".to_owned(),
            n => format!("{n} records are missing in it"),
        }
    }

    /// What of the run will never be in the file, if it ends now.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let path = self.path.display();
        let held = !self.held.is_empty();
        (held || self.lost > 0).then(|| {
            format!(
                "warning: {path}: could not be written to the end; its last records are missing"
            )
        })
    }

    /// Writes what is held. What was written of it when the system refused is cut off again, so that the
    /// file ends with a whole record.
    fn flush(&mut self) -> std::io::Result<()> {
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(&self.held);
        if written.is_ok() {
            self.held.clear();
        } else {
            // A torn record at worst, which a resumed run cuts off.
            let _ = self.file.set_len(before);
        }
        written
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_full_disk_is_told_once_and_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut log = Appender::new(full, path.clone());
        let told = log.append(b"one\n").unwrap();
        assert!(told.contains("No space") && told.contains("log"), "{told}");
        assert_eq!(log.append(b"two\n"), None);
        assert!(log.missing().is_some());
        log.file = File::create(&path).unwrap();
        let told = log.append(b"three\n").unwrap();
        assert!(told.contains("nothing is missing"), "{told}");
        assert_eq!(log.append(b"four\n"), None);
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\nfour\n");
        assert_eq!(log.missing(), None);
    }

    #[test]
    fn what_is_held_is_bounded_and_the_loss_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut log = Appender::new(full, path.clone());
        let record = vec![b'x'; MOST_HELD / 4];
        for _ in 0..6 {
            log.append(&record);
        }
        assert_eq!(log.held.len(), MOST_HELD);
        log.file = File::create(&path).unwrap();
        let told = log.append(b"").unwrap();
        assert!(told.contains("2 records are missing"), "{told}");
        assert!(log.missing().is_some());
    }
}
