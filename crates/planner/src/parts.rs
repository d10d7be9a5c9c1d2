//! The parts of a plan by name.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// The parts of a plan, each a list of tasks of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartName {
    /// Forward and backward from drained state.
    First,
    /// A batch in the middle of a run.
    Steady,
    /// The updates of the last batch, which no forward follows.
    Drain,
    /// Loss without gradients.
    Evaluate,
    /// Logits without a loss, for answers.
    Infer,
    /// Of a batch in rounds (then `first`, `steady` and `evaluate` are its first round): any round
    /// between the first and the last.
    Middle,
    /// The last round of a batch: gradients are complete, and the norm.
    Last,
    /// With `previous` the last round of the first batch of all, whose updates wait for its norm.
    #[serde(rename = "last-first")]
    LastFirst,
    /// The last round of an evaluation.
    #[serde(rename = "last-evaluate")]
    LastEvaluate,
}

impl PartName {
    /// All, in the order of [`Plan::parts`](crate::Plan::parts).
    pub const ALL: [Self; 9] = [
        Self::First,
        Self::Steady,
        Self::Drain,
        Self::Evaluate,
        Self::Infer,
        Self::Middle,
        Self::Last,
        Self::LastFirst,
        Self::LastEvaluate,
    ];

    /// Whether a batch begins with this part.
    #[must_use]
    pub const fn begins(self) -> bool {
        !matches!(
            self,
            Self::Middle | Self::Last | Self::LastFirst | Self::LastEvaluate
        )
    }
}

/// Something for every part, indexed by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PerPart<T>([T; PartName::ALL.len()]);

impl<T> PerPart<T> {
    /// What `of` says of each.
    pub fn of(of: impl FnMut(PartName) -> T) -> Self {
        Self(PartName::ALL.map(of))
    }

    /// Each part with what is its.
    pub fn iter(&self) -> impl Iterator<Item = (PartName, &T)> {
        PartName::ALL.into_iter().zip(&self.0)
    }

    /// In the order of [`PartName::ALL`].
    pub fn values(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> Index<PartName> for PerPart<T> {
    type Output = T;

    fn index(&self, part: PartName) -> &T {
        &self.0[part as usize]
    }
}

impl<T> IndexMut<PartName> for PerPart<T> {
    fn index_mut(&mut self, part: PartName) -> &mut T {
        &mut self.0[part as usize]
    }
}
