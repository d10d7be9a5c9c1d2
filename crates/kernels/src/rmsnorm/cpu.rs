//! RMSNorm on threads.

use lowtide_device::Dst;
use multiversion::multiversion;

use super::{Backward, Forward};
use crate::Rows;
use crate::number::{self, Number, sum};
use crate::operands::Views;
use crate::rows::{self, Runs};

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, d: Rows, eps: f32, plus: f32) {
    let (rows, c) = (d.rows, d.width);
    rows::each(rows, c, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y` and `rstd`, a row is one thread's; nobody writes the rest.
            unsafe {
                let y = number::write::<E>(&o.y, row * c, c);
                let x = number::read::<E>(o.x, row * c, c);
                let rstd = &mut number::write::<f32>(&o.rstd, row, 1)[0];
                *rstd = forward_row(y, x, number::read::<E>(o.w, 0, c), (eps, plus));
            }
        }
    });
}

/// `y = x·rstd·(w + plus)`; returns rstd.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn forward_row<E: Number>(
    y: &mut [E],
    x: &[E],
    w: &[E],
    (eps, plus): (f32, f32),
) -> f32 {
    let squares = sum!(x.len(), |x| x * x);
    let rstd = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = E::narrow(x.widen() * rstd * (w.widen() + plus));
    }
    rstd
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, d: Rows, plus: f32, ws: Dst<'_>) {
    let (rows, c) = (d.rows, d.width);
    let runs = Runs::new(rows);
    runs.each(&ws, c, |first, end, dw| {
        // SAFETY: the task owns `dx`, a row is one thread's; nobody writes the rest.
        unsafe {
            let w = number::read::<E>(o.w, 0, c);
            let rstd = number::read::<f32>(o.rstd, 0, rows);
            for (row, rstd) in rstd.iter().enumerate().take(end).skip(first) {
                let dx = number::write::<E>(&o.dx, row * c, c);
                let dy = number::read::<E>(o.dy, row * c, c);
                let x = number::read::<E>(o.x, row * c, c);
                let residual = o.residual.map(|r| number::read::<E>(r, row * c, c));
                backward_row(dx, dw, dy, x, *rstd, (w, plus), residual);
            }
        }
    });
    runs.sum_partials(o.dw, 0, ws.src(), c);
}

/// One row of dx; adds the row's part of dw.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn backward_row<E: Number>(
    dx: &mut [E],
    dw: &mut [f32],
    dy: &[E],
    x: &[E],
    rstd: f32,
    (w, plus): (&[E], f32),
    residual: Option<&[E]>,
) {
    let n = dx.len();
    let (dw, dy, x, w) = (&mut dw[..n], &dy[..n], &x[..n], &w[..n]);
    let mean = sum!(n, |dy, w, x| dy * (w + plus) * (x * rstd)) / n as f32;
    match residual {
        None => {
            for i in 0..n {
                let dx_i = gradient(dy[i].widen(), x[i].widen(), w[i].widen() + plus, rstd, mean);
                dx[i] = E::narrow(dx_i);
            }
        }
        Some(residual) => {
            let residual = &residual[..n];
            for i in 0..n {
                let dx_i = gradient(dy[i].widen(), x[i].widen(), w[i].widen() + plus, rstd, mean);
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
