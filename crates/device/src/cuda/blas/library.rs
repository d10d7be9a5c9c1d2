//! The library's functions, and its descriptors as values that clean up after themselves.

use std::ffi::{CStr, c_char, c_int, c_void};

use cudarc::cublaslt::sys::{
    self, cublasLtHandle_t, cublasLtMatmulAlgoCapAttributes_t as Cap,
    cublasLtMatmulAlgoConfigAttributes_t as Config, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Desc, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Prefer, cublasLtMatrixLayout_t, cudaDataType,
};

use super::choice::Words;
use crate::cuda::CudaError;
use crate::cuda::libraries::functions;

/// The library's status; a number, because a newer library may know more of them than we do.
pub(super) type Status = u32;

pub(super) const SUCCESS: Status = sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS as Status;
pub(super) const INVALID_VALUE: Status = sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE as Status;
pub(super) const NOT_SUPPORTED: Status = sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED as Status;

/// `cublasLtMatmulHeuristicResult_t`, with the status as a number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    pub algo: Words,
    pub workspace: usize,
    pub state: Status,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Found>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

functions!(
    /// cuBLASLt, and the functions of it that are called.
    CublasLt {
        fn cublasLtCreate(handle: *mut cublasLtHandle_t) -> Status;
        fn cublasLtGetVersion() -> usize;
        fn cublasLtGetStatusName(status: Status) -> *const c_char;
        fn cublasLtMatmulDescCreate(
            desc: *mut cublasLtMatmulDesc_t,
            compute: sys::cublasComputeType_t,
            scale: cudaDataType,
        ) -> Status;
        fn cublasLtMatmulDescDestroy(desc: cublasLtMatmulDesc_t) -> Status;
        fn cublasLtMatmulDescSetAttribute(
            desc: cublasLtMatmulDesc_t,
            attribute: Desc,
            value: *const c_void,
            bytes: usize,
        ) -> Status;
        fn cublasLtMatrixLayoutCreate(
            layout: *mut cublasLtMatrixLayout_t,
            format: cudaDataType,
            rows: u64,
            cols: u64,
            stride: i64,
        ) -> Status;
        fn cublasLtMatrixLayoutDestroy(layout: cublasLtMatrixLayout_t) -> Status;
        fn cublasLtMatmulPreferenceCreate(preference: *mut cublasLtMatmulPreference_t) -> Status;
        fn cublasLtMatmulPreferenceDestroy(preference: cublasLtMatmulPreference_t) -> Status;
        fn cublasLtMatmulPreferenceSetAttribute(
            preference: cublasLtMatmulPreference_t,
            attribute: Prefer,
            value: *const c_void,
            bytes: usize,
        ) -> Status;
        fn cublasLtMatmulAlgoGetHeuristic(
            handle: cublasLtHandle_t,
            desc: cublasLtMatmulDesc_t,
            a: cublasLtMatrixLayout_t,
            b: cublasLtMatrixLayout_t,
            c: cublasLtMatrixLayout_t,
            d: cublasLtMatrixLayout_t,
            preference: cublasLtMatmulPreference_t,
            most: c_int,
            found: *mut Found,
            count: *mut c_int,
        ) -> Status;
        fn cublasLtMatmulAlgoCheck(
            handle: cublasLtHandle_t,
            desc: cublasLtMatmulDesc_t,
            a: cublasLtMatrixLayout_t,
            b: cublasLtMatrixLayout_t,
            c: cublasLtMatrixLayout_t,
            d: cublasLtMatrixLayout_t,
            algo: *const Words,
            found: *mut Found,
        ) -> Status;
        fn cublasLtMatmulAlgoConfigGetAttribute(
            algo: *const Words,
            attribute: Config,
            value: *mut c_void,
            bytes: usize,
            written: *mut usize,
        ) -> Status;
        fn cublasLtMatmulAlgoCapGetAttribute(
            algo: *const Words,
            attribute: Cap,
            value: *mut c_void,
            bytes: usize,
            written: *mut usize,
        ) -> Status;
        fn cublasLtMatmul(
            handle: cublasLtHandle_t,
            desc: cublasLtMatmulDesc_t,
            alpha: *const c_void,
            a: *const c_void,
            a_layout: cublasLtMatrixLayout_t,
            b: *const c_void,
            b_layout: cublasLtMatrixLayout_t,
            beta: *const c_void,
            c: *const c_void,
            c_layout: cublasLtMatrixLayout_t,
            d: *mut c_void,
            d_layout: cublasLtMatrixLayout_t,
            algo: *const Words,
            workspace: *mut c_void,
            workspace_bytes: usize,
            stream: sys::cudaStream_t,
        ) -> Status;
    }
);

