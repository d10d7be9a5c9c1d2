//! The router against `f64`.

use super::*;
use crate::testing::{DTYPES, Numbers, Rng, Scratch, Tensor, close, differences, dot, everywhere};

/// Tokens, experts, choices.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 8, 8),
    (7, 3, 2),
    (65, 8, 2),
    (130, 33, 5),
    (64, 128, 8),
    (200, 128, 1),
    (3, 1024, 32),
    (1000, 60, 4),
];

fn routes(
    (rows, experts, chosen): (usize, usize, usize),
    renormalise: bool,
    dtype: Dtype,
) -> Routes {
    Routes {
        rows,
        experts,
        chosen,
        renormalise,
        dtype,
    }
}

fn run(q: &Queue, d: Routes, logits: &Tensor, d_weights: &Tensor) -> (Vec<i32>, Tensor, Tensor) {
    let mut routing = Numbers::of(&vec![-7; d.bytes() / 4]);
    let mut weights = Tensor::nan(d.sorted(), Dtype::F32);
    let mut d_logits = Tensor::nan(d.rows * d.experts, d.dtype);
    let (mut logits, mut dw) = (logits.clone(), d_weights.clone());
    let mut ws = Scratch::new(d.workspace(q.make()));
    let logits = logits.src(q);
    let o = Forward {
        routing: routing.on(q),
        weights: weights.on(q),
        logits,
    };
    forward(q, o, d, ws.on(q));
    let o = Backward {
        d_logits: d_logits.on(q),
        d_weights: dw.src(q),
        logits,
        routing: routing.src(q),
    };
    backward(q, o, d);
    (routing.values(), weights, d_logits)
}

/// A routing as its numbers lie.
fn numbers(r: &reference::Routing) -> Vec<i32> {
    [&r.tokens, &r.places, &r.choices, &r.offsets]
        .map(Clone::clone)
        .concat()
}

#[test]
fn agrees_with_the_reference() {
    for shape in SHAPES {
        for (dtype, renormalise) in DTYPES.into_iter().flat_map(|d| [(d, false), (d, true)]) {
            let d = routes(shape, renormalise, dtype);
            let mut rng = Rng((shape.0 * 31 + shape.1) as u64);
            // In bf16 of many experts some logits are equal.
            let logits = rng.tensor(d.rows * d.experts, dtype, 4.0);
            let d_weights = rng.tensor(d.sorted(), Dtype::F32, 1.0);
            let want = reference::forward(&logits.values(), d);
            let want_d = reference::backward(&d_weights.values(), &logits.values(), &want, d);
            for (on, (routing, weights, d_logits)) in everywhere(|q| run(q, d, &logits, &d_weights))
            {
                assert_eq!(routing, numbers(&want), "{d:?} on {on}");
                close(
                    &format!("weights of {d:?} on {on}"),
                    &weights,
                    &want.weights,
                    2e-7,
                );
                close(
                    &format!("d_logits of {d:?} on {on}"),
                    &d_logits,
                    &want_d,
                    2e-6,
                );
            }
        }
    }
}

#[test]
fn gradients_are_slopes() {
    for renormalise in [false, true] {
        let d = routes((9, 7, 3), renormalise, Dtype::F32);
        let mut rng = Rng(3);
        let logits: Vec<f64> = rng.vec(63).iter().map(|x| x * 4.0).collect();
        let d_weights = rng.vec(27);
        let routing = reference::forward(&logits, d);
        let gradient = reference::backward(&d_weights, &logits, &routing, d);
        differences("logits", &logits, &gradient, |x| {
            dot(&reference::forward(x, d).weights, &d_weights)
        });
    }
}

/// Of equal logits those of the first experts, whatever else there is; one expert may have every token, and others
/// none.
#[test]
fn equal_logits_go_to_the_lower_index() {
    let d = routes((70, 9, 3), true, Dtype::F32);
    let logits = Tensor::of(&vec![0.5; 70 * 9], Dtype::F32);
    let d_weights = Tensor::of(&[1.0; 210], Dtype::F32);
    for (on, (routing, weights, _)) in everywhere(|q| run(q, d, &logits, &d_weights)) {
        let offsets = &routing[630..];
        assert_eq!(
            offsets,
            [0, 70, 140, 210, 210, 210, 210, 210, 210, 210],
            "{on}"
        );
        assert_eq!(routing[420..423], [0, 1, 2]);
        let third = f64::from(1.0_f32 / 3.0);
        assert!(
            weights.values().iter().all(|w| (w - third).abs() < 1e-7),
            "{on}"
        );
    }
}

/// Whatever the logits are, a routing is one: each token in k rows of different experts.
#[test]
fn a_logit_that_is_no_number_leaves_a_routing() {
    let d = routes((66, 5, 3), true, Dtype::F32);
    let mut rng = Rng(11);
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0];
    let values: Vec<f64> = (0..330).map(|_| odd[rng.below(4)]).collect();
    let logits = Tensor::of(&values, Dtype::F32);
    let d_weights = Tensor::of(&[1.0; 198], Dtype::F32);
    for (on, (routing, weights, _)) in everywhere(|q| {
        let (routing, weights, _) = run(q, d, &logits, &d_weights);
        // NaN is not itself.
        let nan: Vec<bool> = weights.values().iter().map(|w| w.is_nan()).collect();
        (routing, nan, ())
    }) {
        let parts: Vec<&[i32]> = routing[..594].chunks(198).collect();
        let (tokens, places, choices) = (parts[0], parts[1], parts[2]);
        let mut seen = [false; 198];
        for (i, &place) in places.iter().enumerate() {
            assert!(!std::mem::replace(&mut seen[place as usize], true), "{on}");
            assert_eq!(tokens[place as usize], (i / 3) as i32);
            let offsets = &routing[594..];
            let e = choices[i] as usize;
            assert!((offsets[e]..offsets[e + 1]).contains(&place), "{on}");
        }
        for (chosen, row) in choices.chunks(3).zip(values.chunks(5)) {
            assert!(chosen[0] != chosen[1] && chosen[0] != chosen[2] && chosen[1] != chosen[2]);
            // What is no number comes last.
            let nan = |e: i32| row[e as usize].is_nan();
            assert!(chosen.is_sorted_by_key(|&e| nan(e)), "{on}");
        }
        for (row, logits) in values.chunks(5).enumerate() {
            let bad = logits.iter().any(|x| x.is_nan() || *x == f64::INFINITY);
            let place = places[3 * row] as usize;
            assert!(!bad || weights[place], "a weight that is no number, {on}");
        }
    }
}

/// The routing for measurements is one, and even.
#[test]
fn an_even_routing_is_one() {
    for shape in SHAPES {
        let d = routes(shape, true, Dtype::F32);
        let even = d.even();
        assert_eq!(even.len() * 4, d.bytes());
        let n = d.sorted();
        let choices = &even[2 * n..3 * n];
        for e in 0..d.experts {
            let rows = even[3 * n + e + 1] - even[3 * n + e];
            assert_eq!(
                rows,
                choices.iter().filter(|&&c| c == e as i32).count() as i32
            );
            assert!(rows as usize >= n / d.experts && rows as usize <= n.div_ceil(d.experts));
        }
        for (i, &place) in even[n..2 * n].iter().enumerate() {
            assert_eq!(even[place as usize], (i / d.chosen) as i32);
        }
    }
}
