//! What a model's configuration asks for and training does without.

use lowtide_config::{ModelSource, Run};
use lowtide_model::{dropout_of, read_config};

use crate::error::TrainError;

/// For people: the dropout that `config.json` asks for and a run trains without.
///
/// # Errors
/// The file, where it cannot be read.
pub fn note_of_dropout(run: &Run) -> Result<Option<String>, TrainError> {
    let (path, name) = match &run.model.source {
        ModelSource::Path(dir) => (dir.join("config.json"), "model.path"),
        ModelSource::Config(path) => (path.clone(), "model.config"),
        ModelSource::Shape(_) => return Ok(None),
    };
    let asked: Vec<String> = dropout_of(&read_config(&path)?)
        .into_iter()
        .map(|(key, share)| format!("{key} {share}"))
        .collect();
    Ok((!asked.is_empty()).then(|| {
        format!(
            "{name}: config.json asks for dropout ({}): the run trains without, and the exported model says what \
             this one does",
            asked.join(", ")
        )
    }))
}
