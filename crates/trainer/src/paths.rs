//! Paths of a run before anything of it is opened: one that is missing, or of another kind than its key needs, is an
//! error that names the key.
//!
//! A pipe or a device in place of a file is refused: files are read more than once, and some of those
//! have no end.

use std::fs::{self, FileType, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use lowtide_config::{Cache, ModelSource, Run};

use crate::error::{PathProblem, TrainError};

/// What a key needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    File,
    Directory,
    Either,
}

impl Need {
    const fn name(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Either => "a directory or a file",
        }
    }
}

/// A run's model: its directory or its `config.json`.
///
/// # Errors
/// [`TrainError::Path`].
pub fn model(run: &Run) -> Result<(), TrainError> {
    match &run.model.source {
        ModelSource::Path(dir) => look("model.path", dir, Need::Directory),
        ModelSource::Config(path) => look("model.config", path, Need::File),
        ModelSource::Shape(_) => Ok(()),
    }
}

/// What reads text: the model, its tokenizer, the chat template; and the machine file.
///
/// # Errors
/// [`TrainError::Path`] with the first key whose path cannot be used.
pub fn reading(run: &Run) -> Result<(), TrainError> {
    model(run)?;
    if let Some(path) = &run.model.tokenizer {
        look("model.tokenizer", path, Need::Either)?;
    }
    if let Some(path) = &run.data.chat_template {
        look("data.chat_template", path, Need::File)?;
    }
    if let Some(path) = &run.plan.machine {
        look("plan.machine", path, Need::File)?;
    }
    Ok(())
}

/// As [`reading`], and the data.
///
/// # Errors
/// As [`reading`].
pub fn inputs(run: &Run) -> Result<(), TrainError> {
    reading(run)?;
    let train: Vec<_> = run.data.train.iter().map(|s| &s.path).collect();
    for (key, paths) in [
        ("data.train", train),
        ("data.eval", run.data.eval.iter().collect()),
    ] {
        for path in paths {
            look(key, path, Need::File)?;
        }
    }
    Ok(())
}

/// Where a run writes.
///
/// # Errors
/// [`TrainError::Path`] where something that is no directory stands in the way.
pub fn outputs(run: &Run) -> Result<(), TrainError> {
    can_be_directory("output", &run.output)?;
    for disk in &run.budget.disk {
        can_be_directory("budget.disk", &disk.dir)?;
    }
    if let Cache::Path(folder) = &run.data.cache {
        can_be_directory("data.cache", folder)?;
    }
    Ok(())
}

/// The checkpoint that `checkpoint.resume` names.
///
/// # Errors
/// [`TrainError::Path`] where there is no directory.
pub fn checkpoint(dir: &Path) -> Result<(), TrainError> {
    look("checkpoint.resume", dir, Need::Directory)
}

/// Where lowtide keeps what it makes for later runs: `LOWTIDE_CACHE`, else in the user's cache.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    if let Some(own) = var("LOWTIDE_CACHE") {
        return Some(own.into());
    }
    let base = var("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("lowtide"))
}

fn look(key: &'static str, path: &Path, need: Need) -> Result<(), TrainError> {
    let problem = match fs::metadata(path) {
        Ok(meta) => wrong_kind(&meta, need),
        Err(e) => Some(match (e.kind(), fs::read_link(path)) {
            (ErrorKind::NotFound, Ok(to)) => PathProblem::Dangling { to },
            (ErrorKind::NotFound, _) => PathProblem::Missing,
            _ => PathProblem::Unreadable(e.to_string()),
        }),
    };
    problem.map_or(Ok(()), |problem| Err(at(key, path, problem)))
}

fn at(key: &'static str, path: &Path, problem: PathProblem) -> TrainError {
    TrainError::Path {
        key,
        path: path.to_owned(),
        problem,
    }
}

fn wrong_kind(meta: &Metadata, need: Need) -> Option<PathProblem> {
    let right = match need {
        Need::File => meta.is_file(),
        Need::Directory => meta.is_dir(),
        Need::Either => meta.is_file() || meta.is_dir(),
    };
    (!right).then(|| PathProblem::Kind {
        found: kind(meta.file_type()),
        needed: need.name(),
    })
}

fn kind(t: FileType) -> &'static str {
    match t {
        t if t.is_dir() => "a directory",
        t if t.is_file() => "a file",
        t if t.is_fifo() => "a named pipe",
        t if t.is_socket() => "a socket",
        t if t.is_char_device() || t.is_block_device() => "a device",
        _ => "neither a file nor a directory",
    }
}

/// Whether a directory is there or can be made: the nearest of its parents that exists is one.
fn can_be_directory(key: &'static str, path: &Path) -> Result<(), TrainError> {
    let mut way = path.ancestors();
    let fail = |at_path: &Path, problem| Err(at(key, at_path, problem));
    way.find_map(|part| match fs::metadata(part) {
        Ok(meta) if meta.is_dir() => Some(Ok(())),
        Ok(meta) => Some(fail(
            part,
            PathProblem::Kind {
                found: kind(meta.file_type()),
                needed: Need::Directory.name(),
            },
        )),
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::read_link(part) {
            Ok(to) => Some(fail(part, PathProblem::Dangling { to })),
            Err(_) => None,
        },
        // A file among the parents; the parents say which.
        Err(e) if e.kind() == ErrorKind::NotADirectory => None,
        Err(e) => Some(fail(part, PathProblem::Unreadable(e.to_string()))),
    })
    .unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_can_be_made_where_no_file_stands_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"x").unwrap();
        let way = |path: &Path| can_be_directory("output", path);
        assert!(way(dir.path()).is_ok() && way(&dir.path().join("a/b/c")).is_ok());
        for path in [file.clone(), file.join("a"), file.join("a/b")] {
            let error = way(&path).unwrap_err();
            assert!(
                matches!(&error, TrainError::Path { path, problem: PathProblem::Kind { found: "a file", .. }, .. }
                    if *path == file),
                "{error}"
            );
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("gone"), &link).unwrap();
        let error = way(&link.join("a")).unwrap_err().to_string();
        assert!(
            error.contains("a symbolic link to") && error.starts_with("output: "),
            "{error}"
        );
    }
}
