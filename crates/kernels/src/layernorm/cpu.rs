//! LayerNorm on threads.

use lowtide_device::Dst;
use multiversion::multiversion;

use super::{Backward, Forward};
use crate::Rows;
use crate::number::{self, Number, sum};
use crate::operands::Views;
use crate::rows::{self, Runs};

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, d: Rows, eps: f32) {
    let (rows, c) = (d.rows, d.width);
    rows::each(rows, c, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y`, `mean` and `rstd`, a row is one thread's; nobody writes
            // the rest.
            unsafe {
                let y = number::write::<E>(&o.y, row * c, c);
                let x = number::read::<E>(o.x, row * c, c);
                let w = number::read::<E>(o.w, 0, c);
                let b = o.b.map(|b| number::read::<E>(b, 0, c));
                let (m, r) = forward_row(y, x, w, b, eps);
                number::write::<f32>(&o.mean, row, 1)[0] = m;
                number::write::<f32>(&o.rstd, row, 1)[0] = r;
            }
        }
    });
}

/// One row of y; returns its mean and rstd. The variance is summed around the mean: `E[x²] - E[x]²`
/// would cancel.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_row<E: Number>(y: &mut [E], x: &[E], w: &[E], b: Option<&[E]>, eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum!(x.len(), |x| x) / n;
    let squares = sum!(x.len(), |x| (x - mean) * (x - mean));
    let rstd = 1.0 / (squares / n + eps).sqrt();
    match b {
        Some(b) => {
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = E::narrow((x.widen() - mean) * rstd * w.widen() + b.widen());
            }
        }
        None => {
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = E::narrow((x.widen() - mean) * rstd * w.widen());
            }
        }
    }
    (mean, rstd)
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, d: Rows, ws: Dst<'_>) {
    let (rows, c) = (d.rows, d.width);
    let runs = Runs::new(rows);
    runs.each(&ws, 2 * c, |first, end, partial| {
        let (dw, db) = partial.split_at_mut(c);
        // SAFETY: the task owns `dx`, a row is one thread's; nobody writes the rest.
        unsafe {
            let w = number::read::<E>(o.w, 0, c);
            let mean = number::read::<f32>(o.mean, 0, rows);
            let rstd = number::read::<f32>(o.rstd, 0, rows);
            for row in first..end {
                let dx = number::write::<E>(&o.dx, row * c, c);
                let dy = number::read::<E>(o.dy, row * c, c);
                let x = number::read::<E>(o.x, row * c, c);
                let residual = o.residual.map(|r| number::read::<E>(r, row * c, c));
                backward_row(dx, (dw, db), dy, x, (mean[row], rstd[row]), w, residual);
            }
        }
    });
    runs.sum_partials(o.dw, 0, ws.src(), 2 * c);
    runs.sum_partials(o.db, c, ws.src(), 2 * c);
}

/// One row of dx; adds the row's part of dw and db.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_row<E: Number>(
    dx: &mut [E],
    (dw, db): (&mut [f32], &mut [f32]),
    dy: &[E],
    x: &[E],
    (mean, rstd): (f32, f32),
    w: &[E],
    residual: Option<&[E]>,
) {
    let n = dx.len();
    let (dw, db, dy, x, w) = (&mut dw[..n], &mut db[..n], &dy[..n], &x[..n], &w[..n]);
    let mean_g = sum!(n, |dy, w| dy * w) / n as f32;
    let mean_g_hat = sum!(n, |dy, w, x| dy * w * ((x - mean) * rstd)) / n as f32;
    let means = (mean_g, mean_g_hat);
    match residual {
        None => {
            for i in 0..n {
                let hat = (x[i].widen() - mean) * rstd;
                let dx_i = gradient(dy[i].widen() * w[i].widen(), hat, rstd, means);
                dx[i] = E::narrow(dx_i);
            }
        }
        Some(residual) => {
            let residual = &residual[..n];
            for i in 0..n {
                let hat = (x[i].widen() - mean) * rstd;
                let dx_i = gradient(dy[i].widen() * w[i].widen(), hat, rstd, means);
                dx[i] = E::narrow(dx_i + residual[i].widen());
            }
        }
    }
    for i in 0..n {
        dw[i] += dy[i].widen() * ((x[i].widen() - mean) * rstd);
        db[i] += dy[i].widen();
    }
}

#[inline(always)]
fn gradient(g: f32, hat: f32, rstd: f32, (mean_g, mean_g_hat): (f32, f32)) -> f32 {
    rstd * (g - mean_g - hat * mean_g_hat)
}
