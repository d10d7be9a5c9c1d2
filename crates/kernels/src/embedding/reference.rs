//! The embedding in plain `f64`.

/// `w[token] + wpe[position]`; without positions both `wpe` and `positions` are empty.
#[must_use]
pub fn forward(tokens: &[i32], w: &[f64], wpe: &[f64], positions: &[i32], c: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for (row, token) in tokens.iter().enumerate() {
        for i in 0..c {
            let position = positions.get(row).map_or(0.0, |p| wpe[*p as usize * c + i]);
            y.push(w[*token as usize * c + i] + position);
        }
    }
    y
}

/// The gradient of a table of `vocab` rows.
#[must_use]
pub fn backward(dy: &[f64], tokens: &[i32], c: usize, vocab: usize) -> Vec<f64> {
    let mut dw = vec![0.0; vocab * c];
    for (dy, token) in dy.chunks_exact(c).zip(tokens) {
        for (dw, dy) in dw[*token as usize * c..][..c].iter_mut().zip(dy) {
            *dw += dy;
        }
    }
    dw
}

/// What noise is made of for a number, from -1 to 1: SplitMix64 of seed and step, then of the row of the step's batch,
/// then a hash of 32 bits of the column, whose upper 24 bits count.
#[must_use]
pub fn drawn(seed: u64, step: u64, row: u64, column: u32) -> f64 {
    let mix = |x: u64| {
        let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let z = mix(mix(mix(seed).wrapping_add(step)).wrapping_add(row));
    let (a, b) = (z as u32, (z >> 32) as u32);
    let x = column.wrapping_add(a);
    let x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad);
    let x = (x ^ (x >> 15) ^ b).wrapping_mul(0xd35a_2d97);
    let x = x ^ (x >> 15);
    f64::from(x >> 8) / f64::from(1 << 23) - 1.0
}

/// `y + drawn·α/√(T·C)` of rows of C numbers, the first of which is row `first` of the step's batch.
#[must_use]
pub fn noisy(
    y: &[f64],
    (seq, c): (usize, usize),
    alpha: f64,
    (seed, step, first): (u64, u64, u64),
) -> Vec<f64> {
    let largest = alpha / ((seq * c) as f64).sqrt();
    let all = y.iter().enumerate();
    let of = |(i, y): (usize, &f64)| {
        let row = first + (i / c) as u64;
        y + drawn(seed, step, row, (i % c) as u32) * largest
    };
    all.map(of).collect()
}
