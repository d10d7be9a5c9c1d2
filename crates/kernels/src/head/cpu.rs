//! The head on threads.

use lowtide_device::{Dst, Src};
use multiversion::multiversion;

use super::{Bend, Counts, Head, Reads, Scratch, Train};
use crate::matmul::{Forward, Input, cpu as matmul};
use crate::number::{self, Number, exp, sum, tanh};
use crate::operands::{Sum, Views};
use crate::product::{Operand, product, with_scratch};
use crate::rows;

pub(super) fn train<E: Number>(mut o: Train<Views<'_>>, scale: f32, d: &Head, mut s: Scratch<'_>) {
    let (mut total, mut counts) = (0.0, Counts::default());
    let all = Reads::of(o.h, o.w, o.inputs);
    let row_bytes = d.hidden * size_of::<E>();
    for (first, n) in d.chunks() {
        let from = all.rows((first, n), d, size_of::<E>());
        chunk_logits::<E>(from, n, d, &mut s);
        chunk_losses::<E>(from.labels, Some(scale), d, &s, (&mut total, &mut counts));
        let dy = s.logits.src().part(0, n * d.vocab * size_of::<E>());
        let input = Input {
            dx: o.dh.lend(first * row_bytes, n * row_bytes),
            dy,
            w: o.w,
        };
        matmul::backward_input::<E>(input, d.dims(n), s.product.again());
        let Some(dw) = &mut o.dw else { continue };
        let dw = Sum {
            to: dw.to.again(),
            accumulate: dw.accumulate || first > 0,
        };
        matmul::backward_weight::<E>(dw, dy, from.h, d.dims(n), s.product.again());
    }
    let words = [total, f64::from(counts.rows)];
    o.loss.write().copy_from_slice(&words);
}

pub(super) fn loss<E: Number>(to: Dst<'_>, all: Reads<'_>, d: &Head, mut s: Scratch<'_>) {
    let (mut total, mut counts) = (0.0, Counts::default());
    for (first, n) in d.chunks() {
        let from = all.rows((first, n), d, size_of::<E>());
        chunk_logits::<E>(from, n, d, &mut s);
        chunk_losses::<E>(from.labels, None, d, &s, (&mut total, &mut counts));
    }
    to.write().copy_from_slice(&[total, counts.word()]);
}

/// Logits of `n` rows of h into the scratch.
fn chunk_logits<E: Number>(from: Reads<'_>, n: usize, d: &Head, s: &mut Scratch<'_>) {
    let logits = s.logits.lend(0, n * d.vocab * size_of::<E>());
    let linear = Forward::product(logits, from.h, from.w);
    matmul::forward::<E>(linear, d.dims(n), s.product.again());
}

