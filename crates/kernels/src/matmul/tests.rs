//! Linear layers against `f64`.

use super::*;
use crate::operands::Sum;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, everywhere, on_gpu, plus};

const SHAPES: [(usize, usize, usize); 15] = [
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
    // Rows of 16 bytes and more, as the tensor cores want them: many tiles, one row, and an inner
    // size that is worth splitting.
    (128, 256, 384),
    (1, 512, 264),
    (16, 4096, 24),
];

/// With a bias, with a residual.
const CASES: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// Rounding errors of a sum of `n` products of numbers below one.
fn slack(n: usize) -> f64 {
    1e-6 * (n as f64).sqrt() + 1e-7 * n as f64
}

/// As [`slack`], for the device that computed it. Tensor cores cut bits off where `fma` rounds, once for every
/// eight products or so, and such errors do not cancel: a unit of the running sum, which is about as
/// large as the root of their number, each time.
fn slack_on(on: &str, n: usize, dtype: Dtype) -> f64 {
    let n64 = n as f64;
    let cut = 2.0_f64.powi(-23) * (n64 / 8.0) * n64.sqrt();
    if on == "cuda" && dtype == Dtype::Bf16 {
        slack(n) + cut
    } else {
        slack(n)
    }
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

    for (with_bias, with_residual) in CASES {
        let results = everywhere(|q| {
            let mut y = Tensor::nan(m * n, dtype);
            let (mut x, mut w) = (x.clone(), w.clone());
            let (mut bias, mut residual) = (bias.clone(), residual.clone());
            let mut ws = Scratch::new(workspace(d, dtype, q.make()));
            let bias = with_bias.then(|| bias.src(q));
            let residual = with_residual.then(|| residual.src(q));
            let o = Forward {
                y: y.on(q),
                x: x.src(q),
                w: w.src(q),
                bias,
                residual,
            };
            forward(q, o, d, dtype, ws.on(q));
            y
        });
        let bias = if with_bias { bias.values() } else { Vec::new() };
        let residual = if with_residual {
            residual.values()
        } else {
            Vec::new()
        };
        let want = reference::forward(&x.values(), &w.values(), &bias, &residual, d);
        for (on, y) in results {
            close(
                &format!("y of {d:?} on {on}"),
                &y,
                &want,
                slack_on(on, k, dtype),
            );
        }
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
        let results = everywhere(|q| {
            let mut dx = Tensor::nan(m * k, dtype);
            let mut dw = old(&old_w, n * k);
            let (mut x, mut w, mut dy) = (x.clone(), w.clone(), dy.clone());
            let mut ws = Scratch::new(workspace(d, dtype, q.make()));
            let (dy, mut ws) = (dy.src(q), ws.on(q));
            let o = Input {
                dx: dx.on(q),
                dy,
                w: w.src(q),
            };
            backward_input(q, o, d, dtype, ws.again());
            let o = Weight {
                dw: Sum {
                    to: dw.on(q),
                    accumulate,
                },
                db: None,
                dy,
                x: x.src(q),
            };
            backward_weight(q, o, d, dtype, ws);
            (dx, dw)
        });
        let mut want_dw = want.dw.clone();
        if accumulate {
            want_dw = plus(&old_w.values(), &want.dw);
        }
        for (on, (dx, dw)) in results {
            close(
                &format!("dx of {d:?} on {on}"),
                &dx,
                &want.dx,
                slack_on(on, n, dtype),
            );
            close(
                &format!("dw of {d:?} on {on}"),
                &dw,
                &want_dw,
                slack_on(on, m, dtype),
            );
        }
    }
}

/// Alone: it has no library's product in it, whose kernels compute-sanitizer cannot run under its race check.
#[track_caller]
fn check_bias((m, k, n): (usize, usize, usize), dtype: Dtype) {
    let d = Dims {
        rows: m,
        inner: k,
        cols: n,
    };
    let mut rng = Rng((m * 7919 + n) as u64);
    let dy = rng.tensor(m * n, dtype, 1.0);
    let old = rng.tensor(n, Dtype::F32, 1.0);
    let want = reference::backward_bias(&dy.values(), n);
    for accumulate in [false, true] {
        let results = everywhere(|q| {
            let mut db = if accumulate {
                old.clone()
            } else {
                Tensor::nan(n, Dtype::F32)
            };
            let mut dy = dy.clone();
            let mut ws = Scratch::new(workspace(d, dtype, q.make()));
            let to = db.on(q);
            let sum = Sum { to, accumulate };
            let o = Bias {
                db: sum,
                dy: dy.src(q),
            };
            backward_bias(q, o, d, dtype, ws.on(q));
            db
        });
        let want = if accumulate {
            plus(&old.values(), &want)
        } else {
            want.clone()
        };
        for (on, db) in results {
            close(&format!("db of {d:?} on {on}"), &db, &want, slack(m));
        }
    }
}

#[test]
fn sums_for_a_bias_agree_with_the_reference() {
    for shape in SHAPES {
        DTYPES
            .into_iter()
            .for_each(|dtype| check_bias(shape, dtype));
    }
}

#[test]
fn agrees_with_the_reference() {
    for shape in SHAPES {
        DTYPES.into_iter().for_each(|dtype| check(shape, dtype));
    }
}

