//! What all families share whose blocks are Llama's: norms before attention and MLP, rotary positions, grouped queries,
//! SwiGLU; and the keys and tensors that they name alike.

use lowtide_workload::{Family, Layers, ModelShape, Objective, Rope, RopeScaling, Scales, Window};
use serde_json::{Value, json};

use super::{Branches, Layer, Mlp, Norm, Norms, QkNorm, experts, rope};
use crate::ModelError;
use crate::config_json::keys::{Config, EPS, bad, unsupported};
use crate::describe::check::wrong;
use crate::params::{HeadRows, List, Pairs, Part, Role};

/// The MLP's activation in a configuration: its key, and the names of the one that the family has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Act {
    pub key: &'static str,
    pub names: &'static [&'static str],
    pub expected: &'static str,
}

pub(super) const SILU: Act = Act {
    key: "hidden_act",
    names: &["silu", "swish"],
    expected: "silu",
};

/// What a family takes where a key is absent.
pub(super) struct Absent {
    /// `num_key_value_heads`; `None`: as many as heads.
    pub kv_heads: Option<u32>,
    /// `head_dim`; `None`: the hidden size divided among the heads.
    pub head_dim: Option<u32>,
    pub max_positions: u32,
    pub norm_eps: f64,
    /// The key of the norms' epsilon.
    pub eps_key: &'static str,
    pub tied: bool,
    pub theta: f64,
    pub act: Act,
    /// Other names of the rotary scaling `longrope`.
    pub longrope: &'static [&'static str],
    /// `partial_rotary_factor`, where the family can rotate a part of each head.
    pub partial: Option<f64>,
}

/// How the file's tensors cut the products that are one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// `q_proj`, `k_proj`, `v_proj`; `gate_proj`, `up_proj`.
    Each,
    /// `qkv_proj`; `gate_up_proj`.
    Fused,
}

/// What a family's files call the parts of a block, below the layer's own name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub cut: Cut,
    /// The norms before attention, behind it, before the MLP and behind it, where there are any.
    pub norms: [Option<&'static str>; 4],
    /// Norms have a bias.
    pub norm_bias: bool,
    /// The file rotates neighbours with each other, numbers 2i and 2i + 1 of a head.
    pub neighbours: bool,
    /// What the norms of queries and keys are of.
    pub qk_norm: QkNorm,
    /// Of the router and each expert, where there are any.
    pub experts: experts::Names,
}

/// Those of Llama.
pub(super) const LLAMA: Names = Names {
    cut: Cut::Each,
    norms: [
        Some("input_layernorm"),
        None,
        Some("post_attention_layernorm"),
        None,
    ],
    norm_bias: false,
    neighbours: false,
    qk_norm: QkNorm::Heads,
    experts: experts::PROJ,
};

