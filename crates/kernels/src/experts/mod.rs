//! Around the products of a block's experts: rows of tokens gathered by expert, SwiGLU times the router's weight, and
//! rows of all experts added up by token. [`crate::route`] says which rows.
//!
//! A weight multiplies what goes into an expert's last product, where it is f32 and rounded with the rest: after the
//! product it would be the same number but for rounding, and backward would need the product's result.
//!
//! Bound: bytes over memory rate.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::Queue;

use crate::number::{expect, size, with_dtype};
use crate::operands::{Views, operands};
use crate::route::{Parts, Routes};

operands! {
    /// Operands of [`gather`].
    pub struct Gather<F> {
        /// E (sorted, width).
        pub y: F::Write,
        /// E (rows, width).
        pub x: F::Read,
        /// i32, see [`Routes::bytes`].
        pub routing: F::Read,
    }
}

operands! {
    /// Operands of [`combine`].
    pub struct Combine<F> {
        /// E (rows, width).
        pub y: F::Write,
        /// E (sorted, width).
        pub x: F::Read,
        /// E (rows, width).
        pub residual: F::Read,
        /// i32, see [`Routes::bytes`].
        pub routing: F::Read,
    }
}

operands! {
    /// Operands of [`act`].
    pub struct Act<F> {
        /// E (sorted, F).
        pub y: F::Write,
        /// E (sorted, 2F): in each row F gates, then F ups.
        pub gate_up: F::Read,
        /// f32 (sorted).
        pub weights: F::Read,
    }
}

operands! {
    /// Operands of [`act_backward`].
    pub struct ActBackward<F> {
        /// E (sorted, 2F).
        pub d_gate_up: F::Write,
        /// f32 (sorted).
        pub d_weights: F::Write,
        /// E (sorted, F).
        pub dy: F::Read,
        /// What forward read, E (sorted, 2F).
        pub gate_up: F::Read,
        /// What forward read, f32 (sorted).
        pub weights: F::Read,
    }
}

/// The row of its token for each sorted row. This is also the gradient of [`combine`].
pub fn gather(q: &Queue, o: Gather<Views<'_>>, d: Routes, width: usize) {
    let e = size(d.dtype);
    expect("y", &o.y, d.sorted() * width, e);
    expect("x", o.x, d.rows * width, e);
    let tokens = Parts::of(o.routing, d).tokens;
    if let Some(q) = q.cuda() {
        return cuda::gather(q, o, tokens, d, width);
    }
    q.run(|| with_dtype!(d.dtype, cpu::gather(o, tokens, d, width)));
}

/// The sum of each token's sorted rows, that of its first choice first, then its residual; rounded once. This is also
/// the gradient of [`gather`].
pub fn combine(q: &Queue, o: Combine<Views<'_>>, d: Routes, width: usize) {
    let e = size(d.dtype);
    expect("y", &o.y, d.rows * width, e);
    expect("x", o.x, d.sorted() * width, e);
    expect("residual", o.residual, d.rows * width, e);
    let places = Parts::of(o.routing, d).places;
    if let Some(q) = q.cuda() {
        return cuda::combine(q, o, places, d, width);
    }
    q.run(|| with_dtype!(d.dtype, cpu::combine(o, places, d, width)));
}

/// `y = weight·silu(gate)·up` in sorted rows of F, rounded once.
pub fn act(q: &Queue, o: Act<Views<'_>>, d: Routes, f: usize) {
    let (e, n) = (size(d.dtype), d.sorted());
    expect("y", &o.y, n * f, e);
    expect("gate_up", o.gate_up, 2 * n * f, e);
    expect("weights", o.weights, n, 4);
    if let Some(q) = q.cuda() {
        return cuda::act(q, o, d, f);
    }
    q.run(|| with_dtype!(d.dtype, cpu::act(o, d, f)));
}

/// The gradients of [`act`]: of gates and ups, and of the weight of each row.
pub fn act_backward(q: &Queue, o: ActBackward<Views<'_>>, d: Routes, f: usize) {
    let (e, n) = (size(d.dtype), d.sorted());
    expect("d_gate_up", &o.d_gate_up, 2 * n * f, e);
    expect("d_weights", &o.d_weights, n, 4);
    expect("dy", o.dy, n * f, e);
    expect("gate_up", o.gate_up, 2 * n * f, e);
    expect("weights", o.weights, n, 4);
    if let Some(q) = q.cuda() {
        return cuda::act_backward(q, o, d, f);
    }
    q.run(|| with_dtype!(d.dtype, cpu::act_backward(o, d, f)));
}

#[cfg(test)]
mod tests;
