//! LayerNorm: each row made mean 0 and variance 1, times a weight, plus a bias.
//!
//! Bound: bytes over memory rate, as for RMSNorm.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::rows::Runs;

/// Bytes of scratch of [`backward`].
#[must_use]
pub fn workspace(rows: usize, c: usize, make: Make) -> usize {
    match make {
        Make::Cpu => Runs::new(rows).workspace(2 * c),
        Make::Cuda => crate::rmsnorm::cuda::Runs::new(rows).workspace(2 * c),
    }
}

/// `y = (x - mean)·rstd·w + b` with `rstd = 1/√(variance + eps)`, the variance that of the whole
/// row (divided by C).
///
/// `y` and `x` are E (rows, C), `mean` and `rstd` are f32 (rows), `w` and `b` are E (C).
pub fn forward(
    q: &Queue,
    y: Dst<'_>,
    mean: Dst<'_>,
    rstd: Dst<'_>,
    x: Src<'_>,
    w: Src<'_>,
    b: Src<'_>,
    rows: usize,
    c: usize,
    eps: f32,
    dtype: Dtype,
) {
    let e = size(dtype);
    expect("y", &y, rows * c, e);
    expect("mean", &mean, rows, size_of::<f32>());
    expect("rstd", &rstd, rows, size_of::<f32>());
    expect("x", x, rows * c, e);
    expect("w", w, c, e);
    expect("b", b, c, e);
    if let Some(q) = q.cuda() {
        return cuda::forward(q, (y, mean, rstd), (x, w, b), (rows, c), eps, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(y, mean, rstd, x, w, b, rows, c, eps)));
}

/// `dx = rstd·(g - mean(g) - x̂·mean(g·x̂)) + residual` with `g = dy·w` and `x̂ = (x - mean)·rstd`;
/// `dw (+)= Σ dy·x̂` and `db (+)= Σ dy` over rows.
///
/// `dx`, `dy`, `x` and `residual` are E (rows, C), `dw` and `db` are f32 (C), `mean` and `rstd` are
/// f32 (rows), `w` is E (C). The sum with the residual is rounded once.
pub fn backward(
    q: &Queue,
    dx: Dst<'_>,
    dw: Dst<'_>,
    db: Dst<'_>,
    dy: Src<'_>,
    x: Src<'_>,
    mean: Src<'_>,
    rstd: Src<'_>,
    w: Src<'_>,
    residual: Option<Src<'_>>,
    rows: usize,
    c: usize,
    accumulate: bool,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let e = size(dtype);
    expect("dx", &dx, rows * c, e);
    expect("dw", &dw, c, size_of::<f32>());
    expect("db", &db, c, size_of::<f32>());
    expect("dy", dy, rows * c, e);
    expect("x", x, rows * c, e);
    expect("mean", mean, rows, size_of::<f32>());
    expect("rstd", rstd, rows, size_of::<f32>());
    expect("w", w, c, e);
    residual
        .into_iter()
        .for_each(|r| expect("residual", r, rows * c, e));
    expect_workspace(&ws, workspace(rows, c, q.make()));
    let saved = cpu::Saved { x, mean, rstd, w };
    let to = cpu::Gradients { dx, dw, db };
    if let Some(q) = q.cuda() {
        return cuda::backward(q, to, dy, saved, residual, (rows, c), accumulate, dtype, ws);
    }
    q.run(|| {
        with_dtype!(
            dtype,
            cpu::backward(to, dy, saved, residual, rows, c, accumulate, ws)
        )
    });
}

#[cfg(test)]
mod tests;
