//! What a data set's README says of its configurations: the `configs` of its front matter.
//!
//! ```yaml
//! configs:
//! - config_name: main
//!   data_files:
//!   - split: train
//!     path: main/train-*
//! ```
//!
//! `data_files` may also be one pattern or a list of them, which are then `train`, and `data_dir` a folder whose files
//! are recognised by their names. As in Hugging Face's `datasets`, the configuration of a name without one is that
//! which says `default: true`, else that which is called `default`, else the only one. Where there are configurations,
//! names of files decide only within one that has no `data_files`. The text is untrusted: a pattern that could leave
//! the snapshot, or be taken for an option, is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::data::{MOST, SPLITS, list};
use super::patterns::{WILD, is_like, is_safe, may_be_data, with_and_without};
use super::shards::Shard;
use super::{Hub, Kind, Name};
use crate::error::HubProblem;

/// Where a repository says what it has.
const README: &str = "README.md";
/// Bytes of it that are read.
const LONGEST: u64 = 4 << 20;
/// Patterns of a split, at most.
const PATTERNS: usize = 256;

/// What a part of a data set means by its README.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meant {
    /// It has no configurations.
    Nothing,
    /// Files that are recognised by their names, as this part.
    Names(String),
    /// Files like these.
    Files(Vec<String>),
    /// One of these parts.
    Several(Vec<String>),
    /// No configuration has such a part; the parts that there are.
    NoSplit(Vec<String>),
    /// What it says cannot be used, and why.
    Odd(String),
}

#[derive(Deserialize)]
struct Front {
    #[serde(default)]
    configs: Value,
}

/// One entry of `configs`.
struct Config {
    name: String,
    default: bool,
    /// What it is made of, or why it cannot be used.
    of: Result<Of, String>,
}

enum Of {
    /// Files of this folder, of the repository where it is empty, by their names.
    Dir(String),
    /// Splits with their patterns.
    Files(Vec<(String, Vec<String>)>),
}

/// A name as YAML may have it: `2024` is one too.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bit) => Some(bit.to_string()),
        _ => None,
    }
}

/// One pattern or several.
fn paths(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(all) => all.iter().map(text).collect(),
        one => Some(vec![text(one)?]),
    }
}

impl Config {
    /// The entry that is `n` behind the first.
    fn of(n: usize, entry: &Value) -> Self {
        let none = Map::new();
        let entry = entry.as_object().unwrap_or(&none);
        let name = entry.get("config_name").and_then(text);
        let of = match &name {
            Some(name) => of_entry(entry).map_err(|why| format!("{name}: {why}")),
            None => Err(format!("entry {} has no config_name", n + 1)),
        };
        Self {
            name: name.unwrap_or_default(),
            default: entry.get("default") == Some(&Value::Bool(true)),
            of,
        }
    }

    /// The patterns of a split, by its name or by another word for the same.
    fn split(&self, split: &str) -> Option<&[String]> {
        let alike = |other: &str| {
            let both =
                |(_, words): &(&str, &[&str])| words.contains(&split) && words.contains(&other);
            SPLITS.iter().any(both)
        };
        let Ok(Of::Files(all)) = &self.of else {
            return None;
        };
        let exact = all.iter().position(|(own, _)| own == split);
        let at = exact.or_else(|| all.iter().position(|(own, _)| alike(own)))?;
        Some(&all[at].1)
    }

    /// Whether it may have a split: of a folder, its files tell.
    fn may_have(&self, split: &str) -> bool {
        self.split(split).is_some() || matches!(self.of, Ok(Of::Dir(_)))
    }

    fn parts(&self) -> Vec<String> {
        let name = &self.name;
        match &self.of {
            Ok(Of::Files(all)) => all.iter().map(|(s, _)| format!("{name}/{s}")).collect(),
            _ => vec![name.clone()],
        }
    }
}

/// What an entry of `configs` is made of.
fn of_entry(entry: &Map<String, Value>) -> Result<Of, String> {
    let key = |key| entry.get(key).filter(|value| !value.is_null());
    let dir = match key("data_dir").map(|dir| text(dir).ok_or("data_dir is no text")) {
        None => String::new(),
        Some(dir) => plain(&dir?).to_owned(),
    };
    if !dir.is_empty() && !is_safe(&dir) {
        return Err(format!("data_dir {dir:?} is no folder of the repository"));
    }
    let Some(files) = key("data_files") else {
        return Ok(Of::Dir(dir));
    };
    let odd = || "data_files is no pattern and no list of patterns or of split and path".to_owned();
    let one = std::slice::from_ref(files);
    let files = files.as_array().map_or(one, |all| &all[..]);
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for file in files {
        let (split, like) = match file {
            Value::Object(of) => {
                let split = of.get("split").and_then(text);
                (split, of.get("path").and_then(paths))
            }
            like => (Some("train".to_owned()), text(like).map(|like| vec![like])),
        };
        let (split, like) = (split.ok_or_else(odd)?, like.ok_or_else(odd)?);
        let mut inside = Vec::with_capacity(like.len());
        for like in &like {
            let like = match dir.is_empty() {
                true => plain(like).to_owned(),
                false => format!("{dir}/{}", plain(like)),
            };
            if !is_safe(&like) {
                return Err(format!("{like:?} is no path of the repository"));
            }
            inside.push(like);
        }
        match all.iter_mut().find(|(own, _)| *own == split) {
            Some((_, before)) => before.extend(inside),
            None => all.push((split, inside)),
        }
    }
    match all.iter().find(|(_, like)| like.len() > PATTERNS) {
        Some((split, _)) => Err(format!("{split} has more than {PATTERNS} paths")),
        None => Ok(Of::Files(all)),
    }
}

