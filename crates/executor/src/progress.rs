//! Events: how many tasks each lane has completed since the runner began.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use lowtide_planner::plan::LANES;

/// A counter for each lane that others can wait for.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    lanes: [Counter; LANES],
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    lock: Mutex<()>,
    moved: Condvar,
}

impl Progress {
    pub fn count(&self, lane: usize) -> u64 {
        self.lanes[lane].count.load(Ordering::Acquire)
    }

    pub fn total(&self) -> u64 {
        (0..LANES).map(|l| self.count(l)).sum()
    }

    /// One more task of `lane` is complete. Everything it wrote happens before what a waiter does
    /// after it has seen the count (release here, acquire there).
    pub fn complete(&self, lane: usize) {
        let c = &self.lanes[lane];
        c.count.fetch_add(1, Ordering::Release);
        // The lock orders this with a waiter that has looked at the count but not yet slept.
        drop(c.lock.lock().unwrap_or_else(PoisonError::into_inner));
        c.moved.notify_all();
    }

    /// Blocks until `lane` has completed `count` tasks. False when the run has failed.
    pub fn wait(&self, lane: usize, count: u64) -> bool {
        self.wait_for(lane, count, None)
    }

    /// As [`Progress::wait`], giving up after `limit`: true only when the count was reached.
    pub fn wait_for(&self, lane: usize, count: u64, limit: Option<Duration>) -> bool {
        let c = &self.lanes[lane];
        if self.count(lane) >= count {
            return !self.failed();
        }
        let mut guard = c.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.failed() {
                return false;
            }
            if self.count(lane) >= count {
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
                        return self.count(lane) >= count && !self.failed();
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
        for c in &self.lanes {
            drop(c.lock.lock().unwrap_or_else(PoisonError::into_inner));
            c.moved.notify_all();
        }
    }
}