/// Not so on the GPU, where the two calls may be computed by different algorithms.
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
            let o = Weight {
                dw: Sum {
                    to: dw.view(),
                    accumulate,
                },
                db: None,
                dy: dy.view().into_src(),
                x: x.view().into_src(),
            };
            backward_weight(&q, o, d, dtype, ws.view());
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
    assert_eq!(
        workspace(large, Dtype::Bf16, lowtide_device::Make::Cuda),
        32 << 20
    );
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
    let o = Forward::product(y.view(), x.view().into_src(), w.view().into_src());
    forward(&q, o, d, Dtype::F32, ws.view());
}

/// What the library cannot add is added by our own kernel, after products of runs of rows.
#[test]
fn a_sum_apart_from_the_product_is_the_same_sum() {
    // 44 KiB of `f32` a row: two runs of rows in the scratch.
    for (m, k, n) in [(9, 7, 13), (400, 8, 11_003)] {
        let d = Dims {
            rows: m,
            inner: k,
            cols: n,
        };
        for dtype in DTYPES {
            let mut rng = Rng(17);
            let x = rng.tensor(m * k, dtype, 1.0);
            let w = rng.tensor(n * k, dtype, 1.0);
            let bias = rng.tensor(n, dtype, 1.0);
            let residual = rng.tensor(m * n, dtype, 1.0);
            for (with_bias, with_residual) in CASES {
                let y = on_gpu(|q| {
                    let mut y = Tensor::nan(m * n, dtype);
                    let (mut x, mut w) = (x.clone(), w.clone());
                    let (mut bias, mut residual) = (bias.clone(), residual.clone());
                    let mut ws = Scratch::new(workspace(d, dtype, q.make()));
                    let bias = with_bias.then(|| bias.src(q));
                    let residual = with_residual.then(|| residual.src(q));
                    let o = Forward {
                        y: y.on(q),
                        x: x.src(q),
                        w: w.src(q),
                        bias,
                        residual,
                    };
                    let ws = ws.on(q);
                    let q = q.cuda().unwrap();
                    cuda::forward_apart(q, o, d, dtype, ws);
                    q.synchronize().unwrap();
                    y
                });
                let bias = if with_bias { bias.values() } else { Vec::new() };
                let residual = if with_residual {
                    residual.values()
                } else {
                    Vec::new()
                };
                let want = || reference::forward(&x.values(), &w.values(), &bias, &residual, d);
                if let Some(y) = y {
                    close(
                        &format!("y of {d:?} apart"),
                        &y,
                        &want(),
                        slack_on("cuda", k, dtype),
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_either_type_are_stored_unrounded() {
    for (m, k, n) in [(5, 7, 9), (1, 64, 1000), (64, 128, 512)] {
        let d = Dims {
            rows: m,
            inner: k,
            cols: n,
        };
        for dtype in DTYPES {
            let mut rng = Rng(23);
            let x = rng.tensor(m * k, dtype, 1.0);
            let w = rng.tensor(n * k, dtype, 1.0);
            let y = on_gpu(|q| {
                let mut y = Tensor::nan(m * n, Dtype::F32);
                let (mut x, mut w) = (x.clone(), w.clone());
                let mut ws = Scratch::new(workspace(d, dtype, q.make()));
                let (yv, x, w, ws) = (y.on(q), x.src(q), w.src(q), ws.on(q));
                let q = q.cuda().unwrap();
                cuda::forward_f32(q, yv, x, w, d, dtype, ws);
                q.synchronize().unwrap();
                y
            });
            let want = reference::forward(&x.values(), &w.values(), &[], &[], d);
            if let Some(y) = y {
                close(
                    &format!("y of {d:?} in f32"),
                    &y,
                    &want,
                    slack_on("cuda", k, dtype),
                );
            }
        }
    }
}

/// Square operands in the wrong order fit every check of sizes; only numbers tell.
#[test]
fn operands_in_the_wrong_order_are_found() {
    let n = 24;
    let d = Dims {
        rows: n,
        inner: n,
        cols: n,
    };
    for dtype in DTYPES {
        let mut rng = Rng(29);
        let [x, w] = [(); 2].map(|()| rng.tensor(n * n, dtype, 1.0));
        let right = reference::forward(&x.values(), &w.values(), &[], &[], d);
        let results = everywhere(|q| {
            let mut y = Tensor::nan(n * n, dtype);
            let (mut x, mut w) = (x.clone(), w.clone());
            let mut ws = Scratch::new(workspace(d, dtype, q.make()));
            // w·xᵀ
            let o = Forward::product(y.on(q), w.src(q), x.src(q));
            forward(q, o, d, dtype, ws.on(q));
            y
        });
        for (on, y) in results {
            let y = y.values();
            let off = |(y, want): (&f64, &f64)| (y - want).abs() > 0.1;
            let wrong = y.iter().zip(&right).filter(|pair| off(*pair)).count();
            // w·xᵀ is the transpose of x·wᵀ: only its diagonal is right.
            assert!(wrong > n * n / 2, "{wrong} of {} on {on}", n * n);
            let transposed: Vec<f64> = (0..n * n).map(|i| right[i % n * n + i / n]).collect();
            close(
                "the transpose",
                &Tensor::of(&y, dtype),
                &transposed,
                slack_on(on, n, dtype),
            );
        }
    }
}
