//! Qwen3-MoE: Qwen3's block with experts in place of the MLP. The weights of a token's experts may be made to add up
//! to 1. Where windows are used, each layer has one. Models in which only some blocks have experts are refused.

use lowtide_workload::{Family, ModelShape};
use serde_json::{Value, json};

use super::like_llama::{self, Absent};
use super::{Allows, Architecture, experts};
use crate::ModelError;
use crate::config_json::keys::{Config, unsupported};
use crate::describe::check::wrong;

pub(super) struct Qwen3Moe;

impl Architecture for Qwen3Moe {
    fn types(&self) -> &'static [&'static str] {
        &["qwen3_moe"]
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
            tied: false,
            theta: 10_000.0,
            act: like_llama::SILU,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Qwen3Moe, name, &absent)?;
        every_layer(c)?;
        let renormalise = c.flag("norm_topk_prob", false)?;
        let absent = experts::Absent {
            count: 128,
            chosen: 8,
        };
        // Absent and null differ: a configuration without the key has a window of 4096.
        let keys = match (
            c.flag("use_sliding_window", false)?,
            c.map.get("sliding_window"),
        ) {
            (false, _) | (true, Some(Value::Null)) => None,
            (true, Some(_)) => Some(c.size("sliding_window")?),
            (true, None) => Some(4096),
        };
        let window = experts::windows_everywhere(c, shape.layers, keys)?;
        let longest = shape.max_positions.min(longest);
        let attention_bias = c.flag("attention_bias", false)?;
        Ok(ModelShape {
            intermediate: c.size_or("moe_intermediate_size", 768)?,
            qkv_bias: attention_bias,
            out_bias: attention_bias,
            qk_norm: true,
            experts: Some(experts::parse(c, &absent, renormalise)?),
            window: window.and_then(|(keys, all)| like_llama::window(keys, all, longest)),
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        experts::check(s)?;
        if !s.qk_norm {
            return Err(wrong("head norms", 0u32, "those of this family"));
        }
        match s.mlp_bias || s.qkv_bias != s.out_bias {
            true => {
                let need = "attention's products, all or none, in this family";
                Err(wrong("places with biases", 1u32, need))
            }
            false => Ok(()),
        }
    }

    fn allows(&self) -> Allows {
        Allows {
            experts: true,
            ..Allows::default()
        }
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "Qwen3MoeForCausalLM", "qwen3_moe");
        let keys = s.window.as_ref().map(|w| w.keys);
        config["use_sliding_window"] = json!(keys.is_some());
        config["sliding_window"] = json!(keys);
        config["attention_bias"] = json!(s.out_bias);
        experts::config_json(&mut config, s, "num_experts");
        // No layer has an MLP of `intermediate_size`.
        config["moe_intermediate_size"] = json!(s.intermediate);
        config["norm_topk_prob"] = json!(s.experts.is_some_and(|e| e.renormalise));
        config["decoder_sparse_step"] = json!(1);
        config["mlp_only_layers"] = json!([]);
        config
    }
}

/// Every layer has experts: no `decoder_sparse_step` leaves some out, and no `mlp_only_layers`.
fn every_layer(c: &Config<'_>) -> Result<(), ModelError> {
    let step = "decoder_sparse_step";
    if c.whole_or(step, 1)? != 1 {
        let supported = "1: experts in every layer";
        return Err(unsupported(step, c.required(step)?, supported));
    }
    let key = "mlp_only_layers";
    match c.get(key) {
        Some(value) if value.as_array().is_none_or(|list| !list.is_empty()) => {
            Err(unsupported(key, value, "[]: experts in every layer"))
        }
        _ => Ok(()),
    }
}
