//! The hyperbolic tangent against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Tensor, close, differences, dot, everywhere};

#[test]
fn agrees_with_the_reference() {
    for n in [1, 7, 129, 1000, 20_001] {
        for dtype in DTYPES {
            let mut rng = Rng(n as u64);
            let (x, dy) = (rng.tensor(n, dtype, 6.0), rng.tensor(n, dtype, 1.0));
            let done = everywhere(|q| {
                let (mut y, mut dx) = (Tensor::nan(n, dtype), Tensor::nan(n, dtype));
                let (mut x, mut dy) = (x.clone(), dy.clone());
                let mut to = y.on(q);
                let o = Forward {
                    y: to.again(),
                    x: x.src(q),
                };
                forward(q, o, n, dtype);
                let o = Backward {
                    dx: dx.on(q),
                    dy: dy.src(q),
                    y: to.into_src(),
                };
                backward(q, o, n, dtype);
                (y, dx)
            });
            let want = reference::forward(&x.values());
            for (device, (y, dx)) in &done {
                close(&format!("y, {device}"), y, &want, 1e-6);
                let want = reference::backward(&dy.values(), &y.values());
                close(&format!("dx, {device}"), dx, &want, 1e-6);
            }
        }
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    let mut rng = Rng(1);
    let x: Vec<f64> = rng.vec(40).iter().map(|x| 3.0 * x).collect();
    let dy = rng.vec(40);
    let g = reference::backward(&dy, &reference::forward(&x));
    differences("dx", &x, &g, |x| dot(&dy, &reference::forward(x)));
}
