//! Data sets by their names on the Hugging Face Hub: which files of a repository a name means.
//!
//! `org/name[@revision][:PART]`, where PART is a split (`train`), a folder and a split (`main/train`), or a file. Without it
//! the split is `train` in `data.train` and `test` in `data.eval`. Splits are told as Hugging Face's `datasets` tells those
//! of a repository without a loader: by a word in the name of a file or of a folder around it; where no file has such a
//! word, all are `train`. What a repository's README says of its configurations is not read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lowtide_config::{Run, Source};

use super::{Hub, Kind, Name, named, problem};
use crate::error::{HubProblem, TrainError};

/// Words that name a split.
const SPLITS: [(&str, &[&str]); 3] = [
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
const ANY: &str = "*.[jpct][sa][orv]*";
/// Files beside the data that say something of it.
const ABOUT: [&str; 4] = [
    "dataset_infos.json",
    "dataset_info.json",
    "config.json",
    "state.json",
];
/// Most files and depth of folders that are looked at: a repository is a stranger's.
const MOST: usize = 100_000;
const DEEPEST: usize = 4;

/// Puts files of the cache in place of data sets that the run names as the Hub does, and that are no paths of this
/// machine. What is missing there is fetched. Other runs come back as they are.
///
/// # Errors
/// [`TrainError::Path`] when a data set is neither there nor can be fetched, or it is not clear which files are meant.
pub fn data(mut run: Run) -> Result<Run, TrainError> {
    let hub = Hub::of_this_process();
    let typed = std::mem::take(&mut run.data.train_typed);
    let mut train = Vec::with_capacity(run.data.train.len());
    for (i, source) in run.data.train.into_iter().enumerate() {
        let found = hub.files("data.train", "train", &source.path, typed.get(i))?;
        train.extend(found.into_iter().map(|path| Source {
            path,
            weight: source.weight,
        }));
    }
    run.data.train = train;
    let typed = std::mem::take(&mut run.data.eval_typed);
    let mut eval = Vec::with_capacity(run.data.eval.len());
    for (i, path) in run.data.eval.iter().enumerate() {
        eval.extend(hub.files("data.eval", "test", path, typed.get(i))?);
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
        let found = self.of_set(name, part.unwrap_or(split));
        found.map_err(|why| problem(key, path, typed, why))
    }

    /// The files of a part of a data set, fetched where the cache does not have them all.
    fn of_set(&self, name: Name<'_>, part: &str) -> Result<Vec<PathBuf>, HubProblem> {
        let cache = self.cache.as_deref().ok_or(HubProblem::NoCache)?;
        let look = || match name.snapshot(cache, Kind::Data) {
            Some(dir) => pick(&dir, part),
            None => Picked::Nothing(Vec::new()),
        };
        let lacks = match name.snapshot(cache, Kind::Data) {
            None => format!("revision {}", name.revision),
            Some(_) => part.to_owned(),
        };
        let mut picked = look();
        for pattern in patterns(part) {
            if matches!(picked, Picked::Files(_) | Picked::Several(_)) {
                break;
            }
            self.fetch(
                name,
                Kind::Data,
                name.revision,
                &["--include", &pattern],
                &lacks,
            )?;
            picked = look();
        }
        match picked {
            Picked::Files(files) => Ok(files),
            Picked::Several(parts) => Err(HubProblem::Several { parts }),
            Picked::Nothing(has) => Err(HubProblem::NoPart {
                part: part.to_owned(),
                has,
            }),
        }
    }
}

/// What is fetched of a repository for a part, one pattern after the other until something is there.
fn patterns(part: &str) -> Vec<String> {
    let (folder, last) = part.rsplit_once('/').map_or(("", part), |(f, l)| (f, l));
    let folder = match folder {
        "" => String::new(),
        folder => format!("{folder}/"),
    };
    if is_data(Path::new(last)) {
        return vec![part.to_owned()];
    }
    match last {
        // A repository of one split names none.
        "train" => vec![format!("{folder}*train*"), format!("{folder}{ANY}")],
        "validation" => vec![format!("{folder}*val*"), format!("{folder}*dev*")],
        split => vec![format!("{folder}*{split}*")],
    }
}

fn is_data(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str());
    ending.is_some_and(|e| ENDINGS.contains(&e))
}

