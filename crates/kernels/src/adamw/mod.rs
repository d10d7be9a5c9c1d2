//! AdamW on either device, in place, with split master weights.
//!
//! Memory-bound: with bf16 weights and gradients it moves **26 bytes a parameter**, each of them
//! once: weight 2 read + 2 written, remainder 2 + 2, first moment 4 + 4, second moment 4 + 4,
//! gradient 2 read. The bound is 26 bytes over the best rate at which the same threads copy
//! memory; [`bench()`] measures both in one run. In precision f32 the weight is the master
//! (4 + 4) and there is no remainder, which is 26 bytes again, or 28 with f32 gradients.
//!
//! # The formula
//!
//! PyTorch's `AdamW` (decoupled decay, epsilon outside the root). The order and the rounding of
//! every operation are part of the contract, because a block's update may run on the host or on
//! the device and must give the same bits. All of it is f32, rounded to nearest even after each
//! line; `fma` rounds once; root and division are correctly rounded; subnormals are kept. In CUDA,
//! compiled with `-ftz=false`:
//!
//! ```text
//! g = grad · grad_scale                  g = __fmul_rn(grad, grad_scale)
//! a = g - m                              a = __fsub_rn(g, m)
//! m = fma(one_minus_beta1, a, m)         m = __fmaf_rn(one_minus_beta1, a, m)
//! b = fma(g, g, -v)                      b = __fmaf_rn(g, g, -v)
//! v = fma(one_minus_beta2, b, v)         v = __fmaf_rn(one_minus_beta2, b, v)
//! s = sqrt(v)                            s = __fsqrt_rn(v)
//! s = s / root_correction2               s = __fdiv_rn(s, root_correction2)
//! d = s + eps                            d = __fadd_rn(s, eps)
//! u = m / d                              u = __fdiv_rn(m, d)
//! p = p · keep   (1 without decay)       p = __fmul_rn(p, keep)
//! p = fma(minus_rate, u, p)              p = __fmaf_rn(minus_rate, u, p)
//! ```
//!
//! `grad` is widened to f32 exactly, `p` is the joined master weight and is [`split()`] afterwards.
//! The factors are computed once a step, in f64, and rounded to f32 ([`Hyper::constants`]); a
//! device kernel must take them from there, not compute its own. `v` cannot become negative.
//!
//! From |g| of about 1.8e19 on, g² overflows and `v` is infinite, as in PyTorch; unlike there, the
//! next step then makes it NaN. Which NaN a moment holds is not part of the contract; a NaN master
//! weight is always the same one in precision bf16.
//!
//! # Moments
//!
//! Between steps `m` and `v` are stored as [`Moments`] says: in f32, as they come out of the formula;
//! in bf16, 18 bytes a parameter; or as 8-bit codes with a scale a block, 14.125 bytes. The formula
//! is the same f32 arithmetic on what was stored, and `p` is made from `m` and `v` before they are
//! rounded. The head of `moments.rs` says how: it is part of the contract.
//!
//! # Threads
//!
//! Every segment is cut into chunks of [`CHUNK`] numbers, whatever the number of threads. A number's
//! result depends on no other number, or with 8-bit moments on those of its block, which no cut
//! divides; random bits depend on step, parameter and position. So neither threads nor chunks nor
//! pieces show in the bits.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod bench;
mod cpu;
mod cuda;
mod moments;
#[cfg(test)]
mod reference;
mod split;
#[cfg(test)]
mod tests;

pub use bench::{BenchReport, PathRate, bench};
pub use split::{MASTER_MAX, join, split};

use lowtide_device::{Dst, Plain, Queue, Src, memory};
use lowtide_workload::{Dtype, Moments, PARAM_ALIGN};
use rayon::prelude::*;

use crate::number::{expect, read};
use cpu::{Chunk, Gradients, Master, Stored};
use moments::{BLOCK, Random};

