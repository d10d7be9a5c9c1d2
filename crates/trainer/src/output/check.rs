//! Whether what a run has left is what it wrote: every file against its checksum.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::folder::{Folder, Found};
use super::mark::{Holds, Mark};
use super::{CHECKPOINTS, MODEL};
use crate::checkpoint::{self, RUN, STATE};
use crate::error::TrainError;

/// What was found of a directory that a run wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// A checkpoint's or a model's directory.
    #[serde(serialize_with = "lowtide_files::shown::path")]
    pub path: PathBuf,
    /// What it holds.
    pub holds: Holds,
    /// Files that lowtide wrote in it.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What is wrong, a sentence each; none: every byte is what was written.
    pub wrong: Vec<String>,
}

/// Reads every file that lowtide wrote in a checkpoint or a model, or in all of those of an output, and holds it
/// against its checksum. Changes nothing.
///
/// # Errors
/// The directory cannot be read, or lowtide has not written it.
pub fn check(dir: &Path) -> Result<Vec<Checked>, TrainError> {
    let folder = Folder::open(dir)?;
    let mark = Mark::of(&folder)?.ok_or_else(|| TrainError::NoMark {
        path: dir.to_owned(),
    })?;
    if mark.holds() != Holds::Output {
        return Ok(vec![one(dir, &folder, &mark)?]);
    }
    let mut dirs: Vec<PathBuf> = checkpoint::list(dir).into_iter().map(|c| c.1).collect();
    let model = dir.join(MODEL);
    dirs.extend(model.is_dir().then_some(model));
    if dirs.is_empty() {
        let (path, what) = (dir.join(CHECKPOINTS), "no checkpoint and no model is there");
        return Err(TrainError::Nothing { path, what });
    }
    dirs.iter().try_fold(Vec::new(), |mut all, dir| {
        all.extend(check(dir)?);
        Ok(all)
    })
}

fn one(dir: &Path, folder: &Folder, mark: &Mark) -> Result<Checked, TrainError> {
    let mut checked = Checked {
        path: dir.to_owned(),
        holds: mark.holds(),
        files: 0,
        bytes: 0,
        wrong: Vec::new(),
    };
    if mark.is_pending() {
        checked
            .wrong
            .push("it was not written to its end".to_owned());
    }
    for (name, bytes) in mark.files() {
        checked.files += 1;
        checked.bytes += bytes;
        match folder.found(name)? {
            // Of a checkpoint's own files the mark has the length; their checksums are looked at below.
            Found::File if mark.holds() == Holds::Checkpoint && [RUN, STATE].contains(&&**name) => {
                let len = folder
                    .read(name)?
                    .metadata()
                    .map_err(TrainError::io(&folder.at(name)))?
                    .len();
                if len != bytes {
                    checked
                        .wrong
                        .push(format!("{name}: {len} bytes where {bytes} were written"));
                }
            }
            Found::File if mark.wrote(folder, "", name)? => {}
            Found::File => checked.wrong.push(format!(
                "{name}: another length, or other bytes than were written"
            )),
            Found::Nothing => checked.wrong.push(format!("{name}: is missing")),
            _ => checked.wrong.push(format!("{name}: not a file")),
        }
    }
    // Array by array, so that what is damaged has a name.
    if mark.holds() == Holds::Checkpoint
        && let Err(e) = checkpoint::verify(dir)
    {
        checked.wrong.push(e.to_string());
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(matches!(check(path), Err(TrainError::NoMark { .. })));
        std::fs::write(path.join("a"), b"some bytes").unwrap();
        std::fs::write(path.join("b"), b"others").unwrap();
        Mark::finish(&Folder::open(path).unwrap(), Holds::Model, &[]).unwrap();
        let wrong = || check(path).unwrap().remove(0).wrong;
        let checked = check(path).unwrap().remove(0);
        assert_eq!((checked.files, checked.bytes), (2, 16));
        assert!(checked.wrong.is_empty());
        std::fs::write(path.join("a"), b"some byteS").unwrap();
        assert_eq!(
            wrong(),
            ["a: another length, or other bytes than were written"]
        );
        std::fs::remove_file(path.join("a")).unwrap();
        assert_eq!(wrong(), ["a: is missing"]);
        std::fs::create_dir(path.join("a")).unwrap();
        assert_eq!(wrong(), ["a: not a file"]);
        // A file of somebody else is none of ours.
        std::fs::remove_dir(path.join("a")).unwrap();
        std::fs::write(path.join("a"), b"some bytes").unwrap();
        std::fs::write(path.join("c"), b"mine").unwrap();
        assert!(wrong().is_empty());
    }
}
