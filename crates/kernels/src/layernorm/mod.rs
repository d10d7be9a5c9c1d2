//! LayerNorm: each row made mean 0 and variance 1, times a weight, plus a bias.
//!
//! Bound: bytes over memory rate, as for RMSNorm.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue};

use crate::Rows;
use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Sum, Views, operands};
use crate::rows::Runs;

/// Bytes of scratch of [`backward`].
#[must_use]
pub fn workspace(rows: usize, c: usize, make: Make) -> usize {
    match make {
        Make::Cpu => Runs::new(rows).workspace(2 * c),
        Make::Cuda => crate::rmsnorm::cuda::Runs::new(rows).workspace(2 * c),
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (rows, C).
        pub y: F::Write,
        /// f32 (rows).
        pub mean: F::Write,
        /// f32 (rows).
        pub rstd: F::Write,
        /// E (rows, C).
        pub x: F::Read,
        /// E (C).
        pub w: F::Read,
        /// E (C), where there is a bias.
        pub b: Option<F::Read>,
    }
}

operands! {
    /// Operands of [`backward`]. Both gradients are treated as `dw` is: they are one kernel's. Where weight and
    /// bias are frozen there are none, and where there is no bias only that of the weight.
    pub struct Backward<F> {
        /// E (rows, C).
        pub dx: F::Write,
        /// f32 (C).
        pub dw: Option<F::Add>,
        /// f32 (C), where there is a bias.
        pub db: Option<F::Add>,
        /// E (rows, C).
        pub dy: F::Read,
        /// What forward read, E (rows, C).
        pub x: F::Read,
        /// What forward wrote, f32 (rows).
        pub mean: F::Read,
        /// What forward wrote, f32 (rows).
        pub rstd: F::Read,
        /// E (C).
        pub w: F::Read,
        /// The gradient that goes around the norm, E (rows, C).
        pub residual: Option<F::Read>,
    }
}

/// `y = (x - mean)·rstd·w [+ b]` with `rstd = 1/√(variance + eps)`, the variance that of the whole
/// row (divided by C), in rows of width C.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Rows, eps: f32) {
    let e = size(d.dtype);
    expect("y", &o.y, d.numbers(), e);
    expect("mean", &o.mean, d.rows, size_of::<f32>());
    expect("rstd", &o.rstd, d.rows, size_of::<f32>());
    expect("x", o.x, d.numbers(), e);
    expect("w", o.w, d.width, e);
    o.b.into_iter().for_each(|b| expect("b", b, d.width, e));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d, eps);
    }
    q.run(|| with_dtype!(d.dtype, cpu::forward(o, d, eps)));
}

/// `dx = rstd·(g - mean(g) - x̂·mean(g·x̂)) + residual` with `g = dy·w` and `x̂ = (x - mean)·rstd`;
/// `dw (+)= Σ dy·x̂` and `db (+)= Σ dy` over rows. The sum with the residual is rounded once.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, d: Rows, ws: Dst<'_>) {
    let e = size(d.dtype);
    expect("dx", &o.dx, d.numbers(), e);
    assert!(o.dw.is_some() || o.db.is_none(), "gradients of one kernel");
    for sum in o.dw.iter().chain(&o.db) {
        expect("dw or db", &sum.to, d.width, size_of::<f32>());
    }
    expect("dy", o.dy, d.numbers(), e);
    expect("x", o.x, d.numbers(), e);
    expect("mean", o.mean, d.rows, size_of::<f32>());
    expect("rstd", o.rstd, d.rows, size_of::<f32>());
    expect("w", o.w, d.width, e);
    o.residual
        .into_iter()
        .for_each(|r| expect("residual", r, d.numbers(), e));
    expect_workspace(&ws, workspace(d.rows, d.width, q.make()));
    let accumulate = o.dw.as_ref().is_some_and(|dw| dw.accumulate);
    let db = o.db.map(|db| Sum { accumulate, ..db });
    let o = Backward { db, ..o };
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, d, ws);
    }
    q.run(|| with_dtype!(d.dtype, cpu::backward(o, d, ws)));
}

#[cfg(test)]
mod tests;
