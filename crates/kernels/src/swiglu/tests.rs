//! SwiGLU against `f64`.

use lowtide_workload::Dtype;

use super::*;
use crate::testing::{DTYPES, Rng, Tensor, close, differences, dot, everywhere};

const GATES: [Gate; 2] = [Gate::Silu, Gate::Gelu];
const SHAPES: [(usize, usize); 10] = [
    (1, 1),
    (7, 9),
    (8, 8),
    (9, 129),
    (1, 1000),
    (1000, 7),
    (129, 300),
    // Groups of eight on a GPU: rows within a block, and blocks within a row.
    (300, 16),
    (7, 4864),
    (2, 13824),
];

#[test]
fn agrees_with_the_reference() {
    for (rows, f) in SHAPES {
        for (dtype, gate) in DTYPES.into_iter().flat_map(|d| GATES.map(|g| (d, g))) {
            let mut rng = Rng((rows * 31 + f) as u64);
            let gate_up = rng.tensor(rows * 2 * f, dtype, 6.0);
            let dy = rng.tensor(rows * f, dtype, 1.0);
            let done = everywhere(|q| {
                let mut y = Tensor::nan(rows * f, dtype);
                let mut d = Tensor::nan(rows * 2 * f, dtype);
                let (mut gate_up, mut dy) = (gate_up.clone(), dy.clone());
                let size = Rows {
                    rows,
                    width: f,
                    dtype,
                };
                let gate_up = gate_up.src(q);
                forward(
                    q,
                    Forward {
                        y: y.on(q),
                        gate_up,
                    },
                    size,
                    gate,
                );
                let o = Backward {
                    d_gate_up: d.on(q),
                    dy: dy.src(q),
                    gate_up,
                };
                backward(q, o, size, gate);
                (y, d)
            });
            let values = gate_up.values();
            let want = reference::forward(&values, f, gate);
            let want_d = reference::backward(&dy.values(), &values, f, gate);
            for (device, (y, d)) in &done {
                // GELU's own bounds at gates of 6, times ups of 6.
                let more = if gate == Gate::Gelu { 6.0 } else { 1.0 };
                close(&format!("y, {device}"), y, &want, 1e-6 * more);
                close(&format!("d_gate_up, {device}"), d, &want_d, 4e-6 * more);
            }
        }
    }
}

#[test]
fn extreme_gates_saturate() {
    let gate_up = [-1000.0, -90.0, 90.0, 1000.0, 2.0, 2.0, 2.0, 2.0];
    let x = Tensor::of(&gate_up, Dtype::F32);
    let done = everywhere(|q| {
        let (mut x, mut y) = (x.clone(), Tensor::nan(4, Dtype::F32));
        let mut dy = Tensor::of(&[1.0; 4], Dtype::F32);
        let mut d = Tensor::nan(8, Dtype::F32);
        let size = Rows {
            rows: 1,
            width: 4,
            dtype: Dtype::F32,
        };
        let gate_up = x.src(q);
        forward(
            q,
            Forward {
                y: y.on(q),
                gate_up,
            },
            size,
            Gate::Silu,
        );
        let o = Backward {
            d_gate_up: d.on(q),
            dy: dy.src(q),
            gate_up,
        };
        backward(q, o, size, Gate::Silu);
        (y, d)
    });
    for (device, (y, d)) in &done {
        let want = [0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 90.0, 1000.0];
        close(&format!("y, {device}"), y, &[0.0, 0.0, 180.0, 2000.0], 1e-9);
        close(&format!("d, {device}"), d, &want, 1e-9);
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    let f = 9;
    let mut rng = Rng(1);
    let (x, dy) = (rng.vec(3 * 2 * f), rng.vec(3 * f));
    for gate in GATES {
        let g = reference::backward(&dy, &x, f, gate);
        let at = |x: &[f64]| dot(&dy, &reference::forward(x, f, gate));
        differences("d_gate_up", &x, &g, at);
    }
}
