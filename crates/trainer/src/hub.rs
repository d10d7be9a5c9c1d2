//! Models by their names on the Hugging Face Hub: where the local cache has them, and how they come there.
//!
//! The cache is Hugging Face's own (`HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`). What is not in it is
//! fetched by Hugging Face's own program, `hf` (older: `huggingface-cli`), which knows tokens, proxies, mirrors
//! (`HF_ENDPOINT`) and how to go on with half a file; docs/journal.md says why no library does it. With
//! `HF_HUB_OFFLINE` nothing is fetched.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lowtide_config::{Init, ModelSource, Run};
use lowtide_model::{ModelError, weight_files};

use crate::error::{HubProblem, PathProblem, TrainError};

/// How much of a model a command reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Configuration and tokenizer.
    Text,
    /// Those and the weights.
    Weights,
}

impl Needs {
    /// What is fetched: JSON, text and Jinja files, and safetensors. One pattern, since the two programs differ in how
    /// they take several; no file of PyTorch, ONNX or GGUF matches.
    const fn pattern(self) -> &'static str {
        match self {
            Self::Text => "*.[jt]*",
            Self::Weights => "*.[jst]*",
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
    fn snapshot(self, cache: &Path) -> Option<PathBuf> {
        let repository = cache.join(format!("models--{}--{}", self.org, self.name));
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

/// Puts the directories of the cache in place of a model and a tokenizer that the run names as the Hub does, and that
/// are no paths of this machine. What is missing there is fetched first, which can take long; `tell` is told what is
/// fetched, and where what is used lies. Other runs come back as they are.
///
/// # Errors
/// [`TrainError::Path`] when it is neither there nor can be fetched.
pub fn settle(run: Run, needs: Needs, tell: &mut dyn FnMut(&str)) -> Result<Run, TrainError> {
    let hub = Hub::of_this_process();
    let mut run = run;
    if let (ModelSource::Path(dir), Some(typed)) = (&run.model.source, &run.model.path_typed)
        && let Some(name) = named(dir, typed)
    {
        let needs = match run.model.init {
            Init::Pretrained => needs,
            Init::Random => Needs::Text,
        };
        // With a tokenizer of its own the run reads none of the model's.
        let tokenizer = run.model.tokenizer.as_ref() == Some(dir);
        let lacking = |dir: &Path| lacks(dir, needs, true, tokenizer);
        let found = hub.find(name, needs, &lacking, tell);
        let found = found.map_err(|why| problem("model.path", dir, typed, why))?;
        run.place_model(found);
    }
    if let (Some(path), Some(typed)) = (&run.model.tokenizer, &run.model.tokenizer_typed)
        && let Some(name) = named(path, typed)
    {
        let lacking = |dir: &Path| lacks(dir, Needs::Text, false, true);
        let found = hub.find(name, Needs::Text, &lacking, tell);
        let found = found.map_err(|why| problem("model.tokenizer", path, typed, why))?;
        run.model.tokenizer = Some(found);
    }
    Ok(run)
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

/// The first file that a directory lacks of what is needed.
fn lacks(dir: &Path, needs: Needs, model: bool, tokenizer: bool) -> Option<String> {
    let config = model.then_some("config.json");
    let tokenizer = tokenizer.then_some("tokenizer.json");
    let few = config.into_iter().chain(tokenizer);
    if let Some(name) = few.into_iter().find(|name| !dir.join(name).exists()) {
        return Some(name.to_owned());
    }
    if needs == Needs::Text {
        return None;
    }
    match weight_files(dir) {
        Ok(files) => {
            let gone = files.iter().find(|file| !file.exists())?;
            Some(gone.file_name()?.to_string_lossy().into_owned())
        }
        Err(ModelError::NoWeights { .. }) => Some("model.safetensors".to_owned()),
        // Whoever opens it says what is wrong with it.
        Err(_) => None,
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
        let path = |name| {
            env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let home = || {
            let shared = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
            path("HF_HOME").or_else(|| Some(shared?.join("huggingface")))
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let on = |v: String| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str());
        Self {
            cache: cache.or_else(|| Some(home()?.join("hub"))),
            offline: env::var("HF_HUB_OFFLINE").is_ok_and(on),
            programs: ["hf", "huggingface-cli"].map(OsString::from),
        }
    }

    /// Where a name lies with nothing lacking, fetched if need be.
    fn find(
        &self,
        name: Name<'_>,
        needs: Needs,
        lacking: &dyn Fn(&Path) -> Option<String>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, HubProblem> {
        let cache = self.cache.as_deref().ok_or(HubProblem::NoCache)?;
        let found = || {
            let dir = name.snapshot(cache);
            let lack = dir.as_deref().map(lacking);
            (dir, lack)
        };
        let (dir, lack) = match found() {
            (Some(dir), Some(None)) => (Some(dir), Some(None)),
            (_, before) if self.offline => {
                return Err(HubProblem::Offline {
                    cache: cache.to_owned(),
                    lacks: before.flatten(),
                });
            }
            _ => {
                let (id, revision) = (name.id(), name.revision);
                tell(&format!(
                    "{id} ({revision}) is fetched from the Hugging Face Hub"
                ));
                self.fetch(name, needs, cache)?;
                found()
            }
        };
        match (dir, lack.flatten()) {
            (Some(dir), None) => {
                tell(&format!(
                    "{} ({}): {}",
                    name.id(),
                    name.revision,
                    dir.display()
                ));
                Ok(dir)
            }
            (_, lacks) => Err(HubProblem::Lacks {
                cache: cache.to_owned(),
                lacks: lacks.unwrap_or_else(|| format!("the revision {}", name.revision)),
            }),
        }
    }

    /// Runs the first program that is there, its own progress on standard error, to its end.
    fn fetch(&self, name: Name<'_>, needs: Needs, cache: &Path) -> Result<(), HubProblem> {
        for program in &self.programs {
            let mut command = Command::new(program);
            command
                .args(["download", &name.id(), "--revision", name.revision])
                .args(["--include", needs.pattern(), "--cache-dir"])
                .arg(cache)
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
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => {
                    return Err(HubProblem::Failed {
                        program: program.to_string_lossy().into_owned(),
                        status: e.to_string(),
                    });
                }
            }
        }
        Err(HubProblem::NoProgram {
            cache: cache.to_owned(),
        })
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
        let find = |typed: &str| Name::of(typed).unwrap().snapshot(cache.path());
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
    fn half_a_model_lacks_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let lack = |needs, tokenizer| lacks(dir.path(), needs, true, tokenizer);
        assert_eq!(lack(Needs::Text, true).as_deref(), Some("config.json"));
        write(dir.path().join("config.json"), "{}");
        assert_eq!(lack(Needs::Text, true).as_deref(), Some("tokenizer.json"));
        assert_eq!(lack(Needs::Text, false), None);
        write(dir.path().join("tokenizer.json"), "{}");
        assert_eq!(lack(Needs::Text, true), None);
        let weights = || lack(Needs::Weights, true);
        assert_eq!(weights().as_deref(), Some("model.safetensors"));
        let index = r#"{"weight_map": {"x": "1.safetensors", "y": "2.safetensors"}}"#;
        write(dir.path().join("model.safetensors.index.json"), index);
        write(dir.path().join("1.safetensors"), "");
        assert_eq!(weights().as_deref(), Some("2.safetensors"));
        write(dir.path().join("2.safetensors"), "");
        assert_eq!(weights(), None);
    }
}
