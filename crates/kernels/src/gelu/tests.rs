//! GELU against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Tensor, close, differences, dot, on_threads};

#[test]
fn agrees_with_the_reference() {
    for n in [1, 7, 8, 9, 129, 1000, 100_001] {
        for dtype in DTYPES {
            let mut rng = Rng(n as u64);
            let (x, dy) = (rng.tensor(n, dtype, 6.0), rng.tensor(n, dtype, 1.0));
            let (y, dx) = on_threads(|q| {
                let (mut y, mut dx) = (Tensor::nan(n, dtype), Tensor::nan(n, dtype));
                let (mut x, mut dy) = (x.clone(), dy.clone());
                forward(q, y.view(), x.view(), n, dtype);
                backward(q, dx.view(), dy.view(), x.view(), n, dtype);
                (y, dx)
            });
            close("y", &y, &reference::forward(&x.values()), 2e-6);
            close(
                "dx",
                &dx,
                &reference::backward(&dy.values(), &x.values()),
                4e-6,
            );
        }
    }
}

#[test]
fn extreme_inputs_saturate() {
    let mut x = Tensor::of(&[-1000.0, -20.0, 20.0, 1000.0], Dtype::F32);
    let [mut y, mut dx] = [Tensor::nan(4, Dtype::F32), Tensor::nan(4, Dtype::F32)];
    let mut dy = Tensor::of(&[1.0; 4], Dtype::F32);
    let q = Queue::new("test", 1);
    forward(&q, y.view(), x.view(), 4, Dtype::F32);
    backward(&q, dx.view(), dy.view(), x.view(), 4, Dtype::F32);
    close("y", &y, &[0.0, 0.0, 20.0, 1000.0], 1e-9);
    close("dx", &dx, &[0.0, 0.0, 1.0, 1.0], 1e-9);
}

#[test]
fn reference_gradient_is_the_slope() {
    let mut rng = Rng(1);
    let x: Vec<f64> = rng.vec(40).iter().map(|x| 3.0 * x).collect();
    let dy = rng.vec(40);
    let g = reference::backward(&dy, &x);
    differences("dx", &x, &g, |x| dot(&dy, &reference::forward(x)));
}
