//! GELU, `y = x·Φ(x)` with the normal distribution Φ, exactly (transformers' `gelu`) or in its tanh form (`gelu_new`):
//! `y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`; and ReLU in its place.
//!
//! Bound: bytes over memory rate: forward two numbers an element, backward three.

pub(crate) mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::Queue;
use lowtide_workload::Dtype;

use crate::number::{expect, size, with_dtype};
use crate::operands::{Views, operands};

/// How the normal distribution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By tanh of a cubic.
    Tanh,
    /// Itself, within a few units in the last place.
    Exact,
    /// A step: `y = max(x, 0)`, with the slope 0 at 0.
    Relu,
}

operands! {
    /// Operands of [`forward`], all E (n).
    pub struct Forward<F> {
        /// GELU of each number, rounded to E.
        pub y: F::Write,
        /// What it is computed of.
        pub x: F::Read,
    }
}

operands! {
    /// Operands of [`backward`], all E (n).
    pub struct Backward<F> {
        /// Gradient of `x`.
        pub dx: F::Write,
        /// Gradient of the result.
        pub dy: F::Read,
        /// What forward read.
        pub x: F::Read,
    }
}

/// `y = gelu(x)`.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, n: usize, form: Form, dtype: Dtype) {
    expect("y", &o.y, n, size(dtype));
    expect("x", o.x, n, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, n, form, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(o, n, form)));
}

/// `dx = dy·gelu'(x)`.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, n: usize, form: Form, dtype: Dtype) {
    expect("dx", &o.dx, n, size(dtype));
    expect("dy", o.dy, n, size(dtype));
    expect("x", o.x, n, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, n, form, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::backward(o, n, form)));
}

#[cfg(test)]
mod tests;
