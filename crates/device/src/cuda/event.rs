//! Events: points in a stream's work.

use std::sync::OnceLock;

use cudarc::driver::sys;

use super::error::ok;
use super::{CudaError, Gpu};

type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;

/// The driver's call for the time between two events: the first version of it, which every driver
/// has; the bindings for CUDA 13 know the second only.
fn elapsed() -> Result<Elapsed, CudaError> {
    static CALL: OnceLock<Option<Elapsed>> = OnceLock::new();
    let call = CALL.get_or_init(|| {
        // SAFETY: the driver is loaded already; the type is that of its header.
        unsafe {
            let lib = libloading::Library::new("libcuda.so.1").ok()?;
            let call = *lib.get::<Elapsed>(b"cuEventElapsedTime\0").ok()?;
            std::mem::forget(lib); // stays for the life of the process
            Some(call)
        }
    });
    call.ok_or_else(|| CudaError::Call {
        call: "cuEventElapsedTime",
        what: "the driver lacks it".to_owned(),
    })
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event {
    pub(super) handle: sys::CUevent,
}

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event with a time. A thread that waits for it sleeps.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        gpu.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle; the context is current.
        ok("cuEventCreate", unsafe {
            sys::cuEventCreate(
                &raw mut handle,
                sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as u32,
            )
        })?;
        Ok(Self { handle })
    }

    /// Blocks until its last record has happened.
    ///
    /// # Errors
    /// What went wrong on the device before it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: our own handle.
        ok("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(self.handle)
        })
    }

    /// Whether its last record has happened.
    ///
    /// # Errors
    /// What went wrong on the device before it.
    pub fn happened(&self) -> Result<bool, CudaError> {
        // SAFETY: our own handle.
        match unsafe { sys::cuEventQuery(self.handle) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => ok("cuEventQuery", status).map(|()| true),
        }
    }

    /// Seconds from `earlier` to this one; both have happened.
    ///
    /// # Errors
    /// The driver's.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64, CudaError> {
        let call = elapsed()?;
        let mut ms = 0.0f32;
        // SAFETY: writes one number; our own handles.
        ok("cuEventElapsedTime", unsafe {
            call(&raw mut ms, earlier.handle, self.handle)
        })?;
        Ok(f64::from(ms) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: our own handle. After the driver's end there is nothing to destroy.
        let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
    }
}
