//! How moments become 16 or 8 bits, and numbers again. Each function is the contract for one number,
//! to the bit; `adamw/avx512.rs` and `update.cuh` repeat it operation for operation.
//!
//! # bf16
//!
//! Rounded stochastically: sixteen random bits are added to the f32 bits and the lower half is cut
//! off, so a moment is rounded up with the probability that its lower half says, and right on
//! average. To nearest, a second moment would freeze: a step changes it by at most a part in a
//! thousand, half a bf16 unit is two to four parts. The bits are a hash of (step, parameter,
//! position inside the parameter), see [`Random`]: nothing is kept and no cut shows.
//!
//! # int8
//!
//! Blocks of 128 numbers share a scale, their largest magnitude in f32. A number over its scale is
//! rounded to the nearest value of a code with B bits (7 and a sign for the first moment, 8 for the
//! second). Code 0 is zero. With T = B - 1, code 2^i + k (0 ≤ k < 2^i, i ≤ T) stands for
//!
//! ```text
//! 8^(i-T) · (1/8 + 7/8 · (k+1) / 2^i)
//! ```
//!
//! so i counts octades (ranges of a factor of 8) below 1, and each holds twice the values of the
//! one below it. It is the dynamic code of Dettmers et al. 2022 with two changes: octades in place
//! of decades, which makes every value an exact f32, and the end of each interval in place of its
//! middle, which makes 1 a value and both signs alike.
//!
//! As a function of the value, the code lies on a concave line of B straight parts, each joint of
//! which is itself a code. So the nearest code is the rounded **least** of B linear functions, and
//! the value of a code is exact in f32: neither needs a table.

use super::split::{INFINITY_BITS, MAGNITUDE, NAN_BITS};

/// Numbers that share a scale.
pub(crate) const BLOCK: usize = lowtide_workload::Moments::BLOCK as usize;

/// Bits of a first moment's code beside its sign.
pub(crate) const FIRST_BITS: u32 = 7;
/// Bits of a second moment's code.
pub(crate) const SECOND_BITS: u32 = 8;

/// Where the random bits of one parameter at one step come from, from some position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Random {
    /// Added to the position before it is hashed.
    pub a: u32,
    /// Mixed in between the hash's two products.
    pub b: u32,
}

impl Random {
    /// For a step and a parameter (its index in the workload), from position 0 on.
    pub(crate) fn new(step: u64, param: u32) -> Self {
        Self::of(scramble(scramble(step).wrapping_add(u64::from(param))))
    }

    /// From the halves of a hash.
    pub(crate) fn of(z: u64) -> Self {
        Self {
            a: z as u32,
            b: (z >> 32) as u32,
        }
    }

    /// The same `n` positions further on. Positions count modulo 2^32.
    pub(crate) fn after(self, n: u64) -> Self {
        Self {
            a: self.a.wrapping_add(n as u32),
            ..self
        }
    }

    /// 32 random bits for position `i`: the lower half rounds the first moment, the upper half the
    /// second.
    #[inline(always)]
    pub(crate) fn bits(self, i: u32) -> u32 {
        let x = i.wrapping_add(self.a);
        let x = (x ^ (x >> 16)).wrapping_mul(FIRST_FACTOR);
        let x = (x ^ (x >> 15) ^ self.b).wrapping_mul(SECOND_FACTOR);
        x ^ (x >> 15)
    }
}

/// Two odd factors whose product with xors and shifts changes every bit of the result with even
/// odds when one bit of the input changes.
pub(crate) const FIRST_FACTOR: u32 = 0x21f0_aaad;
pub(crate) const SECOND_FACTOR: u32 = 0xd35a_2d97;

