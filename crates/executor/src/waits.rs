//! Why the gpu lane stood still, as measured: what `lowtide_planner::waits` predicts, of what really
//! happened.
//!
//! A pause of the gpu lane lies before a task that waits for another lane, or before the first task of a part. (The
//! time before a part that overlaps none, after a checkpoint or an evaluation, is no pause.) It is followed back from
//! its end as `planner::waits` does. The time between the end of all that a task waited for and its start is the
//! host's: it had not handed the task over, or not submitted the part. Pauses inside a stretch of tasks that wait for
//! nothing are not seen; they count as work. Copies of one stretch of a stream count for the last of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lowtide_planner::waits::Cause;
use lowtide_planner::{Lane, PerLane, PerPart};

use crate::parts::{PartTable, Submission};
use crate::timeline::Edge;

/// When the tasks of the host's lanes began and ended, and when those of a stream were handed to it (as their
/// start), in seconds since the runner began. Kept for the parts in flight and the one before them.
#[derive(Debug)]
pub(crate) struct Moments {
    lanes: PerLane<Vec<[AtomicU64; 2]>>,
}

impl Moments {
    pub fn new(tables: &PerPart<PartTable>) -> Self {
        Self {
            lanes: PerLane::of(|l| {
                let most = tables.values().map(|t| t.lanes[l].len()).max().unwrap_or(0);
                (0..4 * most + 1).map(|_| Default::default()).collect()
            }),
        }
    }

    /// Of the lane's task number `count`, from 1. Whoever reads it has seen the task complete.
    pub fn set(&self, lane: Lane, count: u64, edge: Edge, seconds: f64) {
        self.cell(lane, count, edge)
            .store(seconds.to_bits(), Ordering::Relaxed);
    }

    pub fn get(&self, lane: Lane, count: u64, edge: Edge) -> f64 {
        f64::from_bits(self.cell(lane, count, edge).load(Ordering::Relaxed))
    }

    fn cell(&self, lane: Lane, count: u64, edge: Edge) -> &AtomicU64 {
        let ring = &self.lanes[lane];
        &ring[(count % ring.len() as u64) as usize][edge as usize]
    }
}

/// Pauses of the gpu lane so far.
pub(crate) struct Waits<S> {
    /// By cause, in the order of [`Cause::ALL`].
    pub seconds: [f64; Cause::ALL.len()],
    /// When the lane's last task ended.
    pub last: f64,
    /// The part before the one that is looked at.
    pub before: Option<Arc<Submission<S>>>,
}

impl<S> Default for Waits<S> {
    fn default() -> Self {
        Self {
            seconds: Default::default(),
            last: 0.0,
            before: None,
        }
    }
}

impl<S> Waits<S> {
    pub fn add(&mut self, cause: Cause, seconds: f64) {
        self.seconds[cause as usize] += seconds;
    }
}
