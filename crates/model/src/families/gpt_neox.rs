//! GPT-NeoX and Pythia: layer norms, a part of each head rotated, GELU, biases; attention and MLP side by side,
//! unless a configuration has them in turn. The file holds queries, keys and values of a head behind one another.

use lowtide_kernels::gelu::Form;
use lowtide_workload::{Family, Layers, ModelShape, Objective, Scales};
use serde_json::{Value, json};

use super::{Allows, Architecture, Branches, Layer, Mlp, Norm, Norms, QkNorm, rope};
use crate::ModelError;
use crate::config_json::keys::{Config, EPS};
use crate::describe::check::wrong;
use crate::params::{HeadRows, List, Pairs, Part, Role};

pub(super) struct GptNeoX;

/// Names of GELU by tanh: the last one has its constants with fewer digits.
const BY_TANH: [&str; 3] = ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"];

impl Architecture for GptNeoX {
    fn types(&self) -> &'static [&'static str] {
        &["gpt_neox"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let (hidden, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let need = format!("a multiple of the {heads} heads");
            return Err(wrong("hidden size", hidden, need));
        }
        let named = c.get("hidden_act").and_then(Value::as_str);
        let gelu_by_tanh = named.is_some_and(|name| BY_TANH.contains(&name));
        if !gelu_by_tanh {
            c.one_of(
                "hidden_act",
                &["gelu"],
                "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast",
            )?;
        }
        let max_positions = c.size_or("max_position_embeddings", 2048)?;
        let absent = rope::Absent {
            theta: 10_000.0,
            theta_key: "rotary_emb_base",
            max_positions,
            partial: Some(rope::Partial {
                key: "rotary_pct",
                head_dim: hidden / heads,
                absent: 0.25,
            }),
            longrope: &[],
        };
        let attention_bias = c.flag("attention_bias", true)?;
        Ok(ModelShape {
            name: name.to_owned(),
            family: Family::GptNeoX,
            vocab: c.size("vocab_size")?,
            hidden,
            intermediate: c.size("intermediate_size")?,
            layers: c.size("num_hidden_layers")?,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            max_positions,
            norm_eps: c.number_or("layer_norm_eps", &EPS, 1e-5)?,
            tied: c.flag("tie_word_embeddings", false)?,
            qkv_bias: attention_bias,
            out_bias: attention_bias,
            mlp_bias: true,
            qk_norm: false,
            rope: Some(rope::parse(c, &absent)?),
            window: None,
            unrotated: Layers::default(),
            scales: Scales::default(),
            parallel: c.flag("use_parallel_residual", true)?,
            gelu_by_tanh,
            local_rope: None,
            experts: None,
            encoder: None,
            objective: Objective::default(),
            stacks: None,
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        super::like_llama::check(s)?;
        if s.kv_heads != s.heads {
            let need = format!("{}, the number of heads", s.heads);
            return Err(wrong("number of key/value heads", s.kv_heads, need));
        }
        super::divided_heads(s)?;
        if !s.mlp_bias || s.qkv_bias != s.out_bias {
            let need = "those of the MLP, and both of attention or none";
            return Err(wrong("places with biases", 1u32, need));
        }
        super::no_head_norms(s)?;
        super::no_windows(s)?;
        super::all_rotated(s)
    }

    fn allows(&self) -> Allows {
        Allows {
            part_of_heads: true,
            parallel: true,
            gelu_by_tanh: true,
            ..Allows::default()
        }
    }

    fn norm(&self) -> Norm {
        Norm::Layer
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norm: Norm::Layer,
            norms: Norms::Before,
            qk_norm: QkNorm::None,
            rotated: true,
            local: false,
            mask: s.mask(l),
            mlp: Mlp::Gelu(match s.gelu_by_tanh {
                true => Form::Tanh,
                false => Form::Exact,
            }),
            branches: match s.parallel {
                true => Branches::Parallel,
                false => Branches::InTurn,
            },
            residual: 1.0,
        }
    }

    fn embedding(&self, list: &mut List, s: &ModelShape) {
        let size = (s.vocab.into(), s.hidden.into());
        list.add(Part::Tokens, size, Role::Matrix, "gpt_neox.embed_in.weight");
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        use Role::{Bias, Matrix, Norm, Residual};
        let at = &format!("gpt_neox.layers.{l}");
        let (c, f) = (u64::from(s.hidden), u64::from(s.intermediate));
        let (q, all) = (s.attention_width(), s.qkv_width());
        let heads = u64::from(s.heads);
        let rope = s.rope.as_ref();
        let rotated = rope.map_or(s.head_dim, |rope| rope.rotated(s.head_dim));
        let by_heads = HeadRows {
            head_dim: s.head_dim.into(),
            paired: 2 * heads,
            pairs: Pairs::First(rotated.into()),
            together: Some(heads),
        };
        let norm = |list: &mut List, part: Part, name: &str| {
            list.add(part, (c, 1), Norm, &format!("{at}.{name}.weight"));
            list.add(part, (c, 1), Bias, &format!("{at}.{name}.bias"));
        };

        norm(list, Part::Norm1, "input_layernorm");
        let name = format!("{at}.attention.query_key_value");
        list.add(Part::Qkv, (all, c), Matrix, &format!("{name}.weight"));
        list.by_heads(by_heads);
        if s.qkv_bias {
            list.add(Part::Qkv, (all, 1), Bias, &format!("{name}.bias"));
            list.by_heads(by_heads);
        }
        let name = format!("{at}.attention.dense");
        list.add(Part::O, (c, q), Residual, &format!("{name}.weight"));
        if s.out_bias {
            list.add(Part::O, (c, 1), Bias, &format!("{name}.bias"));
        }
        norm(list, Part::Norm2, "post_attention_layernorm");
        let name = format!("{at}.mlp.dense_h_to_4h");
        list.add(Part::Up, (f, c), Matrix, &format!("{name}.weight"));
        list.add(Part::Up, (f, 1), Bias, &format!("{name}.bias"));
        let name = format!("{at}.mlp.dense_4h_to_h");
        list.add(Part::Down, (c, f), Residual, &format!("{name}.weight"));
        list.add(Part::Down, (c, 1), Bias, &format!("{name}.bias"));
    }

    fn head(&self, list: &mut List, s: &ModelShape) {
        let (c, name) = (s.hidden.into(), "gpt_neox.final_layer_norm");
        list.add(Part::Norm, (c, 1), Role::Norm, &format!("{name}.weight"));
        list.add(Part::Norm, (c, 1), Role::Bias, &format!("{name}.bias"));
    }

    fn lm_head(&self) -> &'static str {
        "embed_out.weight"
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": s.vocab,
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "max_position_embeddings": s.max_positions,
            "layer_norm_eps": s.norm_eps,
            "hidden_act": if s.gelu_by_tanh { "gelu_new" } else { "gelu" },
            "attention_bias": s.out_bias,
            "use_parallel_residual": s.parallel,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "tie_word_embeddings": s.tied,
        });
        if let Some(rope) = &s.rope {
            rope::write(rope, &mut config);
            // Its own names of two keys.
            let keys = config.as_object_mut().expect("an object");
            keys.remove("rope_theta");
            config["rotary_emb_base"] = json!(rope.theta);
            let rotated = rope.rotated(s.head_dim);
            config["rotary_pct"] = json!(rope::part(rotated, s.head_dim));
        }
        config
    }
}
