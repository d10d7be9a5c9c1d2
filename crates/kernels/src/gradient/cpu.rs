//! The end of a gradient on threads: one task for each run of the norm.

use lowtide_device::{Dst, Src};
use lowtide_workload::NORM_CHUNK;
use multiversion::multiversion;
use rayon::prelude::*;

use super::Segment;
use crate::number::{self, Number};

const CHUNK: usize = NORM_CHUNK as usize;

/// A bf16 gradient: never the accumulator's bytes.
pub(super) fn round(grad: Dst<'_>, parts: Dst<'_>, acc: Src<'_>, params: &[Segment], piece: usize) {
    each_chunk(params, |i, start, len| {
        // SAFETY: the task owns `grad` and `parts`, a run is one thread's; nobody writes `acc`.
        unsafe {
            let grad = number::write::<u16>(&grad, start, len);
            let part = &mut number::write::<f64>(&parts, i, 1)[0];
            *part = round_run(grad, number::read(acc, start, len));
        }
    });
    clear_padding::<u16>(grad, params, piece);
}

/// An f32 gradient; without `acc` the sums are in it.
pub(super) fn keep(
    grad: Dst<'_>,
    parts: Dst<'_>,
    acc: Option<Src<'_>>,
    params: &[Segment],
    piece: usize,
) {
    each_chunk(params, |i, start, len| {
        // SAFETY: a run of `grad` and `parts` is one thread's.
        let (grad, part) = unsafe {
            let grad = number::write::<f32>(&grad, start, len);
            (grad, &mut number::write::<f64>(&parts, i, 1)[0])
        };
        if let Some(acc) = acc {
            grad.copy_from_slice(number::read(acc, start, len));
        }
        *part = squares(grad);
    });
    clear_padding::<f32>(grad, params, piece);
}

/// Calls `work(run, first number, numbers)` for every run of every segment, in parallel.
fn each_chunk(params: &[Segment], work: impl Fn(usize, usize, usize) + Sync) {
    let mut first = 0;
    let numbered: Vec<(usize, Segment)> = params
        .iter()
        .map(|s| {
            let at = first;
            first += s.norm_chunks();
            (at, *s)
        })
        .collect();
    numbered.par_iter().for_each(|(first, s)| {
        (0..s.norm_chunks()).into_par_iter().for_each(|i| {
            work(
                first + i,
                s.offset + i * CHUNK,
                CHUNK.min(s.elements - i * CHUNK),
            );
        });
    });
}

/// Zero before, between and after the segments.
fn clear_padding<E: Number>(grad: Dst<'_>, params: &[Segment], piece: usize) {
    let mut start = 0;
    for (offset, elements) in params
        .iter()
        .map(|s| (s.offset, s.elements))
        .chain(std::iter::once((piece, 0)))
    {
        // SAFETY: the task owns `grad` and no thread writes it any more.
        unsafe { number::write::<E>(&grad, start, offset - start) }.fill(E::narrow(0.0));
        start = offset + elements;
    }
}

/// Lanes of a sum in `f64`.
const WIDE: usize = 16;

#[inline(always)]
fn squares_of(n: usize, value: impl Fn(usize) -> f32) -> f64 {
    let mut lanes = [0.0_f64; WIDE];
    let whole = n - n % WIDE;
    let mut i = 0;
    while i < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            let x = f64::from(value(i + lane));
            *total += x * x;
        }
        i += WIDE;
    }
    for (lane, total) in lanes.iter_mut().enumerate().take(n - whole) {
        let x = f64::from(value(whole + lane));
        *total += x * x;
    }
    lanes.iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn squares(x: &[f32]) -> f64 {
    squares_of(x.len(), |i| x[i])
}

/// Rounds `acc` into `grad`; the sum of squares of the rounded values.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn round_run(grad: &mut [u16], acc: &[f32]) -> f64 {
    for (grad, acc) in grad.iter_mut().zip(acc) {
        *grad = u16::narrow(*acc);
    }
    squares_of(grad.len(), |i| grad[i].widen())
}
