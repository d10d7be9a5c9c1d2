//! Hugging Face's `config.json` to a [`ModelShape`] and back.
//!
//! What the configuration says and this crate cannot do is an error, never ignored: a model that
//! trains with another attention than it was made with is worse than none. Dropout is the one
//! exception: fine-tuning here has none, whatever the file asks for ([`dropout_of`] says it). Absent keys have the
//! defaults of transformers' configuration classes.
//!
//! One file because reading and writing are each other's inverse, key by key.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use lowtide_files::FileError;
use lowtide_workload::{Dtype, Family, ModelShape, Rope, RopeScaling};
use serde_json::{Map, Value, json};

use crate::ModelError;
use crate::describe::check;

const TYPES: &str = "llama, mistral, qwen2, qwen3, gpt2";
const ROPES: &str = "default, linear, llama3";

/// What a real number of a configuration can be, wide around all that models have: beyond it norms, angles or
/// sums of an f32 are zero, infinite or all the same.
struct Sane {
    range: RangeInclusive<f64>,
    told: &'static str,
}

/// Added to a mean square before its root: 1e-5 or 1e-6 in models.
const EPS: Sane = Sane {
    range: 1e-20..=1.0,
    told: "a number from 1e-20 to 1",
};
/// 1e4 to 1e7 in models.
const THETA: Sane = Sane {
    range: 1.0..=1e15,
    told: "a number from 1 to 1e15",
};
/// By how much positions are stretched: 2 to 40 in models.
const FACTOR: Sane = Sane {
    range: 1.0..=1e6,
    told: "a number from 1 to 1e6",
};
/// 1 and 4 in models.
const FREQ_FACTOR: Sane = Sane {
    range: 1e-3..=1e6,
    told: "a number from 1e-3 to 1e6",
};
const LENGTH: Sane = Sane {
    range: 1.0..=4_294_967_295.0,
    told: "a whole number from 1 to 4294967295",
};

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
    let shape = match kind.as_str() {
        Some("gpt2") => gpt2(&config, name),
        Some(family @ ("llama" | "mistral" | "qwen2" | "qwen3")) => {
            llama(&config, family, name, longest)
        }
        _ => Err(unsupported("model_type", kind, TYPES)),
    }?;
    check::shape(&shape)?;
    Ok(shape)
}

/// The keys of a configuration that ask for dropout, whatever their values; null asks for none.
fn dropouts(map: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    let is_dropout = |key: &str| key.ends_with("dropout") || key.ends_with("_pdrop");
    let all = map.iter().map(|(key, value)| (key.as_str(), value));
    all.filter(move |(key, value)| is_dropout(key) && !value.is_null())
}

/// Which dropout of a language model a configuration asks for, key and share: training here has none.
#[must_use]
pub fn dropout_of(config: &Value) -> Vec<(String, f64)> {
    let Some(map) = config.as_object() else {
        return Vec::new();
    };
    let asked = dropouts(map).filter_map(|(key, value)| Some((key.to_owned(), value.as_f64()?)));
    let other = |key: &str| key.starts_with("classifier") || key.starts_with("summary");
    asked
        .filter(|(key, share)| *share > 0.0 && !other(key))
        .collect()
}

