//! Settings of a runner.

use std::sync::Arc;
use std::time::Duration;

use lowtide_device::comm::Comm;
use lowtide_device::cuda::Gpu;
use lowtide_planner::{PerPart, TaskId};
use lowtide_units::{List, Seconds};

use crate::trace::Trace;

/// How tasks are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One thread a lane.
    Threads,
    /// One thread in all, in an order drawn from this seed among those the edges allow.
    Shuffled(u64),
}

impl Mode {
    /// The mode of a rank of several: each draws an order of its own.
    #[must_use]
    pub fn of_rank(self, rank: usize) -> Self {
        match self {
            Self::Threads => self,
            Self::Shuffled(seed) => Self::Shuffled(seed.wrapping_add((rank as u64) << 32)),
        }
    }
}

/// Settings of a runner.
#[derive(Clone, Debug)]
pub struct Options {
    /// How tasks are driven.
    pub mode: Mode,
    /// The device whose streams the gpu, h2d and d2h lanes are; `None`: the CPU device.
    pub gpu: Option<Gpu>,
    /// The way to the other ranks, where the plan is of several.
    pub comm: Option<Arc<dyn Comm>>,
    /// Wait for every task of a stream before the next is given to it: slow, but an error of the
    /// device then names its task.
    pub synchronous: bool,
    /// Threads of the gpu lane's and of the host lane's queue, each.
    pub threads: usize,
    /// Threads that other ranks of the same host have spread over its cores before.
    pub threads_before: usize,
    /// Fill a slot with NaN when the life in it ends, so that a use after it shows.
    pub poison: bool,
    /// Report a standstill after this long.
    pub watchdog: Duration,
    /// What is recorded for the trace.
    pub trace: Trace,
    /// Slots may be read while steps go on ([`Runner::hold`](crate::Runner::hold)): on a stream every task that
    /// writes a persistent slot has events.
    pub holds: bool,
    /// The least time that each task takes, of every part, where lanes are threads: a machine of stated rates, for
    /// tests. `None`: none.
    pub pace: Option<Arc<PerPart<List<TaskId, Seconds>>>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Threads,
            gpu: None,
            comm: None,
            synchronous: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            threads_before: 0,
            poison: false,
            watchdog: Duration::from_secs(300),
            trace: Trace::NONE,
            holds: false,
            pace: None,
        }
    }
}
