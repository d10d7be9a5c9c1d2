//! The head on threads.

use lowtide_device::View;
use multiversion::multiversion;

use super::{Head, Scratch};
use crate::matmul::cpu as matmul;
use crate::number::{self, Number, exp, sum};
use crate::product::{Operand, product};
use crate::rows;

/// What training writes.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub dh: View<'a>,
    pub dw: View<'a>,
    pub loss: View<'a>,
}

/// What every operation reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub h: View<'a>,
    pub w: View<'a>,
    pub labels: View<'a>,
}

pub(super) fn train<E: Number>(
    to: Outputs<'_>,
    from: Inputs<'_>,
    scale: f32,
    d: &Head,
    accumulate: bool,
    s: Scratch<'_>,
) {
    let mut total = [0.0; 2];
    let row_bytes = d.hidden * size_of::<E>();
    for (first, n) in d.chunks() {
        let h = from.h.part(first * row_bytes, n * row_bytes);
        chunk_logits::<E>(h, from.w, n, d, s);
        chunk_losses::<E>(from.labels, (first, n), Some(scale), d, s, &mut total);
        let dlogits = s.logits.part(0, n * d.vocab * size_of::<E>());
        let dh = to.dh.part(first * row_bytes, n * row_bytes);
        matmul::backward_input::<E>(dh, dlogits, from.w, d.dims(n), s.product);
        let add = accumulate || first > 0;
        matmul::backward_weight::<E>(to.dw, dlogits, h, d.dims(n), add, s.product);
    }
    // SAFETY: the task owns `loss`.
    unsafe { number::write::<f64>(to.loss, 0, 2) }.copy_from_slice(&total);
}

pub(super) fn loss<E: Number>(to: View<'_>, from: Inputs<'_>, d: &Head, s: Scratch<'_>) {
    let mut total = [0.0; 2];
    let row_bytes = d.hidden * size_of::<E>();
    for (first, n) in d.chunks() {
        let h = from.h.part(first * row_bytes, n * row_bytes);
        chunk_logits::<E>(h, from.w, n, d, s);
        chunk_losses::<E>(from.labels, (first, n), None, d, s, &mut total);
    }
    // SAFETY: the task owns `loss`.
    unsafe { number::write::<f64>(to, 0, 2) }.copy_from_slice(&total);
}

/// Logits of `n` rows of h into the scratch.
fn chunk_logits<E: Number>(h: View<'_>, w: View<'_>, n: usize, d: &Head, s: Scratch<'_>) {
    let logits = s.logits.part(0, n * d.vocab * size_of::<E>());
    matmul::forward::<E>(logits, h, w, None, None, d.dims(n), s.product);
}

/// Adds a chunk's losses and count to `total`, row by row; with a scale, the logits become their
/// gradient.
fn chunk_losses<E: Number>(
    labels: View<'_>,
    (first, n): (usize, usize),
    scale: Option<f32>,
    d: &Head,
    s: Scratch<'_>,
    total: &mut [f64; 2],
) {
    // SAFETY: nobody writes the labels while the task runs.
    let labels = unsafe { number::read::<i32>(labels, first, n) };
    rows::each(n, d.vocab, |first, end| {
        for (row, label) in labels.iter().enumerate().take(end).skip(first) {
            // SAFETY: the task owns the workspace; a row of it is one thread's.
            let (logits, loss) = unsafe {
                let loss = &mut number::write::<f64>(s.losses, row, 1)[0];
                (number::write::<E>(s.logits, row * d.vocab, d.vocab), loss)
            };
            *loss = 0.0;
            match (usize::try_from(*label), scale) {
                (Ok(label), Some(scale)) => {
                    let row = loss_row(logits, label);
                    *loss = row.loss;
                    gradient_row(logits, label, row, scale);
                }
                (Ok(label), None) => *loss = loss_row(logits, label).loss,
                (Err(_), Some(_)) => logits.fill(E::narrow(0.0)),
                (Err(_), None) => {}
            }
        }
    });
    // SAFETY: the losses are complete.
    let losses = unsafe { number::read::<f64>(s.losses, 0, n) };
    for (loss, label) in losses.iter().zip(labels) {
        if *label >= 0 {
            total[0] += loss;
            total[1] += 1.0;
        }
    }
}

/// The softmax of one row.
#[derive(Clone, Copy)]
struct Row {
    most: f32,
    /// `Σ e^(logit - most)`.
    sum: f32,
    loss: f64,
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn loss_row<E: Number>(logits: &[E], label: usize) -> Row {
    let most = number::max(logits);
    let sum = sum!(logits.len(), |logits| exp(logits - most));
    let log = f64::from(most) + f64::from(sum).ln();
    Row {
        most,
        sum,
        loss: log - f64::from(logits[label].widen()),
    }
}

/// `(softmax - onehot)·scale` in place of the logits.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn gradient_row<E: Number>(logits: &mut [E], label: usize, row: Row, scale: f32) {
    let at_label = (exp(logits[label].widen() - row.most) / row.sum - 1.0) * scale;
    let factor = scale / row.sum;
    for logit in logits.iter_mut() {
        *logit = E::narrow(exp(logit.widen() - row.most) * factor);
    }
    logits[label] = E::narrow(at_label);
}

pub(super) fn logits<E: Number>(
    out: View<'_>,
    from: Inputs<'_>,
    seq: usize,
    d: &Head,
    s: Scratch<'_>,
) {
    // SAFETY: nobody writes the labels while the task runs.
    let labels = unsafe { number::read::<i32>(from.labels, 0, d.rows) };
    let marked = |i: usize| labels[i * seq..][..seq].iter().position(|l| *l >= 0);
    let rows_out = d.rows / seq;
    for first in (0..rows_out).step_by(d.most().max(1)) {
        let n = d.most().min(rows_out - first);
        for i in 0..n {
            // SAFETY: the task owns the workspace; nobody writes `h`.
            unsafe {
                let to = number::write::<E>(s.logits, i * d.hidden, d.hidden);
                match marked(first + i) {
                    Some(t) => to.copy_from_slice(number::read::<E>(
                        from.h,
                        ((first + i) * seq + t) * d.hidden,
                        d.hidden,
                    )),
                    None => to.fill(E::narrow(0.0)),
                }
            }
        }
        let h = s.logits.part(0, n * d.hidden * size_of::<E>());
        let h = Operand {
            view: h,
            stride: d.hidden,
            along_inner: true,
        };
        let w = Operand {
            view: from.w,
            stride: d.hidden,
            along_inner: true,
        };
        product::<E>(h, w, (n, d.vocab, d.hidden), s.product, |tile| {
            for (row, data) in tile.data.chunks_exact(tile.cols).enumerate() {
                let at = (first + tile.i + row) * d.vocab + tile.j;
                // SAFETY: the task owns `out`; tiles do not overlap.
                unsafe { number::write::<f32>(out, at, tile.cols) }.copy_from_slice(data);
            }
        });
    }
}