fn llama(c: &Config<'_>, family: &str, name: &str, longest: u32) -> Result<ModelShape, ModelError> {
    c.one_of("hidden_act", &["silu", "swish"], "silu")?;
    let (hidden, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let kv_default = match family {
        "llama" => heads,
        "mistral" => 8,
        _ => 32,
    };
    let head_dim = match (c.size_or_null("head_dim")?, family) {
        (Some(d), _) => d,
        (None, "qwen3") => 128,
        (None, _) if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        (None, _) => {
            let need = format!("a multiple of the {heads} heads, or a head_dim");
            return Err(ModelError::Dimensions {
                what: "hidden size",
                have: hidden.into(),
                need,
            });
        }
    };
    let max_positions = c.size_or(
        "max_position_embeddings",
        match family {
            "llama" => 2048,
            "mistral" => 131_072,
            _ => 32_768,
        },
    )?;
    window(c, family, max_positions.min(longest))?;
    let attention_bias = match family {
        "llama" | "qwen3" => c.flag("attention_bias", false)?,
        _ => false,
    };
    Ok(ModelShape {
        name: name.to_owned(),
        family: Family::Llama,
        vocab: c.size("vocab_size")?,
        hidden,
        intermediate: c.size("intermediate_size")?,
        layers: c.size("num_hidden_layers")?,
        heads,
        kv_heads: c.size_or_null("num_key_value_heads")?.unwrap_or(kv_default),
        head_dim,
        max_positions,
        norm_eps: c.number_or("rms_norm_eps", &EPS, 1e-6)?,
        tied: c.flag("tie_word_embeddings", false)?,
        qkv_bias: attention_bias || family == "qwen2",
        out_bias: attention_bias,
        mlp_bias: family == "llama" && c.flag("mlp_bias", false)?,
        qk_norm: family == "qwen3",
        rope: Some(rope(c)?),
    })
}

/// A sliding window is accepted where it can never slide: over no sequence of `longest` tokens.
fn window(c: &Config<'_>, family: &str, longest: u32) -> Result<(), ModelError> {
    let used = match family {
        "mistral" => true,
        "qwen2" | "qwen3" => c.flag("use_sliding_window", false)?,
        _ => false,
    };
    if let Some(value) = c.get("layer_types") {
        let full = |v: &Value| v == "full_attention" || (used && v == "sliding_attention");
        if !value.as_array().is_some_and(|types| types.iter().all(full)) {
            return Err(unsupported(
                "layer_types",
                value,
                "full_attention in every layer",
            ));
        }
    }
    if !used {
        return Ok(());
    }
    // Absent and null differ: a Mistral configuration without the key has a window of 4096.
    let window = match c.map.get("sliding_window") {
        Some(Value::Null) => return Ok(()),
        Some(_) => c.size("sliding_window")?,
        None => 4096,
    };
    if window < longest {
        let value = Value::from(window);
        return Err(unsupported(
            "sliding_window",
            &value,
            "null, or at least train.seq or max_position_embeddings",
        ));
    }
    Ok(())
}

/// `rope_theta` and `rope_scaling`, or the newer `rope_parameters` that holds both.
///
/// Where both are there, transformers 5 takes `rope_scaling` unless it is null or empty, and of the
/// other not even `rope_theta` (`convert_rope_params_to_dict` in `modeling_rope_utils.py`:
/// `rope_scaling or rope_parameters`, then `rope_theta` of that, of the configuration, 10,000).
fn rope(c: &Config<'_>) -> Result<Rope, ModelError> {
    let empty_value = |v: &&Value| v.as_object().is_some_and(Map::is_empty);
    let scaling = c.get("rope_scaling").filter(|v| !empty_value(v));
    let (key, value) = match (scaling, c.get("rope_parameters")) {
        (Some(value), _) => ("rope_scaling", value),
        (None, Some(value)) => ("rope_parameters", value),
        (None, None) => ("rope_scaling", &Value::Null),
    };
    let empty = Map::new();
    let inner = match value {
        Value::Null => Config { map: &empty },
        Value::Object(map) => Config { map },
        other => return Err(bad(key, other, "an object or null")),
    };
    if inner.map.values().any(Value::is_object) {
        return Err(unsupported(key, value, "one setting for all layers"));
    }
    for place in [c, &inner] {
        if let Some(part) = place.get("partial_rotary_factor")
            && part.as_f64() != Some(1.0)
        {
            return Err(unsupported("partial_rotary_factor", part, "1"));
        }
    }
    let theta = match inner.get("rope_theta") {
        Some(_) => inner.number_or("rope_theta", &THETA, 10_000.0)?,
        None => c.number_or("rope_theta", &THETA, 10_000.0)?,
    };
    let kind = inner.get("rope_type").or_else(|| inner.get("type"));
    let scaling = match kind.map(|k| (k, k.as_str())) {
        None if inner.get("factor").is_some() => {
            return Err(ModelError::MissingKey {
                key: format!("{key}.rope_type"),
            });
        }
        None | Some((_, Some("default"))) => RopeScaling::None,
        Some((_, Some("linear"))) => RopeScaling::Linear(inner.number("factor", &FACTOR)?),
        Some((_, Some("llama3"))) => RopeScaling::Llama3 {
            factor: inner.number("factor", &FACTOR)?,
            low_freq_factor: inner.number("low_freq_factor", &FREQ_FACTOR)?,
            high_freq_factor: inner.number("high_freq_factor", &FREQ_FACTOR)?,
            original: inner.length("original_max_position_embeddings")?,
        },
        Some((value, _)) => return Err(unsupported(&format!("{key}.rope_type"), value, ROPES)),
    };
    if let RopeScaling::Llama3 {
        low_freq_factor,
        high_freq_factor,
        ..
    } = scaling
        && high_freq_factor <= low_freq_factor
    {
        let value = Value::from(high_freq_factor);
        return Err(bad("high_freq_factor", &value, "more than low_freq_factor"));
    }
    Ok(Rope { theta, scaling })
}

fn gpt2(c: &Config<'_>, name: &str) -> Result<ModelShape, ModelError> {
    c.one_of(
        "activation_function",
        &["gelu_new", "gelu_pytorch_tanh"],
        "gelu_new",
    )?;
    for (key, want) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ] {
        if c.flag(key, want)? != want {
            let supported = if want { "true" } else { "false" };
            return Err(unsupported(key, &Value::Bool(!want), supported));
        }
    }
    let (hidden, heads) = (c.size("n_embd")?, c.size("n_head")?);
    if heads == 0 || !hidden.is_multiple_of(heads) {
        let need = format!("a multiple of the {heads} heads");
        return Err(ModelError::Dimensions {
            what: "hidden size",
            have: hidden.into(),
            need,
        });
    }
    Ok(ModelShape {
        name: name.to_owned(),
        family: Family::Gpt2,
        vocab: c.size("vocab_size")?,
        hidden,
        intermediate: c
            .size_or_null("n_inner")?
            .unwrap_or(hidden.saturating_mul(4)),
        layers: c.size("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        max_positions: c.size_or("n_positions", 1024)?,
        norm_eps: c.number_or("layer_norm_epsilon", &EPS, 1e-5)?,
        tied: c.flag("tie_word_embeddings", true)?,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        qk_norm: false,
        rope: None,
    })
}

/// A `config.json` that transformers and [`parse_config`] read back as `shape`, for models that
/// came without one. `dtype` is what the weights are stored in. Long because it is a list of keys.
#[must_use]
pub fn config_json(shape: &ModelShape, dtype: Dtype) -> Value {
    let dtype = torch_dtype(dtype);
    if shape.family == Family::Gpt2 {
        return json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": shape.vocab,
            "n_embd": shape.hidden,
            "n_inner": shape.intermediate,
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_positions": shape.max_positions,
            "layer_norm_epsilon": shape.norm_eps,
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": shape.tied,
            "torch_dtype": dtype,
        });
    }
    // Each of the Llama family's configurations allows other biases and norms.
    let (architecture, kind) = if shape.qk_norm {
        ("Qwen3ForCausalLM", "qwen3")
    } else if shape.qkv_bias && !shape.out_bias {
        ("Qwen2ForCausalLM", "qwen2")
    } else {
        ("LlamaForCausalLM", "llama")
    };
    let rope = shape.rope.unwrap_or(Rope {
        theta: 10_000.0,
        scaling: RopeScaling::None,
    });
    let scaling = match rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear(factor) => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original as u64,
        }),
    };
    let mut config = json!({
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": dtype,
    });
    match kind {
        "qwen2" => config["use_sliding_window"] = json!(false),
        "qwen3" => {
            config["use_sliding_window"] = json!(false);
            config["attention_bias"] = json!(shape.out_bias);
        }
        _ => {
            config["attention_bias"] = json!(shape.out_bias);
            config["mlp_bias"] = json!(shape.mlp_bias);
        }
    }
    config
}

