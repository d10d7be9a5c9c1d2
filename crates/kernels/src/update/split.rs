//! Split master weights: one f32 as the bf16 that the device reads and a 16-bit remainder.
//!
//! As integers, `master bits = (weight bits << 16) + remainder` with a signed remainder. Rounding
//! the master to the nearest bf16, ties away from zero, leaves a remainder in -32768..=32767, so
//! it fits an `i16` and no bit is lost. In sign-magnitude bits that rounding is one integer
//! addition, and its carry from mantissa to exponent is the right one: the remainder is simply the
//! low half of the master. Ties to even would need -32768..=32768, one value too many.
//!
//! Two kinds of values cannot keep their bits, because their weight would be another number:
//! - magnitudes above [`MASTER_MAX`] (3.396e38, the last 2⁻⁹ of the last binade) would have an
//!   infinite weight; they are clamped to ±[`MASTER_MAX`]. Finite weights have no codes left for
//!   them: 65536 masters a weight is all there is.
//! - NaNs all become one, bf16 0x7fc0 with remainder 0, or the carry would make some of them zero.
//!
//! Infinities stay infinite: a run that diverges must be seen.

/// The largest master weight whose bf16 weight is finite, 0x7f7f_7fff.
pub const MASTER_MAX: f32 = f32::from_bits(MAX_BITS);

pub(crate) const MAX_BITS: u32 = 0x7f7f_7fff;
pub(crate) const INFINITY_BITS: u32 = 0x7f80_0000;
pub(crate) const NAN_BITS: u32 = 0x7fc0_0000;
pub(crate) const MAGNITUDE: u32 = 0x7fff_ffff;
/// Half of a bf16 unit in the last place, seen from f32.
pub(crate) const HALF: u32 = 0x8000;

/// A master weight as (bf16 weight bits, remainder).
///
/// `join(split(x))` has the bits of `x` for every `x` that is not NaN and either infinite or at
/// most [`MASTER_MAX`] in magnitude; see the module's head for the others.
#[inline(always)]
#[must_use]
pub fn split(master: f32) -> (u16, i16) {
    let bits = representable(master.to_bits());
    (((bits + HALF) >> 16) as u16, bits as u16 as i16)
}

/// The master weight of a bf16 weight and its remainder.
///
/// A remainder of zero makes the master equal to the weight. Exact for every pair.
#[inline(always)]
#[must_use]
pub fn join(weight: u16, remainder: i16) -> f32 {
    f32::from_bits((u32::from(weight) << 16).wrapping_add_signed(i32::from(remainder)))
}

/// Clamps what would round to an infinite weight and makes all NaNs one.
#[inline(always)]
fn representable(bits: u32) -> u32 {
    let magnitude = bits & MAGNITUDE;
    let sign = bits & !MAGNITUDE;
    if magnitude > INFINITY_BITS {
        NAN_BITS
    } else if magnitude > MAX_BITS && magnitude < INFINITY_BITS {
        sign | MAX_BITS
    } else {
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest bf16 by distance in f64, ties away from zero: the rule without bit tricks.
    fn nearest_away(x: f32) -> u16 {
        let toward_zero = (x.to_bits() >> 16) as u16;
        let value = |w: u16| f64::from(f32::from_bits(u32::from(w) << 16));
        let (low, high) = (value(toward_zero), value(toward_zero + 1));
        let (below, above) = ((f64::from(x) - low).abs(), (high - f64::from(x)).abs());
        if above <= below {
            toward_zero + 1
        } else {
            toward_zero
        }
    }

    #[track_caller]
    fn check(bits: u32) {
        let x = f32::from_bits(bits);
        let (w, rem) = split(x);
        let back = join(w, rem);
        let weight = f32::from_bits(u32::from(w) << 16);
        if x.is_nan() {
            assert_eq!((w, rem), (0x7fc0, 0), "{bits:#010x}");
        } else if x.is_infinite() {
            assert_eq!(back.to_bits(), bits);
            assert_eq!(weight, x, "an infinite master has an infinite weight");
        } else if x.abs() > MASTER_MAX {
            assert_eq!(back, MASTER_MAX.copysign(x), "{bits:#010x}");
            assert_eq!(
                weight.to_bits(),
                (bits & 0x8000_0000) | 0x7f7f_0000,
                "{bits:#010x}"
            );
        } else {
            assert_eq!(back.to_bits(), bits, "{bits:#010x} is not kept");
            assert!(weight.is_finite(), "{bits:#010x} has weight {weight}");
            assert_eq!(
                weight.is_sign_negative(),
                x.is_sign_negative(),
                "{bits:#010x}"
            );
            assert_eq!(
                w,
                nearest_away(x),
                "{bits:#010x} is not rounded to the nearest"
            );
        }
    }

    /// Low halves either side of every place where the rounding or its carry changes.
    const LOW: [u32; 12] = [
        0, 1, 2, 0x3fff, 0x4000, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xc000, 0xfffe, 0xffff,
    ];

    #[test]
    fn every_upper_half_with_the_borders_of_the_lower() {
        for high in 0..=0xffff_u32 {
            for low in LOW {
                check(high << 16 | low);
            }
        }
    }

    #[test]
    fn every_number_near_zero_and_near_the_top() {
        for sign in [0, 0x8000_0000] {
            // Zero, all small subnormals; the border of the normals; the last 2^18 numbers with
            // the border of infinity and the first NaNs; the last NaNs, whose carry would wrap.
            for range in [
                0..=0x0004_0000,
                0x007e_0000..=0x0082_0000,
                0x7f7c_0000..=0x7f82_0000,
                0x7ffe_0000..=0x7fff_ffff_u32,
            ] {
                range.for_each(|bits| check(sign | bits));
            }
        }
    }

    #[test]
    fn random_numbers() {
        let mut state = 0x5eed_u64;
        for _ in 0..1 << 24 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            check((state >> 32) as u32);
        }
    }

    #[test]
    fn a_plain_bf16_weight_is_its_own_master() {
        for w in 0..=0xffff_u16 {
            let master = join(w, 0);
            assert_eq!(master.to_bits(), u32::from(w) << 16);
            if !master.is_nan() {
                assert_eq!(split(master), (w, 0));
            }
        }
    }
}
