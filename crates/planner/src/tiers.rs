//! Tiers: where bytes live.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// Where bytes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The accelerator's memory (the CPU device's own arena).
    Device,
    /// Pinned host memory.
    Host,
    /// Extents of the files that a run reserves on its drives.
    Disk,
}

impl Tier {
    /// All three, fastest first.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Disk];

    /// `device`, `host` or `disk`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
        }
    }

    /// Slots are whole multiples of this: 256 bytes on the device, 4 KiB where a disk may read or
    /// write directly.
    #[must_use]
    pub const fn align(self) -> u64 {
        match self {
            Self::Device => 256,
            Self::Host | Self::Disk => 4096,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something for every tier, indexed by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PerTier<T>([T; Tier::ALL.len()]);

impl<T> PerTier<T> {
    /// What `of` says of each.
    pub fn of(of: impl FnMut(Tier) -> T) -> Self {
        Self(Tier::ALL.map(of))
    }

    /// Each tier with what is its.
    pub fn iter(&self) -> impl Iterator<Item = (Tier, &T)> {
        Tier::ALL.into_iter().zip(&self.0)
    }
}

impl<T> Index<Tier> for PerTier<T> {
    type Output = T;

    fn index(&self, tier: Tier) -> &T {
        &self.0[tier as usize]
    }
}

impl<T> IndexMut<Tier> for PerTier<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        &mut self.0[tier as usize]
    }
}
