//! Types of numbers that an export can have.

use half::f16;
use lowtide_workload::Dtype;

/// The type of an export's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileDtype {
    /// IEEE single precision.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// IEEE half, rounded to nearest even; what is beyond its range is refused.
    F16,
}

impl FileDtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    /// The name in a run file: `f32`, `bf16` or `f16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of a number.
    pub(super) const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The first of the values that is no number in this type.
    pub(super) fn first_beyond(self, values: &[f32]) -> Option<usize> {
        /// The least number that bf16 rounds to infinity: its largest, 0x7f7f, and half a step.
        const BF16_END: f32 = f32::from_bits(0x7f7f_8000);
        match self {
            Self::F16 => first_not(values, |v| f16::from_f32(v).is_finite()),
            Self::Bf16 => first_not(values, |v| v.abs() < BF16_END),
            Self::F32 => first_not(values, f32::is_finite),
        }
    }

    /// As safetensors names it.
    pub(super) const fn safetensors(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// As transformers names it.
    pub(super) const fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }
}

impl From<Dtype> for FileDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// The first of the values that is not `fine`: block by block, without a branch for each.
fn first_not(values: &[f32], fine: impl Fn(f32) -> bool) -> Option<usize> {
    const BLOCK: usize = 4096;
    let all = |block: &[f32]| block.iter().fold(true, |all, &v| all & fine(v));
    let at = values.chunks(BLOCK).position(|block| !all(block))? * BLOCK;
    let inside = values[at..].iter().position(|&v| !fine(v))?;
    Some(at + inside)
}
