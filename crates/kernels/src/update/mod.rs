//! One step of an optimizer over the segments of a piece, in place, with split master weights: what all
//! optimizers share. What a step does with a number stands in the optimizer's own folder.
//!
//! Memory-bound: each byte of weight, state and gradient is moved once. The bound is
//! [`Optimizer::moved_each`] bytes a parameter over the best rate at which the same threads copy memory;
//! [`bench()`] measures both in one run.
//!
//! # Bits
//!
//! A piece's update may run on the host or on the device and must give the same bits. So the order and the
//! rounding of every operation of a formula are part of its contract: all of it is f32, rounded to nearest
//! even after each operation; `fma` rounds once; root and division are correctly rounded; subnormals are
//! kept (in CUDA, intrinsics that round once, compiled with `-ftz=false`). Factors are computed once a step,
//! in f64, and rounded to f32; a device's kernel takes them from there. Gradients are widened to f32 exactly;
//! a master weight is joined before and [`split()`] after. Which NaN a moment holds is not part of the
//! contract; a NaN master weight is always the same one in precision bf16.
//!
//! # Moments
//!
//! Between steps, moments are stored as [`Moments`](lowtide_workload::Moments) says: in f32, as they come out of the
//! formula; in bf16; or as 8-bit codes with a scale a block. The formula is the same f32 arithmetic on what was
//! stored, and the master weight is made from the moments before they are rounded. The head of `moments.rs` says how:
//! it is part of the contract.
//!
//! # Threads
//!
//! Every segment is cut into chunks of [`CHUNK`] numbers, whatever the number of threads. A number's
//! result depends on no other number, or with 8-bit moments on those of its block, which no cut
//! divides; random bits depend on step, parameter and position. So neither threads nor chunks nor
//! pieces show in the bits.

mod bench;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub(crate) mod elementwise;
pub(crate) mod moments;
pub(crate) mod split;
#[cfg(test)]
mod tests;

use lowtide_device::{Dst, Queue, Src, memory};
use lowtide_workload::{Dtype, Optimizer, OptimizerName};

pub use bench::{BenchReport, PathRate, bench};
pub use elementwise::Path;
pub use split::{MASTER_MAX, join, split};

use crate::{adafactor, adamw, lion};
use elementwise::{Piece, Rule};

/// Numbers that one thread updates at a time: 1.7 MB of AdamW's traffic, so that starting a chunk costs
/// nothing beside it, and small enough that one layer feeds all threads of a host.
pub const CHUNK: usize = 1 << 16;

/// What one step is done with; a run's settings at that step. An optimizer reads those that its table has
/// ([`lowtide_workload::About`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to a denominator.
    pub eps: f32,
    /// Decoupled weight decay, for segments that ask for it.
    pub weight_decay: f32,
    /// Least root mean square of an update that is made smaller.
    pub clip_threshold: f32,
    /// Power of the step's number that a new square of a gradient weighs.
    pub decay_rate: f32,
    /// Which step this is, from 1.
    pub step: u64,
    /// What every gradient is multiplied with first: the factor of clipping, 1 without.
    pub grad_scale: f32,
}

impl Hyper {
    /// A step of a run without clipping, every other setting 0.
    #[must_use]
    pub const fn new(lr: f32, step: u64) -> Self {
        Self {
            lr,
            beta1: 0.0,
            beta2: 0.0,
            eps: 0.0,
            weight_decay: 0.0,
            clip_threshold: 0.0,
            decay_rate: 0.0,
            step,
            grad_scale: 1.0,
        }
    }

    /// With a setting by its key below `optimizer`.
    ///
    /// # Panics
    /// When no optimizer has such a key.
    #[must_use]
    pub fn with(mut self, key: &str, value: f32) -> Self {
        let setting = match key {
            "beta1" => &mut self.beta1,
            "beta2" => &mut self.beta2,
            "eps" => &mut self.eps,
            "weight_decay" => &mut self.weight_decay,
            "clip_threshold" => &mut self.clip_threshold,
            "decay_rate" => &mut self.decay_rate,
            other => panic!("no optimizer reads {other}"),
        };
        *setting = value;
        self
    }

    /// An optimizer's usual settings, for those who measure it: how long a step takes hangs on none of them.
    #[must_use]
    pub fn usual(name: OptimizerName, step: u64) -> Self {
        let settings = name.about().settings.iter();
        settings.fold(Self::new(1e-4, step), |h, s| {
            h.with(s.key, s.default.parse().expect("a number"))
        })
    }
}

/// `base` to the `n`: by squaring, so that it is the same on every platform, which neither `powi`
/// nor a C library's `pow` promises.
pub(crate) fn power(mut base: f64, mut n: u64) -> f64 {
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

/// One parameter inside a piece, in numbers; to a shaped optimizer one tensor of it, whole. What lies between
/// segments is padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts; a multiple of 128 to rules of single numbers.
    pub offset: usize,
    /// How many numbers it has.
    pub elements: usize,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Whether this step updates it; else its weight and state stay as they are, in their places.
    pub updated: bool,
    /// Which parameter of the model it is.
    pub param: u32,
    /// Where in that parameter it starts, in numbers; a multiple of 128 to rules of single numbers. 0 for a
    /// whole parameter.
    pub start: u64,
    /// Columns of the tensor, 1 of a vector. Only shaped optimizers look at it.
    pub cols: usize,
}

