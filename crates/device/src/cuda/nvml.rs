//! What the driver says that this process holds on a device, through its management library.

use std::ffi::{c_char, c_uint, c_void};

use lowtide_units::Bytes;

/// Device memory as the driver counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// All of this process: context, modules, libraries' workspaces and allocations. `None` where
    /// the driver does not say it of processes (some virtual machines and containers).
    pub process: Option<Bytes>,
    /// In use on the device, by everybody.
    pub used: Bytes,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Process {
    pid: c_uint,
    used: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
#[derive(Default)]
struct MemoryInfo {
    total: u64,
    free: u64,
    used: u64,
}

type Status = c_uint;
type Device = *mut c_void;

/// Reads it. `None` where the library is missing or refuses. Devices are counted by the library,
/// which does not know of `CUDA_VISIBLE_DEVICES`; `bus` (`0000:1b:00.0`) names the device.
#[must_use]
pub fn process_memory(bus: &str) -> Option<ProcessMemory> {
    let bus = std::ffi::CString::new(bus).ok()?;
    // SAFETY: the signatures are those of NVIDIA's nvml.h; every pointer outlives its call and
    // buffers are as long as said.
    unsafe {
        let lib = libloading::Library::new("libnvidia-ml.so.1").ok()?;
        let init = lib
            .get::<unsafe extern "C" fn() -> Status>(b"nvmlInit_v2\0")
            .ok()?;
        let shutdown = lib
            .get::<unsafe extern "C" fn() -> Status>(b"nvmlShutdown\0")
            .ok()?;
        let by_bus = lib
            .get::<unsafe extern "C" fn(*const c_char, *mut Device) -> Status>(
                b"nvmlDeviceGetHandleByPciBusId_v2\0",
            )
            .ok()?;
        let info = lib
            .get::<unsafe extern "C" fn(Device, *mut MemoryInfo) -> Status>(
                b"nvmlDeviceGetMemoryInfo\0",
            )
            .ok()?;
        let processes = lib
            .get::<unsafe extern "C" fn(Device, *mut c_uint, *mut Process) -> Status>(
                b"nvmlDeviceGetComputeRunningProcesses_v3\0",
            )
            .ok()?;
        if init() != 0 {
            return None;
        }
        let mut device = std::ptr::null_mut();
        let mut memory = MemoryInfo::default();
        let answer = (by_bus(bus.as_ptr(), &raw mut device) == 0
            && info(device, &raw mut memory) == 0)
            .then(|| {
                let mut all = [Process::default(); 64];
                let mut n = all.len() as c_uint;
                let listed = processes(device, &raw mut n, all.as_mut_ptr()) == 0;
                let mine = std::process::id();
                let process = all[..if listed { n as usize } else { 0 }]
                    .iter()
                    .find(|p| p.pid == mine && p.used != u64::MAX)
                    .map(|p| Bytes(p.used));
                ProcessMemory {
                    process,
                    used: Bytes(memory.used),
                }
            });
        shutdown();
        answer
    }
}
