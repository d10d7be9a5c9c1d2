//! Moments that are not stored in f32: how far an update is from the reference, and that it does not
//! stand still.

use super::*;

/// What rounding may put a stored moment off by, given what it is and the largest of its block:
/// relative to the number, and to the largest; first moment, second moment.
fn rounding(kind: Moments) -> [[f64; 2]; 2] {
    match kind {
        Moments::F32 => [[1e-6, 0.0], [2e-6, 0.0]],
        // A unit, up or down.
        Moments::Bf16 => [[1.01 / 128.0, 0.0]; 2],
        // Half of the largest distance of two values.
        Moments::Int8 => [
            [0.0, 1.001 * 7.0 / 8.0 / 128.0],
            [0.0, 1.001 * 7.0 / 8.0 / 256.0],
        ],
    }
}

/// One step from the same stored state: the weights as with f32 moments, the moments within one
/// rounding.
#[test]
fn one_step_is_the_reference_within_one_rounding() {
    let q = Queue::new("test", 2);
    for path in paths() {
        for (kind, types) in [Moments::Bf16, Moments::Int8]
            .into_iter()
            .flat_map(|kind| DTYPES.map(|types| (kind, types)))
        {
            let mut a = Arrays::new(&LENGTHS).store_as(kind);
            let exact: Vec<_> = a.segments.iter().map(|s| a.exact(s, types.0)).collect();
            a.step(path, &q, types, &HYPER);
            let [first, second] = rounding(kind);
            for (s, (mut want, grad)) in a.segments.iter().zip(exact) {
                reference::step(&mut want, &grad, s.decay, &HYPER);
                for i in 0..s.elements {
                    let p = f64::from(a.master(s.offset + i, types.0));
                    assert!((p - want.p[i]).abs() < 1.5e-7, "{path:?} {kind:?} {i}: {p}");
                    let block = i / BLOCK * BLOCK;
                    let block = block..(block + BLOCK).min(s.elements);
                    for (got, want, [relative, of_top]) in [
                        (a.m[s.offset + i], &want.m, first),
                        (a.v[s.offset + i], &want.v, second),
                    ] {
                        let top = want[block.clone()]
                            .iter()
                            .fold(0.0, |t: f64, x| t.max(x.abs()));
                        let error = (f64::from(got) - want[i]).abs();
                        let allowed = relative * want[i].abs() + of_top * top + 1e-7;
                        assert!(
                            error <= allowed,
                            "{path:?} {kind:?} {i}: {got} for {}, {error:e} over {allowed:e}",
                            want[i]
                        );
                    }
                }
            }
        }
    }
}

/// Root of the mean square of the distance of all masters from the reference after fifty steps, over
/// that of the way they went.
fn drift(path: Path, kind: Moments, types: (Dtype, Dtype)) -> f64 {
    let q = Queue::new("test", 2);
    let mut a = Arrays::new(&[515, 130]);
    for i in a.used() {
        let (p, g) = (a.w32[i], a.g32[i]);
        a.set(i, p, 0.0, 0.0, g);
    }
    let mut a = a.store_as(kind);
    let used = a.used();
    let mut exact: Vec<_> = a.segments.iter().map(|s| a.exact(s, types.0).0).collect();
    let before = exact.clone();
    let mut rng = Rng(0xfade);
    for step in 1..=50 {
        for &i in &used {
            // Magnitudes over three decades, as inside a real block.
            let size = 10f32.powf(-3.0 * (i % 7) as f32 / 6.0);
            a.set_gradient(i, size * (0.5 + rng.signed()));
        }
        let h = Hyper {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            step,
            ..HYPER
        };
        a.step(path, &q, types, &h);
        for (s, want) in a.segments.iter().zip(&mut exact) {
            let grad = a.exact(s, types.0).1;
            reference::step(want, &grad, s.decay, &h);
        }
    }
    let (mut error, mut way) = (0.0, 0.0);
    for ((s, want), before) in a.segments.iter().zip(&exact).zip(&before) {
        for i in 0..s.elements {
            let p = f64::from(a.master(s.offset + i, types.0));
            error += (p - want.p[i]).powi(2);
            way += (want.p[i] - before.p[i]).powi(2);
        }
    }
    (error / way).sqrt()
}

#[test]
fn fifty_steps_stay_near_the_reference() {
    for path in paths() {
        for types in [DTYPES[0], DTYPES[3]] {
            for (kind, bound) in [
                (Moments::F32, 5e-4),
                (Moments::Bf16, 0.01),
                (Moments::Int8, 0.3),
            ] {
                let drift = drift(path, kind, types);
                assert!(
                    drift < bound,
                    "{path:?} {kind:?} {types:?}: {drift:e} of the way, over {bound:e}"
                );
            }
        }
    }
}

/// A step changes the second moment by at most a thousandth: to nearest bf16 it would stop at a
/// fraction of g², stochastically it arrives.
#[test]
fn a_constant_gradient_makes_the_second_moment_its_square() {
    let q = Queue::new("test", 2);
    for path in paths() {
        for kind in [Moments::Bf16, Moments::Int8] {
            let mut a = Arrays::new(&[1000]);
            for i in a.used() {
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                a.set(i, 0.5, 0.0, 0.0, 0.37 * sign);
            }
            let mut a = a.store_as(kind);
            for step in 1..=6000 {
                let h = Hyper {
                    lr: 1e-6,
                    ..Hyper::usual(OptimizerName::AdamW, step)
                };
                a.step(path, &q, DTYPES[0], &h);
            }
            let g = f64::from(a.g32[0]);
            let n = a.used().len() as f64;
            let mean = |of: &[f32]| {
                a.used()
                    .iter()
                    .map(|&i| f64::from(of[i]).abs())
                    .sum::<f64>()
                    / n
            };
            let second = mean(&a.v) / (g * g * (1.0 - 0.999f64.powi(6000)));
            assert!(
                (second - 1.0).abs() < 0.01,
                "{path:?} {kind:?}: {second} of g²"
            );
            let first = mean(&a.m) / g;
            assert!(
                (first - 1.0).abs() < 0.01,
                "{path:?} {kind:?}: {first} of g"
            );
            for i in a.used() {
                let off = f64::from(a.v[i]) / (g * g) - 1.0;
                assert!(off.abs() < 0.35, "{path:?} {kind:?} {i}: {off} off");
            }
        }
    }
}

/// What is not finite shows in the whole block and nowhere else.
#[test]
fn what_is_not_finite_does_not_hide() {
    let q = Queue::new("test", 1);
    for path in paths() {
        for kind in Moments::ALL {
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut a = Arrays::new(&[300]).store_as(kind);
                a.set_gradient(140, bad);
                a.step(path, &q, DTYPES[1], &HYPER);
                assert!(!a.m[140].is_finite() && !a.v[140].is_finite(), "{kind:?}");
                a.set_gradient(140, 0.5);
                a.step(path, &q, DTYPES[1], &HYPER);
                assert!(a.master(140, Dtype::Bf16).is_nan(), "{path:?} {kind:?}");
                for i in (0..128).chain(256..300) {
                    assert!(a.master(i, Dtype::Bf16).is_finite(), "{kind:?} {i}");
                }
            }
        }
    }
}