/// What a snapshot has of a part.
#[derive(Debug, PartialEq, Eq)]
enum Picked {
    Files(Vec<PathBuf>),
    /// More than one set of files; each as a part that names it alone.
    Several(Vec<String>),
    /// None, or not all; and the parts that there are.
    Nothing(Vec<String>),
}

/// The files of a snapshot that a part means.
fn pick(dir: &Path, part: &str) -> Picked {
    let mut all = Vec::new();
    list(dir, Path::new(""), 0, &mut all);
    all.sort();
    if is_data(Path::new(part)) {
        return match all.iter().any(|f| f == Path::new(part)) {
            true => Picked::Files(vec![dir.join(part)]),
            false => Picked::Nothing(all.iter().map(|f| f.display().to_string()).collect()),
        };
    }
    // Each file with the folder that it lies in and the split that a word says.
    let mut named: Vec<(String, &str, &PathBuf)> = all
        .iter()
        .filter_map(|file| split_of(file).map(|(folder, split)| (folder, split, file)))
        .collect();
    if named.is_empty() {
        named = all
            .iter()
            .map(|file| (folder_of(file), "train", file))
            .collect();
    }
    let part_of = |folder: &str, split: &str| match folder {
        "" => split.to_owned(),
        folder => format!("{folder}/{split}"),
    };
    let parts: BTreeSet<String> = named.iter().map(|(f, s, _)| part_of(f, s)).collect();
    // As it is written, or a split of whichever folder has it.
    let is = |(folder, split, _): &&(String, &str, &PathBuf)| {
        part_of(folder, split) == part || (!part.contains('/') && *split == part)
    };
    let exact = named.iter().any(|(f, s, _)| part_of(f, s) == part);
    let chosen: Vec<_> = named
        .iter()
        .filter(is)
        .filter(|(f, s, _)| !exact || part_of(f, s) == part)
        .collect();
    let sets: BTreeSet<String> = chosen.iter().map(|(f, s, _)| part_of(f, s)).collect();
    let endings: BTreeSet<_> = chosen.iter().map(|(_, _, file)| file.extension()).collect();
    if sets.len() > 1 {
        return Picked::Several(sets.into_iter().collect());
    }
    let files: Vec<&PathBuf> = chosen.iter().map(|(_, _, file)| *file).collect();
    if endings.len() > 1 {
        return Picked::Several(files.iter().map(|f| f.display().to_string()).collect());
    }
    if files.is_empty() || !whole(&files) {
        return Picked::Nothing(parts.into_iter().collect());
    }
    Picked::Files(files.into_iter().map(|file| dir.join(file)).collect())
}

/// Data files under a folder of a snapshot, by their paths in it. A link to a blob that is gone is none.
fn list(dir: &Path, within: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir.join(within)) else {
        return;
    };
    for entry in entries.flatten() {
        if found.len() >= MOST {
            return;
        }
        let path = within.join(entry.file_name());
        let name = entry.file_name();
        let name = name.to_string_lossy();
        match fs::metadata(dir.join(&path)) {
            Ok(meta) if meta.is_dir() && depth < DEEPEST && !name.starts_with('.') => {
                list(dir, &path, depth + 1, found);
            }
            Ok(meta) if meta.is_file() && is_data(&path) && !ABOUT.contains(&&*name) => {
                found.push(path);
            }
            _ => {}
        }
    }
}

fn folder_of(file: &Path) -> String {
    let folder = file.parent().unwrap_or(Path::new(""));
    folder.display().to_string()
}

/// The folder before the part of a path that names a split, and the split; the last such part counts.
fn split_of(file: &Path) -> Option<(String, &'static str)> {
    let parts: Vec<String> = file
        .iter()
        .map(|part| part.to_string_lossy().to_lowercase())
        .collect();
    for (i, part) in parts.iter().enumerate().rev() {
        let words: Vec<&str> = part.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        for (split, names) in SPLITS {
            if names.iter().any(|name| words.contains(name)) {
                let folder: PathBuf = file.iter().take(i).collect();
                return Some((folder.display().to_string(), split));
            }
        }
    }
    None
}