/// The keys that all have, of a model without biases, head norms and windows.
pub(super) fn parse(
    c: &Config<'_>,
    family: Family,
    name: &str,
    absent: &Absent,
) -> Result<ModelShape, ModelError> {
    c.one_of(absent.act.key, absent.act.names, absent.act.expected)?;
    let (hidden, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let head_dim = match (c.size_or_null("head_dim")?, absent.head_dim) {
        (Some(d), _) | (None, Some(d)) => d,
        (None, None) if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        (None, None) => {
            let need = format!("a multiple of the {heads} heads, or a head_dim");
            return Err(ModelError::Dimensions {
                what: "hidden size",
                have: hidden.into(),
                need,
            });
        }
    };
    let layers = c.size("num_hidden_layers")?;
    // Before lists of layers are made.
    crate::describe::check::layers(layers)?;
    // Absent and null differ: null is one key head for each query head, whatever a class has by default.
    let kv_heads = match c.map.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        Some(_) => c.size("num_key_value_heads")?,
        None => absent.kv_heads.unwrap_or(heads),
    };
    let max_positions = c.size_or("max_position_embeddings", absent.max_positions)?;
    let rope = rope::Absent {
        theta: absent.theta,
        theta_key: "rope_theta",
        max_positions,
        longrope: absent.longrope,
        partial: absent.partial.map(|absent| rope::Partial {
            key: "partial_rotary_factor",
            head_dim,
            absent,
        }),
    };
    Ok(ModelShape {
        name: name.to_owned(),
        family,
        max_positions,
        vocab: c.size("vocab_size")?,
        hidden,
        intermediate: c.size("intermediate_size")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        norm_eps: c.number_or(absent.eps_key, &EPS, absent.norm_eps)?,
        tied: c.flag("tie_word_embeddings", absent.tied)?,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        rope: Some(rope::parse(c, &rope)?),
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

/// `layer_types`: which layers have a window, where the key is there.
pub(super) fn sliding(c: &Config<'_>, layers: u32) -> Result<Option<Layers>, ModelError> {
    let Some(types) = c.by_layer("layer_types", layers)? else {
        return Ok(None);
    };
    let known = |v: &Value| v == "full_attention" || v == "sliding_attention";
    if !types.iter().all(known) {
        let value = Value::from(types);
        let supported = "full_attention and sliding_attention";
        return Err(unsupported("layer_types", &value, supported));
    }
    let is = |l: u32| types[l as usize] == "sliding_attention";
    Ok(Some(Layers::those(layers, is)))
}

/// Windows of `keys` in `layers`, unless they never slide: over no sequence of `longest` tokens.
pub(super) fn window(keys: u32, layers: Layers, longest: u32) -> Option<Window> {
    let slides = keys < longest && !layers.is_empty();
    slides.then_some(Window { keys, layers })
}

/// No layer has a window where the configuration says that there is none.
pub(super) fn all_full(c: &Config<'_>, types: Option<&Layers>) -> Result<(), ModelError> {
    if types.is_some_and(|layers| !layers.is_empty()) {
        let value = c.get("layer_types").unwrap_or(&Value::Null);
        let need = "full_attention in every layer where use_sliding_window is false";
        return Err(bad("layer_types", value, need));
    }
    Ok(())
}

/// Writes what [`sliding`] reads.
pub(super) fn layer_types(s: &ModelShape) -> Value {
    let of = |l: u32| match s.window.as_ref().is_some_and(|w| w.layers.has(l)) {
        true => "sliding_attention",
        false => "full_attention",
    };
    (0..s.layers).map(of).collect()
}

/// What every such shape has, and the block needs.
pub(super) fn check(s: &ModelShape) -> Result<(), ModelError> {
    let Some(rope) = &s.rope else {
        let need = "one in this family";
        return Err(wrong("rotary position embedding", 0u32, need));
    };
    if !s.head_dim.is_multiple_of(2) {
        return Err(wrong("head size", s.head_dim, "an even number"));
    }
    if let RopeScaling::LongRope { short, long, .. } = &rope.scaling {
        let half = (rope.rotated(s.head_dim) / 2) as usize;
        let need = || format!("{half}, one for each two numbers of a head that are rotated");
        for list in [short, long] {
            if list.len() != half {
                let what = "length of short_factor or long_factor";
                return Err(wrong(what, list.len() as u64, need()));
            }
        }
    }
    Ok(())
}

pub(super) fn layer(s: &ModelShape, l: u32) -> Layer {
    Layer {
        norm: Norm::Rms,
        norms: Norms::Before,
        qk_norm: match s.qk_norm {
            true => QkNorm::Heads,
            false => QkNorm::None,
        },
        rotated: !s.unrotated.has(l),
        local: s.local_rope.as_ref().is_some_and(|r| r.layers.has(l)),
        mask: s.mask(l),
        mlp: match s.experts {
            None => Mlp::Swiglu,
            Some(_) => Mlp::Experts,
        },
        branches: Branches::InTurn,
        residual: s.scales.residual as f32,
    }
}

pub(super) fn embedding(list: &mut List, s: &ModelShape) {
    let size = (s.vocab.into(), s.hidden.into());
    list.add(
        Part::Tokens,
        size,
        Role::Matrix,
        "model.embed_tokens.weight",
    );
}

pub(super) fn head(list: &mut List, s: &ModelShape) {
    let c = s.hidden.into();
    list.add(Part::Norm, (c, 1), Role::Norm, "model.norm.weight");
}

/// The parameters of block `l`. Long because it is a list: tensors in order of use, each with its names in the file.
pub(super) fn block(list: &mut List, shape: &ModelShape, l: u32, names: &Names) {
    use Role::{Bias, Matrix, Norm, Residual};
    let at = format!("model.layers.{l}");
    let (c, f, d) = (
        u64::from(shape.hidden),
        u64::from(shape.intermediate),
        u64::from(shape.head_dim),
    );
    let (q, kv, all) = (
        shape.attention_width(),
        u64::from(shape.kv_heads) * d,
        shape.qkv_width(),
    );
    let qkv = |kind: &str| match names.cut {
        Cut::Each => [("q", q), ("k", kv), ("v", kv)]
            .map(|(p, rows)| (format!("{at}.self_attn.{p}_proj.{kind}"), rows))
            .to_vec(),
        Cut::Fused => vec![(format!("{at}.self_attn.qkv_proj.{kind}"), all)],
    };
    let gate_up = |kind: &str| match names.cut {
        Cut::Each => ["gate", "up"]
            .map(|p| (format!("{at}.mlp.{p}_proj.{kind}"), f))
            .to_vec(),
        Cut::Fused => vec![(format!("{at}.mlp.gate_up_proj.{kind}"), 2 * f)],
    };

    let norm = |list: &mut List, part: Part, i: usize| {
        if let Some(name) = names.norms[i] {
            list.add(part, (c, 1), Norm, &format!("{at}.{name}.weight"));
            if names.norm_bias {
                list.add(part, (c, 1), Bias, &format!("{at}.{name}.bias"));
            }
        }
    };
    norm(list, Part::Norm1, 0);
    list.fused(Part::Qkv, (all, c), Matrix, qkv("weight"));
    by_heads(list, shape, names);
    if shape.qkv_bias {
        list.fused(Part::Qkv, (all, 1), Bias, qkv("bias"));
        by_heads(list, shape, names);
    }
    if shape.qk_norm {
        let (q, k) = match names.qk_norm {
            QkNorm::Whole => (q, kv),
            _ => (d, d),
        };
        list.add(
            Part::QNorm,
            (q, 1),
            Norm,
            &format!("{at}.self_attn.q_norm.weight"),
        );
        list.add(
            Part::KNorm,
            (k, 1),
            Norm,
            &format!("{at}.self_attn.k_norm.weight"),
        );
    }
    list.add(
        Part::O,
        (c, q),
        Residual,
        &format!("{at}.self_attn.o_proj.weight"),
    );
    if shape.out_bias {
        list.add(
            Part::O,
            (c, 1),
            Bias,
            &format!("{at}.self_attn.o_proj.bias"),
        );
    }
    norm(list, Part::Norm1After, 1);
    norm(list, Part::Norm2, 2);
    if let Some(of) = shape.experts {
        experts::parameters(list, shape, of, &at, &names.experts);
        return norm(list, Part::Norm2After, 3);
    }
    list.fused(Part::GateUp, (2 * f, c), Matrix, gate_up("weight"));
    if shape.mlp_bias {
        list.fused(Part::GateUp, (2 * f, 1), Bias, gate_up("bias"));
    }
    list.add(
        Part::Down,
        (c, f),
        Residual,
        &format!("{at}.mlp.down_proj.weight"),
    );
    if shape.mlp_bias {
        list.add(
            Part::Down,
            (c, 1),
            Bias,
            &format!("{at}.mlp.down_proj.bias"),
        );
    }
    norm(list, Part::Norm2After, 3);
}

/// Where the file pairs other numbers of a head, the rows of queries and keys, just added, are in another order there.
fn by_heads(list: &mut List, s: &ModelShape, names: &Names) {
    let width = s.rope.as_ref().and_then(|rope| rope.width);
    let pairs = match (names.neighbours, width) {
        (true, _) => Pairs::Neighbours,
        (false, Some(rotated)) => Pairs::First(rotated.into()),
        (false, None) => return,
    };
    list.by_heads(HeadRows {
        head_dim: s.head_dim.into(),
        paired: u64::from(s.heads) + u64::from(s.kv_heads),
        pairs,
        together: None,
    });
}

/// The keys that all have, of an architecture and a type.
pub(super) fn config_json(shape: &ModelShape, architecture: &str, kind: &str) -> Value {
    let mut config = json!({
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.tied,
    });
    let plain = Rope {
        theta: 10_000.0,
        scaling: RopeScaling::None,
        width: None,
    };
    let rope = shape.rope.as_ref().unwrap_or(&plain);
    rope::write(rope, &mut config);
    if let Some(width) = rope.width {
        config["partial_rotary_factor"] = json!(rope::part(width, shape.head_dim));
    }
    config
}
