//! Rows around the experts' products, on threads.

use lowtide_device::Src;
use multiversion::multiversion;

use super::{Act, ActBackward, Combine, Gather};
use crate::number::{self, Number, sigmoid, sum};
use crate::operands::Views;
use crate::route::Routes;
use crate::rows;

pub(super) fn gather<E: Number>(o: Gather<Views<'_>>, tokens: Src<'_>, d: Routes, width: usize) {
    let tokens = tokens.read::<i32>();
    rows::each(d.sorted(), width, |first, end| {
        for (row, &token) in (first..).zip(&tokens[first..end]) {
            let from = number::read::<E>(o.x, token as usize * width, width);
            // SAFETY: the task owns `y`, a row is one thread's.
            unsafe { number::write::<E>(&o.y, row * width, width) }.copy_from_slice(from);
        }
    });
}

pub(super) fn combine<E: Number>(o: Combine<Views<'_>>, places: Src<'_>, d: Routes, width: usize) {
    let (k, places) = (d.chosen, places.read::<i32>());
    rows::each(d.rows, width * (k + 1), |first, end| {
        let mut total = vec![0.0; width];
        for row in first..end {
            let mut parts = places[row * k..(row + 1) * k].iter();
            let of = |place: &i32| number::read::<E>(o.x, *place as usize * width, width);
            number::widen(&mut total, parts.next().map_or(&[], of));
            parts.for_each(|place| number::add(&mut total, of(place)));
            number::add(
                &mut total,
                number::read::<E>(o.residual, row * width, width),
            );
            // SAFETY: the task owns `y`, a row is one thread's.
            number::narrow(
                unsafe { number::write::<E>(&o.y, row * width, width) },
                &total,
            );
        }
    });
}

pub(super) fn act<E: Number>(o: Act<Views<'_>>, d: Routes, f: usize) {
    let weights = o.weights.read::<f32>();
    rows::each(d.sorted(), 2 * f, |first, end| {
        for (row, &weight) in (first..).zip(&weights[first..end]) {
            let gate = number::read::<E>(o.gate_up, row * 2 * f, f);
            let up = number::read::<E>(o.gate_up, row * 2 * f + f, f);
            // SAFETY: the task owns `y`, a row is one thread's.
            act_row(
                unsafe { number::write::<E>(&o.y, row * f, f) },
                gate,
                up,
                weight,
            );
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn act_row<E: Number>(y: &mut [E], gate: &[E], up: &[E], weight: f32) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        let gate = gate.widen();
        *y = E::narrow(weight * (gate * sigmoid(gate) * up.widen()));
    }
}

pub(super) fn act_backward<E: Number>(o: ActBackward<Views<'_>>, d: Routes, f: usize) {
    let weights = o.weights.read::<f32>();
    rows::each(d.sorted(), 2 * f, |first, end| {
        for (row, &weight) in (first..).zip(&weights[first..end]) {
            let gate = number::read::<E>(o.gate_up, row * 2 * f, f);
            let up = number::read::<E>(o.gate_up, row * 2 * f + f, f);
            let dy = number::read::<E>(o.dy, row * f, f);
            // SAFETY: the task owns both, a row is one thread's.
            unsafe {
                let d = number::write::<E>(&o.d_gate_up, row * 2 * f, 2 * f);
                act_backward_row(d, dy, gate, up, weight);
                number::write::<f32>(&o.d_weights, row, 1)[0] = weight_of_row(dy, gate, up);
            }
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn act_backward_row<E: Number>(d: &mut [E], dy: &[E], gate: &[E], up: &[E], weight: f32) {
    let n = dy.len();
    let (d_gate, d_up) = d.split_at_mut(n);
    let (d_up, gate, up) = (&mut d_up[..n], &gate[..n], &up[..n]);
    for i in 0..n {
        let (dy, g) = (weight * dy[i].widen(), gate[i].widen());
        let s = sigmoid(g);
        d_gate[i] = E::narrow(dy * up[i].widen() * (s + g * s * (1.0 - s)));
        d_up[i] = E::narrow(dy * (g * s));
    }
}

/// `Σ dy·silu(gate)·up`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn weight_of_row<E: Number>(dy: &[E], gate: &[E], up: &[E]) -> f32 {
    sum!(dy.len(), |dy, gate, up| dy * (gate * sigmoid(gate) * up))
}
