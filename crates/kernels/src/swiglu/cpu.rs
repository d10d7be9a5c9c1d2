//! SwiGLU on threads.

use multiversion::multiversion;

use super::{Backward, Forward, Gate};
use crate::Rows;
use crate::gelu::cpu::{gelu, gelu_slope};
use crate::number::{self, Number, sigmoid};
use crate::operands::Views;
use crate::rows;

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, d: Rows, of: Gate) {
    let (rows, f) = (d.rows, d.width);
    rows::each(rows, 2 * f, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y`, a row is one thread's; nobody writes `gate_up`.
            unsafe {
                let gate = number::read::<E>(o.gate_up, row * 2 * f, f);
                let up = number::read::<E>(o.gate_up, row * 2 * f + f, f);
                let y = number::write::<E>(&o.y, row * f, f);
                match of {
                    Gate::Silu => forward_row(y, gate, up),
                    Gate::Gelu => gelu_row(y, gate, up),
                }
            }
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_row<E: Number>(y: &mut [E], gate: &[E], up: &[E]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        let gate = gate.widen();
        *y = E::narrow(gate * sigmoid(gate) * up.widen());
    }
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, d: Rows, of: Gate) {
    let (rows, f) = (d.rows, d.width);
    rows::each(rows, 2 * f, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `d_gate_up`, a row is one thread's; nobody writes the rest.
            unsafe {
                let gate = number::read::<E>(o.gate_up, row * 2 * f, f);
                let up = number::read::<E>(o.gate_up, row * 2 * f + f, f);
                let dy = number::read::<E>(o.dy, row * f, f);
                let d = number::write::<E>(&o.d_gate_up, row * 2 * f, 2 * f);
                match of {
                    Gate::Silu => backward_row(d, dy, gate, up),
                    Gate::Gelu => gelu_backward_row(d, dy, gate, up),
                }
            }
        }
    });
}

/// silu'(g) = s + g·s·(1 - s) with s = sigmoid(g).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_row<E: Number>(d: &mut [E], dy: &[E], gate: &[E], up: &[E]) {
    let (d_gate, d_up) = d.split_at_mut(dy.len());
    let n = dy.len();
    let (d_up, gate, up) = (&mut d_up[..n], &gate[..n], &up[..n]);
    for i in 0..n {
        let (dy, g) = (dy[i].widen(), gate[i].widen());
        let s = sigmoid(g);
        d_gate[i] = E::narrow(dy * up[i].widen() * (s + g * s * (1.0 - s)));
        d_up[i] = E::narrow(dy * (g * s));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn gelu_row<E: Number>(y: &mut [E], gate: &[E], up: &[E]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = E::narrow(gelu(gate.widen()) * up.widen());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn gelu_backward_row<E: Number>(d: &mut [E], dy: &[E], gate: &[E], up: &[E]) {
    let (d_gate, d_up) = d.split_at_mut(dy.len());
    let n = dy.len();
    let (d_up, gate, up) = (&mut d_up[..n], &gate[..n], &up[..n]);
    for i in 0..n {
        let (dy, g) = (dy[i].widen(), gate[i].widen());
        d_gate[i] = E::narrow(dy * up[i].widen() * gelu_slope(g));
        d_up[i] = E::narrow(dy * gelu(g));
    }
}
