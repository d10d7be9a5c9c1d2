//! Granite: Llama's block, with factors of embedding, scores, what a block adds, and logits.

use lowtide_workload::{Family, ModelShape, Scales};
use serde_json::{Value, json};

use super::Architecture;
use super::like_llama::{self, Absent, SILU};
use crate::ModelError;
use crate::config_json::keys::{Config, MULTIPLIER};
use crate::describe::check::wrong;

pub(super) struct Granite;

impl Architecture for Granite {
    fn types(&self) -> &'static [&'static str] {
        &["granite"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: None,
            head_dim: None,
            max_positions: 2048,
            norm_eps: 1e-6,
            eps_key: "rms_norm_eps",
            tied: false,
            theta: 10_000.0,
            act: SILU,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Granite, name, &absent)?;
        let bias = c.flag("attention_bias", false)?;
        let factor = |key: &str| c.number_or(key, &MULTIPLIER, 1.0);
        Ok(ModelShape {
            qkv_bias: bias,
            out_bias: bias,
            mlp_bias: c.flag("mlp_bias", false)?,
            scales: Scales {
                embedding: factor("embedding_multiplier")?,
                attention: Some(factor("attention_multiplier")?),
                residual: factor("residual_multiplier")?,
                logits_divisor: factor("logits_scaling")?,
                ..Scales::default()
            },
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::all_rotated(s)?;
        super::no_windows(s)?;
        super::no_head_norms(s)?;
        if s.qkv_bias != s.out_bias {
            let need = "both of attention or none";
            return Err(wrong("places with biases", 1u32, need));
        }
        Ok(())
    }

    fn scales(&self, s: &ModelShape) -> Scales {
        Scales {
            attention: s.scales.attention.or(Some(1.0)),
            attention_cap: None,
            logits_cap: None,
            ..s.scales
        }
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "GraniteForCausalLM", "granite");
        config["attention_bias"] = json!(s.out_bias);
        config["mlp_bias"] = json!(s.mlp_bias);
        config["embedding_multiplier"] = json!(s.scales.embedding);
        config["attention_multiplier"] = json!(s.scales.attention);
        config["residual_multiplier"] = json!(s.scales.residual);
        config["logits_scaling"] = json!(s.scales.logits_divisor);
        config
    }
}
