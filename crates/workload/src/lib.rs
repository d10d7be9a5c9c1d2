//! What one training step computes and moves, in numbers, without an address.
//!
//! A [`Workload`] is written by the model about itself and read by the planner, which never sees
//! the model: **units** (embeddings, blocks, the head) in forward order, each with its
//! parameters, its local tensors, what it reads of earlier units and its **operations**. An operation names every
//! tensor that it reads, writes or adds to, in the order in which the model's `run` expects them; from that alone
//! the planner derives what must be saved, what can be recomputed, what is live when, and what has
//! to be on the device for which operation.
//!
//! Letters: B micro-batch, T sequence, C hidden, F intermediate, H heads, KV key/value heads,
//! D head size, V vocabulary, L blocks.
//!
//! One file because it is the language between the model and the planner, read from top to bottom.

mod optimizer;
mod shape;
mod strategy;

pub use optimizer::{
    About, Encoding, Extent, Factoring, Init, Moments, Optimizer, OptimizerName, Role, Setting,
    StateArray, StateSpec,
};
pub use shape::{
    Encoder, Experts, Family, Layers, LocalRope, Mask, ModelShape, Objective, Rope, RopeScaling,
    Scales, Stacks, Window, builtin_names,
};
pub use strategy::{Lsp, Projector};

use std::ops::Range;

use lowtide_units::{Bytes, Flops, List, align_up, id};
use serde::{Deserialize, Serialize};

/// The type of a number in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl Dtype {
    /// Bytes of one number.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// `bf16` or `f32`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// How one batch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Batch {
    /// B: sequences of one micro-batch.
    pub micro_batch: u32,
    /// T: tokens of one sequence.
    pub seq: u32,
    /// M: micro-batches of one batch (one update).
    pub accumulate: u32,
    /// Tokens of one sequence's target, where `seq` are those of its source; 0 where there is no such pair.
    #[serde(default, skip_serializing_if = "is_none")]
    pub target: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_none(target: &u32) -> bool {
    *target == 0
}

impl Batch {
    /// B·T: tokens of one micro-batch; of pairs those of their sources.
    #[must_use]
    pub fn rows(self) -> u64 {
        u64::from(self.micro_batch) * u64::from(self.seq)
    }

    /// Tokens of one micro-batch, those of targets behind those of sources.
    #[must_use]
    pub fn input_rows(self) -> u64 {
        u64::from(self.micro_batch) * (u64::from(self.seq) + u64::from(self.target))
    }

    /// Tokens of one batch, padding included.
    #[must_use]
    pub fn tokens(self) -> u64 {
        self.input_rows() * u64::from(self.accumulate)
    }

    /// Bytes of one micro-batch's inputs: four `i32` a token, in four planes of B·T each (of pairs each plane has
    /// sources, then targets): tokens, labels (-100: no loss; -101: none either, and of the second text of its
    /// document), positions in the document, first index of the document in its row.
    #[must_use]
    pub fn input_bytes(self) -> Bytes {
        Bytes(16 * self.input_rows())
    }
}

/// Alignment of a parameter inside its piece, in numbers: 256 bytes also in bf16.
pub const PARAM_ALIGN: u64 = 128;
/// Alignment of a piece, in numbers: whole 4 KiB pages also in bf16, so that every role of a piece
/// is a whole number of disk sectors.
pub const PIECE_ALIGN: u64 = 2048;
/// The gradient norm is a sum over fixed runs of this many numbers, in parameter order.
pub const NORM_CHUNK: u64 = 1 << 16;

id! {
    /// Which of [`Workload::params`].
    pub struct ParamId(u32);
}

/// What a parameter is to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParamKind {
    /// A tensor of the model.
    #[default]
    Own,
    /// A matrix of the model to which a product of a core and a projector is added where it is used; frozen.
    Base,
    /// The directions in which a base is trained; frozen, and no part of the model.
    Projector,
    /// What is trained in a base's place; no part of the model.
    Core,
}

impl ParamKind {
    /// Whether it is [`ParamKind::Own`].
    #[must_use]
    pub fn is_own(&self) -> bool {
        *self == Self::Own
    }

    /// Whether its numbers are among those that the model has.
    #[must_use]
    pub fn of_the_model(self) -> bool {
        matches!(self, Self::Own | Self::Base)
    }
}

/// One parameter tensor as it lies in memory (several of the file's tensors may be fused in it).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Param {
    /// Name, e.g. `blocks.3.qkv`.
    pub name: String,
    /// Index of the unit that owns it.
    pub unit: u32,
    /// Numbers in it: rows times columns.
    pub elements: u64,
    /// Columns: input features of a matrix, 1 of a vector.
    pub cols: u64,
    /// Rows of each of the tensors that are fused in it, in order; empty where it is one tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<u64>,
    /// Whether weight decay applies (matrices and embeddings: yes; norms and biases: no).
    pub decay: bool,
    /// Whether it stays as it is: it then has no gradient, no optimizer state and no update.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
    /// What it is to the model.
    #[serde(default, skip_serializing_if = "ParamKind::is_own")]
    pub kind: ParamKind,
}

