//! GELU on a GPU.

use lowtide_device::View;
use lowtide_device::cuda::{Queue, Source};
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

pub(super) fn forward(q: &Queue, y: View<'_>, x: View<'_>, n: usize, dtype: Dtype) {
    let (blocks, groups) = shape(n, aligned(&[y, x]));
    q.kernel(&SOURCE, define(dtype), "forward")
        .grid(blocks, 1, 1)
        .block(THREADS as u32)
        .arg(y)
        .arg(x)
        .arg(n)
        .arg(groups)
        .launch();
}

pub(super) fn backward(q: &Queue, dx: View<'_>, dy: View<'_>, x: View<'_>, n: usize, dtype: Dtype) {
    let (blocks, groups) = shape(n, aligned(&[dx, dy, x]));
    q.kernel(&SOURCE, define(dtype), "backward")
        .grid(blocks, 1, 1)
        .block(THREADS as u32)
        .arg(dx)
        .arg(dy)
        .arg(x)
        .arg(n)
        .arg(groups)
        .launch();
}