/// Numbers that one thread updates at a time: 1.7 MB of traffic, so that starting a chunk costs
/// nothing beside it, and small enough that one layer feeds all threads of a host.
pub const CHUNK: usize = 1 << 16;

/// What one step is done with; a run's settings at that step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to the root of the corrected second moment.
    pub eps: f32,
    /// Decoupled weight decay, for segments that ask for it.
    pub weight_decay: f32,
    /// Which step this is, from 1.
    pub step: u64,
    /// What every gradient is multiplied with first: the factor of clipping, 1 without.
    pub grad_scale: f32,
}

/// The factors of the formula, the same for every number of a step, on every device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// `grad_scale`.
    pub grad_scale: f32,
    /// 1 - β₁.
    pub one_minus_beta1: f32,
    /// 1 - β₂.
    pub one_minus_beta2: f32,
    /// √(1 - β₂ᵗ).
    pub root_correction2: f32,
    /// ε.
    pub eps: f32,
    /// 1 - lr · weight decay.
    pub keep: f32,
    /// -lr / (1 - β₁ᵗ).
    pub minus_rate: f32,
    /// Which step this is: with parameter and position, what rounding to bf16 moments depends on.
    pub step: u64,
}

impl Hyper {
    /// AdamW's usual settings, for those who measure it: how long a step takes hangs on none of them.
    #[must_use]
    pub fn usual(step: u64) -> Self {
        Self {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step,
            grad_scale: 1.0,
        }
    }

    /// The factors of this step, computed in f64 and rounded to f32 once.
    ///
    /// # Panics
    /// When `step` is 0.
    #[must_use]
    pub fn constants(&self) -> Constants {
        assert!(self.step > 0, "steps count from 1");
        let (lr, beta1, beta2) = (
            f64::from(self.lr),
            f64::from(self.beta1),
            f64::from(self.beta2),
        );
        Constants {
            grad_scale: self.grad_scale,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            root_correction2: (1.0 - power(beta2, self.step)).sqrt() as f32,
            eps: self.eps,
            keep: (1.0 - lr * f64::from(self.weight_decay)) as f32,
            minus_rate: (-lr / (1.0 - power(beta1, self.step))) as f32,
            step: self.step,
        }
    }
}

/// `base` to the `n`: by squaring, so that it is the same on every platform, which neither `powi`
/// nor a C library's `pow` promises.
fn power(mut base: f64, mut n: u64) -> f64 {
    let mut product = 1.0;
    while n > 0 {
        if n & 1 == 1 {
            product *= base;
        }
        base *= base;
        n >>= 1;
    }
    product
}

/// One parameter inside a piece, in numbers. What lies between segments is padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts; a multiple of 128.
    pub offset: usize,
    /// Its length.
    pub elements: usize,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Which parameter of the model it is.
    pub param: u32,
    /// Where in that parameter it starts, in numbers; a multiple of 128. 0 for a whole parameter.
    pub start: u64,
}

/// The moments of a piece, wherever they lie.
#[derive(Debug)]
pub struct MomentViews<'a> {
    /// How they are stored.
    pub kind: Moments,
    /// First moments: f32, bf16 bits, or codes.
    pub m: Dst<'a>,
    /// Second moments, likewise.
    pub v: Dst<'a>,
    /// For [`Moments::Int8`], the scales of both: f32, one for each 128 numbers.
    pub scales: Option<[Dst<'a>; 2]>,
}

