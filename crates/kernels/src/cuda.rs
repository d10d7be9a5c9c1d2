//! What the CUDA versions of all operations share: headers, how a source is named, and why each launch
//! is safe ([`Launch::launch`](lowtide_device::cuda::Launch::launch) asks for three things).
//!
//! 1. A launcher gives its kernel the arguments of the `.cu` next to it, in that order.
//! 2. Before that the operation has compared the bytes of every view with its shape (`expect`), from which
//!    grid, block and sizes are derived; every operation runs on odd shapes against its reference, and under
//!    compute-sanitizer, which sees any access outside of an allocation.
//! 3. Ranges of a device's memory are freed behind what is in its streams, nobody has a reference to
//!    them, and the plan's events order tasks on them.

use lowtide_workload::Dtype;

/// Headers that every source may include.
pub(crate) const HEADERS: &[(&str, &str)] = &[("common.cuh", include_str!("common.cuh"))];

/// A source next to the file that names it: `source!("rmsnorm", "rmsnorm.cu")`.
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
