//! GELU against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Tensor, close, differences, dot, everywhere};

const FORMS: [Form; 3] = [Form::Tanh, Form::Exact, Form::Relu];

#[test]
fn agrees_with_the_reference() {
    for form in FORMS {
        agrees(form);
    }
}

fn agrees(form: Form) {
    for n in [1, 7, 8, 9, 129, 1000, 100_001] {
        for dtype in DTYPES {
            let mut rng = Rng(n as u64);
            let (x, dy) = (rng.tensor(n, dtype, 6.0), rng.tensor(n, dtype, 1.0));
            let done = everywhere(|q| {
                let (mut y, mut dx) = (Tensor::nan(n, dtype), Tensor::nan(n, dtype));
                let (mut x, mut dy) = (x.clone(), dy.clone());
                forward(
                    q,
                    Forward {
                        y: y.on(q),
                        x: x.src(q),
                    },
                    n,
                    form,
                    dtype,
                );
                let o = Backward {
                    dx: dx.on(q),
                    dy: dy.src(q),
                    x: x.src(q),
                };
                backward(q, o, n, form, dtype);
                (y, dx)
            });
            let want = reference::forward(&x.values(), form);
            let want_dx = reference::backward(&dy.values(), &x.values(), form);
            for (device, (y, dx)) in &done {
                close(&format!("y, {device}"), y, &want, 2e-6);
                close(&format!("dx, {device}"), dx, &want_dx, 4e-6);
            }
        }
    }
}

/// Parts of a larger tensor start at any number, not only where 16 bytes may be read at once.
#[test]
fn views_may_start_at_any_number() {
    let n = 10_000;
    for (form, dtype) in FORMS.into_iter().flat_map(|f| DTYPES.map(|d| (f, d))) {
        let all = Rng(3).tensor(n + 1, dtype, 6.0);
        let dy = Rng(4).tensor(n, dtype, 1.0);
        let done = everywhere(|q| {
            let (mut y, mut dx) = (Tensor::nan(n, dtype), Tensor::nan(n, dtype));
            let (mut all, mut dy) = (all.clone(), dy.clone());
            let x = all.src(q).part(size(dtype), n * size(dtype));
            forward(q, Forward { y: y.on(q), x }, n, form, dtype);
            let o = Backward {
                dx: dx.on(q),
                dy: dy.src(q),
                x,
            };
            backward(q, o, n, form, dtype);
            (y, dx)
        });
        let x = &all.values()[1..];
        let (want, want_dx) = (
            reference::forward(x, form),
            reference::backward(&dy.values(), x, form),
        );
        for (device, (y, dx)) in &done {
            close(&format!("y, {device}"), y, &want, 2e-6);
            close(&format!("dx, {device}"), dx, &want_dx, 4e-6);
        }
    }
}

#[test]
fn extreme_inputs_saturate() {
    for form in FORMS {
        saturates(form);
    }
}

fn saturates(form: Form) {
    let x = Tensor::of(&[-1000.0, -20.0, 20.0, 1000.0], Dtype::F32);
    let done = everywhere(|q| {
        let [mut y, mut dx] = [Tensor::nan(4, Dtype::F32), Tensor::nan(4, Dtype::F32)];
        let (mut x, mut dy) = (x.clone(), Tensor::of(&[1.0; 4], Dtype::F32));
        forward(
            q,
            Forward {
                y: y.on(q),
                x: x.src(q),
            },
            4,
            form,
            Dtype::F32,
        );
        let o = Backward {
            dx: dx.on(q),
            dy: dy.src(q),
            x: x.src(q),
        };
        backward(q, o, 4, form, Dtype::F32);
        (y, dx)
    });
    for (device, (y, dx)) in &done {
        close(&format!("y, {device}"), y, &[0.0, 0.0, 20.0, 1000.0], 1e-9);
        close(&format!("dx, {device}"), dx, &[0.0, 0.0, 1.0, 1.0], 1e-9);
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    let mut rng = Rng(1);
    let x: Vec<f64> = rng.vec(40).iter().map(|x| 3.0 * x).collect();
    let dy = rng.vec(40);
    for form in FORMS {
        let g = reference::backward(&dy, &x, form);
        differences("dx", &x, &g, |x| dot(&dy, &reference::forward(x, form)));
    }
}
