//! What encoders with BERT's block share: full attention with biases, layer norms of sums, GELU, an embedding of
//! tokens, types and positions with a norm, and a head that classifies a document by its first token.

use lowtide_kernels::gelu::Form;
use lowtide_workload::{Encoder, Family, Layers, Mask, ModelShape, Objective, Scales};
use serde_json::{Map, Value, json};

use super::{Allows, Branches, Layer, Mlp, Norm, Norms, QkNorm};
use crate::ModelError;
use crate::config_json::keys::{Config, EPS, bad, unsupported};
use crate::describe::check::{CLASSES_MAX, wrong};
use crate::params::{List, Part, Role};

/// Names of GELU by tanh: the last one has its constants with fewer digits.
const BY_TANH: [&str; 3] = ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"];

/// What a family's configuration leaves out.
pub(super) struct Absent {
    pub vocab: u32,
    /// Row of the table of positions that a document's first token has, by the padding token.
    pub first_position: fn(&Config<'_>) -> Result<u32, ModelError>,
}

pub(super) fn parse(
    c: &Config<'_>,
    family: Family,
    name: &str,
    absent: &Absent,
) -> Result<ModelShape, ModelError> {
    for key in ["is_decoder", "add_cross_attention"] {
        if c.flag(key, false)? {
            return Err(unsupported(key, &Value::Bool(true), "false"));
        }
    }
    c.one_of("position_embedding_type", &["absolute"], "absolute")?;
    c.one_of(
        "problem_type",
        &["single_label_classification"],
        "single_label_classification",
    )?;
    let (hidden, heads) = (
        c.size_or("hidden_size", 768)?,
        c.size_or("num_attention_heads", 12)?,
    );
    if !hidden.is_multiple_of(heads) {
        let need = format!("a multiple of the {heads} heads");
        return Err(wrong("hidden size", hidden, need));
    }
    let named = c.get("hidden_act").and_then(Value::as_str);
    let gelu_by_tanh = named.is_some_and(|name| BY_TANH.contains(&name));
    if !gelu_by_tanh {
        let known = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast";
        c.one_of("hidden_act", &["gelu"], known)?;
    }
    let first_position = (absent.first_position)(c)?;
    let table = c.size_or("max_position_embeddings", 512)?;
    let Some(max_positions) = table.checked_sub(first_position).filter(|&n| n > 0) else {
        let need = format!("more than the {first_position} that no token has");
        return Err(wrong("rows of the table of positions", table, need));
    };
    Ok(ModelShape {
        name: name.to_owned(),
        family,
        vocab: c.size_or("vocab_size", absent.vocab)?,
        hidden,
        intermediate: c.size_or("intermediate_size", 3072)?,
        layers: c.size_or("num_hidden_layers", 12)?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        max_positions,
        norm_eps: c.number_or("layer_norm_eps", &EPS, 1e-12)?,
        tied: false,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        qk_norm: false,
        rope: None,
        window: None,
        unrotated: Layers::default(),
        scales: Scales::default(),
        parallel: false,
        gelu_by_tanh,
        local_rope: None,
        experts: None,
        encoder: Some(Encoder {
            types: c.size_or("type_vocab_size", 2)?,
            first_position,
        }),
        objective: Objective::Classes(classes(c)?),
        stacks: None,
    })
}

/// How many classes there are: `id2label` has a name for each, two where it is absent.
fn classes(c: &Config<'_>) -> Result<u32, ModelError> {
    let need = "an object with a name for each class, from \"0\" on";
    let n = match c.get("id2label") {
        Some(value) => {
            let names = value
                .as_object()
                .ok_or_else(|| bad("id2label", value, need))?;
            let all =
                (0..names.len()).all(|i| names.get(&i.to_string()).is_some_and(Value::is_string));
            let n = u32::try_from(names.len()).ok().filter(|_| all);
            n.ok_or_else(|| bad("id2label", value, need))?
        }
        None => c.size_or("num_labels", 2)?,
    };
    match n {
        1 => Err(unsupported(
            "num_labels",
            &json!(1),
            "2 or more classes: nothing is fitted to numbers",
        )),
        n if n == 0 || n > CLASSES_MAX => {
            Err(wrong("number of classes", n, format!("2 to {CLASSES_MAX}")))
        }
        n => Ok(n),
    }
}

pub(super) fn check(s: &ModelShape) -> Result<(), ModelError> {
    if s.kv_heads != s.heads {
        let need = format!("{}, the number of heads", s.heads);
        return Err(wrong("number of key/value heads", s.kv_heads, need));
    }
    super::divided_heads(s)?;
    let biases = u32::from(s.qkv_bias) + u32::from(s.out_bias) + u32::from(s.mlp_bias);
    if biases != 3 {
        return Err(wrong("places with biases", biases, "all 3 in this family"));
    }
    if s.tied || s.rope.is_some() {
        let what = "tied heads or rotary positions";
        return Err(wrong(what, 1u32, "none in this family"));
    }
    super::no_head_norms(s)?;
    super::no_windows(s)?;
    super::all_rotated(s)
}

pub(super) fn allows() -> Allows {
    Allows {
        gelu_by_tanh: true,
        encoder: true,
        ..Allows::default()
    }
}

pub(super) fn layer(s: &ModelShape) -> Layer {
    Layer {
        norm: Norm::Layer,
        norms: Norms::OfSum,
        qk_norm: QkNorm::None,
        rotated: false,
        local: false,
        mask: Mask::Full,
        mlp: Mlp::Gelu(match s.gelu_by_tanh {
            true => Form::Tanh,
            false => Form::Exact,
        }),
        branches: Branches::InTurn,
        residual: 1.0,
    }
}

/// A weight and a bias of so many outputs.
fn product(list: &mut List, part: Part, (rows, cols): (u64, u64), name: &str) {
    list.add(part, (rows, cols), Role::Matrix, &format!("{name}.weight"));
    list.add(part, (rows, 1), Role::Bias, &format!("{name}.bias"));
}

fn norm(list: &mut List, part: Part, c: u64, name: &str) {
    list.add(part, (c, 1), Role::Norm, &format!("{name}.weight"));
    list.add(part, (c, 1), Role::Bias, &format!("{name}.bias"));
}

/// The embedding's parameters of a model whose tensors begin with `of`.
pub(super) fn embedding(list: &mut List, s: &ModelShape, of: &str) {
    let (c, at) = (u64::from(s.hidden), format!("{of}.embeddings"));
    let encoder = s.encoder.expect("the shape of an encoder");
    let positions = u64::from(s.max_positions) + u64::from(encoder.first_position);
    let tables = [
        (Part::Tokens, s.vocab.into(), "word_embeddings"),
        (Part::Types, encoder.types.into(), "token_type_embeddings"),
        (Part::Positions, positions, "position_embeddings"),
    ];
    for (part, rows, name) in tables {
        list.add(
            part,
            (rows, c),
            Role::Matrix,
            &format!("{at}.{name}.weight"),
        );
    }
    norm(list, Part::Norm, c, &format!("{at}.LayerNorm"));
}

pub(super) fn block(list: &mut List, s: &ModelShape, l: u32, of: &str) {
    let at = &format!("{of}.encoder.layer.{l}");
    let (c, f, q) = (
        u64::from(s.hidden),
        u64::from(s.intermediate),
        s.attention_width(),
    );
    for (role, cols, kind) in [(Role::Matrix, c, "weight"), (Role::Bias, 1, "bias")] {
        let parts =
            ["query", "key", "value"].map(|n| (format!("{at}.attention.self.{n}.{kind}"), q));
        list.fused(Part::Qkv, (3 * q, cols), role, parts.into());
    }
    product(
        list,
        Part::O,
        (c, q),
        &format!("{at}.attention.output.dense"),
    );
    norm(
        list,
        Part::Norm1,
        c,
        &format!("{at}.attention.output.LayerNorm"),
    );
    product(list, Part::Up, (f, c), &format!("{at}.intermediate.dense"));
    product(list, Part::Down, (c, f), &format!("{at}.output.dense"));
    norm(list, Part::Norm2, c, &format!("{at}.output.LayerNorm"));
}

/// The product before the tangent; [`crate::params::specs`] adds the one that makes logits.
pub(super) fn head(list: &mut List, s: &ModelShape, dense: &str) {
    let c = s.hidden.into();
    product(list, Part::Dense, (c, c), dense);
}

/// A configuration without what only one of the families has.
pub(super) fn config_json(s: &ModelShape, architecture: &str, model_type: &str) -> Value {
    let encoder = s.encoder.expect("the shape of an encoder");
    let n = s.objective.labels(s.vocab);
    let names = |i: u32| format!("LABEL_{i}");
    let id2label: Map<String, Value> = (0..n).map(|i| (i.to_string(), json!(names(i)))).collect();
    let label2id: Map<String, Value> = (0..n).map(|i| (names(i), json!(i))).collect();
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "max_position_embeddings": s.max_positions + encoder.first_position,
        "type_vocab_size": encoder.types,
        "layer_norm_eps": s.norm_eps,
        "hidden_act": if s.gelu_by_tanh { "gelu_new" } else { "gelu" },
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "problem_type": "single_label_classification",
        "id2label": id2label,
        "label2id": label2id,
    })
}
