//! Gemma 1: Llama's block with norms that add 1 to their weights, scaled embeddings and GeGLU.

use half::bf16;
use lowtide_workload::{Dtype, Family, ModelShape, Scales};
use serde_json::{Value, json};

use super::like_llama::{self, Absent, Act};
use super::{Architecture, Layer, Mlp, Norm};
use crate::ModelError;
use crate::config_json::keys::Config;
use crate::describe::check::wrong;

pub(super) struct Gemma;

impl Architecture for Gemma {
    fn types(&self) -> &'static [&'static str] {
        &["gemma"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let act = Act {
            key: "hidden_act",
            names: &["gelu_pytorch_tanh", "gelu_new"],
            expected: "gelu_pytorch_tanh",
        };
        // Which of the two keys counts depends on the version of transformers.
        c.one_of("hidden_activation", act.names, act.expected)?;
        let absent = Absent {
            kv_heads: Some(16),
            head_dim: Some(256),
            max_positions: 8192,
            norm_eps: 1e-6,
            eps_key: "rms_norm_eps",
            tied: true,
            theta: 10_000.0,
            act,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Gemma, name, &absent)?;
        if c.flag("use_bidirectional_attention", false)? {
            let (key, value) = ("use_bidirectional_attention", Value::Bool(true));
            return Err(crate::config_json::keys::unsupported(key, &value, "false"));
        }
        let bias = c.flag("attention_bias", false)?;
        Ok(ModelShape {
            qkv_bias: bias,
            out_bias: bias,
            scales: scales(&shape),
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::all_rotated(s)?;
        super::no_windows(s)?;
        super::no_head_norms(s)?;
        if s.mlp_bias || s.qkv_bias != s.out_bias {
            let need = "both of attention or none";
            return Err(wrong("places with biases", 1u32, need));
        }
        Ok(())
    }

    fn norm(&self) -> Norm {
        Norm::RmsPlusOne
    }

    fn scales(&self, s: &ModelShape) -> Scales {
        scales(s)
    }

    fn embedding_factor(&self, s: &ModelShape, dtype: Dtype) -> f32 {
        embedding_factor(s, dtype)
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norm: Norm::RmsPlusOne,
            mlp: Mlp::Geglu,
            ..like_llama::layer(s, l)
        }
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "GemmaForCausalLM", "gemma");
        config["hidden_act"] = json!("gelu_pytorch_tanh");
        config["hidden_activation"] = json!("gelu_pytorch_tanh");
        config["attention_bias"] = json!(s.out_bias);
        // Absent, it is a token that gets no gradient from lookups.
        config["pad_token_id"] = Value::Null;
        config
    }
}

fn scales(s: &ModelShape) -> Scales {
    Scales {
        embedding: f64::from(s.hidden).sqrt(),
        ..Scales::default()
    }
}

/// Transformers rounds it to the type of the embedding: the root of 3072 is 55.5 in bf16.
pub(super) fn embedding_factor(s: &ModelShape, dtype: Dtype) -> f32 {
    let factor = s.scales.embedding as f32;
    match dtype {
        Dtype::F32 => factor,
        Dtype::Bf16 => bf16::from_f32(factor).to_f32(),
    }
}