/// A path without what says only that it is one of the repository.
fn plain(path: &str) -> &str {
    let path = path.strip_prefix("./").unwrap_or(path);
    match path.strip_suffix('/').unwrap_or(path) {
        "." => "",
        path => path,
    }
}

impl Hub {
    /// What the README of a repository says of a part. One that has none says nothing, and so does one that cannot be
    /// fetched where the cache has none: whether the data can is seen then.
    pub(super) fn says(
        &self,
        name: Name<'_>,
        cache: &Path,
        part: Option<&str>,
        split: &str,
    ) -> Result<Meant, HubProblem> {
        let what = ["--include", README];
        match self.fetch(name, Kind::Data, name.revision, &what, README) {
            Ok(()) | Err(HubProblem::Offline { .. } | HubProblem::NoProgram { .. }) => {}
            Err(why) => return Err(why),
        }
        let file = name.snapshot(cache, Kind::Data).map(|dir| dir.join(README));
        let mut text = Vec::new();
        if let Some(Ok(file)) = file.map(fs::File::open) {
            // What cannot be read says nothing.
            let _ = file.take(LONGEST).read_to_end(&mut text);
        }
        Ok(meant(&String::from_utf8_lossy(&text), part, split))
    }

    /// The files of a snapshot that are like one of some patterns, in the patterns' order.
    pub(super) fn of_patterns(
        &self,
        name: Name<'_>,
        cache: &Path,
        part: &str,
        like: &[String],
    ) -> Result<Vec<PathBuf>, HubProblem> {
        if let Some(pattern) = like.iter().find(|pattern| !may_be_data(pattern)) {
            return Err(HubProblem::Ending {
                pattern: pattern.clone(),
            });
        }
        let asked: BTreeSet<String> = like.iter().flat_map(|p| with_and_without(p)).collect();
        let unasked = match self.fetch_like(name, &asked, part) {
            Ok(()) => None,
            Err(why @ (HubProblem::Offline { .. } | HubProblem::NoProgram { .. })) => Some(why),
            Err(why) => return Err(why),
        };
        let mut all = Vec::new();
        let dir = name.snapshot(cache, Kind::Data);
        if let Some(dir) = &dir {
            list(dir, (Path::new(""), 0), MOST, &mut all);
        }
        if all.len() > MOST {
            return Err(HubProblem::Many { most: MOST });
        }
        all.sort();
        match matching(&all, like) {
            Ok(files) => {
                let dir = dir.unwrap_or_default();
                Ok(files.into_iter().map(|file| dir.join(file)).collect())
            }
            // What is not there, or not all of it, is no smaller data set.
            Err(lacks) => Err(unasked.unwrap_or(HubProblem::NoPart {
                part: part.to_owned(),
                has: vec![lacks],
            })),
        }
    }

    /// Fetches the files that are like one of some patterns: at once where the program takes several. The older ones
    /// keep the last of several only.
    fn fetch_like(
        &self,
        name: Name<'_>,
        like: &BTreeSet<String>,
        part: &str,
    ) -> Result<(), HubProblem> {
        let include = |p: &String| ["--include".to_owned(), p.clone()];
        let fetch = |what: Vec<String>| {
            let what: Vec<&str> = what.iter().map(String::as_str).collect();
            self.fetch(name, Kind::Data, name.revision, &what, part)
        };
        match like.len() > 1 && self.takes_several() {
            true => fetch(like.iter().flat_map(include).collect()),
            false => like.iter().try_for_each(|p| fetch(include(p).to_vec())),
        }
    }
}

