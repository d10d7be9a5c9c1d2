//! Transfers between drives and a GPU's memory that pass no host memory: GPUDirect Storage, by NVIDIA's cuFile.
//!
//! cuFile also offers a compatibility mode, which copies through memory of the host and does not say so: that is what
//! lowtide does by itself, with a schedule. So it is used only where all of this holds: the library opens, it confirms
//! that its compatibility mode is off, it opens its driver and names a drive or a file system that it supports, it
//! registers all of the device's arena and the files, and bytes go both ways and are the same. Whatever else happens,
//! transfers pass the host, and [`NoDirect`] says why.
//!
//! The mode is switched off by `cuFileSetParameterBool`, which cuFile has since CUDA 12.9, and is asked for again when
//! the driver is open. A configuration file would do the same of older ones, but is named by a variable of the
//! environment, which a process with threads must not set. Declarations follow NVIDIA's public documentation of cuFile.

use std::ffi::{c_int, c_uint, c_void};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lowtide_tiers::{
    Arena, DeviceIo, Disk, DiskConfig, Extent, Fill, Kind, ProbeConfig, Rates, Reach, Request,
    Scratch, TierError,
};
use lowtide_units::Bytes;

use super::libraries::functions;
use super::{CudaError, DeviceMemory, Gpu, gpu};
use crate::Memory;
use crate::memory;

/// Why transfers between drives and a GPU pass host memory.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NoDirect {
    /// The library, its driver, or the registration of memory or a file.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The drives, or a transfer.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// It was asked not to, and would copy through the host all the same.
    #[error("cuFile keeps its compatibility mode on, which copies through host memory")]
    Compatibility,
    /// The library was not opened: nothing is there that it could use.
    #[error("nvidia-fs is not loaded, and cufile.json does not ask for use_pci_p2pdma")]
    NoWay,
    /// Neither nvidia-fs nor the kernel's peer-to-peer transfers are there.
    #[error("cuFile supports no drive and no file system of this machine")]
    Unsupported,
    /// A transfer reports that it was made, and the bytes are others.
    #[error("a {way} by cuFile changes bytes")]
    Changed {
        /// `read` or `write`.
        way: &'static str,
    },
}

/// What most calls answer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    code: c_int,
    cuda: c_int,
}

type Handle = *mut c_void;

/// What a file is, for the library.
#[repr(C)]
pub(super) struct Descriptor {
    kind: c_int,
    file: FileOf,
    /// Of file systems in user space; null.
    operations: *const c_void,
}

#[repr(C)]
union FileOf {
    fd: c_int,
    _other: *mut c_void,
}

/// A Linux file descriptor.
const OF_FD: c_int = 1;

/// What the driver says of itself: its head; what versions of the library have behind it differs.
#[repr(C)]
pub(super) struct Properties {
    _version: [c_uint; 2],
    _sizes: [usize; 2],
    /// A bit for each file system and kind of drive that it supports.
    supported: c_uint,
    _control: c_uint,
    /// A bit for each feature.
    features: c_uint,
    /// KiB of memory of GPUs that it takes for itself at most.
    cache: c_uint,
    _of_a_buffer: c_uint,
    /// KiB of memory of GPUs that a process may have registered at most.
    pinned: c_uint,
    _rest: [c_uint; 64],
}

/// Of the features: peer-to-peer transfers by the kernel, without nvidia-fs.
const PEER_TO_PEER: c_uint = 1 << 4;

/// Parameters of the library that are true or false.
const ALLOW_COMPATIBILITY: c_int = 1;
const FORCE_COMPATIBILITY: c_int = 2;

functions! {
    /// cuFile, and the functions of it that are called.
    Cufile {
        fn cuFileSetParameterBool(parameter: c_int, value: bool) -> Status;
        fn cuFileGetParameterBool(parameter: c_int, value: *mut bool) -> Status;
        fn cuFileDriverOpen() -> Status;
        fn cuFileDriverGetProperties(properties: *mut Properties) -> Status;
        fn cuFileHandleRegister(handle: *mut Handle, of: *mut Descriptor) -> Status;
        fn cuFileHandleDeregister(handle: Handle) -> ();
        fn cuFileBufRegister(base: *const c_void, bytes: usize, flags: c_int) -> Status;
        fn cuFileBufDeregister(base: *const c_void) -> Status;
        fn cuFileRead(
            handle: Handle, base: *mut c_void, bytes: usize, at: i64, offset: i64,
        ) -> isize;
        fn cuFileWrite(
            handle: Handle, base: *const c_void, bytes: usize, at: i64, offset: i64,
        ) -> isize;
    }
}

