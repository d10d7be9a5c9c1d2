//! Multiples and sums in plain `f64`.

/// `factor·x [+ residual]`.
#[must_use]
pub fn forward(x: &[f64], residual: Option<&[f64]>, factor: f64) -> Vec<f64> {
    let added = |i: usize| residual.map_or(0.0, |r| r[i]);
    let all = x.iter().enumerate();
    all.map(|(i, x)| factor * x + added(i)).collect()
}
