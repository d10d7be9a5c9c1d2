//! Quantities that cannot be mixed up: bytes, floating-point operations, seconds and their rates.
//!
//! A quantity divided by its rate is [`Seconds`]; bytes over flops-per-second does not compile.
//! Counts of bytes are exact integers; rates and seconds are `f64`.
//!
//! Positions in lists are types too ([`id!`] and [`List`]):
//!
//! ```compile_fail,E0277
//! use lowtide_units::{List, id};
//! id! {
//!     /// A slot.
//!     pub struct SlotId(u32);
//! }
//! id! {
//!     /// A piece.
//!     pub struct PieceId(u32);
//! }
//! let slots: List<SlotId, &str> = vec!["a"].into();
//! slots[PieceId(0)];
//! ```

mod ids;

pub use ids::{Id, List, ids};

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub, SubAssign};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes, exact.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A number of floating-point operations (a multiply-add counts two).
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flops(pub f64);

/// A span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

/// Bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BytesPerSecond(pub f64);

/// Floating-point operations a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlopsPerSecond(pub f64);

impl Bytes {
    /// No bytes, where sums begin.
    pub const ZERO: Self = Self(0);
    /// One kibibyte: 2^10 bytes.
    pub const KIB: Self = Self(1 << 10);
    /// One mebibyte: 2^20 bytes.
    pub const MIB: Self = Self(1 << 20);
    /// One gibibyte: 2^30 bytes.
    pub const GIB: Self = Self(1 << 30);

    /// Whether it is nothing.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The least multiple of `to` that is not smaller. `to` must be a power of two.
    #[must_use]
    pub fn align_up(self, to: u64) -> Self {
        Self(align_up(self.0, to))
    }

    /// `self - other`, or zero.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// As a `usize`, for memory on this machine.
    #[must_use]
    pub fn usize(self) -> usize {
        usize::try_from(self.0).expect("a 64-bit machine")
    }
}

/// The least multiple of `to` that is not smaller than `n`. `to` must be a power of two.
#[must_use]
pub fn align_up(n: u64, to: u64) -> u64 {
    assert!(to.is_power_of_two(), "alignment {to} is not a power of two");
    (n + to - 1) & !(to - 1)
}

impl Seconds {
    /// No time, where sums begin.
    pub const ZERO: Self = Self(0.0);

    /// The longer of two spans.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
}

macro_rules! arithmetic {
    ($($t:ident),*) => {$(
        impl Add for $t { type Output = Self; fn add(self, o: Self) -> Self { Self(self.0 + o.0) } }
        impl Sub for $t { type Output = Self; fn sub(self, o: Self) -> Self { Self(self.0 - o.0) } }
        impl AddAssign for $t { fn add_assign(&mut self, o: Self) { self.0 += o.0; } }
        impl SubAssign for $t { fn sub_assign(&mut self, o: Self) { self.0 -= o.0; } }
        impl Sum for $t { fn sum<I: Iterator<Item = Self>>(i: I) -> Self { i.fold(Self::default(), Add::add) } }
    )*};
}
arithmetic!(Bytes, Flops, Seconds);

impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, n: u64) -> Self {
        Self(self.0 * n)
    }
}

impl Mul<f64> for Flops {
    type Output = Self;
    fn mul(self, n: f64) -> Self {
        Self(self.0 * n)
    }
}

impl Mul<f64> for Seconds {
    type Output = Self;
    fn mul(self, n: f64) -> Self {
        Self(self.0 * n)
    }
}

impl Div<BytesPerSecond> for Bytes {
    type Output = Seconds;
    fn div(self, rate: BytesPerSecond) -> Seconds {
        if self.0 == 0 {
            Seconds(0.0)
        } else {
            Seconds(self.0 as f64 / rate.0)
        }
    }
}

impl Div<FlopsPerSecond> for Flops {
    type Output = Seconds;
    fn div(self, rate: FlopsPerSecond) -> Seconds {
        if self.0 == 0.0 {
            Seconds(0.0)
        } else {
            Seconds(self.0 / rate.0)
        }
    }
}

impl Div<Seconds> for Bytes {
    type Output = BytesPerSecond;
    fn div(self, s: Seconds) -> BytesPerSecond {
        BytesPerSecond(self.0 as f64 / s.0)
    }
}

impl Div<Seconds> for Flops {
    type Output = FlopsPerSecond;
    fn div(self, s: Seconds) -> FlopsPerSecond {
        FlopsPerSecond(self.0 / s.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        let text = if self.0 < 1 << 10 {
            format!("{} B", self.0)
        } else if self.0 < 1 << 20 {
            format!("{:.1} KiB", n / (1u64 << 10) as f64)
        } else if self.0 < 1 << 30 {
            format!("{:.1} MiB", n / (1u64 << 20) as f64)
        } else if self.0 < 1 << 40 {
            format!("{:.1} GiB", n / (1u64 << 30) as f64)
        } else {
            format!("{:.2} TiB", n / (1u64 << 40) as f64)
        };
        f.pad(&text)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            s if s >= 100.0 => format!("{s:.0} s"),
            s if s >= 1.0 => format!("{s:.2} s"),
            s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
            s => format!("{:.1} µs", s * 1e6),
        };
        f.pad(&text)
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.2} GB/s", self.0 / 1e9))
    }
}

impl fmt::Display for FlopsPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.2} TFLOP/s", self.0 / 1e12))
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseBytesError {
    /// The text that was given.
    pub text: String,
}

impl fmt::Display for ParseBytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not a size such as 24GiB, 512MiB, 4TB or 16384",
            self.text
        )
    }
}

impl std::error::Error for ParseBytesError {}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Reads `24GiB`, `1.5 GiB`, `4TB`, `512M` (binary), `16384` (bytes). Letter case is ignored.
    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        let fail = || ParseBytesError {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
            .unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(split);
        let number: f64 = digits.replace('_', "").parse().map_err(|_| fail())?;
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => (1u64 << 10) as f64,
            "m" | "mib" => (1u64 << 20) as f64,
            "g" | "gib" => (1u64 << 30) as f64,
            "t" | "tib" => (1u64 << 40) as f64,
            _ => return Err(fail()),
        };
        let bytes = (number * factor).round();
        if !(0.0..=9e18).contains(&bytes) {
            return Err(fail());
        }
        Ok(Self(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, want) in [
            ("24GiB", 24 << 30),
            ("1.5 GiB", 3 << 29),
            ("4TB", 4_000_000_000_000),
            ("16384", 16384),
            ("16_384", 16384),
            ("512m", 512 << 20),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(want)), "{text}");
        }
        for text in ["", "GiB", "-1", "12 parsecs", "1e400", "99999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_quantity_over_its_rate_is_time() {
        assert_eq!(Bytes(10) / BytesPerSecond(5.0), Seconds(2.0));
        assert_eq!(Flops(9.0) / FlopsPerSecond(3.0), Seconds(3.0));
        assert_eq!(Bytes(0) / BytesPerSecond(0.0), Seconds(0.0));
        assert_eq!(align_up(4097, 4096), 8192);
    }

    #[test]
    fn display_is_for_people() {
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes(512).to_string(), "512 B");
        assert_eq!(Seconds(0.0123).to_string(), "12.3 ms");
    }
}
