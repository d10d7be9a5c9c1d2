//! Hugging Face's `config.json` to a [`ModelShape`] and back.
//!
//! What the configuration says and this crate cannot do is an error, never ignored: a model that
//! trains with another attention than it was made with is worse than none. Dropout is the one
//! exception: fine-tuning here has none, whatever the file asks for ([`dropout_of`] says it). Absent keys have the
//! defaults of transformers' configuration classes. What the keys of a family mean stands in the family's file
//! ([`crate::families`]).

pub(crate) mod keys;

use std::fs;
use std::path::Path;

use keys::{Config, bad, unsupported};
use lowtide_files::FileError;
use lowtide_workload::{Dtype, ModelShape};
use serde_json::{Map, Value, json};

use crate::describe::check;
use crate::{ModelError, families};

/// Reads `config.json` in `dir`; the model is named after the directory.
///
/// # Errors
/// As [`load_shape_for`].
pub fn load_shape(dir: &Path) -> Result<ModelShape, ModelError> {
    load_shape_for(dir, u32::MAX)
}

/// The same for sequences of at most `longest` tokens.
///
/// # Errors
/// [`ModelError::Config`] with the file and one of [`parse_config_for`]'s; when the file cannot be read or is
/// not JSON.
pub fn load_shape_for(dir: &Path, longest: u32) -> Result<ModelShape, ModelError> {
    let path = dir.join("config.json");
    let json = match read_config(&path) {
        Err(ModelError::File(FileError::Missing { .. })) if dir.is_dir() => {
            let others = [
                "params.json",
                "adapter_config.json",
                ".gguf",
                "model_index.json",
            ];
            return Err(ModelError::NoConfig {
                found: lowtide_files::find(dir, &others),
                dir: dir.to_owned(),
            });
        }
        json => json?,
    };
    let full = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name = full
        .file_name()
        .map_or_else(|| "model".into(), |n| n.to_string_lossy());
    parse_of(&path, &json, &name, longest)
}

/// The shape that the configuration in a file describes, for sequences of at most `longest` tokens; the model
/// is named after the file's directory.
///
/// # Errors
/// As [`load_shape_for`].
pub fn load_config_for(path: &Path, longest: u32) -> Result<ModelShape, ModelError> {
    let name = path
        .parent()
        .and_then(Path::file_name)
        .map_or("model".into(), |n| n.to_string_lossy());
    parse_of(path, &read_config(path)?, &name, longest)
}

fn parse_of(path: &Path, json: &Value, name: &str, longest: u32) -> Result<ModelShape, ModelError> {
    parse_config_for(json, name, longest).map_err(|e| ModelError::Config {
        path: path.to_owned(),
        source: Box::new(e),
    })
}

/// The JSON of a `config.json`, in which no key has two values.
///
/// # Errors
/// [`ModelError::File`].
pub fn read_config(path: &Path) -> Result<Value, ModelError> {
    let bytes = lowtide_files::read(path, lowtide_files::SMALL)?;
    let json = lowtide_files::unique_json(&bytes);
    Ok(json.map_err(|problem| FileError::Json {
        path: path.to_owned(),
        problem,
    })?)
}

/// The shape that a `config.json` describes, named `name`, for sequences of any length.
///
/// # Errors
/// As [`parse_config_for`].
pub fn parse_config(json: &Value, name: &str) -> Result<ModelShape, ModelError> {
    parse_config_for(json, name, u32::MAX)
}

/// The shape that a `config.json` describes, named `name`, for sequences of at most `longest` tokens:
/// attention to a window that is no shorter is attention to all of them.
///
/// # Errors
/// [`ModelError::MissingKey`], [`ModelError::BadValue`] or [`ModelError::Unsupported`] with the
/// key; [`ModelError::Dimensions`] when the sizes do not go together.
pub fn parse_config_for(json: &Value, name: &str, longest: u32) -> Result<ModelShape, ModelError> {
    let Some(map) = json.as_object() else {
        return Err(bad("config.json", json, "an object"));
    };
    let config = Config { map };
    for (key, value) in dropouts(map) {
        if !value.as_f64().is_some_and(|p| (0.0..1.0).contains(&p)) {
            return Err(bad(key, value, "a share from 0 to below 1"));
        }
    }
    if let Some(value) = config.get("quantization_config") {
        return Err(unsupported(
            "quantization_config",
            value,
            "none: bf16, f16 or f32 weights",
        ));
    }
    let kind = config.required("model_type")?;
    let Some((of_type, family)) = kind.as_str().and_then(families::of_type) else {
        return Err(unsupported("model_type", kind, families::types()));
    };
    let shape = family.parse(&config, of_type, name, longest)?;
    check::shape(&shape)?;
    Ok(shape)
}

/// The keys of a configuration that ask for dropout, whatever their values; null asks for none.
fn dropouts(map: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    let ends = ["dropout", "_pdrop", "dropout_prob", "dropout_rate"];
    let is_dropout = move |key: &str| ends.iter().any(|end| key.ends_with(end));
    let all = map.iter().map(|(key, value)| (key.as_str(), value));
    all.filter(move |(key, value)| is_dropout(key) && !value.is_null())
}

/// Which dropout a configuration asks for, key and share: training here has none. That of a head counts where the
/// model has it: in a model that classifies.
#[must_use]
pub fn dropout_of(config: &Value) -> Vec<(String, f64)> {
    let Some(map) = config.as_object() else {
        return Vec::new();
    };
    let asked = dropouts(map).filter_map(|(key, value)| Some((key.to_owned(), value.as_f64()?)));
    let kind = map.get("model_type").and_then(Value::as_str);
    let classifies = matches!(kind, Some("bert" | "roberta"));
    let other =
        |key: &str| !classifies && key.starts_with("classifier") || key.starts_with("summary");
    asked
        .filter(|(key, share)| *share > 0.0 && !other(key))
        .collect()
}

/// A `config.json` that transformers and [`parse_config`] read back as `shape`, for models that
/// came without one. `dtype` is what the weights are stored in.
#[must_use]
pub fn config_json(shape: &ModelShape, dtype: Dtype) -> Value {
    let mut config = families::of(shape.family).config_json(shape);
    config["torch_dtype"] = json!(torch_dtype(dtype));
    config
}

/// The key of a `config.json` that says how many positions the model has.
#[must_use]
pub fn positions_key(shape: &ModelShape) -> &'static str {
    families::of(shape.family).positions_key()
}

/// Transformers' name of a type.
fn torch_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bfloat16",
        Dtype::F32 => "float32",
    }
}
