//! GELU in plain `f64`, as its formula is written.

use std::f64::consts::PI;

fn tanh_of(x: f64) -> f64 {
    ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()
}

/// `½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
#[must_use]
pub fn forward(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| 0.5 * x * (1.0 + tanh_of(x))).collect()
}

/// Gradient of `x` from that of the result.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64]) -> Vec<f64> {
    let slope = |x: f64| {
        let t = tanh_of(x);
        let inner = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    };
    dy.iter().zip(x).map(|(dy, &x)| dy * slope(x)).collect()
}
