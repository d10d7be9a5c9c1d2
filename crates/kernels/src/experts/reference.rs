//! Rows around the experts' products in plain `f64`.

use crate::swiglu::{Gate, reference as swiglu};

/// The row of its token for each sorted row.
#[must_use]
pub fn gather(x: &[f64], tokens: &[i32], width: usize) -> Vec<f64> {
    let row = |&t: &i32| x[t as usize * width..][..width].to_vec();
    tokens.iter().flat_map(row).collect()
}

/// The sum of each token's sorted rows and its residual.
#[must_use]
pub fn combine(x: &[f64], residual: &[f64], tokens: &[i32], width: usize) -> Vec<f64> {
    let mut y = residual.to_vec();
    for (row, &t) in tokens.iter().enumerate() {
        for i in 0..width {
            y[t as usize * width + i] += x[row * width + i];
        }
    }
    y
}

/// `weight·silu(gate)·up`.
#[must_use]
pub fn act(gate_up: &[f64], weights: &[f64], f: usize) -> Vec<f64> {
    let plain = swiglu::forward(gate_up, f, Gate::Silu);
    let rows = plain.chunks_exact(f).zip(weights);
    rows.flat_map(|(row, w)| row.iter().map(move |y| w * y))
        .collect()
}

/// Gradients of `gate_up` and of the weights.
#[must_use]
pub fn act_backward(
    dy: &[f64],
    gate_up: &[f64],
    weights: &[f64],
    f: usize,
) -> (Vec<f64>, Vec<f64>) {
    let plain = swiglu::forward(gate_up, f, Gate::Silu);
    let rows = dy.chunks_exact(f).zip(weights);
    let weighted: Vec<f64> = rows
        .flat_map(|(row, w)| row.iter().map(move |y| w * y))
        .collect();
    let products = dy.chunks_exact(f).zip(plain.chunks_exact(f));
    let d_weights = products.map(|(dy, y)| dy.iter().zip(y).map(|(a, b)| a * b).sum());
    let d_weights = d_weights.collect();
    (
        swiglu::backward(&weighted, gate_up, f, Gate::Silu),
        d_weights,
    )
}
