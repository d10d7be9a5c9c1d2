//! Data sets by their names on the Hugging Face Hub: which files of a repository a name means.
//!
//! `org/name[@revision][:PART]`, where PART is a split (`train`), the name of a set of files (`train_sft`), either of
//! them behind a folder (`main/train`), or a file. Without it the split is `train` in `data.train` and `test` in
//! `data.eval`. Where the repository's README lists configurations ([`super::configs`]), PART is `configuration`,
//! `split` or both, `configuration/split`. Else splits are recognised as Hugging Face's `datasets` does for a
//! repository without a loader: by a word in the name of a file or of a folder around it; where no file has such a
//! word, all are `train`.
//!
//! What the cache has of a repository is what somebody has asked for, so it does not say which files there are: the
//! part is asked for each time (`hf` fetches only what is not there), unless `HF_HUB_OFFLINE` is set or there is no
//! `hf`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lowtide_config::{Run, Source};

use super::configs::Meant;
use super::shards::Shard;
use super::{Hub, Kind, Name, named, problem};
use crate::error::{HubProblem, TrainError};

/// Words that name a split.
pub(super) const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    (
        "validation",
        &["validation", "valid", "val", "dev", "development"],
    ),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Endings of data files in a repository; its texts and Markdown are not data.
const ENDINGS: [&str; 5] = ["parquet", "jsonl", "json", "csv", "tsv"];
/// Everything that ends so, in one pattern.
const ANY: &str = ".[jpct][sa][orv]*";
/// Files beside the data that say something of it.
const ABOUT: [&str; 4] = [
    "dataset_infos.json",
    "dataset_info.json",
    "config.json",
    "state.json",
];
/// Most files and depth of folders that are looked at: a repository is untrusted.
pub(super) const MOST: usize = 100_000;
const DEEPEST: usize = 4;

/// Puts files of the cache in place of data sets that the run names as the Hub does, and that are no paths of this
/// machine. What is missing there is fetched. Other runs come back as they are.
///
/// # Errors
/// [`TrainError::Path`] when a data set is neither there nor can be fetched, or it is not clear which files are meant.
pub fn data(run: Run) -> Result<Run, TrainError> {
    placed(run, |key, split, path, typed| {
        Hub::of_this_process().files(key, split, path, typed)
    })
}

/// As [`data`], of what the cache has; a data set that it does not have stays as it is. Nothing is fetched.
#[must_use]
pub fn data_in_cache(run: Run) -> Run {
    let hub = Hub {
        offline: true,
        ..Hub::of_this_process()
    };
    let placed = placed(run, |key, split, path, typed| {
        let found = hub.files(key, split, path, typed);
        Ok(found.unwrap_or_else(|_| vec![path.to_owned()]))
    });
    placed.expect("what is not found stays")
}

fn placed(
    mut run: Run,
    mut files: impl FnMut(
        &'static str,
        &'static str,
        &Path,
        Option<&String>,
    ) -> Result<Vec<PathBuf>, TrainError>,
) -> Result<Run, TrainError> {
    let typed = std::mem::take(&mut run.data.train_typed);
    let mut train = Vec::with_capacity(run.data.train.len());
    for (i, source) in run.data.train.into_iter().enumerate() {
        let found = files("data.train", "train", &source.path, typed.get(i))?;
        train.extend(found.into_iter().map(|path| Source {
            path,
            weight: source.weight,
        }));
    }
    run.data.train = train;
    let typed = std::mem::take(&mut run.data.eval_typed);
    let mut eval = Vec::with_capacity(run.data.eval.len());
    for (i, path) in run.data.eval.iter().enumerate() {
        eval.extend(files("data.eval", "test", path, typed.get(i))?);
    }
    run.data.eval = eval;
    Ok(run)
}