/// A step of SplitMix64.
pub(crate) fn scramble(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `x` as bf16 bits, rounded up in magnitude when its lower half and `r` (below 2^16) carry.
///
/// Every NaN becomes 0x7fc0. A finite number above the largest bf16 may become infinite.
#[inline(always)]
pub(crate) fn to_bf16(x: f32, r: u32) -> u16 {
    let bits = x.to_bits();
    if bits & MAGNITUDE > INFINITY_BITS {
        (NAN_BITS >> 16) as u16
    } else {
        (bits.wrapping_add(r) >> 16) as u16
    }
}

/// Scale of a block and what its numbers are multiplied with, from the largest of their magnitudes,
/// taken as bits.
///
/// A block without a normal number has scale 0 and becomes zero. One with a number that is not
/// finite gets a NaN for its scale, and so becomes NaN as a whole: nothing hides.
#[inline(always)]
pub(crate) fn scale(top: u32) -> (f32, f32) {
    if top >= INFINITY_BITS {
        (f32::from_bits(NAN_BITS), f32::from_bits(NAN_BITS))
    } else if top < f32::MIN_POSITIVE.to_bits() {
        (0.0, 0.0)
    } else {
        let x = f32::from_bits(top);
        (x, 1.0 / x)
    }
}

/// Slope and offset of the i-th line from value to code: f64 arithmetic, rounded once. The lowest
/// goes from zero to the smallest value.
const fn line(bits: u32, i: u32) -> (f32, f32) {
    let octades = bits - 1;
    if i == 0 {
        ((1u64 << (3 * octades)) as f32, 0.0)
    } else {
        (
            ((1u64 << (3 * octades + 3 - 2 * i)) as f64 / 7.0) as f32,
            ((6.0 * (1u64 << i) as f64 - 7.0) / 7.0) as f32,
        )
    }
}

const fn lines(bits: u32) -> [(f32, f32); 8] {
    let mut all = [(0.0, 0.0); 8];
    let mut i = 0;
    while i < bits {
        all[i as usize] = line(bits, i);
        i += 1;
    }
    all
}

/// The code whose value is nearest to `y`, from 0 to 1 (and a rounding above). Anything else, NaN
/// too, gives some code.
#[inline(always)]
fn nearest<const BITS: u32>(y: f32) -> u32 {
    let lines = const { lines(BITS) };
    let mut c = y * lines[0].0;
    for &(slope, offset) in &lines[1..BITS as usize] {
        let other = y.mul_add(slope, offset);
        c = if other < c { other } else { c };
    }
    // The sum's unit is 1: it rounds to nearest even, and the lowest bits are the integer.
    (c + 8_388_608.0).to_bits() & ((1 << BITS) - 1)
}

/// The value of a code.
#[inline(always)]
fn value<const BITS: u32>(code: u32) -> f32 {
    let unit = const { 1.0 / (1u64 << (3 * BITS)) as f32 };
    let f = code as i32 as f32;
    // 2^i, or 0 for code 0. Everything below is exact.
    let p = f32::from_bits(f.to_bits() & 0xff80_0000);
    unit * (p * p) * (7.0 * f + 7.0 - 6.0 * p)
}

/// The code of a first moment in a block whose numbers are multiplied with `inverse`.
#[inline(always)]
pub(crate) fn first_code(x: f32, inverse: f32) -> u8 {
    let y = x * inverse;
    let sign = (y.to_bits() >> 24) & 0x80;
    (nearest::<FIRST_BITS>(y.abs()) | sign) as u8
}

/// A first moment of its code and its block's scale.
#[inline(always)]
pub(crate) fn first(code: u8, scale: f32) -> f32 {
    let sign = (u32::from(code) & 0x80) << 24;
    let magnitude = value::<FIRST_BITS>(u32::from(code) & 0x7f);
    f32::from_bits(magnitude.to_bits() | sign) * scale
}

/// The code of a second moment, as [`first_code`]. What is above zero never becomes zero: the next
/// update would divide by little more than epsilon.
#[inline(always)]
pub(crate) fn second_code(x: f32, inverse: f32) -> u8 {
    let y = x * inverse;
    nearest::<SECOND_BITS>(y).max(u32::from(y > 0.0)) as u8
}

/// A second moment of its code and its block's scale.
#[inline(always)]
pub(crate) fn second(code: u8, scale: f32) -> f32 {
    value::<SECOND_BITS>(u32::from(code)) * scale
}

/// What one moment of a block is stored as.
#[inline(always)]
pub(crate) fn encode(
    x: &[f32; BLOCK],
    codes: &mut [u8; BLOCK],
    code: impl Fn(f32, f32) -> u8,
    top_code: u8,
) -> f32 {
    let top = x.iter().fold(0, |top, x| top.max(x.to_bits() & MAGNITUDE));
    let (scale, inverse) = scale(top);
    if scale.is_nan() {
        *codes = [top_code; BLOCK];
    } else {
        for (c, &x) in codes.iter_mut().zip(x) {
            *c = code(x, inverse);
        }
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code's definition in f64.
    fn defined(bits: u32, code: u32) -> f64 {
        if code == 0 {
            return 0.0;
        }
        let i = code.ilog2();
        let k = code - (1 << i);
        let octades = bits as i32 - 1;
        8f64.powi(i as i32 - octades)
            * (1.0 / 8.0 + 7.0 / 8.0 * f64::from(k + 1) / f64::from(1u32 << i))
    }

    #[test]
    fn values_are_those_of_the_definition_exactly() {
        for code in 0..128 {
            assert_eq!(f64::from(value::<7>(code)), defined(7, code), "{code}");
        }
        for code in 0..256 {
            assert_eq!(f64::from(value::<8>(code)), defined(8, code), "{code}");
        }
        assert_eq!((value::<7>(127), value::<8>(255)), (1.0, 1.0));
    }

    /// By distance in f64 to every value, at a million places and beside every border.
    #[test]
    fn codes_are_the_nearest() {
        fn check<const BITS: u32>() {
            let all: Vec<f64> = (0..1 << BITS).map(|c| defined(BITS, c)).collect();
            let border = |c: usize| f64::midpoint(all[c], all[c + 1]);
            let mut places: Vec<f32> = (0..1 << 20).map(|i| i as f32 / (1 << 20) as f32).collect();
            for c in 0..all.len() - 1 {
                let b = border(c);
                for part in [0.5, 0.9, 0.999_99, 1.000_01, 1.1, 1.5] {
                    places.push((b * part).min(1.0) as f32);
                }
            }
            places.extend((0..200).map(|i| 0.9f32.powi(i)));
            for y in places {
                let code = nearest::<BITS>(y) as usize;
                let found = (all[code] - f64::from(y)).abs();
                let at = all.partition_point(|&v| v < f64::from(y));
                let near = [at.saturating_sub(1), at.min(all.len() - 1)];
                let best = near
                    .map(|c| (all[c] - f64::from(y)).abs())
                    .into_iter()
                    .fold(f64::INFINITY, f64::min);
                // Rounding of the line itself: a few parts in 2^24 of a code.
                assert!(
                    found <= best + 4e-7 * f64::from(y),
                    "{BITS} bits, {y}: code {code} is {found:e} away, the nearest {best:e}"
                );
            }
            for c in 0..1 << BITS {
                assert_eq!(nearest::<BITS>(value::<BITS>(c)), c, "{BITS} bits");
            }
        }
        check::<7>();
        check::<8>();
    }

    #[test]
    fn signs_zeros_and_ends_of_the_range() {
        for x in [1.0, 0.3, 1e-3, 5e-6] {
            let (plus, minus) = (first_code(x, 1.0), first_code(-x, 1.0));
            assert_eq!(minus, plus | 0x80, "{x}");
            assert_eq!(first(minus, 2.0), -first(plus, 2.0), "{x}");
        }
        assert_eq!((first_code(0.0, 1.0), second_code(0.0, 1.0)), (0, 0));
        for tiny in [1e-45, 1e-30, 1e-9] {
            assert_eq!(second_code(tiny, 1.0), 1, "{tiny} became zero");
        }
        for x in [f32::MIN_POSITIVE, 1e-30, 1.0, 3e30, f32::MAX] {
            let (scale, inverse) = scale(x.to_bits());
            assert_eq!(first(first_code(-x, inverse), scale), -x);
            assert_eq!(second(second_code(x, inverse), scale), x);
        }
        let mut codes = [1; BLOCK];
        let mut x = [0.0; BLOCK];
        x[5] = -1e-39;
        assert_eq!(encode(&x, &mut codes, first_code, 0x7f), 0.0);
        assert!(codes.iter().all(|&c| first(c, 0.0) == 0.0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[77] = bad;
            let scale = encode(&x, &mut codes, first_code, 0x7f);
            assert!(codes.iter().all(|&c| first(c, scale).is_nan()), "{bad}");
        }
    }

    #[test]
    fn bf16_is_one_of_the_two_neighbours_and_right_on_average() {
        let random = Random::new(3, 4);
        for x in [1.0f32, 1.001, -0.123_45, 3e-20, 1e-40, 2e38] {
            let low = f32::from_bits(x.to_bits() & 0xffff_0000);
            let high = f32::from_bits(low.to_bits() + 0x1_0000);
            let n = 1 << 16;
            let mut sum = [0.0; 2];
            for i in 0..n {
                let r = random.bits(i);
                for (sum, r) in sum.iter_mut().zip([r & 0xffff, r >> 16]) {
                    let y = f32::from_bits(u32::from(to_bf16(x, r)) << 16);
                    assert!(y == low || y == high, "{y} for {x}");
                    *sum += f64::from(y);
                }
            }
            // Five deviations of the mean.
            let unit = f64::from(high - low).abs();
            for sum in sum {
                let error = (sum / f64::from(n) - f64::from(x)).abs();
                assert!(
                    error <= 5.0 * 0.5 * unit / f64::from(n).sqrt(),
                    "{x}: {error:e}"
                );
            }
        }
        for r in [0, 1, 0x8000, 0xffff] {
            assert_eq!(to_bf16(0.0, r), 0);
            assert_eq!(to_bf16(-0.0, r), 0x8000);
            assert_eq!(to_bf16(1.5, r), 0x3fc0, "exact numbers stay");
            assert_eq!(to_bf16(f32::INFINITY, r), 0x7f80);
            assert_eq!(to_bf16(f32::NEG_INFINITY, r), 0xff80);
            for nan in [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff, 0xff80_0001] {
                assert_eq!(to_bf16(f32::from_bits(nan), r), 0x7fc0);
            }
        }
    }

    /// Every bit is set half of the time, whatever changes: position, parameter or step; and the
    /// halves do not follow each other.
    #[test]
    fn random_bits_are_even() {
        type Stream = (&'static str, fn(u32) -> u32);
        let n = 1 << 16;
        let streams: [Stream; 4] = [
            ("position", |i| Random::new(7, 1).bits(i)),
            ("parameter", |i| Random::new(7, i).bits(1000)),
            ("step", |i| Random::new(u64::from(i), 3).bits(5)),
            ("change by position", |i| {
                Random::new(7, 1).bits(i) ^ Random::new(7, 1).bits(i + 1)
            }),
        ];
        for (what, bits) in streams {
            let mut counts = [0u32; 32];
            let mut product = 0.0;
            for i in 0..n {
                let x = bits(i);
                for (b, count) in counts.iter_mut().enumerate() {
                    *count += (x >> b) & 1;
                }
                let half = |x: u32| f64::from(x & 0xffff) / 65536.0 - 0.5;
                product += 12.0 * half(x) * half(x >> 16);
            }
            for (b, count) in counts.into_iter().enumerate() {
                let off = (f64::from(count) - f64::from(n) / 2.0).abs();
                assert!(
                    off < 5.0 * 0.5 * f64::from(n).sqrt(),
                    "{what}, bit {b}: {count}"
                );
            }
            let correlation = product / f64::from(n);
            assert!(
                correlation.abs() < 5.0 / f64::from(n).sqrt(),
                "{what}: {correlation}"
            );
        }
        // No stream is another one moved along.
        let (one, two) = (Random::new(7, 1), Random::new(8, 1));
        let first: Vec<u32> = (0..1000).map(|i| one.bits(i)).collect();
        assert!((0..1000).all(|i| !first.contains(&two.bits(i))));
        assert_eq!(one.after(10).bits(5), one.bits(15));
    }
}
