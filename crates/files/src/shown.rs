//! Paths in JSON. A path is any bytes, JSON is text: what is not UTF-8 is shown as U+FFFD, as in every
//! message. Nothing reads such a path back.

use std::path::{Path, PathBuf};

use serde::Serializer;
use serde::ser::SerializeSeq;

/// One path.
///
/// # Errors
/// The serializer's.
pub fn path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// A path or none.
///
/// # Errors
/// The serializer's.
pub fn option<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => to.collect_str(&path.display()),
        None => to.serialize_none(),
    }
}

/// Several paths.
///
/// # Errors
/// The serializer's.
pub fn list<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
    let mut list = to.serialize_seq(Some(paths.len()))?;
    for path in paths {
        list.serialize_element(&path.display().to_string())?;
    }
    list.end()
}