impl Param {
    /// Rows: output features of a matrix, numbers of a vector.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.elements / self.cols
    }

    /// One without a name, for those who measure: a matrix of so many numbers, a multiple of 128, as square as it
    /// may be with a power of two of columns up to 4096.
    #[must_use]
    pub fn sample(elements: u64) -> Self {
        let root = elements.isqrt().max(1);
        let cols = 1 << elements.trailing_zeros().min(root.ilog2()).min(12);
        Self {
            name: String::new(),
            unit: 0,
            elements,
            cols,
            parts: Vec::new(),
            decay: true,
            frozen: false,
            kind: ParamKind::Own,
        }
    }

    /// The tensors that are fused in it: the first row of each, and its rows.
    pub fn tensors(&self) -> impl Iterator<Item = Range<u64>> {
        let whole = self.parts.is_empty().then(|| self.rows());
        let mut end = 0;
        self.parts.iter().copied().chain(whole).map(move |rows| {
            let start = end;
            end += rows;
            start..end
        })
    }

    /// Numbers it takes inside its piece.
    #[must_use]
    pub fn padded(&self) -> u64 {
        align_up(self.elements, PARAM_ALIGN)
    }

    /// Norm partial sums of this parameter; a frozen one has none.
    #[must_use]
    pub fn norm_chunks(&self) -> u64 {
        match self.frozen {
            true => 0,
            false => self.elements.div_ceil(NORM_CHUNK),
        }
    }
}

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum What {
    /// A local tensor of the unit, one for each micro-batch.
    Local(LocalId),
    /// A parameter's weight.
    Weight(ParamId),
    /// A parameter's gradient, accumulated in f32 over the batch.
    Gradient(ParamId),
    /// The unit's keys and values that are kept from one step of decoding to the next, see [`Unit::cache`].
    Cache,
    /// The micro-batch's inputs, see [`Batch::input_bytes`].
    Inputs,
    /// The micro-batch's loss as two `f64`: the sum over supervised tokens, and their count. In an evaluation the
    /// second one has two counts in its halves: these tokens, and those whose label is the most likely token.
    Loss,
}

/// What an operation does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Reads all of it.
    Read,
    /// Overwrites all of it.
    Write,
    /// Adds to it. A parameter's gradient: or overwrites it when it is the first of the batch to touch it. Of local
    /// tensors: an input's gradient alone, which a later reader has written, see [`Input`]. Of a cache: writes a part.
    Accumulate,
}

/// One operand of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operand {
    /// The tensor that is used.
    pub what: What,
    /// Whether it is read, overwritten or added to.
    pub access: Access,
}

impl Operand {
    /// Reads local tensor `i`.
    #[must_use]
    pub fn read(what: What) -> Self {
        Self {
            what,
            access: Access::Read,
        }
    }
    /// Writes `what`.
    #[must_use]
    pub fn write(what: What) -> Self {
        Self {
            what,
            access: Access::Write,
        }
    }
    /// Adds to the gradient of `param`.
    #[must_use]
    pub fn gradient(param: ParamId) -> Self {
        Self {
            what: What::Gradient(param),
            access: Access::Accumulate,
        }
    }
}

id! {
    /// Which of one of a unit's lists of operations.
    pub struct OpId(u16);
}

/// One operation of a unit, on one micro-batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Name for people and timelines, e.g. `attention`.
    pub name: String,
    /// Operation and sizes, equal for equal work, e.g. `matmul.forward bf16 m256 n768 k256`:
    /// the key of measured times.
    pub key: String,
    /// The tensors, in the order in which the model's `run` expects them. Each local tensor is
    /// written by exactly one operation of a phase.
    pub operands: Vec<Operand>,
    /// Scratch memory that has no meaning outside the operation.
    pub workspace: Bytes,
    /// Floating-point operations of its matrix products and attention; zero for the others.
    pub flops: Flops,
    /// Bytes read and written.
    pub touched: Bytes,
}

id! {
    /// Which of [`Unit::tensors`].
    pub struct LocalId(u16);
}

/// A tensor of one unit and one micro-batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// Name, e.g. `gate_up`.
    pub name: String,
    /// Size for one micro-batch.
    pub bytes: Bytes,
}

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// Made of parameters and the micro-batch's inputs alone: tokens in, the first block's input out. There are several
    /// where there are several stacks of blocks. No input, so no input gradient.
    Embedding,
    /// One transformer layer, or another step between an embedding and the head.
    Block,
    /// The last unit, and the only one of its kind: the last block's output in, loss out. Forward and backward are one
    /// list, [`Unit::backward`]: the loss's gradient is made with the loss.
    Head,
}

