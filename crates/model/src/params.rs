//! The parameters of a model: how they lie in memory, and which tensors of a Hugging Face
//! checkpoint they are made of.
//!
//! Matrices that are multiplied with the same input are one parameter (`qkv`, `gate_up`): one
//! product instead of three or two. Rows are output features everywhere; GPT-2's files hold the
//! transpose. One list serves the description, the reader, the writer and the initialisation.

use std::ops::Range;

use lowtide_workload::{ModelShape, Param, ParamId, ParamKind};

use crate::families;

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

/// Which parameter of its unit; with [`Role::Bias`] the bias to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The embedding's table of tokens.
    Tokens,
    /// The embedding's table of types.
    Types,
    /// The embedding's table of positions.
    Positions,
    /// The norm before attention, or of the sum behind it.
    Norm1,
    /// The product that makes queries, where keys and values have one of their own.
    Q,
    /// The product that makes keys and values.
    Kv,
    /// The norm before attention to an encoder.
    CrossNorm,
    /// The product that makes the queries of it.
    CrossQ,
    /// The product that makes keys and values of what the encoder puts out.
    CrossKv,
    /// The product behind it.
    CrossO,
    /// The product that makes queries, keys and values.
    Qkv,
    /// The norm of queries.
    QNorm,
    /// The norm of keys.
    KNorm,
    /// The product behind attention.
    O,
    /// The norm of what attention adds.
    Norm1After,
    /// The norm before the MLP, or of the sum behind it.
    Norm2,
    /// The product that says which experts a token takes.
    Router,
    /// The first product of a gated MLP, or those of all experts below one another.
    GateUp,
    /// The first product of another MLP.
    Up,
    /// The second product of an MLP, or those of all experts.
    Down,
    /// The norm of what the MLP adds.
    Norm2After,
    /// The head's norm; the embedding's, where it has one.
    Norm,
    /// The product before the tangent of a head that classifies.
    Dense,
    /// The head's matrix, where it is not the table of tokens.
    LmHead,
}

impl Part {
    /// Last part of a parameter's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Types => "types",
            Self::Positions => "positions",
            Self::Norm1 => "norm1",
            Self::Q => "q",
            Self::Kv => "kv",
            Self::CrossNorm => "cross_norm",
            Self::CrossQ => "cross_q",
            Self::CrossKv => "cross_kv",
            Self::CrossO => "cross_o",
            Self::Qkv => "qkv",
            Self::QNorm => "q_norm",
            Self::KNorm => "k_norm",
            Self::O => "o",
            Self::Norm1After => "norm1_after",
            Self::Norm2 => "norm2",
            Self::Router => "router",
            Self::GateUp => "gate_up",
            Self::Up => "up",
            Self::Down => "down",
            Self::Norm2After => "norm2_after",
            Self::Norm => "norm",
            Self::Dense => "dense",
            Self::LmHead => "lm_head",
        }
    }
}

/// One parameter, and where its tensors are in the model's files.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub name: String,
    pub part: Part,
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
    /// The file's rows stand in another order.
    pub heads: Option<HeadRows>,
}

/// The order of rows in a file's tensor of queries, keys or values, or of all of them. Here rows are head by head:
/// queries, then keys, then values; and in each head of queries and keys, number i is paired with number i + D/2,
/// with which it is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRows {
    /// D, the rows of a head.
    pub head_dim: u64,
    /// So many of the tensor's heads, its first ones, are paired in the file as `pairs` says; the others are as here.
    pub paired: u64,
    /// Which numbers of a head the file has rotated with each other.
    pub pairs: Pairs,
    /// Of so many heads the file has queries, keys and values behind one another; `None`: all queries first.
    pub together: Option<u64>,
}

/// Which numbers of a head are rotated with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Of the first so many numbers i and i + half as many; the others are not rotated.
    First(u64),
    /// Numbers 2i and 2i + 1.
    Neighbours,
}

impl Pairs {
    /// Which number of a file's head of `d` is number `i` here.
    fn in_file(self, i: u64, d: u64) -> u64 {
        let half = d / 2;
        let (side, i) = (i / half, i % half);
        match self {
            Self::First(rotated) => match (rotated / 2, i) {
                (turning, i) if i < turning => side * turning + i,
                (turning, i) => rotated + side * (half - turning) + i - turning,
            },
            Self::Neighbours => 2 * i + side,
        }
    }
}

impl HeadRows {
    /// Which row of the file's tensor is row `row` here.
    #[must_use]
    pub fn in_file(self, row: u64) -> u64 {
        let d = self.head_dim;
        let (head, i) = (row / d, row % d);
        let i = match head < self.paired {
            true => self.pairs.in_file(i, d),
            false => i,
        };
        let head = match self.together {
            Some(heads) => head % heads * 3 + head / heads,
            None => head,
        };
        head * d + i
    }

