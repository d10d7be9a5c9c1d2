//! A rank that fails on purpose, for tests of whoever must not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Collective, Comm, CommError, World};
use crate::Queue;
use crate::view::{Dst, Src};

/// What happens at the collective.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The rank panics.
    Panics,
    /// The rank comes so much later.
    Late(Duration),
}

/// A way to the others on which something happens at one collective.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Comm>,
    at: u64,
    fault: Fault,
    count: AtomicU64,
}

impl Faulty {
    /// `inner` with a fault at its collective number `at`, from 0.
    #[must_use]
    pub fn new(inner: Arc<dyn Comm>, at: u64, fault: Fault) -> Self {
        Self {
            inner,
            at,
            fault,
            count: AtomicU64::new(0),
        }
    }
}

impl Comm for Faulty {
    fn world(&self) -> World {
        self.inner.world()
    }

    unsafe fn exchange(
        &self,
        queue: &Queue,
        collective: Collective<'_>,
        from: Src<'_>,
        to: Dst<'_>,
    ) -> Result<(), CommError> {
        if self.count.fetch_add(1, Ordering::Relaxed) == self.at {
            match self.fault {
                Fault::Panics => panic!("its cable is out"),
                Fault::Late(time) => std::thread::sleep(time),
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.exchange(queue, collective, from, to) }
    }

    fn stop(&self, why: &str) {
        self.inner.stop(why);
    }
}
