//! Lanes: what does one task at a time.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// The kind of resource that a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneKind {
    /// Kernels on the device.
    Gpu,
    /// Host to device.
    H2d,
    /// Device to host.
    D2h,
    /// The drives; index 0 reads, index 1 writes.
    Disk,
    /// Work on the host: updates, norms, inputs.
    Host,
    /// What ranks exchange. A plan for one rank has no task there.
    Net,
}

impl LaneKind {
    /// All six kinds, in the order of a plan's predictions.
    pub const ALL: [Self; 6] = [
        Self::Gpu,
        Self::H2d,
        Self::D2h,
        Self::Disk,
        Self::Host,
        Self::Net,
    ];

    /// `gpu`, `h2d`, `d2h`, `disk`, `host` or `net`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::H2d => "h2d",
            Self::D2h => "d2h",
            Self::Disk => "disk",
            Self::Host => "host",
            Self::Net => "net",
        }
    }
}

/// A resource that does one task at a time, in plan order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lane {
    /// What it does.
    pub kind: LaneKind,
    /// Number among the lanes of its kind: for drives 0 reads and 1 writes, otherwise 0.
    pub index: u16,
}

/// Number of lanes.
const LANES: usize = 7;

impl Lane {
    /// Kernels on the device.
    pub const GPU: Self = Self::new(LaneKind::Gpu, 0);
    /// Host to device.
    pub const H2D: Self = Self::new(LaneKind::H2d, 0);
    /// Device to host.
    pub const D2H: Self = Self::new(LaneKind::D2h, 0);
    /// Reads from the drives.
    pub const DISK_READ: Self = Self::new(LaneKind::Disk, 0);
    /// Writes to the drives.
    pub const DISK_WRITE: Self = Self::new(LaneKind::Disk, 1);
    /// Work on the host.
    pub const HOST: Self = Self::new(LaneKind::Host, 0);
    /// What ranks exchange.
    pub const NET: Self = Self::new(LaneKind::Net, 0);
    /// Every lane, in the order of [`Lane::idx`].
    pub const ALL: [Self; LANES] = [
        Self::GPU,
        Self::H2D,
        Self::D2H,
        Self::DISK_READ,
        Self::DISK_WRITE,
        Self::HOST,
        Self::NET,
    ];

    const fn new(kind: LaneKind, index: u16) -> Self {
        Self { kind, index }
    }

    /// Position in [`Lane::ALL`].
    #[must_use]
    pub fn idx(self) -> usize {
        match (self.kind, self.index) {
            (LaneKind::Gpu, _) => 0,
            (LaneKind::H2d, _) => 1,
            (LaneKind::D2h, _) => 2,
            (LaneKind::Disk, 0) => 3,
            (LaneKind::Disk, _) => 4,
            (LaneKind::Host, _) => 5,
            (LaneKind::Net, _) => 6,
        }
    }

    /// `gpu`, `h2d`, `d2h`, `disk-read`, `disk-write`, `host`, `net`.
    #[must_use]
    pub fn name(self) -> &'static str {
        const NAMES: [&str; LANES] = [
            "gpu",
            "h2d",
            "d2h",
            "disk-read",
            "disk-write",
            "host",
            "net",
        ];
        NAMES[self.idx()]
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some of the lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneSet(u16);

impl LaneSet {
    /// The set of these lanes; one that comes twice counts once.
    pub(crate) fn of(lanes: impl IntoIterator<Item = Lane>) -> Self {
        lanes.into_iter().fold(Self::default(), Self::with)
    }

    /// The set with this lane added.
    pub(crate) fn with(self, lane: Lane) -> Self {
        Self(self.0 | 1 << lane.idx())
    }

    /// The lanes of this set that are not in the other.
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it is one of them.
    pub(crate) fn has(self, lane: Lane) -> bool {
        self.0 >> lane.idx() & 1 == 1
    }

    /// Whether all of the other are in it.
    pub(crate) fn holds(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Number of lanes in it.
    pub(crate) fn len(self) -> u32 {
        self.0.count_ones()
    }
}

/// Something for every lane, indexed by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerLane<T>([T; LANES]);

impl<T> PerLane<T> {
    /// What `of` says of each.
    pub fn of(of: impl FnMut(Lane) -> T) -> Self {
        Self(Lane::ALL.map(of))
    }

    /// Each lane with what is its.
    pub fn iter(&self) -> impl Iterator<Item = (Lane, &T)> {
        Lane::ALL.into_iter().zip(&self.0)
    }

    /// As [`Self::iter`], to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Lane, &mut T)> {
        Lane::ALL.into_iter().zip(&mut self.0)
    }

    /// With what is the same lane's in `other`.
    pub fn zip_mut<'a, U>(
        &'a mut self,
        other: &'a PerLane<U>,
    ) -> impl Iterator<Item = (&'a mut T, &'a U)> {
        self.0.iter_mut().zip(&other.0)
    }

    /// In the order of [`Lane::ALL`].
    pub fn values(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> Index<Lane> for PerLane<T> {
    type Output = T;

    fn index(&self, lane: Lane) -> &T {
        &self.0[lane.idx()]
    }
}

impl<T> IndexMut<Lane> for PerLane<T> {
    fn index_mut(&mut self, lane: Lane) -> &mut T {
        &mut self.0[lane.idx()]
    }
}
