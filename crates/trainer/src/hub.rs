//! Models and data sets by their names on the Hugging Face Hub: where the local cache has them, and how they come
//! there.
//!
//! The cache is Hugging Face's own (`HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`). What is not in it is
//! fetched by Hugging Face's own program, `hf` (older: `huggingface-cli`), which knows tokens, proxies, mirrors
//! (`HF_ENDPOINT`) and how to resume half a file, and shows its progress on standard error; docs/journal.md says
//! why no library does it. With `HF_HUB_OFFLINE` nothing is fetched. A revision that is in the cache is taken as it
//! is there.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lowtide_config::{Init, ModelSource, Run};
use lowtide_model::{ModelError, weight_files};

use crate::error::{HubProblem, PathProblem, TrainError};

mod configs;
mod data;
mod patterns;
mod shards;

pub(crate) use data::data;
use data::data_in_cache;

/// What fetches configuration and tokenizer: JSON, text and Jinja files of the repository's own folder. One pattern of
/// each kind, since the two programs differ in how they take several.
const TEXT: [&str; 4] = ["--include", "*.[jt][isx]*", "--exclude", "*/*"];
const SINGLE: &str = "model.safetensors";

/// What a repository of the Hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Data,
}

impl Kind {
    /// What its directory in the cache begins with.
    const fn folder(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Data => "datasets",
        }
    }
}

/// A name on the Hub: `org/name`, with `@` and a branch, tag or commit behind it if it is not `main`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name<'a> {
    org: &'a str,
    name: &'a str,
    revision: &'a str,
}

