//! Shares of gradients on threads.

use super::{Add, Round};
use crate::number::{self, Number};
use crate::operands::Views;
use crate::rows;

pub(super) fn add<E: Number>(o: Add<Views<'_>>, n: usize) {
    rows::each(n, 1, |first, end| {
        let x = number::read::<E>(o.x, first, end - first);
        // SAFETY: the task owns `sum`, a run of it is one thread's; nobody writes `x`.
        let sum = unsafe { number::write::<f32>(&o.sum.to, first, end - first) };
        match o.sum.accumulate {
            true => number::add(sum, x),
            false => number::widen(sum, x),
        }
    });
}

pub(super) fn round<E: Number>(o: Round<Views<'_>>, n: usize) {
    rows::each(n, 1, |first, end| {
        let sum = number::read::<f32>(o.sum, first, end - first);
        // SAFETY: the task owns `y`, a run of it is one thread's; nobody writes `sum`.
        let y = unsafe { number::write::<E>(&o.y, first, end - first) };
        number::narrow(y, sum);
    });
}
