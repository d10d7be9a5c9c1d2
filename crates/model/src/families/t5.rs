//! T5: an encoder and a decoder whose blocks attend to what the encoder puts out; root-mean-square norms before each
//! part, no bias anywhere, scores that are not scaled but have a number for each head and bucket of distances added,
//! ReLU or a gated GELU (T5; T5 v1.1 and Flan-T5). A table of tokens for both stacks, and for the head where it is
//! tied; a tied head's logits are divided by the root of the hidden size.

use lowtide_kernels::gelu::Form;
use lowtide_kernels::relative;
use lowtide_workload::{Family, Layers, ModelShape, Objective, Scales, Stacks};
use serde_json::{Value, json};

use super::{Allows, Architecture, Branches, Layer, Mlp, Norm, Norms, QkNorm};
use crate::ModelError;
use crate::config_json::keys::{Config, EPS, unsupported};
use crate::describe::check::wrong;
use crate::params::{List, Part, Role};

pub(super) struct T5;

/// Relative positions have no end; what is counted needs one.
const LONGEST: u32 = 1 << 20;
/// Most buckets of distances.
const BUCKETS_MAX: u32 = 1 << 12;

impl Architecture for T5 {
    fn types(&self) -> &'static [&'static str] {
        &["t5"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let gated = match c.get("feed_forward_proj") {
            None => false,
            Some(value) => match value.as_str() {
                Some("relu") => false,
                Some("gated-gelu") => true,
                _ => {
                    let supported = "relu, gated-gelu";
                    return Err(unsupported("feed_forward_proj", value, supported));
                }
            },
        };
        // What transformers saves beside it and believes where the two differ.
        if c.flag("is_gated_act", gated)? != gated {
            let supported = if gated { "true" } else { "false" };
            return Err(unsupported("is_gated_act", &(!gated).into(), supported));
        }
        let act = if gated { "gelu_new" } else { "relu" };
        if let Some(value) = c.get("dense_act_fn")
            && value.as_str() != Some(act)
        {
            return Err(unsupported("dense_act_fn", value, act));
        }
        let (hidden, heads) = (c.size("d_model")?, c.size("num_heads")?);
        let encoder = c.size("num_layers")?;
        // transformers 5 saves `tie_word_embeddings: true` of every model; which of them have a head of their own says
        // whether the decoder's output is scaled.
        let tie = c.flag("tie_word_embeddings", true)?;
        let scaled = c.flag("scale_decoder_outputs", tie)?;
        if scaled && !tie {
            return Err(unsupported("scale_decoder_outputs", &true.into(), "false"));
        }
        let tied = tie && scaled;
        let shape = ModelShape {
            name: name.to_owned(),
            family: Family::T5,
            vocab: c.size("vocab_size")?,
            hidden,
            intermediate: c.size("d_ff")?,
            layers: c.size_or_null("num_decoder_layers")?.unwrap_or(encoder),
            heads,
            kv_heads: heads,
            head_dim: c.size("d_kv")?,
            max_positions: LONGEST,
            norm_eps: c.number_or("layer_norm_epsilon", &EPS, 1e-6)?,
            tied,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            rope: None,
            window: None,
            unrotated: Layers::default(),
            scales: scales(hidden, tied),
            parallel: false,
            gelu_by_tanh: false,
            local_rope: None,
            experts: None,
            encoder: None,
            objective: Objective::default(),
            stacks: Some(Stacks {
                encoder,
                buckets: c.size_or("relative_attention_num_buckets", 32)?,
                distance: c.size_or("relative_attention_max_distance", 128)?,
                gated,
            }),
        };
        Ok(shape)
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        let Some(stacks) = s.stacks else {
            return Err(wrong("layers of an encoder", 0u32, "some in this family"));
        };
        if stacks.encoder == 0 {
            return Err(wrong("layers of an encoder", 0u32, "at least 1"));
        }
        crate::describe::check::layers(stacks.encoder)?;
        let (buckets, distance) = (stacks.buckets, stacks.distance);
        if !(4..=BUCKETS_MAX).contains(&buckets) || !buckets.is_multiple_of(4) {
            let need = format!("a multiple of 4 up to {BUCKETS_MAX}");
            return Err(wrong("buckets of relative positions", buckets, need));
        }
        if distance <= buckets / 2 || distance > LONGEST {
            let need = format!("above {}, half of the buckets", buckets / 2);
            return Err(wrong("most distant relative position", distance, need));
        }
        if s.head_dim as usize > relative::HEAD {
            let need = format!("at most {} in this family", relative::HEAD);
            return Err(wrong("head size", s.head_dim, need));
        }
        if s.kv_heads != s.heads {
            let need = format!("{}, the number of heads", s.heads);
            return Err(wrong("number of key/value heads", s.kv_heads, need));
        }
        if s.rope.is_some() {
            return Err(wrong("rotary positions", 1u32, "none in this family"));
        }
        super::no_biases(s)?;
        super::no_windows(s)?;
        super::all_rotated(s)
    }

    fn scales(&self, s: &ModelShape) -> Scales {
        scales(s.hidden, s.tied)
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        let gated = s.stacks.is_some_and(|stacks| stacks.gated);
        Layer {
            norm: Norm::Rms,
            norms: Norms::Before,
            qk_norm: QkNorm::None,
            rotated: false,
            local: false,
            mask: s.mask(l),
            mlp: match gated {
                true => Mlp::Geglu,
                false => Mlp::Gelu(Form::Relu),
            },
            branches: Branches::InTurn,
            residual: 1.0,
        }
    }

    fn allows(&self) -> Allows {
        Allows {
            stacks: true,
            ..Allows::default()
        }
    }

    fn stacks(&self, list: &mut List, s: &ModelShape) {
        specs(list, s);
    }

    /// As transformers draws them: scores are not scaled, so queries are small.
    fn deviation(&self, part: Part, s: &ModelShape) -> Option<f64> {
        let root = |n: u64| Some(1.0 / (n as f64).sqrt());
        let (c, d) = (u64::from(s.hidden), u64::from(s.head_dim));
        match part {
            Part::Tokens | Part::LmHead => Some(1.0),
            Part::Q | Part::CrossQ => root(c * d),
            Part::O | Part::CrossO => root(s.attention_width()),
            Part::Down => root(u64::from(s.intermediate)),
            _ => root(c),
        }
    }

    /// Copies of the one table of tokens, and a table that the first T5's files have for attention to the encoder,
    /// which has no positions: transformers reads neither.
    fn ignores(&self, name: &str) -> bool {
        let copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
        copies.contains(&name) || name.ends_with("EncDecAttention.relative_attention_bias.weight")
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let stacks = s.stacks.expect("a shape of this family has an encoder");
        json!({
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "is_encoder_decoder": true,
            "vocab_size": s.vocab,
            "d_model": s.hidden,
            "d_kv": s.head_dim,
            "d_ff": s.intermediate,
            "num_layers": stacks.encoder,
            "num_decoder_layers": s.layers,
            "num_heads": s.heads,
            "relative_attention_num_buckets": stacks.buckets,
            "relative_attention_max_distance": stacks.distance,
            "layer_norm_epsilon": s.norm_eps,
            "feed_forward_proj": if stacks.gated { "gated-gelu" } else { "relu" },
            "tie_word_embeddings": s.tied,
            "dropout_rate": 0.0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        })
    }
}

