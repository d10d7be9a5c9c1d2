//! LayerNorm against `f64`.

use lowtide_workload::Dtype;

use super::*;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, differences, dot, everywhere, plus};

const SHAPES: [(usize, usize); 19] = [
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
    // Teams of two, three, four, five and sixteen warps.
    (21, 2048),
    (19, 2064),
    (70, 4096),
    (9, 5120),
    (3, 13824),
    (2, 16384),
    // Wider than teams go; above 12288 backward's sums do not fit a block.
    (2, 16392),
];
/// Large, so that its place in the formula shows.
const EPS: f32 = 0.125;

/// Rows off zero, so that a variance which forgets the mean is seen.
fn input(rng: &mut Rng, n: usize, dtype: Dtype) -> Tensor {
    Tensor::of(
        &rng.vec(n).iter().map(|x| 2.0 * x + 1.5).collect::<Vec<_>>(),
        dtype,
    )
}

#[track_caller]
fn check((rows, c): (usize, usize), bias: bool, dtype: Dtype) {
    let size = Rows {
        rows,
        width: c,
        dtype,
    };
    let mut rng = Rng((rows * 31 + c) as u64);
    let x = input(&mut rng, rows * c, dtype);
    let (w, b) = (rng.tensor(c, dtype, 1.0), rng.tensor(c, dtype, 1.0));
    let dy = rng.tensor(rows * c, dtype, 1.0);
    let residual = rng.tensor(rows * c, dtype, 1.0);
    let (old_w, old_b) = (
        rng.tensor(c, Dtype::F32, 1.0),
        rng.tensor(c, Dtype::F32, 1.0),
    );
    let forwards = everywhere(|q| {
        let mut y = Tensor::nan(rows * c, dtype);
        let (mut mean, mut rstd) = (Tensor::nan(rows, Dtype::F32), Tensor::nan(rows, Dtype::F32));
        let (mut x, mut w, mut b) = (x.clone(), w.clone(), b.clone());
        let o = Forward {
            y: y.on(q),
            mean: mean.on(q),
            rstd: rstd.on(q),
            x: x.src(q),
            w: w.src(q),
            b: bias.then(|| b.src(q)),
        };
        forward(q, o, size, EPS);
        (y, mean, rstd)
    });
    let none = vec![0.0; c];
    let b = if bias { b.values() } else { none };
    let want = reference::forward(&x.values(), &w.values(), &b, f64::from(EPS));
    for (device, (y, mean, rstd)) in &forwards {
        close(&format!("y, {device}"), y, &want.y, 4e-6);
        close(&format!("mean, {device}"), mean, &want.mean, 4e-6);
        close(&format!("rstd, {device}"), rstd, &want.rstd, 4e-6);
    }
    let (_, mean, rstd) = &forwards[0].1;
    let (m, r) = (mean.values(), rstd.values());
    let (mean, rstd) = (Tensor::of(&m, Dtype::F32), Tensor::of(&r, Dtype::F32));

    let want = reference::backward(&dy.values(), &x.values(), &m, &r, &w.values());
    for (with_residual, accumulate) in [(false, false), (true, true)] {
        let old = |old: &Tensor| {
            if accumulate {
                old.clone()
            } else {
                Tensor::nan(c, Dtype::F32)
            }
        };
        let gradients = everywhere(|q| {
            let mut dx = Tensor::nan(rows * c, dtype);
            let (mut dw, mut db) = (old(&old_w), old(&old_b));
            let (mut dy, mut x, mut w) = (dy.clone(), x.clone(), w.clone());
            let (mut mean, mut rstd) = (mean.clone(), rstd.clone());
            let mut residual = residual.clone();
            let mut ws = Scratch::new(workspace(rows, c, q.make()));
            let sum = |to| Sum { to, accumulate };
            let o = Backward {
                dx: dx.on(q),
                dw: Some(sum(dw.on(q))),
                db: bias.then(|| sum(db.on(q))),
                dy: dy.src(q),
                x: x.src(q),
                mean: mean.src(q),
                rstd: rstd.src(q),
                w: w.src(q),
                residual: with_residual.then(|| residual.src(q)),
            };
            backward(q, o, size, ws.on(q));
            (dx, dw, db)
        });
        let slack = 4e-6 + 2e-7 * rows as f64;
        for (device, (dx, dw, db)) in &gradients {
            let name = |what| format!("{what}, {device}, {rows} rows of {c}");
            if with_residual {
                close(&name("dx"), dx, &plus(&want.dx, &residual.values()), 1e-5);
                close(&name("dw"), dw, &plus(&want.dw, &old_w.values()), slack);
            } else {
                close(&name("dx"), dx, &want.dx, 1e-5);
                close(&name("dw"), dw, &want.dw, slack);
            }
            if bias {
                let old = if accumulate {
                    old_b.values()
                } else {
                    vec![0.0; c]
                };
                close(&name("db"), db, &plus(&want.db, &old), slack);
            }
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for shape in SHAPES {
        DTYPES
            .into_iter()
            .for_each(|dtype| check(shape, true, dtype));
    }
}

#[test]
fn without_a_bias_agrees_with_the_reference() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        check(shape, false, DTYPES[i % DTYPES.len()]);
    }
}

#[test]
fn a_far_mean_does_not_cancel() {
    let (rows, c) = (1, 1000);
    let x: Vec<f64> = (0..c).map(|i| 4096.0 + f64::from(i as u32 % 2)).collect();
    let x = Tensor::of(&x, Dtype::F32);
    let w = Tensor::of(&vec![1.0; c], Dtype::F32);
    let b = Tensor::of(&vec![0.0; c], Dtype::F32);
    let done = everywhere(|q| {
        let [mut y, mut mean, mut rstd] = [c, 1, 1].map(|n| Tensor::nan(n, Dtype::F32));
        let (mut x, mut w, mut b) = (x.clone(), w.clone(), b.clone());
        let o = Forward {
            y: y.on(q),
            mean: mean.on(q),
            rstd: rstd.on(q),
            x: x.src(q),
            w: w.src(q),
            b: Some(b.src(q)),
        };
        let size = Rows {
            rows,
            width: c,
            dtype: Dtype::F32,
        };
        forward(q, o, size, 1e-5);
        rstd
    });
    for (device, rstd) in &done {
        let want = 1.0 / (0.25 + 1e-5_f64).sqrt();
        close(&format!("rstd, {device}"), rstd, &[want], 1e-4);
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    let (rows, c) = (5, 9);
    let mut rng = Rng(1);
    let (x, w, b, dy) = (rng.vec(rows * c), rng.vec(c), rng.vec(c), rng.vec(rows * c));
    let eps = f64::from(EPS);
    let f = reference::forward(&x, &w, &b, eps);
    let g = reference::backward(&dy, &x, &f.mean, &f.rstd, &w);
    differences("dx", &x, &g.dx, |x| {
        dot(&dy, &reference::forward(x, &w, &b, eps).y)
    });
    differences("dw", &w, &g.dw, |w| {
        dot(&dy, &reference::forward(&x, w, &b, eps).y)
    });
    differences("db", &b, &g.db, |b| {
        dot(&dy, &reference::forward(&x, &w, b, eps).y)
    });
}
