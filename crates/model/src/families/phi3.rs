//! Phi-3, Phi-4 and Phi-4-mini: Llama's block, in which only a part of each head may be rotated. The file holds
//! queries, keys and values as one tensor, gate and up as another.

use lowtide_workload::{Family, Layers, ModelShape, RopeScaling};
use serde_json::{Value, json};

use super::like_llama::{self, Absent, Cut, LLAMA, Names};
use super::{Allows, Architecture};
use crate::ModelError;
use crate::config_json::keys::{Config, unsupported};
use crate::describe::check::wrong;
use crate::params::List;

pub(super) struct Phi3;

impl Architecture for Phi3 {
    fn types(&self) -> &'static [&'static str] {
        &["phi3"]
    }

    fn parse(
        &self,
        c: &Config<'_>,
        _: &str,
        name: &str,
        longest: u32,
    ) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: None,
            head_dim: None,
            max_positions: 4096,
            norm_eps: 1e-5,
            eps_key: "rms_norm_eps",
            tied: false,
            theta: 10_000.0,
            act: like_llama::SILU,
            longrope: &["su", "yarn"],
            partial: Some(1.0),
        };
        let shape = like_llama::parse(c, Family::Phi3, name, &absent)?;
        if scaled(&shape) {
            let key = "rope_scaling";
            let value = c.get(key).or_else(|| c.get("rope_parameters"));
            let value = value.unwrap_or(&Value::Null);
            return Err(unsupported(key, value, "null, or longrope"));
        }
        for key in ["attention_bias", "mlp_bias"] {
            if c.flag(key, false)? {
                return Err(unsupported(key, &Value::Bool(true), "false"));
            }
        }
        let longest = shape.max_positions.min(longest);
        let every = Layers::those(shape.layers, |_| true);
        let keys = c.size_or_null("sliding_window")?;
        Ok(ModelShape {
            window: keys.and_then(|keys| like_llama::window(keys, every, longest)),
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::all_rotated(s)?;
        super::no_biases(s)?;
        if s.window.is_some() && !s.all_windows() {
            return Err(wrong(
                "number of layers with a window",
                1u32,
                "none or all in this family",
            ));
        }
        if scaled(s) {
            let need = "none or longrope in this family";
            return Err(wrong("scaling of rotary positions", 1u32, need));
        }
        Ok(())
    }

    fn allows(&self) -> Allows {
        Allows {
            part_of_heads: true,
            ..Allows::default()
        }
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        let names = Names {
            cut: Cut::Fused,
            ..LLAMA
        };
        like_llama::block(list, s, l, &names);
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "Phi3ForCausalLM", "phi3");
        config["sliding_window"] = json!(s.window.as_ref().map(|w| w.keys));
        let scaling = s.rope.as_ref().map(|r| &r.scaling);
        let original = match scaling {
            Some(&RopeScaling::LongRope { original, .. }) => original as u64,
            _ => s.max_positions.into(),
        };
        config["original_max_position_embeddings"] = json!(original);
        // Absent, it is a token that smaller vocabularies do not have.
        config["pad_token_id"] = Value::Null;
        config
    }
}

/// Whether rotary positions are scaled otherwise than by longrope, which transformers refuses.
fn scaled(s: &ModelShape) -> bool {
    let scaling = s.rope.as_ref().map(|r| &r.scaling);
    !matches!(
        scaling,
        None | Some(RopeScaling::None | RopeScaling::LongRope { .. })
    )
}
