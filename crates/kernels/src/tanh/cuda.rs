//! The hyperbolic tangent on a GPU.

use lowtide_device::cuda::{Queue, Source};
use lowtide_workload::Dtype;

use super::{Backward, Forward};
use crate::cuda::{define, source};
use crate::operands::Views;

static SOURCE: Source = source!("tanh", "tanh.cu");

const THREADS: usize = 256;

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, n: usize, dtype: Dtype) {
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "forward")
            .grid(n.div_ceil(THREADS), 1, 1)
            .block(THREADS as u32)
            .arg(&o.y)
            .arg(o.x)
            .arg(n)
            .launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, n: usize, dtype: Dtype) {
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "backward")
            .grid(n.div_ceil(THREADS), 1, 1)
            .block(THREADS as u32)
            .arg(&o.dx)
            .arg(o.dy)
            .arg(o.y)
            .arg(n)
            .launch();
    }
}