/// By which optimizer, and how numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    /// The optimizer, with the storage of its moments.
    pub optimizer: Optimizer,
    /// Storage of weights; in bf16 the state begins with remainders.
    pub precision: Dtype,
    /// Storage of gradients.
    pub gradient: Dtype,
}

/// What a step works on.
#[derive(Debug)]
pub struct Operands<'a> {
    /// Weights of the piece, updated in place.
    pub weight: Dst<'a>,
    /// Its state as [`Optimizer::layout`] lays it out, updated in place.
    pub state: Dst<'a>,
    /// The piece's gradient in the storage of [`Types::gradient`], already finished, not yet clipped.
    pub gradient: Src<'a>,
    /// Three f64: the factor of clipping, which is rounded to f32 and takes the place of
    /// [`Hyper::grad_scale`], the norm, and whether updates apply: where that is 0, nothing is written.
    pub clip: Src<'a>,
    /// f64, the partial sums of squares of this piece's gradient: where one of them is not finite, nothing
    /// is written.
    pub parts: Option<Src<'a>>,
    /// What [`Optimizer::scratch_bytes`] asks for, garbage before and after; `None` where that is 0.
    pub scratch: Option<Dst<'a>>,
}

/// One step over the segments of a piece of `elements` numbers, padding included; finished, or in the stream
/// of a CUDA queue, when the call returns. On a CUDA queue `clip` and `parts` are read when the step's turn in
/// the stream comes; the caller does not wait. Padding is neither read nor written.
///
/// # Panics
/// When segments are unordered, overlap, start off a multiple of 128 or end outside the piece; when an operand
/// is shorter than the piece or not aligned to its type; when `clip` is not three numbers; when `hyper.step`
/// is 0.
pub fn step(
    q: &Queue,
    types: Types,
    elements: u64,
    operands: Operands<'_>,
    segments: &[Segment],
    hyper: &Hyper,
) {
    let Operands {
        weight,
        state,
        gradient,
        clip,
        parts,
        scratch,
    } = operands;
    let views = Views {
        weight,
        state,
        gradient,
        scratch,
    };
    dispatch(
        q,
        types,
        elements,
        views,
        segments,
        hyper,
        How::Clipped(clip, parts),
    );
}

/// The arrays of a step.
pub(crate) struct Views<'a> {
    pub weight: Dst<'a>,
    pub state: Dst<'a>,
    pub gradient: Src<'a>,
    pub scratch: Option<Dst<'a>>,
}

/// How a step is made.
#[derive(Clone, Copy)]
pub(crate) enum How<'a> {
    /// As [`step`] says, with these words and parts.
    Clipped(Src<'a>, Option<Src<'a>>),
    /// By one path of the host, with [`Hyper::grad_scale`].
    Path(Path),
}

/// The factor of clipping on the host; `None` where the step does not apply.
pub(crate) fn applied(clip: Src<'_>, parts: Option<Src<'_>>) -> Option<f32> {
    let mut words = [0.0_f64; 3];
    memory::load(clip, &mut words);
    let [factor, _, go] = words;
    let finite = parts.is_none_or(|parts| {
        let mut numbers = vec![0.0_f64; parts.bytes() / size_of::<f64>()];
        memory::load(parts, &mut numbers);
        numbers.iter().all(|x| x.is_finite())
    });
    (go != 0.0 && finite).then_some(factor as f32)
}

/// A step by the optimizer's rule.
pub(crate) fn dispatch(
    q: &Queue,
    types: Types,
    elements: u64,
    views: Views<'_>,
    segments: &[Segment],
    hyper: &Hyper,
    how: How<'_>,
) {
    match types.optimizer.name {
        OptimizerName::AdamW => {
            let piece = Piece::of(types, elements, views);
            each(q, &piece, segments, adamw::Constants::of(hyper), how);
        }
        OptimizerName::Lion => {
            let piece = Piece::of(types, elements, views);
            each(q, &piece, segments, lion::Constants::of(hyper), how);
        }
        OptimizerName::Adafactor => {
            let factors = adafactor::Constants::of(hyper);
            adafactor::step(q, (types, elements), views, segments, factors, how);
        }
    }
}

/// A step of a rule that computes number by number.
fn each<R: Rule<N>, const N: usize>(
    q: &Queue,
    piece: &Piece<'_, N>,
    segments: &[Segment],
    rule: R,
    how: How<'_>,
) {
    match how {
        How::Clipped(clip, parts) => {
            elementwise::step_clipped(q, piece, segments, rule, clip, parts)
        }
        How::Path(path) => elementwise::step_on(path, q, piece, segments, rule),
    }
}
