//! Storage numbers and the loops over them that have to vectorise.
//!
//! A kernel is generic over [`Number`], how a value lies in memory (bf16 bits or `f32`); it widens
//! to `f32`, computes, and rounds once when it stores. The bodies are plain loops under
//! `multiversion`, so one binary carries AVX-512, AVX2 and baseline code. Sums run over a fixed
//! number of lanes and nothing is contracted that is not written as `mul_add`, so these loops give
//! the same bits on every one of those targets.

use lowtide_device::{Dst, Plain, Src};
use multiversion::multiversion;

/// How a number lies in memory: `u16` is bf16, as its bits; `f32` is itself.
pub(crate) trait Number: Plain {
    /// The same value as f32; exact for both storages.
    fn widen(self) -> f32;
    /// Rounded to nearest, ties to even; NaN stays NaN.
    fn narrow(x: f32) -> Self;
}

impl Number for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let quiet = bits | 0x0040_0000;
        let nan = bits & 0x7fff_ffff > 0x7f80_0000;
        ((if nan { quiet } else { rounded }) >> 16) as u16
    }
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

/// Calls a function generic over [`Number`] with the type that a `Dtype` names.
macro_rules! with_dtype {
    ($dtype:expr, $($function:ident)::+ ( $($argument:expr),* $(,)? )) => {
        match $dtype {
            lowtide_workload::Dtype::Bf16 => $($function)::+::<u16>($($argument),*),
            lowtide_workload::Dtype::F32 => $($function)::+::<f32>($($argument),*),
        }
    };
}
pub(crate) use with_dtype;

/// Bytes of one number, as `usize`.
pub(crate) fn size(dtype: lowtide_workload::Dtype) -> usize {
    dtype.size() as usize
}

/// A view of either kind.
pub(crate) trait Range {
    /// Its length in bytes.
    fn range_bytes(&self) -> usize;
}

impl Range for Src<'_> {
    fn range_bytes(&self) -> usize {
        self.bytes()
    }
}

impl Range for &Dst<'_> {
    fn range_bytes(&self) -> usize {
        self.bytes()
    }
}

/// Panics unless `view` holds exactly `elements` numbers of `size` bytes: a wrong shape is a bug of
/// the caller.
#[track_caller]
pub(crate) fn expect(what: &str, view: impl Range, elements: usize, size: usize) {
    let have = view.range_bytes();
    assert!(
        have == elements * size,
        "{what}: {have} bytes for {elements} numbers of {size} bytes"
    );
}

/// Panics unless `ws` has at least `need` bytes.
#[track_caller]
pub(crate) fn expect_workspace(ws: &Dst<'_>, need: usize) {
    assert!(
        ws.bytes() >= need,
        "workspace of {} bytes, need {need}",
        ws.bytes()
    );
}

/// Numbers `start .. start + len` of a view.
pub(crate) fn read<'a, E: Plain>(view: Src<'a>, start: usize, len: usize) -> &'a [E] {
    view.part(start * size_of::<E>(), len * size_of::<E>())
        .read()
}

/// Numbers `start .. start + len` of a view, to be written by one of several threads.
///
/// # Safety
/// As [`Dst::slice`]: while the slice lives no other thread uses these numbers, nor this one through
/// another slice.
#[allow(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
pub(crate) unsafe fn write<'a, E: Plain>(
    view: &'a Dst<'_>,
    start: usize,
    len: usize,
) -> &'a mut [E] {
    // SAFETY: the caller's promise.
    unsafe { view.slice(start, len) }
}

/// Lanes of a sum: enough independent additions to hide their latency at 256 and 512 bits.
pub(crate) const LANES: usize = 32;

/// The sum of lanes, halves first: the same tree always.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `sum!(n, |x, y| term)`: the sum of a term over the first `n` numbers of the slices `x` and `y`
/// (as many as there are), which the term sees one by one and widened. Over [`LANES`] lanes.
///
/// A macro, because a closure that is called from two places may stay a call, and a call inside
/// the loop keeps it from vectorising; in chunks of known length, because a check of bounds does
/// so too. For the same reason, loop bodies under `multiversion` share code by `#[inline(always)]`
/// functions only.
macro_rules! sum {
    ($n:expr, |$($x:ident),+| $term:expr) => {{
        #[allow(unused_imports)]
        use $crate::number::Number as _;
        const LANES: usize = $crate::number::LANES;
        let n: usize = $n;
        let mut lanes = [0.0_f32; LANES];
        $(let $x = $x[..n].as_chunks::<LANES>();)+
        for chunk in 0..n / LANES {
            $(let $x = &$x.0[chunk];)+
            for (lane, total) in lanes.iter_mut().enumerate() {
                $(let $x = $x[lane].widen();)+
                *total += $term;
            }
        }
        for (lane, total) in lanes.iter_mut().enumerate().take(n % LANES) {
            $(let $x = $x.1[lane].widen();)+
            *total += $term;
        }
        $crate::number::fold(lanes)
    }};
}
pub(crate) use sum;

