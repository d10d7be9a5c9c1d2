//! The parameters of a decoder: how they lie in memory, and which tensors of a Hugging Face
//! checkpoint they are made of.
//!
//! Matrices that are multiplied with the same input are one parameter (`qkv`, `gate_up`): one
//! product instead of three or two. Rows are output features everywhere; GPT-2's files hold the
//! transpose. One list serves the description, the reader, the writer and the initialisation.

use std::ops::Range;

use lowtide_workload::{Family, ModelShape, Param};

/// What a parameter is for; decides its first values and whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Embedding, position table, head, or a product into the block.
    Matrix,
    /// A product back onto the residual stream.
    Residual,
    /// Scale of a norm.
    Norm,
    /// Bias of a product or a norm.
    Bias,
}

/// One parameter.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub name: String,
    pub unit: u32,
    /// Output features, or elements of a vector.
    pub rows: u64,
    /// Input features; 1 for a vector.
    pub cols: u64,
    pub role: Role,
    /// The file's tensors, in row order: name and rows.
    pub parts: Vec<(String, u64)>,
    /// The file's tensor is stored (input, output).
    pub transposed: bool,
}

impl Spec {
    pub fn elements(&self) -> u64 {
        self.rows * self.cols
    }

    pub fn param(&self) -> Param {
        let decay = matches!(self.role, Role::Matrix | Role::Residual);
        Param {
            name: self.name.clone(),
            unit: self.unit,
            elements: self.elements(),
            decay,
        }
    }
}

/// One tensor of a Hugging Face checkpoint and its place in a (fused) parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfTensor {
    /// Full name, e.g. `model.layers.3.self_attn.q_proj.weight`.
    pub name: String,
    /// Shape as stored in the file.
    pub shape: Vec<u64>,
    /// Index of the parameter in [`lowtide_workload::Workload::params`].
    pub param_idx: u32,
    /// Rows of the parameter that it fills.
    pub rows: Range<u64>,
    /// Columns of the parameter; 1 for a vector.
    pub cols: u64,
    /// Stored as (columns, rows): GPT-2's matrices.
    pub transposed: bool,
}

impl HfTensor {
    /// Its elements inside the parameter.
    #[must_use]
    pub fn elements(&self) -> Range<u64> {
        self.rows.start * self.cols..self.rows.end * self.cols
    }
}

/// Every tensor of the model's Hugging Face checkpoint, in parameter order. A tied head has none.
#[must_use]
pub fn hf_tensors(shape: &ModelShape) -> Vec<HfTensor> {
    let mut all = Vec::new();
    for (param_idx, spec) in specs(shape).into_iter().enumerate() {
        let matrix = matches!(spec.role, Role::Matrix | Role::Residual);
        let mut row = 0;
        for (name, rows) in spec.parts {
            let shape = match (matrix, spec.transposed) {
                (false, _) => vec![rows],
                (true, false) => vec![rows, spec.cols],
                (true, true) => vec![spec.cols, rows],
            };
            all.push(HfTensor {
                name,
                shape,
                param_idx: param_idx as u32,
                rows: row..row + rows,
                cols: spec.cols,
                transposed: spec.transposed,
            });
            row += rows;
        }
    }
    all
}

/// Every parameter: the embedding's, the blocks', the head's, each in order of use in forward.
pub(crate) fn specs(shape: &ModelShape) -> Vec<Spec> {
    let mut list = List {
        specs: Vec::new(),
        unit: 0,
        place: "embedding".to_owned(),
    };
    let (c, v) = (u64::from(shape.hidden), u64::from(shape.vocab));
    match shape.family {
        Family::Llama => {
            list.add("tokens", (v, c), Role::Matrix, "model.embed_tokens.weight");
        }
        Family::Gpt2 => {
            let p = u64::from(shape.max_positions);
            list.add("tokens", (v, c), Role::Matrix, "transformer.wte.weight");
            list.add("positions", (p, c), Role::Matrix, "transformer.wpe.weight");
        }
    }
    for l in 0..shape.layers {
        list.unit = l + 1;
        list.place = format!("blocks.{l}");
        match shape.family {
            Family::Llama => llama_block(&mut list, shape, &format!("model.layers.{l}")),
            Family::Gpt2 => gpt2_block(&mut list, shape, &format!("transformer.h.{l}")),
        }
    }
    list.unit = shape.layers + 1;
    list.place = "head".to_owned();
    match shape.family {
        Family::Llama => list.add("norm", (c, 1), Role::Norm, "model.norm.weight"),
        Family::Gpt2 => {
            list.add("norm", (c, 1), Role::Norm, "transformer.ln_f.weight");
            list.add("norm_bias", (c, 1), Role::Bias, "transformer.ln_f.bias");
        }
    }
    if !shape.tied {
        list.add("lm_head", (v, c), Role::Matrix, "lm_head.weight");
    }
    list.specs
}

