//! How an optimizer's moments are stored.

use serde::{Deserialize, Serialize};

use crate::PARAM_ALIGN;

/// The type in which moments are stored between steps. Arithmetic is f32 whatever it is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// IEEE single precision, as the formula gives them.
    #[default]
    F32,
    /// bfloat16, rounded stochastically: to nearest, a second moment would stop changing.
    Bf16,
    /// One byte a number and one f32 scale for each [`Moments::BLOCK`] numbers of a parameter.
    Int8,
}

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
}
