//! Relative positions: a table of a number for each bucket of distances and head, spread over all distances.
//!
//! Small: H·(2T - 1) numbers.

use std::ops::Range;

use lowtide_device::Queue;
use lowtide_workload::Dtype;

use crate::number::{self, Number, expect, size, with_dtype};
use crate::operands::{Views, operands};

/// Sizes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// T: tokens of a row.
    pub seq: usize,
    /// H, columns of the table.
    pub heads: usize,
    /// Rows of the table.
    pub buckets: usize,
    /// Distance from which on all are of the last bucket.
    pub most: usize,
    /// Keys before and behind a query have buckets of their own, half of them each; else keys behind it are as those at
    /// distance 0.
    pub both: bool,
}

impl Table {
    /// Distances, from -(T - 1) to T - 1.
    #[must_use]
    pub fn distances(&self) -> usize {
        2 * self.seq - 1
    }

    /// The bucket of a key `distance` tokens behind its query: distances of a half's first half have one each, those up
    /// to `most` share the rest by their logarithm (the T5 paper, arXiv 1910.10683, section 2.1, and its published
    /// models; in f32, as these were trained).
    #[must_use]
    pub fn bucket(&self, distance: i64) -> usize {
        let (half, base) = match (self.both, distance > 0) {
            (true, true) => (self.buckets / 2, self.buckets / 2),
            (true, false) => (self.buckets / 2, 0),
            (false, _) => (self.buckets, 0),
        };
        let far = match self.both {
            true => distance.unsigned_abs(),
            false => (-distance).max(0).unsigned_abs(),
        };
        let (far, exact) = (far as usize, half / 2);
        if far < exact {
            return base + far;
        }
        let ratio = (far as f32 / exact as f32).ln();
        let whole = (self.most as f32 / exact as f32).ln();
        let more = (ratio / whole * (half - exact) as f32) as usize;
        base + (exact + more).min(half - 1)
    }

    /// The distances of each bucket, as positions among all: those of one stand behind one another.
    pub(super) fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges = vec![0..0; self.buckets];
        for (i, bucket) in self.all().into_iter().enumerate() {
            let range = &mut ranges[bucket];
            match range.start == range.end {
                true => *range = i..i + 1,
                false => range.end = i + 1,
            }
        }
        ranges
    }

    /// The bucket of each distance.
    fn all(&self) -> Vec<usize> {
        let seq = self.seq as i64;
        (1 - seq..seq)
            .map(|distance| self.bucket(distance))
            .collect()
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// f32 (H, 2T - 1).
        pub bias: F::Write,
        /// E (buckets, H).
        pub w: F::Read,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// f32 (buckets, H).
        pub dw: F::Add,
        /// f32 (H, 2T - 1).
        pub d_bias: F::Read,
    }
}

/// Spreads the table over the distances.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, t: &Table, dtype: Dtype) {
    expect("bias", &o.bias, t.heads * t.distances(), size_of::<f32>());
    expect("w", o.w, t.buckets * t.heads, size(dtype));
    if let Some(q) = q.cuda() {
        return super::cuda::spread(q, o, t, dtype);
    }
    q.run(|| with_dtype!(dtype, spread(o, t)));
}

/// Gradient of [`forward`]: for each bucket and head the sum over its distances, from the lowest up.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, t: &Table) {
    expect("dw", &o.dw.to, t.buckets * t.heads, size_of::<f32>());
    expect(
        "d_bias",
        o.d_bias,
        t.heads * t.distances(),
        size_of::<f32>(),
    );
    if let Some(q) = q.cuda() {
        return super::cuda::gather(q, o, t);
    }
    q.run(|| {
        let mut sums = vec![0.0_f32; t.buckets * t.heads];
        let all = t.all();
        for head in 0..t.heads {
            let d_bias = number::read::<f32>(o.d_bias, head * t.distances(), t.distances());
            for (bucket, d) in all.iter().zip(d_bias) {
                sums[bucket * t.heads + head] += d;
            }
        }
        let accumulate = o.dw.accumulate;
        let dw = o.dw.to.write::<f32>();
        match accumulate {
            true => number::add(dw, &sums),
            false => dw.copy_from_slice(&sums),
        }
    });
}

fn spread<E: Number>(o: Forward<Views<'_>>, t: &Table) {
    let all = t.all();
    let w = number::read::<E>(o.w, 0, t.buckets * t.heads);
    let bias = o.bias.write::<f32>();
    for (head, bias) in bias.chunks_exact_mut(t.distances()).enumerate() {
        for (bias, bucket) in bias.iter_mut().zip(&all) {
            *bias = w[bucket * t.heads + head].widen();
        }
    }
}
