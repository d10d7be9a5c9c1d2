//! Gemma 2: norms around attention and MLP that add 1 to their weights, scaled embeddings, GeGLU, caps of scores and
//! logits, windows in every second layer.

use lowtide_workload::{Dtype, Family, Layers, ModelShape, Scales};
use serde_json::{Value, json};

use super::like_llama::{self, Absent, Act, LLAMA, Names};
use super::{Architecture, Layer, Mlp, Norm, Norms, gemma};
use crate::ModelError;
use crate::config_json::keys::{Config, MULTIPLIER, Sane, unsupported};
use crate::describe::check::wrong;
use crate::params::List;

pub(super) struct Gemma2;

/// Of which scores are divided by the root: a whole number in transformers.
const SCALAR: Sane = Sane {
    range: 1.0..=1e9,
    expected: "a whole number from 1 to 1e9",
};

/// Norms before and behind attention and MLP.
pub(super) const AROUND: Names = Names {
    norms: [
        Some("input_layernorm"),
        Some("post_attention_layernorm"),
        Some("pre_feedforward_layernorm"),
        Some("post_feedforward_layernorm"),
    ],
    ..LLAMA
};

impl Architecture for Gemma2 {
    fn types(&self) -> &'static [&'static str] {
        &["gemma2"]
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
            head_dim: Some(256),
            max_positions: 8192,
            norm_eps: 1e-6,
            eps_key: "rms_norm_eps",
            tied: true,
            theta: 10_000.0,
            act: Act {
                key: "hidden_activation",
                names: &["gelu_pytorch_tanh", "gelu_new"],
                expected: "gelu_pytorch_tanh",
            },
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Gemma2, name, &absent)?;
        if c.flag("use_bidirectional_attention", false)? {
            let key = "use_bidirectional_attention";
            return Err(unsupported(key, &Value::Bool(true), "false"));
        }
        let bias = c.flag("attention_bias", false)?;
        let every_second = || Layers::those(shape.layers, |l| l % 2 == 0);
        let sliding = like_llama::sliding(c, shape.layers)?.unwrap_or_else(every_second);
        let keys = window_keys(c, &sliding)?;
        let longest = shape.max_positions.min(longest);
        let window = keys.and_then(|keys| like_llama::window(keys, sliding, longest));
        let scalar = read_scalar(c)?;
        // Absent and null differ: null is no cap.
        let cap = |key: &str, absent: f64| match c.map.get(key) {
            None => Ok(Some(absent)),
            Some(Value::Null) => Ok(None),
            Some(_) => c.number(key, &MULTIPLIER).map(Some),
        };
        Ok(ModelShape {
            qkv_bias: bias,
            out_bias: bias,
            window,
            scales: Scales {
                embedding: f64::from(shape.hidden).sqrt(),
                attention: Some(scalar.powf(-0.5)),
                attention_cap: cap("attn_logit_softcapping", 50.0)?,
                logits_cap: cap("final_logit_softcapping", 30.0)?,
                ..Scales::default()
            },
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::all_rotated(s)?;
        super::no_head_norms(s)?;
        if !s.hidden.is_multiple_of(s.heads) {
            let need = format!("a multiple of the {} heads in this family", s.heads);
            return Err(wrong("hidden size", s.hidden, need));
        }
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
        Scales {
            embedding: f64::from(s.hidden).sqrt(),
            attention: Some(scalar(s).powf(-0.5)),
            attention_cap: s.scales.attention_cap,
            logits_cap: s.scales.logits_cap,
            ..Scales::default()
        }
    }

    fn embedding_factor(&self, s: &ModelShape, dtype: Dtype) -> f32 {
        gemma::embedding_factor(s, dtype)
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norm: Norm::RmsPlusOne,
            norms: Norms::Around,
            mlp: Mlp::Geglu,
            ..like_llama::layer(s, l)
        }
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        like_llama::block(list, s, l, &AROUND);
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "Gemma2ForCausalLM", "gemma2");
        config["hidden_act"] = json!("gelu_pytorch_tanh");
        config["hidden_activation"] = json!("gelu_pytorch_tanh");
        config["attention_bias"] = json!(s.out_bias);
        config["query_pre_attn_scalar"] = json!(scalar(s) as u64);
        config["attn_logit_softcapping"] = json!(s.scales.attention_cap);
        config["final_logit_softcapping"] = json!(s.scales.logits_cap);
        config["sliding_window"] = json!(s.window.as_ref().map_or(4096, |w| w.keys));
        config["layer_types"] = like_llama::layer_types(s);
        // Absent, it is a token that gets no gradient from lookups.
        config["pad_token_id"] = Value::Null;
        config
    }
}

/// `query_pre_attn_scalar`.
pub(super) fn scalar(s: &ModelShape) -> f64 {
    let factor = s.scales.attention.unwrap_or(0.0625);
    (1.0 / (factor * factor)).round()
}

/// The same of a configuration.
pub(super) fn read_scalar(c: &Config<'_>) -> Result<f64, ModelError> {
    let key = "query_pre_attn_scalar";
    let scalar = c.number_or(key, &SCALAR, 256.0)?;
    match scalar.fract() == 0.0 {
        true => Ok(scalar),
        false => Err(unsupported(key, &scalar.into(), SCALAR.expected)),
    }
}

/// `sliding_window`, which may be null where no layer has one.
pub(super) fn window_keys(c: &Config<'_>, sliding: &Layers) -> Result<Option<u32>, ModelError> {
    match c.map.get("sliding_window") {
        None => Ok(Some(4096)),
        Some(Value::Null) if sliding.is_empty() => Ok(None),
        Some(Value::Null) => {
            let need = "a number, as some layers have sliding_attention";
            Err(unsupported("sliding_window", &Value::Null, need))
        }
        Some(_) => c.size("sliding_window").map(Some),
    }
}
