//! The hyperbolic tangent on threads.

use multiversion::multiversion;

use super::{Backward, Forward};
use crate::number::{self, Number, tanh};
use crate::operands::Views;
use crate::rows;

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, n: usize) {
    rows::each(n, 1, |first, end| {
        // SAFETY: the task owns `y`, a run of it is one thread's; nobody writes the rest.
        let y = unsafe { number::write::<E>(&o.y, first, end - first) };
        values(y, number::read::<E>(o.x, first, end - first));
    });
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, n: usize) {
    rows::each(n, 1, |first, end| {
        // SAFETY: the task owns `dx`, a run of it is one thread's; nobody writes the rest.
        let dx = unsafe { number::write::<E>(&o.dx, first, end - first) };
        let [dy, y] = [o.dy, o.y].map(|from| number::read::<E>(from, first, end - first));
        gradients(dx, dy, y);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn values<E: Number>(y: &mut [E], x: &[E]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = E::narrow(tanh(x.widen()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn gradients<E: Number>(dx: &mut [E], dy: &[E], y: &[E]) {
    for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
        let t = y.widen();
        *dx = E::narrow(dy.widen() * (1.0 - t * t));
    }
}
