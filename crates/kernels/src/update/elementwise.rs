//! Optimizers whose new weight and moments of a number depend on that number's gradient, weight and moments
//! alone: an update is a [`Rule`], and everything around it (storage, chunks, threads, paths, clipping, launches)
//! is here.

use lowtide_device::cuda::{Launch, Source};
use lowtide_device::{Dst, Plain, Queue, Src};
use lowtide_workload::{Dtype, Moments, PARAM_ALIGN};
use rayon::prelude::*;

use super::cpu::{self, Chunk, Gradients, Master, Stored};
use super::moments::{BLOCK, Random};
use super::{CHUNK, Segment, Types, Views, applied, cuda};
use crate::number::{expect, read};

/// A step's formula with its factors: how one number with `N` moments is updated.
pub(crate) trait Rule<const N: usize>: Copy + Sync {
    /// Which moments have a sign; the codes of 8-bit ones differ. A rule has the signed ones first.
    const SIGNED: [bool; N];

    /// The same with another factor of clipping.
    fn scaled(self, grad_scale: f32) -> Self;
    /// What a weight that decays is multiplied with first.
    fn keep(&self) -> f32;
    /// Which step this is, from 1: with parameter and position, what rounding to bf16 moments depends on.
    fn number(&self) -> u64;

    /// The master weight and the moments after the step. `keep` is [`Rule::keep`], or 1 without decay.
    fn update(&self, keep: f32, grad: f32, p: f32, moments: [f32; N]) -> (f32, [f32; N]);

    /// The kernels: `step_GRAD`, `step_GRAD_bf16` and `step_GRAD_int8` for gradients in `bf16` and `f32`.
    fn source() -> &'static Source;
    /// The kernels' own arguments, behind the gradient.
    fn factors<'a>(&self, launch: Launch<'a>) -> Launch<'a>;

    /// A chunk with AVX-512; the same bits as [`cpu::portable`].
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512(chunk: Chunk<'_, N>, rule: &Self) {
        // SAFETY: as the caller promises.
        unsafe { cpu::avx512(chunk, rule) }
    }
}

/// The moments of a piece, wherever they lie.
#[derive(Debug)]
pub(crate) struct MomentViews<'a, const N: usize> {
    /// The storage of all of them.
    pub kind: Moments,
    /// Each: f32, bf16 bits, or codes.
    pub arrays: [Dst<'a>; N],
    /// For [`Moments::Int8`], the scales of each: f32, one for each 128 numbers.
    pub scales: Option<[Dst<'a>; N]>,
}

/// The arrays of a piece and their types.
pub(crate) struct Piece<'a, const N: usize> {
    pub w: Dst<'a>,
    pub rem: Option<Dst<'a>>,
    pub moments: MomentViews<'a, N>,
    pub grad: Src<'a>,
    pub grad_dtype: Dtype,
    pub dtype: Dtype,
}

/// Which compilation of the loop runs. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Compiled for AVX-512 (F, BW, VL); AdamW with intrinsics and software prefetch.
    Avx512,
    /// The portable loop, vectorised for AVX2 with FMA.
    Avx2,
    /// The portable loop for the baseline processor: NEON on aarch64; scalar, and slow without
    /// FMA, on x86-64.
    Portable,
}

impl Path {
    /// All paths, the fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// Whether this processor can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Portable => true,
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }

    /// The fastest path of this processor.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL
            .into_iter()
            .find(|p| p.is_available())
            .expect("the portable path always is")
    }
}

/// A step with the factor of clipping from `clip`; nothing is written where it says so, or where a number in
/// `parts` is not finite. As [`super::step`].
///
/// # Panics
/// As [`super::step`].
pub(crate) fn step_clipped<R: Rule<N>, const N: usize>(
    q: &Queue,
    piece: &Piece<'_, N>,
    segments: &[Segment],
    rule: R,
    clip: Src<'_>,
    parts: Option<Src<'_>>,
) {
    piece.check(segments);
    expect("clip", clip, 3, size_of::<f64>());
    if let Some(q) = q.cuda() {
        return cuda::step(q, piece, segments, rule, Some(clip), parts);
    }
    if let Some(factor) = applied(clip, parts) {
        run(Path::best(), q, piece, segments, rule.scaled(factor));
    }
}

/// A step by one path of the host, with the rule's own factor of clipping.
pub(crate) fn step_on<R: Rule<N>, const N: usize>(
    path: Path,
    q: &Queue,
    piece: &Piece<'_, N>,
    segments: &[Segment],
    rule: R,
) {
    piece.check(segments);
    run(path, q, piece, segments, rule);
}

/// A checked step by one path, which this processor must have.
fn run<R: Rule<N>, const N: usize>(
    path: Path,
    q: &Queue,
    piece: &Piece<'_, N>,
    segments: &[Segment],
    rule: R,
) {
    assert!(path.is_available(), "this processor lacks {path:?}");
    let cuts: Vec<Segment> = segments
        .iter()
        .filter(|s| s.updated)
        .flat_map(cut)
        .collect();
    q.run(|| {
        cuts.par_iter().for_each(|cut| {
            let keep = if cut.decay { rule.keep() } else { 1.0 };
            // SAFETY: cuts are disjoint (`check` asserts it of the segments), so no other thread has
            // these numbers.
            let chunk = unsafe { piece.chunk(cut, keep, rule.number()) };
            update(path, chunk, &rule);
        });
    });
}

/// The chunks of one segment.
fn cut(s: &Segment) -> impl Iterator<Item = Segment> {
    let Segment {
        offset,
        elements,
        start,
        ..
    } = *s;
    (0..elements).step_by(CHUNK).map(move |at| Segment {
        offset: offset + at,
        elements: CHUNK.min(elements - at),
        start: start + at as u64,
        ..*s
    })
}

