//! Multiples and sums on threads.

use multiversion::multiversion;

use super::Forward;
use crate::number::{self, Number};
use crate::operands::Views;
use crate::rows;

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, n: usize, factor: f32) {
    rows::each(n, 1, |first, end| {
        // SAFETY: the task owns `y`, a run of it is one thread's; nobody writes the rest.
        unsafe {
            let x = number::read::<E>(o.x, first, end - first);
            let y = number::write::<E>(&o.y, first, end - first);
            match o.residual {
                None => multiple(y, x, factor),
                Some(r) => sum(y, x, number::read::<E>(r, first, end - first), factor),
            }
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn multiple<E: Number>(y: &mut [E], x: &[E], factor: f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = E::narrow(factor * x.widen());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn sum<E: Number>(y: &mut [E], x: &[E], residual: &[E], factor: f32) {
    for ((y, x), r) in y.iter_mut().zip(x).zip(residual) {
        *y = E::narrow(factor * x.widen() + r.widen());
    }
}
