//! One GPU of this machine.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use lowtide_units::Bytes;

use super::blas::Products;
use super::error::{message, ok};
use super::libraries::suits_driver;
use super::module::Modules;
use super::pace::Pace;
use super::{CudaError, DeviceMemory, Libraries, Library};

/// Most devices of one machine.
const MOST: usize = 16;

/// Contexts of the devices that were opened; they stay for the life of the process.
static CONTEXTS: [OnceLock<Context>; MOST] = [const { OnceLock::new() }; MOST];

#[derive(Clone, Copy, Debug)]
struct Context(sys::CUcontext);

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// One GPU, opened: its context, what it is, and its compiled kernels. Clones are handles.
#[derive(Clone, Debug)]
pub struct Gpu {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ordinal: u8,
    name: String,
    bus: String,
    capability: (u32, u32),
    multiprocessors: u32,
    shared_memory: u32,
    l2: u64,
    driver: (u32, u32),
    numa: Option<u32>,
    modules: Modules,
    products: Products,
    pace: Option<Pace>,
}

/// Set to 1, it overrides what a program asks of cuBLAS.
const TF32: &str = "NVIDIA_TF32_OVERRIDE";

/// Refuses a value of [`TF32`] under which f32 would not be f32.
fn environment(tf32: Option<String>) -> Result<(), CudaError> {
    match tf32 {
        Some(value) if value.trim() != "0" && !value.trim().is_empty() => {
            Err(CudaError::Environment { name: TF32, value })
        }
        _ => Ok(()),
    }
}

impl Gpu {
    /// Opens device `ordinal`; the same one when it was opened before.
    ///
    /// # Errors
    /// When there is no driver, no such device, or one that is too old.
    pub fn open(ordinal: u32) -> Result<Self, CudaError> {
        static OPEN: Mutex<Vec<Gpu>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.iter().find(|g| u32::from(g.ordinal()) == ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = Self::new(ordinal)?;
        open.push(gpu.clone());
        Ok(gpu)
    }

    fn new(ordinal: u32) -> Result<Self, CudaError> {
        let device = handle(ordinal)?;
        let attribute = |what: Attribute| -> Result<u32, CudaError> {
            let mut value = 0;
            // SAFETY: writes one number.
            ok("cuDeviceGetAttribute", unsafe {
                sys::cuDeviceGetAttribute(&raw mut value, what, device)
            })?;
            Ok(value as u32)
        };
        let mut text = [0u8; 256];
        // SAFETY: writes at most 256 bytes, ended by a zero.
        ok("cuDeviceGetName", unsafe {
            sys::cuDeviceGetName(text.as_mut_ptr().cast(), 256, device)
        })?;
        let name = until_zero(&text);
        let mut text = [0u8; 32];
        // SAFETY: writes at most 32 bytes, ended by a zero.
        ok("cuDeviceGetPCIBusId", unsafe {
            sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), 32, device)
        })?;
        let bus = until_zero(&text);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability.0 < 8 {
            let (major, minor) = capability;
            return Err(CudaError::TooOld { name, major, minor });
        }
        environment(std::env::var(TF32).ok())?;
        let driver = driver_version()?;
        // Without these nothing runs; say it before anything is reserved.
        for library in [Library::Nvrtc, Library::CublasLt] {
            suits_driver(&Libraries::get().find(library)?, driver)?;
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the device exists; the context is never released.
        ok("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut context, device)
        })?;
        let _ = CONTEXTS[ordinal as usize].set(Context(context));
        let inner = Inner {
            ordinal: ordinal as u8,
            name,
            bus,
            capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            l2: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
            driver,
            numa: attribute(Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID).ok(),
            modules: Modules::default(),
            products: Products::default(),
            pace: Pace::asked()?,
        };
        let gpu = Self {
            inner: Arc::new(inner),
        };
        gpu.bind()?;
        Ok(gpu)
    }

    /// Makes this device's context the calling thread's, as every driver call needs.
    ///
    /// # Errors
    /// The driver's.
    pub fn bind(&self) -> Result<(), CudaError> {
        bind(self.inner.ordinal)
    }

    /// The driver's handle.
    pub(super) fn device(&self) -> Result<sys::CUdevice, CudaError> {
        handle(u32::from(self.inner.ordinal))
    }

    /// Its context, which is never released.
    pub(super) fn context(&self) -> sys::CUcontext {
        context(self.inner.ordinal)
    }

    /// Number of the GPU, as the driver counts.
    #[must_use]
    pub fn ordinal(&self) -> u8 {
        self.inner.ordinal
    }

    /// What the driver calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Compute capability: (9, 0) for Hopper.
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.inner.capability
    }

    /// The compiler's name for it: `sm_90`.
    #[must_use]
    pub fn target(&self) -> String {
        let (major, minor) = self.inner.capability;
        format!("sm_{major}{minor}")
    }

    /// How many multiprocessors it has.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors
    }

    /// Bytes of shared memory that one block may have.
    #[must_use]
    pub fn shared_memory(&self) -> u32 {
        self.inner.shared_memory
    }

    /// Bytes of its last cache.
    #[must_use]
    pub fn l2(&self) -> u64 {
        self.inner.l2
    }

    /// Newest CUDA that the driver supports: (13, 0).
    #[must_use]
    pub fn driver(&self) -> (u32, u32) {
        self.inner.driver
    }

    /// Where it sits: `0000:1b:00.0`.
    #[must_use]
    pub fn bus(&self) -> &str {
        &self.inner.bus
    }

    /// The NUMA node of the host that is nearest to it, where the driver knows.
    #[must_use]
    pub fn numa(&self) -> Option<u32> {
        self.inner.numa
    }

    /// Bytes that are free, and that there are.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<(Bytes, Bytes), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: writes two numbers; the context is current.
        ok("cuMemGetInfo", unsafe {
            sys::cuMemGetInfo_v2(&raw mut free, &raw mut total)
        })?;
        Ok((Bytes(free as u64), Bytes(total as u64)))
    }

    /// Allocates memory; its content is unspecified.
    ///
    /// # Errors
    /// When the device does not have it.
    pub fn allocate(&self, bytes: Bytes) -> Result<DeviceMemory, CudaError> {
        DeviceMemory::new(self, bytes)
    }

    /// Blocks until everything that was given to the device is done.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the context is current.
        ok("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// What its links are slowed down to, where the environment asks for that.
    #[must_use]
    pub fn pace(&self) -> Option<Pace> {
        self.inner.pace
    }

    pub(super) fn modules(&self) -> &Modules {
        &self.inner.modules
    }

    pub(super) fn products(&self) -> &Products {
        &self.inner.products
    }
}

