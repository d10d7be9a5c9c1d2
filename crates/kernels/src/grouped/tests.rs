//! Grouped products against `f64`.

use super::*;
use crate::operands::Sum;
use crate::testing::{DTYPES, Numbers, Rng, Scratch, Tensor, close, everywhere, plus};

/// Rows of each expert, input and output features.
const SHAPES: [(&[usize], usize, usize); 11] = [
    (&[1], 1, 1),
    (&[0, 3], 5, 7),
    (&[2, 0, 0, 9, 1], 9, 8),
    // One takes all, the first, the last, or one between.
    (&[130, 0, 0], 16, 40),
    (&[0, 0, 257], 33, 17),
    (&[0, 64, 0, 0], 64, 72),
    // Tiles that end inside of an expert's rows and of its features.
    (&[129, 1, 127, 0, 128, 3], 136, 264),
    (&[17, 300], 8, 130),
    (
        &[5, 6, 7, 8, 9, 10, 11, 12, 0, 13, 1, 1, 1, 1, 1, 1, 4],
        40,
        24,
    ),
    // Many steps of the inner dimension, in forward and in the gradient of w.
    (&[3, 4], 4099, 9),
    (&[2100, 1], 7, 11),
];

/// As that of `matmul`'s tests, where its terms are explained.
fn slack(on: &str, n: usize, dtype: Dtype) -> f64 {
    let n = n as f64;
    let cut = 2.0_f64.powi(-23) * (n / 8.0) * n.sqrt();
    let tensor_cores = on == "cuda" && dtype == Dtype::Bf16;
    1e-6 * n.sqrt() + 1e-7 * n + if tensor_cores { cut } else { 0.0 }
}

/// A routing of which the offsets alone are right: nothing else is read.
fn routing(rows: &[usize]) -> (Vec<i32>, Vec<i32>) {
    let mut offsets = vec![0];
    for &n in rows {
        offsets.push(offsets[offsets.len() - 1] + n as i32);
    }
    let sorted = rows.iter().sum::<usize>();
    ([vec![-7; 3 * sorted], offsets.clone()].concat(), offsets)
}

fn dims(rows: &[usize], inner: usize, cols: usize, dtype: Dtype) -> Dims {
    let routes = Routes {
        rows: rows.iter().sum(),
        experts: rows.len(),
        chosen: 1,
        renormalise: false,
        dtype,
    };
    Dims {
        routes,
        inner,
        cols,
    }
}

#[track_caller]
fn check((rows, k, n): (&[usize], usize, usize), dtype: Dtype) {
    let d = dims(rows, k, n, dtype);
    let (x_len, y_len, w_len) = d.numbers();
    let most = rows.iter().copied().max().unwrap();
    let mut rng = Rng((x_len * 31 + y_len) as u64);
    let x = rng.tensor(x_len, dtype, 1.0);
    let w = rng.tensor(w_len, dtype, 1.0);
    let dy = rng.tensor(y_len, dtype, 1.0);
    let old = rng.tensor(w_len, Dtype::F32, 1.0);
    let (routed, offsets) = routing(rows);

    let want = reference::forward(&x.values(), &w.values(), &offsets, d);
    let (want_dx, want_dw) =
        reference::backward(&dy.values(), &x.values(), &w.values(), &offsets, d);
    for accumulate in [false, true] {
        let done = everywhere(|q| {
            let (mut x, mut w, mut dy) = (x.clone(), w.clone(), dy.clone());
            let (mut y, mut dx) = (Tensor::nan(y_len, dtype), Tensor::nan(x_len, dtype));
            let mut dw = match accumulate {
                true => old.clone(),
                false => Tensor::nan(w_len, Dtype::F32),
            };
            let mut routing = Numbers::of(&routed);
            let mut ws = Scratch::new(workspace(d, q.make()));
            let (x, w, dy, routing) = (x.src(q), w.src(q), dy.src(q), routing.src(q));
            let mut ws = ws.on(q);
            let o = Forward {
                y: y.on(q),
                x,
                w,
                routing,
            };
            forward(q, o, d, ws.again());
            let o = Input {
                dx: dx.on(q),
                dy,
                w,
                routing,
            };
            backward_input(q, o, d, ws.again());
            let to = dw.on(q);
            let o = Weight {
                dw: Sum { to, accumulate },
                dy,
                x,
                routing,
            };
            backward_weight(q, o, d, ws);
            (y, dx, dw)
        });
        let want_dw = match accumulate {
            true => plus(&old.values(), &want_dw),
            false => want_dw.clone(),
        };
        for (on, (y, dx, dw)) in done {
            let what = |of: &str| format!("{of} of {rows:?} {k} {n} {dtype:?} on {on}");
            close(&what("y"), &y, &want, slack(on, k, dtype));
            close(&what("dx"), &dx, &want_dx, slack(on, n, dtype));
            close(&what("dw"), &dw, &want_dw, slack(on, most, dtype));
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for shape in SHAPES {
        DTYPES.into_iter().for_each(|dtype| check(shape, dtype));
    }
}

/// Scratch is known before the rows of each expert are.
#[test]
fn scratch_holds_whatever_rows_an_expert_has() {
    for (m, n, k) in [
        (1, 1, 1),
        (300, 72, 2049),
        (5000, 300, 4100),
        (2049, 3000, 700),
    ] {
        let bound = product::workspace_at_most(m, n, k);
        assert!(bound <= 32 << 20, "{m} {n} {k}: {bound}");
        for rows in (1..=m).step_by(1 + m / 97).chain([m]) {
            assert!(
                product::workspace(rows, n, k) <= bound,
                "{rows} of {m}, {n}, {k}"
            );
            assert!(product::workspace(n, k, rows) <= product::workspace_at_most(n, k, m));
        }
    }
}

#[test]
#[should_panic(expected = "rows 2 to 1 of 2 for expert 1")]
fn offsets_that_are_no_routing_are_found() {
    let d = dims(&[1, 1], 1, 1, Dtype::F32);
    let (mut x, mut w, mut y) = ([0.0_f32; 2], [0.0_f32; 2], [0.0_f32; 2]);
    let mut routing = [0, 0, 0, 0, 0, 0, 0, 2, 1];
    let mut ws = Scratch::new(0);
    let o = Forward {
        y: Dst::of(&mut y),
        x: Dst::of(&mut x).into_src(),
        w: Dst::of(&mut w).into_src(),
        routing: Dst::of(&mut routing).into_src(),
    };
    forward(&Queue::new("test", 1), o, d, ws.view());
}
