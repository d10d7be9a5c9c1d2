//! An elementwise step on a CUDA device.
//!
//! Bound: the bytes that the optimizer moves a number over the memory's rate, as on the host. A launch takes
//! sixteen segments of any sizes, so that a block of a model with its few matrices and many norms is one
//! launch. The factor of clipping and the parts of the norm are read by every block itself: the
//! host waits for nothing, and there is no flag that two streams could share.

use lowtide_device::cuda;
use lowtide_device::{Dst, Src};
use lowtide_workload::{Dtype, Moments};

use super::Segment;
use super::elementwise::{Piece, Rule};
use super::moments::Random;
use crate::cuda::define;

/// Headers of a rule's source.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../common.cuh")),
    ("update.cuh", include_str!("update.cuh")),
];

/// As in the sources.
const THREADS: u32 = 256;
/// Numbers of a block's turn, as in the sources.
const TILE: usize = 1024;
/// Segments of a launch, as in the sources.
const SEGMENTS: usize = 16;
/// Blocks of a multiprocessor that are resident at once, which the sources' bounds allow for.
const RESIDENT: usize = 5;

/// The step; in the stream when the call returns. `clip` (three f64) replaces the rule's
/// factor and may stop the step; so may a number in `parts` that is not finite.
pub(crate) fn step<R: Rule<N>, const N: usize>(
    q: &cuda::Queue,
    piece: &Piece<'_, N>,
    segments: &[Segment],
    rule: R,
    clip: Option<Src<'_>>,
    parts: Option<Src<'_>>,
) {
    let full: Vec<Segment> = segments
        .iter()
        .copied()
        .filter(|s| s.elements > 0 && s.updated)
        .collect();
    let moments = &piece.moments;
    let written = std::iter::once(&piece.w).chain(&moments.arrays);
    let wide = written
        .chain(&piece.rem)
        .map(Dst::address)
        .chain([piece.grad.address()])
        .all(|at| at.is_multiple_of(16));
    let name = match (piece.grad_dtype, piece.moments.kind) {
        (Dtype::Bf16, Moments::F32) => "step_bf16",
        (Dtype::F32, Moments::F32) => "step_f32",
        (Dtype::Bf16, Moments::Bf16) => "step_bf16_bf16",
        (Dtype::F32, Moments::Bf16) => "step_f32_bf16",
        (Dtype::Bf16, Moments::Int8) => "step_bf16_int8",
        (Dtype::F32, Moments::Int8) => "step_f32_int8",
    };
    for some in full.chunks(SEGMENTS) {
        let tiles: usize = some.iter().map(|s| s.elements.div_ceil(TILE)).sum();
        let most = RESIDENT * q.gpu().multiprocessors() as usize;
        let mut launch = q
            .kernel(R::source(), define(piece.dtype), name)
            .grid(tiles.min(most), 1, 1)
            .block(THREADS)
            .arg(&piece.w)
            .arg(piece.rem.as_ref());
        for array in &moments.arrays {
            launch = launch.arg(array);
        }
        launch = rule
            .factors(launch.arg(piece.grad))
            .arg(clip)
            .arg(parts)
            .arg(parts.map_or(0, |p| p.bytes() / size_of::<f64>()))
            .arg(wide)
            .arg(tiles);
        for i in 0..SEGMENTS {
            // Offsets are multiples of 128: the lowest bit is free.
            let (place, length) = some
                .get(i)
                .map_or((0, 0), |s| (s.offset | usize::from(s.decay), s.elements));
            launch = launch.arg(place).arg(length);
        }
        match (moments.kind, &moments.scales) {
            (Moments::F32, _) => (),
            (Moments::Bf16, _) => {
                for i in 0..SEGMENTS {
                    let random = some.get(i).map_or(0, |s| {
                        let r = Random::new(rule.number(), s.param).after(s.start);
                        u64::from(r.b) << 32 | u64::from(r.a)
                    });
                    launch = launch.arg(random);
                }
            }
            (Moments::Int8, scales) => {
                for scale in scales.as_ref().expect("checked: 8-bit moments have scales") {
                    launch = launch.arg(scale);
                }
            }
        }
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            launch.launch();
        }
    }
}
