//! SwiGLU against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Tensor, close, differences, dot, on_threads};

const SHAPES: [(usize, usize); 7] = [
    (1, 1),
    (7, 9),
    (8, 8),
    (9, 129),
    (1, 1000),
    (1000, 7),
    (129, 300),
];

#[test]
fn agrees_with_the_reference() {
    for (rows, f) in SHAPES {
        for dtype in DTYPES {
            let mut rng = Rng((rows * 31 + f) as u64);
            let gate_up = rng.tensor(rows * 2 * f, dtype, 6.0);
            let dy = rng.tensor(rows * f, dtype, 1.0);
            let (y, d) = on_threads(|q| {
                let mut y = Tensor::nan(rows * f, dtype);
                let mut d = Tensor::nan(rows * 2 * f, dtype);
                let (mut gate_up, mut dy) = (gate_up.clone(), dy.clone());
                forward(q, y.view(), gate_up.view(), rows, f, dtype);
                backward(q, d.view(), dy.view(), gate_up.view(), rows, f, dtype);
                (y, d)
            });
            let values = gate_up.values();
            close("y", &y, &reference::forward(&values, f), 1e-6);
            close(
                "d_gate_up",
                &d,
                &reference::backward(&dy.values(), &values, f),
                4e-6,
            );
        }
    }
}

#[test]
fn extreme_gates_saturate() {
    let gate_up = [-1000.0, -90.0, 90.0, 1000.0, 2.0, 2.0, 2.0, 2.0];
    let (mut x, mut y) = (Tensor::of(&gate_up, Dtype::F32), Tensor::nan(4, Dtype::F32));
    let mut dy = Tensor::of(&[1.0; 4], Dtype::F32);
    let mut d = Tensor::nan(8, Dtype::F32);
    let q = Queue::new("test", 1);
    forward(&q, y.view(), x.view(), 1, 4, Dtype::F32);
    backward(&q, d.view(), dy.view(), x.view(), 1, 4, Dtype::F32);
    close("y", &y, &[0.0, 0.0, 180.0, 2000.0], 1e-9);
    close("d", &d, &[0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 90.0, 1000.0], 1e-9);
}

#[test]
fn reference_gradient_is_the_slope() {
    let f = 9;
    let mut rng = Rng(1);
    let (x, dy) = (rng.vec(3 * 2 * f), rng.vec(3 * f));
    let g = reference::backward(&dy, &x, f);
    differences("d_gate_up", &x, &g, |x| dot(&dy, &reference::forward(x, f)));
}
