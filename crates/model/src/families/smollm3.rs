//! SmolLM3: Llama's block; some layers have no positions, and those may have a window.

use lowtide_workload::{Family, Layers, ModelShape, Window};
use serde_json::{Value, json};

use super::Architecture;
use super::like_llama::{self, Absent};
use crate::ModelError;
use crate::config_json::keys::{Config, bad};
use crate::describe::check::wrong;

pub(super) struct SmolLm3;

impl Architecture for SmolLm3 {
    fn types(&self) -> &'static [&'static str] {
        &["smollm3"]
    }

    fn parse(
        &self,
        c: &Config<'_>,
        _: &str,
        name: &str,
        longest: u32,
    ) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: Some(4),
            head_dim: None,
            max_positions: 32_768,
            norm_eps: 1e-6,
            eps_key: "rms_norm_eps",
            tied: true,
            theta: 2_000_000.0,
            act: like_llama::SILU,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::SmolLm3, name, &absent)?;
        let unrotated = unrotated(c, shape.layers)?;
        let longest = shape.max_positions.min(longest);
        let window = window(c, shape.layers, &unrotated, longest)?;
        let attention_bias = c.flag("attention_bias", false)?;
        Ok(ModelShape {
            qkv_bias: attention_bias,
            out_bias: attention_bias,
            mlp_bias: c.flag("mlp_bias", false)?,
            window,
            unrotated,
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::no_head_norms(s)?;
        if s.qkv_bias != s.out_bias {
            return Err(wrong(
                "places with biases",
                1u32,
                "both of attention or none",
            ));
        }
        Ok(())
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "SmolLM3ForCausalLM", "smollm3");
        config["attention_bias"] = json!(s.out_bias);
        config["mlp_bias"] = json!(s.mlp_bias);
        let rotated = (0..s.layers).map(|l| u32::from(!s.unrotated.has(l)));
        config["no_rope_layers"] = rotated.collect();
        config["use_sliding_window"] = json!(s.window.is_some());
        config["sliding_window"] = json!(s.window.as_ref().map(|w| w.keys));
        config["layer_types"] = like_llama::layer_types(s);
        // Absent, it is a token that smaller vocabularies do not have.
        config["pad_token_id"] = Value::Null;
        config
    }
}

/// `no_rope_layers`, whose ones mark the layers that do have positions; without it every fourth has none.
fn unrotated(c: &Config<'_>, layers: u32) -> Result<Layers, ModelError> {
    let Some(marks) = c.by_layer("no_rope_layers", layers)? else {
        let every = c.size_or("no_rope_layer_interval", 4)?;
        return Ok(Layers::those(layers, |l| (l + 1).is_multiple_of(every)));
    };
    if !marks.iter().all(|v| v == 0 || v == 1) {
        return Err(bad(
            "no_rope_layers",
            &Value::from(marks),
            "a list of 0 and 1",
        ));
    }
    Ok(Layers::those(layers, |l| marks[l as usize] == 0))
}

/// The layers of `layer_types`, or those without positions; only with `use_sliding_window` and a `sliding_window`.
fn window(
    c: &Config<'_>,
    layers: u32,
    unrotated: &Layers,
    longest: u32,
) -> Result<Option<Window>, ModelError> {
    let used = c.flag("use_sliding_window", false)?;
    let types = like_llama::sliding(c, layers)?;
    let keys = c.size_or_null("sliding_window")?;
    let Some(keys) = keys.filter(|_| used) else {
        like_llama::all_full(c, types.as_ref())?;
        return Ok(None);
    };
    let layers = types.unwrap_or_else(|| unrotated.clone());
    Ok(like_llama::window(keys, layers, longest))
}
