//! The hyperbolic tangent, `y = tanh(x)`, of heads that classify.
//!
//! Bound: bytes over memory rate: forward two numbers an element, backward three.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::Queue;
use lowtide_workload::Dtype;

use crate::number::{expect, size, with_dtype};
use crate::operands::{Views, operands};

operands! {
    /// Operands of [`forward`], all E (n).
    pub struct Forward<F> {
        /// Tangents, from -1 to 1.
        pub y: F::Write,
        /// What they are the tangents of.
        pub x: F::Read,
    }
}

operands! {
    /// Operands of [`backward`], all E (n).
    pub struct Backward<F> {
        /// Gradient of what forward read.
        pub dx: F::Write,
        /// Gradient of what forward wrote.
        pub dy: F::Read,
        /// What forward wrote.
        pub y: F::Read,
    }
}

/// `y = tanh(x)`.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, n: usize, dtype: Dtype) {
    expect("y", &o.y, n, size(dtype));
    expect("x", o.x, n, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, n, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(o, n)));
}

/// `dx = dy·(1 - y²)`, of the result as it is stored.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, n: usize, dtype: Dtype) {
    expect("dx", &o.dx, n, size(dtype));
    expect("dy", o.dy, n, size(dtype));
    expect("y", o.y, n, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, n, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::backward(o, n)));
}

#[cfg(test)]
mod tests;
