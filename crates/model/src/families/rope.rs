//! Rotary positions in a configuration, as every family with rotary positions spells them.

use lowtide_workload::{Rope, RopeScaling};
use serde_json::{Map, Value, json};

use crate::ModelError;
use crate::config_json::keys::{
    ATTENTION_FACTOR, Config, FACTOR, FREQ_FACTOR, PART, THETA, bad, unsupported,
};

const ROPES: &str = "default, linear, dynamic, llama3, yarn, longrope";
const ORIGINAL: &str = "original_max_position_embeddings";

/// What a family takes where a key is absent, and its own names.
pub(super) struct Absent {
    pub theta: f64,
    /// The key of the base.
    pub theta_key: &'static str,
    pub max_positions: u32,
    /// Where the family can rotate a part of each head.
    pub partial: Option<Partial>,
    /// Other names of `longrope`.
    pub longrope: &'static [&'static str],
}

/// How a family says which part of a head is rotated.
pub(super) struct Partial {
    /// The key of the part, beside `partial_rotary_factor` in the rotary settings themselves.
    pub key: &'static str,
    /// D: numbers of a head, of which a part is rotated.
    pub head_dim: u32,
    /// The part where the key is absent.
    pub absent: f64,
}

/// `rope_theta` and `rope_scaling`, or the newer `rope_parameters` that holds both.
///
/// Where both are there, transformers 5 takes `rope_scaling` unless it is null or empty, and of the
/// other not even `rope_theta` (`convert_rope_params_to_dict` in `modeling_rope_utils.py`:
/// `rope_scaling or rope_parameters`, then `rope_theta` of that, of the configuration, the family's `theta`).
pub(super) fn parse(c: &Config<'_>, absent: &Absent) -> Result<Rope, ModelError> {
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
    settings(c, key, &inner, absent)
}

/// The settings `inner` under `key`, where the base and the part that is rotated may stand in the configuration itself.
pub(super) fn settings(
    c: &Config<'_>,
    key: &str,
    inner: &Config<'_>,
    absent: &Absent,
) -> Result<Rope, ModelError> {
    let width = width(c, inner, absent.partial.as_ref())?;
    let theta = match inner.get("rope_theta") {
        Some(_) => inner.number_or("rope_theta", &THETA, absent.theta)?,
        None => c.number_or(absent.theta_key, &THETA, absent.theta)?,
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
            original: original(c, inner)?,
        },
        Some((_, Some(name))) if name == "longrope" || absent.longrope.contains(&name) => {
            longrope(c, inner, absent.max_positions)?
        }
        Some((_, Some("dynamic"))) => RopeScaling::Dynamic(inner.number("factor", &FACTOR)?),
        Some((_, Some("yarn"))) => yarn(c, inner, theta)?,
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
    Ok(Rope {
        theta,
        scaling,
        width,
    })
}

/// The numbers of a head that are rotated, `int(head_dim * factor)` of transformers, where they are not all.
fn width(
    c: &Config<'_>,
    inner: &Config<'_>,
    partial: Option<&Partial>,
) -> Result<Option<u32>, ModelError> {
    const KEY: &str = "partial_rotary_factor";
    let Some(&Partial {
        key,
        head_dim,
        absent,
    }) = partial
    else {
        let part = [c, inner].into_iter().find_map(|place| place.get(KEY));
        return match part {
            Some(part) if part.as_f64() != Some(1.0) => Err(unsupported(KEY, part, "1")),
            _ => Ok(None),
        };
    };
    let (key, part) = match inner.get(KEY) {
        Some(_) => (KEY, inner.number_or(KEY, &PART, absent)?),
        None => (key, c.number_or(key, &PART, absent)?),
    };
    let rotated = (f64::from(head_dim) * part) as u32;
    if rotated == 0 || !rotated.is_multiple_of(2) {
        let need = "a part that makes an even number of each head's numbers, 2 or more";
        return Err(unsupported(key, &part.into(), need));
    }
    Ok((rotated != head_dim).then_some(rotated))
}

/// The part that [`width`] reads as `rotated` of `head_dim`.
pub(super) fn part(rotated: u32, head_dim: u32) -> f64 {
    let (rotated, d) = (f64::from(rotated), f64::from(head_dim));
    let part = rotated / d;
    match part * d < rotated {
        true => part.next_up(),
        false => part,
    }
}

