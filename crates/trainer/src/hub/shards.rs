//! Files of a data set that are parts of one, by their names: `train-00000-of-00003.parquet`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::data::MOST;

/// Files whose names say of how many they are, in one folder, with one name and ending: `train-00000-of-00003.parquet`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShardSet {
    /// Folder and name, up to the number.
    before: String,
    ending: String,
    pub(super) count: usize,
}

impl ShardSet {
    /// The paths of those beside these numbers, as `like`, one of these, is named; at most [`MOST`]. They are counted
    /// from 1 where the last number says so, else from 0.
    pub(super) fn missing(&self, numbers: &BTreeSet<usize>, like: &Path) -> Vec<PathBuf> {
        let first = match (numbers.first(), numbers.last()) {
            (Some(1..), Some(last)) if *last == self.count => 1,
            _ => 0,
        };
        let rest = like.to_string_lossy();
        let rest = rest.strip_prefix(&self.before).unwrap_or_default();
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let all = (first..self.count.saturating_add(first)).filter(|n| !numbers.contains(n));
        all.map(|n| PathBuf::from(format!("{}{n:0digits$}{}", self.before, &rest[digits..])))
            .take(MOST)
            .collect()
    }

    /// Whether these are the numbers of all of them, counted from 0 or from 1.
    pub(super) fn is_whole(&self, numbers: &BTreeSet<usize>) -> bool {
        let ends = numbers.first().zip(numbers.last());
        numbers.len() == self.count
            && ends.is_some_and(|(first, last)| *first <= 1 && last + 1 - first == self.count)
    }
}

/// One of them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shard {
    pub(super) set: ShardSet,
    pub(super) number: usize,
}

impl Shard {
    /// By the file's path; `None` where its name does not say of how many it is.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let ending = file.extension()?.to_str()?.to_owned();
        let path = file.to_str()?;
        let (before, of) = path.rsplit_once("-of-")?;
        if of.contains('/') {
            return None;
        }
        let count = of.split(|c: char| !c.is_ascii_digit()).next()?;
        let name = before.trim_end_matches(|c: char| c.is_ascii_digit());
        Some(Self {
            number: before[name.len()..].parse().ok()?,
            set: ShardSet {
                before: name.to_owned(),
                ending,
                count: count.parse().ok()?,
            },
        })
    }
}

impl std::fmt::Display for ShardSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (before, ending) = (&self.before, &self.ending);
        write!(f, "{before}*-of-{:05}*.{ending}", self.count)
    }
}