/// What a unit reads of an earlier one.
///
/// An output may have several readers. Its gradient then is the sum of theirs, and adds up in one order whatever the
/// order of visits: the last reader overwrites it, each one before adds to it, from the last down. So one operation of
/// the last reader's backward has [`Self::gradient`] with [`Access::Write`], and one of every other reader's with
/// [`Access::Accumulate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The unit whose [`Unit::output`] it is.
    pub unit: u32,
    /// The reader's name for it.
    pub tensor: LocalId,
    /// The reader's name for its gradient; no operation makes it where nothing below is trained.
    pub gradient: LocalId,
}

/// Embedding, block or head: what is visited as a whole.
///
/// Phases: `forward` reads `inputs` and writes `output`; `backward` reads `d_output` and anything
/// that `forward` wrote (then it is a *saved tensor*) and makes the inputs' gradients; `evaluate` and `infer`
/// exist in the head only: the loss without gradients, and logits at the marked positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// `embedding`, `blocks.3`, `head`.
    pub name: String,
    /// What it is.
    pub kind: UnitKind,
    /// Its parameters, a run of [`Workload::params`], in order of use in forward.
    pub params: Range<ParamId>,
    /// Its local tensors.
    pub tensors: List<LocalId, Local>,
    /// What it reads of earlier units, each once (nothing for an embedding).
    pub inputs: Vec<Input>,
    /// The tensor that later units read as an input (none for the head).
    pub output: Option<LocalId>,
    /// Gradient of `output`, made by those that read it (none for the head).
    pub d_output: Option<LocalId>,
    /// What [`Self::infer`] is for, in the head alone: one row of V `f32` for each sequence, or for each of
    /// several equal spans of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<LocalId>,
    /// Bytes of [`What::Cache`]; zero but for blocks that make answers token by token. They outlive a step: each
    /// writes a part of them.
    #[serde(default, skip_serializing_if = "Bytes::is_zero")]
    pub cache: Bytes,
    /// Forward operations (empty for the head).
    pub forward: List<OpId, Op>,
    /// Backward operations; for the head forward and backward.
    pub backward: List<OpId, Op>,
    /// The head's operations for the loss alone.
    pub evaluate: List<OpId, Op>,
    /// The head's operations for [`Self::logits`], each row of them at the position whose label is not
    /// negative; of [`Objective::Classes`] at every position.
    pub infer: List<OpId, Op>,
}

impl Unit {
    /// Local tensors that forward writes and backward reads, except the output: what has to be
    /// kept, moved or recomputed. Inputs are not among them.
    #[must_use]
    pub fn saved(&self) -> Vec<LocalId> {
        if self.kind == UnitKind::Head {
            return Vec::new();
        }
        let touched = |ops: &[Op], access: Access| -> Vec<LocalId> {
            ops.iter()
                .flat_map(|op| &op.operands)
                .filter(|o| o.access == access)
                .filter_map(|o| match o.what {
                    What::Local(i) => Some(i),
                    _ => None,
                })
                .collect()
        };
        let read = touched(&self.backward, Access::Read);
        let mut saved = touched(&self.forward, Access::Write);
        saved.retain(|i| read.contains(i));
        saved
    }

    /// The input that a local tensor is.
    #[must_use]
    pub fn input(&self, tensor: LocalId) -> Option<&Input> {
        self.inputs.iter().find(|input| input.tensor == tensor)
    }

    /// The input whose gradient a local tensor is.
    #[must_use]
    pub fn input_of_gradient(&self, tensor: LocalId) -> Option<&Input> {
        self.inputs.iter().find(|input| input.gradient == tensor)
    }

    /// Whether backward reads any of the unit's inputs again.
    #[must_use]
    pub fn backward_reads_input(&self) -> bool {
        let mut operands = self.backward.iter().flat_map(|op| &op.operands);
        operands.any(|o| matches!(o.what, What::Local(i) if self.input(i).is_some()))
    }
}

