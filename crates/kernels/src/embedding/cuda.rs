//! The embedding on a CUDA device.
//!
//! Bound: bytes over the memory's rate. Backward sorts (token, row) pairs. No two are equal, so their order is the
//! same whatever sorts them. Then each row of the table is summed by one warp, or by one block where many rows have
//! its token. The sort is some twenty short launches: tens of microseconds, on top of the table's own bytes.

use lowtide_device::cuda::{self, Source};
use lowtide_device::{Dst, Src};

use super::{Dims, Forward, Index, Noise};
use crate::Rows;
use crate::cuda::{define, source};
use crate::operands::{Sum, Views};

static SOURCE: Source = source!("embedding", "embedding.cu");

/// As in the source: warps of a block, keys that a block sorts, its threads, rows of a token that
/// stay a warp's, columns of a slab, slabs of a warp, warps that share a token.
const WARPS: usize = 8;
const LOCAL: usize = 4096;
const SORT_THREADS: u32 = 1024;
const FEW: usize = 32;
const SLAB: usize = 256;
const SLABS: usize = 4;
const PARTS: u32 = 16;

/// Keys of the sort: the rows, filled up to a power of two.
fn keys(rows: usize) -> usize {
    rows.next_power_of_two().max(LOCAL)
}

/// Bytes of scratch of [`table`]: keys of 8 bytes, start and end of each token's rows.
pub(super) fn workspace(rows: usize, vocab: usize) -> usize {
    8 * keys(rows) + 2 * starts(vocab)
}

/// Bytes of a number a token, rounded up.
fn starts(vocab: usize) -> usize {
    (vocab * size_of::<u32>()).next_multiple_of(256)
}

/// As the operation, except that an index outside its table makes its row NaN; in the stream when
/// the call returns.
pub(super) fn forward(q: &cuda::Queue, o: Forward<Views<'_>>, d: Dims) {
    let (rows, c) = (d.rows.rows, d.rows.width);
    if rows * c == 0 {
        return;
    }
    if let (Some(positions), Some(types)) = (o.positions, o.types) {
        let labels = d.typed.then_some(o.inputs.labels);
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        return unsafe {
            q.kernel(&SOURCE, define(d.rows.dtype), "forward_typed")
                .grid(rows.div_ceil(WARPS), 1, 1)
                .block(32 * WARPS as u32)
                .arg(&o.y)
                .arg(o.inputs.tokens)
                .arg(o.tokens)
                .arg(positions)
                .arg(o.inputs.positions)
                .arg(types)
                .arg(labels)
                .arg(rows)
                .arg(c)
                .arg(d.vocab)
                .arg(d.positions)
                .arg(d.first_position)
                .launch();
        };
    }
    assert_eq!(d.first_position, 0, "only with a table of types");
    let positions = o.positions.map(|_| o.inputs.positions);
    let places = o.positions.map_or(0, |_| d.positions);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.rows.dtype), "forward")
            .grid(rows.div_ceil(WARPS), 1, 1)
            .block(32 * WARPS as u32)
            .arg(&o.y)
            .arg(o.inputs.tokens)
            .arg(o.tokens)
            .arg(o.positions)
            .arg(positions)
            .arg(rows)
            .arg(c)
            .arg(d.vocab)
            .arg(places)
            .launch();
    }
}

/// Adds noise to rows; in the stream when the call returns.
pub(super) fn noise(q: &cuda::Queue, y: &Dst<'_>, d: Rows, noise: Noise) {
    if d.numbers() == 0 {
        return;
    }
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), "noise")
            .grid(d.rows.div_ceil(WARPS), 1, 1)
            .block(32 * WARPS as u32)
            .arg(y)
            .arg(d.rows)
            .arg(d.width)
            .arg(noise.key)
            .arg(noise.first)
            .arg(noise.largest)
            .launch();
    }
}

/// Sorts (token, row) pairs into `sorted`, of [`keys`] pairs.
fn sort(
    q: &cuda::Queue,
    sorted: &Dst<'_>,
    (tokens, index): (Src<'_>, Index),
    d: Rows,
    vocab: usize,
) {
    let (rows, n) = (d.rows, keys(d.rows));
    // As in the source: what is added to a number, and how it is read.
    let (first, how) = match index {
        Index::Plus(first) => (first as u32, 0_u32),
        Index::Type => (0, 1),
        Index::First => (0, 2),
    };
    let kernel = |name| q.kernel(&SOURCE, define(d.dtype), name);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        kernel("sort_local")
            .grid(n / LOCAL, 1, 1)
            .block(SORT_THREADS)
            .arg(sorted)
            .arg(tokens)
            .arg(rows)
            .arg(vocab)
            .arg(first)
            .arg(how)
            .launch();
    }
    let mut k = 2 * LOCAL;
    while k <= n {
        let mut j = k / 2;
        while j >= LOCAL {
            // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
            unsafe {
                kernel("merge_step")
                    .grid(n / 2 / SORT_THREADS as usize, 1, 1)
                    .block(SORT_THREADS)
                    .arg(sorted)
                    .arg(n)
                    .arg(k)
                    .arg(j)
                    .launch();
            }
            j /= 2;
        }
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            kernel("merge_local")
                .grid(n / LOCAL, 1, 1)
                .block(SORT_THREADS)
                .arg(sorted)
                .arg(k)
                .launch();
        }
        k *= 2;
    }
}

/// As the operation, except that a row whose token is outside the table counts nowhere; in the
/// stream when the call returns.
pub(super) fn table(
    q: &cuda::Queue,
    dw: Sum<'_>,
    (dy, tokens, index): (Src<'_>, Src<'_>, Index),
    d: Rows,
    vocab: usize,
    ws: Dst<'_>,
) {
    let (rows, c) = (d.rows, d.width);
    if rows * c == 0 {
        if !dw.accumulate {
            q.fill(dw.to, 0);
        }
        return;
    }
    assert!(u32::try_from(rows).is_ok(), "{rows} rows are not counted");
    let n = keys(rows);
    let (sorted, rest) = ws.split_at(8 * n);
    let mut bounds = rest.part(0, 2 * starts(vocab));
    q.fill(bounds.again(), 0);
    let (first, end) = bounds.split_at(starts(vocab));
    let kernel = |name| q.kernel(&SOURCE, define(d.dtype), name);
    sort(q, &sorted, (tokens, index), d, vocab);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        kernel("bounds")
            .grid(rows.div_ceil(256), 1, 1)
            .block(256)
            .arg(&first)
            .arg(&end)
            .arg(&sorted)
            .arg(rows)
            .launch();
    }
    let wide = c.is_multiple_of(8)
        && [dw.to.address(), dy.address()]
            .into_iter()
            .all(|at| at.is_multiple_of(16));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        kernel("few")
            .grid(vocab.div_ceil(WARPS), c.div_ceil(SLAB * SLABS), 1)
            .block(32 * WARPS as u32)
            .arg(&dw.to)
            .arg(dy)
            .arg(&sorted)
            .arg(&first)
            .arg(&end)
            .arg(c)
            .arg(vocab)
            .arg(dw.accumulate)
            .arg(wide)
            .launch();
    }
    if rows > FEW {
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            kernel("many")
                .grid(rows.div_ceil(FEW), c.div_ceil(SLAB), 1)
                .block(32 * PARTS)
                .arg(&dw.to)
                .arg(dy)
                .arg(&sorted)
                .arg(&first)
                .arg(&end)
                .arg(c)
                .arg(dw.accumulate)
                .arg(wide)
                .launch();
        }
    }
}
