//! GELU on threads. ½·(1 + tanh(u)) is sigmoid(2u), which needs one exponential, as the exact form does.

use multiversion::multiversion;

use super::{Backward, Form, Forward};
use crate::number::{self, Number, exp, sigmoid};
use crate::operands::Views;
use crate::rows;

/// 2·√(2/π).
const TWICE_SLOPE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    x * sigmoid(TWICE_SLOPE * (x + CUBIC * x * x * x))
}

/// The derivative of [`gelu`] at x.
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    let s = sigmoid(TWICE_SLOPE * (x + CUBIC * x * x * x));
    let slope = TWICE_SLOPE * (1.0 + 3.0 * CUBIC * x * x);
    s + x * s * (1.0 - s) * slope
}

/// Φ(x), and its slope, the density: within 5 parts in ten million of each.
///
/// The tail, Φ(-|x|), is the exponential of the density times a polynomial of degree nine in 1 / (1 + 0.35·|x|). It
/// was fitted for the least largest relative error, 3.2e-8, up to |x| = 14; beyond that the exponential is 0.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let size = x.abs();
    let t = 1.0 / (0.35_f32.mul_add(size, 1.0));
    let p = -0.029_146_075_f32;
    let p = p.mul_add(t, 0.143_972_4);
    let p = p.mul_add(t, -0.255_715_7);
    let p = p.mul_add(t, 0.159_175_78);
    let p = p.mul_add(t, -0.023_110_94);
    let p = p.mul_add(t, 0.105_508_46);
    let p = p.mul_add(t, 0.119_832_754);
    let p = p.mul_add(t, 0.139_861_88);
    let p = p.mul_add(t, 0.139_621_4);
    let e = exp(-0.5 * size * size);
    let tail = e * (p * t);
    let whole = if x < 0.0 { tail } else { 1.0 - tail };
    (whole, 0.398_942_3 * e)
}

#[inline(always)]
fn exact(x: f32) -> f32 {
    x * normal(x).0
}

#[inline(always)]
fn exact_slope(x: f32) -> f32 {
    let (whole, density) = normal(x);
    x.mul_add(density, whole)
}

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, n: usize, form: Form) {
    rows::each(n, 1, |first, end| {
        // SAFETY: the task owns `y`, a run of it is one thread's; nobody writes `x`.
        unsafe {
            let x = number::read::<E>(o.x, first, end - first);
            let y = number::write::<E>(&o.y, first, end - first);
            match form {
                Form::Tanh => forward_run(y, x),
                Form::Exact => exact_run(y, x),
                Form::Relu => relu_run(y, x),
            }
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_run<E: Number>(y: &mut [E], x: &[E]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = E::narrow(gelu(x.widen()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn exact_run<E: Number>(y: &mut [E], x: &[E]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = E::narrow(exact(x.widen()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn relu_run<E: Number>(y: &mut [E], x: &[E]) {
    for (y, x) in y.iter_mut().zip(x) {
        let x = x.widen();
        // NaN stays NaN.
        *y = E::narrow(if x < 0.0 { 0.0 } else { x });
    }
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, n: usize, form: Form) {
    rows::each(n, 1, |first, end| {
        // SAFETY: the task owns `dx`, a run of it is one thread's; nobody writes the rest.
        unsafe {
            let x = number::read::<E>(o.x, first, end - first);
            let dy = number::read::<E>(o.dy, first, end - first);
            let dx = number::write::<E>(&o.dx, first, end - first);
            match form {
                Form::Tanh => backward_run(dx, dy, x),
                Form::Exact => exact_backward_run(dx, dy, x),
                Form::Relu => relu_backward_run(dx, dy, x),
            }
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_run<E: Number>(dx: &mut [E], dy: &[E], x: &[E]) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = E::narrow(dy.widen() * gelu_slope(x.widen()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn exact_backward_run<E: Number>(dx: &mut [E], dy: &[E], x: &[E]) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = E::narrow(dy.widen() * exact_slope(x.widen()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn relu_backward_run<E: Number>(dx: &mut [E], dy: &[E], x: &[E]) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        let flat = x.widen() <= 0.0;
        *dx = E::narrow(if flat { 0.0 } else { dy.widen() });
    }
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn the_normal_distribution_is_within_five_parts_in_ten_million() {
        // Where squares are rounded, the exponential of the tail is off by half of it at most.
        for i in -9_000..=9_000 {
            let x = i as f32 / 1000.0;
            let (wide, (have, density)) = (f64::from(x), normal(x));
            let want = 0.5 * libm::erfc(-wide / 2f64.sqrt());
            let slack = 5e-7 + 6e-8 * wide * wide / 2.0;
            let error = (f64::from(have) - want).abs() / want;
            assert!(error < slack, "Φ({x}) is off by {error:e}");
            let want = (-0.5 * wide * wide).exp() / std::f64::consts::TAU.sqrt();
            let error = (f64::from(density) - want).abs() / want;
            assert!(error < slack, "the density at {x} is off by {error:e}");
        }
        assert_eq!(normal(0.0).0, 0.5);
        assert_eq!(normal(-40.0), (0.0, 0.0));
        assert_eq!(normal(1e30), (1.0, 0.0));
        assert!(normal(f32::NAN).0.is_nan());
    }
}
