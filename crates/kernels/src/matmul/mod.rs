//! Linear layers: `y = x·wᵀ + bias + residual` and its gradients.
//!
//! Bound: 2·m·n·k operations over the rate of a matrix product on all threads; the operands'
//! bytes matter only for a few rows.

pub(crate) mod cpu;
pub mod reference;

use lowtide_device::{Make, Queue, View};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::product;

/// Sizes of a linear layer applied to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// m: rows of `x` and `y`.
    pub rows: usize,
    /// k: input features.
    pub inner: usize,
    /// n: output features.
    pub cols: usize,
}

/// Bytes of scratch for any of the three products: widened panels, about 20 MiB at most. None for
/// f32.
#[must_use]
pub fn workspace(d: Dims, dtype: Dtype, make: Make) -> usize {
    let _ = make;
    let Dims {
        rows: m,
        inner: k,
        cols: n,
    } = d;
    match dtype {
        Dtype::F32 => 0,
        Dtype::Bf16 => product::workspace(m, n, k)
            .max(product::workspace(m, k, n))
            .max(product::workspace(n, k, m)),
    }
}

/// `y = x·wᵀ + bias + residual`, rounded once.
///
/// `y` and `residual` are E (m, n), `x` is E (m, k), `w` is E (n, k), `bias` is E (n).
pub fn forward(
    q: &Queue,
    y: View<'_>,
    x: View<'_>,
    w: View<'_>,
    bias: Option<View<'_>>,
    residual: Option<View<'_>>,
    d: Dims,
    dtype: Dtype,
    ws: View<'_>,
) {
    let e = size(dtype);
    expect("y", y, d.rows * d.cols, e);
    expect("x", x, d.rows * d.inner, e);
    expect("w", w, d.cols * d.inner, e);
    bias.into_iter().for_each(|b| expect("bias", b, d.cols, e));
    residual
        .into_iter()
        .for_each(|r| expect("residual", r, d.rows * d.cols, e));
    expect_workspace(ws, workspace(d, dtype, q.make()));
    q.run(|| with_dtype!(dtype, cpu::forward(y, x, w, bias, residual, d, ws)));
}

/// `dx = dy·w`: `dx` is E (m, k), `dy` is E (m, n), `w` is E (n, k).
pub fn backward_input(
    q: &Queue,
    dx: View<'_>,
    dy: View<'_>,
    w: View<'_>,
    d: Dims,
    dtype: Dtype,
    ws: View<'_>,
) {
    let e = size(dtype);
    expect("dx", dx, d.rows * d.inner, e);
    expect("dy", dy, d.rows * d.cols, e);
    expect("w", w, d.cols * d.inner, e);
    expect_workspace(ws, workspace(d, dtype, q.make()));
    q.run(|| with_dtype!(dtype, cpu::backward_input(dx, dy, w, d, ws)));
}

/// `dw (+)= dyᵀ·x`: `dw` is f32 (n, k), `dy` is E (m, n), `x` is E (m, k).
///
/// With `accumulate` the complete product is added to what is there, in one addition a number.
pub fn backward_weight(
    q: &Queue,
    dw: View<'_>,
    dy: View<'_>,
    x: View<'_>,
    d: Dims,
    accumulate: bool,
    dtype: Dtype,
    ws: View<'_>,
) {
    let e = size(dtype);
    expect("dw", dw, d.cols * d.inner, size_of::<f32>());
    expect("dy", dy, d.rows * d.cols, e);
    expect("x", x, d.rows * d.inner, e);
    expect_workspace(ws, workspace(d, dtype, q.make()));
    q.run(|| with_dtype!(dtype, cpu::backward_weight(dw, dy, x, d, accumulate, ws)));
}

/// `db (+)= Σ dy` over rows: `db` is f32 (n), `dy` is E (m, n).
pub fn backward_bias(
    q: &Queue,
    db: View<'_>,
    dy: View<'_>,
    d: Dims,
    accumulate: bool,
    dtype: Dtype,
) {
    expect("db", db, d.cols, size_of::<f32>());
    expect("dy", dy, d.rows * d.cols, size(dtype));
    q.run(|| with_dtype!(dtype, cpu::backward_bias(db, dy, d, accumulate)));
}

#[cfg(test)]
mod tests;
