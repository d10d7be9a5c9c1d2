//! Rotary positions on threads.

use lowtide_device::Dst;
use multiversion::multiversion;

use super::{Backward, Forward, Heads, Rotation};
use crate::number::{self, Number, sum};
use crate::operands::{Sum, Views};
use crate::rows::{self, Runs};

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, r: Rotation<'_>) {
    let (rows, heads) = (r.rows, r.heads);
    let (width, d) = (heads.width(), heads.head_dim);
    rows::each(rows, width, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y` and `rstd`, a row is one thread's; nobody writes the rest.
            let (y, x, position, norm) = unsafe {
                let norm = o.norm.as_ref().map(|norm| Norm {
                    wq: number::read::<E>(norm.wq, 0, d),
                    wk: number::read::<E>(norm.wk, 0, d),
                    rstd: number::write(&norm.rstd, row * heads.rotated(), heads.rotated()),
                    eps: r.eps,
                    plus: r.plus.number(),
                });
                (
                    number::write::<E>(&o.y, row * width, width),
                    number::read::<E>(o.x, row * width, width),
                    number::read::<i32>(o.inputs.positions, row, 1)[0],
                    norm,
                )
            };
            forward_row(y, x, r.table.at(position), norm, heads);
        }
    });
}

/// [`super::QkNorm`] of one row.
struct Norm<'a, E> {
    wq: &'a [E],
    wk: &'a [E],
    rstd: &'a mut [f32],
    eps: f32,
    plus: f32,
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_row<E: Number>(
    y: &mut [E],
    x: &[E],
    (cos, sin): (&[f32], &[f32]),
    mut norm: Option<Norm<'_, E>>,
    heads: Heads,
) {
    let d = heads.head_dim;
    let half = d / 2;
    let rotated = heads.rotated() * d;
    let (cos, sin) = (&cos[..half], &sin[..half]);
    for (head, (y, x)) in y[..rotated]
        .chunks_exact_mut(d)
        .zip(x[..rotated].chunks_exact(d))
        .enumerate()
    {
        let (y1, y2) = y.split_at_mut(half);
        let (y2, x1, x2) = (&mut y2[..half], &x[..half], &x[half..][..half]);
        if let Some(norm) = &mut norm {
            let squares = sum!(d, |x| x * x);
            let rstd = 1.0 / (squares / d as f32 + norm.eps).sqrt();
            norm.rstd[head] = rstd;
            let w = if head < heads.heads { norm.wq } else { norm.wk };
            let (w1, w2, plus) = (&w[..half], &w[half..][..half], norm.plus);
            for i in 0..half {
                let a = x1[i].widen() * rstd * (w1[i].widen() + plus);
                let b = x2[i].widen() * rstd * (w2[i].widen() + plus);
                y1[i] = E::narrow(a * cos[i] - b * sin[i]);
                y2[i] = E::narrow(b * cos[i] + a * sin[i]);
            }
        } else {
            for i in 0..half {
                let (a, b) = (x1[i].widen(), x2[i].widen());
                y1[i] = E::narrow(a * cos[i] - b * sin[i]);
                y2[i] = E::narrow(b * cos[i] + a * sin[i]);
            }
        }
    }
    y[rotated..].copy_from_slice(&x[rotated..]);
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, r: Rotation<'_>, ws: Dst<'_>) {
    let (rows, heads) = (r.rows, r.heads);
    let (width, d) = (heads.width(), heads.head_dim);
    // SAFETY: the task owns `dx`, a row is one thread's; nobody writes the rest.
    let row_views = |row: usize| unsafe {
        (
            number::write::<E>(&o.dx, row * width, width),
            number::read::<E>(o.dy, row * width, width),
            r.table
                .at(number::read::<i32>(o.inputs.positions, row, 1)[0]),
        )
    };
    let Some(norm) = o.norm else {
        rows::each(rows, width, |first, end| {
            for row in first..end {
                let (dx, dy, turn) = row_views(row);
                backward_row(dx, dy, turn, heads);
            }
        });
        return;
    };
    let runs = Runs::new(rows);
    runs.each(&ws, 2 * d, |first, end, dw| {
        for row in first..end {
            let (dx, dy, turn) = row_views(row);
            let saved = Saved {
                x: number::read::<E>(norm.x, row * width, width),
                rstd: number::read(norm.rstd, row * heads.rotated(), heads.rotated()),
                wq: number::read::<E>(norm.wq, 0, d),
                wk: number::read::<E>(norm.wk, 0, d),
                plus: r.plus.number(),
            };
            backward_norm_row(dx, dw, dy, turn, saved, heads);
        }
    });
    let accumulate = norm.dwq.as_ref().is_some_and(|dwq| dwq.accumulate);
    let dwk = norm.dwk.map(|dwk| Sum { accumulate, ..dwk });
    runs.sum_partials(norm.dwq, 0, ws.src(), 2 * d);
    runs.sum_partials(dwk, d, ws.src(), 2 * d);
}

/// [`super::QkNormBackward`] of one row.
struct Saved<'a, E> {
    x: &'a [E],
    rstd: &'a [f32],
    wq: &'a [E],
    wk: &'a [E],
    plus: f32,
}

/// Rotates one row back.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_row<E: Number>(dx: &mut [E], dy: &[E], (cos, sin): (&[f32], &[f32]), heads: Heads) {
    let d = heads.head_dim;
    let half = d / 2;
    let rotated = heads.rotated() * d;
    let (cos, sin) = (&cos[..half], &sin[..half]);
    for (dx, dy) in dx[..rotated]
        .chunks_exact_mut(d)
        .zip(dy[..rotated].chunks_exact(d))
    {
        let (dx1, dx2) = dx.split_at_mut(half);
        let (dx2, dy1, dy2) = (&mut dx2[..half], &dy[..half], &dy[half..][..half]);
        for i in 0..half {
            let (a, b) = turn_back(dy1[i].widen(), dy2[i].widen(), cos[i], sin[i]);
            dx1[i] = E::narrow(a);
            dx2[i] = E::narrow(b);
        }
    }
    dx[rotated..].copy_from_slice(&dy[rotated..]);
}

/// Rotates one row back and through the norm; adds the row's part of dwq and dwk to `dw`, one
/// after the other.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_norm_row<E: Number>(
    dx: &mut [E],
    dw: &mut [f32],
    dy: &[E],
    (cos, sin): (&[f32], &[f32]),
    saved: Saved<'_, E>,
    heads: Heads,
) {
    let d = heads.head_dim;
    let half = d / 2;
    let rotated = heads.rotated() * d;
    let (cos, sin) = (&cos[..half], &sin[..half]);
    let (dwq, dwk) = dw.split_at_mut(d);
    for head in 0..heads.rotated() {
        let query = head < heads.heads;
        let (w, dw) = if query {
            (saved.wq, &mut *dwq)
        } else {
            (saved.wk, &mut *dwk)
        };
        let (w1, w2) = (&w[..half], &w[half..][..half]);
        let (dw1, dw2) = dw.split_at_mut(half);
        let (dx1, dx2) = dx[head * d..][..d].split_at_mut(half);
        let (dy1, dy2) = dy[head * d..][..d].split_at(half);
        let (x1, x2) = saved.x[head * d..][..d].split_at(half);
        let (rstd, plus) = (saved.rstd[head], saved.plus);
        let dot = sum!(half, |dy1, dy2, cos, sin, w1, w2, x1, x2| {
            let (n1, n2) = turn_back(dy1, dy2, cos, sin);
            n1 * (w1 + plus) * (x1 * rstd) + n2 * (w2 + plus) * (x2 * rstd)
        });
        let mean = dot / d as f32;
        for i in 0..half {
            let (n1, n2) = turn_back(dy1[i].widen(), dy2[i].widen(), cos[i], sin[i]);
            let (hat1, hat2) = (x1[i].widen() * rstd, x2[i].widen() * rstd);
            dw1[i] += n1 * hat1;
            dw2[i] += n2 * hat2;
            dx1[i] = E::narrow(rstd * (n1 * (w1[i].widen() + plus) - hat1 * mean));
            dx2[i] = E::narrow(rstd * (n2 * (w2[i].widen() + plus) - hat2 * mean));
        }
    }
    dx[rotated..].copy_from_slice(&dy[rotated..]);
}

/// The gradient of both halves before the rotation.
#[inline(always)]
fn turn_back(dy1: f32, dy2: f32, cos: f32, sin: f32) -> (f32, f32) {
    (dy1 * cos + dy2 * sin, dy2 * cos - dy1 * sin)
}
