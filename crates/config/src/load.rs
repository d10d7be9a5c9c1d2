//! From a run file to a run: typed, built, held against the rules.

use std::path::{Path, PathBuf};

use lowtide_files::FileError;

use crate::build::build;
use crate::error::ConfigError;
use crate::low::Low;
use crate::rules;
use crate::run::Run;

impl Run {
    /// Reads a run file and overrides of the form `key.path=value`, later ones over earlier ones
    /// and all over the file. Paths in the file are relative to its directory, paths in overrides
    /// to the current one.
    ///
    /// # Errors
    /// The file cannot be read, or as [`Run::parse`].
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, ConfigError> {
        let text = lowtide_files::read_text(path, lowtide_files::SMALL)?;
        let whole = std::path::absolute(path).map_err(|source| FileError::Io {
            path: path.to_owned(),
            source,
        })?;
        let base = whole.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, &path.display().to_string(), base, sets)
    }

    /// Checks a run file's text. `file` names it in errors; its paths are relative to `base`.
    ///
    /// # Errors
    /// The text is not YAML, a key is unknown, given twice or missing, a value is of another type
    /// or beyond its limits, or two values cannot both hold. The first one found is reported.
    pub fn parse(
        text: &str,
        file: &str,
        base: &Path,
        sets: &[String],
    ) -> Result<Self, ConfigError> {
        let current = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let low = Low::read(text, file, base, &current, sets)?;
        rules::exclusive(&low)?;
        let run = build(&low)?;
        rules::together(&low, &run)?;
        Ok(run)
    }
}