/// As `_compute_yarn_parameters` in `modeling_rope_utils.py` reads it.
fn yarn(c: &Config<'_>, inner: &Config<'_>, theta: f64) -> Result<RopeScaling, ModelError> {
    if theta <= 1.0 {
        return Err(bad("rope_theta", &theta.into(), "more than 1 with yarn"));
    }
    let factor = inner.number("factor", &FACTOR)?;
    // Absent, null and 0 are the same in Python's `or`.
    let or = |key: &str, default: f64| match inner.get(key) {
        None => Ok(default),
        Some(zero) if zero.as_f64() == Some(0.0) => Ok(default),
        Some(_) => inner.number(key, &FREQ_FACTOR),
    };
    let (beta_fast, beta_slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
    if beta_fast < beta_slow {
        return Err(bad(
            "beta_fast",
            &beta_fast.into(),
            "no less than beta_slow",
        ));
    }
    let longer = |by: f64| match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * by * factor.ln() + 1.0,
    };
    let (mscale, all) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
    let attention = match inner.get("attention_factor") {
        Some(_) => inner.number("attention_factor", &ATTENTION_FACTOR)?,
        None if mscale > 0.0 && all > 0.0 => longer(mscale) / longer(all),
        None => longer(1.0),
    };
    if !ATTENTION_FACTOR.range.contains(&attention) {
        return Err(bad(
            "mscale",
            &mscale.into(),
            "a ratio to mscale_all_dim from 1e-3 to 1e3",
        ));
    }
    Ok(RopeScaling::Yarn {
        factor,
        attention,
        beta_fast,
        beta_slow,
        original: original(c, inner)?,
        // Null is false in Python's `get` with a default.
        truncate: match inner.map.get("truncate") {
            Some(Value::Null) => false,
            _ => inner.flag("truncate", true)?,
        },
    })
}

/// The trained length; that of the configuration itself comes first.
fn original(c: &Config<'_>, inner: &Config<'_>) -> Result<f64, ModelError> {
    match c.get(ORIGINAL) {
        Some(_) => c.length(ORIGINAL),
        None => inner.length(ORIGINAL),
    }
}

/// As `_compute_longrope_parameters` in `modeling_rope_utils.py` reads it.
fn longrope(
    c: &Config<'_>,
    inner: &Config<'_>,
    max_positions: u32,
) -> Result<RopeScaling, ModelError> {
    let original = original(c, inner)?;
    let factor = match inner.get("factor") {
        Some(_) => inner.number("factor", &FACTOR)?,
        None => f64::from(max_positions) / original,
    };
    let attention = match inner.get("attention_factor") {
        Some(_) => inner.number("attention_factor", &ATTENTION_FACTOR)?,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    if !ATTENTION_FACTOR.range.contains(&attention) {
        return Err(bad(ORIGINAL, &original.into(), "2 or more"));
    }
    Ok(RopeScaling::LongRope {
        short: inner.numbers("short_factor", &FREQ_FACTOR)?,
        long: inner.numbers("long_factor", &FREQ_FACTOR)?,
        attention,
        original,
    })
}

/// As [`write`], for one of several kinds of layers.
pub(super) fn nested(rope: &Rope) -> Value {
    let mut config = json!({});
    write(rope, &mut config);
    let mut inner = config["rope_scaling"].take();
    if inner.is_null() {
        inner = json!({"rope_type": "default"});
    }
    inner["rope_theta"] = config["rope_theta"].take();
    inner
}

/// Writes what [`parse`] reads.
pub(super) fn write(rope: &Rope, config: &mut Value) {
    config["rope_theta"] = json!(rope.theta);
    config["rope_scaling"] = match rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear(factor) => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::LongRope {
            ref short,
            ref long,
            attention,
            original,
        } => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention,
            "original_max_position_embeddings": original as u64,
        }),
        RopeScaling::Dynamic(factor) => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::Yarn {
            factor,
            attention,
            beta_fast,
            beta_slow,
            original,
            truncate,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": attention,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": original as u64,
            "truncate": truncate,
        }),
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
}
