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
use crate::operands::{Views, operands};
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

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (m, n).
        pub y: F::Write,
        /// E (m, k).
        pub x: F::Read,
        /// E (n, k).
        pub w: F::Read,
        /// E (n).
        pub bias: Option<F::Read>,
        /// E (m, n).
        pub residual: Option<F::Read>,
    }
}

operands! {
    /// Operands of [`backward_weight`].
    pub struct Weight<F> {
        /// f32 (n, k).
        pub dw: F::Add,
        /// f32 (n).
        pub db: Option<F::Add>,
        /// E (m, n).
        pub dy: F::Read,
        /// What forward read, E (m, k).
        pub x: F::Read,
    }
}

operands! {
    /// Operands of [`backward_bias`].
    pub struct Bias<F> {
        /// f32 (n).
        pub db: F::Add,
        /// E (m, n).
        pub dy: F::Read,
    }
}

operands! {
    /// Operands of [`backward_input`].
    pub struct Input<F> {
        /// E (m, k).
        pub dx: F::Write,
        /// E (m, n).
        pub dy: F::Read,
        /// E (n, k).
        pub w: F::Read,
    }
}

impl<'a> Forward<Views<'a>> {
    /// `y = x·wᵀ` alone.
    #[must_use]
    pub fn product(y: Dst<'a>, x: Src<'a>, w: Src<'a>) -> Self {
        Self {
            y,
            x,
            w,
            bias: None,
            residual: None,
        }
    }
}

/// `y = x·wᵀ + bias + residual`, rounded once.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Dims, dtype: Dtype, ws: Dst<'_>) {
    let e = size(dtype);
    expect("y", &o.y, d.rows * d.cols, e);
    expect("x", o.x, d.rows * d.inner, e);
    expect("w", o.w, d.cols * d.inner, e);
    o.bias
        .into_iter()
        .for_each(|b| expect("bias", b, d.cols, e));
    o.residual
        .into_iter()
        .for_each(|r| expect("residual", r, d.rows * d.cols, e));
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(o, d, ws)));
}

/// `dx = dy·w`.
pub fn backward_input(q: &Queue, o: Input<Views<'_>>, d: Dims, dtype: Dtype, ws: Dst<'_>) {
    let e = size(dtype);
    expect("dx", &o.dx, d.rows * d.inner, e);
    expect("dy", o.dy, d.rows * d.cols, e);
    expect("w", o.w, d.cols * d.inner, e);
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward_input(q, o, 0, d, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::backward_input(o, d, ws)));
}

/// `dw (+)= dyᵀ·x`, then `db (+)= Σ dy` over rows ([`backward_bias`]).
///
/// A gradient that is added to gets the complete product in one addition a number.
pub fn backward_weight(q: &Queue, o: Weight<Views<'_>>, d: Dims, dtype: Dtype, mut ws: Dst<'_>) {
    let e = size(dtype);
    let Weight { dw, db, dy, x } = o;
    expect("dw", &dw.to, d.cols * d.inner, size_of::<f32>());
    expect("dy", dy, d.rows * d.cols, e);
    expect("x", x, d.rows * d.inner, e);
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    match q.cuda() {
        Some(q) => cuda::backward_weight(q, dw, (dy, 0, x), d, dtype, ws.again()),
        None => q.run(|| with_dtype!(dtype, cpu::backward_weight(dw, dy, x, d, ws.again()))),
    }
    if let Some(db) = db {
        backward_bias(q, Bias { db, dy }, d, dtype, ws);
    }
}

/// `db (+)= Σ dy` over rows: `db` is f32 (n), `dy` is E (m, n).
pub fn backward_bias(q: &Queue, o: Bias<Views<'_>>, d: Dims, dtype: Dtype, ws: Dst<'_>) {
    let Bias { db, dy } = o;
    expect("db", &db.to, d.cols, size_of::<f32>());
    expect("dy", dy, d.rows * d.cols, size(dtype));
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    if let Some(q) = q.cuda() {
        return bias::backward_bias(q, db, dy, d, dtype, ws);
    }
    q.run(|| with_dtype!(dtype, cpu::backward_bias(db, dy, d)));
}

#[cfg(test)]
mod tests;
