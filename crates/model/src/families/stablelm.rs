//! StableLM: Llama's block with layer norms, a part of each head rotated; attention and MLP may stand side by side,
//! behind one norm.

use lowtide_workload::{Family, ModelShape};
use serde_json::{Value, json};

use super::like_llama::{self, Absent, LLAMA, Names};
use super::{Allows, Architecture, Branches, Layer, Norm, rope};
use crate::ModelError;
use crate::config_json::keys::{Config, unsupported};
use crate::describe::check::wrong;
use crate::params::{List, Part, Role};

pub(super) struct StableLm;

impl Architecture for StableLm {
    fn types(&self) -> &'static [&'static str] {
        &["stablelm"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: Some(32),
            head_dim: None,
            max_positions: 4096,
            norm_eps: 1e-5,
            eps_key: "layer_norm_eps",
            tied: false,
            theta: 10_000.0,
            act: like_llama::SILU,
            longrope: &[],
            partial: Some(0.25),
        };
        if c.flag("qk_layernorm", false)? {
            let (key, value) = ("qk_layernorm", Value::Bool(true));
            return Err(unsupported(key, &value, "false"));
        }
        Ok(ModelShape {
            qkv_bias: c.flag("use_qkv_bias", false)?,
            parallel: c.flag("use_parallel_residual", false)?,
            ..like_llama::parse(c, Family::StableLm, name, &absent)?
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::divided_heads(s)?;
        super::all_rotated(s)?;
        super::no_windows(s)?;
        super::no_head_norms(s)?;
        if s.out_bias || s.mlp_bias {
            let need = "those of queries, keys and values, or none";
            return Err(wrong("places with biases", 1u32, need));
        }
        Ok(())
    }

    fn allows(&self) -> Allows {
        Allows {
            part_of_heads: true,
            parallel: true,
            ..Allows::default()
        }
    }

    fn norm(&self) -> Norm {
        Norm::Layer
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norm: Norm::Layer,
            branches: match s.parallel {
                true => Branches::ParallelOneNorm,
                false => Branches::InTurn,
            },
            ..like_llama::layer(s, l)
        }
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        let [before, after, before_mlp, after_mlp] = LLAMA.norms;
        let names = Names {
            norms: [before, after, before_mlp.filter(|_| !s.parallel), after_mlp],
            norm_bias: true,
            ..LLAMA
        };
        like_llama::block(list, s, l, &names);
    }

    fn head(&self, list: &mut List, s: &ModelShape) {
        like_llama::head(list, s);
        let size = (s.hidden.into(), 1);
        list.add(Part::Norm, size, Role::Bias, "model.norm.bias");
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "StableLmForCausalLM", "stablelm");
        let keys = config.as_object_mut().expect("an object");
        let eps = keys.remove("rms_norm_eps");
        keys.insert("layer_norm_eps".to_owned(), json!(eps));
        config["hidden_dropout"] = json!(0.0);
        config["use_qkv_bias"] = json!(s.qkv_bias);
        config["use_parallel_residual"] = json!(s.parallel);
        config["qk_layernorm"] = json!(false);
        // Absent, a quarter is rotated.
        let rope = s.rope.as_ref();
        let rotated = rope.map_or(s.head_dim, |rope| rope.rotated(s.head_dim));
        config["partial_rotary_factor"] = json!(rope::part(rotated, s.head_dim));
        config
    }
}