/// A chunk by a path, which this processor must have.
pub(crate) fn update<R: Rule<N>, const N: usize>(path: Path, chunk: Chunk<'_, N>, rule: &R) {
    match path {
        // SAFETY: `run` asserted that the processor has the path.
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => unsafe { R::avx512(chunk, rule) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { cpu::avx2(chunk, rule) },
        _ => cpu::portable(chunk, rule),
    }
}

impl<'a, const N: usize> Piece<'a, N> {
    /// A piece of weights and a state that lies as the optimizer's table says.
    ///
    /// # Panics
    /// When the state is shorter, or the table has other arrays.
    pub(crate) fn of(types: Types, elements: u64, views: Views<'a>) -> Self {
        let Types {
            optimizer,
            precision,
            gradient,
        } = types;
        let Views {
            weight,
            state,
            gradient: grad,
            ..
        } = views;
        let mut rest = Some(state);
        // The table has them in the order in which they lie, one behind the other.
        let arrays = optimizer
            .layout(precision, elements, &[])
            .into_iter()
            .map(|a| {
                let (array, behind) = rest.take().expect("put back").split_at(a.bytes as usize);
                rest = Some(behind);
                array
            });
        let mut arrays: Vec<Dst<'a>> = arrays.collect();
        let rem = (precision == Dtype::Bf16).then(|| arrays.remove(0));
        let kind = optimizer.moments;
        let scales = (kind == Moments::Int8).then(|| of(arrays.split_off(N)));
        let arrays = of(arrays);
        Self {
            w: weight,
            rem,
            moments: MomentViews {
                kind,
                arrays,
                scales,
            },
            grad,
            grad_dtype: gradient,
            dtype: precision,
        }
    }

    pub(crate) fn check(&self, segments: &[Segment]) {
        assert_eq!(
            self.rem.is_some(),
            self.dtype == Dtype::Bf16,
            "a remainder belongs to bf16 weights, and to them only"
        );
        let size = |dtype: Dtype| dtype.size() as usize;
        let MomentViews {
            kind,
            arrays,
            scales,
        } = &self.moments;
        assert_eq!(
            scales.is_some(),
            *kind == Moments::Int8,
            "scales belong to 8-bit moments, and to them only"
        );
        let mut numbers =
            (self.w.bytes() / size(self.dtype)).min(self.grad.bytes() / size(self.grad_dtype));
        for array in arrays {
            numbers = numbers.min(array.bytes() / kind.size() as usize);
        }
        if let Some(rem) = &self.rem {
            numbers = numbers.min(rem.bytes() / size_of::<i16>());
        }
        for scales in scales.iter().flatten() {
            numbers = numbers.min(scales.bytes() / size_of::<f32>() * BLOCK);
        }
        let mut end = 0;
        for s in segments {
            assert!(
                s.start.is_multiple_of(BLOCK as u64),
                "segment {s:?} starts inside a block"
            );
            assert!(
                s.offset >= end && s.offset.is_multiple_of(PARAM_ALIGN as usize),
                "segment {s:?} after one that ends at {end}"
            );
            end = s
                .offset
                .checked_add(s.elements)
                .expect("a segment's end fits usize");
            assert!(
                end <= numbers,
                "segment {s:?} in views of {numbers} numbers"
            );
        }
    }

    /// The slices of one chunk.
    ///
    /// # Safety
    /// While the chunk lives no other one has these numbers.
    unsafe fn chunk(&self, cut: &Segment, keep: f32, step: u64) -> Chunk<'_, N> {
        let blocks = Segment {
            offset: cut.offset / BLOCK,
            elements: cut.elements.div_ceil(BLOCK),
            ..*cut
        };
        let MomentViews {
            kind,
            arrays,
            scales,
        } = &self.moments;
        // SAFETY: the caller keeps other users off these numbers.
        unsafe {
            let master = match &self.rem {
                Some(rem) => Master::Split(write(&self.w, cut), write(rem, cut)),
                None => Master::Whole(write(&self.w, cut)),
            };
            let grad = match self.grad_dtype {
                Dtype::Bf16 => Gradients::Bf16(read(self.grad, cut.offset, cut.elements)),
                Dtype::F32 => Gradients::F32(read(self.grad, cut.offset, cut.elements)),
            };
            let moments = match (kind, scales) {
                (Moments::F32, _) => Stored::F32(arrays.each_ref().map(|m| write(m, cut))),
                (Moments::Bf16, _) => Stored::Bf16(arrays.each_ref().map(|m| write(m, cut))),
                (Moments::Int8, Some(scales)) => Stored::Int8(
                    arrays.each_ref().map(|m| write(m, cut)),
                    scales.each_ref().map(|s| write(s, &blocks)),
                ),
                (Moments::Int8, None) => unreachable!("`check` asks for scales"),
            };
            Chunk {
                master,
                moments,
                grad,
                random: Random::new(step, cut.param).after(cut.start),
                keep,
            }
        }
    }
}

/// All of a rule's arrays.
fn of<'a, const N: usize>(arrays: Vec<Dst<'a>>) -> [Dst<'a>; N] {
    let found = arrays.len();
    let arrays = <[Dst<'a>; N]>::try_from(arrays);
    arrays.unwrap_or_else(|_| panic!("a rule of {N} moments, a table of {found} arrays"))
}

/// The numbers of a cut, to be written.
///
/// # Safety
/// As [`Dst::slice`].
#[allow(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
unsafe fn write<'a, T: Plain>(view: &'a Dst<'_>, cut: &Segment) -> &'a mut [T] {
    // SAFETY: as the caller promises.
    unsafe { view.slice(cut.offset, cut.elements) }
}
