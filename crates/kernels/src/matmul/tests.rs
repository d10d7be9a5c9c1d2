//! Linear layers against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, on_threads, plus};

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (7, 1, 9),
    (1, 1000, 8),
    (8, 7, 1),
    (129, 9, 130),
    (9, 129, 257),
    (65, 300, 129),
    (300, 64, 40),
    // Several inner blocks of widened panels, in forward and in the gradient of w.
    (9, 4099, 7),
    (4099, 7, 9),
    // And several outer ones.
    (3, 2049, 1800),
    (1800, 2049, 3),
];

/// Rounding errors of a sum of `n` products of numbers below one.
fn slack(n: usize) -> f64 {
    1e-6 * (n as f64).sqrt() + 1e-7 * n as f64
}

#[track_caller]
fn check((m, k, n): (usize, usize, usize), dtype: Dtype) {
    let d = Dims {
        rows: m,
        inner: k,
        cols: n,
    };
    let mut rng = Rng((m * 7919 + k * 31 + n) as u64);
    let x = rng.tensor(m * k, dtype, 1.0);
    let w = rng.tensor(n * k, dtype, 1.0);
    let bias = rng.tensor(n, dtype, 1.0);
    let residual = rng.tensor(m * n, dtype, 1.0);
    let dy = rng.tensor(m * n, dtype, 1.0);
    let old_w = rng.tensor(n * k, Dtype::F32, 1.0);
    let old_b = rng.tensor(n, Dtype::F32, 1.0);

    for (with_bias, with_residual) in [(false, false), (true, false), (false, true), (true, true)] {
        let y = on_threads(|q| {
            let mut y = Tensor::nan(m * n, dtype);
            let (mut x, mut w) = (x.clone(), w.clone());
            let (mut bias, mut residual) = (bias.clone(), residual.clone());
            let mut ws = Scratch::new(workspace(d, dtype, lowtide_device::Make::Cpu));
            let bias = with_bias.then(|| bias.view());
            let residual = with_residual.then(|| residual.view());
            forward(
                q,
                y.view(),
                x.view(),
                w.view(),
                bias,
                residual,
                d,
                dtype,
                ws.view(),
            );
            y
        });
        let bias = if with_bias { bias.values() } else { Vec::new() };
        let residual = if with_residual {
            residual.values()
        } else {
            Vec::new()
        };
        let want = reference::forward(&x.values(), &w.values(), &bias, &residual, d);
        close("y", &y, &want, slack(k));
    }

    let want = reference::backward(&dy.values(), &x.values(), &w.values(), d);
    for accumulate in [false, true] {
        let old = |old: &Tensor, n| {
            if accumulate {
                old.clone()
            } else {
                Tensor::nan(n, Dtype::F32)
            }
        };
        let (dx, dw, db) = on_threads(|q| {
            let mut dx = Tensor::nan(m * k, dtype);
            let (mut dw, mut db) = (old(&old_w, n * k), old(&old_b, n));
            let (mut x, mut w, mut dy) = (x.clone(), w.clone(), dy.clone());
            let mut ws = Scratch::new(workspace(d, dtype, lowtide_device::Make::Cpu));
            backward_input(q, dx.view(), dy.view(), w.view(), d, dtype, ws.view());
            let (dwv, dyv) = (dw.view(), dy.view());
            backward_weight(q, dwv, dyv, x.view(), d, accumulate, dtype, ws.view());
            backward_bias(q, db.view(), dyv, d, accumulate, dtype);
            (dx, dw, db)
        });
        close("dx", &dx, &want.dx, slack(n));
        if accumulate {
            close("dw", &dw, &plus(&old_w.values(), &want.dw), slack(m));
            close("db", &db, &plus(&old_b.values(), &want.db), slack(m));
        } else {
            close("dw", &dw, &want.dw, slack(m));
            close("db", &db, &want.db, slack(m));
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
fn accumulating_is_one_addition_of_the_whole_product() {
    // 4099 rows: several inner blocks when widened.
    let (m, k, n) = (4099, 40, 24);
    let d = Dims {
        rows: m,
        inner: k,
        cols: n,
    };
    for dtype in DTYPES {
        let mut rng = Rng(5);
        let (mut x, mut dy) = (rng.tensor(m * k, dtype, 1.0), rng.tensor(m * n, dtype, 1.0));
        let old = rng.tensor(n * k, Dtype::F32, 1.0);
        let mut run = |dw: &mut Tensor, accumulate| {
            let mut ws = Scratch::new(workspace(d, dtype, lowtide_device::Make::Cpu));
            let q = Queue::new("test", 2);
            let (dy, x) = (dy.view(), x.view());
            backward_weight(&q, dw.view(), dy, x, d, accumulate, dtype, ws.view());
        };
        let (mut product, mut sum) = (Tensor::nan(n * k, Dtype::F32), old.clone());
        run(&mut product, false);
        run(&mut sum, true);
        let want: Vec<f64> = old
            .values()
            .iter()
            .zip(product.values())
            .map(|(old, product)| f64::from(*old as f32 + product as f32))
            .collect();
        assert_eq!(sum.values(), want);
    }
}

#[test]
fn workspace_is_bounded() {
    let large = Dims {
        rows: 65536,
        inner: 8192,
        cols: 28672,
    };
    assert!(workspace(large, Dtype::Bf16, lowtide_device::Make::Cpu) <= 32 << 20);
    assert_eq!(workspace(large, Dtype::F32, lowtide_device::Make::Cpu), 0);
    let small = Dims {
        rows: 16,
        inner: 64,
        cols: 32,
    };
    assert!(
        workspace(small, Dtype::Bf16, lowtide_device::Make::Cpu)
            <= 4 * (16 * 64 + 64 * 32 + 16 * 32)
    );
}

#[test]
#[should_panic(expected = "w: 24 bytes for 12 numbers of 4 bytes")]
fn a_wrong_shape_panics() {
    let (mut y, mut x) = (Tensor::nan(8, Dtype::F32), Tensor::nan(6, Dtype::F32));
    let (mut w, mut ws) = (Tensor::nan(6, Dtype::F32), Scratch::new(0));
    let d = Dims {
        rows: 2,
        inner: 3,
        cols: 4,
    };
    let q = Queue::new("test", 1);
    forward(
        &q,
        y.view(),
        x.view(),
        w.view(),
        None,
        None,
        d,
        Dtype::F32,
        ws.view(),
    );
}
