//! The update against f64, and the factors of a step.

use super::*;

#[track_caller]
fn assert_close(what: &str, got: &[f32], want: &[f64], relative: f64, absolute: f64) {
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        let allowed = absolute + relative * want.abs();
        assert!(
            error <= allowed,
            "{what} {i}: {got} for {want}, {error:e} over {allowed:e}"
        );
    }
}

#[track_caller]
fn assert_segment(a: &Arrays, s: &Segment, want: &reference::State, dtype: Dtype, absolute: f64) {
    let range = s.offset..s.offset + s.elements;
    let p: Vec<f32> = range.clone().map(|i| a.master(i, dtype)).collect();
    assert_close("master weight", &p, &want.p, 0.0, absolute);
    assert_close("first moment", &a.m[range.clone()], &want.m, 1e-6, 1e-7);
    assert_close("second moment", &a.v[range.clone()], &want.v, 2e-6, 1e-9);
    if dtype == Dtype::Bf16 {
        for (i, &p) in range.zip(&p) {
            assert_eq!(a.w16[i], split(p).0, "the weight at {i} is stale");
        }
    }
}

#[test]
fn one_step_is_the_reference_at_every_length() {
    let q = Queue::new("test", 2);
    for path in paths() {
        for (dtype, grad_dtype) in DTYPES {
            let mut a = Arrays::new(&LENGTHS);
            let exact: Vec<_> = a.segments.iter().map(|s| a.exact(s, dtype)).collect();
            a.step(path, &q, (dtype, grad_dtype), &HYPER);
            for (s, (mut want, grad)) in a.segments.iter().zip(exact) {
                reference::step(&mut want, &grad, s.decay, &HYPER);
                assert_segment(&a, s, &want, dtype, 1.5e-7);
            }
        }
    }
}

/// Each step moves a weight by much less than half a bf16 unit, so only the remainder can carry it.
#[test]
fn fifty_steps_stay_with_the_reference() {
    let q = Queue::new("test", 2);
    for path in paths() {
        for (dtype, grad_dtype) in DTYPES {
            let mut a = Arrays::new(&[515, 130]);
            a.m.iter_mut()
                .chain(&mut a.v)
                .filter(|x| !x.is_nan())
                .for_each(|x| *x = 0.0);
            let used = a.used();
            let mut exact: Vec<_> = a.segments.iter().map(|s| a.exact(s, dtype).0).collect();
            let mut rng = Rng(0xfade);
            for step in 1..=50 {
                for &i in &used {
                    a.set_gradient(i, 0.5 + rng.signed());
                }
                let h = Hyper {
                    lr: 1e-4,
                    step,
                    ..HYPER
                };
                a.step(path, &q, (dtype, grad_dtype), &h);
                for (s, want) in a.segments.iter().zip(&mut exact) {
                    let grad = a.exact(s, dtype).1;
                    reference::step(want, &grad, s.decay, &h);
                }
            }
            for (s, want) in a.segments.iter().zip(&exact) {
                assert_segment(&a, s, want, dtype, 3e-6);
            }
        }
    }
}

/// Without a gradient a weight moves by decay alone, and only where its segment asks for it.
#[test]
fn decay_is_decoupled_and_by_segment() {
    let q = Queue::new("test", 1);
    let keep = Constants::of(&HYPER).keep;
    let cases = paths()
        .into_iter()
        .flat_map(|path| Moments::ALL.map(|kind| (path, kind)));
    for (path, kind) in cases {
        let mut a = Arrays::new(&[70, 70]);
        for i in a.used() {
            let p = a.w32[i];
            a.set(i, p, 0.0, 0.0, 0.0);
        }
        let mut a = a.store_as(kind);
        let before = a.clone();
        a.step(path, &q, DTYPES[0], &HYPER);
        for (s, factor) in a.segments.iter().zip([keep, 1.0]) {
            for i in s.offset..s.offset + s.elements {
                let want = before.master(i, Dtype::Bf16) * factor;
                assert_eq!(
                    a.master(i, Dtype::Bf16).to_bits(),
                    want.to_bits(),
                    "{path:?} {i}"
                );
                assert_eq!(
                    (a.m[i], a.v[i]),
                    (0.0, 0.0),
                    "decay reached a moment at {i}"
                );
            }
        }
    }
}

#[test]
fn the_factors_of_a_step() {
    let first = Constants::of(&Hyper { step: 1, ..HYPER });
    // At step 1 both corrections undo the averaging: √c₂ = √(1 - β₂) and c₁ = 1 - β₁.
    assert_eq!(
        first.root_correction2,
        (1.0 - f64::from(HYPER.beta2)).sqrt() as f32
    );
    assert_eq!(
        first.minus_rate,
        (-f64::from(HYPER.lr) / (1.0 - f64::from(HYPER.beta1))) as f32
    );
    for n in [1_u64, 2, 3, 10, 1000, 123_457] {
        let (got, want) = (power(0.999, n), 0.999_f64.powf(n as f64));
        assert!(
            (got / want - 1.0).abs() < 1e-10,
            "0.999^{n}: {got} for {want}"
        );
    }
    let late = Constants::of(&Hyper {
        step: 1 << 40,
        ..HYPER
    });
    assert_eq!((late.root_correction2, late.minus_rate), (1.0, -HYPER.lr));
}
