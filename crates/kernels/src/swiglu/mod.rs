//! SwiGLU: `y = silu(gate)·up` on the fused (rows, 2F) projection; or with GELU's tanh form in place of silu (GeGLU,
//! Gemma's).
//!
//! Bound: bytes over memory rate: forward three numbers an element, backward five.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::Queue;

use crate::Rows;
use crate::number::{expect, size, with_dtype};
use crate::operands::{Views, operands};

/// What becomes of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `g·sigmoid(g)`.
    Silu,
    /// [`crate::gelu`].
    Gelu,
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (rows, F).
        pub y: F::Write,
        /// E (rows, 2F): in each row F gates, then F ups.
        pub gate_up: F::Read,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// E (rows, 2F).
        pub d_gate_up: F::Write,
        /// E (rows, F).
        pub dy: F::Read,
        /// What forward read.
        pub gate_up: F::Read,
    }
}

/// `y = act(gate)·up`, in rows of width F.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Rows, gate: Gate) {
    let e = size(d.dtype);
    expect("y", &o.y, d.numbers(), e);
    expect("gate_up", o.gate_up, 2 * d.numbers(), e);
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d, gate);
    }
    q.run(|| with_dtype!(d.dtype, cpu::forward(o, d, gate)));
}

/// Gradient of [`forward`].
pub fn backward(q: &Queue, o: Backward<Views<'_>>, d: Rows, gate: Gate) {
    let e = size(d.dtype);
    expect("d_gate_up", &o.d_gate_up, 2 * d.numbers(), e);
    expect("dy", o.dy, d.numbers(), e);
    expect("gate_up", o.gate_up, 2 * d.numbers(), e);
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, d, gate);
    }
    q.run(|| with_dtype!(d.dtype, cpu::backward(o, d, gate)));
}

#[cfg(test)]
mod tests;
