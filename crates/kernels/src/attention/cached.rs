//! Attention of the tokens of a step of decoding over keys and values that are kept.
//!
//! Rows of a step are tokens of answers in the making, in any order. Each is at a position of a *place*, which is the
//! part of the cache that an answer has. Keys and values of earlier positions are in the cache already, or come with
//! the same step. A row's own key and value are stored first, then each row attends to the positions up to its own.
//! What lies behind is never read, so a place may be taken by another answer without being cleared.
//!
//! Bits of a row depend on its query and the keys and values that it sees, on no other row: keys are added up in
//! runs, counted from the first one that is seen (CPU) or from position 0 (CUDA), which are joined in order.
//!
//! Bound: bytes of the keys and values that are seen, over bandwidth, where an answer has one row in a step.

use lowtide_device::cuda::{self, Source};
use lowtide_device::{Dst, Make, Queue};
use lowtide_workload::Dtype;
use rayon::prelude::*;

use super::forward::{Online, bend, gather, online};
use super::{Attn, KEYS};
use crate::cuda::{define, source};
use crate::number::{self, Number, expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};
use crate::product::{Matrix, gemm, with_scratch};

static SOURCE: Source = source!("cached", "cached.cu");

/// Keys of a run on a CUDA device: SPLIT of the source.
const SPLIT: usize = 128;
/// Query heads of a block there: TILE of the source.
const TILE: usize = 8;
/// Longest head there: a block has its queries and scores in shared memory, of which the smallest supported GPU gives
/// a block 99 KiB.
pub const CACHED_HEAD: usize = (99 << 10) / (TILE * size_of::<f32>()) - SPLIT;
/// Most bytes of scratch there, unless one row needs more: this bounds how many rows are computed at once.
const SCRATCH: usize = 16 << 20;

operands! {
    /// Operands of [`cached`].
    pub struct Cached<F> {
        /// E (rows, H·D).
        pub out: F::Write,
        /// E (2, places, KV, keys, D): keys, then values.
        pub cache: F::Kept,
        /// E (rows, (H+2KV)·D).
        pub qkv: F::Read,
        /// Of which positions, and the place of each row in place of `doc_start`; -1 for a row that is padding.
        pub inputs: F::Inputs,
    }
}

/// Bytes of the keys and values of one layer: `a.batch` places of `a.seq` positions.
#[must_use]
pub fn cache_bytes(a: &Attn, dtype: Dtype) -> usize {
    2 * half(a) * size(dtype)
}

/// Numbers of all keys, and of all values.
fn half(a: &Attn) -> usize {
    a.rows() * a.kv_heads * a.head_dim
}

/// Bytes of scratch for so many rows or fewer: none on the CPU device.
#[must_use]
pub fn cached_workspace(a: &Attn, rows: usize, make: Make) -> usize {
    match make {
        Make::Cpu => 0,
        Make::Cuda => at_once(a, rows) * row_scratch(a),
    }
}

/// Bytes of the runs of a row.
fn row_scratch(a: &Attn) -> usize {
    a.heads * a.seq.div_ceil(SPLIT) * (a.head_dim + 2) * size_of::<f32>()
}

/// Rows whose runs the scratch holds.
fn at_once(a: &Attn, rows: usize) -> usize {
    (SCRATCH / row_scratch(a).max(1)).clamp(1, rows.max(1))
}

/// Stores each row's key and value, then `out = softmax(scale·q·kᵀ)·v` over the keys of its place that a row may
/// see: those up to its own position, as far back as the mask has it. Padding gives zeros and stores nothing.
///
/// `a.batch` are places and `a.seq` positions of each; no two rows have the same position of the same place. A place or
/// position that the cache has not panics on the CPU device and makes the row NaN on a CUDA device.
pub fn cached(q: &Queue, o: Cached<Views<'_>>, a: &Attn, rows: usize, dtype: Dtype, ws: Dst<'_>) {
    let e = size(dtype);
    assert!(
        a.kv_heads > 0 && a.heads.is_multiple_of(a.kv_heads),
        "{} query heads do not divide among {} key heads",
        a.heads,
        a.kv_heads
    );
    assert!(!a.full(), "a full mask with keys that are not all there");
    expect("out", &o.out, rows * a.heads * a.head_dim, e);
    expect("cache", &o.cache, 2 * half(a), e);
    expect("qkv", o.qkv, rows * a.width(), e);
    expect("positions", o.inputs.positions, rows, size_of::<i32>());
    expect("places", o.inputs.doc_start, rows, size_of::<i32>());
    expect_workspace(&ws, cached_workspace(a, rows, q.make()));
    if let Some(q) = q.cuda() {
        return launch(q, o, a, rows, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, run(o, a, rows)));
}

/// Where row `row` belongs: its place and its position there.
fn at(o: &Cached<Views<'_>>, a: &Attn, row: usize) -> Option<(usize, usize)> {
    let one = |plane| number::read::<i32>(plane, row, 1)[0];
    let (place, position) = (one(o.inputs.doc_start), one(o.inputs.positions));
    if place == -1 {
        return None;
    }
    let inside = |i: i32, n: usize| usize::try_from(i).ok().filter(|&i| i < n);
    match (inside(place, a.batch), inside(position, a.seq)) {
        (Some(place), Some(position)) => Some((place, position)),
        _ => panic!(
            "position {position} of place {place} in a cache of {} by {}",
            a.batch, a.seq
        ),
    }
}

