//! RMSNorm: each row divided by its root mean square, times a weight.
//!
//! Bound: bytes over memory rate. Forward reads x and writes y; backward reads dy, x and the
//! residual and writes dx.

pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue};

use crate::Rows;
use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};
use crate::rows::Runs;

/// Bytes of scratch of [`backward`].
#[must_use]
pub fn workspace(rows: usize, c: usize, make: Make) -> usize {
    match make {
        Make::Cpu => Runs::new(rows).workspace(c),
        Make::Cuda => cuda::Runs::new(rows).workspace(c),
    }
}

/// What is added to a weight before it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plus {
    /// The weight is used as it is stored.
    #[default]
    Nothing,
    /// 1: the parameter is the weight's distance from it (Gemma's).
    One,
}

impl Plus {
    /// A number whose addition says it; minus zero changes no bit of any number.
    pub(crate) fn number(self) -> f32 {
        match self {
            Self::Nothing => -0.0,
            Self::One => 1.0,
        }
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (rows, C).
        pub y: F::Write,
        /// f32 (rows).
        pub rstd: F::Write,
        /// E (rows, C).
        pub x: F::Read,
        /// E (C).
        pub w: F::Read,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// E (rows, C).
        pub dx: F::Write,
        /// f32 (C); none where the weight is frozen.
        pub dw: Option<F::Add>,
        /// E (rows, C).
        pub dy: F::Read,
        /// What forward read, E (rows, C).
        pub x: F::Read,
        /// What forward wrote, f32 (rows).
        pub rstd: F::Read,
        /// E (C).
        pub w: F::Read,
        /// The gradient that goes around the norm, E (rows, C).
        pub residual: Option<F::Read>,
    }
}

/// `rstd = 1/√(mean(x²) + eps)` for each row and `y = x·rstd·w`, in rows of width C. w is the parameter, to which
/// `plus` may add 1.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Rows, eps: f32, plus: Plus) {
    let e = size(d.dtype);
    expect("y", &o.y, d.numbers(), e);
    expect("rstd", &o.rstd, d.rows, size_of::<f32>());
    expect("x", o.x, d.numbers(), e);
    expect("w", o.w, d.width, e);
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d, eps, plus.number());
    }
    q.run(|| with_dtype!(d.dtype, cpu::forward(o, d, eps, plus.number())));
}

/// `dx = rstd·(dy·w - x̂·mean(dy·w·x̂)) + residual` with `x̂ = x·rstd`, and `dw (+)= Σ dy·x̂` over
/// rows. The sum with the residual is rounded once. `plus` as in [`forward`].
pub fn backward(q: &Queue, o: Backward<Views<'_>>, d: Rows, plus: Plus, ws: Dst<'_>) {
    let e = size(d.dtype);
    expect("dx", &o.dx, d.numbers(), e);
    o.dw.iter()
        .for_each(|dw| expect("dw", &dw.to, d.width, size_of::<f32>()));
    expect("dy", o.dy, d.numbers(), e);
    expect("x", o.x, d.numbers(), e);
    expect("rstd", o.rstd, d.rows, size_of::<f32>());
    expect("w", o.w, d.width, e);
    o.residual
        .into_iter()
        .for_each(|r| expect("residual", r, d.numbers(), e));
    expect_workspace(&ws, workspace(d.rows, d.width, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, d, plus.number(), ws);
    }
    q.run(|| with_dtype!(d.dtype, cpu::backward(o, d, plus.number(), ws)));
}

#[cfg(test)]
mod tests;
