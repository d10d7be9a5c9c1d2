//! The bytes of slots that are read while steps go on.

use std::sync::Arc;
use std::time::Duration;

use lowtide_device::cuda::{self, CudaError};
use lowtide_device::{Dst, Memory, memory};
use lowtide_planner::{SlotId, Tier};
use lowtide_tiers::Disk;

use super::Engine;
use crate::hold::{HeldFrom, Hold};
use crate::options::Mode;
use crate::runner::Runner;
use crate::shared::Shared;

/// Groups of persistent slots of a runner as they are behind one update, whatever is submitted behind it. A task that
/// writes one of them waits until its group is released; when this is dropped, all are.
pub struct Held<E: Engine> {
    shared: Arc<Shared<E>>,
    hold: Arc<Hold>,
    /// A stream of its own for what lies on a GPU.
    copies: Option<cuda::Queue>,
}

/// Whether a group can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Its slots are as they are behind the update.
    Yes,
    /// Its update is not complete.
    NotYet,
    /// The run has failed before it was.
    Never,
}

/// How long the lanes of a runner waited for releases; outlives the reader.
#[derive(Clone, Debug)]
pub struct HeldUp(Arc<Hold>);

impl HeldUp {
    /// Time in which at least one lane had nothing to do but to wait, so far.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.0.waited()
    }

    /// Whether the update that the reader is behind is submitted: what is held becomes ready with nothing else to be
    /// done.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.0.is_submitted()
    }
}

impl<E: Engine> std::fmt::Debug for Held<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> Held<E> {
    /// Whether a group can be read.
    ///
    /// # Errors
    /// The device's.
    pub fn ready(&self, group: usize) -> Result<Ready, CudaError> {
        let shared = &self.shared;
        let or_never = match shared.progress.failed() {
            true => Ready::Never,
            false => Ready::NotYet,
        };
        let Some(needs) = self.hold.needs(group) else {
            return Ok(or_never);
        };
        if let Some(streams) = &shared.streams {
            streams.gpu.bind()?;
        }
        for &(lane, count) in needs {
            if !shared.is_complete(lane, count)? {
                return Ok(or_never);
            }
        }
        Ok(Ready::Yes)
    }

    /// Whether the update that it is behind is submitted: groups become ready with nothing else to be done.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.hold.is_submitted()
    }

    /// Copies bytes of a slot in memory, whose group is ready. Beside other work of a GPU only where `out` is pinned.
    ///
    /// # Panics
    /// Where the slot is not held, not ready, released, or on a disk; when the device has failed.
    pub fn load(&self, slot: SlotId, offset: u64, out: &mut [u8]) {
        let bytes = out.len() as u64;
        self.reading(slot, |tiers| {
            let slot = &self.shared.plan.slots[slot];
            assert!(offset + bytes <= slot.bytes, "bytes of the slot");
            let of: &Memory = tiers.memory(slot.tier);
            // SAFETY: whoever wrote the slot last is complete (`reading`), and so is, or comes before, all that wrote
            // it earlier, by the checker's rule 3. Every later task that writes it is of a part that was submitted with
            // the hold, and waits for the release of its group (`Shared::pass`), which waits for this read
            // (`Hold::reading`). So nobody writes these bytes while the view lives.
            let from = unsafe { of.src(slot.offset + offset, bytes) };
            match &self.copies {
                Some(copies) if slot.tier == Tier::Device => {
                    // SAFETY: both ranges are valid, and the stream has come past the copy before either goes.
                    unsafe { copies.transfer(Dst::of(out), from) };
                    let done = copies.synchronize();
                    done.unwrap_or_else(|e| panic!("copy of {bytes} bytes: {e}"));
                }
                _ => memory::load(from, out),
            }
        });
    }

    /// Does `read` with the disk that a slot lies on, whose group is ready and not released meanwhile.
    ///
    /// # Panics
    /// As [`Held::load`]; where the plan has no disk.
    pub fn on_disk<T>(&self, slot: SlotId, read: impl FnOnce(&Disk) -> T) -> T {
        self.reading(slot, |tiers| {
            read(tiers.disk.as_ref().expect("a plan with extents has a disk"))
        })
    }

    fn reading<T>(&self, slot: SlotId, read: impl FnOnce(&super::Tiers) -> T) -> T {
        self.hold.reading(slot, |group| {
            assert_eq!(
                self.ready(group),
                Ok(Ready::Yes),
                "a read ahead of its update"
            );
            read(&self.shared.tiers)
        })
    }

    /// A group was read: tasks may write it.
    pub fn release(&self, group: usize) {
        self.hold.release(group);
    }

    /// Whether a task has to wait for a group: it is not released.
    #[must_use]
    pub fn holds(&self, group: usize) -> bool {
        !self.hold.is_released(group)
    }

    /// How long lanes waited.
    #[must_use]
    pub fn held_up(&self) -> HeldUp {
        HeldUp(Arc::clone(&self.hold))
    }
}

impl<E: Engine> Drop for Held<E> {
    fn drop(&mut self) {
        self.hold.release_all();
    }
}

impl<E: Engine> Runner<E> {
    /// Holds groups of persistent slots: as they are `from` some moment on they can be read, by as many threads as
    /// like, while steps go on.
    ///
    /// # Errors
    /// When the device gives no stream.
    ///
    /// # Panics
    /// Where the runner was not opened for it ([`Options::holds`](crate::Options::holds)), has no threads, holds
    /// something else still, or, from now on, is not idle; where a slot is not persistent or has two versions.
    pub fn hold(&mut self, groups: &[Vec<SlotId>], from: HeldFrom) -> Result<Held<E>, CudaError> {
        let options = &self.shared().options;
        assert!(
            options.holds && options.mode == Mode::Threads,
            "not opened for it"
        );
        assert!(!self.is_held(), "one hold at a time");
        assert!(
            from != HeldFrom::Now || self.idle(),
            "slots as they are while nothing runs"
        );
        let slots = &self.shared().plan.slots;
        for slot in groups.iter().flatten() {
            let slot = &slots[*slot];
            assert!(slot.persistent && slot.version.is_none(), "{slot:?}");
        }
        let on_device = |slot: &SlotId| slots[*slot].tier == Tier::Device;
        let copies = match &options.gpu {
            Some(gpu) if groups.iter().flatten().any(on_device) => Some(cuda::Queue::new(gpu)?),
            _ => None,
        };
        let hold = Arc::new(Hold::new(groups, slots.len(), from));
        let shared = Arc::clone(self.shared());
        self.begin_hold(Arc::clone(&hold), from);
        Ok(Held {
            shared,
            hold,
            copies,
        })
    }
}
