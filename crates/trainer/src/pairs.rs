//! Runs whose model has an encoder and a decoder: what their data are, where decoding starts, and which keys have no
//! meaning then.

use lowtide_config::{Format, ModelSource, Run, TrainOn};
use lowtide_data::{Fields, Format as Records, LoadOptions, PairFields, Targets};
use lowtide_model::read_config;
use lowtide_workload::ModelShape;
use serde_json::Value;

use crate::classes::{no_fields_but, other};
use crate::error::TrainError;
use crate::planning::shape_of;

/// Whether a run's model has an encoder and a decoder.
///
/// # Errors
/// As [`shape_of`].
pub fn has(run: &Run) -> Result<bool, TrainError> {
    Ok(shape_of(run)?.stacks.is_some())
}

/// How records of source and target are read.
///
/// # Errors
/// A key that says what this kind of model has not, or not yet.
pub(crate) fn options(run: &Run, options: LoadOptions) -> Result<LoadOptions, TrainError> {
    suits(run)?;
    let fields = &run.data.fields;
    Ok(LoadOptions {
        format: Some(Records::Pair),
        fields: Fields {
            pair: Some(PairFields {
                source: fields.source.clone(),
                target: fields.target.clone(),
            }),
            ..options.fields
        },
        ..options
    })
}

/// Refuses keys that only the data and the answers of other models have.
fn suits(run: &Run) -> Result<(), TrainError> {
    let d = &run.data;
    let format = !matches!(d.format, Format::Auto | Format::Seq2seq);
    let records = "the model has an encoder and a decoder: a record has a source and a target";
    let loss = "the model has an encoder and a decoder: the loss is that of targets";
    let whole = "the rows of a model with an encoder and a decoder are not streamed yet";
    let cached = "answers of a model with an encoder and a decoder have no KV cache yet";
    let target = "the model has an encoder and a decoder: a target has 2 tokens or more";
    let generate = &run.eval.generate;
    let keys = [
        ("data.format", format, records),
        ("data.train_on", d.train_on != TrainOn::Assistant, loss),
        ("data.system", d.system.is_some(), records),
        ("data.separator", d.separator.is_some(), records),
        ("data.chat_template", d.chat_template.is_some(), records),
        ("data.streaming", d.streaming, whole),
        ("train.target", run.train.target < 2, target),
        ("eval.generate.cached", generate.cached.is_some(), cached),
    ];
    no_fields_but(run, &["source", "target"], records)?;
    match keys.into_iter().find(|(_, set, _)| *set) {
        Some((key, _, why)) => Err(other(key, why)),
        None => Ok(()),
    }
}

/// The targets of a run's rows.
///
/// # Errors
/// As [`start_of`].
pub(crate) fn targets_of(run: &Run) -> Result<Targets, TrainError> {
    Ok(Targets {
        len: run.train.target as usize,
        start: start_of(run, &shape_of(run)?)?,
    })
}

/// As [`start_of`]; `None` of a model without an encoder.
///
/// # Errors
/// As [`start_of`].
pub(crate) fn start_if_any(run: &Run, shape: &ModelShape) -> Result<Option<i32>, TrainError> {
    let has = shape.stacks.is_some();
    has.then(|| start_of(run, shape)).transpose()
}

/// The token that decoding starts with, of a model with an encoder: the `decoder_start_token_id` of `config.json`, else
/// its `pad_token_id`, as T5's authors have it, else 0. Of other models 0, which nobody reads.
///
/// # Errors
/// A file that cannot be read; an id that is none of the model's tokens.
pub fn start_of(run: &Run, shape: &ModelShape) -> Result<i32, TrainError> {
    if shape.stacks.is_none() {
        return Ok(0);
    }
    let path = match &run.model.source {
        ModelSource::Path(dir) => dir.join("config.json"),
        ModelSource::Config(path) => path.clone(),
        ModelSource::Shape(_) => return Ok(0),
    };
    let config = read_config(&path)?;
    for key in ["decoder_start_token_id", "pad_token_id"] {
        let Some(value) = config.get(key).filter(|value| **value != Value::Null) else {
            continue;
        };
        let known = |id: &i64| *id >= 0 && *id < i64::from(shape.vocab);
        let id = value.as_i64().filter(known);
        return id.map(|id| id as i32).ok_or_else(|| TrainError::File {
            path,
            what: format!(
                "{key} is {value}, and the model's tokens are 0 to {}",
                shape.vocab - 1
            ),
        });
    }
    Ok(0)
}
