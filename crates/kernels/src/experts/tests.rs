//! Rows around the experts' products against `f64`.

use lowtide_workload::Dtype;

use super::*;
use crate::route::reference as route;
use crate::testing::{DTYPES, Numbers, Rng, Tensor, close, differences, dot, everywhere};

/// Tokens, experts, choices, and the width of rows.
const SHAPES: [(usize, usize, usize, usize); 8] = [
    (1, 1, 1, 1),
    (7, 3, 2, 9),
    (65, 8, 2, 16),
    (9, 5, 5, 129),
    (33, 128, 8, 264),
    (130, 4, 1, 7),
    (3, 6, 3, 4100),
    (200, 16, 4, 72),
];

fn routed(
    (rows, experts, chosen): (usize, usize, usize),
    dtype: Dtype,
) -> (Routes, route::Routing, Vec<i32>) {
    let d = Routes {
        rows,
        experts,
        chosen,
        renormalise: true,
        dtype,
    };
    let r = route::forward(&Rng(rows as u64).vec(rows * experts), d);
    let all = [&r.tokens, &r.places, &r.choices, &r.offsets].map(Clone::clone);
    (d, r, all.concat())
}

#[test]
fn rows_go_to_experts_and_come_back() {
    for (rows, experts, chosen, width) in SHAPES {
        for dtype in DTYPES {
            let (d, r, numbers) = routed((rows, experts, chosen), dtype);
            let mut rng = Rng((rows * 31 + width) as u64);
            let x = rng.tensor(rows * width, dtype, 1.0);
            let made = rng.tensor(d.sorted() * width, dtype, 1.0);
            let done = everywhere(|q| {
                let (mut sorted, mut y) = (
                    Tensor::nan(d.sorted() * width, dtype),
                    Tensor::nan(rows * width, dtype),
                );
                let (mut x, mut made) = (x.clone(), made.clone());
                let mut routing = Numbers::of(&numbers);
                let (x, routing) = (x.src(q), routing.src(q));
                let o = Gather {
                    y: sorted.on(q),
                    x,
                    routing,
                };
                gather(q, o, d, width);
                let o = Combine {
                    y: y.on(q),
                    x: made.src(q),
                    residual: x,
                    routing,
                };
                combine(q, o, d, width);
                (sorted, y)
            });
            let want = reference::gather(&x.values(), &r.tokens, width);
            let want_y = reference::combine(&made.values(), &x.values(), &r.tokens, width);
            for (on, (sorted, y)) in done {
                assert_eq!(sorted.values(), want, "rows of {d:?} on {on}");
                close(
                    &format!("sums of {d:?} on {on}"),
                    &y,
                    &want_y,
                    1e-6 * chosen as f64,
                );
            }
        }
    }
}

/// What is largest may vanish in a sum: its order shows in the bits.
#[test]
fn sums_are_in_the_order_of_choices() {
    let numbers = [
        vec![0, 0, 0],
        // The first choice has the last row, the last one the first.
        vec![2, 1, 0],
        vec![2, 1, 0],
        vec![0, 1, 2, 3],
    ];
    let (d, ..) = routed((1, 3, 3), Dtype::F32);
    let done = everywhere(|q| {
        let mut y = Tensor::nan(1, Dtype::F32);
        let mut x = Tensor::of(&[1.0, -1e8, 1e8], Dtype::F32);
        let mut residual = Tensor::of(&[0.5], Dtype::F32);
        let mut routing = Numbers::of(&numbers.concat());
        let o = Combine {
            y: y.on(q),
            x: x.src(q),
            residual: residual.src(q),
            routing: routing.src(q),
        };
        combine(q, o, d, 1);
        y
    });
    for (on, y) in done {
        assert_eq!(y.values(), [1.5], "{on}");
    }
}

#[test]
fn weighted_swiglu_agrees_with_the_reference() {
    for (rows, experts, chosen, f) in SHAPES {
        for dtype in DTYPES {
            let (d, _, _) = routed((rows, experts, chosen), dtype);
            let n = d.sorted();
            let mut rng = Rng((n * 31 + f) as u64);
            let gate_up = rng.tensor(n * 2 * f, dtype, 6.0);
            let weights = rng.tensor(n, Dtype::F32, 1.0);
            let dy = rng.tensor(n * f, dtype, 1.0);
            let done = everywhere(|q| {
                let (mut y, mut dg) = (Tensor::nan(n * f, dtype), Tensor::nan(n * 2 * f, dtype));
                let mut dw = Tensor::nan(n, Dtype::F32);
                let (mut gate_up, mut weights, mut dy) =
                    (gate_up.clone(), weights.clone(), dy.clone());
                let (gate_up, weights) = (gate_up.src(q), weights.src(q));
                let o = Act {
                    y: y.on(q),
                    gate_up,
                    weights,
                };
                act(q, o, d, f);
                let o = ActBackward {
                    d_gate_up: dg.on(q),
                    d_weights: dw.on(q),
                    dy: dy.src(q),
                    gate_up,
                    weights,
                };
                act_backward(q, o, d, f);
                (y, dg, dw)
            });
            let (x, w) = (gate_up.values(), weights.values());
            let want = reference::act(&x, &w, f);
            let (want_dg, want_dw) = reference::act_backward(&dy.values(), &x, &w, f);
            for (on, (y, dg, dw)) in done {
                let what = |of: &str| format!("{of} of {n} {f} {dtype:?} on {on}");
                close(&what("y"), &y, &want, 1e-6);
                close(&what("d_gate_up"), &dg, &want_dg, 4e-6);
                close(&what("d_weights"), &dw, &want_dw, 1e-5 * (f as f64).sqrt());
            }
        }
    }
}

#[test]
fn gradients_are_slopes() {
    let (n, f) = (6, 5);
    let mut rng = Rng(7);
    let (x, w, dy) = (rng.vec(n * 2 * f), rng.vec(n), rng.vec(n * f));
    let (dx, dw) = reference::act_backward(&dy, &x, &w, f);
    differences("gate_up", &x, &dx, |x| dot(&reference::act(x, &w, f), &dy));
    differences("weights", &w, &dw, |w| dot(&reference::act(&x, w, f), &dy));
}