    /// Of a tensor that begins at row `first` of the parameter.
    fn from(self, first: u64, rows: u64) -> Option<Self> {
        let d = self.head_dim;
        let paired = self.paired.saturating_sub(first / d).min(rows / d);
        (paired > 0 || self.together.is_some()).then_some(Self { paired, ..self })
    }
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
            cols: self.cols,
            parts: match self.parts.as_slice() {
                [_] => Vec::new(),
                parts => parts.iter().map(|(_, rows)| *rows).collect(),
            },
            decay,
            frozen: false,
            kind: ParamKind::Own,
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
    /// Index of the parameter in [`file_params`].
    pub param: ParamId,
    /// Rows of the parameter that it fills.
    pub rows: Range<u64>,
    /// Columns of the parameter; 1 for a vector.
    pub cols: u64,
    /// Stored as (columns, rows): GPT-2's matrices.
    pub transposed: bool,
    /// Stored with its rows in another order.
    pub heads: Option<HeadRows>,
}

impl HfTensor {
    /// Its elements inside the parameter.
    #[must_use]
    pub fn elements(&self) -> Range<u64> {
        self.rows.start * self.cols..self.rows.end * self.cols
    }

    /// Which element of the file's tensor is element `i` of those that it has in the parameter.
    #[must_use]
    pub fn in_file(&self, i: u64) -> u64 {
        let (row, col) = (i / self.cols, i % self.cols);
        match (self.heads, self.transposed) {
            (Some(heads), _) => heads.in_file(row) * self.cols + col,
            (None, true) => col * (self.rows.end - self.rows.start) + row,
            (None, false) => i,
        }
    }
}

/// Every tensor of the model's Hugging Face checkpoint, in parameter order. A tied head has none.
#[must_use]
pub fn hf_tensors(shape: &ModelShape) -> Vec<HfTensor> {
    let mut all = Vec::new();
    let specs = specs(shape);
    for (param, spec) in specs.ids().zip(specs.clone()) {
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
                param,
                rows: row..row + rows,
                cols: spec.cols,
                transposed: spec.transposed,
                heads: spec.heads.and_then(|heads| heads.from(row, rows)),
            });
            row += rows;
        }
    }
    all
}

/// The parameters of the model's files, in the order whose indices [`HfTensor::param`], [`crate::frozen`],
/// [`crate::random_init`] and [`crate::Checkpoint`] mean: those of a workload in which every tensor is trained as it
/// is.
#[must_use]
pub fn file_params(shape: &ModelShape) -> lowtide_units::List<ParamId, Param> {
    specs(shape).iter().map(Spec::param).collect()
}

/// Every parameter: the embedding's, the blocks', the head's, each in order of use in forward.
pub(crate) fn specs(shape: &ModelShape) -> lowtide_units::List<ParamId, Spec> {
    let mut list = List {
        specs: Vec::new(),
        unit: 0,
        place: "embedding".to_owned(),
    };
    let c = u64::from(shape.hidden);
    let family = families::of(shape.family);
    if shape.stacks.is_some() {
        family.stacks(&mut list, shape);
        return list.specs.into();
    }
    family.embedding(&mut list, shape);
    for l in 0..shape.layers {
        list.unit = l + 1;
        list.place = format!("blocks.{l}");
        family.block(&mut list, shape, l);
    }
    list.unit = shape.layers + 1;
    list.place = "head".to_owned();
    family.head(&mut list, shape);
    if !shape.tied {
        let rows = shape.objective.labels(shape.vocab).into();
        list.add(Part::LmHead, (rows, c), Role::Matrix, family.lm_head());
        if !shape.objective.is_next_token() {
            list.add(Part::LmHead, (rows, 1), Role::Bias, family.lm_head_bias());
        }
    }
    list.specs.into()
}

/// The parameters of one unit after another, as a family adds them.
pub(crate) struct List {
    specs: Vec<Spec>,
    unit: u32,
    place: String,
}

impl List {
    /// What is added from here on is of this unit.
    pub fn begin(&mut self, unit: u32, place: String) {
        (self.unit, self.place) = (unit, place);
    }

    /// A parameter that is one tensor of the file.
    pub fn add(&mut self, part: Part, size: (u64, u64), role: Role, hf: &str) {
        self.fused(part, size, role, vec![(hf.to_owned(), size.0)]);
    }

    /// A parameter of several tensors of the file, by name and rows.
    pub fn fused(&mut self, part: Part, size: (u64, u64), role: Role, parts: Vec<(String, u64)>) {
        let bias = if role == Role::Bias { "_bias" } else { "" };
        let name = format!("{}.{}{bias}", self.place, part.name());
        let (rows, cols) = size;
        let unit = self.unit;
        self.specs.push(Spec {
            name,
            part,
            unit,
            rows,
            cols,
            role,
            parts,
            transposed: false,
            heads: None,
        });
    }

    /// The parameter just added has its rows in another order in the file.
    pub fn by_heads(&mut self, heads: HeadRows) {
        self.specs.last_mut().expect("just added").heads = Some(heads);
    }

    /// A matrix that the file holds as (input, output).
    pub fn transposed(&mut self, part: Part, size: (u64, u64), role: Role, hf: &str) {
        self.add(part, size, role, hf);
        self.specs.last_mut().expect("just added").transposed = true;
    }
}
