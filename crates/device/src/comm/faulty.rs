//! A rank that fails on purpose, for tests of whoever must not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Collective, Comm, CommError, World};
use crate::Queue;
use crate::cuda::Queue as Stream;
use crate::view::{Dst, Src};

/// What happens at the collective.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The rank's thread panics.
    Panics,
    /// The rank comes so much later.
    Late(Duration),
    /// The rank never comes, until its wait is broken off.
    Hangs,
    /// From there on the rank does not hear that the group has ended: as on a GPU's stream its collectives end without
    /// an error, and bring nothing.
    Deaf,
    /// From there on collectives return at once, as if given to a GPU's stream, and bring nothing.
    Given,
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
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Panics if count == self.at => panic!("its cable is out"),
            Fault::Late(time) if count == self.at => std::thread::sleep(time),
            Fault::Hangs if count == self.at => loop {
                if let Some(error) = self.inner.stopped() {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(1));
            },
            Fault::Given if count >= self.at => return Ok(()),
            _ => {}
        }
        // SAFETY: the caller's promise.
        let done = unsafe { self.inner.exchange(queue, collective, from, to) };
        match self.fault {
            Fault::Deaf if count >= self.at => Ok(()),
            _ => done,
        }
    }

    fn stop(&self, why: &str) {
        self.inner.stop(why);
    }

    fn stopped(&self) -> Option<CommError> {
        self.inner.stopped()
    }

    fn wait(&self, stream: &Stream) -> Result<(), CommError> {
        self.inner.wait(stream)
    }

    fn by(&self) -> String {
        self.inner.by()
    }
}