/// Transformers' name of a type.
pub(crate) fn torch_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bfloat16",
        Dtype::F32 => "float32",
    }
}

fn bad(key: &str, value: &Value, need: &'static str) -> ModelError {
    ModelError::BadValue {
        key: key.to_owned(),
        value: brief(value),
        need,
    }
}

fn unsupported(key: &str, value: &Value, supported: &'static str) -> ModelError {
    ModelError::Unsupported {
        key: key.to_owned(),
        value: brief(value),
        supported,
    }
}

/// A value as written, cut where it is long.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A JSON object whose values are read with checks. `null` counts as absent.
struct Config<'a> {
    map: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn required(&self, key: &str) -> Result<&'a Value, ModelError> {
        self.get(key).ok_or_else(|| ModelError::MissingKey {
            key: key.to_owned(),
        })
    }

    fn size_or_null(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|&n| n > 0)
        {
            Some(n) => Ok(Some(n)),
            None => Err(bad(key, value, "a whole number from 1 to 4294967295")),
        }
    }

    fn size_or(&self, key: &str, default: u32) -> Result<u32, ModelError> {
        Ok(self.size_or_null(key)?.unwrap_or(default))
    }

    fn size(&self, key: &str) -> Result<u32, ModelError> {
        self.required(key)?;
        self.size_or(key, 0)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| bad(key, value, "true or false"))
    }

    fn number(&self, key: &str, sane: &Sane) -> Result<f64, ModelError> {
        let value = self.required(key)?;
        match value.as_f64().filter(|n| sane.range.contains(n)) {
            Some(n) => Ok(n),
            None => Err(bad(key, value, sane.told)),
        }
    }

    /// A number of positions, which an export writes as a whole number.
    fn length(&self, key: &str) -> Result<f64, ModelError> {
        let n = self.number(key, &LENGTH)?;
        if n.fract() == 0.0 {
            return Ok(n);
        }
        Err(bad(key, self.required(key)?, LENGTH.told))
    }

    fn number_or(&self, key: &str, sane: &Sane, default: f64) -> Result<f64, ModelError> {
        if self.get(key).is_none() {
            Ok(default)
        } else {
            self.number(key, sane)
        }
    }

    /// The value is one of `known`, or absent.
    fn one_of(&self, key: &str, known: &[&str], supported: &'static str) -> Result<(), ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(());
        };
        if value.as_str().is_some_and(|v| known.contains(&v)) {
            return Ok(());
        }
        Err(unsupported(key, value, supported))
    }
}
