//! Kernels: compiled by NVRTC for the device at hand, kept on disk by content.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys;
use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};

use super::error::ok;
use super::libraries::functions;
use super::{CudaError, Gpu};

/// One file of CUDA C++, with the headers of ours that it may include. It needs no header of
/// CUDA's.
#[derive(Debug)]
pub struct Source {
    /// Its name in messages.
    pub name: &'static str,
    /// Text in CUDA C++.
    pub text: &'static str,
    /// Names and texts of headers.
    pub headers: &'static [(&'static str, &'static str)],
}

/// Options of every compilation: C++17, IEEE division, root and subnormals.
const OPTIONS: [&str; 6] = [
    "--std=c++17",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--device-as-default-execution-space",
    "--extra-device-vectorization",
];

functions!(
    /// NVRTC, the compiler.
    Nvrtc {
        fn nvrtcCreateProgram(
            program: *mut nvrtcProgram,
            text: *const c_char,
            name: *const c_char,
            n_headers: c_int,
            headers: *const *const c_char,
            names: *const *const c_char,
        ) -> nvrtcResult;
        fn nvrtcCompileProgram(
            program: nvrtcProgram,
            n_options: c_int,
            options: *const *const c_char,
        ) -> nvrtcResult;
        fn nvrtcGetProgramLogSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult;
        fn nvrtcGetProgramLog(program: nvrtcProgram, log: *mut c_char) -> nvrtcResult;
        fn nvrtcGetCUBINSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult;
        fn nvrtcGetCUBIN(program: nvrtcProgram, cubin: *mut c_char) -> nvrtcResult;
        fn nvrtcDestroyProgram(program: *mut nvrtcProgram) -> nvrtcResult;
    }
);

/// Compiles a source for a target (`sm_90`) with `define` defined. Needs no GPU. Gives the cubin
/// and the compiler's report: registers, shared memory and spills of each kernel.
///
/// # Errors
/// When NVRTC is not found, or the source does not compile.
pub fn compile(
    source: &Source,
    define: &str,
    target: &str,
) -> Result<(Vec<u8>, String), CudaError> {
    let nvrtc = Nvrtc::get()?;
    let text = |s: &str| CString::new(s).expect("sources have no zero bytes");
    let failed = |log: String| CudaError::Compile {
        name: source.name.to_owned(),
        target: target.to_owned(),
        log,
    };
    let (body, name) = (text(source.text), text(source.name));
    let headers: Vec<(CString, CString)> = source
        .headers
        .iter()
        .map(|(name, body)| (text(name), text(body)))
        .collect();
    let names: Vec<*const c_char> = headers.iter().map(|h| h.0.as_ptr()).collect();
    let bodies: Vec<*const c_char> = headers.iter().map(|h| h.1.as_ptr()).collect();
    let options: Vec<CString> = OPTIONS
        .iter()
        .map(|o| text(o))
        .chain([
            text(&format!("--gpu-architecture={target}")),
            text(&format!("--define-macro={define}")),
            text("--ptxas-options=-v"),
        ])
        .collect();
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    // SAFETY: NVRTC's documented order of calls; every pointer outlives its call, and buffers
    // have the sizes that NVRTC asks for.
    unsafe {
        let mut program: nvrtcProgram = std::ptr::null_mut();
        let made = (nvrtc.nvrtcCreateProgram)(
            &raw mut program,
            body.as_ptr(),
            name.as_ptr(),
            headers.len() as c_int,
            bodies.as_ptr(),
            names.as_ptr(),
        );
        if made != nvrtcResult::NVRTC_SUCCESS {
            return Err(failed(format!("{made:?}")));
        }
        let compiled =
            (nvrtc.nvrtcCompileProgram)(program, options.len() as c_int, options.as_ptr());
        let mut bytes = 0;
        let _ = (nvrtc.nvrtcGetProgramLogSize)(program, &raw mut bytes);
        let mut log = vec![0u8; bytes.max(1)];
        let _ = (nvrtc.nvrtcGetProgramLog)(program, log.as_mut_ptr().cast());
        let log = CStr::from_bytes_until_nul(&log)
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut cubin = Vec::new();
        let mut got = compiled;
        if compiled == nvrtcResult::NVRTC_SUCCESS {
            let mut bytes = 0;
            got = (nvrtc.nvrtcGetCUBINSize)(program, &raw mut bytes);
            cubin = vec![0u8; bytes];
            if got == nvrtcResult::NVRTC_SUCCESS {
                got = (nvrtc.nvrtcGetCUBIN)(program, cubin.as_mut_ptr().cast());
            }
        }
        let _ = (nvrtc.nvrtcDestroyProgram)(&raw mut program);
        if got == nvrtcResult::NVRTC_SUCCESS {
            Ok((cubin, log))
        } else {
            Err(failed(format!("{got:?}\n{log}")))
        }
    }
}

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub sys::CUfunction);

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for Function {}

