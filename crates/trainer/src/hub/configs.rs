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
//! which says `default: true`, else that which is called `default`, else the only one. The text is untrusted: a pattern
//! that could leave the snapshot, or be taken for an option, is none.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::data::{MOST, SPLITS, list, whole};
use super::{Hub, Kind, Name};
use crate::error::HubProblem;

/// Where a repository says what it has.
const README: &str = "README.md";
/// Bytes of it that are read.
const LONGEST: u64 = 4 << 20;
/// Configurations that are looked at, at most, and patterns of a split.
const PATTERNS: usize = 4096;

/// What a part of a data set means by its README.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meant {
    /// It does not say.
    Nothing,
    /// Files that are recognised by their names, as this part.
    Names(String),
    /// Files like these.
    Files(Vec<String>),
    /// One of these parts.
    Several(Vec<String>),
    /// The configuration has no such split; the parts that there are.
    NoSplit(Vec<String>),
}

#[derive(Deserialize)]
struct Front {
    #[serde(default)]
    configs: Vec<Config>,
}

#[derive(Deserialize)]
struct Config {
    config_name: String,
    #[serde(default)]
    default: bool,
    data_dir: Option<String>,
    data_files: Option<Files>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(String),
    Many(Vec<File>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Path(String),
    Split { split: String, path: Paths },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Many(Vec<String>),
}

impl Config {
    /// Its splits with their patterns; of a folder alone none.
    fn splits(&self) -> Vec<(&str, Vec<String>)> {
        let inside = |path: &String| match &self.data_dir {
            Some(dir) => format!("{}/{path}", dir.trim_end_matches('/')),
            None => path.clone(),
        };
        let mut all: Vec<(&str, Vec<String>)> = Vec::new();
        let mut add = |split, path: &String| match all.iter_mut().find(|(own, _)| *own == split) {
            Some((_, paths)) => paths.push(inside(path)),
            None => all.push((split, vec![inside(path)])),
        };
        match &self.data_files {
            None => {}
            Some(Files::One(path)) => add("train", path),
            Some(Files::Many(files)) => {
                for file in files {
                    match file {
                        File::Path(path) => add("train", path),
                        File::Split { split, path } => match path {
                            Paths::One(path) => add(split, path),
                            Paths::Many(paths) => paths.iter().for_each(|path| add(split, path)),
                        },
                    }
                }
            }
        }
        all
    }

    /// The patterns of a split, by its name or by another word for the same.
    fn of_split(&self, split: &str) -> Option<Vec<String>> {
        let alike = |other: &str| {
            let both =
                |(_, words): &(&str, &[&str])| words.contains(&split) && words.contains(&other);
            SPLITS.iter().any(both)
        };
        let mut all = self.splits();
        let exact = all.iter().position(|(own, _)| *own == split);
        let at = exact.or_else(|| all.iter().position(|(own, _)| alike(own)))?;
        Some(all.swap_remove(at).1)
    }

