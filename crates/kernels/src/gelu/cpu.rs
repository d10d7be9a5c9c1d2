//! GELU on threads. ½·(1 + tanh(u)) is sigmoid(2u), which needs one exponential.

use multiversion::multiversion;

use super::{Backward, Forward};
use crate::number::{self, Number, sigmoid};
use crate::operands::Views;
use crate::rows;

/// 2·√(2/π).
const TWICE_SLOPE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    x * sigmoid(TWICE_SLOPE * (x + CUBIC * x * x * x))
}

/// Its derivative.
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    let s = sigmoid(TWICE_SLOPE * (x + CUBIC * x * x * x));
    let slope = TWICE_SLOPE * (1.0 + 3.0 * CUBIC * x * x);
    s + x * s * (1.0 - s) * slope
}

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, n: usize) {
    rows::each(n, 1, |first, end| {
        // SAFETY: the task owns `y`, a run of it is one thread's; nobody writes `x`.
        unsafe {
            let x = number::read::<E>(o.x, first, end - first);
            forward_run(number::write::<E>(&o.y, first, end - first), x);
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_run<E: Number>(y: &mut [E], x: &[E]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = E::narrow(gelu(x.widen()));
    }
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, n: usize) {
    rows::each(n, 1, |first, end| {
        // SAFETY: the task owns `dx`, a run of it is one thread's; nobody writes the rest.
        unsafe {
            let x = number::read::<E>(o.x, first, end - first);
            let dy = number::read::<E>(o.dy, first, end - first);
            backward_run(number::write::<E>(&o.dx, first, end - first), dy, x);
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_run<E: Number>(dx: &mut [E], dy: &[E], x: &[E]) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = E::narrow(dy.widen() * gelu_slope(x.widen()));
    }
}