#[derive(Clone, Copy, Debug)]
struct Module(sys::CUmodule);

// SAFETY: as above.
unsafe impl Send for Module {}

/// Modules that were loaded and kernels that were looked up; never unloaded.
#[derive(Debug, Default)]
pub(super) struct Modules {
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    modules: HashMap<(usize, &'static str), Module>,
    /// By text, definition and name; and the dynamic shared memory that it is set up for.
    functions: HashMap<(usize, &'static str, &'static str), (Function, u32)>,
}

impl Modules {
    /// A kernel, compiled and loaded when it is first asked for. The context must be current.
    pub fn function(
        &self,
        gpu: &Gpu,
        source: &'static Source,
        define: &'static str,
        name: &'static str,
        shared: u32,
    ) -> Result<Function, CudaError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let text = source.text.as_ptr().addr();
        if let Some(&(function, have)) = found.functions.get(&(text, define, name))
            && shared <= have
        {
            return Ok(function);
        }
        let module = match found.modules.get(&(text, define)) {
            Some(&module) => module,
            None => {
                let cubin = cubin(source, define, &gpu.target())?;
                let mut module = std::ptr::null_mut();
                // SAFETY: a cubin of this target; the driver copies it.
                ok("cuModuleLoadData", unsafe {
                    sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast())
                })?;
                found.modules.insert((text, define), Module(module));
                Module(module)
            }
        };
        let c_name = CString::new(name).expect("a name has no zero byte");
        let mut function = std::ptr::null_mut();
        // SAFETY: a loaded module; writes one handle.
        ok("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&raw mut function, module.0, c_name.as_ptr())
        })
        .map_err(|e| CudaError::Compile {
            name: source.name.to_owned(),
            target: gpu.target(),
            log: format!("kernel {name}: {e}"),
        })?;
        if shared > 48 << 10 {
            // SAFETY: our own kernel.
            ok("cuFuncSetAttribute", unsafe {
                sys::cuFuncSetAttribute(
                    function,
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as c_int,
                )
            })?;
        }
        let entry = (Function(function), shared.max(48 << 10));
        found.functions.insert((text, define, name), entry);
        Ok(entry.0)
    }
}

/// The compiled form of a source: from the cache on disk, or compiled now and kept there. A cache
/// that cannot be written is no error.
fn cubin(source: &Source, define: &str, target: &str) -> Result<Vec<u8>, CudaError> {
    let mut hash = Hash::new();
    for text in [source.text, define, target].into_iter().chain(OPTIONS) {
        hash.add(text);
    }
    for (name, text) in source.headers {
        hash.add(name);
        hash.add(text);
    }
    let path = cache_folder().map(|f| f.join(format!("{:032x}.cubin", hash.0)));
    if let Some(kept) = path.as_ref().and_then(|p| std::fs::read(p).ok())
        && kept.starts_with(b"\x7fELF")
    {
        return Ok(kept);
    }
    let (cubin, _) = compile(source, define, target)?;
    if let Some(path) = path {
        // Written under another name and renamed, so that nobody reads half a file.
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let folder = path.parent().expect("a file has a folder");
        let kept = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&beside, &cubin))
            .and_then(|()| std::fs::rename(&beside, &path));
        if kept.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
    }
    Ok(cubin)
}

/// Where compiled kernels and measured choices are kept: `LOWTIDE_CACHE`, else the user's cache.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    if let Some(own) = var("LOWTIDE_CACHE") {
        return Some(PathBuf::from(own));
    }
    let base = var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| var("HOME").map(|h| PathBuf::from(h).join(".cache")))?;
    Some(base.join("lowtide"))
}

/// FNV-1a of 128 bits.
struct Hash(u128);

impl Hash {
    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds a text and its end.
    fn add(&mut self, text: &str) {
        for byte in text.bytes().chain([0xff]) {
            self.0 =
                (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}
