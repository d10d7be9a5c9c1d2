//! The end of a gradient on a CUDA device.
//!
//! Bound: bytes over the memory's rate, four read and two (bf16) or four (f32) written a number. A
//! block takes a run of the norm, a launch sixteen segments with the padding behind them.

use lowtide_device::cuda::{self, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use super::Segment;
use crate::cuda::{define, source};

static SOURCE: Source = source!("gradient", "gradient.cu");

/// As in the source.
const THREADS: u32 = 512;
/// Segments of a launch, as in the source.
const SEGMENTS: usize = 16;

/// As the operation; in the stream when the call returns.
pub(super) fn finish(
    q: &cuda::Queue,
    grad: Dst<'_>,
    mut parts: Dst<'_>,
    acc: Option<Src<'_>>,
    params: &[Segment],
    piece: usize,
    dtype: Dtype,
) {
    let full: Vec<Segment> = params.iter().copied().filter(|s| s.elements > 0).collect();
    if full.is_empty() {
        q.fill(grad, 0);
        return;
    }
    let mut part = 0;
    for first in (0..full.len()).step_by(SEGMENTS) {
        let some = &full[first..full.len().min(first + SEGMENTS)];
        let runs: usize = some.iter().map(|s| s.norm_chunks()).sum();
        // The padding before a later launch's first segment is the launch's before.
        let clear_from = if first == 0 { 0 } else { some[0].offset };
        let size = size_of::<f64>();
        let mut launch = q
            .kernel(&SOURCE, define(dtype), "finish")
            .grid(runs, 1, 1)
            .block(THREADS)
            .arg(&grad)
            .arg(&parts.lend(part * size, runs * size))
            .arg(acc.unwrap_or(grad.src()))
            .arg(clear_from);
        for i in 0..SEGMENTS {
            let (place, length, next) = some.get(i).map_or((0, 0, 0), |s| {
                let next = full.get(first + i + 1).map_or(piece, |s| s.offset);
                (s.offset, s.elements, next)
            });
            launch = launch.arg(place).arg(length).arg(next);
        }
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            launch.launch();
        }
        part += runs;
    }
}

/// `to += more`, f32; in the stream when the call returns.
pub(super) fn add(q: &cuda::Queue, to: Dst<'_>, more: Src<'_>) {
    let groups = more.bytes() / 16;
    let launch = q
        .kernel(&SOURCE, define(Dtype::F32), "add")
        .grid(groups.div_ceil(THREADS as usize), 1, 1)
        .block(THREADS)
        .arg(&to)
        .arg(more)
        .arg(groups);
    // SAFETY: the kernel's own arguments; both ranges are equally long, whole groups of four (the operation).
    unsafe {
        launch.launch();
    }
}

#[cfg(test)]
mod tests {
    use lowtide_workload::NORM_CHUNK;

    use super::SOURCE;

    #[test]
    fn the_source_has_the_norms_run() {
        let bits = NORM_CHUNK.trailing_zeros();
        assert!(NORM_CHUNK.is_power_of_two());
        assert!(SOURCE.text.contains(&format!("RUN = 1 << {bits};")));
    }
}
