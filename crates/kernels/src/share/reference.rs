//! Shares of gradients in plain `f64`.

/// `[sum +] x`.
#[must_use]
pub fn add(sum: Option<&[f64]>, x: &[f64]) -> Vec<f64> {
    let before = |i: usize| sum.map_or(0.0, |sum| sum[i]);
    x.iter().enumerate().map(|(i, x)| before(i) + x).collect()
}
