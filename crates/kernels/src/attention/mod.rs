//! Attention inside documents, grouped-query, on the fused (B·T, (H+2KV)·D) projection.
//!
//! Token t of a row attends to the tokens s of the same row with `doc_start[t] <= s <= t`, so
//! documents packed into one row do not see each other (`doc_start` counts inside the row). With a
//! [window](Mask::Window) of n, a token sees itself and at most the n - 1 tokens before it: its first key is the
//! later of its document's first token and `t + 1 - n`. Neither decreases from one token to the next, so whatever
//! holds for document starts holds for first keys. With a [full mask](Mask::Full) a token sees its whole document,
//! later tokens included, up to the first token whose document starts after t. Ends of documents never decrease
//! either.
//! Softmax is online over tiles of keys: memory grows with T, never with T².
//!
//! Bound: matrix products, 4·D operations a (query, key) pair of each head in forward and 10·D in
//! backward, over half of T² pairs, all of a full mask, or about n·T of a window.

mod backward;
mod cached;
mod cudnn;
mod flash;
mod forward;
pub mod reference;

pub use cached::{CACHED_HEAD, Cached, cache_bytes, cached, cached_workspace};
use lowtide_device::cuda::Gpu;
use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::{Dtype, Mask};

use crate::number::{Range, expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};

/// Who computes attention on a CUDA device. Part of what fixes a run's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Engine {
    /// The kernels of this crate: every case, documents included.
    #[default]
    Own,
    /// cuDNN's fused attention, where [`supports`] has nothing against it. It reads no `doc_start`:
    /// whoever asks for it promises one document a row.
    Cudnn,
}

/// Sizes of one attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attn {
    /// B: rows of tokens.
    pub batch: usize,
    /// T: tokens of a row.
    pub seq: usize,
    /// H: query heads, a multiple of KV.
    pub heads: usize,
    /// KV: key and value heads.
    pub kv_heads: usize,
    /// D: numbers of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually 1/√D.
    pub scale: f32,
    /// Scores stay below this, which is more than 0: after the factor, s becomes `cap·tanh(s/cap)` (Gemma 2). Not
    /// available in [`Engine::Cudnn`], nor with a full mask.
    pub cap: Option<f32>,
    /// Which keys of its document a token sees. [`Engine::Cudnn`] has [`Mask::Causal`] only.
    pub mask: Mask,
    /// Who computes it on a CUDA device; the CPU device has one engine.
    pub engine: Engine,
}

impl Attn {
    fn rows(&self) -> usize {
        self.batch * self.seq
    }

    /// Numbers of a row of the fused projection.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Most keys that a token sees, at most T.
    fn window(&self) -> usize {
        match self.mask {
            Mask::Causal | Mask::Full => self.seq,
            Mask::Window(n) => self.seq.min(n as usize),
        }
    }

    fn full(&self) -> bool {
        self.mask == Mask::Full
    }

    /// Where, in numbers of `qkv`, query head `head` of token `row` starts.
    fn query(&self, row: usize, head: usize) -> usize {
        row * self.width() + head * self.head_dim
    }

    /// Where key head `head` of token `row` starts.
    fn key(&self, row: usize, head: usize) -> usize {
        self.query(row, self.heads + head)
    }

    /// Where value head `head` of token `row` starts.
    fn value(&self, row: usize, head: usize) -> usize {
        self.query(row, self.heads + self.kv_heads + head)
    }

    /// Where head `head` of token `row` of the output starts.
    fn output(&self, row: usize, head: usize) -> usize {
        (row * self.heads + head) * self.head_dim
    }

    fn check(&self, qkv: Src<'_>, out: impl Range, lse: impl Range, docs: Src<'_>, e: usize) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{} query heads do not divide among {} key heads",
            self.heads,
            self.kv_heads
        );
        assert!(self.seq == 0 || self.window() > 0, "a window without a key");
        assert!(
            self.cap.is_none_or(|cap| cap > 0.0),
            "a cap of {:?}",
            self.cap
        );
        assert!(
            self.cap.is_none() || !self.full(),
            "capped scores with a full mask"
        );
        expect("qkv", qkv, self.rows() * self.width(), e);
        expect("out", out, self.rows() * self.heads * self.head_dim, e);
        expect("lse", lse, self.rows() * self.heads, size_of::<f32>());
        expect("doc_start", docs, self.rows(), size_of::<i32>());
    }
}

/// Whether [`Engine::Cudnn`] computes this attention on this device; whatever `a.engine` says. Makes
/// the plans, which are kept: up to a second for each direction and size of slice when it is asked
/// first, nothing after.
///
/// # Errors
/// Why not, for people: cuDNN is not installed or too old, or it refuses the shape.
pub fn supports(gpu: &Gpu, a: &Attn, dtype: Dtype) -> Result<(), String> {
    cudnn::supports(gpu, a, dtype)
}

