//! The memory of a run while nothing runs.

use lowtide_device::{Lender, Memory};
use lowtide_tiers::Disk;

use super::{Engine, Tiers};
use crate::runner::Runner;

/// The tiers while nothing runs: ranges of the memory are lent to whoever asks, one holder at a time.
#[derive(Debug)]
pub struct Idle<'a> {
    /// The device arena, all of its bytes.
    pub device: Lender<'a>,
    /// The host arena, all of its bytes.
    pub host: Lender<'a>,
    /// Disk, where the plan uses one.
    pub disk: Option<&'a Disk>,
}

impl<'a> Idle<'a> {
    /// Of tiers that no runner has yet.
    #[must_use]
    pub fn new(tiers: &'a mut Tiers) -> Self {
        Self {
            device: Lender::of(&mut tiers.device),
            host: Lender::of(&mut tiers.host),
            disk: tiers.disk.as_ref(),
        }
    }

    /// Of a runner that is idle.
    ///
    /// # Safety
    /// As long as this lives no task runs or is in a stream.
    pub(crate) unsafe fn of(tiers: &'a Tiers) -> Self {
        // SAFETY: nobody else has views of the memory: those of tasks end with them (caller).
        let all = |memory: &'a Memory| unsafe { memory.dst(0, memory.bytes().0) };
        Self {
            device: Lender::new(all(&tiers.device)),
            host: Lender::new(all(&tiers.host)),
            disk: tiers.disk.as_ref(),
        }
    }
}

impl<E: Engine> Runner<E> {
    /// The tiers, for whoever loads and saves homes. Nothing can be submitted while they are lent.
    ///
    /// # Panics
    /// When something still runs.
    pub fn idle_tiers(&mut self) -> Idle<'_> {
        assert!(self.idle(), "homes are read and written while nothing runs");
        // SAFETY: everything that was submitted is complete, on every lane, and `self` is borrowed.
        unsafe { Idle::of(self.tiers()) }
    }
}
