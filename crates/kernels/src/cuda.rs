//! What the CUDA versions of all operations share: headers, and how a source is named.

use lowtide_workload::Dtype;

/// Headers that every source may include.
pub(crate) const HEADERS: &[(&str, &str)] = &[("common.cuh", include_str!("common.cuh"))];

/// A source beside the file that names it: `source!("rmsnorm", "rmsnorm.cu")`.
macro_rules! source {
    ($name:literal, $file:literal) => {
        lowtide_device::cuda::Source {
            name: concat!($name, ".cu"),
            text: include_str!($file),
            headers: $crate::cuda::HEADERS,
        }
    };
}
pub(crate) use source;

/// What a source is compiled with for tensors of this type.
pub(crate) fn define(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "BF16",
        Dtype::F32 => "F32",
    }
}
