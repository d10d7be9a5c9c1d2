//! Events: how many tasks each lane has completed, and given to its stream, since the runner began.
use lowtide_planner::{Lane, PerLane};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A counter for each lane that others can wait for.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    lanes: PerLane<Counter>,
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    /// Tasks given to the lane's stream; a lane without a stream does not use it.
    given: AtomicU64,
    lock: Mutex<()>,
    moved: Condvar,
}

impl Progress {
    pub fn count(&self, lane: Lane) -> u64 {
        self.lanes[lane].count.load(Ordering::Acquire)
    }

    /// Tasks of a lane that are complete, or in its stream.
    pub fn begun(&self, lane: Lane) -> u64 {
        let given = self.lanes[lane].given.load(Ordering::Acquire);
        given.max(self.count(lane))
    }

    /// Grows whenever any lane gets on.
    pub fn total(&self) -> u64 {
        let given = |l: Lane| self.lanes[l].given.load(Ordering::Acquire);
        Lane::ALL
            .into_iter()
            .map(|l| self.count(l) + given(l))
            .sum()
    }

    /// One more task of `lane` is complete. Whoever waits for the count and sees it (acquire) sees everything that
    /// the task wrote (release here).
    pub fn complete(&self, lane: Lane) {
        let c = &self.lanes[lane];
        c.count.fetch_add(1, Ordering::Release);
        c.wake();
    }

    /// At least `count` tasks of `lane` are complete: somebody has seen it on the device.
    pub fn reach(&self, lane: Lane, count: u64) {
        let c = &self.lanes[lane];
        if c.count.fetch_max(count, Ordering::AcqRel) < count {
            c.wake();
        }
    }

    /// One more task of `lane` is in its stream, and the event at its end is recorded.
    pub fn give(&self, lane: Lane) {
        let c = &self.lanes[lane];
        c.given.fetch_add(1, Ordering::Release);
        c.wake();
    }

    /// Blocks until `count` tasks of `lane` are in its stream. False when the run has failed, or
    /// after `limit`.
    pub fn wait_given(&self, lane: Lane, count: u64, limit: Option<Duration>) -> bool {
        self.wait_on(lane, limit, |c| c.given.load(Ordering::Acquire) >= count)
    }

    /// Blocks until `lane` has completed `count` tasks. False when the run has failed.
    pub fn wait(&self, lane: Lane, count: u64) -> bool {
        self.wait_for(lane, count, None)
    }

    /// As [`Progress::wait`], giving up after `limit`: true only when the count was reached.
    pub fn wait_for(&self, lane: Lane, count: u64, limit: Option<Duration>) -> bool {
        self.wait_on(lane, limit, |c| c.count.load(Ordering::Acquire) >= count)
    }

    fn wait_on(
        &self,
        lane: Lane,
        limit: Option<Duration>,
        reached: impl Fn(&Counter) -> bool,
    ) -> bool {
        let c = &self.lanes[lane];
        if reached(c) {
            return !self.failed();
        }
        let mut guard = c.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.failed() {
                return false;
            }
            if reached(c) {
                return true;
            }
            match limit {
                None => guard = c.moved.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let (g, timeout) = c
                        .moved
                        .wait_timeout(guard, limit)
                        .unwrap_or_else(PoisonError::into_inner);
                    guard = g;
                    if timeout.timed_out() {
                        return reached(c) && !self.failed();
                    }
                }
            }
        }
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Wakes everybody; no wait succeeds any more.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        for c in self.lanes.values() {
            c.wake();
        }
    }
}

impl Counter {
    fn wake(&self) {
        // The lock orders this with a waiter that has looked at a count but not yet slept.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_all();
    }
}
