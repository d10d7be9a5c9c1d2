//! RMSNorm on threads.

use lowtide_device::{Dst, Src};
use multiversion::multiversion;

use crate::number::{self, Number, sum};
use crate::rows::{self, Runs};

/// What forward left for backward.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    pub x: Src<'a>,
    pub rstd: Src<'a>,
    pub w: Src<'a>,
}

pub(super) fn forward<E: Number>(
    y: Dst<'_>,
    rstd: Dst<'_>,
    x: Src<'_>,
    w: Src<'_>,
    rows: usize,
    c: usize,
    eps: f32,
) {
    rows::each(rows, c, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y` and `rstd`, a row is one thread's; nobody writes the rest.
            unsafe {
                let y = number::write::<E>(&y, row * c, c);
                let x = number::read::<E>(x, row * c, c);
                let rstd = &mut number::write::<f32>(&rstd, row, 1)[0];
                *rstd = forward_row(y, x, number::read::<E>(w, 0, c), eps);
            }
        }
    });
}

/// `y = x·rstd·w`; returns rstd.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn forward_row<E: Number>(y: &mut [E], x: &[E], w: &[E], eps: f32) -> f32 {
    let squares = sum!(x.len(), |x| x * x);
    let rstd = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = E::narrow(x.widen() * rstd * w.widen());
    }
    rstd
}

pub(super) fn backward<E: Number>(
    dx: Dst<'_>,
    dw: Dst<'_>,
    dy: Src<'_>,
    saved: Saved<'_>,
    residual: Option<Src<'_>>,
    (rows, c): (usize, usize),
    accumulate: bool,
    ws: Dst<'_>,
) {
    let runs = Runs::new(rows);
    runs.each(&ws, c, |first, end, dw| {
        // SAFETY: the task owns `dx`, a row is one thread's; nobody writes the rest.
        unsafe {
            let w = number::read::<E>(saved.w, 0, c);
            let rstd = number::read::<f32>(saved.rstd, 0, rows);
            for (row, rstd) in rstd.iter().enumerate().take(end).skip(first) {
                let dx = number::write::<E>(&dx, row * c, c);
                let dy = number::read::<E>(dy, row * c, c);
                let x = number::read::<E>(saved.x, row * c, c);
                let residual = residual.map(|r| number::read::<E>(r, row * c, c));
                backward_row(dx, dw, dy, x, *rstd, w, residual);
            }
        }
    });
    runs.sum_partials(dw, 0, ws.src(), c, accumulate);
}

/// One row of dx; adds the row's part of dw.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_row<E: Number>(
    dx: &mut [E],
    dw: &mut [f32],
    dy: &[E],
    x: &[E],
    rstd: f32,
    w: &[E],
    residual: Option<&[E]>,
) {
    let n = dx.len();
    let (dw, dy, x, w) = (&mut dw[..n], &dy[..n], &x[..n], &w[..n]);
    let mean = sum!(n, |dy, w, x| dy * w * (x * rstd)) / n as f32;
    match residual {
        None => {
            for i in 0..n {
                let dx_i = gradient(dy[i].widen(), x[i].widen(), w[i].widen(), rstd, mean);
                dx[i] = E::narrow(dx_i);
            }
        }
        Some(residual) => {
            let residual = &residual[..n];
            for i in 0..n {
                let dx_i = gradient(dy[i].widen(), x[i].widen(), w[i].widen(), rstd, mean);
                dx[i] = E::narrow(dx_i + residual[i].widen());
            }
        }
    }
    for i in 0..n {
        dw[i] += dy[i].widen() * (x[i].widen() * rstd);
    }
}

#[inline(always)]
fn gradient(dy: f32, x: f32, w: f32, rstd: f32, mean: f32) -> f32 {
    rstd * (dy * w - x * rstd * mean)
}
