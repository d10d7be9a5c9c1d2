//! Multiples and sums against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Tensor, close, everywhere};

/// With and without something added, of any length, from any number on.
#[test]
fn agrees_with_the_reference() {
    for (n, at, factor) in [
        (1, 0, 1.0_f32),
        (7, 1, 0.22),
        (129, 0, -3.0),
        (1000, 1, 12.0),
        (20_001, 0, 0.22),
    ] {
        for dtype in DTYPES {
            let mut rng = Rng(n as u64);
            let (all, r) = (rng.tensor(at + n, dtype, 2.0), rng.tensor(n, dtype, 1.0));
            for with in [false, true] {
                let done = everywhere(|q| {
                    let mut y = Tensor::nan(n, dtype);
                    let (mut all, mut r) = (all.clone(), r.clone());
                    let o = Forward {
                        y: y.on(q),
                        x: all.src(q).part(at * size(dtype), n * size(dtype)),
                        residual: with.then(|| r.src(q)),
                    };
                    forward(q, o, n, factor, dtype);
                    y
                });
                let (x, r) = (&all.values()[at..], r.values());
                let want = reference::forward(x, with.then_some(&r), f64::from(factor));
                for (device, y) in &done {
                    close(&format!("y, {device}"), y, &want, 1e-6);
                }
            }
        }
    }
}

/// A sum with nothing multiplied is that of the two numbers, rounded once.
#[test]
fn a_factor_of_one_changes_no_bit() {
    for dtype in DTYPES {
        let x = Rng(5).tensor(1000, dtype, 2.0);
        let done = everywhere(|q| {
            let (mut y, mut x) = (Tensor::nan(1000, dtype), x.clone());
            let o = Forward {
                y: y.on(q),
                x: x.src(q),
                residual: None,
            };
            forward(q, o, 1000, 1.0, dtype);
            y
        });
        done.iter()
            .for_each(|(device, y)| assert_eq!(*y, x, "{device}"));
    }
}
