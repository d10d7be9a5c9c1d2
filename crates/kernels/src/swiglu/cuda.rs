//! SwiGLU on a GPU.

use lowtide_device::cuda::{Queue, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use crate::cuda::{define, source};
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

pub(super) fn forward(
    q: &Queue,
    y: Dst<'_>,
    gate_up: Src<'_>,
    rows: usize,
    f: usize,
    dtype: Dtype,
) {
    let wide = f.is_multiple_of(8) && aligned(&[y.address(), gate_up.address()]);
    let name = if wide { "forward" } else { "forward_plain" };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), name)
            .grid(grid(rows, f, wide), 1, 1)
            .block(THREADS as u32)
            .arg(&y)
            .arg(gate_up)
            .arg(rows)
            .arg(f)
            .launch();
    }
}

pub(super) fn backward(
    q: &Queue,
    d_gate_up: Dst<'_>,
    dy: Src<'_>,
    gate_up: Src<'_>,
    rows: usize,
    f: usize,
    dtype: Dtype,
) {
    let wide =
        f.is_multiple_of(8) && aligned(&[d_gate_up.address(), dy.address(), gate_up.address()]);
    let name = if wide { "backward" } else { "backward_plain" };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), name)
            .grid(grid(rows, f, wide), 1, 1)
            .block(THREADS as u32)
            .arg(&d_gate_up)
            .arg(dy)
            .arg(gate_up)
            .arg(rows)
            .arg(f)
            .launch();
    }
}