/// The driver's handle of a device that exists.
fn handle(ordinal: u32) -> Result<sys::CUdevice, CudaError> {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDevice(
            "the driver's libcuda.so.1 is not installed".to_owned(),
        ));
    }
    // SAFETY: the first call that a process makes.
    let init = unsafe { sys::cuInit(0) };
    if init != sys::CUresult::CUDA_SUCCESS {
        return Err(CudaError::NoDevice(message(init)));
    }
    let mut have = 0;
    // SAFETY: writes one number.
    ok("cuDeviceGetCount", unsafe {
        sys::cuDeviceGetCount(&raw mut have)
    })?;
    let have = have as u32;
    if ordinal >= have.min(MOST as u32) {
        return Err(if have == 0 {
            CudaError::NoDevice("the driver sees none".to_owned())
        } else {
            CudaError::Ordinal { ordinal, have }
        });
    }
    let mut device = 0;
    // SAFETY: writes one handle; the ordinal exists.
    ok("cuDeviceGet", unsafe {
        sys::cuDeviceGet(&raw mut device, ordinal as i32)
    })?;
    Ok(device)
}

/// The CUDA version that the driver supports, (major, minor).
fn driver_version() -> Result<(u32, u32), CudaError> {
    let mut driver = 0;
    // SAFETY: writes one number.
    ok("cuDriverGetVersion", unsafe {
        sys::cuDriverGetVersion(&raw mut driver)
    })?;
    Ok((driver as u32 / 1000, driver as u32 % 1000 / 10))
}

/// The text that a call has written, up to its zero.
fn until_zero(text: &[u8]) -> String {
    std::ffi::CStr::from_bytes_until_nul(text)
        .map(|s| s.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The context of an opened device.
fn context(ordinal: u8) -> sys::CUcontext {
    let context = CONTEXTS[usize::from(ordinal)].get();
    context
        .expect("a view of a device is made after it was opened")
        .0
}

/// Makes the context of an opened device the calling thread's.
pub(super) fn bind(ordinal: u8) -> Result<(), CudaError> {
    // SAFETY: a context that is never released.
    ok("cuCtxSetCurrent", unsafe {
        sys::cuCtxSetCurrent(context(ordinal))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_of_f32_is_refused() {
        for (value, refused) in [
            (None, false),
            (Some("0"), false),
            (Some(""), false),
            (Some("1"), true),
        ] {
            let outcome = environment(value.map(str::to_owned));
            assert_eq!(outcome.is_err(), refused, "{value:?}: {outcome:?}");
        }
    }
}