/// A name and its part, if that is what is typed: a name without a part that ends as a data file does is a path.
fn set_of(typed: &str) -> Option<(&str, Option<&str>)> {
    let Some((name, part)) = typed.split_once(':') else {
        let ending = Path::new(typed).extension().and_then(|e| e.to_str());
        let file = ending.is_some_and(|e| ENDINGS.contains(&e) || ["txt", "md", "gz"].contains(&e));
        return (!file).then_some((typed, None));
    };
    let plain = |p: &str| {
        !p.is_empty()
            && p.len() <= 200
            && !p.starts_with(['.', '-'])
            && p.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    part.split('/').all(plain).then_some((name, Some(part)))
}

impl Hub {
    /// The files that are meant by what is typed: `path` itself, unless it is a name.
    fn files(
        &self,
        key: &'static str,
        split: &'static str,
        path: &Path,
        typed: Option<&String>,
    ) -> Result<Vec<PathBuf>, TrainError> {
        let Some(typed) = typed else {
            return Ok(vec![path.to_owned()]);
        };
        let set = set_of(typed).and_then(|(name, part)| Some((named(path, name)?, part)));
        let Some((name, part)) = set else {
            return Ok(vec![path.to_owned()]);
        };
        let found = self.of_set(name, part, split);
        found.map_err(|why| problem(key, path, typed, why))
    }

    /// The files of a part of a data set; `None`: of its split `split`.
    fn of_set(
        &self,
        name: Name<'_>,
        part: Option<&str>,
        split: &str,
    ) -> Result<Vec<PathBuf>, HubProblem> {
        let cache = self.cache.as_deref().ok_or(HubProblem::NoCache)?;
        let said = match part.is_some_and(|part| is_data(Path::new(part))) {
            true => Meant::Nothing,
            false => self.says(name, cache, part, split)?,
        };
        match said {
            Meant::Nothing => self.of_names(name, cache, part.unwrap_or(split)),
            Meant::Names(part) => self.of_names(name, cache, &part),
            Meant::Files(like) => self.of_patterns(name, cache, part.unwrap_or(split), &like),
            Meant::Several(parts) => Err(HubProblem::Several { parts }),
            Meant::NoSplit(has) => Err(HubProblem::NoPart {
                part: part.unwrap_or(split).to_owned(),
                has,
            }),
            Meant::Odd(why) => Err(HubProblem::Readme { why }),
        }
    }

    /// The files of a part that names of files and folders tell.
    fn of_names(
        &self,
        name: Name<'_>,
        cache: &Path,
        part: &str,
    ) -> Result<Vec<PathBuf>, HubProblem> {
        let look = || match name.snapshot(cache, Kind::Data) {
            Some(dir) => pick(&dir, part),
            None => Picked::Nothing(Vec::new()),
        };
        let lacks = match name.snapshot(cache, Kind::Data) {
            None => format!("revision {}", name.revision),
            Some(_) => part.to_owned(),
        };
        let mut unasked = None;
        for pattern in patterns(part) {
            let what: &[&str] = match &pattern {
                Pattern::File(file) => &[file],
                Pattern::Like(like) => &["--include", like],
            };
            match self.fetch(name, Kind::Data, name.revision, what, &lacks) {
                Ok(()) => {}
                // Somebody has filled the cache, and what is there is all that can be had.
                Err(why @ (HubProblem::Offline { .. } | HubProblem::NoProgram { .. })) => {
                    unasked = Some(why);
                    break;
                }
                Err(why) => return Err(why),
            }
            if matches!(
                look(),
                Picked::Files { by_name: true, .. } | Picked::Several(_) | Picked::Many
            ) {
                break;
            }
        }
        match (look(), unasked) {
            (Picked::Files { files, .. }, _) => Ok(files),
            (Picked::Several(parts), _) => Err(HubProblem::Several { parts }),
            (Picked::Many, _) => Err(HubProblem::Many { most: MOST }),
            (Picked::Nothing(_), Some(why)) => Err(why),
            (Picked::Nothing(has), None) => Err(HubProblem::NoPart {
                part: part.to_owned(),
                has,
            }),
        }
    }
}

/// What `hf` is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    File(String),
    Like(String),
}

/// What is fetched of a repository for a part, one after the other until files of that name are there.
fn patterns(part: &str) -> Vec<Pattern> {
    if is_data(Path::new(part)) {
        return vec![Pattern::File(part.to_owned())];
    }
    let (folder, last) = match part.rsplit_once('/') {
        Some((folder, last)) => (format!("{folder}/"), last),
        None => (String::new(), part),
    };
    // A repository of one split names none: last of all everything.
    let words: &[&str] = match last {
        "train" | "training" => &["*[Tt]rain*", "*"],
        "test" | "testing" | "eval" | "evaluation" => &["*[Tt]est*", "*[Ee]val*"],
        "validation" | "valid" | "val" | "dev" | "development" => &["*[Vv]al*", "*[Dd]ev*"],
        other => return vec![Pattern::Like(format!("{folder}*{other}*{ANY}"))],
    };
    let like = |word: &&str| Pattern::Like(format!("{folder}{word}{ANY}"));
    words.iter().map(like).collect()
}

pub(super) fn is_data(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str());
    ending.is_some_and(|e| ENDINGS.contains(&e))
}

/// What a snapshot has of a part.
#[derive(Debug, PartialEq, Eq)]
enum Picked {
    /// By a name that says the split, or since no file says one.
    Files { files: Vec<PathBuf>, by_name: bool },
    /// More than one set of files; each as a part that names it alone.
    Several(Vec<String>),
    /// There are more files than are looked at.
    Many,
    /// None, or not all; and the parts that there are.
    Nothing(Vec<String>),
}

/// Files that belong together: shards of one name, or a folder.
#[derive(Debug, Default)]
struct Set {
    split: &'static str,
    files: Vec<PathBuf>,
}

/// The files of a snapshot that a part means.
fn pick(dir: &Path, part: &str) -> Picked {
    pick_of(dir, part, MOST)
}

