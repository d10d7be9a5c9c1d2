//! First values of a new model, by counter: any range of any parameter gives the same numbers,
//! whoever asks and in whichever order.

use std::f64::consts::TAU;
use std::ops::Range;

use lowtide_workload::{ModelShape, ParamId};
use rayon::prelude::*;

use crate::params::{Role, specs};

/// Standard deviation of matrices and embeddings.
const STD: f64 = 0.02;
/// Elements of one piece of parallel work.
const PIECE: usize = 1 << 14;

/// Fills `out` with the elements `range` of a parameter of a new model.
///
/// Matrices and embeddings are normal with deviation 0.02, divided by sqrt(2L) where a product
/// adds to the residual stream (as GPT-2); norms are 1, biases 0. Element `e` of parameter `p`
/// depends on `seed`, `p` and `e` alone.
///
/// # Panics
/// When the model has no such parameter or element, or `out` is not as long as `range`.
pub fn random_init(
    shape: &ModelShape,
    seed: u64,
    param: ParamId,
    range: Range<u64>,
    out: &mut [f32],
) {
    let specs = specs(shape);
    let spec = &specs[param];
    assert!(
        range.start <= range.end && range.end <= spec.elements(),
        "elements {range:?}"
    );
    assert_eq!(
        range.end - range.start,
        out.len() as u64,
        "length of the output"
    );
    let std = match spec.role {
        Role::Norm => return out.fill(1.0),
        Role::Bias => return out.fill(0.0),
        Role::Matrix => STD,
        Role::Residual => STD / (2.0 * f64::from(shape.layers)).sqrt(),
    };
    out.par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(i, piece)| {
            let mut element = range.start + (i * PIECE) as u64;
            let mut rest = piece;
            while !rest.is_empty() {
                let four = normals(seed, param, element / 4);
                let first = (element % 4) as usize;
                let count = rest.len().min(4 - first);
                let (head, tail) = rest.split_at_mut(count);
                for (value, normal) in head.iter_mut().zip(&four[first..]) {
                    *value = (normal * std) as f32;
                }
                element += count as u64;
                rest = tail;
            }
        });
}

/// Four standard normals: Box and Muller's transform of one Philox block.
fn normals(seed: u64, param: ParamId, block: u64) -> [f64; 4] {
    let counter = [block as u32, (block >> 32) as u32, param.0, 0];
    let r = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let pair = |a: u32, b: u32| {
        // In (0, 1]: the logarithm is finite.
        let u = (f64::from(a) + 1.0) / 4_294_967_296.0;
        let radius = (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (TAU * f64::from(b) / 4_294_967_296.0).sin_cos();
        [radius * cos, radius * sin]
    };
    let ([a, b], [c, d]) = (pair(r[0], r[1]), pair(r[2], r[3]));
    [a, b, c, d]
}

/// Philox 4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        let (a_high, b_high) = ((a >> 32) as u32, (b >> 32) as u32);
        c = [
            b_high ^ c[1] ^ key[0],
            b as u32,
            a_high ^ c[3] ^ key[1],
            a as u32,
        ];
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123's test suite.
    #[test]
    fn philox_gives_the_published_numbers() {
        let zero = philox([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
        );
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }
}
