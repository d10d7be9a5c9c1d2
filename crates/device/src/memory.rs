//! One arena, views of it, and copies between views that are done when they return.
//!
//! A [`Memory`] is the only holder of its bytes: whoever has it alone (`&mut`) gets views of it by
//! borrowing. Where a plan says who has which bytes when, views are made without a borrow
//! ([`Memory::src`], [`Memory::dst`]), and the promise stands where they are made.

use lowtide_tiers::Arena;
use lowtide_units::Bytes;

use crate::cuda::{self, DeviceMemory, Gpu, Pinned};
use crate::view::{Dst, Place, Plain, Src};

/// Memory of one tier that views are made of.
#[derive(Debug)]
pub struct Memory {
    store: Store,
}

#[derive(Debug)]
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
    ///
    /// # Panics
    /// When somebody else has a handle of it.
    #[must_use]
    pub fn new(arena: Arena) -> Self {
        assert!(arena.is_unshared(), "an arena with another handle");
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
    ///
    /// # Panics
    /// When somebody else has a handle of it.
    pub fn pinned(arena: Arena, gpu: &Gpu) -> Result<Self, cuda::CudaError> {
        assert!(arena.is_unshared(), "an arena with another handle");
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

    /// The memory of a CUDA device, for libraries that go straight to it; none of host memory.
    #[must_use]
    pub fn on_cuda(&self) -> Option<&DeviceMemory> {
        match &self.store {
            Store::Host { .. } => None,
            Store::Cuda(memory) => Some(memory),
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

    /// All of it.
    #[must_use]
    pub fn all(&mut self) -> Dst<'_> {
        // SAFETY: nobody else has the memory, and it is borrowed as long as the view lives.
        unsafe { self.dst(0, self.bytes().0) }
    }

    /// `bytes` bytes from `offset`. Panics when they are not all inside.
    #[must_use]
    pub fn part(&mut self, offset: u64, bytes: u64) -> Dst<'_> {
        self.all().part(offset as usize, bytes as usize)
    }

    /// Several parts at once, each an offset and a number of bytes.
    ///
    /// # Panics
    /// When two of them share a byte, or one is not inside.
    #[must_use]
    pub fn parts<const N: usize>(&mut self, ranges: [(u64, u64); N]) -> [Dst<'_>; N] {
        let parts = self.cut(&ranges);
        parts.try_into().expect("as many parts as ranges")
    }

    /// As [`Memory::parts`], of any number.
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn cut(&mut self, ranges: &[(u64, u64)]) -> Vec<Dst<'_>> {
        for (i, &(from, bytes)) in ranges.iter().enumerate() {
            for &(other, more) in &ranges[..i] {
                let apart = from + bytes <= other || other + more <= from;
                assert!(apart, "parts {from}+{bytes} and {other}+{more} share bytes");
            }
        }
        let part = |&(from, bytes): &(u64, u64)| {
            // SAFETY: as `all`; no two parts share a byte.
            unsafe { self.dst(from, bytes) }
        };
        ranges.iter().map(part).collect()
    }

    /// `bytes` bytes from `offset` to read, without a borrow of the whole.
    ///
    /// # Safety
    /// While the view lives nobody writes these bytes: no [`Dst`] of any of them is used, and no
    /// request of a drive or copy of a device that is not done writes them.
    ///
    /// # Panics
    /// When they are not all inside.
    #[must_use]
    pub unsafe fn src(&self, offset: u64, bytes: u64) -> Src<'_> {
        self.inside(offset, bytes);
        // SAFETY: inside the memory (asserted), which lives as long as `self`; unwritten (caller).
        unsafe {
            match &self.store {
                Store::Host { arena, .. } => {
                    Src::new(arena.base().add(offset as usize), bytes as usize)
                }
                Store::Cuda(memory) => {
                    Src::on_cuda(memory.address() + offset, bytes as usize, memory.ordinal())
                }
            }
        }
    }

    /// `bytes` bytes from `offset` to write, without a borrow of the whole.
    ///
    /// # Safety
    /// While the view lives nobody else uses these bytes: no other view of any of them is used, and no
    /// request of a drive or copy of a device on them is not done.
    ///
    /// ```compile_fail,E0133
    /// fn f(memory: &lowtide_device::Memory) {
    ///     let _ = memory.dst(0, 8);
    /// }
    /// ```
    ///
    /// # Panics
    /// When they are not all inside.
    #[must_use]
    pub unsafe fn dst(&self, offset: u64, bytes: u64) -> Dst<'_> {
        self.inside(offset, bytes);
        // SAFETY: inside the memory (asserted), which lives as long as `self`; unused (caller).
        unsafe {
            match &self.store {
                Store::Host { arena, .. } => {
                    Dst::new(arena.base().add(offset as usize), bytes as usize)
                }
                Store::Cuda(memory) => {
                    Dst::on_cuda(memory.address() + offset, bytes as usize, memory.ordinal())
                }
            }
        }
    }

    fn inside(&self, offset: u64, bytes: u64) {
        let have = self.bytes().0;
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= have),
            "bytes {offset}+{bytes} of an arena of {have}"
        );
    }
}

/// Copies all bytes of `from` to `to`, wherever they lie; both are equally long. Done when it
/// returns.
///
/// # Panics
/// When the lengths differ, or a CUDA device fails.
pub fn copy(to: Dst<'_>, from: Src<'_>) {
    if to.place() == Place::Host && from.place() == Place::Host {
        assert_eq!(to.bytes(), from.bytes(), "copy between different lengths");
        to.write::<u8>().copy_from_slice(from.read());
    } else {
        cuda::copy_now(to, from);
    }
}

/// Copies numbers out of a view. Panics when the lengths differ.
pub fn load<T: Plain>(from: Src<'_>, to: &mut [T]) {
    if from.place() == Place::Host {
        to.copy_from_slice(from.read());
    } else {
        copy(Dst::of(to), from);
    }
}

/// Copies numbers into a view. Panics when the lengths differ.
pub fn store<T: Plain>(to: Dst<'_>, from: &[T]) {
    if to.place() == Place::Host {
        to.write().copy_from_slice(from);
    } else {
        copy(to, Src::of(from));
    }
}

/// Fills a view with `0xff`, NaN in every float format.
pub fn poison(view: Dst<'_>) {
    if view.place() == Place::Host {
        view.write::<u8>().fill(0xff);
    } else {
        cuda::fill_now(view, 0xff);
    }
}

#[cfg(test)]
mod tests {
    use lowtide_tiers::Fill;

    use super::*;

    fn arena() -> Arena {
        Arena::new(Bytes(64), Fill::Zero).expect("a page")
    }

    #[test]
    #[should_panic(expected = "an arena with another handle")]
    fn bytes_have_one_memory() {
        let arena = arena();
        let _one = Memory::new(arena.clone());
        let _two = Memory::new(arena);
    }

    #[test]
    #[should_panic(expected = "share bytes")]
    fn parts_share_nothing() {
        let _ = Memory::new(arena()).parts([(0, 32), (31, 1)]);
    }

    #[test]
    fn parts_are_the_bytes_that_they_name() {
        let mut memory = Memory::new(arena());
        let [a, b] = memory.parts([(32, 16), (0, 32)]);
        poison(a);
        store(b, &[7u8; 32]);
        let mut all = [0u8; 64];
        load(memory.all().into_src(), &mut all);
        assert_eq!(all[..32], [7; 32]);
        assert_eq!(all[32..48], [0xff; 16]);
        assert_eq!(all[48..], [0; 16]);
    }
}
