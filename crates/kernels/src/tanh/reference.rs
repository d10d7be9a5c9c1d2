//! The hyperbolic tangent in plain `f64`.

/// `tanh(x)`.
#[must_use]
pub fn forward(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.tanh()).collect()
}

/// Gradient of the input from those of the result and the result.
#[must_use]
pub fn backward(dy: &[f64], y: &[f64]) -> Vec<f64> {
    dy.iter().zip(y).map(|(dy, y)| dy * (1.0 - y * y)).collect()
}
