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
    /// to the current one, and so are all of a file that is named `@FILE`.
    ///
    /// # Errors
    /// The file cannot be read, or as [`Run::parse`].
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, ConfigError> {
        let here = path.to_str().and_then(|name| name.strip_prefix('@'));
        if let Some(file) = here {
            let text = lowtide_files::read_text(Path::new(file), lowtide_files::SMALL)?;
            return Self::parse(&text, file, &current_dir(), sets);
        }
        let text = lowtide_files::read_text(path, lowtide_files::SMALL)?;
        let whole = std::path::absolute(path).map_err(|source| FileError::Io {
            path: path.to_owned(),
            source,
        })?;
        let base = whole.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, &path.display().to_string(), base, sets)
    }

    /// Overrides that stand in a file, one a line.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn overrides_of(path: &Path) -> Result<Vec<String>, ConfigError> {
        let text = lowtide_files::read_text(path, lowtide_files::SMALL)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        Ok(lines.map(str::to_owned).collect())
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
        let low = Low::read(text, file, base, &current_dir(), sets)?;
        rules::exclusive(&low)?;
        let run = build(&low)?;
        rules::together(&low, &run)?;
        Ok(run)
    }
}

fn current_dir() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
}
