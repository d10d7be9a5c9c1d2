//! SwiGLU on a GPU.

use lowtide_device::cuda::{Queue, Source};

use super::{Backward, Forward, Gate};
use crate::Rows;
use crate::cuda::{define, source};
use crate::operands::Views;
use crate::rmsnorm::cuda::aligned;

static SOURCE: Source = source!("swiglu", "swiglu.cu");

const THREADS: usize = 256;
/// Groups that a thread has: `DEPTH` of the kernels.
const DEPTH: usize = 2;

/// Blocks for rows of `f` numbers a half; with `wide`, in groups of eight.
fn grid(rows: usize, f: usize, wide: bool) -> usize {
    assert!(f < 1 << 31, "rows of {f} numbers");
    let groups = if wide { f / 8 } else { f };
    (rows * groups).div_ceil(THREADS * DEPTH)
}

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, d: Rows, gate: Gate) {
    let (rows, f) = (d.rows, d.width);
    let wide = f.is_multiple_of(8) && aligned(&[o.y.address(), o.gate_up.address()]);
    let name = match (gate, wide) {
        (Gate::Silu, true) => "forward",
        (Gate::Silu, false) => "forward_plain",
        (Gate::Gelu, true) => "gelu_forward",
        (Gate::Gelu, false) => "gelu_forward_plain",
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), name)
            .grid(grid(rows, f, wide), 1, 1)
            .block(THREADS as u32)
            .arg(&o.y)
            .arg(o.gate_up)
            .arg(rows)
            .arg(f)
            .launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, d: Rows, gate: Gate) {
    let (rows, f) = (d.rows, d.width);
    let wide = f.is_multiple_of(8)
        && aligned(&[o.d_gate_up.address(), o.dy.address(), o.gate_up.address()]);
    let name = match (gate, wide) {
        (Gate::Silu, true) => "backward",
        (Gate::Silu, false) => "backward_plain",
        (Gate::Gelu, true) => "gelu_backward",
        (Gate::Gelu, false) => "gelu_backward_plain",
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), name)
            .grid(grid(rows, f, wide), 1, 1)
            .block(THREADS as u32)
            .arg(&o.d_gate_up)
            .arg(o.dy)
            .arg(o.gate_up)
            .arg(rows)
            .arg(f)
            .launch();
    }
}