impl<'a> Name<'a> {
    /// Of letters, digits, `-`, `_` and `.`, as the Hub takes them. No part can be taken for a flag, nor lead out of a
    /// directory.
    fn of(typed: &'a str) -> Option<Self> {
        let part = |p: &str| {
            !p.is_empty()
                && p.len() <= 96
                && !p.starts_with(['.', '-'])
                && !p.contains("..")
                && p.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let (id, revision) = typed.split_once('@').unwrap_or((typed, "main"));
        let (org, name) = id.split_once('/')?;
        let known = part(org) && part(name) && revision.split('/').all(part);
        known.then_some(Self {
            org,
            name,
            revision,
        })
    }

    fn id(self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// The directory in which the cache has it at this revision, if it has.
    fn snapshot(self, cache: &Path, kind: Kind) -> Option<PathBuf> {
        let kind = kind.folder();
        let repository = cache.join(format!("{kind}--{}--{}", self.org, self.name));
        let reference = repository.join("refs").join(self.revision);
        let commit = match lowtide_files::read_text(&reference, 128) {
            Ok(text) => text.trim().to_owned(),
            Err(_) => self.revision.to_owned(),
        };
        let hex = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        let dir = repository.join("snapshots").join(&commit);
        (hex && dir.is_dir()).then_some(dir)
    }
}

/// What a run may name as the Hub does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Its model and tokenizer.
    Model,
    /// Its data, too.
    Data,
    /// Its data, too, as far as the cache has them; nothing of them is fetched.
    DataInCache,
}

/// Puts paths of the Hugging Face cache in place of names that the run has, and fetches what is missing there, but for
/// a model's weights.
///
/// # Errors
/// [`TrainError::Path`] when something is neither there nor can be fetched.
pub fn resolve(run: Run, names: Names) -> Result<Run, TrainError> {
    let run = settle(run)?;
    match names {
        Names::Model => Ok(run),
        Names::Data => data(run),
        Names::DataInCache => Ok(data_in_cache(run)),
    }
}

/// Puts the directories of the cache in place of a model and a tokenizer that the run names as the Hub does, and that
/// are no paths of this machine. Configuration and tokenizer are fetched if they are missing there; [`weights`] does so
/// for the rest. Other runs come back as they are.
///
/// # Errors
/// [`TrainError::Path`] when it is neither there nor can be fetched.
pub fn settle(mut run: Run) -> Result<Run, TrainError> {
    let hub = Hub::of_this_process();
    let tokenizer = ["tokenizer.json", "tokenizer_config.json"];
    if let (ModelSource::Path(dir), Some(typed)) = (&run.model.source, &run.model.path_typed)
        && let Some(name) = named(dir, typed)
    {
        let mut wanted = vec!["generation_config.json"];
        // With a tokenizer of its own the run reads none of the model's.
        if run.model.tokenizer.as_ref() == Some(dir) {
            wanted.extend(tokenizer);
        }
        let found = hub.text(name, Some("config.json"), &wanted);
        let found = found.map_err(|why| problem("model.path", dir, typed, why))?;
        run.place_model(found);
    }
    if let (Some(path), Some(typed)) = (&run.model.tokenizer, &run.model.tokenizer_typed)
        && let Some(name) = named(path, typed)
    {
        let found = hub.text(name, None, &tokenizer);
        let found = found.map_err(|why| problem("model.tokenizer", path, typed, why))?;
        run.model.tokenizer = Some(found);
    }
    Ok(run)
}

/// Fetches what is missing of the weights that a settled run begins with. These are gigabytes, so the caller checks
/// everything else first. Nothing is done for models that were not given by name.
///
/// # Errors
/// [`TrainError::Path`] when they are neither there nor can be fetched.
pub fn weights(run: &Run) -> Result<(), TrainError> {
    let (ModelSource::Path(dir), Init::Pretrained, Some(_), Some(typed)) = (
        &run.model.source,
        run.model.init,
        name_of(run),
        &run.model.path_typed,
    ) else {
        return Ok(());
    };
    let name = Name::of(typed).expect("a name, or it would have none");
    let fetched = Hub::of_this_process().weights(name, dir);
    fetched.map_err(|why| problem("model.path", dir, typed, why))
}

/// The name on the Hub by which a settled run's model came.
#[must_use]
pub fn name_of(run: &Run) -> Option<String> {
    let ModelSource::Path(dir) = &run.model.source else {
        return None;
    };
    let name = Name::of(run.model.path_typed.as_deref()?)?;
    let repository = format!("models--{}--{}", name.org, name.name);
    let cached = dir
        .ancestors()
        .any(|d| d.file_name().is_some_and(|n| n == repository.as_str()));
    cached.then(|| name.id())
}

/// The name of what is typed, if nothing lies at the path that it would be.
fn named<'a>(path: &Path, typed: &'a str) -> Option<Name<'a>> {
    let nothing =
        fs::symlink_metadata(path).is_err_and(|e| matches!(e.kind(), ErrorKind::NotFound));
    Name::of(typed).filter(|_| nothing)
}

fn problem(key: &'static str, path: &Path, typed: &str, why: HubProblem) -> TrainError {
    TrainError::Path {
        key,
        path: path.to_owned(),
        problem: PathProblem::Hub {
            name: typed.to_owned(),
            why,
        },
    }
}

/// The files of a model's weights that its directory lacks; of a directory that does not say which, the single file.
fn lacking(dir: &Path) -> Vec<String> {
    let single = || vec![SINGLE.to_owned()];
    let path = dir.join(SINGLE);
    if path.is_symlink() && !path.exists() {
        return single();
    }
    match weight_files(dir) {
        Ok(files) => {
            let gone = files.iter().filter(|file| !file.exists());
            let names = gone.filter_map(|file| file.file_name());
            names.map(|n| n.to_string_lossy().into_owned()).collect()
        }
        Err(ModelError::NoWeights { .. }) => single(),
        // Whoever opens it says what is wrong with it.
        Err(_) => Vec::new(),
    }
}

/// The cache and the programs that fill it.
struct Hub {
    cache: Option<PathBuf>,
    offline: bool,
    programs: [OsString; 2],
}

