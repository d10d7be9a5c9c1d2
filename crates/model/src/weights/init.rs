//! First values of a new model, by counter: any range of any parameter gives the same numbers,
//! whoever asks and in whichever order.

use std::f64::consts::TAU;
use std::ops::Range;

use lowtide_workload::{ModelShape, ParamId};
use rayon::prelude::*;

use crate::families::{self, Norm};
use crate::params::{Role, specs};

/// Standard deviation of matrices and embeddings.
const STD: f64 = 0.02;
/// Elements of one piece of parallel work.
const PIECE: usize = 1 << 14;

/// Fills `out` with the elements `range` of a parameter of a new model.
///
/// Matrices and embeddings are normal with deviation 0.02, divided by sqrt(2L) where a product
/// adds to the residual stream (as GPT-2), unless the family has its own deviations; norms are 1 (0 where 1 is added
/// to them), biases 0. Element `e` of parameter `p` depends on `seed`, `p` and `e` alone.
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
        Role::Norm => {
            let one = families::of(shape.family).norm() != Norm::RmsPlusOne;
            return out.fill(if one { 1.0 } else { 0.0 });
        }
        Role::Bias => return out.fill(0.0),
        role => {
            let usual = match role {
                Role::Residual => STD / (2.0 * f64::from(shape.layers)).sqrt(),
                _ => STD,
            };
            let own = families::of(shape.family).deviation(spec.part, shape);
            own.unwrap_or(usual)
        }
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

/// A drawn projector: `rank` of the `features` vectors of the discrete cosine transform, each feature with a sign of
/// its own, and each column of length √(features / rank). Its columns are orthogonal as they are written down, any
/// range of them can be asked for, and no feature stands out: all numbers of a column are about as large.
///
/// Which vectors and which signs are a function of seed and parameter. Of full rank it is the identity.
#[derive(Debug)]
pub(crate) struct Drawn {
    features: u64,
    rank: u64,
    /// Which vectors of the transform.
    frequencies: Vec<u64>,
    /// A sign for each feature.
    signs: Vec<bool>,
    /// cos(πt / 2·features) for each t below 4·features.
    cosines: Vec<f64>,
}

impl Drawn {
    pub(crate) fn new(seed: u64, param: ParamId, features: u64, rank: u64) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        // The last word of the counter tells these numbers from those of random weights.
        let words = |i: u64, what: u32| philox([i as u32, (i >> 32) as u32, param.0, what], key);
        let below = |i: u64, n: u64| {
            let [a, b, ..] = words(i, 1);
            let bits = u64::from(a) | u64::from(b) << 32;
            ((u128::from(bits) * u128::from(n)) >> 64) as u64
        };
        // The first `rank` places of a shuffle (Fisher and Yates).
        let mut frequencies: Vec<u64> = (0..features).collect();
        for i in 0..rank {
            let other = i + below(i, features - i);
            frequencies.swap(i as usize, other as usize);
        }
        frequencies.truncate(rank as usize);
        let signs = (0..features).map(|i| words(i, 2)[0] & 1 == 1).collect();
        let step = TAU / (4.0 * features as f64);
        Self {
            features,
            rank,
            frequencies,
            signs,
            // Not the platform's, so that a seed's projectors are the same everywhere.
            cosines: (0..4 * features)
                .map(|t| libm::cos(t as f64 * step))
                .collect(),
        }
    }

    /// The number in a row (feature) and column.
    fn at(&self, row: u64, col: u64) -> f32 {
        if self.rank == self.features {
            return if row == col { 1.0 } else { 0.0 };
        }
        let frequency = self.frequencies[col as usize];
        // Vector k of the transform is cos(π(2i + 1)k / 2n), of length √(n / 2); the first one's is √n.
        let length = if frequency == 0 { 1.0 } else { 2.0f64.sqrt() };
        let turn = (2 * row + 1) * frequency % (4 * self.features);
        let x = length / (self.rank as f64).sqrt() * self.cosines[turn as usize];
        (if self.signs[row as usize] { -x } else { x }) as f32
    }

    /// Fills `out` with the elements `range`, row-major.
    pub(crate) fn fill(&self, range: Range<u64>, out: &mut [f32]) {
        assert!(range.end <= self.features * self.rank, "elements {range:?}");
        assert_eq!(range.end - range.start, out.len() as u64, "length");
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        pieces.for_each(|(i, piece)| {
            let first = range.start + (i * PIECE) as u64;
            for (element, x) in (first..).zip(piece) {
                *x = self.at(element / self.rank, element % self.rank);
            }
        });
    }
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

    /// Columns are orthogonal and of length √(features / rank), whatever the sizes; other seeds and parameters have
    /// other ones, and a range is a part of the whole.
    #[test]
    fn a_drawn_projector_is_orthogonal() {
        let mut constant = 0;
        // The last ones draw almost every vector, the constant one too.
        for (features, rank) in [
            (64, 16),
            (60, 8),
            (33, 8),
            (576, 144),
            (24, 24),
            (33, 32),
            (40, 32),
            (9, 8),
        ] {
            let whole = |seed, param| {
                let mut all = vec![f32::NAN; (features * rank) as usize];
                Drawn::new(seed, ParamId(param), features, rank).fill(0..features * rank, &mut all);
                all
            };
            let q = whole(7, 3);
            let drawn = Drawn::new(7, ParamId(3), features, rank);
            constant += usize::from(rank < features && drawn.frequencies.contains(&0));
            let r = rank as usize;
            let dot = |a: usize, b: usize| -> f64 {
                let rows = q.chunks_exact(r);
                rows.map(|row| f64::from(row[a]) * f64::from(row[b])).sum()
            };
            let length = features as f64 / rank as f64;
            for a in 0..r {
                for b in 0..r {
                    let want = if a == b { length } else { 0.0 };
                    let got = dot(a, b);
                    assert!(
                        (got - want).abs() < 1e-5,
                        "{features} {rank}: {a} {b} {got}"
                    );
                }
            }
            let mut part = vec![f32::NAN; 2 * r + 3];
            let range = rank + 1..3 * rank + 4;
            Drawn::new(7, ParamId(3), features, rank).fill(range.clone(), &mut part);
            assert_eq!(part, q[range.start as usize..range.end as usize]);
            if rank < features {
                assert_ne!(q, whole(8, 3));
                assert_ne!(q, whole(7, 4));
                let most = q.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let bound = (2.0 / rank as f64).sqrt() as f32;
                assert!(most <= bound * 1.0001, "{most} {bound}");
            }
        }
        assert!(constant > 0);
    }

    /// The same bits on every platform: no function of its library decides one.
    #[test]
    fn a_drawn_projector_has_the_bits_that_it_had() {
        let words = |features: u64, rank: u64| -> u64 {
            let mut all = vec![f32::NAN; (features * rank) as usize];
            Drawn::new(7, ParamId(3), features, rank).fill(0..features * rank, &mut all);
            let fold = |h: u64, x: &f32| (h ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3);
            all.iter().fold(0xcbf2_9ce4_8422_2325, fold)
        };
        let got = [(64, 16), (576, 144), (1000, 8), (4096, 64)].map(|(n, r)| words(n, r));
        assert_eq!(
            got.map(|h| format!("{h:016x}")),
            [
                "5a34fa0c4481f1f1",
                "3515316c902a0d81",
                "4e6c90db5bcb11e9",
                "a49ee9bd764e47d5"
            ]
        );
    }

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