impl<'a> MomentViews<'a> {
    /// The moments of `elements` numbers, laid out in `all` as [`Moments::layout`] says.
    ///
    /// # Panics
    /// When `all` is shorter than that.
    #[must_use]
    pub fn of(kind: Moments, all: Dst<'a>, elements: usize) -> Self {
        let layout = kind.layout(elements as u64);
        let ranges = [
            layout.first,
            layout.second,
            layout.first_scale,
            layout.second_scale,
        ];
        let mut rest = Some((0, all));
        let [m, v, m_scale, v_scale] = ranges.map(|r| {
            // In the order in which they lie.
            let (at, left) = rest.take().expect("put back below");
            let (front, behind) = left.split_at((r.end - at) as usize);
            rest = Some((r.end, behind));
            front.part((r.start - at) as usize, (r.end - r.start) as usize)
        });
        let scales = (kind == Moments::Int8).then_some([m_scale, v_scale]);
        Self { kind, m, v, scales }
    }
}

/// Which compilation of the loop runs. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Intrinsics for AVX-512 (F, BW, VL) with software prefetch.
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

/// One AdamW step over the segments of a piece; finished, or in the stream of a CUDA queue, when the
/// call returns.
///
/// In precision `dtype` bf16, `w` holds bf16 weights and `rem` their `i16` remainders; in f32, `w`
/// holds f32 weights and `rem` is `None`. `grad` holds gradients of type `grad_dtype`. Position i of
/// each view belongs to position i of the others (of scales, to position i / 128); a view may be
/// longer than the last segment's end. `w`, `rem` and `moments` are updated in place, `grad` is read,
/// and padding is neither read nor written.
///
/// # Panics
/// When segments are unordered, overlap, start off a multiple of 128 or end outside a view; when
/// `rem` does not fit `dtype` or scales do not fit the moments; when a view is not aligned to its type; when `hyper.step` is 0.
pub fn step(
    q: &Queue,
    w: Dst<'_>,
    rem: Option<Dst<'_>>,
    moments: MomentViews<'_>,
    grad: Src<'_>,
    grad_dtype: Dtype,
    dtype: Dtype,
    segments: &[Segment],
    hyper: &Hyper,
) {
    let piece = Piece {
        w,
        rem,
        moments,
        grad,
        grad_dtype,
        dtype,
    };
    if let Some(q) = q.cuda() {
        piece.check(segments);
        return cuda::step(q, &piece, segments, &hyper.constants(), None, None);
    }
    step_on(Path::best(), q, &piece, segments, hyper);
}

/// [`step`] with the factor of clipping from `clip` instead of `hyper.grad_scale`.
///
/// `clip` is three f64: the factor, which is rounded to f32, the norm, and whether updates apply:
/// where that is 0, nothing is written. `parts` is f64, the partial sums of squares of this piece's
/// gradient; where it is given and one of them is not finite, nothing is written either. On a CUDA
/// queue both are read when the step's turn in the stream comes; the caller does not wait.
///
/// # Panics
/// As [`step`], and when `clip` is not three numbers.
pub fn step_clipped(
    q: &Queue,
    w: Dst<'_>,
    rem: Option<Dst<'_>>,
    moments: MomentViews<'_>,
    grad: Src<'_>,
    grad_dtype: Dtype,
    dtype: Dtype,
    segments: &[Segment],
    hyper: &Hyper,
    clip: Src<'_>,
    parts: Option<Src<'_>>,
) {
    let piece = Piece {
        w,
        rem,
        moments,
        grad,
        grad_dtype,
        dtype,
    };
    piece.check(segments);
    expect("clip", clip, 3, size_of::<f64>());
    let c = hyper.constants();
    if let Some(q) = q.cuda() {
        return cuda::step(q, &piece, segments, &c, Some(clip), parts);
    }
    let [factor, _, go] = {
        let mut words = [0.0_f64; 3];
        memory::load(clip, &mut words);
        words
    };
    let finite = parts.is_none_or(|parts| {
        let mut numbers = vec![0.0_f64; parts.bytes() / size_of::<f64>()];
        memory::load(parts, &mut numbers);
        numbers.iter().all(|x| x.is_finite())
    });
    if go == 0.0 || !finite {
        return;
    }
    let c = Constants {
        grad_scale: factor as f32,
        ..c
    };
    run(Path::best(), q, &piece, segments, &c);
}