    fn parts(&self) -> Vec<String> {
        let splits = self.splits().into_iter();
        let name = &self.config_name;
        splits.map(|(split, _)| format!("{name}/{split}")).collect()
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
        let mut unasked = None;
        for pattern in like {
            let what = ["--include", pattern];
            match self.fetch(name, Kind::Data, name.revision, &what, part) {
                Ok(()) => {}
                Err(why @ (HubProblem::Offline { .. } | HubProblem::NoProgram { .. })) => {
                    unasked = Some(why);
                    break;
                }
                Err(why) => return Err(why),
            }
        }
        let mut all = Vec::new();
        let dir = name.snapshot(cache, Kind::Data);
        if let Some(dir) = &dir {
            list(dir, (Path::new(""), 0), MOST, &mut all);
        }
        if all.len() > MOST {
            return Err(HubProblem::Many { most: MOST });
        }
        all.sort();
        let mut files: Vec<PathBuf> = Vec::new();
        for pattern in like {
            let more: Vec<&PathBuf> = all
                .iter()
                .filter(|file| is_like(file, pattern) && !files.contains(file))
                .collect();
            // A pattern of which nothing is there, or not all, is no smaller data set.
            let found = more.len() + files.iter().filter(|file| is_like(file, pattern)).count();
            let more: Vec<PathBuf> = more.into_iter().cloned().collect();
            if found == 0 || !whole(&more) {
                return Err(unasked.unwrap_or(HubProblem::NoPart {
                    part: part.to_owned(),
                    has: vec![pattern.clone()],
                }));
            }
            files.extend(more);
        }
        let dir = dir.unwrap_or_default();
        Ok(files.iter().map(|file| dir.join(file)).collect())
    }
}

/// The front matter of a README: what stands between its first line `---` and the next one.
fn front(readme: &str) -> Option<&str> {
    let rest = readme.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let rest = rest
        .strip_prefix("\r\n")
        .or_else(|| rest.strip_prefix('\n'))?;
    let end = rest.find("\n---")?;
    Some(&rest[..end + 1])
}

/// What a part means, `None` where none is named: then it is the split `split`.
fn meant(readme: &str, part: Option<&str>, split: &str) -> Meant {
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: 32 }, };
    let front = front(readme).and_then(|text| {
        // One that another program takes otherwise says nothing here.
        serde_saphyr::from_str_with_options::<Front>(text, options).ok()
    });
    let configs = front.map_or(Vec::new(), |front| front.configs);
    let says = |c: &&Config| c.data_files.is_some() || c.data_dir.is_some();
    let configs: Vec<&Config> = configs.iter().filter(says).take(PATTERNS).collect();
    let named = |name: &str| configs.iter().copied().find(|c| c.config_name == name);
    let default = || {
        let marked = configs.iter().copied().find(|c| c.default);
        let only = || configs.first().copied().filter(|_| configs.len() == 1);
        marked.or_else(|| named("default")).or_else(only)
    };
    let all = || configs.iter().flat_map(|c| c.parts()).collect::<Vec<_>>();
    let (config, split, is_split) = match part {
        None => (default(), split, true),
        Some(part) => match (named(part), part.split_once('/')) {
            (Some(config), _) => (Some(config), split, true),
            (None, Some((name, rest))) => (named(name), rest, true),
            // A set of files may be called so where no split is.
            (None, None) => (default(), part, false),
        },
    };
    let Some(config) = config else {
        let of_split = |c: &&&Config| c.of_split(split).is_some();
        let several: Vec<String> = configs
            .iter()
            .filter(of_split)
            .map(|c| format!("{}/{split}", c.config_name))
            .collect();
        return match &several[..] {
            // Not a configuration: perhaps a folder.
            _ if part.is_some_and(|part| part.contains('/')) => Meant::Nothing,
            [] => Meant::Nothing,
            _ => Meant::Several(several),
        };
    };
    if config.data_files.is_none() {
        let dir = config.data_dir.as_deref().unwrap_or_default();
        let dir = dir.trim_end_matches('/');
        return match is_safe(dir) {
            true => Meant::Names(format!("{dir}/{split}")),
            false => Meant::Nothing,
        };
    }
    match config.of_split(split) {
        Some(patterns) if patterns.len() <= PATTERNS && patterns.iter().all(|p| is_safe(p)) => {
            Meant::Files(patterns)
        }
        Some(_) => Meant::Nothing,
        None if is_split => Meant::NoSplit(all()),
        None => Meant::Nothing,
    }
}

/// Whether a pattern stays inside of a snapshot, and is no option of a program.
fn is_safe(pattern: &str) -> bool {
    let plain = |part: &str| part != ".." && part != "." && !part.is_empty();
    pattern.len() <= 500
        && !pattern.starts_with('-')
        && !pattern.contains(['\\', '\0', '\n'])
        && !pattern.contains("://")
        && pattern.split('/').all(plain)
}

/// Whether a file's path is like a pattern: `*` is any run of characters of a name, `**` of names, `?` one character,
/// `[ab]` one of these.
fn is_like(path: &Path, pattern: &str) -> bool {
    let path: Vec<char> = path.to_string_lossy().chars().collect();
    let pattern: Vec<char> = pattern.chars().collect();
    // Which ends of the pattern so far are reached; a pattern of n characters is gone through n times at most.
    let mut at = vec![false; path.len() + 1];
    at[0] = true;
    let mut i = 0;
    while i < pattern.len() {
        let mut next = vec![false; path.len() + 1];
        let rest = &pattern[i..];
        if rest.starts_with(&['*', '*']) {
            let mut reached = false;
            for (j, here) in at.iter().enumerate() {
                reached |= here;
                next[j] = reached;
            }
            i += 2;
            // `**/` is also no folder.
            if pattern.get(i) == Some(&'/') {
                let folders: Vec<bool> = (0..=path.len())
                    .map(|j| at[j] || j > 0 && next[j - 1] && path[j - 1] == '/')
                    .collect();
                next = folders;
                i += 1;
            }
        } else if rest[0] == '*' {
            let mut reached = false;
            for (j, here) in at.iter().enumerate() {
                reached &= j > 0 && path[j - 1] != '/';
                reached |= here;
                next[j] = reached;
            }
            i += 1;
        } else {
            let (one_of, len) = match rest.iter().position(|c| *c == ']') {
                Some(end) if rest[0] == '[' && end > 1 => (Some(&rest[1..end]), end + 1),
                _ => (None, 1),
            };
            for (j, c) in path.iter().enumerate() {
                let same = match (one_of, rest[0]) {
                    (Some(set), _) => in_set(*c, set),
                    (None, '?') => *c != '/',
                    (None, own) => own == *c,
                };
                next[j + 1] = at[j] && same;
            }
            i += len;
        }
        at = next;
    }
    at[path.len()]
}

