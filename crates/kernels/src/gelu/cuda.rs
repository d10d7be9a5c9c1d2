//! GELU on a GPU.

use lowtide_device::cuda::{Queue, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use crate::cuda::{define, source};
use crate::rmsnorm::cuda::aligned;

static SOURCE: Source = source!("gelu", "gelu.cu");

const THREADS: usize = 256;
/// Groups of eight numbers that a thread has: `DEPTH` of the kernels.
const DEPTH: usize = 2;

/// Blocks for `n` numbers, and how many of the numbers go in groups of eight.
fn shape(n: usize, wide: bool) -> (usize, usize) {
    let groups = if wide { n / 8 } else { 0 };
    (n.div_ceil(8 * THREADS * DEPTH), groups)
}

pub(super) fn forward(q: &Queue, y: Dst<'_>, x: Src<'_>, n: usize, dtype: Dtype) {
    let (blocks, groups) = shape(n, aligned(&[y.address(), x.address()]));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "forward")
            .grid(blocks, 1, 1)
            .block(THREADS as u32)
            .arg(&y)
            .arg(x)
            .arg(n)
            .arg(groups)
            .launch();
    }
}

pub(super) fn backward(q: &Queue, dx: Dst<'_>, dy: Src<'_>, x: Src<'_>, n: usize, dtype: Dtype) {
    let (blocks, groups) = shape(n, aligned(&[dx.address(), dy.address(), x.address()]));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "backward")
            .grid(blocks, 1, 1)
            .block(THREADS as u32)
            .arg(&dx)
            .arg(dy)
            .arg(x)
            .arg(n)
            .arg(groups)
            .launch();
    }
}
