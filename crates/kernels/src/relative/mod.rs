//! Attention of one product's queries to another's keys and values, with a number for each head and distance added to
//! its scores: a stack's own attention with relative positions, and a decoder's attention to what an encoder puts out.
//!
//! Queries and keys may be of rows of different lengths, Tq and Tk. A row holds documents, each a run of tokens;
//! the queries of the n-th document of a row see the keys of the n-th document of the same row of keys, causally (then
//! both are the same tokens) or all of them. A query without any key (its row of keys has fewer documents) gets zeros.
//!
//! The numbers that are added come from a table of a few buckets of distances ([`table`]): it is spread over all
//! distances once, (H, Tq + Tk - 1), of which each block reads, and whose gradient all blocks add up
//! ([`crate::operands::Share`]).
//!
//! Bound: matrix products, 4·D operations a (query, key) pair of each head in forward and 10·D in backward. This
//! version goes through the pairs one by one: on a GPU without tensor cores.

mod cpu;
mod cuda;
pub mod reference;
pub mod table;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{Range, expect, expect_workspace, size, with_dtype};
use crate::operands::{Planes, Sum, Views, operands};

/// Sizes of one attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// B: rows of tokens.
    pub batch: usize,
    /// Tq: tokens of a row of queries.
    pub queries: usize,
    /// Tk: tokens of a row of keys.
    pub keys: usize,
    /// H: of queries and of keys alike.
    pub heads: usize,
    /// D, numbers of a head: at most [`HEAD`].
    pub head_dim: usize,
    /// Factor of the scores; T5 has 1.
    pub scale: f32,
    /// A query sees its own token and those before it: queries and keys are of the same rows.
    pub causal: bool,
    /// First row of queries, and of keys, in the planes of the inputs.
    pub first: [usize; 2],
}

impl Pair {
    /// Numbers of a row of queries.
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Distances that there are, from -(Tq - 1) to Tk - 1.
    #[must_use]
    pub fn distances(&self) -> usize {
        self.queries + self.keys - 1
    }

    /// Which of the distances is that of key `s` from query `t`.
    fn distance(&self, t: usize, s: usize) -> usize {
        s + self.queries - 1 - t
    }

    fn check(&self, q: Src<'_>, kv: Src<'_>, out: impl Range, lse: impl Range, e: usize) {
        assert!(self.head_dim <= HEAD, "a head of {}", self.head_dim);
        assert!(!self.causal || self.queries == self.keys, "a causal pair");
        let (rows, keys) = (self.batch * self.queries, self.batch * self.keys);
        expect("q", q, rows * self.width(), e);
        expect("kv", kv, keys * 2 * self.width(), e);
        expect("out", out, rows * self.width(), e);
        expect("lse", lse, rows * self.heads, size_of::<f32>());
    }

    fn check_bias(&self, bias: impl Range) {
        let numbers = self.heads * self.distances();
        expect("bias", bias, numbers, size_of::<f32>());
    }

    /// Where documents of queries, and of keys, start.
    fn starts<'a>(&self, inputs: Planes<'a>) -> [Src<'a>; 2] {
        let [of_queries, of_keys] = self.first;
        [
            inputs.rows(of_queries, self.batch * self.queries).doc_start,
            inputs.rows(of_keys, self.batch * self.keys).doc_start,
        ]
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (B·Tq, H·D).
        pub out: F::Write,
        /// f32 (B, H, Tq): the logarithm of the sum of exponentials, for backward; 0 without keys.
        pub lse: F::Write,
        /// E (B·Tq, H·D).
        pub q: F::Read,
        /// E (B·Tk, 2·H·D): keys, then values.
        pub kv: F::Read,
        /// f32 (H, Tq + Tk - 1).
        pub bias: Option<F::Read>,
        /// Of which `doc_start`.
        pub inputs: F::Inputs,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// E (B·Tq, H·D).
        pub dq: F::Write,
        /// E (B·Tk, 2·H·D).
        pub d_kv: F::Write,
        /// f32 (H, Tq + Tk - 1), where there is a bias that is trained.
        pub d_bias: Option<F::Share>,
        /// E (B·Tq, H·D).
        pub d_out: F::Read,
        /// Forward's, E (B·Tq, H·D).
        pub q: F::Read,
        /// Forward's, E (B·Tk, 2·H·D).
        pub kv: F::Read,
        /// Forward's, f32 (H, Tq + Tk - 1).
        pub bias: Option<F::Read>,
        /// Forward's, E (B·Tq, H·D).
        pub out: F::Read,
        /// Forward's, f32 (B, H, Tq).
        pub lse: F::Read,
        /// Of which `doc_start`, as forward.
        pub inputs: F::Inputs,
    }
}

/// Most numbers of a head: on a GPU a warp holds it.
pub const HEAD: usize = 256;

/// Bytes of scratch, enough for either direction.
#[must_use]
pub fn workspace(p: &Pair, make: Make) -> usize {
    match make {
        Make::Cpu => 0,
        Make::Cuda => cuda::workspace(p),
    }
}

/// `out = softmax(scale·q·kᵀ [+ bias])·v` for each head, over the keys that a query sees.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, p: &Pair, dtype: Dtype, ws: Dst<'_>) {
    p.check(o.q, o.kv, &o.out, &o.lse, size(dtype));
    o.bias.into_iter().for_each(|bias| p.check_bias(bias));
    expect_workspace(&ws, workspace(p, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, p, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(o, p)));
}

/// Gradient of [`forward`]. That of the bias is, for each head and distance, the sum over rows and queries in order.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, p: &Pair, dtype: Dtype, ws: Dst<'_>) {
    p.check(o.q, o.kv, o.out, o.lse, size(dtype));
    let (rows, keys) = (p.batch * p.queries, p.batch * p.keys);
    expect("dq", &o.dq, rows * p.width(), size(dtype));
    expect("d_kv", &o.d_kv, keys * 2 * p.width(), size(dtype));
    expect("d_out", o.d_out, rows * p.width(), size(dtype));
    o.bias.into_iter().for_each(|bias| p.check_bias(bias));
    let sum = o.d_bias.iter().map(|Sum { to, .. }| to);
    sum.for_each(|to| p.check_bias(to));
    assert!(
        o.d_bias.is_none() || o.bias.is_some(),
        "the gradient of no bias"
    );
    expect_workspace(&ws, workspace(p, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, p, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::backward(o, p)));
}

/// The documents of a row, each as the range of its tokens.
fn documents(starts: &[i32]) -> Vec<std::ops::Range<usize>> {
    let mut all: Vec<std::ops::Range<usize>> = Vec::new();
    for (t, start) in starts.iter().enumerate() {
        match all.last_mut() {
            Some(last) if starts[last.start] == *start => last.end = t + 1,
            _ => all.push(t..t + 1),
        }
    }
    all
}

/// For each query of a row the keys that it sees.
fn seen(queries: &[i32], keys: &[i32], causal: bool) -> Vec<std::ops::Range<usize>> {
    let keys = documents(keys);
    let all = documents(queries).into_iter().enumerate();
    let each = all.flat_map(|(n, document)| {
        let keys = keys.get(n).cloned().unwrap_or(0..0);
        document.map(move |t| match causal {
            true => keys.start..t + 1,
            false => keys.clone(),
        })
    });
    each.collect()
}

#[cfg(test)]
mod tests;