/// Whether a character is in a set such as `0-9a` or `!x`.
fn in_set(c: char, set: &[char]) -> bool {
    let (not, set) = match set {
        ['!' | '^', rest @ ..] => (true, rest),
        all => (false, all),
    };
    let mut found = false;
    let mut i = 0;
    while i < set.len() {
        if i + 2 < set.len() && set[i + 1] == '-' {
            found |= (set[i]..=set[i + 2]).contains(&c);
            i += 3;
        } else {
            found |= set[i] == c;
            i += 1;
        }
    }
    found != not && c != '/'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of openai/gsm8k, with more beside it.
    const GSM8K: &str = "---
license: mit
dataset_info:
- config_name: main
  features:
  - name: question
    dtype: string
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: train
    path:
    - socratic/train-*
    - socratic/more.parquet
---

# GSM8K
configs:
";

    fn files(patterns: &[&str]) -> Meant {
        Meant::Files(patterns.iter().map(|p| (*p).to_owned()).collect())
    }

    #[test]
    fn configurations_say_which_files_are_meant() {
        let of = |part| meant(GSM8K, part, "train");
        assert_eq!(of(Some("main/train")), files(&["main/train-*"]));
        assert_eq!(of(Some("main")), files(&["main/train-*"]));
        assert_eq!(
            of(Some("socratic/train")),
            files(&["socratic/train-*", "socratic/more.parquet"])
        );
        assert_eq!(of(Some("main/evaluation")), files(&["main/test-*"]));
        let several = ["main/train", "socratic/train"].map(str::to_owned);
        assert_eq!(of(None), Meant::Several(several.to_vec()));
        assert_eq!(of(Some("train")), Meant::Several(several.to_vec()));
        let parts = ["main/train", "main/test", "socratic/train"].map(str::to_owned);
        assert_eq!(of(Some("socratic/test")), Meant::NoSplit(parts.to_vec()));
        // Folders and sets of files that it does not name are recognised by their names.
        assert_eq!(of(Some("other/train")), Meant::Nothing);
        assert_eq!(of(Some("train_sft")), Meant::Nothing);
    }

    #[test]
    fn one_configuration_is_the_default() {
        let of = |configs: &str, part, split| {
            meant(&format!("---\nconfigs:\n{configs}---\n"), part, split)
        };
        let two = "- config_name: a\n  data_files: a.csv\n- config_name: b\n  DEFAULTdata_files: [b.csv, c.csv]\n";
        let marked = two.replace("DEFAULT", "default: true\n  ");
        assert_eq!(of(&marked, None, "train"), files(&["b.csv", "c.csv"]));
        assert_eq!(of(&marked, Some("a"), "train"), files(&["a.csv"]));
        assert_eq!(
            of(&marked, None, "test"),
            Meant::NoSplit(vec!["a/train".to_owned(), "b/train".to_owned()])
        );
        let called = two
            .replace("DEFAULT", "")
            .replace("name: a", "name: default");
        assert_eq!(of(&called, None, "train"), files(&["a.csv"]));
        let one = "- config_name: x\n  data_files:\n  - {split: train_sft, path: d/s-*}\n";
        assert_eq!(of(one, Some("train_sft"), "train"), files(&["d/s-*"]));
        let dir = "- config_name: x\n  data_dir: en/\n";
        assert_eq!(
            of(dir, Some("x/dev"), "train"),
            Meant::Names("en/dev".to_owned())
        );
        let both = "- config_name: x\n  data_dir: en\n  data_files: '*.json'\n";
        assert_eq!(of(both, None, "train"), files(&["en/*.json"]));
    }

    #[test]
    fn an_untrusted_readme_reaches_nothing_else() {
        for path in [
            "../x/*.csv",
            "/etc/passwd",
            "--include=x",
            "a//b.csv",
            "hf://x/y.csv",
            "a/./b",
        ] {
            let text = format!("---\nconfigs:\n- config_name: x\n  data_files: '{path}'\n---\n");
            assert_eq!(meant(&text, None, "train"), Meant::Nothing, "{path}");
        }
        for text in [
            "",
            "---\n",
            "---\nconfigs: 3\n---\n",
            "---\nconfigs: [\n---\n",
            "no front matter",
            "---\n- a\n---\n",
        ] {
            assert_eq!(meant(text, None, "train"), Meant::Nothing, "{text}");
        }
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        for (path, pattern, want) in [
            ("main/train-0.parquet", "main/train-*", true),
            ("main/train-0.parquet", "*", false),
            ("main/train-0.parquet", "**", true),
            ("main/train-0.parquet", "**/train-*", true),
            ("train-0.parquet", "**/train-*", true),
            ("a/b/c.csv", "a/*.csv", false),
            ("a/b/c.csv", "a/**/*.csv", true),
            ("xtrain-0", "**/train-*", false),
            ("a1.csv", "a?.csv", true),
            ("a/.csv", "a?.csv", false),
            ("a1.csv", "a[0-9].csv", true),
            ("ab.csv", "a[!0-9].csv", true),
            ("ab.csv", "a[0-9].csv", false),
            ("a.csv", "a.csv", true),
            ("a.csvx", "a.csv", false),
            ("", "*", true),
        ] {
            assert_eq!(is_like(Path::new(path), pattern), want, "{path} {pattern}");
        }
    }
}
