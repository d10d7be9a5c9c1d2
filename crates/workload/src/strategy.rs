//! What is trained in place of a matrix, where it is not the matrix itself.

use serde::{Deserialize, Serialize};

/// Training in subspaces (LSP-Offload): of a matrix W = W0 + S·Qᵀ the core S is trained, W0 and Q stay as they are.
///
/// The shorter side of W is projected. Of an (m, n) matrix with m ≥ n, Q is (n, r) and S is (m, r); with m < n,
/// W = W0 + P·Sᵀ with P (m, r) and S (n, r). A projector has orthogonal columns, each of length
/// κ = √(shorter side / r): a step of a learning rate then moves the numbers of W as far as it does in exact training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsp {
    /// How many times fewer directions than the shorter side has are trained, at least 1. At 1 the projector is the
    /// identity: exact training, but for roundings.
    pub compression: u32,
    /// Whether projectors are drawn or learned.
    pub projector: Projector,
}

impl Lsp {
    /// r is a multiple of this, so that rows of bf16 are whole units of 16 bytes.
    const RANK_ALIGN: u64 = 8;

    /// r of a matrix whose shorter side is this; `None` where that is too short for any.
    #[must_use]
    pub fn rank(self, shorter: u64) -> Option<u64> {
        match self.compression {
            0 | 1 => Some(shorter),
            by => {
                let rank = shorter / u64::from(by) / Self::RANK_ALIGN * Self::RANK_ALIGN;
                (rank > 0).then_some(rank)
            }
        }
    }
}

/// Where projectors come from.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Projector {
    /// Drawn from the seed.
    #[default]
    Random,
    /// The directions in which the gradient of the first batch is largest.
    Learned,
}
