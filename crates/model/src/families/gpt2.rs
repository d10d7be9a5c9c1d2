//! GPT-2: layer norms, learned positions, GELU (tanh), biases everywhere, matrices stored (input, output).

use lowtide_kernels::gelu::Form;
use lowtide_workload::{Family, Layers, ModelShape, Objective, Scales};
use serde_json::{Value, json};

use super::{Architecture, Branches, Layer, Mlp, Norm, Norms, QkNorm};
use crate::ModelError;
use crate::config_json::keys::{Config, EPS, unsupported};
use crate::describe::check::wrong;
use crate::params::{List, Part, Role};

pub(super) struct Gpt2;

impl Architecture for Gpt2 {
    fn types(&self) -> &'static [&'static str] {
        &["gpt2"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        c.one_of(
            "activation_function",
            &["gelu_new", "gelu_pytorch_tanh"],
            "gelu_new",
        )?;
        for (key, want) in [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("add_cross_attention", false),
        ] {
            if c.flag(key, want)? != want {
                let supported = if want { "true" } else { "false" };
                return Err(unsupported(key, &Value::Bool(!want), supported));
            }
        }
        let (hidden, heads) = (c.size("n_embd")?, c.size("n_head")?);
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let need = format!("a multiple of the {heads} heads");
            return Err(ModelError::Dimensions {
                what: "hidden size",
                have: hidden.into(),
                need,
            });
        }
        Ok(ModelShape {
            name: name.to_owned(),
            family: Family::Gpt2,
            vocab: c.size("vocab_size")?,
            hidden,
            intermediate: c
                .size_or_null("n_inner")?
                .unwrap_or(hidden.saturating_mul(4)),
            layers: c.size("n_layer")?,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            max_positions: c.size_or("n_positions", 1024)?,
            norm_eps: c.number_or("layer_norm_epsilon", &EPS, 1e-5)?,
            tied: c.flag("tie_word_embeddings", true)?,
            qkv_bias: true,
            out_bias: true,
            mlp_bias: true,
            qk_norm: false,
            rope: None,
            window: None,
            unrotated: Layers::default(),
            scales: Scales::default(),
            parallel: false,
            gelu_by_tanh: false,
            local_rope: None,
            experts: None,
            encoder: None,
            objective: Objective::default(),
            stacks: None,
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        if s.kv_heads != s.heads {
            let need = format!("{}, the number of heads", s.heads);
            return Err(wrong("number of key/value heads", s.kv_heads, need));
        }
        let biases = u32::from(s.qkv_bias) + u32::from(s.out_bias) + u32::from(s.mlp_bias);
        if biases != 3 {
            return Err(wrong("places with biases", biases, "all 3 in this family"));
        }
        if s.qk_norm || s.rope.is_some() {
            return Err(wrong(
                "rotary positions or head norms",
                1u32,
                "none in this family",
            ));
        }
        super::no_windows(s)?;
        super::all_rotated(s)
    }

    fn norm(&self) -> Norm {
        Norm::Layer
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norm: Norm::Layer,
            norms: Norms::Before,
            qk_norm: QkNorm::None,
            rotated: false,
            local: false,
            mask: s.mask(l),
            mlp: Mlp::Gelu(Form::Tanh),
            branches: Branches::InTurn,
            residual: 1.0,
        }
    }

    fn embedding(&self, list: &mut List, s: &ModelShape) {
        let (c, v, p) = (s.hidden.into(), s.vocab.into(), s.max_positions.into());
        list.add(Part::Tokens, (v, c), Role::Matrix, "transformer.wte.weight");
        list.add(
            Part::Positions,
            (p, c),
            Role::Matrix,
            "transformer.wpe.weight",
        );
    }

    fn block(&self, list: &mut List, shape: &ModelShape, l: u32) {
        let at = &format!("transformer.h.{l}");
        use Role::{Bias, Matrix, Norm, Residual};
        let (c, f) = (u64::from(shape.hidden), u64::from(shape.intermediate));
        let (q, all) = (shape.attention_width(), shape.qkv_width());

        list.add(Part::Norm1, (c, 1), Norm, &format!("{at}.ln_1.weight"));
        list.add(Part::Norm1, (c, 1), Bias, &format!("{at}.ln_1.bias"));
        list.transposed(
            Part::Qkv,
            (all, c),
            Matrix,
            &format!("{at}.attn.c_attn.weight"),
        );
        list.add(Part::Qkv, (all, 1), Bias, &format!("{at}.attn.c_attn.bias"));
        list.transposed(
            Part::O,
            (c, q),
            Residual,
            &format!("{at}.attn.c_proj.weight"),
        );
        list.add(Part::O, (c, 1), Bias, &format!("{at}.attn.c_proj.bias"));
        list.add(Part::Norm2, (c, 1), Norm, &format!("{at}.ln_2.weight"));
        list.add(Part::Norm2, (c, 1), Bias, &format!("{at}.ln_2.bias"));
        list.transposed(Part::Up, (f, c), Matrix, &format!("{at}.mlp.c_fc.weight"));
        list.add(Part::Up, (f, 1), Bias, &format!("{at}.mlp.c_fc.bias"));
        list.transposed(
            Part::Down,
            (c, f),
            Residual,
            &format!("{at}.mlp.c_proj.weight"),
        );
        list.add(Part::Down, (c, 1), Bias, &format!("{at}.mlp.c_proj.bias"));
    }

    fn head(&self, list: &mut List, s: &ModelShape) {
        let c = s.hidden.into();
        list.add(Part::Norm, (c, 1), Role::Norm, "transformer.ln_f.weight");
        list.add(Part::Norm, (c, 1), Role::Bias, "transformer.ln_f.bias");
    }

    fn config_json(&self, shape: &ModelShape) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": shape.vocab,
            "n_embd": shape.hidden,
            "n_inner": shape.intermediate,
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_positions": shape.max_positions,
            "layer_norm_epsilon": shape.norm_eps,
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": shape.tied,
        })
    }

    fn positions_key(&self) -> &'static str {
        "n_positions"
    }
}
