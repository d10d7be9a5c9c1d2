//! The end of a gradient, plainly.

use half::bf16;
use lowtide_workload::{Dtype, NORM_CHUNK};

use super::Segment;

/// What `finish` writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The piece, rounded, as exact values.
    pub grad: Vec<f64>,
    /// Sums of squares of each run.
    pub parts: Vec<f64>,
}

/// Rounds every segment of `acc`, leaves zero elsewhere, sums squares of what was rounded.
#[must_use]
pub fn finish(acc: &[f32], params: &[Segment], dtype: Dtype) -> Finished {
    let mut out = Finished {
        grad: vec![0.0; acc.len()],
        parts: Vec::new(),
    };
    for s in params {
        let range = s.offset..s.offset + s.elements;
        for i in range.clone() {
            out.grad[i] = match dtype {
                Dtype::Bf16 => bf16::from_f32(acc[i]).to_f64(),
                Dtype::F32 => f64::from(acc[i]),
            };
        }
        let runs = out.grad[range].chunks(NORM_CHUNK as usize);
        out.parts
            .extend(runs.map(|run| run.iter().map(|x| x * x).sum::<f64>()));
    }
    out
}
