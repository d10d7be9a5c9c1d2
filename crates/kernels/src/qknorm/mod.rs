//! RMSNorm of all query heads of a token together, and of all its key heads (OLMo 2's), on the fused (rows,
//! (H+2KV)·D) projection. Values are not changed.
//!
//! Norms of each head by itself are done with the rotation ([`crate::rope`]). Bound: bytes over memory rate, one read
//! and one write of the projection.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};
use crate::rope::Heads;
use crate::rows::Runs;

/// Sizes of such a norm.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Rows of x, one a token.
    pub rows: usize,
    /// Heads of a row; values are not normed.
    pub heads: Heads,
    /// Added to the mean square.
    pub eps: f32,
    /// How numbers are stored (E).
    pub dtype: Dtype,
}

impl Norm {
    /// Numbers of a row that are queries, and that are keys.
    fn widths(self) -> [usize; 2] {
        let h = self.heads;
        [h.heads * h.head_dim, h.kv_heads * h.head_dim]
    }
}

/// Bytes of scratch of [`backward`].
#[must_use]
pub fn workspace(rows: usize, heads: Heads, make: Make) -> usize {
    let width = heads.rotated() * heads.head_dim;
    match make {
        Make::Cpu => Runs::new(rows).workspace(width),
        Make::Cuda => crate::rmsnorm::cuda::Runs::new(rows).workspace(width),
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (rows, (H+2KV)·D).
        pub y: F::Write,
        /// f32 (rows, 2): of queries, then of keys.
        pub rstd: F::Write,
        /// E (rows, (H+2KV)·D).
        pub x: F::Read,
        /// Weight of queries, E (H·D).
        pub wq: F::Read,
        /// Weight of keys, E (KV·D).
        pub wk: F::Read,
    }
}

operands! {
    /// Operands of [`backward`]. Both gradients are treated as `dwq` is: they are one kernel's. Where both weights
    /// are frozen there are none.
    pub struct Backward<F> {
        /// E (rows, (H+2KV)·D).
        pub dx: F::Write,
        /// Gradient of `wq`, f32 (H·D).
        pub dwq: Option<F::Add>,
        /// Gradient of `wk`, f32 (KV·D).
        pub dwk: Option<F::Add>,
        /// E (rows, (H+2KV)·D).
        pub dy: F::Read,
        /// What forward read, E (rows, (H+2KV)·D).
        pub x: F::Read,
        /// What forward wrote, f32 (rows, 2).
        pub rstd: F::Read,
        /// Weight of queries, E (H·D).
        pub wq: F::Read,
        /// Weight of keys, E (KV·D).
        pub wk: F::Read,
    }
}

/// Of the queries of each row, and of its keys: `rstd = 1/√(mean(x²) + eps)`, `y = x·rstd·w`. Values are copied.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Norm) {
    let (e, n) = (size(d.dtype), d.rows * d.heads.width());
    let [queries, keys] = d.widths();
    expect("y", &o.y, n, e);
    expect("rstd", &o.rstd, 2 * d.rows, size_of::<f32>());
    expect("x", o.x, n, e);
    expect("wq", o.wq, queries, e);
    expect("wk", o.wk, keys, e);
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d);
    }
    q.run(|| with_dtype!(d.dtype, cpu::forward(o, d)));
}

/// Gradient of [`forward`].
pub fn backward(q: &Queue, o: Backward<Views<'_>>, d: Norm, ws: Dst<'_>) {
    let (e, n) = (size(d.dtype), d.rows * d.heads.width());
    let [queries, keys] = d.widths();
    expect("dx", &o.dx, n, e);
    assert_eq!(o.dwq.is_some(), o.dwk.is_some(), "gradients of one kernel");
    o.dwq
        .iter()
        .for_each(|dw| expect("dwq", &dw.to, queries, size_of::<f32>()));
    o.dwk
        .iter()
        .for_each(|dw| expect("dwk", &dw.to, keys, size_of::<f32>()));
    expect("dy", o.dy, n, e);
    expect("x", o.x, n, e);
    expect("rstd", o.rstd, 2 * d.rows, size_of::<f32>());
    expect("wq", o.wq, queries, e);
    expect("wk", o.wk, keys, e);
    expect_workspace(&ws, workspace(d.rows, d.heads, q.make()));
    let accumulate = o.dwq.as_ref().is_some_and(|dwq| dwq.accumulate);
    let dwk = o.dwk.map(|dwk| crate::operands::Sum { accumulate, ..dwk });
    let o = Backward { dwk, ..o };
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, d, ws);
    }
    q.run(|| with_dtype!(d.dtype, cpu::backward(o, d, ws)));
}

#[cfg(test)]
mod tests;
