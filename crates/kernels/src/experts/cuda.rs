//! Rows around the experts' products on a GPU: a block a row.

use lowtide_device::Src;
use lowtide_device::cuda::{Queue, Source};

use super::{Act, ActBackward, Combine, Gather};
use crate::cuda::{define, source};
use crate::operands::Views;
use crate::rmsnorm::cuda::aligned;
use crate::route::Routes;

static SOURCE: Source = source!("experts", "experts.cu");

/// Threads for rows of `width` numbers, `n` at once: whole warps, at most 256.
fn threads(width: usize, n: usize) -> u32 {
    (width.div_ceil(n).next_multiple_of(32)).clamp(32, 256) as u32
}

/// Whether rows of `width` numbers at these addresses may be read eight numbers at once.
fn wide(width: usize, addresses: &[u64]) -> bool {
    width.is_multiple_of(8) && aligned(addresses)
}

pub(super) fn gather(q: &Queue, o: Gather<Views<'_>>, tokens: Src<'_>, d: Routes, width: usize) {
    let (name, n) = match wide(width, &[o.y.address(), o.x.address()]) {
        true => ("gather", 8),
        false => ("gather_plain", 1),
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`); a routing's tokens
    // are rows of `x`.
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), name)
            .grid(d.sorted(), 1, 1)
            .block(threads(width, n))
            .arg(&o.y)
            .arg(o.x)
            .arg(tokens)
            .arg(width)
            .launch();
    }
}

pub(super) fn combine(q: &Queue, o: Combine<Views<'_>>, places: Src<'_>, d: Routes, width: usize) {
    let at = [o.y.address(), o.x.address(), o.residual.address()];
    let (name, n) = match wide(width, &at) {
        true => ("combine", 8),
        false => ("combine_plain", 1),
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`); a routing's places
    // are rows of `x`.
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), name)
            .grid(d.rows, 1, 1)
            .block(threads(width, n))
            .arg(&o.y)
            .arg(o.x)
            .arg(o.residual)
            .arg(places)
            .arg(d.chosen)
            .arg(width)
            .launch();
    }
}

pub(super) fn act(q: &Queue, o: Act<Views<'_>>, d: Routes, f: usize) {
    let (name, n) = match wide(f, &[o.y.address(), o.gate_up.address()]) {
        true => ("act", 8),
        false => ("act_plain", 1),
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), name)
            .grid(d.sorted(), 1, 1)
            .block(threads(f, n))
            .arg(&o.y)
            .arg(o.gate_up)
            .arg(o.weights)
            .arg(f)
            .launch();
    }
}

pub(super) fn act_backward(q: &Queue, o: ActBackward<Views<'_>>, d: Routes, f: usize) {
    let at = [o.d_gate_up.address(), o.dy.address(), o.gate_up.address()];
    let (name, n) = match wide(f, &at) {
        true => ("act_backward", 8),
        false => ("act_backward_plain", 1),
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), name)
            .grid(d.sorted(), 1, 1)
            .block(threads(f, n))
            .arg(&o.d_gate_up)
            .arg(&o.d_weights)
            .arg(o.dy)
            .arg(o.gate_up)
            .arg(o.weights)
            .arg(f)
            .launch();
    }
}
