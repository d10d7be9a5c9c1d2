//! Grouped products: the linear layers of all experts of a block, each applied to the rows that were routed to it.
//!
//! Rows are sorted by expert; where the rows of each expert begin is known only on the device ([`crate::route`]). The
//! weights of all experts are one matrix, expert after expert. An expert without rows costs nothing, and its weight's
//! gradient is zero.
//!
//! Bound: 2·rows·n·k operations over the rate of a matrix product, whatever the number of experts, and for few rows an
//! expert the bytes of its weight.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};
use crate::product;
use crate::route::{Parts, Routes};

/// Sizes of a grouped product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// The router's sizes: how many rows there are, sorted by expert.
    pub routes: Routes,
    /// k: input features.
    pub inner: usize,
    /// n: output features of each expert.
    pub cols: usize,
}

/// Bytes of scratch for any of the three operations: on the CPU widened panels, as [`crate::matmul::workspace`].
#[must_use]
pub fn workspace(d: Dims, make: Make) -> usize {
    let (m, k, n) = (d.routes.sorted(), d.inner, d.cols);
    match (make, d.routes.dtype) {
        (Make::Cuda, _) | (Make::Cpu, Dtype::F32) => 0,
        (Make::Cpu, Dtype::Bf16) => product::workspace_at_most(m, n, k)
            .max(product::workspace_at_most(m, k, n))
            .max(product::workspace_at_most(n, k, m)),
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (m, n).
        pub y: F::Write,
        /// E (m, k), sorted by expert.
        pub x: F::Read,
        /// E (experts·n, k).
        pub w: F::Read,
        /// i32, see [`Routes::bytes`].
        pub routing: F::Read,
    }
}

operands! {
    /// Operands of [`backward_weight`].
    pub struct Weight<F> {
        /// f32 (experts·n, k).
        pub dw: F::Add,
        /// E (m, n).
        pub dy: F::Read,
        /// What forward read, E (m, k).
        pub x: F::Read,
        /// The router's output, which says where each expert's rows are.
        pub routing: F::Read,
    }
}

operands! {
    /// Operands of [`backward_input`].
    pub struct Input<F> {
        /// E (m, k).
        pub dx: F::Write,
        /// E (m, n).
        pub dy: F::Read,
        /// E (experts·n, k).
        pub w: F::Read,
        /// The router's output, which says where each expert's rows are.
        pub routing: F::Read,
    }
}

impl Dims {
    /// Numbers of (m, k), of (m, n), and of the weight.
    fn numbers(self) -> (usize, usize, usize) {
        let m = self.routes.sorted();
        let w = self.routes.experts * self.cols * self.inner;
        (m * self.inner, m * self.cols, w)
    }
}

/// `y = x·wₑᵀ` of the rows of each expert e, rounded once.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Dims, ws: Dst<'_>) {
    let (dtype, (x, y, w)) = (d.routes.dtype, d.numbers());
    let e = size(dtype);
    expect("y", &o.y, y, e);
    expect("x", o.x, x, e);
    expect("w", o.w, w, e);
    let offsets = Parts::of(o.routing, d.routes).offsets;
    expect_workspace(&ws, workspace(d, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, offsets, d);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(o, offsets, d, ws)));
}

/// `dx = dy·wₑ`.
pub fn backward_input(q: &Queue, o: Input<Views<'_>>, d: Dims, ws: Dst<'_>) {
    let (dtype, (x, y, w)) = (d.routes.dtype, d.numbers());
    let e = size(dtype);
    expect("dx", &o.dx, x, e);
    expect("dy", o.dy, y, e);
    expect("w", o.w, w, e);
    let offsets = Parts::of(o.routing, d.routes).offsets;
    expect_workspace(&ws, workspace(d, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward_input(q, o, offsets, d);
    }
    q.run(|| with_dtype!(dtype, cpu::backward_input(o, offsets, d, ws)));
}

/// `dwₑ (+)= dyᵀ·x` over the rows of each expert. A gradient that is added to gets the complete product in one
/// addition a number.
pub fn backward_weight(q: &Queue, o: Weight<Views<'_>>, d: Dims, ws: Dst<'_>) {
    let (dtype, (x, y, w)) = (d.routes.dtype, d.numbers());
    let e = size(dtype);
    expect("dw", &o.dw.to, w, size_of::<f32>());
    expect("dy", o.dy, y, e);
    expect("x", o.x, x, e);
    let offsets = Parts::of(o.routing, d.routes).offsets;
    expect_workspace(&ws, workspace(d, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward_weight(q, o, offsets, d);
    }
    q.run(|| with_dtype!(dtype, cpu::backward_weight(o, offsets, d, ws)));
}

#[cfg(test)]
mod tests;
