//! lowtide's mark: a small file in every directory that it makes, which says what of it is lowtide's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::folder::{self, Folder, Found};
use crate::error::TrainError;

/// The mark's name in every directory.
pub const MARK: &str = ".lowtide";
const PROGRAM: &str = "lowtide";
/// From 2 on a file's checksum is of all of it.
const FORMAT: u32 = 2;
const SAMPLED: u32 = 1;
/// Longest mark that is read: a model has a few files, and sharded ones a few hundred.
pub(super) const LONGEST: u64 = 4 << 20;
/// Pieces of a file that its print was taken of in format 1, and their length.
const PIECES: u64 = 64;
const PIECE: u64 = 4096;

/// What a marked directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// A run's output.
    Output,
    /// A fine-tuned model.
    Model,
    /// One checkpoint of a run.
    Checkpoint,
}

/// The file in a directory that says lowtide made it, and which of its files are lowtide's with their checksums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    program: String,
    version: String,
    format: u32,
    holds: Holds,
    /// Every plain file of the directory is being written.
    #[serde(default)]
    pending: bool,
    /// lowtide's files in it.
    #[serde(default)]
    files: BTreeMap<String, Print>,
    /// Of an output: what its run has kept to resume from.
    #[serde(default, skip_serializing_if = "Kept::is_nothing")]
    kept: Kept,
}

/// What a run has kept to resume from, wherever it is: so that a start notices its loss and does not begin anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The step of the newest checkpoint that it has saved in its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<u64>,
    /// The first state file of a durable run that has not come to its end; a relative path is one in the
    /// output.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_path")]
    pub state_file: Option<PathBuf>,
    /// The branch that the run is on; none: the first, which began at step 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
    /// What a run writes to its drives that has not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
    /// The directory of its drive in the output was not there before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_disk: bool,
}

/// Bytes that a killed run may have written to its drives after its last line of metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writes {
    /// When its state was on them, by all of its processes.
    pub begun: u64,
    /// From one line of its metrics to the next, at most.
    pub untold: u64,
}

/// A run that did not resume from the newest state of its output, but left that for an older checkpoint, for
/// one of another output, or for step 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// Branches of this output are counted from 1 on; checkpoints and journals say which they are of.
    pub number: u64,
    /// The checkpoint that it began at; none: it began at step 1. A relative path is one in the output.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_path")]
    pub at: Option<PathBuf>,
    /// The step of that checkpoint; 0 where there is none.
    pub step: u64,
    /// CRC-32C of that checkpoint's `run.json`.
    pub checkpoint: u32,
    /// CRC-32C of the settings that it was begun with.
    pub settings: u32,
    /// It has no checkpoint of its own yet: what has the names of later steps is of the branch that was left.
    #[serde(default)]
    pub unsaved: bool,
}

/// A path as JSON: its text, or its bytes where it is none.
mod any_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Path {
        Text(String),
        Bytes(Vec<u8>),
    }

    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        let path = path.as_ref().map(|path| match path.to_str() {
            Some(text) => Path::Text(text.to_owned()),
            None => Path::Bytes(path.as_os_str().as_bytes().to_vec()),
        });
        path.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        let path = Option::<Path>::deserialize(from)?;
        Ok(path.map(|path| match path {
            Path::Text(text) => text.into(),
            Path::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }))
    }
}

/// A path as the mark of `output` has it.
#[must_use]
pub fn within(output: &Path, path: PathBuf) -> PathBuf {
    match path.strip_prefix(output) {
        Ok(inside) => inside.to_owned(),
        Err(_) => std::path::absolute(&path).unwrap_or(path),
    }
}

impl Kept {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What the run of `output` has kept: its newest checkpoint there, its first state file, on which branch.
    pub fn of(
        output: &Path,
        saved: Option<u64>,
        state_file: Option<PathBuf>,
        branch: Option<Branch>,
    ) -> Self {
        Self {
            saved,
            state_file: state_file.map(|file| within(output, file)),
            branch,
            writes: None,
            made_disk: false,
        }
    }

    /// The number of the branch.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.branch.as_ref().map_or(0, |b| b.number)
    }

    /// The branch, while it has no checkpoint of its own.
    #[must_use]
    pub fn unsaved(&self) -> Option<&Branch> {
        self.branch.as_ref().filter(|b| b.unsaved)
    }
}