fn run<E: Number>(o: Cached<Views<'_>>, a: &Attn, rows: usize) {
    let d = a.head_dim;
    let line = |place: usize, kv: usize| (place * a.kv_heads + kv) * a.seq * d;
    // A thread has all rows of a head: two of them that are the same position would be one behind the other.
    (0..a.kv_heads).into_par_iter().for_each(|kv| {
        for row in 0..rows {
            let Some((place, position)) = at(&o, a, row) else {
                continue;
            };
            let to = line(place, kv) + position * d;
            for (from, to) in [(a.key(row, kv), to), (a.value(row, kv), half(a) + to)] {
                let from = number::read::<E>(o.qkv, from, d);
                // SAFETY: the task owns the cache; a head of it is one thread's.
                unsafe { number::write::<E>(&o.cache, to, d) }.copy_from_slice(from);
            }
        }
    });
    (0..rows * a.kv_heads).into_par_iter().for_each(|task| {
        let (row, kv) = (task / a.kv_heads, task % a.kv_heads);
        let seen = at(&o, a, row).map(|(place, position)| {
            let first = (position + 1).saturating_sub(a.window());
            (line(place, kv), first..position + 1)
        });
        attend::<E>(&o, a, (row, kv), seen);
    });
}

/// The query heads of a row that share a key head, over a run of positions of the place whose keys begin at a number of
/// the cache.
fn attend<E: Number>(
    o: &Cached<Views<'_>>,
    a: &Attn,
    (row, kv): (usize, usize),
    seen: Option<(usize, std::ops::Range<usize>)>,
) {
    let (d, n) = (a.head_dim, a.group());
    let head = kv * n;
    // SAFETY: the task owns `out`; each row and head is one thread's.
    let out = unsafe { number::write::<E>(&o.out, a.output(row, head), n * d) };
    let Some((line, range)) = seen else {
        out.fill(E::narrow(0.0));
        return;
    };
    with_scratch(2 * n * d + KEYS * (d + n), |scratch| {
        let (queries, rest) = scratch.split_at_mut(n * d);
        let (sums, rest) = rest.split_at_mut(n * d);
        let (keys, scores) = rest.split_at_mut(KEYS * d);
        let mut softmax = vec![Online::EMPTY; n];
        sums.fill(0.0);
        gather::<E>(queries, o.qkv, (a.query(row, head), d), (n, d), a.scale);
        for from in range.clone().step_by(KEYS) {
            let len = KEYS.min(range.end - from);
            // What is stored is not written any more: all rows' keys and values are there.
            let kept = o.cache.src();
            gather::<E>(keys, kept, (line + from * d, d), (len, d), 1.0);
            let (q, k) = (Matrix::rows(queries, d), Matrix::rows(keys, d));
            gemm(scores, len, (n, len, d), q, k.t(), false);
            for (i, state) in softmax.iter_mut().enumerate() {
                let scores = &mut scores[i * len..][..len];
                if let Some(cap) = a.cap {
                    bend(scores, cap);
                }
                online(scores, 0..len, state, &mut sums[i * d..][..d]);
            }
            gather::<E>(keys, kept, (half(a) + line + from * d, d), (len, d), 1.0);
            let (p, v) = (Matrix::rows(scores, len), Matrix::rows(keys, d));
            gemm(sums, d, (n, d, len), p, v, true);
        }
        for (i, state) in softmax.iter().enumerate() {
            let (out, sums) = (&mut out[i * d..][..d], &sums[i * d..][..d]);
            number::narrow_scaled(out, sums, 1.0 / state.sum);
        }
    });
}

/// On a CUDA device: stores, then runs of keys of as many rows as the scratch holds, and their joining.
fn launch(q: &cuda::Queue, o: Cached<Views<'_>>, a: &Attn, rows: usize, dtype: Dtype, ws: Dst<'_>) {
    if rows == 0 {
        return;
    }
    let kernel = |name| q.kernel(&SOURCE, define(dtype), name);
    let wide = a.head_dim.is_multiple_of(8)
        && [o.cache.address(), o.qkv.address()]
            .iter()
            .all(|at| at.is_multiple_of(16));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        kernel("cached_store")
            .grid(rows, a.kv_heads, 1)
            .block(128)
            .arg(&o.cache)
            .arg(o.qkv)
            .arg(o.inputs.positions)
            .arg(o.inputs.doc_start)
            .arg(a.batch)
            .arg(a.seq)
            .arg(a.heads)
            .arg(a.kv_heads)
            .arg(a.head_dim)
            .launch();
    }
    let (runs, most) = (a.seq.div_ceil(SPLIT), at_once(a, rows));
    for first in (0..rows).step_by(most) {
        let n = most.min(rows - first);
        // SAFETY: as above.
        unsafe {
            kernel("cached_runs")
                .grid(runs, a.kv_heads * a.group().div_ceil(TILE), n)
                .block(SPLIT as u32)
                .shared((TILE * (a.head_dim + SPLIT)) * size_of::<f32>())
                .arg(&ws)
                .arg(o.cache.src())
                .arg(o.qkv)
                .arg(o.inputs.positions)
                .arg(o.inputs.doc_start)
                .arg(first)
                .arg(a.batch)
                .arg(a.seq)
                .arg(a.heads)
                .arg(a.kv_heads)
                .arg(a.head_dim)
                .arg(a.scale)
                .arg(a.window())
                .arg(a.cap.unwrap_or(0.0))
                .arg(wide)
                .launch();
            kernel("cached_join")
                .grid(a.heads, n, 1)
                .block(128)
                .arg(&o.out)
                .arg(&ws)
                .arg(o.inputs.positions)
                .arg(o.inputs.doc_start)
                .arg(first)
                .arg(a.batch)
                .arg(a.seq)
                .arg(a.head_dim)
                .arg(a.window())
                .launch();
        }
    }
}

#[cfg(test)]
#[path = "cached_tests.rs"]
mod tests;
