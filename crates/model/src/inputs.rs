//! The inputs of a micro-batch, as operations read them.

use lowtide_device::{Dst, memory};

/// Writes the four planes of [`lowtide_workload::Batch::input_bytes`], one behind another: tokens, labels,
/// positions, and where the document of each token starts, B·T numbers each.
///
/// # Panics
/// When the view is not as long as the planes.
pub fn store_inputs(planes: [&[i32]; 4], mut to: Dst<'_>) {
    let plane = to.bytes() / 4;
    for (i, numbers) in planes.into_iter().enumerate() {
        memory::store(to.lend(i * plane, plane), numbers);
    }
}
