//! RMSNorm: each row divided by its root mean square, times a weight.
//!
//! Bound: bytes over memory rate. Forward reads x and writes y; backward reads dy, x and the
//! residual and writes dx.

mod cpu;
pub(crate) mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::rows::Runs;

/// Bytes of scratch of [`backward`].
#[must_use]
pub fn workspace(rows: usize, c: usize, make: Make) -> usize {
    match make {
        Make::Cpu => Runs::new(rows).workspace(c),
        Make::Cuda => cuda::Runs::new(rows).workspace(c),
    }
}

/// `rstd = 1/√(mean(x²) + eps)` for each row, `y = x·rstd·w`.
///
/// `y` and `x` are E (rows, C), `rstd` is f32 (rows), `w` is E (C).
pub fn forward(
    q: &Queue,
    y: Dst<'_>,
    rstd: Dst<'_>,
    x: Src<'_>,
    w: Src<'_>,
    rows: usize,
    c: usize,
    eps: f32,
    dtype: Dtype,
) {
    let e = size(dtype);
    expect("y", &y, rows * c, e);
    expect("rstd", &rstd, rows, size_of::<f32>());
    expect("x", x, rows * c, e);
    expect("w", w, c, e);
    if let Some(q) = q.cuda() {
        return cuda::forward(q, y, rstd, x, w, (rows, c), eps, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(y, rstd, x, w, rows, c, eps)));
}

/// `dx = rstd·(dy·w - x̂·mean(dy·w·x̂)) + residual` with `x̂ = x·rstd`, and `dw (+)= Σ dy·x̂` over
/// rows.
///
/// `dx`, `dy`, `x` and `residual` are E (rows, C), `dw` is f32 (C), `rstd` is f32 (rows), `w` is
/// E (C). The residual is the gradient that goes around the norm; the sum is rounded once.
pub fn backward(
    q: &Queue,
    dx: Dst<'_>,
    dw: Dst<'_>,
    dy: Src<'_>,
    x: Src<'_>,
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
    expect("dy", dy, rows * c, e);
    expect("x", x, rows * c, e);
    expect("rstd", rstd, rows, size_of::<f32>());
    expect("w", w, c, e);
    residual
        .into_iter()
        .for_each(|r| expect("residual", r, rows * c, e));
    expect_workspace(&ws, workspace(rows, c, q.make()));
    if let Some(q) = q.cuda() {
        let (to, saved) = ((dx, dw), (x, rstd, w));
        return cuda::backward(q, to, dy, saved, residual, (rows, c), accumulate, dtype, ws);
    }
    let saved = cpu::Saved { x, rstd, w };
    q.run(|| {
        with_dtype!(
            dtype,
            cpu::backward(dx, dw, dy, saved, residual, (rows, c), accumulate, ws)
        )
    });
}

#[cfg(test)]
mod tests;
