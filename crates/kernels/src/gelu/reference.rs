//! GELU in plain `f64`, as its formulas are written.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::Form;

fn tanh_of(x: f64) -> f64 {
    ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()
}

/// `½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, `½·x·(1 + erf(x/√2))`, or `max(x, 0)`.
#[must_use]
pub fn forward(x: &[f64], form: Form) -> Vec<f64> {
    let whole = |x: f64| match form {
        Form::Tanh => 0.5 * (1.0 + tanh_of(x)),
        Form::Exact => 0.5 * libm::erfc(-x * FRAC_1_SQRT_2),
        Form::Relu => f64::from(u8::from(x > 0.0)),
    };
    x.iter().map(|&x| x * whole(x)).collect()
}

/// Gradient of `x` from that of the result.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64], form: Form) -> Vec<f64> {
    let slope = |x: f64| match form {
        Form::Tanh => {
            let t = tanh_of(x);
            let inner = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
        }
        Form::Exact => {
            let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
            0.5 * libm::erfc(-x * FRAC_1_SQRT_2) + x * density
        }
        Form::Relu => f64::from(u8::from(x > 0.0)),
    };
    dy.iter().zip(x).map(|(dy, &x)| dy * slope(x)).collect()
}
