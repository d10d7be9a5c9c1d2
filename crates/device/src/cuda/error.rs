//! Why a CUDA device cannot be used.

use std::path::PathBuf;

use cudarc::driver::sys;
use lowtide_units::Bytes;

/// Why a CUDA device cannot be used, or what it reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is not installed, or no GPU is visible to it.
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    /// The machine has fewer devices.
    #[error("cuda:{ordinal} does not exist: this machine has {have} CUDA device(s)")]
    Ordinal {
        /// The number asked for.
        ordinal: u32,
        /// How many there are.
        have: u32,
    },
    /// The chip is older than what the kernels are written for.
    #[error("{name} has compute capability {major}.{minor}; 8.0 or later is needed")]
    TooOld {
        /// Name of the GPU.
        name: String,
        /// First number of its compute capability.
        major: u32,
        /// Its capability, second part.
        minor: u32,
    },
    /// The driver is older than a library.
    #[error("the driver supports CUDA {have}, but {library} needs {need}")]
    Driver {
        /// What the driver supports, as `12.4`.
        have: String,
        /// Library that needs a newer driver.
        library: String,
        /// What it needs.
        need: String,
    },
    /// A library was not found.
    #[error("{} was not found; searched: {}", library.file(), list(.searched))]
    Library {
        /// Library that is missing.
        library: super::Library,
        /// Folders, in order.
        searched: Vec<PathBuf>,
    },
    /// A library was found, but is not what it must be.
    #[error("{path}: {what}")]
    BadLibrary {
        /// Path of the file that cannot be loaded.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A variable of the environment makes the libraries compute other numbers.
    #[error("{name}={value} makes NVIDIA's libraries round f32 products to TF32")]
    Environment {
        /// Name of the environment variable.
        name: &'static str,
        /// Value that it has.
        value: String,
    },
    /// What [`CudaError::PACE`] says is no rate of a link.
    #[error(
        "{}={value}: not rates of links, such as h2d:12GB/s,d2h:12GB/s",
        Self::PACE
    )]
    Pace {
        /// Value that it has.
        value: String,
    },
    /// [`CudaError::PACE`] is set, and there is no link.
    #[error(
        "{} slows down links to a GPU, and this run computes on the processor",
        Self::PACE
    )]
    NoLink,
    /// The device has less memory free.
    #[error("device memory: {need} needed, {free} free of {total}")]
    Memory {
        /// Bytes asked for.
        need: Bytes,
        /// Bytes that are free.
        free: Bytes,
        /// Bytes that the device has.
        total: Bytes,
    },
    /// Host memory could not be registered.
    #[error("registering {need} of host memory with the driver: {what} (limit of locked memory: {})",
        limit.map_or("none".to_owned(), |l| l.to_string()))]
    Pin {
        /// Bytes that were asked for.
        need: Bytes,
        /// `RLIMIT_MEMLOCK`, where there is one.
        limit: Option<Bytes>,
        /// The driver's message.
        what: String,
    },
    /// A kernel does not compile: our bug, or a compiler that we do not know.
    #[error("compiling {name} for {target}: {log}")]
    Compile {
        /// Name of the source.
        name: String,
        /// Architecture that it was compiled for.
        target: String,
        /// What the compiler said.
        log: String,
    },
    /// A call failed.
    #[error("{call}: {what}")]
    Call {
        /// What was called.
        call: &'static str,
        /// The driver's or library's message.
        what: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let all: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    all.join(", ")
}

/// The driver's message for a code.
pub(super) fn message(code: sys::CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: writes a pointer to a string that lives as long as the driver.
    let status = unsafe { sys::cuGetErrorString(code, &raw mut text) };
    if status != sys::CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("{code:?}");
    }
    // SAFETY: the driver's own string, ended by a zero.
    let text = unsafe { std::ffi::CStr::from_ptr(text) };
    format!("{} ({code:?})", text.to_string_lossy())
}

/// The driver's answer as a result.
pub(super) fn ok(call: &'static str, code: sys::CUresult) -> Result<(), CudaError> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Call {
        call,
        what: message(code),
    })
}

impl CudaError {
    /// The variable of the environment that slows links down.
    pub const PACE: &str = "LOWTIDE_PACE";
}
