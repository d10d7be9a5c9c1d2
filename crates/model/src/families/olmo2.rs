//! OLMo 2: Llama's block with norms behind attention and MLP in place of those before them, and with norms of all query
//! heads together and of all key heads.

use lowtide_workload::{Family, ModelShape};
use serde_json::{Value, json};

use super::like_llama::{self, Absent, LLAMA, Names};
use super::{Architecture, Layer, Norms, QkNorm};
use crate::ModelError;
use crate::config_json::keys::Config;
use crate::describe::check::wrong;
use crate::params::List;

pub(super) struct Olmo2;

impl Architecture for Olmo2 {
    fn types(&self) -> &'static [&'static str] {
        &["olmo2"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: None,
            head_dim: None,
            max_positions: 2048,
            norm_eps: 1e-5,
            eps_key: "rms_norm_eps",
            tied: false,
            theta: 10_000.0,
            act: like_llama::SILU,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Olmo2, name, &absent)?;
        let bias = c.flag("attention_bias", false)?;
        Ok(ModelShape {
            qkv_bias: bias,
            out_bias: bias,
            qk_norm: true,
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::all_rotated(s)?;
        super::no_windows(s)?;
        if !s.qk_norm {
            return Err(wrong(
                "norms of queries and keys",
                0u32,
                "both in this family",
            ));
        }
        if s.mlp_bias || s.qkv_bias != s.out_bias {
            let need = "both of attention or none";
            return Err(wrong("places with biases", 1u32, need));
        }
        Ok(())
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norms: Norms::After,
            qk_norm: QkNorm::Whole,
            ..like_llama::layer(s, l)
        }
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        let names = Names {
            norms: [
                None,
                Some("post_attention_layernorm"),
                None,
                Some("post_feedforward_layernorm"),
            ],
            qk_norm: QkNorm::Whole,
            ..LLAMA
        };
        like_llama::block(list, s, l, &names);
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "Olmo2ForCausalLM", "olmo2");
        config["attention_bias"] = json!(s.out_bias);
        // Absent, it is a token that gets no gradient from lookups, and that smaller vocabularies may not have.
        config["pad_token_id"] = Value::Null;
        config
    }
}