impl Hub {
    /// As the environment has it, by the rules of `huggingface_hub`.
    fn of_this_process() -> Self {
        let home = || {
            env::var_os("HOME")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let path = |name| {
            let path = env::var_os(name).filter(|v| !v.is_empty())?;
            let path = PathBuf::from(path);
            match path.strip_prefix("~") {
                Ok(rest) => Some(home()?.join(rest)),
                Err(_) => Some(path),
            }
        };
        let shared = || path("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
        let hugging = || path("HF_HOME").or_else(|| Some(shared()?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let on = |v: String| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str());
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];
        Self {
            cache: cache.or_else(|| Some(hugging()?.join("hub"))),
            offline: offline.iter().any(|name| env::var(name).is_ok_and(on)),
            programs: ["hf", "huggingface-cli"].map(OsString::from),
        }
    }

    /// The directory of a name, with the file that it must have. If that file or a wanted one is missing, the Hub is
    /// asked once, because another program may have left only a part there.
    fn text(
        &self,
        name: Name<'_>,
        must: Option<&str>,
        wanted: &[&str],
    ) -> Result<PathBuf, HubProblem> {
        let cache = self.cache.as_deref().ok_or(HubProblem::NoCache)?;
        let lacks = |dir: &Path, file: &str| !dir.join(file).exists();
        let before = name.snapshot(cache, Kind::Model);
        if let Some(dir) = &before
            && !must.iter().chain(wanted).any(|file| lacks(dir, file))
        {
            return Ok(dir.clone());
        }
        let lack = |dir: Option<PathBuf>| match dir {
            None => format!("revision {}", name.revision),
            Some(_) => must.unwrap_or("tokenizer.json").to_owned(),
        };
        let fetched = self.fetch(name, Kind::Model, name.revision, &TEXT, &lack(before));
        match name.snapshot(cache, Kind::Model) {
            Some(dir) if !must.is_some_and(|file| lacks(&dir, file)) => Ok(dir),
            dir => {
                fetched?;
                Err(HubProblem::Lacks {
                    cache: cache.to_owned(),
                    lacks: lack(dir),
                })
            }
        }
    }

    /// Fetches the weights that a snapshot lacks, of its own commit.
    fn weights(&self, name: Name<'_>, snapshot: &Path) -> Result<(), HubProblem> {
        let commit = snapshot.file_name().unwrap_or_default().to_string_lossy();
        let mut lack = lacking(snapshot);
        if lack == [SINGLE] {
            // The index, if there is one, says what else it is.
            self.fetch(name, Kind::Model, &commit, &TEXT, SINGLE)?;
            lack = lacking(snapshot);
        }
        let Some(first) = lack.first().cloned() else {
            return Ok(());
        };
        // Names in an index are untrusted: none may be taken for a flag.
        if lack.iter().all(|file| !file.starts_with('-')) {
            let files: Vec<&str> = lack.iter().map(String::as_str).collect();
            self.fetch(name, Kind::Model, &commit, &files, &first)?;
        }
        match lacking(snapshot).into_iter().next() {
            None => Ok(()),
            Some(lacks) => Err(HubProblem::Lacks {
                cache: self.cache.clone().unwrap_or_default(),
                lacks,
            }),
        }
    }

    /// Whether the first program takes an option several times. It does since 1.0; before it kept the last one.
    fn takes_several(&self) -> bool {
        if self.offline {
            return false;
        }
        let mut command = Command::new(&self.programs[0]);
        command.arg("version").stdin(Stdio::null());
        command.stderr(Stdio::null());
        let said = command.output().map(|out| out.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let number = said.trim_start_matches(|c: char| !c.is_ascii_digit());
        let major = number.split('.').next().and_then(|n| n.parse::<u32>().ok());
        major.is_some_and(|major| major > 0)
    }

    /// Runs the first program that can be started, to its end. `lacks` is what is looked for.
    fn fetch(
        &self,
        name: Name<'_>,
        kind: Kind,
        revision: &str,
        what: &[&str],
        lacks: &str,
    ) -> Result<(), HubProblem> {
        let cache = self.cache.clone().ok_or(HubProblem::NoCache)?;
        let lacks = lacks.to_owned();
        if self.offline {
            return Err(HubProblem::Offline { cache, lacks });
        }
        for program in &self.programs {
            let mut command = Command::new(program);
            command
                .args(["download", &name.id()])
                .args(match kind {
                    Kind::Model => &[][..],
                    Kind::Data => &["--repo-type", "dataset"],
                })
                .args(what)
                .args(["--revision", revision, "--cache-dir"])
                .arg(&cache)
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            match command.status() {
                Ok(status) if status.success() => return Ok(()),
                Ok(status) => {
                    return Err(HubProblem::Failed {
                        program: program.to_string_lossy().into_owned(),
                        status: status.to_string(),
                    });
                }
                // Not there, its interpreter is not, or it may not be run: the other one may serve.
                Err(_) => {}
            }
        }
        Err(HubProblem::NoProgram { cache, lacks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_told_from_paths_and_flags() {
        let of = |typed| Name::of(typed).map(|n| (n.id(), n.revision));
        for name in [
            "Qwen/Qwen2.5-0.5B-Instruct",
            "HuggingFaceTB/SmolLM2-135M",
            "a/b",
        ] {
            assert_eq!(of(name), Some((name.to_owned(), "main")));
        }
        assert_eq!(of("a/b@refs/pr/1"), Some(("a/b".to_owned(), "refs/pr/1")));
        assert_eq!(of("a/b@v1.0"), Some(("a/b".to_owned(), "v1.0")));
        for path in [
            "./Qwen", "../a/b", "/a/b", "a", "a/b/c", "a//b", "a/", "~/a", "a b/c", "ä/b", "",
            "-a/b", "a/-b", "a/b@", "a/b@-x", "a/b@../x", "a/b@a//b", "a/x..y", "a/b@c@d",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_revision_is_looked_up_and_leads_nowhere_else() {
        let cache = tempfile::tempdir().unwrap();
        let at = |path: &str| cache.path().join("models--a--b").join(path);
        let find = |typed: &str| Name::of(typed).unwrap().snapshot(cache.path(), Kind::Model);
        assert_eq!(find("a/b"), None);
        write(at("refs/main"), COMMIT);
        assert_eq!(find("a/b"), None, "named, but not there");
        write(at(&format!("snapshots/{COMMIT}/config.json")), "{}");
        let dir = at("snapshots").join(COMMIT);
        assert_eq!(find("a/b"), Some(dir.clone()));
        assert_eq!(find(&format!("a/b@{COMMIT}")), Some(dir.clone()));
        assert_eq!(find("a/b@v2"), None);
        write(at("refs/pr/1"), &format!("{COMMIT}\n"));
        assert_eq!(find("a/b@pr/1"), Some(dir));
        write(at("refs/main"), "../../../../etc");
        assert_eq!(find("a/b"), None);
    }

    #[test]
    fn half_a_model_lacks_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let lack = || lacking(dir.path());
        assert_eq!(lack(), ["model.safetensors"]);
        std::os::unix::fs::symlink(at("gone"), at(SINGLE)).unwrap();
        assert_eq!(lack(), ["model.safetensors"], "a link to nothing");
        fs::remove_file(at(SINGLE)).unwrap();
        let index = r#"{"weight_map": {"x": "1.safetensors", "y": "2.safetensors"}}"#;
        write(at("model.safetensors.index.json"), index);
        assert_eq!(lack(), ["1.safetensors", "2.safetensors"]);
        write(at("1.safetensors"), "");
        assert_eq!(lack(), ["2.safetensors"]);
        write(at("2.safetensors"), "");
        assert_eq!(lack(), [""; 0]);
    }
}
