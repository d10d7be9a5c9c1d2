//! GELU in its tanh form (transformers' `gelu_new`): `y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
//!
//! Bound: bytes over memory rate: forward two numbers an element, backward three.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, size, with_dtype};

/// `y = gelu(x)`, both E (n).
pub fn forward(q: &Queue, y: Dst<'_>, x: Src<'_>, n: usize, dtype: Dtype) {
    expect("y", &y, n, size(dtype));
    expect("x", x, n, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, y, x, n, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(y, x, n)));
}

/// `dx = dy·gelu'(x)`, all E (n).
pub fn backward(q: &Queue, dx: Dst<'_>, dy: Src<'_>, x: Src<'_>, n: usize, dtype: Dtype) {
    expect("dx", &dx, n, size(dtype));
    expect("dy", dy, n, size(dtype));
    expect("x", x, n, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, dx, dy, x, n, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::backward(dx, dy, x, n)));
}

#[cfg(test)]
mod tests;
