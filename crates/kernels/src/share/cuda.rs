//! Shares of gradients on a GPU.

use lowtide_device::cuda::{Queue, Source};
use lowtide_workload::Dtype;

use super::{Add, Round};
use crate::cuda::{define, source};
use crate::operands::Views;

static SOURCE: Source = source!("share", "share.cu");

const THREADS: usize = 256;
/// Numbers that a thread has.
const EACH: usize = 8;

pub(super) fn add(q: &Queue, o: Add<Views<'_>>, n: usize, dtype: Dtype) {
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "add")
            .grid(n.div_ceil(THREADS * EACH), 1, 1)
            .block(THREADS as u32)
            .arg(&o.sum.to)
            .arg(o.x)
            .arg(n)
            .arg(usize::from(o.sum.accumulate))
            .launch();
    }
}

pub(super) fn round(q: &Queue, o: Round<Views<'_>>, n: usize, dtype: Dtype) {
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "round_sum")
            .grid(n.div_ceil(THREADS * EACH), 1, 1)
            .block(THREADS as u32)
            .arg(&o.y)
            .arg(o.sum)
            .arg(n)
            .launch();
    }
}