/// `e^x`, within 2 units in the last place; 0 below -87.3, NaN for NaN, and at most `e^88`.
///
/// Range reduction by powers of two and a polynomial of degree six, without a branch, because the
/// library's function does not vectorise. `mul_add` rounds once on every target, so bits do not
/// depend on it; a loop's targets must have the instruction, or this is slow.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to a whole number
    let clamped = if x > 88.0 { 88.0 } else { x };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, clamped); // ln 2 in two parts, the first with few bits
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    if x < -87.3 { 0.0 } else { p * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)`, within 3 units in the last place: a polynomial near 0, elsewhere by one exponential. Without a branch, as
/// [`exp`].
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let (size, square) = (x.abs(), x * x);
    let p = -5.704_988_7e-3_f32;
    let p = p.mul_add(square, 2.063_909e-2);
    let p = p.mul_add(square, -5.373_971_6e-2);
    let p = p.mul_add(square, 1.333_144_2e-1);
    let p = p.mul_add(square, -3.333_328e-1);
    let near = (p * square).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    if size < 0.625 { near } else { far }
}

/// `to = from`, exactly.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn widen<E: Number>(to: &mut [f32], from: &[E]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.widen();
    }
}

/// `to = factor · from`, rounded once.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn narrow_scaled<E: Number>(to: &mut [E], from: &[f32], factor: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = E::narrow(factor * from);
    }
}

/// `to = from`, rounded once.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn narrow<E: Number>(to: &mut [E], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = E::narrow(*from);
    }
}

/// `to += from`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn add<E: Number>(to: &mut [f32], from: &[E]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from.widen();
    }
}

/// The largest of `x` (NaN when there is one), minus infinity for none.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn max<E: Number>(x: &[E]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (most, x) in lanes.iter_mut().zip(chunk) {
            *most = greater(*most, x.widen());
        }
    }
    for (most, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *most = greater(*most, x.widen());
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, greater)
}

/// The greater of two, keeping a NaN that has been seen.
#[inline(always)]
fn greater(most: f32, x: f32) -> f32 {
    if most >= x || most.is_nan() { most } else { x }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::{Number, exp, max, narrow, tanh, widen};

    #[test]
    fn bf16_is_the_libraries() {
        // Every high half with low halves around a tie, so every rounding and every NaN.
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x: Vec<f32> = (0..=u16::MAX)
                .map(|high| f32::from_bits(u32::from(high) << 16 | low))
                .collect();
            for n in [1, 7, 8, 9, 129, x.len()] {
                let mut y = vec![1_u16; n];
                narrow(&mut y, &x[..n]);
                let want: Vec<u16> = x[..n]
                    .iter()
                    .map(|x| bf16::from_f32(*x).to_bits())
                    .collect();
                assert_eq!(y, want, "low half {low:#x}");
                let mut back = vec![f32::NAN; n];
                widen(&mut back, &y);
                let bits = |x: f32| x.to_bits();
                let want: Vec<u32> = y.iter().map(|y| u32::from(*y) << 16).collect();
                assert_eq!(back.into_iter().map(bits).collect::<Vec<_>>(), want);
            }
        }
    }

    #[test]
    fn exp_is_within_two_units() {
        for i in -87_200..=88_000 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::INFINITY) > 1e38);
    }

    #[test]
    fn tanh_is_within_three_units() {
        for i in -20_000..=20_000 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - want).abs();
            assert!(
                error <= 3.6e-7 * want.abs(),
                "tanh({x}) is off by {error:e}"
            );
        }
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(-1e30), -1.0);
        assert_eq!(tanh(1e-30), 1e-30);
    }

    #[test]
    fn max_and_sum_see_every_number() {
        for n in [1, 7, 8, 9, 31, 32, 33, 129, 1000] {
            for at in [0, n / 2, n - 1] {
                let mut x = vec![-2.0_f32; n];
                x[at] = -1.0;
                assert_eq!(max(&x), -1.0);
                assert_eq!(sum!(n, |x| x), 1.0 - 2.0 * n as f32);
                x[at] = f32::NAN;
                assert!(max(&x).is_nan());
            }
        }
        assert_eq!(max::<f32>(&[]), f32::NEG_INFINITY);
        assert_eq!(f32::narrow(0.1), 0.1);
    }
}
