//! Runs whose model classifies: its classes, and which keys have no meaning then.

use std::path::Path;

use lowtide_config::{Format, ModelSource, Run, TrainOn};
use lowtide_data::{ClassFields, Classes, Format as Records, LoadOptions};
use lowtide_model::read_config;
use lowtide_workload::{ModelShape, Objective};
use serde_json::Value;

use crate::error::TrainError;
use crate::inputs::load_options;
use crate::pairs;
use crate::planning::shape_of;

/// The names of a model's classes, in order: those of the run, else those of its `config.json`, else `LABEL_0` and so
/// on, as transformers calls them. `None`: the model predicts the next token.
///
/// # Errors
/// As [`shape_of`].
pub fn names_of(run: &Run, shape: &ModelShape) -> Result<Option<Vec<String>>, TrainError> {
    let Objective::Classes(n) = shape.objective else {
        return Ok(None);
    };
    if !run.model.labels.is_empty() {
        return Ok(Some(run.model.labels.clone()));
    }
    let file = match &run.model.source {
        ModelSource::Path(dir) => Some(dir.join("config.json")),
        ModelSource::Config(path) => Some(path.clone()),
        ModelSource::Shape(_) => None,
    };
    let config = file.as_deref().map(read_config).transpose()?;
    let named = |i: u32| {
        let names = config.as_ref().and_then(|c| c.get("id2label"));
        let name = names.and_then(|names| names.get(i.to_string()));
        let name = name.and_then(Value::as_str).map(str::to_owned);
        name.unwrap_or_else(|| format!("LABEL_{i}"))
    };
    Ok(Some((0..n).map(named).collect()))
}

/// How the run's data files are read, by what its model is trained for.
///
/// # Errors
/// As [`shape_of`]; a key that says what this kind of model has not.
pub fn options_of(run: &Run) -> Result<LoadOptions, TrainError> {
    let shape = shape_of(run)?;
    let options = load_options(run);
    if shape.stacks.is_some() {
        return pairs::options(run, options);
    }
    let Some(names) = names_of(run, &shape)? else {
        return match run.data.format {
            Format::Classification => Err(other(
                "data.format",
                "the model predicts the next token: it has no classes",
            )),
            Format::Seq2seq => Err(other(
                "data.format",
                "the model has no encoder: its records are prompts with completions, chats or texts",
            )),
            _ => {
                let own = ["messages", "prompt", "completion", "text"];
                let why = "the model predicts the next token: its records are prompts with completions, chats or texts";
                no_fields_but(run, &own, why)?;
                Ok(options)
            }
        };
    };
    suits(run)?;
    let fields = &run.data.fields;
    Ok(LoadOptions {
        format: Some(Records::Classes),
        fields: lowtide_data::Fields {
            class: Some(ClassFields {
                text_pair: fields.text_pair.clone(),
                label: fields.label.clone(),
            }),
            ..options.fields
        },
        classes: Some(Classes {
            names,
            tokens_max: run.train.seq as usize,
        }),
        ..options
    })
}

/// Refuses keys that only the data and the answers of decoders have.
fn suits(run: &Run) -> Result<(), TrainError> {
    let d = &run.data;
    let format = !matches!(d.format, Format::Auto | Format::Classification);
    let records = "the model classifies: a record has a text, perhaps a second one, and a label";
    let whole = "the model classifies: a document has one label, its class";
    let keys = [
        ("data.format", format, records),
        ("data.train_on", d.train_on != TrainOn::Assistant, whole),
        ("data.system", d.system.is_some(), records),
        ("data.separator", d.separator.is_some(), records),
        ("data.chat_template", d.chat_template.is_some(), records),
        (
            "eval.generate.exact_match",
            run.eval.generate.exact_match,
            ANSWERS,
        ),
    ];
    no_fields_but(run, &["text", "text_pair", "label"], records)?;
    match keys.into_iter().find(|(_, set, _)| *set) {
        Some((key, _, why)) => Err(other(key, why)),
        None => Ok(()),
    }
}

/// Refuses a name for a field that records of this kind of model do not have: nobody would look for it. `own` are the
/// fields that they have.
pub(crate) fn no_fields_but(run: &Run, own: &[&str], why: &'static str) -> Result<(), TrainError> {
    let f = &run.data.fields;
    let named = [
        ("data.fields.messages", &f.messages),
        ("data.fields.prompt", &f.prompt),
        ("data.fields.completion", &f.completion),
        ("data.fields.text", &f.text),
        ("data.fields.text_pair", &f.text_pair),
        ("data.fields.label", &f.label),
        ("data.fields.source", &f.source),
        ("data.fields.target", &f.target),
    ];
    let unused = named.into_iter().find(|(key, name)| {
        let field = key.rsplit('.').next().unwrap_or(key);
        !own.contains(&field) && *name != field
    });
    match unused {
        Some((key, _)) => Err(other(key, why)),
        None => Ok(()),
    }
}

const ANSWERS: &str = "the model classifies: it gives no answers";

/// Refuses a model that gives no answers to whoever wants some.
///
/// # Errors
/// [`TrainError::OtherKind`]; as [`shape_of`].
pub fn answers(run: &Run) -> Result<(), TrainError> {
    match shape_of(run)?.objective {
        Objective::NextToken => Ok(()),
        Objective::Classes(_) => Err(other("generate", ANSWERS)),
    }
}

/// A key that says what this kind of model has not.
pub(crate) fn other(key: &'static str, why: &'static str) -> TrainError {
    TrainError::OtherKind { key, why }
}

/// What people should hear before a model classifies: its classes, and which of its tensors are new.
///
/// # Errors
/// As [`names_of`], and files of weights that do not fit.
pub(crate) fn notes(run: &Run) -> Result<Vec<String>, TrainError> {
    let shape = shape_of(run)?;
    let Some(names) = names_of(run, &shape)? else {
        return Ok(Vec::new());
    };
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let shown = names[..names.len().min(SHOWN)].join(", ");
    let mut notes = vec![format!("classes: {shown}{more}")];
    if let (ModelSource::Path(dir), lowtide_config::Init::Pretrained) =
        (&run.model.source, run.model.init)
        && let Some(new) = new_tensors(dir, &shape)?
    {
        notes.push(format!(
            "the model's files have no head for these classes: {new} begin at random (deviation 0.02), by the seed"
        ));
    }
    Ok(notes)
}

/// The tensors that files of weights have not, as a list for people.
fn new_tensors(dir: &Path, shape: &ModelShape) -> Result<Option<String>, TrainError> {
    let files = lowtide_model::Checkpoint::open(dir, shape)?;
    let new: Vec<&str> = files.new_tensors().collect();
    Ok((!new.is_empty()).then(|| new.join(", ")))
}
