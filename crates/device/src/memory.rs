//! One arena cut into views, and copies between views that are done when they return.
//!
//! These functions are safe to call because of the contract that every [`View`] carries: whoever
//! holds one may use its bytes now. The plan says who holds what when, its checker has proved that
//! no two tasks that may run at once conflict, and only the executor makes views of an arena.

use lowtide_tiers::Arena;
use lowtide_units::Bytes;

use crate::cuda::{self, DeviceMemory, Gpu, Pinned};
use crate::view::{Place, Plain, View};

/// Memory of one tier that views are made of.
#[derive(Clone, Debug)]
pub struct Memory {
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    /// Host memory; pinned where a CUDA device copies from and to it.
    Host {
        arena: Arena,
        _pinned: Option<Pinned>,
    },
    /// Memory of a CUDA device.
    Cuda(DeviceMemory),
}

impl Memory {
    /// Takes an arena of host memory.
    #[must_use]
    pub fn new(arena: Arena) -> Self {
        Self {
            store: Store::Host {
                arena,
                _pinned: None,
            },
        }
    }

    /// Takes an arena of host memory and registers it, so that copies between it and `gpu` run at
    /// full speed beside other work.
    ///
    /// # Errors
    /// The driver's, usually a limit on locked memory.
    pub fn pinned(arena: Arena, gpu: &Gpu) -> Result<Self, cuda::CudaError> {
        let pinned = Pinned::new(gpu, &arena)?;
        Ok(Self {
            store: Store::Host {
                arena,
                _pinned: Some(pinned),
            },
        })
    }

    /// Allocates `bytes` of a CUDA device's memory, exactly; its content is unspecified.
    ///
    /// # Errors
    /// When the device does not have them.
    pub fn cuda(gpu: &Gpu, bytes: Bytes) -> Result<Self, cuda::CudaError> {
        Ok(Self {
            store: Store::Cuda(DeviceMemory::new(gpu, bytes)?),
        })
    }

    /// The arena, for I/O that goes straight to it.
    ///
    /// # Panics
    /// When this is a CUDA device's memory.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        match &self.store {
            Store::Host { arena, .. } => arena,
            Store::Cuda(_) => panic!("a drive does not reach a CUDA device's memory"),
        }
    }

    /// Exactly what was asked for.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        match &self.store {
            Store::Host { arena, .. } => arena.bytes(),
            Store::Cuda(memory) => memory.bytes(),
        }
    }

    /// A view of `bytes` bytes from `offset`. Panics when they are not all inside.
    #[must_use]
    pub fn view(&self, offset: u64, bytes: u64) -> View<'_> {
        let have = self.bytes().0;
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= have),
            "bytes {offset}+{bytes} of an arena of {have}"
        );
        // SAFETY: inside the memory (asserted), which lives as long as `self`; uses are ordered
        // by the plan, as the module's head says.
        unsafe {
            match &self.store {
                Store::Host { arena, .. } => {
                    View::new(arena.base().add(offset as usize), bytes as usize)
                }
                Store::Cuda(memory) => {
                    View::on_cuda(memory.address() + offset, bytes as usize, memory.ordinal())
                }
            }
        }
    }
}

/// Copies all bytes of `from` to `to`, wherever they lie; both are equally long. Done when it
/// returns.
///
/// # Panics
/// When the lengths differ, or a CUDA device fails.
pub fn copy(to: &View<'_>, from: &View<'_>) {
    if to.place() == Place::Host && from.place() == Place::Host {
        // SAFETY: the holder of both views may use them now, and different slots do not overlap.
        unsafe { to.copy_from(from) }
    } else {
        cuda::copy_now(to, from);
    }
}

/// Copies numbers out of a view. Panics when the lengths differ.
pub fn load<T: Plain>(from: &View<'_>, to: &mut [T]) {
    if from.place() == Place::Host {
        // SAFETY: the holder of the view may read it now.
        to.copy_from_slice(unsafe { from.read() });
    } else {
        copy(&View::of(to), from);
    }
}

/// Copies numbers into a view. Panics when the lengths differ.
pub fn store<T: Plain>(to: &View<'_>, from: &[T]) {
    if to.place() == Place::Host {
        // SAFETY: the holder of the view may write it now.
        unsafe { to.write() }.copy_from_slice(from);
    } else {
        // SAFETY: only read, by the copy, and for no longer than this call.
        let from = unsafe { View::new(from.as_ptr().cast_mut().cast(), size_of_val(from)) };
        copy(to, &from);
    }
}

/// Fills a view with `0xff`, NaN in every float format.
pub fn poison(view: &View<'_>) {
    if view.place() == Place::Host {
        // SAFETY: the holder of the view may write it now.
        unsafe { view.write::<u8>() }.fill(0xff);
    } else {
        cuda::fill_now(view, 0xff);
    }
}
