//! SwiGLU and GeGLU in plain `f64`.

use super::Gate;
use crate::gelu::{Form, reference as gelu};

/// `act(gate)`, and its derivative.
fn act(gate: Gate, x: f64) -> (f64, f64) {
    match gate {
        Gate::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        Gate::Gelu => (
            gelu::forward(&[x], Form::Tanh)[0],
            gelu::backward(&[1.0], &[x], Form::Tanh)[0],
        ),
    }
}

/// `act(gate)·up` for rows of `f` gates and `f` ups.
#[must_use]
pub fn forward(gate_up: &[f64], f: usize, gate: Gate) -> Vec<f64> {
    let row =
        |row: &[f64]| -> Vec<f64> { (0..f).map(|i| act(gate, row[i]).0 * row[i + f]).collect() };
    gate_up.chunks_exact(2 * f).flat_map(row).collect()
}

/// Gradient of `gate_up` from that of the result.
#[must_use]
pub fn backward(dy: &[f64], gate_up: &[f64], f: usize, gate: Gate) -> Vec<f64> {
    let mut d = vec![0.0; gate_up.len()];
    for ((d, dy), row) in d
        .chunks_exact_mut(2 * f)
        .zip(dy.chunks_exact(f))
        .zip(gate_up.chunks_exact(2 * f))
    {
        for i in 0..f {
            let (value, slope) = act(gate, row[i]);
            d[i] = dy[i] * row[i + f] * slope;
            d[i + f] = dy[i] * value;
        }
    }
    d
}