/// The arrays of a piece and their types.
struct Piece<'a> {
    w: Dst<'a>,
    rem: Option<Dst<'a>>,
    moments: MomentViews<'a>,
    grad: Src<'a>,
    grad_dtype: Dtype,
    dtype: Dtype,
}

/// [`step`] by one path of the host.
fn step_on(path: Path, q: &Queue, piece: &Piece<'_>, segments: &[Segment], hyper: &Hyper) {
    piece.check(segments);
    run(path, q, piece, segments, &hyper.constants());
}

/// A checked step by one path, which this processor must have.
fn run(path: Path, q: &Queue, piece: &Piece<'_>, segments: &[Segment], c: &Constants) {
    assert!(path.is_available(), "this processor lacks {path:?}");
    let cuts: Vec<Segment> = segments.iter().flat_map(cut).collect();
    q.run(|| {
        cuts.par_iter().for_each(|cut| {
            let keep = if cut.decay { c.keep } else { 1.0 };
            // SAFETY: cuts are disjoint (`check` asserts it of the segments), so no other thread has
            // these numbers.
            let chunk = unsafe { piece.chunk(cut, keep, c.step) };
            update(path, chunk, c);
        });
    });
}

/// The chunks of one segment.
fn cut(s: &Segment) -> impl Iterator<Item = Segment> {
    let Segment {
        offset,
        elements,
        decay,
        param,
        start,
    } = *s;
    (0..elements).step_by(CHUNK).map(move |at| Segment {
        offset: offset + at,
        elements: CHUNK.min(elements - at),
        decay,
        param,
        start: start + at as u64,
    })
}

fn update(path: Path, chunk: Chunk<'_>, c: &Constants) {
    match path {
        // SAFETY: `run` asserted that the processor has the path.
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => unsafe { avx512::update(chunk, c) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { cpu::avx2(chunk, c) },
        _ => cpu::portable(chunk, c),
    }
}

impl Piece<'_> {
    fn check(&self, segments: &[Segment]) {
        assert_eq!(
            self.rem.is_some(),
            self.dtype == Dtype::Bf16,
            "a remainder belongs to bf16 weights, and to them only"
        );
        let size = |dtype: Dtype| dtype.size() as usize;
        let MomentViews { kind, m, v, scales } = &self.moments;
        assert_eq!(
            scales.is_some(),
            *kind == Moments::Int8,
            "scales belong to 8-bit moments, and to them only"
        );
        let mut numbers = (self.w.bytes() / size(self.dtype))
            .min(m.bytes() / kind.size() as usize)
            .min(v.bytes() / kind.size() as usize)
            .min(self.grad.bytes() / size(self.grad_dtype));
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
    unsafe fn chunk(&self, cut: &Segment, keep: f32, step: u64) -> Chunk<'_> {
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
            let MomentViews { kind, m, v, scales } = &self.moments;
            let moments = match (kind, scales) {
                (Moments::F32, _) => Stored::F32(write(m, cut), write(v, cut)),
                (Moments::Bf16, _) => Stored::Bf16(write(m, cut), write(v, cut)),
                (Moments::Int8, Some([m_scale, v_scale])) => {
                    let blocks = Segment {
                        offset: cut.offset / BLOCK,
                        elements: cut.elements.div_ceil(BLOCK),
                        ..*cut
                    };
                    Stored::Int8(
                        (write(m, cut), write(m_scale, &blocks)),
                        (write(v, cut), write(v_scale, &blocks)),
                    )
                }
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

/// The numbers of a cut, to be written.
///
/// # Safety
/// As [`Dst::slice`].
#[allow(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
unsafe fn write<'a, T: Plain>(view: &'a Dst<'_>, cut: &Segment) -> &'a mut [T] {
    // SAFETY: as the caller promises.
    unsafe { view.slice(cut.offset, cut.elements) }
}
