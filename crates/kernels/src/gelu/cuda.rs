//! GELU on a GPU.

use lowtide_device::cuda::{Queue, Source};
use lowtide_workload::Dtype;

use super::{Backward, Form, Forward};
use crate::cuda::{define, source};
use crate::operands::Views;
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

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, n: usize, form: Form, dtype: Dtype) {
    let name = match form {
        Form::Tanh => "forward",
        Form::Exact => "forward_exact",
        Form::Relu => "forward_relu",
    };
    let (blocks, groups) = shape(n, aligned(&[o.y.address(), o.x.address()]));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), name)
            .grid(blocks, 1, 1)
            .block(THREADS as u32)
            .arg(&o.y)
            .arg(o.x)
            .arg(n)
            .arg(groups)
            .launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, n: usize, form: Form, dtype: Dtype) {
    let name = match form {
        Form::Tanh => "backward",
        Form::Exact => "backward_exact",
        Form::Relu => "backward_relu",
    };
    let (blocks, groups) = shape(n, aligned(&[o.dx.address(), o.dy.address(), o.x.address()]));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), name)
            .grid(blocks, 1, 1)
            .block(THREADS as u32)
            .arg(&o.dx)
            .arg(o.dy)
            .arg(o.x)
            .arg(n)
            .arg(groups)
            .launch();
    }
}