impl CublasLt {
    pub fn ok(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: gives a string that lives as long as the library, for every number.
        let name = unsafe { (self.cublasLtGetStatusName)(status) };
        let name = if name.is_null() {
            "unknown".into()
        } else {
            // SAFETY: as above; it ends with a zero.
            unsafe { CStr::from_ptr(name) }.to_string_lossy()
        };
        Err(CudaError::Call {
            call,
            what: format!("{name} ({status})"),
        })
    }
}

/// What is computed.
pub(super) struct Operation(pub cublasLtMatmulDesc_t, &'static CublasLt);

impl Operation {
    pub fn new(lib: &'static CublasLt) -> Result<Self, CudaError> {
        let mut desc = std::ptr::null_mut();
        // SAFETY: writes one handle.
        lib.ok("cublasLtMatmulDescCreate", unsafe {
            (lib.cublasLtMatmulDescCreate)(
                &raw mut desc,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cudaDataType::CUDA_R_32F,
            )
        })?;
        Ok(Self(desc, lib))
    }

    pub fn set<T: Copy>(&self, attribute: Desc, value: &T) -> Result<(), CudaError> {
        // SAFETY: our own descriptor; copies the value, whose size it compares.
        self.1.ok("cublasLtMatmulDescSetAttribute", unsafe {
            (self.1.cublasLtMatmulDescSetAttribute)(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: our own descriptor; launches have copied what they need of it.
        let _ = unsafe { (self.1.cublasLtMatmulDescDestroy)(self.0) };
    }
}

/// How a matrix lies in memory.
pub(super) struct Layout(pub cublasLtMatrixLayout_t, &'static CublasLt);

impl Layout {
    /// A matrix that is stored column by column, `stride` numbers from one to the next.
    pub fn new(
        lib: &'static CublasLt,
        format: cudaDataType,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, CudaError> {
        let mut layout = std::ptr::null_mut();
        // SAFETY: writes one handle.
        lib.ok("cublasLtMatrixLayoutCreate", unsafe {
            (lib.cublasLtMatrixLayoutCreate)(
                &raw mut layout,
                format,
                rows as u64,
                cols as u64,
                stride as i64,
            )
        })?;
        Ok(Self(layout, lib))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as for an operation.
        let _ = unsafe { (self.1.cublasLtMatrixLayoutDestroy)(self.0) };
    }
}

/// What the library is to look for.
pub(super) struct Preference(pub cublasLtMatmulPreference_t, &'static CublasLt);

impl Preference {
    pub fn new(lib: &'static CublasLt) -> Result<Self, CudaError> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: writes one handle.
        lib.ok("cublasLtMatmulPreferenceCreate", unsafe {
            (lib.cublasLtMatmulPreferenceCreate)(&raw mut preference)
        })?;
        Ok(Self(preference, lib))
    }

    pub fn set<T: Copy>(&self, attribute: Prefer, value: &T) -> Result<(), CudaError> {
        // SAFETY: our own handle; copies the value, whose size it compares.
        self.1.ok("cublasLtMatmulPreferenceSetAttribute", unsafe {
            (self.1.cublasLtMatmulPreferenceSetAttribute)(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        })
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: our own handle.
        let _ = unsafe { (self.1.cublasLtMatmulPreferenceDestroy)(self.0) };
    }
}