struct List {
    specs: Vec<Spec>,
    unit: u32,
    place: String,
}

impl List {
    fn add(&mut self, name: &str, size: (u64, u64), role: Role, hf: &str) {
        self.fused(name, size, role, vec![(hf.to_owned(), size.0)]);
    }

    fn fused(&mut self, name: &str, size: (u64, u64), role: Role, parts: Vec<(String, u64)>) {
        let name = format!("{}.{name}", self.place);
        let (rows, cols) = size;
        let unit = self.unit;
        self.specs.push(Spec {
            name,
            unit,
            rows,
            cols,
            role,
            parts,
            transposed: false,
        });
    }

    /// A matrix that the file holds as (input, output).
    fn transposed(&mut self, name: &str, size: (u64, u64), role: Role, hf: &str) {
        self.add(name, size, role, hf);
        self.specs.last_mut().expect("just added").transposed = true;
    }
}

fn llama_block(list: &mut List, shape: &ModelShape, at: &str) {
    use Role::{Bias, Matrix, Norm, Residual};
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
    let qkv = |kind: &str| {
        [("q", q), ("k", kv), ("v", kv)]
            .map(|(p, rows)| (format!("{at}.self_attn.{p}_proj.{kind}"), rows))
            .to_vec()
    };
    let gate_up = |kind: &str| {
        ["gate", "up"]
            .map(|p| (format!("{at}.mlp.{p}_proj.{kind}"), f))
            .to_vec()
    };

    list.add(
        "norm1",
        (c, 1),
        Norm,
        &format!("{at}.input_layernorm.weight"),
    );
    list.fused("qkv", (all, c), Matrix, qkv("weight"));
    if shape.qkv_bias {
        list.fused("qkv_bias", (all, 1), Bias, qkv("bias"));
    }
    if shape.qk_norm {
        list.add(
            "q_norm",
            (d, 1),
            Norm,
            &format!("{at}.self_attn.q_norm.weight"),
        );
        list.add(
            "k_norm",
            (d, 1),
            Norm,
            &format!("{at}.self_attn.k_norm.weight"),
        );
    }
    list.add(
        "o",
        (c, q),
        Residual,
        &format!("{at}.self_attn.o_proj.weight"),
    );
    if shape.out_bias {
        list.add(
            "o_bias",
            (c, 1),
            Bias,
            &format!("{at}.self_attn.o_proj.bias"),
        );
    }
    list.add(
        "norm2",
        (c, 1),
        Norm,
        &format!("{at}.post_attention_layernorm.weight"),
    );
    list.fused("gate_up", (2 * f, c), Matrix, gate_up("weight"));
    if shape.mlp_bias {
        list.fused("gate_up_bias", (2 * f, 1), Bias, gate_up("bias"));
    }
    list.add(
        "down",
        (c, f),
        Residual,
        &format!("{at}.mlp.down_proj.weight"),
    );
    if shape.mlp_bias {
        list.add(
            "down_bias",
            (c, 1),
            Bias,
            &format!("{at}.mlp.down_proj.bias"),
        );
    }
}

fn gpt2_block(list: &mut List, shape: &ModelShape, at: &str) {
    use Role::{Bias, Matrix, Norm, Residual};
    let (c, f) = (u64::from(shape.hidden), u64::from(shape.intermediate));
    let (q, all) = (shape.attention_width(), shape.qkv_width());

    list.add("norm1", (c, 1), Norm, &format!("{at}.ln_1.weight"));
    list.add("norm1_bias", (c, 1), Bias, &format!("{at}.ln_1.bias"));
    list.transposed("qkv", (all, c), Matrix, &format!("{at}.attn.c_attn.weight"));
    list.add(
        "qkv_bias",
        (all, 1),
        Bias,
        &format!("{at}.attn.c_attn.bias"),
    );
    list.transposed("o", (c, q), Residual, &format!("{at}.attn.c_proj.weight"));
    list.add("o_bias", (c, 1), Bias, &format!("{at}.attn.c_proj.bias"));
    list.add("norm2", (c, 1), Norm, &format!("{at}.ln_2.weight"));
    list.add("norm2_bias", (c, 1), Bias, &format!("{at}.ln_2.bias"));
    list.transposed("up", (f, c), Matrix, &format!("{at}.mlp.c_fc.weight"));
    list.add("up_bias", (f, 1), Bias, &format!("{at}.mlp.c_fc.bias"));
    list.transposed("down", (c, f), Residual, &format!("{at}.mlp.c_proj.weight"));
    list.add("down_bias", (c, 1), Bias, &format!("{at}.mlp.c_proj.bias"));
}
