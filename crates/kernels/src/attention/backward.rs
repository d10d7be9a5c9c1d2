//! Attention backward on threads: one task for each key head of each row of tokens.
//!
//! A task visits its query heads, their tiles of queries and the tiles of keys in order; dq of a
//! tile is complete after its keys, dk and dv are summed in the workspace over everything. So no
//! two threads add to one number and probabilities are recomputed once, from lse.

use lowtide_device::Dst;
use multiversion::multiversion;
use rayon::prelude::*;

use super::forward::{bend, gather};
use super::{Attn, Backward, KEYS, QUERIES, Visible};
use crate::number::{self, Number, exp, sum};
use crate::operands::Views;
use crate::product::{Matrix, gemm, with_scratch};

/// Numbers of the sums of one key head: dk and dv, (T, D) each.
pub(super) fn slot(a: &Attn) -> usize {
    2 * a.seq * a.head_dim
}

/// Key heads in work at once: enough for sixteen threads, more where they fit 32 MiB.
pub(super) fn slots(a: &Attn) -> usize {
    const BYTES: usize = 32 << 20;
    (a.batch * a.kv_heads).min(16.max(BYTES / (slot(a) * size_of::<f32>()).max(1)))
}

pub(super) fn run<E: Number>(o: Backward<Views<'_>>, a: &Attn, ws: Dst<'_>) {
    let pairs = a.batch * a.kv_heads;
    let slots = slots(a);
    for first in (0..pairs).step_by(slots.max(1)) {
        (first..pairs.min(first + slots))
            .into_par_iter()
            .for_each(|pair| {
                // SAFETY: the task owns the workspace; each key head in work has a slot of its own.
                let sums = unsafe { number::write(&ws, (pair - first) * slot(a), slot(a)) };
                key_head::<E>(&o, a, (pair / a.kv_heads, pair % a.kv_heads), sums);
            });
    }
}

/// Everything of one key head of one row of tokens.
fn key_head<E: Number>(
    o: &Backward<Views<'_>>,
    a: &Attn,
    (batch, kv_head): (usize, usize),
    sums: &mut [f32],
) {
    let (d, row) = (a.head_dim, batch * a.seq);
    sums.fill(0.0);
    let (dk, dv) = sums.split_at_mut(a.seq * d);
    for head in kv_head * a.group()..(kv_head + 1) * a.group() {
        for first in (0..a.seq).step_by(QUERIES) {
            let place = Place {
                batch,
                kv_head,
                head,
                first,
                n: QUERIES.min(a.seq - first),
            };
            with_scratch(Scratch::len(d), |scratch| {
                queries::<E>(o, a, place, Scratch::new(scratch, d), (dk, dv));
            });
        }
    }
    for t in 0..a.seq {
        // SAFETY: the task owns `d_qkv`; each key head is one thread's.
        unsafe {
            let to = number::write::<E>(&o.d_qkv, a.key(row + t, kv_head), d);
            number::narrow(to, &dk[t * d..][..d]);
            let to = number::write::<E>(&o.d_qkv, a.value(row + t, kv_head), d);
            number::narrow(to, &dv[t * d..][..d]);
        }
    }
}

/// A tile of queries.
#[derive(Clone, Copy)]
struct Place {
    batch: usize,
    kv_head: usize,
    head: usize,
    /// First query in its row of T.
    first: usize,
    /// Number of queries; fewer than a full tile at the end of a row.
    n: usize,
}

/// A thread's tiles, all in f32.
struct Scratch<'a> {
    queries: &'a mut [f32],
    d_out: &'a mut [f32],
    d_queries: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
    p: &'a mut [f32],
    ds: &'a mut [f32],
    /// Of one query, where they are capped.
    scores: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn len(d: usize) -> usize {
        (3 * QUERIES + 2 * KEYS) * d + 2 * QUERIES * KEYS + KEYS
    }

    fn new(scratch: &'a mut [f32], d: usize) -> Self {
        let (queries, rest) = scratch.split_at_mut(QUERIES * d);
        let (d_out, rest) = rest.split_at_mut(QUERIES * d);
        let (d_queries, rest) = rest.split_at_mut(QUERIES * d);
        let (keys, rest) = rest.split_at_mut(KEYS * d);
        let (values, rest) = rest.split_at_mut(KEYS * d);
        let (p, rest) = rest.split_at_mut(QUERIES * KEYS);
        let (ds, scores) = rest.split_at_mut(QUERIES * KEYS);
        Self {
            queries,
            d_out,
            d_queries,
            keys,
            values,
            p,
            ds,
            scores,
        }
    }
}

