//! The router on a GPU: choices, how many rows each expert gets of each chunk of tokens, and each row to its place.

use lowtide_device::Dst;
use lowtide_device::cuda::{Queue, Source};

use super::{Backward, Forward, Parts, Routes};
use crate::cuda::{define, source};
use crate::operands::Views;

static SOURCE: Source = source!("route", "route.cu");

/// Threads of a block, and the tokens that it chooses for: as in `route.cu`.
const THREADS: u32 = 256;
const CHUNK: usize = 128;

/// Weights in the order of choices, and a count for each chunk and expert.
pub(super) fn workspace(d: Routes) -> usize {
    4 * (d.sorted() + d.rows.div_ceil(CHUNK) * d.experts)
}

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, d: Routes, ws: Dst<'_>) {
    let n = 4 * d.sorted();
    let chunks = d.rows.div_ceil(CHUNK);
    let (tokens, rest) = o.routing.split_at(n);
    let (places, rest) = rest.split_at(n);
    let (choices, offsets) = rest.split_at(n);
    let (by_choice, counts) = ws.split_at(n);
    // SAFETY: the kernels' own arguments, of the sizes that the operation checked (`crate::cuda`); every place is one
    // of the k·rows sorted ones, because the counts of all chunks and experts add up to them.
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), "choose")
            .grid(chunks, 1, 1)
            .block(THREADS)
            .arg(&choices)
            .arg(&by_choice)
            .arg(&counts)
            .arg(o.logits)
            .arg(d.rows)
            .arg(d.experts)
            .arg(d.chosen)
            .arg(d.renormalise)
            .launch();
        q.kernel(&SOURCE, define(d.dtype), "offsets")
            .grid(1, 1, 1)
            .block(1024)
            .arg(&offsets)
            .arg(&counts)
            .arg(chunks)
            .arg(d.experts)
            .launch();
        q.kernel(&SOURCE, define(d.dtype), "place")
            .grid(chunks, 1, 1)
            .block(THREADS)
            .arg(&tokens)
            .arg(&places)
            .arg(&o.weights)
            .arg(&choices)
            .arg(&by_choice)
            .arg(&counts)
            .arg(d.rows)
            .arg(d.experts)
            .arg(d.chosen)
            .launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, d: Routes) {
    let parts = Parts::of(o.routing, d);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`); a routing's experts
    // and places are within them.
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), "backward")
            .grid(d.rows.div_ceil(THREADS as usize / 32), 1, 1)
            .block(THREADS)
            .arg(&o.d_logits)
            .arg(o.d_weights)
            .arg(o.logits)
            .arg(parts.choices)
            .arg(parts.places)
            .arg(d.rows)
            .arg(d.experts)
            .arg(d.chosen)
            .arg(d.renormalise)
            .launch();
    }
}
