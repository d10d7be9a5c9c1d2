//! RMSNorm against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, differences, dot, on_threads, plus};

const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (1, 7),
    (7, 8),
    (129, 9),
    (3, 129),
    (1, 1000),
    (1100, 33),
    (40, 4097),
];
/// Large, so that its place in the formula shows.
const EPS: f32 = 0.125;

#[track_caller]
fn check((rows, c): (usize, usize), dtype: Dtype) {
    let mut rng = Rng((rows * 31 + c) as u64);
    let x = rng.tensor(rows * c, dtype, 2.0);
    let w = rng.tensor(c, dtype, 1.0);
    let dy = rng.tensor(rows * c, dtype, 1.0);
    let residual = rng.tensor(rows * c, dtype, 1.0);
    let old = rng.tensor(c, Dtype::F32, 1.0);
    let (y, rstd) = on_threads(|q| {
        let (mut y, mut rstd) = (Tensor::nan(rows * c, dtype), Tensor::nan(rows, Dtype::F32));
        let (mut x, mut w) = (x.clone(), w.clone());
        forward(
            q,
            y.view(),
            rstd.view(),
            x.view(),
            w.view(),
            rows,
            c,
            EPS,
            dtype,
        );
        (y, rstd)
    });
    let want = reference::forward(&x.values(), &w.values(), f64::from(EPS));
    close("y", &y, &want.y, 2e-6);
    close("rstd", &rstd, &want.rstd, 2e-6);

    let want = reference::backward(&dy.values(), &x.values(), &rstd.values(), &w.values());
    for (with_residual, accumulate) in [(false, false), (true, true)] {
        let (dx, dw) = on_threads(|q| {
            let mut dx = Tensor::nan(rows * c, dtype);
            let mut dw = if accumulate {
                old.clone()
            } else {
                Tensor::nan(c, Dtype::F32)
            };
            let (mut dy, mut x, mut w) = (dy.clone(), x.clone(), w.clone());
            let (mut rstd, mut residual) = (rstd.clone(), residual.clone());
            let mut ws = Scratch::new(workspace(rows, c, lowtide_device::Make::Cpu));
            let residual = with_residual.then(|| residual.view());
            let (dxv, dwv, dyv, xv) = (dx.view(), dw.view(), dy.view(), x.view());
            let (rstd, w, ws) = (rstd.view(), w.view(), ws.view());
            backward(
                q, dxv, dwv, dyv, xv, rstd, w, residual, rows, c, accumulate, dtype, ws,
            );
            (dx, dw)
        });
        let slack = 4e-6 + 1e-7 * rows as f64;
        if with_residual {
            close("dx", &dx, &plus(&want.dx, &residual.values()), 1e-5);
        } else {
            close("dx", &dx, &want.dx, 1e-5);
        }
        if accumulate {
            close("dw", &dw, &plus(&want.dw, &old.values()), slack);
        } else {
            close("dw", &dw, &want.dw, slack);
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for shape in SHAPES {
        DTYPES.into_iter().for_each(|dtype| check(shape, dtype));
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    let (rows, c) = (5, 9);
    let mut rng = Rng(1);
    let (x, w, dy) = (rng.vec(rows * c), rng.vec(c), rng.vec(rows * c));
    let eps = f64::from(EPS);
    let rstd = reference::forward(&x, &w, eps).rstd;
    let g = reference::backward(&dy, &x, &rstd, &w);
    differences("dx", &x, &g.dx, |x| {
        dot(&dy, &reference::forward(x, &w, eps).y)
    });
    differences("dw", &w, &g.dw, |w| {
        dot(&dy, &reference::forward(&x, w, eps).y)
    });
}
