//! The embedding on threads.

use lowtide_device::{Dst, Src};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Dims, Forward, Index, Noise, unit};
use crate::Rows;
use crate::number::{self, Number};
use crate::operands::{Sum, Views};
use crate::rows;
use crate::update::moments::Random;

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, d: Dims) {
    let (rows, c) = (d.rows.rows, d.rows.width);
    let place = |plane, row, index: Index| index.of(number::read::<i32>(plane, row, 1)[0]);
    rows::each(rows, c, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y`, a row is one thread's; nobody writes the rest.
            unsafe {
                let y = number::write::<E>(&o.y, row * c, c);
                let token = place(o.inputs.tokens, row, Index::Plus(0));
                let w = number::read::<E>(o.tokens, token * c, c);
                let Some(positions) = o.positions else {
                    y.copy_from_slice(w);
                    continue;
                };
                let position = place(o.inputs.positions, row, d.position());
                let position = number::read::<E>(positions, position * c, c);
                if let Some(types) = o.types {
                    let of_type = place(o.inputs.labels, row, d.of_type());
                    add_three(y, w, number::read::<E>(types, of_type * c, c), position);
                } else {
                    add_rows(y, w, position);
                }
            }
        }
    });
}

pub(super) fn noise<E: Number>(y: &Dst<'_>, d: Rows, noise: Noise) {
    rows::each(d.rows, d.width, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y`, a row is one thread's.
            let y = unsafe { number::write::<E>(y, row * d.width, d.width) };
            add_noise(y, noise.row(row), noise.largest);
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_noise<E: Number>(y: &mut [E], random: Random, largest: f32) {
    for (i, y) in y.iter_mut().enumerate() {
        let drawn = unit(random.bits(i as u32));
        *y = E::narrow(drawn.mul_add(largest, y.widen()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_rows<E: Number>(y: &mut [E], a: &[E], b: &[E]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = E::narrow(a.widen() + b.widen());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_three<E: Number>(y: &mut [E], a: &[E], b: &[E], c: &[E]) {
    for (((y, a), b), c) in y.iter_mut().zip(a).zip(b).zip(c) {
        *y = E::narrow(a.widen() + b.widen() + c.widen());
    }
}

/// Sorts rows by token (counting sort, so rows of one token stay in order); then each row of the
/// table is one thread's.
pub(super) fn table<E: Number>(
    dw: Sum<'_>,
    (dy, tokens, index): (Src<'_>, Src<'_>, Index),
    d: Rows,
    vocab: usize,
    ws: Dst<'_>,
) {
    let (rows, c) = (d.rows, d.width);
    // SAFETY: the task owns the workspace; nobody writes the tokens.
    let (tokens, ends, order) = unsafe {
        (
            number::read::<i32>(tokens, 0, rows),
            number::write::<u32>(&ws, 0, vocab + 1),
            number::write::<u32>(&ws, vocab + 1, rows),
        )
    };
    sort((tokens, index), ends, order);
    // Counting left `ends[v]` where token v's rows end, which is where the next one's start.
    let (ends, order) = (&*ends, &*order);
    let run = (4096 / c.max(1)).max(1);
    (0..vocab.div_ceil(run)).into_par_iter().for_each(|i| {
        for v in i * run..vocab.min((i + 1) * run) {
            let start = if v == 0 { 0 } else { ends[v - 1] as usize };
            // SAFETY: the task owns `dw`; a row of it is one thread's.
            let to = unsafe { number::write::<f32>(&dw.to, v * c, c) };
            if !dw.accumulate {
                to.fill(0.0);
            }
            for row in &order[start..ends[v] as usize] {
                number::add(to, number::read::<E>(dy, *row as usize * c, c));
            }
        }
    });
}

/// Fills `order` with the positions of `tokens` sorted by token, and `ends[v]` with the end of
/// token v's run in it.
fn sort((tokens, index): (&[i32], Index), ends: &mut [u32], order: &mut [u32]) {
    ends.fill(0);
    for token in tokens {
        ends[index.of(*token) + 1] += 1;
    }
    for v in 1..ends.len() {
        ends[v] += ends[v - 1];
    }
    for (row, token) in tokens.iter().enumerate() {
        let place = &mut ends[index.of(*token)];
        order[*place as usize] = row as u32;
        *place += 1;
    }
}