fn scales(hidden: u32, tied: bool) -> Scales {
    Scales {
        attention: Some(1.0),
        logits_divisor: if tied { f64::from(hidden).sqrt() } else { 1.0 },
        ..Scales::default()
    }
}

/// The units' parameters: both embeddings read the first one's table.
fn specs(list: &mut List, s: &ModelShape) {
    let stacks = s.stacks.expect("a shape of this family has an encoder");
    let (c, v) = (u64::from(s.hidden), u64::from(s.vocab));
    let mut unit = 0;
    for (stack, layers) in [("encoder", stacks.encoder), ("decoder", s.layers)] {
        let encoder = stack == "encoder";
        list.begin(unit, format!("{stack}.embedding"));
        if encoder {
            list.add(Part::Tokens, (v, c), Role::Matrix, "shared.weight");
        }
        list.begin(unit + 1, format!("{stack}.positions"));
        let table = (u64::from(stacks.buckets), u64::from(s.heads));
        let name = "layer.0.SelfAttention.relative_attention_bias.weight";
        let name = format!("{stack}.block.0.{name}");
        list.add(Part::Positions, table, Role::Matrix, &name);
        unit += 2;
        for l in 0..layers {
            list.begin(unit, format!("{stack}.blocks.{l}"));
            block(list, s, &format!("{stack}.block.{l}.layer"), encoder);
            unit += 1;
        }
        list.begin(
            unit,
            if encoder { "encoder.end" } else { "head" }.to_owned(),
        );
        let name = format!("{stack}.final_layer_norm.weight");
        list.add(Part::Norm, (c, 1), Role::Norm, &name);
        unit += 1;
    }
    if !s.tied {
        list.add(Part::LmHead, (v, c), Role::Matrix, "lm_head.weight");
    }
}

fn block(list: &mut List, s: &ModelShape, at: &str, encoder: bool) {
    use Role::{Matrix, Norm, Residual};
    let stacks = s.stacks.expect("a shape of this family has an encoder");
    let (c, f, q) = (
        u64::from(s.hidden),
        u64::from(s.intermediate),
        s.attention_width(),
    );
    let mut attention = |n: u32, name: &str, [norm, of_q, of_kv, o]: [Part; 4]| {
        let own = format!("{at}.{n}.{name}");
        let of = |part: &str| (format!("{own}.{part}.weight"), q);
        list.add(norm, (c, 1), Norm, &format!("{at}.{n}.layer_norm.weight"));
        list.add(of_q, (q, c), Matrix, &of("q").0);
        list.fused(of_kv, (2 * q, c), Matrix, vec![of("k"), of("v")]);
        list.add(o, (c, q), Residual, &of("o").0);
    };
    let own = [Part::Norm1, Part::Q, Part::Kv, Part::O];
    attention(0, "SelfAttention", own);
    if !encoder {
        let cross = [Part::CrossNorm, Part::CrossQ, Part::CrossKv, Part::CrossO];
        attention(1, "EncDecAttention", cross);
    }
    let at = format!("{at}.{}", if encoder { 1 } else { 2 });
    let mlp = |part: &str| format!("{at}.DenseReluDense.{part}.weight");
    list.add(
        Part::Norm2,
        (c, 1),
        Norm,
        &format!("{at}.layer_norm.weight"),
    );
    match stacks.gated {
        true => {
            let parts = vec![(mlp("wi_0"), f), (mlp("wi_1"), f)];
            list.fused(Part::GateUp, (2 * f, c), Matrix, parts);
        }
        false => list.add(Part::Up, (f, c), Matrix, &mlp("wi")),
    }
    list.add(Part::Down, (c, f), Residual, &mlp("wo"));
}
