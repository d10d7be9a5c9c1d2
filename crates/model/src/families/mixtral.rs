//! Mixtral: Llama's block with experts in place of the MLP. The weights of a token's experts add up to 1. Where there
//! are windows, each layer has one.

use lowtide_workload::{Family, ModelShape};
use serde_json::{Value, json};

use super::like_llama::{self, Absent, LLAMA, Names};
use super::{Allows, Architecture, experts};
use crate::ModelError;
use crate::config_json::keys::{Config, unsupported};
use crate::describe::check::wrong;
use crate::params::List;

pub(super) struct Mixtral;

impl Architecture for Mixtral {
    fn types(&self) -> &'static [&'static str] {
        &["mixtral"]
    }

    fn parse(
        &self,
        c: &Config<'_>,
        _: &str,
        name: &str,
        longest: u32,
    ) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: Some(8),
            head_dim: None,
            max_positions: 131_072,
            norm_eps: 1e-5,
            eps_key: "rms_norm_eps",
            tied: false,
            theta: 1e6,
            act: like_llama::SILU,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Mixtral, name, &absent)?;
        let noise = "router_jitter_noise";
        if let Some(value) = c.get(noise).filter(|v| v.as_f64() != Some(0.0)) {
            return Err(unsupported(noise, value, "0"));
        }
        let absent = experts::Absent {
            count: 8,
            chosen: 2,
        };
        let keys = c.size_or_null("sliding_window")?;
        let window = experts::windows_everywhere(c, shape.layers, keys)?;
        let longest = shape.max_positions.min(longest);
        Ok(ModelShape {
            experts: Some(experts::parse(c, &absent, true)?),
            window: window.and_then(|(keys, all)| like_llama::window(keys, all, longest)),
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        experts::check(s)?;
        super::no_biases(s)?;
        match s.experts.is_some_and(|e| !e.renormalise) {
            true => {
                let need = "1, as their weights add up to, in this family";
                Err(wrong("sum of the weights of a token's experts", 0u32, need))
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

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        let names = Names {
            experts: experts::Names {
                at: "block_sparse_moe",
                gate: "w1",
                up: "w3",
                down: "w2",
            },
            ..LLAMA
        };
        like_llama::block(list, s, l, &names);
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "MixtralForCausalLM", "mixtral");
        config["sliding_window"] = json!(s.window.as_ref().map(|w| w.keys));
        experts::config_json(&mut config, s, "num_local_experts");
        config["router_jitter_noise"] = json!(0.0);
        config
    }
}
