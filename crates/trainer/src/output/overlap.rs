//! A run's outputs held against its inputs: what is read must not be what is replaced.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lowtide_config::{ModelSource, Run};

use super::{CHECKPOINTS, FILES, FOLDERS, MODEL, resolved};
use crate::error::TrainError;

/// Refuses a run one of whose inputs stands where an output goes.
pub(super) fn refuse(run: &Run) -> Result<(), TrainError> {
    let inputs = inputs(run);
    for name in [MODEL, CHECKPOINTS] {
        let target = run.output.join(name);
        for (key, input) in &inputs {
            if is_inside(input, &target) || files_of(input).iter().any(|f| is_inside(f, &target)) {
                return Err(overlap(key, input, target));
            }
        }
    }
    for name in FILES {
        let target = run.output.join(name);
        if let Some((key, input)) = inputs.iter().find(|(_, input)| is_same(input, &target)) {
            return Err(overlap(key, input, target));
        }
    }
    for (key, input) in inputs.iter().filter(|i| MODELS.contains(&i.0)) {
        if is_same(input, &run.output) {
            return Err(overlap(key, input, run.output.clone()));
        }
    }
    Ok(())
}

/// Refuses a directory for a run's model to be exported to that is part of what the run writes, or has one of its
/// inputs in it.
pub(crate) fn refuse_export(run: &Run, to: &Path) -> Result<(), TrainError> {
    for name in FOLDERS {
        let own = run.output.join(name);
        if is_inside(to, &own) {
            return Err(TrainError::OwnOutput {
                path: to.to_owned(),
                own,
            });
        }
    }
    let inputs = inputs(run);
    match inputs.iter().find(|(_, input)| is_inside(input, to)) {
        Some((key, input)) => Err(overlap(key, input, to.to_owned())),
        None => Ok(()),
    }
}

fn overlap(key: &'static str, input: &Path, output: PathBuf) -> TrainError {
    TrainError::Overlap {
        key,
        input: input.to_owned(),
        output,
    }
}

/// Keys of directories that a run reads and must not become.
const MODELS: [&str; 2] = ["model.path", "model.tokenizer"];

/// What a run reads, but for its checkpoint and its rates: both may be its own from before.
fn inputs(run: &Run) -> Vec<(&'static str, PathBuf)> {
    let mut all = Vec::new();
    match &run.model.source {
        ModelSource::Path(path) => all.push(("model.path", path.clone())),
        ModelSource::Config(path) => all.push(("model.config", path.clone())),
        ModelSource::Shape(_) => {}
    }
    all.extend(run.model.tokenizer.clone().map(|p| ("model.tokenizer", p)));
    all.extend(
        run.data
            .train
            .iter()
            .map(|s| ("data.train", s.path.clone())),
    );
    all.extend(run.data.eval.iter().map(|p| ("data.eval", p.clone())));
    let template = run.data.chat_template.clone();
    all.extend(template.map(|p| ("data.chat_template", p)));
    all
}

/// The files of an input directory, which may lie elsewhere: model directories are often links.
fn files_of(input: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(input).into_iter().flatten().flatten();
    entries.map(|e| e.path()).collect()
}

fn is_same(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => resolved(a) == resolved(b),
    }
}

/// Whether `path` is `dir` or in it, by whatever way it is named.
fn is_inside(path: &Path, dir: &Path) -> bool {
    resolved(path).ancestors().any(|above| is_same(above, dir))
}