/// The files that are like one of some patterns, in the patterns' order. Else a pattern that none is like, or a set of
/// files, as `train-*-of-00002.parquet`, of which shards are missing that a pattern with a wildcard means.
fn matching<'a>(all: &'a [PathBuf], like: &[String]) -> Result<Vec<&'a PathBuf>, String> {
    let (mut taken, mut files) = (BTreeSet::new(), Vec::new());
    // Sets that patterns mean, each with one of its files: of a shard that is named alone nobody says so.
    let mut meant = BTreeMap::new();
    for pattern in like {
        let literal = pattern.split(WILD).next().unwrap_or_default();
        let begins = |file: &PathBuf| file.to_string_lossy().starts_with(literal);
        let mut found = false;
        for file in all.iter().filter(|f| begins(f) && is_like(f, pattern)) {
            found = true;
            if taken.insert(file) {
                files.push(file);
            }
            if pattern.contains(WILD)
                && let Some(shard) = Shard::of(file)
            {
                meant.insert(shard.set, file);
            }
        }
        if !found {
            return Err(pattern.clone());
        }
    }
    let shards: BTreeSet<Shard> = files.iter().filter_map(|file| Shard::of(file)).collect();
    let wild = |file: &PathBuf| {
        let mut wild = like.iter().filter(|pattern| pattern.contains(WILD));
        wild.any(|pattern| is_like(file, pattern))
    };
    let mut looked = 0;
    for (set, file) in meant {
        let numbers: BTreeSet<usize> = shards
            .iter()
            .filter(|shard| shard.set == set)
            .map(|shard| shard.number)
            .collect();
        if set.is_whole(&numbers) {
            continue;
        }
        // Shards that no pattern means are left out with reason: `train-0000*` are the first ten.
        let missing = set.missing(&numbers, file);
        looked += missing.len();
        if missing.is_empty() || looked >= MOST || missing.iter().any(wild) {
            return Err(set.to_string());
        }
    }
    Ok(files)
}

/// The front matter of a README: what stands between its first line `---` and the next one.
fn front(readme: &str) -> Option<&str> {
    let readme = readme.trim_start_matches('\u{feff}').trim_start();
    let rest = readme.strip_prefix("---")?;
    let rest = rest
        .strip_prefix("\r\n")
        .or_else(|| rest.strip_prefix('\n'))?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end_matches(['\r', '\n']) == "---" {
            return Some(&rest[..at]);
        }
        at += line.len();
    }
    None
}

/// The configurations of a README; none where it has none.
fn configs(readme: &str) -> Result<Vec<Config>, String> {
    let Some(text) = front(readme) else {
        return Ok(Vec::new());
    };
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: 32 }, };
    match serde_saphyr::from_str_with_options::<Front>(text, options) {
        Ok(front) => match &front.configs {
            Value::Null => Ok(Vec::new()),
            Value::Array(all) => {
                let all = all.iter().enumerate();
                Ok(all.map(|(n, entry)| Config::of(n, entry)).collect())
            }
            _ => Err("configs is no list".to_owned()),
        },
        Err(e) if text.lines().any(|line| line.starts_with("configs:")) => {
            let why = e.to_string();
            Err(why.lines().next().unwrap_or_default().to_owned())
        }
        // One that is not YAML, or no mapping, has none either.
        Err(_) => Ok(Vec::new()),
    }
}

/// What a part means, `None` where none is named: then it is the split `split`.
fn meant(readme: &str, part: Option<&str>, split: &str) -> Meant {
    let configs = match configs(readme) {
        Ok(configs) if configs.is_empty() => return Meant::Nothing,
        Ok(configs) => configs,
        Err(why) => return Meant::Odd(why),
    };
    let named = |name: &str| configs.iter().find(|c| c.name == name && !name.is_empty());
    let default = || {
        let marked = configs.iter().find(|c| c.default);
        let only = || configs.first().filter(|_| configs.len() == 1);
        marked.or_else(|| named("default")).or_else(only)
    };
    let (config, split) = match part {
        None => (default(), split),
        Some(part) => match (named(part), part.rsplit_once('/')) {
            (Some(config), _) => (Some(config), split),
            (None, Some((name, rest))) => (named(name), rest),
            (None, None) => (default(), part),
        },
    };
    let all = || configs.iter().flat_map(Config::parts).collect();
    let Some(config) = config else {
        if part.is_some_and(|part| part.contains('/')) {
            return Meant::NoSplit(all());
        }
        let several: Vec<String> = configs
            .iter()
            .filter(|c| c.may_have(split))
            .map(|c| format!("{}/{split}", c.name))
            .collect();
        let odd = configs.iter().find_map(|c| c.of.as_ref().err());
        return match (several.is_empty(), odd) {
            (false, _) => Meant::Several(several),
            (true, Some(why)) => Meant::Odd(why.clone()),
            (true, None) => Meant::NoSplit(all()),
        };
    };
    match &config.of {
        Err(why) => Meant::Odd(why.clone()),
        Ok(Of::Dir(dir)) if dir.is_empty() => Meant::Names(split.to_owned()),
        Ok(Of::Dir(dir)) => Meant::Names(format!("{dir}/{split}")),
        Ok(Of::Files(_)) => match config.split(split) {
            Some(patterns) => Meant::Files(patterns.to_vec()),
            None => Meant::NoSplit(all()),
        },
    }
}

#[cfg(test)]
#[path = "configs_tests.rs"]
mod tests;
