//! The end of a gradient: rounded once from its accumulator, padding made zero, and the partial
//! sums of its norm.
//!
//! Bound: bytes over memory rate: four read and two (bf16) or four (f32) written a number.

mod cpu;
mod cuda;
pub mod reference;
mod shares;

pub use shares::{add_halves, add_up};

use lowtide_device::{Dst, Queue, Src};
use lowtide_workload::{Dtype, NORM_CHUNK};

use crate::number::{expect, size};

/// Where a parameter lies inside its piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First number, counted from the piece's first.
    pub offset: usize,
    /// How many numbers it has.
    pub elements: usize,
}

impl Segment {
    /// Partial sums of its norm: one for each run of [`NORM_CHUNK`] numbers.
    #[must_use]
    pub fn norm_chunks(self) -> usize {
        self.elements.div_ceil(NORM_CHUNK as usize)
    }
}

/// `grad = round(acc)` in every segment, 0 in the padding around them, and `parts` the sums of
/// squares of the rounded values over runs of [`NORM_CHUNK`] numbers, segment by segment, run by
/// run.
///
/// `grad` is bf16 or f32 (`dtype_of_grad`) and `acc` is f32, both `piece_elements` long; `parts` is
/// f64. `params` is in order of offset, without overlap. Without `acc` the sums are in
/// `grad` already, which is f32 then. Finished, or in the stream of a CUDA queue, when the call returns.
///
/// Sums have a fixed order on each device, the same wherever the piece lies; the devices' orders
/// differ, so their sums agree within a few units of f64.
pub fn finish(
    q: &Queue,
    grad: Dst<'_>,
    parts: Dst<'_>,
    acc: Option<Src<'_>>,
    params: &[Segment],
    piece_elements: usize,
    dtype_of_grad: Dtype,
) {
    expect("grad", &grad, piece_elements, size(dtype_of_grad));
    match acc {
        Some(acc) => expect("acc", acc, piece_elements, size_of::<f32>()),
        None => assert_eq!(dtype_of_grad, Dtype::F32, "sums in place are f32"),
    }
    let chunks = params.iter().map(|s| s.norm_chunks()).sum();
    expect("parts", &parts, chunks, size_of::<f64>());
    let mut end = 0;
    for s in params {
        assert!(
            s.offset >= end,
            "segments in order of offset, without overlap"
        );
        end = s.offset + s.elements;
    }
    assert!(
        end <= piece_elements,
        "segments to {end} in a piece of {piece_elements}"
    );
    if let Some(q) = q.cuda() {
        return cuda::finish(q, grad, parts, acc, params, piece_elements, dtype_of_grad);
    }
    q.run(|| match dtype_of_grad {
        Dtype::Bf16 => {
            let acc = acc.expect("asserted above");
            cpu::round(grad, parts, acc, params, piece_elements);
        }
        Dtype::F32 => cpu::keep(grad, parts, acc, params, piece_elements),
    });
}

#[cfg(test)]
mod tests;
