//! Cohere's Command R and R7B: attention and MLP side by side behind one layer norm without a bias, a factor of
//! logits; files in which neighbours are rotated with each other. R7B has windows in most layers, and no positions in
//! the others.

use lowtide_workload::{Family, Layers, ModelShape, Scales, Window};
use serde_json::{Value, json};

use super::like_llama::{self, Absent, LLAMA, Names};
use super::{Allows, Architecture, Branches, Layer, Norm};
use crate::ModelError;
use crate::config_json::keys::{Config, MULTIPLIER, unsupported};
use crate::describe::check::wrong;
use crate::params::List;

pub(super) struct Cohere;

impl Architecture for Cohere {
    fn types(&self) -> &'static [&'static str] {
        &["cohere", "cohere2"]
    }

    fn parse(
        &self,
        c: &Config<'_>,
        kind: &str,
        name: &str,
        longest: u32,
    ) -> Result<ModelShape, ModelError> {
        let windows = kind == "cohere2";
        let absent = Absent {
            kv_heads: None,
            head_dim: None,
            max_positions: 8192,
            norm_eps: 1e-5,
            eps_key: "layer_norm_eps",
            tied: true,
            theta: if windows { 10_000.0 } else { 500_000.0 },
            act: like_llama::SILU,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Cohere, name, &absent)?;
        if c.flag("use_qk_norm", false)? {
            return Err(unsupported("use_qk_norm", &Value::Bool(true), "false"));
        }
        let scale = match c.map.get("logit_scale") {
            Some(Value::Null) => {
                return Err(unsupported("logit_scale", &Value::Null, "a number"));
            }
            _ => c.number_or("logit_scale", &MULTIPLIER, 0.0625)?,
        };
        let bias = c.flag("attention_bias", false)?;
        let longest = shape.max_positions.min(longest);
        let (window, unrotated) = match windows {
            true => layers(c, shape.layers, longest)?,
            false => (None, Layers::default()),
        };
        Ok(ModelShape {
            qkv_bias: bias,
            out_bias: bias,
            window,
            unrotated,
            parallel: true,
            scales: Scales {
                logits_divisor: 1.0 / scale,
                ..Scales::default()
            },
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::divided_heads(s)?;
        super::no_head_norms(s)?;
        if s.mlp_bias || s.qkv_bias != s.out_bias {
            let need = "both of attention or none";
            return Err(wrong("places with biases", 1u32, need));
        }
        if !s.parallel {
            let need = "beside attention in this family";
            return Err(wrong("MLP behind attention", 1u32, need));
        }
        if let Some(window) = &s.window
            && (0..s.layers).any(|l| window.layers.has(l) == s.unrotated.has(l))
        {
            let need = "those without a window in this family";
            return Err(wrong("layers without positions", 1u32, need));
        }
        Ok(())
    }

    fn allows(&self) -> Allows {
        Allows {
            parallel: true,
            ..Allows::default()
        }
    }

    fn norm(&self) -> Norm {
        Norm::Layer
    }

    fn scales(&self, s: &ModelShape) -> Scales {
        Scales {
            logits_divisor: s.scales.logits_divisor,
            ..Scales::default()
        }
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norm: Norm::Layer,
            branches: Branches::ParallelOneNorm,
            ..like_llama::layer(s, l)
        }
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        let names = Names {
            norms: [Some("input_layernorm"), None, None, None],
            neighbours: true,
            ..LLAMA
        };
        like_llama::block(list, s, l, &names);
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let windows = s.window.is_some() || !s.unrotated.is_empty();
        let (class, kind) = match windows {
            true => ("Cohere2ForCausalLM", "cohere2"),
            false => ("CohereForCausalLM", "cohere"),
        };
        let mut config = like_llama::config_json(s, class, kind);
        let keys = config.as_object_mut().expect("an object");
        let eps = keys.remove("rms_norm_eps");
        keys.insert("layer_norm_eps".to_owned(), json!(eps));
        config["attention_bias"] = json!(s.out_bias);
        config["logit_scale"] = json!(scale(s.scales.logits_divisor));
        if windows {
            // A window of all positions is none.
            let keys = s.window.as_ref().map_or(s.max_positions, |w| w.keys);
            config["sliding_window"] = json!(keys);
            let types = (0..s.layers).map(|l| match s.unrotated.has(l) {
                true => "full_attention",
                false => "sliding_attention",
            });
            config["layer_types"] = types.collect();
        }
        // Absent, it is a token that gets no gradient from lookups.
        config["pad_token_id"] = Value::Null;
        config
    }
}

/// Windows, and the layers without positions, which are those without a window.
fn layers(
    c: &Config<'_>,
    layers: u32,
    longest: u32,
) -> Result<(Option<Window>, Layers), ModelError> {
    let sliding = match like_llama::sliding(c, layers)? {
        Some(sliding) => sliding,
        None => {
            let pattern = c.size_or("sliding_window_pattern", 4)?;
            Layers::those(layers, |l| !(l + 1).is_multiple_of(pattern))
        }
    };
    let keys = match c.map.get("sliding_window") {
        None => 4096,
        // Without a window transformers rotates nothing in its layers either.
        Some(Value::Null) => {
            return Err(unsupported("sliding_window", &Value::Null, "a number"));
        }
        Some(_) => c.size("sliding_window")?,
    };
    let unrotated = Layers::those(layers, |l| !sliding.has(l));
    Ok((like_llama::window(keys, sliding, longest), unrotated))
}

/// The factor whose inverse is the divisor, to the last bit where there is one.
fn scale(divisor: f64) -> f64 {
    let near = 1.0 / divisor;
    let all = [near, near.next_up(), near.next_down()];
    let exact = all.into_iter().find(|scale| 1.0 / scale == divisor);
    exact.unwrap_or(near)
}