/// Bytes of scratch, enough for either direction. On the CPU device the sums of dk and dv of the
/// heads in work, whatever is stored; on a CUDA device what the engine needs.
#[must_use]
pub fn workspace(a: &Attn, dtype: Dtype, make: Make) -> usize {
    match (make, a.engine) {
        (Make::Cpu, _) => backward::slots(a) * backward::slot(a) * size_of::<f32>(),
        (Make::Cuda, Engine::Own) => flash::workspace(a, dtype),
        (Make::Cuda, Engine::Cudnn) => cudnn::workspace(a),
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (B·T, H·D).
        pub out: F::Write,
        /// f32 (B, H, T): the logarithm of the sum of exponentials, for backward.
        pub lse: F::Write,
        /// E (B·T, (H+2KV)·D).
        pub qkv: F::Read,
        /// Of which `doc_start`, i32 (B·T), which [`Engine::Cudnn`] does not read.
        pub inputs: F::Inputs,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// E (B·T, (H+2KV)·D).
        pub d_qkv: F::Write,
        /// E (B·T, H·D).
        pub d_out: F::Read,
        /// What forward read, E (B·T, (H+2KV)·D).
        pub qkv: F::Read,
        /// What forward wrote, E (B·T, H·D).
        pub out: F::Read,
        /// What forward wrote, f32 (B, H, T).
        pub lse: F::Read,
        /// As in forward.
        pub inputs: F::Inputs,
    }
}

/// `out = softmax(scale·q·kᵀ)·v` for each head, over the keys that a token may see; scores may be
/// [capped](Attn::cap).
pub fn forward(q: &Queue, o: Forward<Views<'_>>, a: &Attn, dtype: Dtype, ws: Dst<'_>) {
    a.check(o.qkv, &o.out, &o.lse, o.inputs.doc_start, size(dtype));
    expect_workspace(&ws, workspace(a, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return match a.engine {
            Engine::Own => flash::forward(q, o, a, dtype),
            Engine::Cudnn => cudnn::forward(q, o, a, dtype, ws),
        };
    }
    q.run(|| with_dtype!(dtype, forward::run(o, a)));
}

/// Gradient of [`forward`].
///
/// The gradient of a key head is the sum over its query heads in order, rounded once; by
/// [`Engine::Cudnn`] each head's part is rounded before it is added.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, a: &Attn, dtype: Dtype, ws: Dst<'_>) {
    a.check(o.qkv, o.out, o.lse, o.inputs.doc_start, size(dtype));
    expect("d_qkv", &o.d_qkv, a.rows() * a.width(), size(dtype));
    let outputs = a.rows() * a.heads * a.head_dim;
    expect("d_out", o.d_out, outputs, size(dtype));
    expect_workspace(&ws, workspace(a, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return match a.engine {
            Engine::Own => flash::backward(q, o, a, dtype, ws),
            Engine::Cudnn => cudnn::backward(q, o, a, dtype, ws),
        };
    }
    q.run(|| with_dtype!(dtype, backward::run(o, a, ws)));
}

/// Queries of a tile.
const QUERIES: usize = 64;
/// Keys of a tile.
const KEYS: usize = 128;

/// The keys that a tile of queries sees, and those that each query sees.
struct Visible<'a> {
    /// Document starts of the row's T tokens.
    row: &'a [i32],
    /// Indices of the tile's queries in the row.
    queries: std::ops::Range<usize>,
    /// Most keys that a query sees.
    window: usize,
    /// Whether a query sees what is behind it.
    full: bool,
}

impl<'a> Visible<'a> {
    fn new(row: &'a [i32], queries: std::ops::Range<usize>, a: &Attn) -> Self {
        Self {
            row,
            queries,
            window: a.window(),
            full: a.full(),
        }
    }

    /// Behind the last key that query `t` sees.
    fn end(&self, t: usize) -> usize {
        let behind = match self.full {
            true => self.row[t + 1..].partition_point(|&start| start <= t as i32),
            false => 0,
        };
        t + 1 + behind
    }
}

impl Visible<'_> {
    /// First and last key (exclusive) of the whole tile.
    fn keys(&self) -> std::ops::Range<usize> {
        let (start, end) = (self.queries.start, self.queries.end);
        let starts = self.row[start..end].iter().copied();
        let first = starts.min().unwrap_or(0).max(0) as usize;
        let first = first.max((start + 1).saturating_sub(self.window));
        first..self.end(end - 1)
    }

    /// Of the keys `from .. from + len`, those that query `i` of the tile sees, as positions in
    /// that run; possibly none.
    fn of(&self, i: usize, from: usize, len: usize) -> std::ops::Range<usize> {
        let t = self.queries.start + i;
        let end = self.end(t).saturating_sub(from).min(len);
        let start = (self.row[t].max(0) as usize)
            .max((t + 1).saturating_sub(self.window))
            .saturating_sub(from)
            .min(end);
        start..end
    }
}

#[cfg(test)]
mod tests;