/// Writes dq of a tile of queries and adds the tile's part of dk and dv. Long because its two passes over a tile
/// share all their parts.
fn queries<E: Number>(
    o: &Backward<Views<'_>>,
    a: &Attn,
    place: Place,
    s: Scratch<'_>,
    (dk, dv): (&mut [f32], &mut [f32]),
) {
    let Place {
        batch,
        kv_head,
        head,
        first,
        n,
    } = place;
    let (d, row) = (a.head_dim, batch * a.seq);
    let at = (batch * a.heads + head) * a.seq + first;
    let starts = number::read::<i32>(o.inputs.doc_start, row, a.seq);
    let lse = number::read::<f32>(o.lse, at, n);
    let visible = Visible::new(starts, first..first + n, a);
    gather::<E>(
        s.queries,
        o.qkv,
        (a.query(row + first, head), a.width()),
        (n, d),
        a.scale,
    );
    gather::<E>(
        s.d_out,
        o.d_out,
        (a.output(row + first, head), a.heads * d),
        (n, d),
        1.0,
    );
    // The softmax's gradient subtracts Σ p·dp, which is d_out·out.
    let mut delta = [0.0_f32; QUERIES];
    for (i, delta) in delta.iter_mut().enumerate().take(n) {
        let out = number::read::<E>(o.out, a.output(row + first + i, head), d);
        *delta = dot(&s.d_out[i * d..][..d], out);
    }
    let range = visible.keys();
    for from in range.clone().step_by(KEYS) {
        let len = KEYS.min(range.end - from);
        gather::<E>(
            s.keys,
            o.qkv,
            (a.key(row + from, kv_head), a.width()),
            (len, d),
            1.0,
        );
        gather::<E>(
            s.values,
            o.qkv,
            (a.value(row + from, kv_head), a.width()),
            (len, d),
            1.0,
        );
        let (q, d_out) = (Matrix::rows(s.queries, d), Matrix::rows(s.d_out, d));
        let (k, v) = (Matrix::rows(s.keys, d), Matrix::rows(s.values, d));
        gemm(s.p, len, (n, len, d), q, k.t(), false);
        gemm(s.ds, len, (n, len, d), d_out, v.t(), false);
        for i in 0..n {
            let (p, ds) = (&mut s.p[i * len..][..len], &mut s.ds[i * len..][..len]);
            let (seen, scores) = (visible.of(i, from, len), &mut s.scores[..len]);
            if let Some(cap) = a.cap {
                bend(&mut p[seen.clone()], cap);
                scores.copy_from_slice(p);
            }
            softmax_gradient(p, ds, seen, lse[i], delta[i]);
            a.cap
                .into_iter()
                .for_each(|cap| cap_gradient(ds, scores, cap));
        }
        let (p, ds) = (Matrix::rows(s.p, len), Matrix::rows(s.ds, len));
        gemm(&mut dv[from * d..], d, (len, d, n), p.t(), d_out, true);
        gemm(&mut dk[from * d..], d, (len, d, n), ds.t(), q, true);
        gemm(s.d_queries, d, (n, d, len), ds, k, from > range.start);
    }
    for i in 0..n {
        // SAFETY: the task owns `d_qkv`; each query head is one thread's.
        let to = unsafe { number::write::<E>(&o.d_qkv, a.query(row + first + i, head), d) };
        number::narrow_scaled(to, &s.d_queries[i * d..][..d], a.scale);
    }
}

/// From the gradients of capped scores to those of the scores. Where `ds` is 0 the score may be anything.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn cap_gradient(ds: &mut [f32], capped: &[f32], cap: f32) {
    for (ds, score) in ds.iter_mut().zip(capped) {
        let t = score / cap;
        let slope = 1.0 - t * t;
        *ds = if *ds == 0.0 { 0.0 } else { *ds * slope };
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn dot<E: Number>(a: &[f32], b: &[E]) -> f32 {
    sum!(a.len(), |a, b| a * b)
}

/// On entry `p` holds scores and `ds` the gradient of probabilities; on return probabilities and
/// the gradient of scores, 0 where the query does not see the key.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn softmax_gradient(
    p: &mut [f32],
    ds: &mut [f32],
    seen: std::ops::Range<usize>,
    lse: f32,
    delta: f32,
) {
    p[..seen.start].fill(0.0);
    p[seen.end..].fill(0.0);
    ds[..seen.start].fill(0.0);
    ds[seen.end..].fill(0.0);
    for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen]) {
        *p = exp(*p - lse);
        *ds = *p * (*ds - delta);
    }
}
