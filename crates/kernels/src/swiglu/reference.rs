//! SwiGLU in plain `f64`.

/// `silu(gate)·up` for rows of `f` gates and `f` ups.
#[must_use]
pub fn forward(gate_up: &[f64], f: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        (0..f)
            .map(|i| row[i] / (1.0 + (-row[i]).exp()) * row[i + f])
            .collect()
    };
    gate_up.chunks_exact(2 * f).flat_map(row).collect()
}

/// Gradient of `gate_up` from that of the result.
#[must_use]
pub fn backward(dy: &[f64], gate_up: &[f64], f: usize) -> Vec<f64> {
    let mut d = vec![0.0; gate_up.len()];
    for ((d, dy), row) in d
        .chunks_exact_mut(2 * f)
        .zip(dy.chunks_exact(f))
        .zip(gate_up.chunks_exact(2 * f))
    {
        for i in 0..f {
            let s = 1.0 / (1.0 + (-row[i]).exp());
            d[i] = dy[i] * row[i + f] * (s + row[i] * s * (1.0 - s));
            d[i + f] = dy[i] * row[i] * s;
        }
    }
    d
}
