//! Memory of a device, host memory that it copies from, and copies that are done at once.

use std::sync::Arc;

use cudarc::driver::sys;
use lowtide_tiers::{Arena, limits};
use lowtide_units::Bytes;

use super::error::{message, ok};
use super::{CudaError, Gpu, gpu};
use crate::view::{Dst, Place, Src};

/// One allocation, freed with its last handle.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    inner: Arc<Allocation>,
}

#[derive(Debug)]
struct Allocation {
    address: u64,
    bytes: Bytes,
    ordinal: u8,
}

impl DeviceMemory {
    /// Allocates exactly `bytes` by a plain allocation; the content is unspecified.
    ///
    /// # Errors
    /// [`CudaError::Memory`] when the device does not have them.
    pub fn new(gpu: &Gpu, bytes: Bytes) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut address = 0;
        // SAFETY: writes one address; the context is current. The driver refuses 0 bytes.
        let status = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.usize().max(256)) };
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = gpu.memory()?;
            return Err(CudaError::Memory {
                need: bytes,
                free,
                total,
            });
        }
        ok("cuMemAlloc", status)?;
        Ok(Self {
            inner: Arc::new(Allocation {
                address,
                bytes,
                ordinal: gpu.ordinal(),
            }),
        })
    }

    /// Where it starts, on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.inner.address
    }

    /// Exactly what was asked for.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.inner.bytes
    }

    /// On which device.
    #[must_use]
    pub fn ordinal(&self) -> u8 {
        self.inner.ordinal
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if gpu::bind(self.ordinal).is_ok() {
            // SAFETY: our own allocation, whole. Freeing waits for work that was given before;
            // a device that has failed has nothing left to free.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// An arena's registration with the driver, undone with its last handle.
#[derive(Clone, Debug)]
pub struct Pinned {
    _inner: Arc<Registration>,
}

#[derive(Debug)]
struct Registration {
    arena: Arena,
    ordinal: u8,
}

impl Pinned {
    /// Registers all of an arena.
    ///
    /// # Errors
    /// [`CudaError::Pin`].
    pub fn new(gpu: &Gpu, arena: &Arena) -> Result<Self, CudaError> {
        gpu.bind()?;
        if arena.bytes().0 > 0 {
            // SAFETY: the mapping is the arena's own and outlives the registration, which holds
            // a handle of it.
            let status = unsafe {
                sys::cuMemHostRegister_v2(
                    arena.base().cast(),
                    arena.bytes().usize(),
                    sys::CU_MEMHOSTREGISTER_PORTABLE,
                )
            };
            if status != sys::CUresult::CUDA_SUCCESS {
                return Err(CudaError::Pin {
                    need: arena.bytes(),
                    limit: limits::locked_memory(),
                    what: message(status),
                });
            }
        }
        Ok(Self {
            _inner: Arc::new(Registration {
                arena: arena.clone(),
                ordinal: gpu.ordinal(),
            }),
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.arena.bytes().0 > 0 && gpu::bind(self.ordinal).is_ok() {
            // SAFETY: registered by `Pinned::new`, still mapped.
            let _ = unsafe { sys::cuMemHostUnregister(self.arena.base().cast()) };
        }
    }
}

/// Copies between any two places; done when it returns.
///
/// # Panics
/// When lengths differ, or the device has failed.
pub(crate) fn copy_now(to: Dst<'_>, from: Src<'_>) {
    assert_eq!(
        to.bytes(),
        from.bytes(),
        "copy between views of different lengths"
    );
    let ordinal = match (to.place(), from.place()) {
        (Place::Cuda(n), _) | (_, Place::Cuda(n)) => n,
        _ => unreachable!("host memory is copied by the processor"),
    };
    let done = gpu::bind(ordinal).and_then(|()| {
        // SAFETY: both ranges are valid and ours until this returns (`Src`, `Dst`); addresses are unified.
        ok("cuMemcpy", unsafe {
            sys::cuMemcpy(to.address(), from.address(), to.bytes())
        })?;
        // Between two ranges of one device the driver returns before it is done.
        // SAFETY: the context is current.
        ok("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    });
    if let Err(e) = done {
        panic!("copy of {} bytes: {e}", to.bytes());
    }
}

/// Fills device memory; done when it returns.
///
/// # Panics
/// When the device has failed.
pub(crate) fn fill_now(view: Dst<'_>, byte: u8) {
    let Place::Cuda(ordinal) = view.place() else {
        unreachable!("host memory is filled by the processor")
    };
    let done = gpu::bind(ordinal).and_then(|()| {
        // SAFETY: a valid range that is ours (`Dst`).
        ok("cuMemsetD8", unsafe {
            sys::cuMemsetD8_v2(view.address(), byte, view.bytes())
        })?;
        // SAFETY: the context is current.
        ok("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    });
    if let Err(e) = done {
        panic!("fill of {} bytes: {e}", view.bytes());
    }
}