/// Whether files whose names say of how many they are, `train-00000-of-00003.parquet`, are all there.
fn whole(files: &[&PathBuf]) -> bool {
    let of = files.iter().find_map(|file| {
        let stem = file.file_stem()?.to_str()?;
        let (before, rest) = stem.rsplit_once("-of-")?;
        let number = |text: &str| text.get(..5)?.parse::<usize>().ok();
        number(before.rsplit('-').next()?)?;
        number(rest)
    });
    of.is_none_or(|n| files.len() >= n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    fn files(dir: &tempfile::TempDir, names: &[&str]) -> Picked {
        Picked::Files(names.iter().map(|n| dir.path().join(n)).collect())
    }

    #[test]
    fn splits_are_told_by_words_in_names_of_files_and_folders() {
        let plain = snapshot(&[
            "README.md",
            "dataset_infos.json",
            "train.jsonl",
            "dev.jsonl",
        ]);
        assert_eq!(pick(plain.path(), "train"), files(&plain, &["train.jsonl"]));
        assert_eq!(
            pick(plain.path(), "validation"),
            files(&plain, &["dev.jsonl"])
        );
        assert_eq!(
            pick(plain.path(), "test"),
            Picked::Nothing(vec!["train".to_owned(), "validation".to_owned()])
        );
        assert_eq!(
            pick(plain.path(), "dev.jsonl"),
            files(&plain, &["dev.jsonl"])
        );
        // One folder about it is no question; two are.
        let shards = [
            "data/train-00000-of-00002-ab12.parquet",
            "data/train-00001-of-00002-cd34.parquet",
            "data/test-00000-of-00001.parquet",
        ];
        let data = snapshot(&shards);
        assert_eq!(pick(data.path(), "train"), files(&data, &shards[..2]));
        assert_eq!(pick(data.path(), "data/test"), files(&data, &shards[2..]));
        let two = snapshot(&[
            "main/train-00000-of-00001.parquet",
            "socratic/train-00000-of-00001.parquet",
        ]);
        assert_eq!(
            pick(two.path(), "train"),
            Picked::Several(vec!["main/train".to_owned(), "socratic/train".to_owned()])
        );
        assert_eq!(
            pick(two.path(), "main/train"),
            files(&two, &["main/train-00000-of-00001.parquet"])
        );
        let folders = snapshot(&["train/a.csv", "train/b.csv", "test/a.csv"]);
        assert_eq!(
            pick(folders.path(), "train"),
            files(&folders, &["train/a.csv", "train/b.csv"])
        );
        // Where no file says, all are the training split; a word within a word says nothing.
        let alone = snapshot(&["constraints.json"]);
        assert_eq!(
            pick(alone.path(), "train"),
            files(&alone, &["constraints.json"])
        );
        assert_eq!(
            pick(alone.path(), "test"),
            Picked::Nothing(vec!["train".to_owned()])
        );
    }

    #[test]
    fn a_part_of_the_shards_is_nothing_and_two_makes_are_a_question() {
        let half = snapshot(&["train-00000-of-00002.parquet"]);
        assert_eq!(
            pick(half.path(), "train"),
            Picked::Nothing(vec!["train".to_owned()])
        );
        let both = snapshot(&["train.csv", "train.jsonl"]);
        assert_eq!(
            pick(both.path(), "train"),
            Picked::Several(vec!["train.csv".to_owned(), "train.jsonl".to_owned()])
        );
    }

    #[test]
    fn names_of_data_sets_are_told_from_paths() {
        assert_eq!(set_of("a/b"), Some(("a/b", None)));
        assert_eq!(set_of("a/b:main/train"), Some(("a/b", Some("main/train"))));
        assert_eq!(set_of("a/b:x.jsonl"), Some(("a/b", Some("x.jsonl"))));
        for path in [
            "data/train.jsonl",
            "data/x.parquet",
            "a/b:",
            "a/b:../x",
            "a/b:-x",
            "a/b:x//y",
            "a/b:.",
        ] {
            assert_eq!(set_of(path), None, "{path}");
        }
    }
}
