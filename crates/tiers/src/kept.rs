//! What a kept state file says to whoever looks for it by its directory, without a lock.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::TierError;
use crate::header::{DATA, Header};
use crate::lock::open_own;
use crate::record::{Committed, Kept, read};
use crate::state_file::{self, Found};

/// What the durable run whose first state file is in `dir` has committed; `None` where there is no
/// file, or it is not kept. Takes no lock and changes nothing.
///
/// # Errors
/// [`TierError::BadFile`] when there is something that cannot be read, or was damaged;
/// [`TierError::File`] when the system refuses.
pub fn kept(dir: &Path) -> Result<Option<Kept>, TierError> {
    let path = state_path(dir);
    let Some(header) = kept_header(&path)? else {
        return Ok(None);
    };
    let bad = |what| TierError::BadFile {
        path: path.clone(),
        what,
    };
    let file = open_own(&path, OpenOptions::new().read(true))?;
    let meta = file.metadata();
    let meta = meta.map_err(|e| TierError::file("looking at", &path, &e))?;
    if let Some(what) = state_file::too_short(meta.len(), &header) {
        return Err(bad(what));
    }
    let reserved = reserved_of(&file, &path)?;
    read(header.run, &reserved).map(Some).map_err(bad)
}

/// The last commit of the durable run whose first state file is in `dir`, by its record alone: nothing of the version
/// is read.
///
/// # Errors
/// As [`kept`].
pub fn committed(dir: &Path) -> Result<Option<Committed>, TierError> {
    let kept = kept(dir)?;
    Ok(kept.and_then(|k| k.commits.into_iter().next()))
}

/// The run that asked to keep the state file in `dir`, whether it committed anything or not; `None`
/// where there is no such file. Takes no lock.
///
/// # Errors
/// As [`kept`], for its header.
pub fn kept_by(dir: &Path) -> Result<Option<u128>, TierError> {
    Ok(kept_header(&state_path(dir))?.map(|header| header.run))
}

/// The name of the state file in a directory.
#[must_use]
pub fn state_path(dir: &Path) -> PathBuf {
    dir.join(state_file::NAME)
}

fn kept_header(path: &Path) -> Result<Option<Header>, TierError> {
    match state_file::look(path)? {
        Found::Ours(header) => Ok(header.keep.then_some(*header)),
        Found::Nothing | Found::Stale => Ok(None),
        Found::Foreign(what) => Err(TierError::BadFile {
            path: path.to_owned(),
            what,
        }),
    }
}

fn reserved_of(file: &File, path: &Path) -> Result<Vec<u8>, TierError> {
    let mut reserved = vec![0; DATA as usize];
    let read = file.read_exact_at(&mut reserved, 0);
    read.map_err(|e| TierError::file("reading", path, &e))?;
    Ok(reserved)
}