/// As [`pick`], where so many files are looked at.
fn pick_of(dir: &Path, part: &str, most: usize) -> Picked {
    let mut all = Vec::new();
    list(dir, (Path::new(""), 0), most, &mut all);
    // What lies behind them may be what is looked for.
    if all.len() > most {
        return Picked::Many;
    }
    all.sort();
    let at = |files: &[PathBuf]| files.iter().map(|file| dir.join(file)).collect();
    if is_data(Path::new(part)) {
        let same = |file: &&PathBuf| file.as_path() == Path::new(part);
        return match all.iter().find(same) {
            Some(file) => Picked::Files {
                files: vec![dir.join(file)],
                by_name: true,
            },
            None => Picked::Nothing(all.iter().map(|f| f.display().to_string()).collect()),
        };
    }
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    for file in &all {
        if let Some((name, split)) = set_of_file(file) {
            let set = sets.entry(name).or_default();
            set.split = split;
            set.files.push(file.clone());
        }
    }
    if sets.is_empty() {
        return match (part, all.is_empty()) {
            ("train", false) if one_kind(&all) => Picked::Files {
                files: at(&all),
                by_name: false,
            },
            ("train", false) => {
                Picked::Several(all.iter().map(|f| f.display().to_string()).collect())
            }
            (_, false) => Picked::Nothing(vec!["train".to_owned()]),
            (_, true) => Picked::Nothing(Vec::new()),
        };
    }
    // By its own name, with or without the folder; else by its split.
    let (folder, last) = part.rsplit_once('/').unwrap_or(("", part));
    let split = SPLITS.iter().find(|(_, words)| words.contains(&last));
    let own =
        |name: &str| name == part || (folder.is_empty() && name.rsplit('/').next() == Some(part));
    let of_split = |name: &str, set: &Set| {
        let within = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        split.is_some_and(|(split, _)| *split == set.split)
            && (folder.is_empty() || folder == within)
    };
    let mut chosen: Vec<(&String, &Set)> = sets.iter().filter(|(name, _)| *name == part).collect();
    if chosen.is_empty() {
        chosen = sets
            .iter()
            .filter(|(name, set)| own(name) || of_split(name, set))
            .collect();
    }
    match &chosen[..] {
        [] => Picked::Nothing(sets.into_keys().collect()),
        [(_, set)] if !one_kind(&set.files) => {
            Picked::Several(set.files.iter().map(|f| f.display().to_string()).collect())
        }
        [(_, set)] if !whole(&set.files) => Picked::Nothing(sets.into_keys().collect()),
        [(_, set)] => Picked::Files {
            files: at(&set.files),
            by_name: true,
        },
        several => Picked::Several(several.iter().map(|(name, _)| (*name).clone()).collect()),
    }
}

/// Whether all files end alike.
fn one_kind(files: &[PathBuf]) -> bool {
    files
        .windows(2)
        .all(|two| two[0].extension() == two[1].extension())
}

/// Data files under a folder of a snapshot, by their paths in it, and one more than `most` at most. A link to a blob
/// that is gone is none.
pub(super) fn list(
    dir: &Path,
    (within, depth): (&Path, usize),
    most: usize,
    found: &mut Vec<PathBuf>,
) {
    let Ok(entries) = fs::read_dir(dir.join(within)) else {
        return;
    };
    for entry in entries.flatten() {
        if found.len() > most {
            return;
        }
        let path = within.join(entry.file_name());
        let name = entry.file_name();
        let name = name.to_string_lossy();
        match fs::metadata(dir.join(&path)) {
            Ok(meta) if meta.is_dir() && depth < DEEPEST && !name.starts_with('.') => {
                list(dir, (&path, depth + 1), most, found);
            }
            Ok(meta) if meta.is_file() && is_data(&path) && !ABOUT.contains(&&*name) => {
                found.push(path);
            }
            _ => {}
        }
    }
}

/// The set that a file belongs to, by the last part of its path that has a split's word, and the split: of
/// `data/train_sft-00000-of-00003.parquet` it is `data/train_sft`, of `a/train/x.csv` `a/train`.
fn set_of_file(file: &Path) -> Option<(String, &'static str)> {
    let parts: Vec<String> = file
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    for (i, part) in parts.iter().enumerate().rev() {
        let lower = part.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let says = |(_, names): &&(&str, &[&str])| names.iter().any(|name| words.contains(name));
        let Some((split, _)) = SPLITS.iter().find(says) else {
            continue;
        };
        let own = match i + 1 == parts.len() {
            true => name_of_set(part),
            false => part,
        };
        let mut set = parts[..i].join("/");
        if i > 0 {
            set.push('/');
        }
        return Some((set + own, split));
    }
    None
}

/// A file's name without its ending and without what numbers it among others.
fn name_of_set(file: &str) -> &str {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    if let Some((number, _)) = stem.rsplit_once("-of-")
        && let Some((name, digits)) = number.rsplit_once('-')
        && !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
    {
        return name;
    }
    let name = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    match name.strip_suffix(['-', '_', '.']) {
        Some(name) if name.len() + 1 < stem.len() => name,
        _ => stem,
    }
}

/// Whether files of one set whose names say of how many they are, `train-00000-of-00003.parquet`, are all there.
fn whole(files: &[PathBuf]) -> bool {
    let shards: Vec<Shard> = files.iter().filter_map(|file| Shard::of(file)).collect();
    let have: BTreeSet<usize> = shards.iter().map(|shard| shard.number).collect();
    shards.iter().all(|shard| shard.set.is_whole(&have))
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