/// One training step of one model at one batch, in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// The model's name.
    pub model: String,
    /// How the batch is cut.
    pub batch: Batch,
    /// Storage of weights and saved tensors.
    pub precision: Dtype,
    /// What a complete gradient is rounded to, once.
    pub gradient: Dtype,
    /// What updates the parameters, and how it stores its state.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Everything visited in forward, in order, each unit behind those that it reads: embeddings and blocks, then the
    /// head. Backward is the reverse.
    pub units: Vec<Unit>,
    /// Every parameter, in parameter order.
    pub params: List<ParamId, Param>,
    /// Ranks that make a step together, a power of two: each computes its own batch of micro-batches, and keeps and
    /// updates its share of weights and optimizer state. What this workload counts is one rank's, the weights as
    /// operations read them excepted.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: u32,
    /// Leaves of the tree in which a batch's gradients add up over all ranks, a power of two and a multiple of the
    /// ranks: the sum then has the same bits for every number of ranks up to it. 1: in the order of micro-batches, then
    /// of ranks.
    ///
    /// Of micro-batches that are counted over all ranks, leaf l has each one m with m mod leaves = l, in order; rank r
    /// of R has each one with m mod R = r. Then the second half of the sums is added to the first half, sum by sum,
    /// until one is left: within a rank first ([`Self::sums`]), then over ranks.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub leaves: u32,
    /// Floating-point operations of one batch by the usual count, 6·N + 6·L·C·T a token, nothing
    /// recomputed: what a model TFLOP/s figure divides by. Of what is frozen only those that are done: no
    /// weight gradients, and no backward below the lowest parameter that is trained. Of a base, in the place of its weight
    /// gradient, the product with its projector and the core's gradient; not the making of its weight.
    pub model_flops: Flops,
}

/// Ranks of a run that has one GPU.
fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_one(ranks: &u32) -> bool {
    *ranks == 1
}

impl Workload {
    /// Whether it is a step of making answers token by token, with keys and values that are kept: nothing is
    /// trained, and [`Unit::infer`] behind forward is all that is done.
    #[must_use]
    pub fn decodes(&self) -> bool {
        self.units.iter().any(|unit| !unit.cache.is_zero())
    }

    /// Sums of each gradient that a rank makes apart, before it adds them up: its leaves.
    #[must_use]
    pub fn sums(&self) -> u32 {
        (self.leaves / self.ranks).max(1)
    }

    /// Equal shares in which parameters are cut for ranks or leaves, whichever are more: so partial sums of the norm
    /// are of the same numbers for every number of ranks.
    #[must_use]
    pub fn cuts(&self) -> u32 {
        self.ranks.max(self.leaves)
    }

    /// Numbers that a parameter takes inside its piece: as many for each rank, each share aligned.
    #[must_use]
    pub fn padded(&self, param: &Param) -> u64 {
        align_up(param.elements, PARAM_ALIGN * u64::from(self.cuts()))
    }

    /// Numbers that each rank keeps of a parameter, padding included: its share, and all of a frozen one, which no rank
    /// updates.
    #[must_use]
    pub fn kept(&self, param: &Param) -> u64 {
        match param.frozen {
            true => self.padded(param),
            false => self.padded(param) / u64::from(self.ranks),
        }
    }

    /// The numbers of a parameter that a rank keeps and updates; none where padding is all that is left for it.
    #[must_use]
    pub fn share(&self, param: &Param, rank: u32) -> Range<u64> {
        self.cut(param, rank, self.ranks)
    }

    /// One of so many equal shares of a parameter, which divide [`Self::cuts`]; none where padding is all that is left.
    #[must_use]
    pub fn cut(&self, param: &Param, which: u32, of: u32) -> Range<u64> {
        let each = self.padded(param) / u64::from(of);
        let first = (each * u64::from(which)).min(param.elements);
        first..(first + each).min(param.elements)
    }

    /// Norm partial sums of a rank's share of a parameter at most; a frozen one has none.
    #[must_use]
    pub fn norm_chunks(&self, param: &Param) -> u64 {
        match (param.frozen, self.cuts()) {
            (true, _) => 0,
            (false, 1) => param.norm_chunks(),
            (false, cuts) => {
                let each = (self.padded(param) / u64::from(cuts)).div_ceil(NORM_CHUNK);
                each * u64::from(cuts / self.ranks)
            }
        }
    }

    /// Whether a complete gradient is the accumulator, rounded in place: in f32, where all shares are of one rank and
    /// add up in one sum.
    #[must_use]
    pub fn sums_in_place(&self) -> bool {
        self.gradient == Dtype::F32 && self.ranks == 1 && self.sums() == 1
    }

    /// Number of the model's parameters.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let own = self.params.iter().filter(|p| p.kind.of_the_model());
        own.map(|p| p.elements).sum()
    }

    /// The arrays of a parameter that last from step to step, the weight first; of a frozen one the weight alone.
    pub fn arrays(&self, param: &Param) -> impl Iterator<Item = &'static StateSpec> {
        let all = if param.frozen { 1 } else { usize::MAX };
        self.optimizer.roles_of(self.precision, param).take(all)
    }

    /// Number of numbers that are trained: of a base those of its core.
    #[must_use]
    pub fn trained(&self) -> u64 {
        let trained = self.params.iter().filter(|p| !p.frozen);
        trained.map(|p| p.elements).sum()
    }
}