/// What the more usual codes mean.
fn meaning(code: c_int) -> &'static str {
    match code {
        5001 => "nvidia-fs is not loaded",
        5004 | 5005 => "another version of nvidia-fs",
        5007 => "not supported on this platform",
        5008 => "the file's system or drive is not supported",
        5009 => "the GPU is not supported",
        5011 => "an error of the CUDA driver",
        5016 => "more memory than cuFile may register (max_device_pinned_mem_size of cufile.json)",
        5018 => "the kind of file is not supported",
        5019 | 5020 => "the file is not open for direct I/O",
        _ => "see CUfileOpError in cufile.h",
    }
}

/// The library's answer as a result.
fn ok(call: &'static str, status: Status) -> Result<(), CudaError> {
    let what = match status {
        Status { code: 0, .. } => return Ok(()),
        Status { code: 5011, cuda } => format!("error 5011 ({}, {cuda})", meaning(5011)),
        Status { code, .. } => format!("error {code} ({})", meaning(code)),
    };
    Err(CudaError::Call { call, what })
}

impl Cufile {
    /// Turns compatibility mode off and opens the driver; refused where the mode stays on, or nothing is supported.
    /// Returns how many bytes of GPUs may be registered.
    fn start(&self) -> Result<Bytes, NoDirect> {
        let modes = [ALLOW_COMPATIBILITY, FORCE_COMPATIBILITY];
        for mode in modes {
            // SAFETY: the signature of NVIDIA's documentation.
            ok("cuFileSetParameterBool", unsafe {
                (self.cuFileSetParameterBool)(mode, false)
            })?;
        }
        // SAFETY: as above.
        ok("cuFileDriverOpen", unsafe { (self.cuFileDriverOpen)() })?;
        for mode in modes {
            let mut on = true;
            // SAFETY: writes one byte that is 0 or 1.
            ok("cuFileGetParameterBool", unsafe {
                (self.cuFileGetParameterBool)(mode, &raw mut on)
            })?;
            if on {
                return Err(NoDirect::Compatibility);
            }
        }
        // SAFETY: plain numbers, of which zero is one.
        let mut about: Properties = unsafe { std::mem::zeroed() };
        // SAFETY: writes its structure, which is no longer than this one.
        ok("cuFileDriverGetProperties", unsafe {
            (self.cuFileDriverGetProperties)(&raw mut about)
        })?;
        // What the library takes for itself may count as well.
        let most = about.pinned.saturating_sub(about.cache);
        match about.supported != 0 || about.features & PEER_TO_PEER != 0 {
            true => Ok(Bytes(u64::from(most) << 10)),
            false => Err(NoDirect::Unsupported),
        }
    }

    /// The library of this process, started, and how many bytes of GPUs may be registered.
    fn started() -> Result<(&'static Self, Bytes), NoDirect> {
        static STARTED: OnceLock<Result<Bytes, NoDirect>> = OnceLock::new();
        let library = Self::get()?;
        let start = || match has_a_way() {
            true => library.start(),
            false => Err(NoDirect::NoWay),
        };
        let most = STARTED.get_or_init(start).clone()?;
        Ok((library, most))
    }
}

/// Whether anything could carry bytes past the host: nvidia-fs is loaded, or the library's settings ask for the
/// kernel's peer-to-peer transfers. Looked at before the library's driver is opened, because where neither is there
/// opening it leaves a `cufile.log` wherever the process was started, which only the environment of the process can
/// change.
fn has_a_way() -> bool {
    let settings = std::env::var_os("CUFILE_ENV_PATH_JSON").map(PathBuf::from);
    let settings = settings.unwrap_or_else(|| PathBuf::from("/etc/cufile.json"));
    Path::new("/proc/driver/nvidia-fs").exists()
        || std::env::var("CUFILE_USE_PCIP2PDMA").is_ok_and(|on| on.eq_ignore_ascii_case("true"))
        || beginning(&settings).is_ok_and(|text| asks_for_peers(&text))
}

