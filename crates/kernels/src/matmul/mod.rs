//! Linear layers: `y = x·wᵀ + bias + residual` and its gradients.
//!
//! Bound: 2·m·n·k operations over the rate of a matrix product on all threads; the operands'
//! bytes matter only for a few rows.

mod bias;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
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

/// Bytes of scratch for any of the four operations. On the CPU: widened panels, about 20 MiB at
/// most, and none for f32. On CUDA: what the library may use, and partial sums of the bias.
#[must_use]
pub fn workspace(d: Dims, dtype: Dtype, make: Make) -> usize {
    if make == Make::Cuda {
        return cuda::workspace(d);
    }
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
    y: Dst<'_>,
    x: Src<'_>,
    w: Src<'_>,
    bias: Option<Src<'_>>,
    residual: Option<Src<'_>>,
    d: Dims,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let e = size(dtype);
    expect("y", &y, d.rows * d.cols, e);
    expect("x", x, d.rows * d.inner, e);
    expect("w", w, d.cols * d.inner, e);
    bias.into_iter().for_each(|b| expect("bias", b, d.cols, e));
    residual
        .into_iter()
        .for_each(|r| expect("residual", r, d.rows * d.cols, e));
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, y, x, w, bias, residual, d, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(y, x, w, bias, residual, d, ws)));
}

/// `dx = dy·w`: `dx` is E (m, k), `dy` is E (m, n), `w` is E (n, k).
pub fn backward_input(
    q: &Queue,
    dx: Dst<'_>,
    dy: Src<'_>,
    w: Src<'_>,
    d: Dims,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let e = size(dtype);
    expect("dx", &dx, d.rows * d.inner, e);
    expect("dy", dy, d.rows * d.cols, e);
    expect("w", w, d.cols * d.inner, e);
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward_input(q, dx, dy, w, d, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::backward_input(dx, dy, w, d, ws)));
}

/// `dw (+)= dyᵀ·x`: `dw` is f32 (n, k), `dy` is E (m, n), `x` is E (m, k).
///
/// With `accumulate` the complete product is added to what is there, in one addition a number.
pub fn backward_weight(
    q: &Queue,
    dw: Dst<'_>,
    dy: Src<'_>,
    x: Src<'_>,
    d: Dims,
    accumulate: bool,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let e = size(dtype);
    expect("dw", &dw, d.cols * d.inner, size_of::<f32>());
    expect("dy", dy, d.rows * d.cols, e);
    expect("x", x, d.rows * d.inner, e);
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward_weight(q, dw, dy, x, d, accumulate, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::backward_weight(dw, dy, x, d, accumulate, ws)));
}

/// `db (+)= Σ dy` over rows: `db` is f32 (n), `dy` is E (m, n).
pub fn backward_bias(
    q: &Queue,
    db: Dst<'_>,
    dy: Src<'_>,
    d: Dims,
    accumulate: bool,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    expect("db", &db, d.cols, size_of::<f32>());
    expect("dy", dy, d.rows * d.cols, size(dtype));
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return bias::backward_bias(q, db, dy, d.rows, d.cols, accumulate, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::backward_bias(db, dy, d, accumulate)));
}

#[cfg(test)]
mod tests;
