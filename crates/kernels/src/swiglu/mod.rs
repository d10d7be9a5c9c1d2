//! SwiGLU: `y = silu(gate)·up` on the fused (rows, 2F) projection.
//!
//! Bound: bytes over memory rate: forward three numbers an element, backward five.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, size, with_dtype};

/// `y = gate·sigmoid(gate)·up`: `y` is E (rows, F), `gate_up` is E (rows, 2F), in each row F gates,
/// then F ups.
pub fn forward(q: &Queue, y: Dst<'_>, gate_up: Src<'_>, rows: usize, f: usize, dtype: Dtype) {
    expect("y", &y, rows * f, size(dtype));
    expect("gate_up", gate_up, rows * 2 * f, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, y, gate_up, rows, f, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(y, gate_up, rows, f)));
}

/// Gradient of [`forward`]: `d_gate_up` and `gate_up` are E (rows, 2F), `dy` is E (rows, F).
pub fn backward(
    q: &Queue,
    d_gate_up: Dst<'_>,
    dy: Src<'_>,
    gate_up: Src<'_>,
    rows: usize,
    f: usize,
    dtype: Dtype,
) {
    expect("d_gate_up", &d_gate_up, rows * 2 * f, size(dtype));
    expect("dy", dy, rows * f, size(dtype));
    expect("gate_up", gate_up, rows * 2 * f, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, d_gate_up, dy, gate_up, rows, f, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::backward(d_gate_up, dy, gate_up, rows, f)));
}

#[cfg(test)]
mod tests;