/// The first MiB of a file, more than settings have.
fn beginning(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a `cufile.json` asks for peer-to-peer transfers. The library's own reader allows comments, so this looks
/// for the line.
fn asks_for_peers(settings: &str) -> bool {
    settings.lines().any(|line| {
        let line = line.split("//").next().unwrap_or_default();
        let value = line.split_once("\"use_pci_p2pdma\"").map(|(_, rest)| rest);
        value.is_some_and(|v| v.trim_start_matches([' ', '\t', ':']).starts_with("true"))
    })
}

/// The memory of a GPU and the state files of a disk, registered with cuFile: how the drives reach that memory.
struct DirectFiles {
    library: &'static Cufile,
    /// Where the memory starts, and its length.
    base: u64,
    bytes: u64,
    handles: Vec<Handle>,
    /// What the handles are of: closed after they are gone.
    files: Vec<File>,
    /// The memory, which outlives its registration; none in tests, where it is the host's.
    memory: Option<DeviceMemory>,
}

// SAFETY: the library's handles may be used from every thread, and its calls too.
unsafe impl Send for DirectFiles {}
// SAFETY: as above.
unsafe impl Sync for DirectFiles {}

impl fmt::Debug for DirectFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, files) = (Bytes(self.bytes), self.handles.len());
        write!(f, "DirectFiles({bytes}, {files} files)")
    }
}

impl DirectFiles {
    /// Registers all of a device's memory and the files of a disk, opened once more.
    ///
    /// # Errors
    /// Why transfers would pass the host.
    fn open(memory: &DeviceMemory, disk: &Disk) -> Result<Self, NoDirect> {
        gpu::bind(memory.ordinal())?;
        let (library, _) = Cufile::started()?;
        let place = (memory.address(), memory.bytes().0);
        Self::register(library, place, Some(memory.clone()), disk.for_device()?)
    }

    fn register(
        library: &'static Cufile,
        (base, bytes): (u64, u64),
        memory: Option<DeviceMemory>,
        files: Vec<File>,
    ) -> Result<Self, NoDirect> {
        let address = pointer(base);
        // SAFETY: memory that is held until it is deregistered.
        ok("cuFileBufRegister", unsafe {
            (library.cuFileBufRegister)(address, bytes as usize, 0)
        })?;
        let mut this = Self {
            library,
            base,
            bytes,
            handles: Vec::new(),
            files,
            memory,
        };
        for file in &this.files {
            let fd = file.as_raw_fd();
            let mut of = Descriptor {
                kind: OF_FD,
                file: FileOf { fd },
                operations: std::ptr::null(),
            };
            let mut handle = std::ptr::null_mut();
            // SAFETY: writes a handle; the descriptor is read during the call only.
            ok("cuFileHandleRegister", unsafe {
                (library.cuFileHandleRegister)(&raw mut handle, &raw mut of)
            })?;
            this.handles.push(handle);
        }
        Ok(this)
    }
}

/// An address of the device as the library takes it.
fn pointer(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

impl Reach for DirectFiles {
    unsafe fn run(&self, drive: usize, io: DeviceIo) -> io::Result<usize> {
        if let Some(memory) = &self.memory {
            gpu::bind(memory.ordinal()).map_err(io::Error::other)?;
        }
        let offset = io.address.checked_sub(self.base).filter(|offset| {
            let end = offset.checked_add(io.bytes as u64);
            end.is_some_and(|end| end <= self.bytes)
        });
        let (Some(offset), Some(&handle)) = (offset, self.handles.get(drive)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (at, offset) = (io.at as i64, offset as i64);
        // SAFETY: registered memory and a registered file; the bytes are inside (checked above) and the caller's.
        let moved = unsafe {
            let base = pointer(self.base);
            match io.kind {
                Kind::Read => (self.library.cuFileRead)(handle, base, io.bytes, at, offset),
                Kind::Write => (self.library.cuFileWrite)(handle, base, io.bytes, at, offset),
            }
        };
        match moved {
            0.. => Ok(moved as usize),
            // The system's error, else one of the library's own.
            -1 => Err(io::Error::last_os_error()),
            code => {
                let code = c_int::try_from(-code).unwrap_or(0);
                let what = format!("cuFile: error {code} ({})", meaning(code));
                Err(io::Error::other(what))
            }
        }
    }
}

impl Drop for DirectFiles {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory
            && gpu::bind(memory.ordinal()).is_err()
        {
            return; // a device that has failed has nothing left to deregister
        }
        for &handle in &self.handles {
            // SAFETY: registered once, by `register`; no call with it is left, since each has a borrow of this.
            unsafe { (self.library.cuFileHandleDeregister)(handle) };
        }
        // SAFETY: as above.
        let _ = unsafe { (self.library.cuFileBufDeregister)(pointer(self.base)) };
    }
}

/// Shows, on files of their own in these directories, that the drives there reach a GPU's memory. Overwrites the first
/// bytes of it. Nobody may hold the directories.
///
/// # Errors
/// Why transfers pass the host.
pub fn try_direct<'d>(
    device: &mut Memory,
    dirs: impl Iterator<Item = &'d Path>,
) -> Result<(), NoDirect> {
    // Without the library there is nothing to make files for.
    Cufile::started()?;
    let scratch = dirs.map(Scratch::new).collect::<Result<Vec<_>, _>>()?;
    let config = DiskConfig::new(scratch.iter().map(|s| (s.path().to_owned(), 1.0)));
    let all = config.stripe * scratch.len() as u64;
    let disk = Disk::open(&config.fit(all)?, None)?;
    reach_direct(device, &disk)?;
    prove_direct(&disk, device)
}

