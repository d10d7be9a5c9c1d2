//! Why a run is not accepted: the place, the key, what was found and what is allowed.

use std::fmt;
use std::sync::Arc;

use lowtide_files::FileError;

/// Where a value was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the run file; lines and columns count from 1.
    File {
        /// The file as it was named.
        file: Arc<str>,
        /// Line in the file, from 1.
        line: u32,
        /// Column, in characters.
        column: u32,
    },
    /// In a `--set` override, given here whole.
    Set(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Set(text) => write!(f, "--set {text}"),
        }
    }
}

/// Why there is no [`Run`](crate::Run).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The run file cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// The text is not YAML.
    #[error("{at}: not YAML: {why}")]
    Syntax {
        /// Where it stands.
        at: Place,
        /// What the reader of YAML said.
        why: String,
    },
    /// An override is not of the form `key.path=value`.
    #[error("--set {text}: not of the form key.path=value")]
    Set {
        /// The override as it was typed.
        text: String,
    },
    /// No such key.
    #[error("{at}: unknown key '{key}'{}", hint_key(key, nearest, *reason))]
    UnknownKey {
        /// Where it stands.
        at: Place,
        /// The whole key as typed.
        key: String,
        /// The key that was probably meant, whole.
        nearest: Option<String>,
        /// Of a key of other trainers that has no counterpart: why.
        reason: Option<&'static str>,
    },
    /// Several of them in one file.
    #[error("{}", lines(all))]
    UnknownKeys {
        /// Each of them, two or more, in the order of the file.
        all: Vec<ConfigError>,
    },
    /// A file that was to be imported is not of the trainer that is known.
    #[error("{file}: no run file of Axolotl: it has neither base_model nor datasets{}", looks_like(*like))]
    NotAxolotl {
        /// The file as it was named.
        file: String,
        /// The trainers whose keys it has.
        like: Option<&'static str>,
    },
    /// One key twice in one mapping.
    #[error("{at}: key '{key}' was given before, at {first}")]
    DuplicateKey {
        /// The second one.
        at: Place,
        /// The whole key.
        key: String,
        /// The first one.
        first: Place,
    },
    /// A value of another type.
    #[error("{at}: '{key}' is {found}; allowed: {allowed}")]
    WrongType {
        /// Where it stands.
        at: Place,
        /// The whole key.
        key: String,
        /// What was found, in words.
        found: String,
        /// What the key takes.
        allowed: String,
    },
    /// A number or size beyond its limits.
    #[error("{at}: '{key}' is {found}, out of range; allowed: {allowed}")]
    OutOfRange {
        /// Where it stands.
        at: Place,
        /// The whole key.
        key: String,
        /// The value as typed.
        found: String,
        /// The limits, in words.
        allowed: String,
    },
    /// A word that the key does not know.
    #[error("{at}: '{key}' is '{found}'{}; allowed: {allowed}", hint(nearest))]
    UnknownWord {
        /// Where it stands.
        at: Place,
        /// The whole key.
        key: String,
        /// The word as typed.
        found: String,
        /// The word that was probably meant.
        nearest: Option<String>,
        /// The words it knows.
        allowed: String,
    },
    /// A regular expression that is none.
    #[error("{at}: '{key}' is '{found}', no regular expression: {why}")]
    Pattern {
        /// Where it stands.
        at: Place,
        /// The whole key.
        key: String,
        /// The text as typed.
        found: String,
        /// What is wrong with it.
        why: String,
    },
    /// A value that is meant to work and does not yet.
    #[error("{at}: '{key}: {found}' is not supported yet; supported: {supported}")]
    NotSupported {
        /// Where it stands.
        at: Place,
        /// The whole key.
        key: String,
        /// The value as typed.
        found: String,
        /// What is supported today.
        supported: String,
    },
    /// Two values that cannot both hold.
    #[error("{at}: '{key}' and '{other}' cannot both hold: {why}")]
    Conflict {
        /// Where the first of the two keys stands.
        at: Place,
        /// One of the two keys.
        key: String,
        /// The other of the two.
        other: String,
        /// The fact behind it.
        why: String,
    },
    /// A value that means nothing without another.
    #[error("{at}: '{key}' needs {needs}")]
    Needs {
        /// Where the key stands.
        at: Place,
        /// Name of the key, with its section.
        key: String,
        /// What it needs, naming the other key.
        needs: String,
    },
    /// A key that must be there and is not.
    #[error("{file}: '{key}' is missing: {why}")]
    Missing {
        /// The run file.
        file: String,
        /// The key, or the keys one of which is needed.
        key: String,
        /// What it is needed for.
        why: String,
    },
}

impl ConfigError {
    /// Unknown keys as one error; `None` where there are none.
    pub(crate) fn all_unknown(mut all: Vec<Self>) -> Option<Self> {
        match all.len() {
            0 | 1 => all.pop(),
            _ => Some(Self::UnknownKeys { all }),
        }
    }

    /// The key concerned, whole; the first of several; `None` when the file could not be read as keys at all.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Read { .. }
            | Self::Syntax { .. }
            | Self::Set { .. }
            | Self::NotAxolotl { .. } => None,
            Self::UnknownKeys { all } => all.first()?.key(),
            Self::UnknownKey { key, .. }
            | Self::DuplicateKey { key, .. }
            | Self::WrongType { key, .. }
            | Self::OutOfRange { key, .. }
            | Self::UnknownWord { key, .. }
            | Self::Pattern { key, .. }
            | Self::NotSupported { key, .. }
            | Self::Conflict { key, .. }
            | Self::Needs { key, .. }
            | Self::Missing { key, .. } => Some(key),
        }
    }

    /// Where it was typed, where that is known.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Read { .. }
            | Self::Set { .. }
            | Self::Missing { .. }
            | Self::NotAxolotl { .. } => None,
            Self::UnknownKeys { all } => all.first()?.place(),
            Self::Syntax { at, .. }
            | Self::UnknownKey { at, .. }
            | Self::DuplicateKey { at, .. }
            | Self::WrongType { at, .. }
            | Self::OutOfRange { at, .. }
            | Self::UnknownWord { at, .. }
            | Self::Pattern { at, .. }
            | Self::NotSupported { at, .. }
            | Self::Conflict { at, .. }
            | Self::Needs { at, .. } => Some(at),
        }
    }
}

/// Errors, a line each.
fn lines(all: &[ConfigError]) -> String {
    let all = all.iter().map(ToString::to_string);
    all.collect::<Vec<_>>().join("\n")
}

fn looks_like(like: Option<&str>) -> String {
    like.map_or(String::new(), |like| {
        format!("; its keys are those of {like}")
    })
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or(String::new(), |n| format!(", did you mean '{n}'?"))
}

/// A key that is right but dotted inside a file is to be nested.
fn hint_key(key: &str, nearest: &Option<String>, reason: Option<&str>) -> String {
    if let Some(why) = reason {
        return format!("; lowtide has none like it: {why}");
    }
    match (nearest, key.rsplit_once('.')) {
        (Some(n), Some((section, last))) if n == key => {
            format!(", write it as '{last}' inside '{section}'")
        }
        _ => hint(nearest),
    }
}
