//! Pairs of queries and keys on threads: one task for each head of each row of tokens; in backward for each head, whose
//! rows come in order, so that no two threads add to one number.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::{Backward, Forward, Pair, seen};
use crate::number::{self, Number, exp, sum};
use crate::operands::{Sum, Views};
use lowtide_device::Src;

/// What the queries of each row see.
fn all_seen(starts: [Src<'_>; 2], p: &Pair) -> Vec<Vec<Range<usize>>> {
    let row = |b: usize| {
        let queries = number::read::<i32>(starts[0], b * p.queries, p.queries);
        let keys = number::read::<i32>(starts[1], b * p.keys, p.keys);
        seen(queries, keys, p.causal)
    };
    (0..p.batch).map(row).collect()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn dot<A: Number, B: Number>(a: &[A], b: &[B]) -> f32 {
    sum!(a.len(), |a, b| a * b)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_multiple<E: Number>(to: &mut [f32], factor: f32, x: &[E]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += factor * x.widen();
    }
}

/// One head of one row: where its numbers are.
#[derive(Clone, Copy)]
struct Place<'p> {
    p: &'p Pair,
    b: usize,
    h: usize,
}

impl Place<'_> {
    fn query(self, t: usize) -> usize {
        (self.b * self.p.queries + t) * self.p.width() + self.h * self.p.head_dim
    }

    fn key(self, s: usize) -> usize {
        (self.b * self.p.keys + s) * 2 * self.p.width() + self.h * self.p.head_dim
    }

    fn value(self, s: usize) -> usize {
        self.key(s) + self.p.width()
    }

    fn lse(self, t: usize) -> usize {
        (self.b * self.p.heads + self.h) * self.p.queries + t
    }

    /// Scores of query `t` over the keys that it sees.
    fn scores<E: Number>(
        self,
        scores: &mut Vec<f32>,
        (q, kv, bias): (Src<'_>, Src<'_>, Option<Src<'_>>),
        t: usize,
        keys: Range<usize>,
    ) {
        let (p, d) = (self.p, self.p.head_dim);
        let query = number::read::<E>(q, self.query(t), d);
        scores.clear();
        scores.extend(keys.clone().map(|s| {
            let key = number::read::<E>(kv, self.key(s), d);
            p.scale * dot(query, key)
        }));
        if let (Some(bias), false) = (bias, keys.is_empty()) {
            let first = self.h * p.distances() + p.distance(t, keys.start);
            let bias = number::read::<f32>(bias, first, keys.len());
            number::add(scores, bias);
        }
    }
}

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, p: &Pair) {
    let seen = all_seen(p.starts(o.inputs), p);
    (0..p.batch * p.heads).into_par_iter().for_each(|pair| {
        let at = Place {
            p,
            b: pair / p.heads,
            h: pair % p.heads,
        };
        let (mut scores, mut sums) = (Vec::with_capacity(p.keys), vec![0.0; p.head_dim]);
        for (t, keys) in seen[at.b].iter().enumerate() {
            at.scores::<E>(&mut scores, (o.q, o.kv, o.bias), t, keys.clone());
            let most = number::max::<f32>(&scores);
            let mut total = 0.0;
            sums.fill(0.0);
            for (score, s) in scores.iter().zip(keys.clone()) {
                let weight = exp(score - most);
                total += weight;
                add_multiple(
                    &mut sums,
                    weight,
                    number::read::<E>(o.kv, at.value(s), p.head_dim),
                );
            }
            let (lse, factor) = match keys.is_empty() {
                true => (0.0, 0.0),
                false => (most + total.ln(), 1.0 / total),
            };
            // SAFETY: the task owns `out` and `lse`; each query and head is one thread's.
            unsafe {
                let out = number::write::<E>(&o.out, at.query(t), p.head_dim);
                number::narrow_scaled(out, &sums, factor);
                number::write::<f32>(&o.lse, at.lse(t), 1)[0] = lse;
            }
        }
    });
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, p: &Pair) {
    let seen = all_seen(p.starts(o.inputs), p);
    (0..p.heads).into_par_iter().for_each(|h| {
        let mut d_bias = vec![0.0_f32; p.distances()];
        for (b, seen) in seen.iter().enumerate() {
            row::<E>(&o, Place { p, b, h }, seen, &mut d_bias);
        }
        if let Some(Sum { to, accumulate }) = &o.d_bias {
            // SAFETY: the task owns `d_bias`; each head is one thread's.
            let to = unsafe { number::write::<f32>(to, h * p.distances(), p.distances()) };
            match accumulate {
                true => number::add(to, &d_bias),
                false => to.copy_from_slice(&d_bias),
            }
        }
    });
}

/// One head of one row.
fn row<E: Number>(
    o: &Backward<Views<'_>>,
    at: Place<'_>,
    seen: &[Range<usize>],
    d_bias: &mut [f32],
) {
    let (p, d) = (at.p, at.p.head_dim);
    let (mut scores, mut dq) = (Vec::with_capacity(p.keys), vec![0.0; d]);
    let (mut dk, mut dv) = (vec![0.0; p.keys * d], vec![0.0; p.keys * d]);
    for (t, keys) in seen.iter().enumerate() {
        at.scores::<E>(&mut scores, (o.q, o.kv, o.bias), t, keys.clone());
        let query = number::read::<E>(o.q, at.query(t), d);
        let d_out = number::read::<E>(o.d_out, at.query(t), d);
        let out = number::read::<E>(o.out, at.query(t), d);
        let lse = number::read::<f32>(o.lse, at.lse(t), 1)[0];
        // The softmax's gradient subtracts Σ p·dp, which is d_out·out.
        let mean = dot(d_out, out);
        dq.fill(0.0);
        for (score, s) in scores.iter().zip(keys.clone()) {
            let weight = exp(score - lse);
            let dp = dot(d_out, number::read::<E>(o.kv, at.value(s), d));
            let ds = weight * (dp - mean);
            d_bias[p.distance(t, s)] += ds;
            add_multiple(&mut dq, ds, number::read::<E>(o.kv, at.key(s), d));
            add_multiple(&mut dk[s * d..][..d], ds, query);
            add_multiple(&mut dv[s * d..][..d], weight, d_out);
        }
        // SAFETY: the task owns `dq`; each head is one thread's.
        let to = unsafe { number::write::<E>(&o.dq, at.query(t), d) };
        number::narrow_scaled(to, &dq, p.scale);
    }
    for s in 0..p.keys {
        // SAFETY: the task owns `d_kv`; each head is one thread's.
        unsafe {
            let to = number::write::<E>(&o.d_kv, at.key(s), d);
            number::narrow_scaled(to, &dk[s * d..][..d], p.scale);
            let to = number::write::<E>(&o.d_kv, at.value(s), d);
            number::narrow(to, &dv[s * d..][..d]);
        }
    }
}
