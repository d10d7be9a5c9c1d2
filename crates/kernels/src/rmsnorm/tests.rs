//! RMSNorm against `f64`.

use lowtide_workload::Dtype;

use super::*;
use crate::operands::Sum;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, differences, dot, everywhere, plus};

const SHAPES: [(usize, usize); 22] = [
    (1, 1),
    (1, 7),
    (7, 8),
    (129, 9),
    (3, 129),
    (1, 1000),
    (1100, 33),
    (40, 4097),
    // A warp a row on a GPU, whole and in part; many runs, of which the last is short.
    (9, 64),
    (300, 896),
    (2500, 128),
    (17, 1024),
    // Teams of two to five warps forward, of four to ten backward, where they take many runs' rows in turn.
    (21, 2048),
    (19, 2064),
    (2600, 2048),
    (70, 4096),
    (9, 5120),
    // The widest of a team backward, then forward, and wider.
    (3, 8192),
    (3, 8200),
    (3, 13824),
    (2, 16384),
    (2, 16392),
];
/// Large, so that its place in the formula shows.
const EPS: f32 = 0.125;

#[track_caller]
fn check((rows, c): (usize, usize), dtype: Dtype, added: Plus) {
    let size = Rows {
        rows,
        width: c,
        dtype,
    };
    let mut rng = Rng((rows * 31 + c) as u64);
    let x = rng.tensor(rows * c, dtype, 2.0);
    let w = rng.tensor(c, dtype, 1.0);
    let dy = rng.tensor(rows * c, dtype, 1.0);
    let residual = rng.tensor(rows * c, dtype, 1.0);
    let old = rng.tensor(c, Dtype::F32, 1.0);
    let forwards = everywhere(|q| {
        let (mut y, mut rstd) = (Tensor::nan(rows * c, dtype), Tensor::nan(rows, Dtype::F32));
        let (mut x, mut w) = (x.clone(), w.clone());
        let o = Forward {
            y: y.on(q),
            rstd: rstd.on(q),
            x: x.src(q),
            w: w.src(q),
        };
        forward(q, o, size, EPS, added);
        (y, rstd)
    });
    let number = if added == Plus::One { 1.0 } else { 0.0 };
    let weights: Vec<f64> = w.values().iter().map(|w| w + number).collect();
    let want = reference::forward(&x.values(), &weights, f64::from(EPS));
    for (device, (y, rstd)) in &forwards {
        close(&format!("y, {device}"), y, &want.y, 2e-6);
        close(&format!("rstd, {device}"), rstd, &want.rstd, 2e-6);
    }
    let rstd = Tensor::of(&forwards[0].1.1.values(), Dtype::F32);

    let want = reference::backward(&dy.values(), &x.values(), &rstd.values(), &weights);
    for (with_residual, accumulate) in [(false, false), (true, true)] {
        let gradients = everywhere(|q| {
            let mut dx = Tensor::nan(rows * c, dtype);
            let mut dw = if accumulate {
                old.clone()
            } else {
                Tensor::nan(c, Dtype::F32)
            };
            let (mut dy, mut x, mut w) = (dy.clone(), x.clone(), w.clone());
            let (mut rstd, mut residual) = (rstd.clone(), residual.clone());
            let mut ws = Scratch::new(workspace(rows, c, q.make()));
            let o = Backward {
                dx: dx.on(q),
                dw: Some(Sum {
                    to: dw.on(q),
                    accumulate,
                }),
                dy: dy.src(q),
                x: x.src(q),
                rstd: rstd.src(q),
                w: w.src(q),
                residual: with_residual.then(|| residual.src(q)),
            };
            backward(q, o, size, added, ws.on(q));
            (dx, dw)
        });
        let slack = 4e-6 + 1e-7 * rows as f64;
        for (device, (dx, dw)) in &gradients {
            let name = |what| format!("{what}, {device}, {rows} rows of {c}");
            if with_residual {
                close(&name("dx"), dx, &plus(&want.dx, &residual.values()), 1e-5);
            } else {
                close(&name("dx"), dx, &want.dx, 1e-5);
            }
            if accumulate {
                close(&name("dw"), dw, &plus(&want.dw, &old.values()), slack);
            } else {
                close(&name("dw"), dw, &want.dw, slack);
            }
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for shape in SHAPES {
        let plain = |dtype| check(shape, dtype, Plus::Nothing);
        DTYPES.into_iter().for_each(plain);
    }
    for shape in [(7, 8), (40, 4097), (300, 896), (21, 2048)] {
        let one = |dtype| check(shape, dtype, Plus::One);
        DTYPES.into_iter().for_each(one);
    }
}

/// Parts of a larger tensor start at any number, not only where 16 bytes may be read at once.
#[test]
fn views_may_start_at_any_number() {
    let (rows, c) = (5, 64);
    for dtype in DTYPES {
        let mut rng = Rng(7);
        let all = rng.tensor(1 + rows * c, dtype, 2.0);
        let (w, dy) = (rng.tensor(c, dtype, 1.0), rng.tensor(rows * c, dtype, 1.0));
        let done = everywhere(|q| {
            let mut y = Tensor::nan(rows * c, dtype);
            let mut dx = Tensor::nan(rows * c, dtype);
            let (mut rstd, mut dw) = (Tensor::nan(rows, Dtype::F32), Tensor::nan(c, Dtype::F32));
            let (mut all, mut w, mut dy) = (all.clone(), w.clone(), dy.clone());
            let mut ws = Scratch::new(workspace(rows, c, q.make()));
            let x = all.src(q).part(size(dtype), rows * c * size(dtype));
            let w = w.src(q);
            let d = Rows {
                rows,
                width: c,
                dtype,
            };
            let o = Forward {
                y: y.on(q),
                rstd: rstd.on(q),
                x,
                w,
            };
            forward(q, o, d, EPS, Plus::Nothing);
            let o = Backward {
                dx: dx.on(q),
                dw: Some(Sum {
                    to: dw.on(q),
                    accumulate: false,
                }),
                dy: dy.src(q),
                x,
                rstd: rstd.src(q),
                w,
                residual: None,
            };
            backward(q, o, d, Plus::Nothing, ws.on(q));
            (y, dx, dw)
        });
        let x = &all.values()[1..];
        let want = reference::forward(x, &w.values(), f64::from(EPS));
        let back = reference::backward(&dy.values(), x, &want.rstd, &w.values());
        for (device, (y, dx, dw)) in &done {
            close(&format!("y, {device}"), y, &want.y, 2e-6);
            close(&format!("dx, {device}"), dx, &back.dx, 1e-5);
            close(&format!("dw, {device}"), dw, &back.dw, 5e-6);
        }
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
