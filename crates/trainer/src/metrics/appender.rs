//! A file of records that is never worth a run: what cannot be written now is written later, or reported as lost.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::TrainError;
use crate::output::folder::{Folder, Found};

/// Most bytes that wait for a file that cannot be written.
const MOST_HELD: usize = 8 << 20;

/// A file that records are appended to, each whole or not at all.
#[derive(Debug)]
pub struct Appender {
    file: File,
    path: PathBuf,
    held: Vec<u8>,
    failing: bool,
    /// Bytes that the file has, unless another program cut it.
    length: u64,
    /// It has not its name any more and cannot get it back.
    nameless: bool,
    /// Records that there was no room to hold.
    lost: u64,
}

impl Appender {
    /// Appends to `file`, which is open for writing at its end (`O_APPEND`: it is cut where a write fails) and is
    /// called `path` in messages.
    pub fn new(file: File, path: PathBuf) -> Self {
        let length = file.metadata().map_or(0, |meta| meta.len());
        Self {
            file,
            path,
            held: Vec::new(),
            failing: false,
            length,
            nameless: false,
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

    /// Looks whether `name` in `folder` still leads to the file. Where it was removed or renamed, it is written anew
    /// under its name, with all that it held: the open file still has it. So where another file has the name, which
    /// is set aside. Returns a message for the user where something was found, once each time.
    pub fn follow(&mut self, folder: &Folder, name: &str) -> Option<String> {
        let path = folder.at(name);
        self.path.clone_from(&path);
        let path = path.display();
        match self.at_its_name(folder, name) {
            Ok(None) => {}
            Ok(Some(notice)) => {
                self.nameless = false;
                return Some(notice);
            }
            Err(_) if self.nameless => return None,
            Err(e) => {
                self.nameless = true;
                return Some(format!(
                    "warning: {path} was removed or replaced while the run writes it, and cannot be written anew: {e}; \
                     it is tried again"
                ));
            }
        }
        let has = self.file.metadata().ok()?.len();
        let cut = has < self.length;
        let had = std::mem::replace(&mut self.length, has);
        cut.then(|| {
            format!(
                "warning: {path} was cut by another program, from {had} bytes to {has}: its records of before are lost"
            )
        })
    }

    /// Sees to it that `name` leads to the file; what was done for it.
    fn at_its_name(&mut self, folder: &Folder, name: &str) -> Result<Option<String>, TrainError> {
        if folder.leads_to(name, &self.file)? {
            return Ok(None);
        }
        let path = folder.at(name);
        let shown = path.display();
        let fail = TrainError::io(&path);
        let anew = "it is written anew, with all its records";
        let notice = match folder.found(name)? {
            Found::Nothing => {
                format!("warning: {shown} was removed or renamed while the run writes it: {anew}")
            }
            found => {
                // As an editor leaves it that changed nothing.
                if found == Found::File
                    && let Ok(other) = folder.append(name)
                    && same_bytes(&self.file, &other).map_err(&fail)?
                {
                    self.file = other;
                    return Ok(None);
                }
                let aside = set_aside(folder, name)?;
                format!(
                    "warning: {shown} was replaced while the run writes it: {anew}; what had its name is {} now",
                    aside.display()
                )
            }
        };
        let mut old = Whole::of(&self.file);
        folder.write_with(name, |mut new| {
            std::io::copy(&mut old, &mut new)?;
            Ok(())
        })?;
        self.file = folder.append(name)?;
        Ok(Some(notice))
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
        self.length = before;
        if written.is_ok() {
            self.length += self.held.len() as u64;
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

    /// Cuts the file to its first bytes.
    pub(super) fn cut(&mut self, keep: u64) -> std::io::Result<()> {
        self.length = keep;
        self.file.set_len(keep)
    }
}

/// An open file from its first byte on, wherever it is read or written at.
struct Whole<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> Whole<'a> {
    fn of(file: &'a File) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for Whole<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Whether two files hold the same.
fn same_bytes(a: &File, b: &File) -> std::io::Result<bool> {
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let mut each = [a, b].map(|file| std::io::BufReader::new(Whole::of(file)).bytes());
    loop {
        match each.each_mut().map(Iterator::next) {
            [None, None] => return Ok(true),
            [Some(a), Some(b)] if a.as_ref().ok() == b.as_ref().ok() => {
                a?;
                b?;
            }
            _ => return Ok(false),
        }
    }
}

/// Gives what has this name another one, which is free.
fn set_aside(folder: &Folder, name: &str) -> Result<PathBuf, TrainError> {
    let mut n = 1u64;
    loop {
        let aside = match n {
            1 => format!("{name}.kept"),
            n => format!("{name}.kept-{n}"),
        };
        if folder.rename_new(name, folder, &aside)? {
            return Ok(folder.at(aside));
        }
        n += 1;
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
        let notice = log.append(b"one\n").unwrap();
        assert!(
            notice.contains("No space") && notice.contains("log"),
            "{notice}"
        );
        assert_eq!(log.append(b"two\n"), None);
        assert!(log.missing().is_some());
        log.file = File::create(&path).unwrap();
        let notice = log.append(b"three\n").unwrap();
        assert!(notice.contains("nothing is missing"), "{notice}");
        assert_eq!(log.append(b"four\n"), None);
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\nfour\n");
        assert_eq!(log.missing(), None);
    }

    /// Whatever becomes of the name, it has all records of the run, and nobody else's file is lost.
    #[test]
    fn a_file_that_loses_its_name_is_written_anew_with_all_its_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let folder = Folder::open(dir.path()).unwrap();
        let mut log = Appender::new(folder.append("log").unwrap(), path.clone());
        let mut all = String::new();
        let mut record = |log: &mut Appender, text: &str| {
            let notice = log.follow(&folder, "log");
            log.append(text.as_bytes());
            all.push_str(text);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), all, "{text}");
            assert_eq!(log.follow(&folder, "log"), None, "once");
            notice.unwrap_or_default()
        };
        assert_eq!(record(&mut log, "one\n"), "");
        std::fs::remove_file(&path).unwrap();
        let notice = record(&mut log, "two\n");
        assert!(notice.contains("was removed or renamed"), "{notice}");
        std::fs::rename(&path, dir.path().join("mine")).unwrap();
        let notice = record(&mut log, "three\n");
        assert!(notice.contains("was removed or renamed"), "{notice}");
        // An editor that changed nothing, and what others left there: a file, a link, a directory.
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::copy(dir.path().join("old"), &path).unwrap();
        assert_eq!(record(&mut log, "four\n"), "");
        for (i, kept) in ["log.kept", "log.kept-2", "log.kept-3"].iter().enumerate() {
            std::fs::remove_file(&path).unwrap();
            match i {
                0 => std::fs::write(&path, "another's\n").unwrap(),
                1 => std::os::unix::fs::symlink("mine", &path).unwrap(),
                _ => std::fs::create_dir(&path).unwrap(),
            }
            let notice = record(&mut log, "more\n");
            assert!(
                notice.contains("was replaced") && notice.contains(kept),
                "{notice}"
            );
        }
        let others = std::fs::read_to_string(dir.path().join("log.kept")).unwrap();
        assert_eq!(others, "another's\n");
        let mine = std::fs::read_to_string(dir.path().join("mine")).unwrap();
        assert_eq!(mine, "one\ntwo\n");
        // What was cut is gone, and that is said.
        File::create(&path).unwrap();
        let notice = log.follow(&folder, "log").unwrap();
        assert!(
            notice.contains("was cut") && notice.contains("to 0"),
            "{notice}"
        );
        assert_eq!(log.append(b"last\n"), None);
        assert_eq!(log.follow(&folder, "log"), None);
        assert_eq!(std::fs::read(&path).unwrap(), b"last\n");
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
        let notice = log.append(b"").unwrap();
        assert!(notice.contains("2 records are missing"), "{notice}");
        assert!(log.missing().is_some());
    }
}