/// Adds a chunk's losses to `total`, row by row, and counts them; with a scale, the logits become their
/// gradient, without one the first logit of a row becomes whether its label has the largest.
pub(super) fn chunk_losses<E: Number>(
    labels: Src<'_>,
    scale: Option<f32>,
    d: &Head,
    s: &Scratch<'_>,
    (total, counts): (&mut f64, &mut Counts),
) {
    let n = labels.bytes() / size_of::<i32>();
    let labels = number::read::<i32>(labels, 0, n);
    rows::each(n, d.vocab, |first, end| {
        for (row, label) in labels.iter().enumerate().take(end).skip(first) {
            // SAFETY: the task owns the workspace; a row of it is one thread's.
            let (logits, loss) = unsafe {
                let loss = &mut number::write::<f64>(&s.losses, row, 1)[0];
                (number::write::<E>(&s.logits, row * d.vocab, d.vocab), loss)
            };
            *loss = 0.0;
            if let (Ok(label), false) = (usize::try_from(*label), d.bend.is_none()) {
                *loss = bent_row(logits, label, d, scale);
                continue;
            }
            match (usize::try_from(*label), scale) {
                (Ok(label), Some(scale)) => {
                    *loss = trained_row(logits, label, scale, d.smoothing);
                }
                (Ok(label), None) => {
                    let row = loss_row(logits, label);
                    *loss = row.loss;
                    let right = is_right(logits, label, row.most);
                    logits[0] = E::narrow(f32::from(u8::from(right)));
                }
                (Err(_), Some(_)) => logits.fill(E::narrow(0.0)),
                (Err(_), None) => {}
            }
        }
    });
    let losses = number::read::<f64>(s.losses.src(), 0, n);
    let logits = number::read::<E>(s.logits.src(), 0, n * d.vocab);
    for (row, (loss, label)) in losses.iter().zip(labels).enumerate() {
        if *label >= 0 {
            *total += loss;
            counts.rows += 1;
            let right = scale.is_none() && logits[row * d.vocab].widen() == 1.0;
            counts.right += u32::from(right);
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

/// Whether the label's logit is the largest, `most`, and the first of those that are.
fn is_right<E: Number>(logits: &[E], label: usize, most: f32) -> bool {
    let is_most = |x: &E| x.widen() == most;
    is_most(&logits[label]) && !logits[..label].iter().any(is_most)
}

/// The loss of one row, whose logits become their gradient.
fn trained_row<E: Number>(logits: &mut [E], label: usize, scale: f32, smoothing: f32) -> f64 {
    let row = loss_row(logits, label);
    if smoothing == 0.0 {
        gradient_row(logits, label, row, scale);
        return row.loss;
    }
    let e = f64::from(smoothing);
    let mean = f64::from(mean_row(logits));
    // Sharp, it is lse - label; so is the part of the others lse - mean.
    let loss = row.loss + e * (f64::from(logits[label].widen()) - mean);
    smoothed_gradient_row(logits, label, row, scale, smoothing);
    loss
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn mean_row<E: Number>(logits: &[E]) -> f32 {
    sum!(logits.len(), |logits| logits) / logits.len() as f32
}

/// `(softmax - (1 - e)·onehot - e/V)·scale` in place of the logits.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn smoothed_gradient_row<E: Number>(
    logits: &mut [E],
    label: usize,
    row: Row,
    scale: f32,
    smoothing: f32,
) {
    let share = smoothing / logits.len() as f32;
    let p = exp(logits[label].widen() - row.most) / row.sum;
    let at_label = (p - (1.0 - smoothing) - share) * scale;
    let (factor, rest) = (scale / row.sum, share * scale);
    for logit in logits.iter_mut() {
        *logit = E::narrow(exp(logit.widen() - row.most) * factor - rest);
    }
    logits[label] = E::narrow(at_label);
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

/// The loss of one row whose logits are bent; with a scale, the product's results become their gradient, else the first
/// becomes whether the label has the largest.
fn bent_row<E: Number>(raw: &mut [E], label: usize, d: &Head, scale: Option<f32>) -> f64 {
    with_scratch(raw.len(), |logits| {
        number::widen(logits, raw);
        bent(logits, d.bend);
        if let Some(scale) = scale {
            let loss = trained_row(logits, label, scale, d.smoothing);
            unbend(raw, logits, d.bend);
            return loss;
        }
        let row = loss_row(logits, label);
        let right = is_right(logits, label, row.most);
        raw[0] = E::narrow(f32::from(u8::from(right)));
        row.loss
    })
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn bent(x: &mut [f32], bend: Bend) {
    for x in x.iter_mut() {
        *x *= bend.factor;
    }
    if let Some(cap) = bend.cap {
        for x in x.iter_mut() {
            *x = cap * tanh(*x / cap);
        }
    }
}

/// In place of the product's results, their gradients, from those of the logits.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn unbend<E: Number>(raw: &mut [E], gradient: &[f32], bend: Bend) {
    match bend.cap {
        None => number::narrow_scaled(raw, gradient, bend.factor),
        Some(cap) => {
            for (x, g) in raw.iter_mut().zip(gradient) {
                let t = tanh(x.widen() * bend.factor / cap);
                *x = E::narrow(g * bend.factor * (1.0 - t * t));
            }
        }
    }
}

pub(super) fn logits<E: Number>(
    out: Dst<'_>,
    from: Reads<'_>,
    seq: usize,
    d: &Head,
    mut s: Scratch<'_>,
) {
    let labels = number::read::<i32>(from.labels, 0, d.rows);
    let marked = |i: usize| labels[i * seq..][..seq].iter().position(|l| *l >= 0);
    let rows_out = d.rows / seq;
    for first in (0..rows_out).step_by(d.most().max(1)) {
        let n = d.most().min(rows_out - first);
        for i in 0..n {
            let row = d.hidden * size_of::<E>();
            let to = s.logits.lend(i * row, row).write::<E>();
            match marked(first + i) {
                Some(t) => to.copy_from_slice(number::read::<E>(
                    from.h,
                    ((first + i) * seq + t) * d.hidden,
                    d.hidden,
                )),
                None => to.fill(E::narrow(0.0)),
            }
        }
        let h = s.logits.src().part(0, n * d.hidden * size_of::<E>());
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
        product::<E>(h, w, (n, d.vocab, d.hidden), s.product.again(), |tile| {
            for (row, data) in tile.data.chunks_exact(tile.cols).enumerate() {
                let at = (first + tile.i + row) * d.vocab + tile.j;
                // SAFETY: the task owns `out`; tiles do not overlap.
                let to = unsafe { number::write::<f32>(&out, at, tile.cols) };
                to.copy_from_slice(data);
                if !d.bend.is_none() {
                    bent(to, d.bend);
                }
            }
        });
    }
}