/// Lets the drives of a disk reach a GPU's memory from now on.
///
/// # Errors
/// Why transfers pass the host.
///
/// # Panics
/// When the memory is the host's.
pub fn reach_direct(device: &Memory, disk: &Disk) -> Result<(), NoDirect> {
    let memory = device.on_cuda().expect("a GPU's memory");
    Ok(disk.reach_by(Arc::new(DirectFiles::open(memory, disk)?))?)
}

/// What the drive of a directory gives when it moves bytes from and to a GPU's memory past the host, and how many bytes
/// of GPUs a process may register for that; first it is shown that it does.
///
/// # Errors
/// Why transfers pass the host.
pub fn direct_rates(
    gpu: &Gpu,
    dir: &Path,
    config: &ProbeConfig,
) -> Result<(Rates, Bytes), NoDirect> {
    let (_, most) = Cufile::started()?;
    let mut device = Memory::cuda(gpu, config.memory())?;
    try_direct(&mut device, std::iter::once(dir))?;
    let memory = device.on_cuda().expect("a GPU's memory");
    let reach = |disk: &Disk| reach_direct(&device, disk);
    // SAFETY: the memory was made here and is nobody else's.
    let rates = unsafe { lowtide_tiers::probe_device(dir, config, memory.address(), reach) }?;
    Ok((rates, most))
}

/// Moves bytes of a pattern over a disk's drives both ways, past the host on one of them, and compares them. Overwrites
/// the first bytes of the disk and of `device`, the memory that its drives reach.
///
/// # Errors
/// [`NoDirect::Changed`], or what a transfer reports.
fn prove_direct(disk: &Disk, device: &mut Memory) -> Result<(), NoDirect> {
    let bytes = disk.bytes().0.min(device.bytes().0) / lowtide_tiers::ALIGN * lowtide_tiers::ALIGN;
    let address = match device.on_cuda() {
        Some(memory) => memory.address(),
        None => device.arena().base().expose_provenance() as u64,
    };
    let extent = Extent { offset: 0, bytes };
    let arena = Arena::new(Bytes(bytes), Fill::Zero)?;
    let range = arena.range(0, bytes)?;
    let pattern = |seed: u64| -> Vec<u8> {
        let byte = |i: u64| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        (0..bytes).map(byte).collect()
    };
    let host = |kind| {
        let request = Request {
            kind,
            extent,
            memory: range.clone(),
            deadline: 0,
        };
        // SAFETY: the arena is this function's, which looks at it when the request is done.
        unsafe { disk.submit(request) }.wait()
    };
    // SAFETY: the memory is borrowed alone, and looked at when the request is done.
    let direct = |kind| unsafe { disk.submit_device(kind, extent, address, 0) }.wait();
    // SAFETY: as above: no request on it is unfinished.
    let words = || unsafe { range.as_mut_slice() };
    // From the device to the drive, past the host; back through it.
    let sent = pattern(1);
    memory::store(device.part(0, bytes), &sent);
    direct(Kind::Write)?;
    host(Kind::Read)?;
    if *words() != *sent {
        return Err(NoDirect::Changed { way: "write" });
    }
    // The other way round, with other bytes.
    let sent = pattern(2);
    words().copy_from_slice(&sent);
    host(Kind::Write)?;
    direct(Kind::Read)?;
    let mut got = vec![0; bytes as usize];
    memory::load(device.part(0, bytes).into_src(), &mut got);
    match got == sent {
        true => Ok(()),
        false => Err(NoDirect::Changed { way: "read" }),
    }
}

#[cfg(test)]
#[path = "cufile_tests.rs"]
mod tests;
