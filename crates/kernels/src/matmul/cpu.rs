//! Linear layers on threads.

use lowtide_device::{Dst, Src};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Dims, Forward, Input};
use crate::number::{self, Number};
use crate::operands::{Sum, Views};
use crate::product::{Operand, Tile, product};
use crate::rows;

/// `y = x·wᵀ + bias + residual`.
pub(crate) fn forward<E: Number>(o: Forward<Views<'_>>, d: Dims, ws: Dst<'_>) {
    let x = Operand {
        view: o.x,
        stride: d.inner,
        along_inner: true,
    };
    let w = Operand {
        view: o.w,
        stride: d.inner,
        along_inner: true,
    };
    product::<E>(x, w, (d.rows, d.cols, d.inner), ws, |tile| {
        store::<E>(&o.y, o.bias, o.residual, d.cols, &tile);
    });
}

/// `dx = dy·w`.
pub(crate) fn backward_input<E: Number>(o: Input<Views<'_>>, d: Dims, ws: Dst<'_>) {
    let dy = Operand {
        view: o.dy,
        stride: d.cols,
        along_inner: true,
    };
    let w = Operand {
        view: o.w,
        stride: d.inner,
        along_inner: false,
    };
    product::<E>(dy, w, (d.rows, d.inner, d.cols), ws, |tile| {
        store::<E>(&o.dx, None, None, d.inner, &tile);
    });
}

/// `dw (+)= dyᵀ·x`.
pub(crate) fn backward_weight<E: Number>(
    dw: Sum<'_>,
    dy: Src<'_>,
    x: Src<'_>,
    d: Dims,
    ws: Dst<'_>,
) {
    let dy = Operand {
        view: dy,
        stride: d.cols,
        along_inner: false,
    };
    let x = Operand {
        view: x,
        stride: d.inner,
        along_inner: false,
    };
    product::<E>(dy, x, (d.cols, d.inner, d.rows), ws, |tile| {
        for (row, data) in tile.data.chunks_exact(tile.cols).enumerate() {
            // SAFETY: the task owns `dw`; tiles do not overlap.
            let to = unsafe { number::write(&dw.to, (tile.i + row) * d.inner + tile.j, tile.cols) };
            rows::put(to, data, dw.accumulate);
        }
    });
}

/// Rounds a tile of the result into a matrix with `stride` numbers a row.
fn store<E: Number>(
    y: &Dst<'_>,
    bias: Option<Src<'_>>,
    residual: Option<Src<'_>>,
    stride: usize,
    tile: &Tile<'_>,
) {
    let bias = bias.map(|b| number::read::<E>(b, tile.j, tile.cols));
    for (row, data) in tile.data.chunks_exact(tile.cols).enumerate() {
        let at = (tile.i + row) * stride + tile.j;
        // SAFETY: the task owns `y`, tiles do not overlap, and nobody writes the residual.
        let (y, residual) = unsafe {
            let residual = residual.map(|r| number::read::<E>(r, at, tile.cols));
            (number::write::<E>(y, at, tile.cols), residual)
        };
        match (bias, residual) {
            (None, None) => number::narrow(y, data),
            (Some(z), None) | (None, Some(z)) => store_sum(y, data, z),
            (Some(bias), Some(residual)) => store_sums(y, data, bias, residual),
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn store_sum<E: Number>(y: &mut [E], product: &[f32], z: &[E]) {
    for ((y, product), z) in y.iter_mut().zip(product).zip(z) {
        *y = E::narrow(product + z.widen());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn store_sums<E: Number>(y: &mut [E], product: &[f32], bias: &[E], residual: &[E]) {
    for (((y, product), bias), residual) in y.iter_mut().zip(product).zip(bias).zip(residual) {
        *y = E::narrow(product + bias.widen() + residual.widen());
    }
}

/// `db (+)= Σ dy` over rows: runs of columns in parallel, runs of rows summed apart first, which
/// keeps the error of a long sum small.
pub(crate) fn backward_bias<E: Number>(db: Sum<'_>, dy: Src<'_>, d: Dims) {
    const COLUMNS: usize = 64;
    const ROWS: usize = 128;
    (0..d.cols.div_ceil(COLUMNS)).into_par_iter().for_each(|i| {
        let (start, len) = (i * COLUMNS, COLUMNS.min(d.cols - i * COLUMNS));
        let mut total = [0.0_f32; COLUMNS];
        for first in (0..d.rows).step_by(ROWS) {
            let mut run = [0.0_f32; COLUMNS];
            let rows = ROWS.min(d.rows - first);
            let dy = number::read::<E>(dy, first * d.cols + start, (rows - 1) * d.cols + len);
            add_rows(&mut run[..len], dy, d.cols);
            number::add(&mut total, &run);
        }
        // SAFETY: the task owns `db`; each run of columns is one thread's.
        let to = unsafe { number::write(&db.to, start, len) };
        rows::put(to, &total, db.accumulate);
    });
}

/// Adds to `sums` the first numbers of rows that lie `stride` apart.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_rows<E: Number>(sums: &mut [f32], dy: &[E], stride: usize) {
    for row in dy.chunks(stride) {
        for (sum, dy) in sums.iter_mut().zip(row) {
            *sum += dy.widen();
        }
    }
}
