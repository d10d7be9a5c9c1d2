//! How the optimizer's two moments are stored, and where they lie beside each other.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::PARAM_ALIGN;

/// The type in which both moments are stored between steps. Arithmetic is f32 whatever it is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// IEEE single.
    #[default]
    F32,
    /// bfloat16, rounded stochastically.
    Bf16,
    /// One byte a number and one f32 scale for each [`Moments::BLOCK`] numbers of a parameter.
    Int8,
}

/// Bytes that an update moves a parameter beside the moments: bf16 weight and remainder read and
/// written (in f32 the weight), bf16 gradient read.
const MOVED_BESIDE: f64 = 10.0;

impl Moments {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// Numbers that share a scale, counted from the start of their parameter. Parameters start at
    /// multiples of it inside a piece, so blocks are the same however pieces are cut.
    pub const BLOCK: u64 = PARAM_ALIGN;

    /// `f32`, `bf16` or `int8`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of one number of one moment, without scales.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of both moments of `elements` numbers, a multiple of [`Moments::BLOCK`].
    #[must_use]
    pub const fn bytes(self, elements: u64) -> u64 {
        let layout = self.layout(elements);
        layout.second_scale.end
    }

    /// Where the arrays of `elements` numbers lie, in bytes from the start of the moments.
    #[must_use]
    pub const fn layout(self, elements: u64) -> MomentLayout {
        let array = self.size() * elements;
        let scales = match self {
            Self::Int8 => 4 * elements.div_ceil(Self::BLOCK),
            Self::F32 | Self::Bf16 => 0,
        };
        let codes = 2 * array;
        MomentLayout {
            first: 0..array,
            second: array..codes,
            first_scale: codes..codes + scales,
            second_scale: codes + scales..codes + 2 * scales,
        }
    }

    /// Bytes that an update moves a parameter in precision bf16, read and written: 26, 18 or
    /// 14.125. What a rate measured with one type says about another.
    #[must_use]
    pub fn moved_each(self) -> f64 {
        let block = Self::BLOCK;
        MOVED_BESIDE + 2.0 * self.bytes(block) as f64 / block as f64
    }
}

/// The arrays of both moments, as ranges of bytes, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MomentLayout {
    /// First moments.
    pub first: Range<u64>,
    /// Second moments.
    pub second: Range<u64>,
    /// Scales of the first moments, f32, one a block; empty but for [`Moments::Int8`].
    pub first_scale: Range<u64>,
    /// Scales of the second moments, likewise.
    pub second_scale: Range<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_lie_one_behind_the_other() {
        for (moments, bytes) in [
            (Moments::F32, 8 * 2048),
            (Moments::Bf16, 4 * 2048),
            (Moments::Int8, 2 * 2048 + 2 * 4 * 16),
        ] {
            let l = moments.layout(2048);
            assert_eq!(moments.bytes(2048), bytes);
            assert_eq!(l.first.start, 0);
            assert_eq!(l.first.end, l.second.start);
            assert_eq!(l.second.end, l.first_scale.start);
            assert_eq!(l.first_scale.end, l.second_scale.start);
            assert_eq!(l.second_scale.end, bytes);
            // Whatever is loaded sixteen bytes at a time starts at a multiple of them.
            for start in [l.second.start, l.first_scale.start, l.second_scale.start] {
                assert!(start.is_multiple_of(64), "{moments:?} {start}");
            }
        }
    }

    #[test]
    fn an_update_moves_what_it_must() {
        let moved = Moments::ALL.map(Moments::moved_each);
        assert_eq!(moved, [26.0, 18.0, 14.125]);
    }
}