/// What a file is recognised by: its length, and CRC-32C of all of it. (A sample, as in format 1, does not see an
/// edit elsewhere.) It costs one reading of the file, mostly from the cache, when it was written, and one when it is
/// replaced: seconds for each ten gigabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Print {
    bytes: u64,
    crc32c: u32,
}

/// Bytes of a file that are read at a time for its checksum.
const READ: usize = 1 << 20;

impl Print {
    fn of(file: &File) -> std::io::Result<Self> {
        let mut print = Self {
            bytes: 0,
            crc32c: 0,
        };
        let mut buffer = vec![0; READ];
        loop {
            match file.read_at(&mut buffer, print.bytes) {
                Ok(0) => return Ok(print),
                Ok(n) => {
                    print.bytes += n as u64;
                    print.crc32c = crc32c::crc32c_append(print.crc32c, &buffer[..n]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The length alone, of a file that is lowtide's whatever is in it.
    fn length(file: &File) -> std::io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { bytes, crc32c: 0 })
    }

    /// As format 1 has it.
    fn sampled(file: &File) -> std::io::Result<Self> {
        let bytes = file.metadata()?.len();
        let last = bytes.saturating_sub(PIECE);
        let starts: Vec<u64> = if bytes <= PIECES * PIECE {
            (0..bytes).step_by(PIECE as usize).collect()
        } else {
            let at = |i| (u128::from(last) * u128::from(i) / u128::from(PIECES - 1)) as u64;
            (0..PIECES).map(at).collect()
        };
        let mut crc32c = 0;
        let mut piece = vec![0; PIECE as usize];
        for at in starts {
            let piece = &mut piece[..PIECE.min(bytes - at) as usize];
            file.read_exact_at(piece, at)?;
            crc32c = crc32c::crc32c_append(crc32c, piece);
        }
        Ok(Self { bytes, crc32c })
    }
}

impl Mark {
    fn new(holds: Holds, pending: bool) -> Self {
        Self {
            program: PROGRAM.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            holds,
            pending,
            files: BTreeMap::new(),
            kept: Kept::default(),
        }
    }

    /// Marks a directory while it is being filled: all in it is ours.
    pub(super) fn begin(folder: &Folder, holds: Holds) -> Result<(), TrainError> {
        Self::new(holds, true).write(folder)
    }

    /// Marks a directory that is complete: what is in it now is ours.
    /// Those whose name is among `always` are so whatever will be in them, and are not read.
    pub(super) fn finish(folder: &Folder, holds: Holds, always: &[&str]) -> Result<(), TrainError> {
        let mut mark = Self::new(holds, false);
        mark.add(folder, "", always)?;
        mark.write(folder)
    }

    /// Adds every plain file of a folder, which is called `at` seen from the mark.
    fn add(&mut self, folder: &Folder, at: &str, always: &[&str]) -> Result<(), TrainError> {
        for (name, found) in folder.entries()? {
            let Some(text) = name.to_str().filter(|n| *n != MARK) else {
                continue;
            };
            let path = format!("{at}{text}");
            if let Some(below) = (found == Found::Folder)
                .then(|| folder.sub(&name))
                .transpose()?
                .flatten()
            {
                self.add(&below, &format!("{path}/"), &[])?;
            } else if found == Found::File {
                let file = folder.read(&name)?;
                let print = match always.contains(&text) {
                    true => Print::length(&file),
                    false => Print::of(&file),
                };
                let print = print.map_err(TrainError::io(&folder.at(&name)))?;
                self.files.insert(path, print);
            }
        }
        Ok(())
    }

    fn write(&self, folder: &Folder) -> Result<(), TrainError> {
        let text = self.text();
        folder.write(MARK, |out| out.write_all(text.as_bytes()))
    }

    /// The file's content: JSON and a newline.
    pub(super) fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values") + "\n"
    }

    /// The mark of an output directory.
    pub(super) fn output(kept: Kept) -> Self {
        Self {
            kept,
            ..Self::new(Holds::Output, false)
        }
    }

    /// What the run of an output directory has kept.
    pub(super) fn kept(self) -> Kept {
        self.kept
    }

    /// The mark of a directory; `None` when it has none that is lowtide's.
    pub fn of(folder: &Folder) -> Result<Option<Self>, TrainError> {
        if folder.found(MARK)? != Found::File {
            return Ok(None);
        }
        let mut text = Vec::new();
        let file = folder.read(MARK)?;
        file.take(LONGEST)
            .read_to_end(&mut text)
            .map_err(TrainError::io(&folder.at(MARK)))?;
        Ok(Self::parse(&text))
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mark: Self = serde_json::from_slice(text).ok()?;
        (mark.program == PROGRAM).then_some(mark)
    }

    /// Whether every file that lowtide wrote in its directory is there with its length.
    #[must_use]
    pub fn is_whole(&self, folder: &Folder) -> bool {
        let there = |(path, print): (&String, &Print)| {
            let meta = std::fs::symlink_metadata(folder.at(path));
            meta.is_ok_and(|m| m.is_file() && m.len() == print.bytes)
        };
        !self.pending && self.files.iter().all(there)
    }

    /// Whether its directory was being written, and not to its end.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// lowtide's files in its directory with their lengths.
    pub(super) fn files(&self) -> impl Iterator<Item = (&String, u64)> {
        self.files.iter().map(|(name, print)| (name, print.bytes))
    }

    /// What its directory is.
    #[must_use]
    pub fn holds(&self) -> Holds {
        self.holds
    }

    /// Whether lowtide wrote files in a folder, whose path from the mark ends with a slash.
    pub(super) fn has_below(&self, at: &str) -> bool {
        self.pending || self.files.keys().any(|f| f.starts_with(at))
    }

    /// Whether a plain file is what lowtide wrote: `name` in `folder`, which is called `at` seen from the
    /// mark.
    pub(super) fn wrote(&self, folder: &Folder, at: &str, name: &str) -> Result<bool, TrainError> {
        let path = format!("{at}{name}");
        if self.pending || path == folder::pending(MARK) {
            return Ok(true);
        }
        let Some(print) = self.files.get(&path) else {
            return Ok(false);
        };
        let file = folder.read(name)?;
        let found = match self.format {
            ..=SAMPLED => Print::sampled(&file),
            _ => Print::of(&file),
        };
        let found = found.map_err(TrainError::io(&folder.at(name)))?;
        Ok(found == *print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_format_1_is_read_as_it_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let mut mark = Mark::new(Holds::Model, false);
        mark.format = SAMPLED;
        let print = Print::sampled(&File::open(&path).unwrap()).unwrap();
        assert_ne!(print, Print::of(&File::open(&path).unwrap()).unwrap());
        mark.files.insert("f".to_owned(), print);
        mark.write(&folder).unwrap();
        let mark = Mark::of(&folder).unwrap().unwrap();
        assert!(mark.wrote(&folder, "", "f").unwrap());
        std::fs::write(&path, vec![8; 1 << 20]).unwrap();
        assert!(!mark.wrote(&folder, "", "f").unwrap());
    }

    #[test]
    fn a_file_of_any_length_is_known_again_and_another_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for len in [
            0usize,
            1,
            4095,
            4096,
            4097,
            64 * 4096,
            64 * 4096 + 1,
            1 << 20,
            (2 << 20) + 11,
        ] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            std::fs::write(dir.path().join("f"), &bytes).unwrap();
            Mark::finish(&folder, Holds::Model, &[]).unwrap();
            let mark = Mark::of(&folder).unwrap().unwrap();
            assert!(mark.wrote(&folder, "", "f").unwrap(), "{len}");
            // Other numbers of the same length, one byte more, and at either end another byte.
            let other: Vec<u8> = bytes.iter().map(|b| b ^ 1).collect();
            let longer = [&bytes[..], b"x"].concat();
            let mut changed = vec![other, longer];
            // In a large file, between what a sample would see, too.
            for at in [0, 5000, len / 3, len / 2 + 7, len.saturating_sub(1)] {
                let mut one = bytes.clone();
                if let Some(b) = one.get_mut(at) {
                    *b ^= 0x10;
                    changed.push(one);
                }
            }
            for bad in changed.iter().filter(|b| **b != bytes) {
                std::fs::write(dir.path().join("f"), bad).unwrap();
                assert!(!mark.wrote(&folder, "", "f").unwrap(), "{len}");
            }
        }
        assert!(
            !Mark::of(&folder)
                .unwrap()
                .unwrap()
                .wrote(&folder, "", "g")
                .unwrap()
        );
    }
}
