//! Attention forward on threads: one task for each tile of queries of each head.

use lowtide_device::Src;
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Attn, Forward, KEYS, QUERIES, Visible};
use crate::number::{self, Number, exp, sum, tanh};
use crate::operands::Views;
use crate::product::{Matrix, gemm, with_scratch};

pub(super) fn run<E: Number>(o: Forward<Views<'_>>, a: &Attn) {
    let tiles = a.seq.div_ceil(QUERIES);
    (0..a.batch * a.heads * tiles)
        .into_par_iter()
        .for_each(|task| {
            // The last tiles see the most keys; started first, they do not end last.
            let (pair, tile) = (task / tiles, tiles - 1 - task % tiles);
            let (batch, head) = (pair / a.heads, pair % a.heads);
            tile_forward::<E>(&o, a, (batch, head, tile * QUERIES));
        });
}

/// Queries `first ..` of one head.
fn tile_forward<E: Number>(
    o: &Forward<Views<'_>>,
    a: &Attn,
    (batch, head, first): (usize, usize, usize),
) {
    let (d, n) = (a.head_dim, QUERIES.min(a.seq - first));
    let (row, kv_head) = (batch * a.seq, head / a.group());
    let starts = number::read::<i32>(o.inputs.doc_start, row, a.seq);
    let visible = Visible::new(starts, first..first + n, a);
    with_scratch((2 * QUERIES + KEYS) * d + QUERIES * KEYS, |scratch| {
        let (queries, rest) = scratch.split_at_mut(QUERIES * d);
        let (sums, rest) = rest.split_at_mut(QUERIES * d);
        let (keys, scores) = rest.split_at_mut(KEYS * d);
        let mut softmax = [Online::EMPTY; QUERIES];
        sums.fill(0.0);
        gather::<E>(
            queries,
            o.qkv,
            (a.query(row + first, head), a.width()),
            (n, d),
            a.scale,
        );
        let range = visible.keys();
        for from in range.clone().step_by(KEYS) {
            let len = KEYS.min(range.end - from);
            gather::<E>(
                keys,
                o.qkv,
                (a.key(row + from, kv_head), a.width()),
                (len, d),
                1.0,
            );
            let (q, k) = (Matrix::rows(queries, d), Matrix::rows(keys, d));
            gemm(scores, len, (n, len, d), q, k.t(), false);
            for (i, state) in softmax.iter_mut().enumerate().take(n) {
                let (seen, sums) = (visible.of(i, from, len), &mut sums[i * d..][..d]);
                let scores = &mut scores[i * len..][..len];
                if let Some(cap) = a.cap {
                    bend(&mut scores[seen.clone()], cap);
                }
                online(scores, seen, state, sums);
            }
            gather::<E>(
                keys,
                o.qkv,
                (a.value(row + from, kv_head), a.width()),
                (len, d),
                1.0,
            );
            let (p, v) = (Matrix::rows(scores, len), Matrix::rows(keys, d));
            gemm(sums, d, (n, d, len), p, v, true);
        }
        for (i, state) in softmax.iter().enumerate().take(n) {
            // SAFETY: the task owns `out` and `lse`; each query and head is one thread's.
            unsafe {
                let out = number::write::<E>(&o.out, a.output(row + first + i, head), d);
                number::narrow_scaled(out, &sums[i * d..][..d], 1.0 / state.sum);
                let at = (batch * a.heads + head) * a.seq + first + i;
                number::write::<f32>(&o.lse, at, 1)[0] = state.most + state.sum.ln();
            }
        }
    });
}

/// `to`, (n, d), becomes `factor` times `n` runs of `d` numbers, the first at `start`, `stride`
/// apart.
pub(super) fn gather<E: Number>(
    to: &mut [f32],
    from: Src<'_>,
    (start, stride): (usize, usize),
    (n, d): (usize, usize),
    factor: f32,
) {
    let from = number::read::<E>(from, start, (n - 1) * stride + d);
    widen_rows(&mut to[..n * d], from, stride, d, factor);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn widen_rows<E: Number>(to: &mut [f32], from: &[E], stride: usize, d: usize, factor: f32) {
    for (to, from) in to.chunks_exact_mut(d).zip(from.chunks(stride)) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = factor * from.widen();
        }
    }
}

/// `s = cap·tanh(s/cap)` for each score, in place.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn bend(scores: &mut [f32], cap: f32) {
    for score in scores {
        *score = cap * tanh(*score / cap);
    }
}

/// The softmax of one query so far.
#[derive(Clone, Copy)]
pub(super) struct Online {
    /// The largest score.
    most: f32,
    /// `Σ e^(score - most)`.
    pub(super) sum: f32,
}

impl Online {
    pub(super) const EMPTY: Self = Self {
        most: f32::NEG_INFINITY,
        sum: 0.0,
    };
}

/// Turns scores into `e^(score - most)`, 0 where the query does not see the key, and rescales what
/// was summed under the old maximum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn online(
    scores: &mut [f32],
    seen: std::ops::Range<usize>,
    state: &mut Online,
    sums: &mut [f32],
) {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    if seen.is_empty() {
        return;
    }
    let scores = &mut scores[seen];
    let most = number::max::<f32>(scores);
    if most > state.most || most.is_nan() {
        let factor = exp(state.most - most);
        state.sum *= factor;
        state.most = most;
        for x in sums.iter_mut() {
            *x *= factor;
        }
    }
    let most = state.most;
    for score in scores.iter_mut() {
        *score = exp(*score - most);
    }
    state.sum += sum!(scores.len(), |scores| scores);
}
