//! Multiples and sums on a GPU.

use lowtide_device::cuda::{Queue, Source};
use lowtide_workload::Dtype;

use super::Forward;
use crate::cuda::{define, source};
use crate::operands::Views;
use crate::rmsnorm::cuda::aligned;

static SOURCE: Source = source!("add", "add.cu");

const THREADS: usize = 256;
/// Groups of eight numbers that a thread has: `DEPTH` of the kernel.
const DEPTH: usize = 2;

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, n: usize, factor: f32, dtype: Dtype) {
    let residual = o.residual.unwrap_or(o.x).address();
    let wide = aligned(&[o.y.address(), o.x.address(), residual]);
    let groups = if wide { n / 8 } else { 0 };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "forward")
            .grid(n.div_ceil(8 * THREADS * DEPTH), 1, 1)
            .block(THREADS as u32)
            .arg(&o.y)
            .arg(o.x)
            .arg(o.residual)
            .arg(n)
            .arg(groups)
            .arg(factor)
            .launch();
    }
}
