//! Rotary positions on the fused (rows, (H+2KV)·D) projection, with the optional norm of each query
//! and key head (Qwen3's, Gemma 3's) before the rotation.
//!
//! Number i of a head turns with number i + D/2, as transformers' `rotate_half`. Bound: bytes over
//! memory rate, one read and one write of the projection.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};
use crate::rmsnorm::Plus;
use crate::rows::Runs;

/// Heads of the fused projection: H query heads, then KV key heads, then KV value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// H: query heads.
    pub heads: usize,
    /// KV: key heads, and as many value heads.
    pub kv_heads: usize,
    /// D: numbers of a head, even because they are rotated in pairs.
    pub head_dim: usize,
}

impl Heads {
    /// Numbers of one row: (H+2KV)·D.
    #[must_use]
    pub fn width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Heads that are rotated: H+KV.
    #[must_use]
    pub fn rotated(self) -> usize {
        self.heads + self.kv_heads
    }
}

/// Cosines and sines of every position, computed in `f64` and rounded once to `f32`. On a CUDA
/// device it has a copy of its own, shared by clones: [`Table::place`].
#[derive(Clone, Debug)]
pub struct Table {
    /// (positions, D/2).
    cos: Vec<f32>,
    /// (positions, D/2).
    sin: Vec<f32>,
    /// D/2.
    half: usize,
    /// The same numbers on CUDA devices.
    devices: cuda::Copies,
}

impl Table {
    /// `attention_factor·cos(position·inv_freq[i])` and the sines for `max_positions` positions;
    /// `inv_freq` has D/2 entries.
    #[must_use]
    pub fn new(inv_freq: &[f64], attention_factor: f64, max_positions: usize) -> Self {
        Self::partial(inv_freq, attention_factor, inv_freq.len(), max_positions)
    }

    /// As [`Self::new`] for heads of `2·half` numbers. Only the first `inv_freq.len()` numbers of each half are
    /// rotated; the others stay as they are: their cosine is 1, without the factor, and their sine 0.
    ///
    /// # Panics
    /// When there are more frequencies than `half`.
    #[must_use]
    pub fn partial(
        inv_freq: &[f64],
        attention_factor: f64,
        half: usize,
        max_positions: usize,
    ) -> Self {
        let still = half.checked_sub(inv_freq.len());
        let still = still.expect("no more frequencies than half a head");
        let mut table = Self {
            cos: Vec::new(),
            sin: Vec::new(),
            half,
            devices: cuda::Copies::default(),
        };
        table.cos.reserve_exact(half * max_positions);
        table.sin.reserve_exact(half * max_positions);
        for position in 0..max_positions {
            for frequency in inv_freq {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                table.cos.push((cos * attention_factor) as f32);
                table.sin.push((sin * attention_factor) as f32);
            }
            table.cos.resize(table.cos.len() + still, 1.0);
            table.sin.resize(table.sin.len() + still, 0.0);
        }
        table
    }

    /// Bytes of the copy on a CUDA device: D numbers of `f32` a position.
    #[must_use]
    pub fn device_bytes(&self) -> usize {
        (self.cos.len() + self.sin.len()) * size_of::<f32>()
    }

    /// Copies the table to the queue's device, where that is a CUDA device without a copy; done
    /// when the call returns. The first launch does so too, but allocates then.
    pub fn place(&self, q: &Queue) {
        if let Some(q) = q.cuda()
            && let Err(e) = cuda::table(q, self)
        {
            q.fail(e);
        }
    }

    /// Cosines and sines of one position. Panics when the table has no such position.
    fn at(&self, position: i32) -> (&[f32], &[f32]) {
        let start = usize::try_from(position).expect("a position is not negative") * self.half;
        (
            &self.cos[start..start + self.half],
            &self.sin[start..start + self.half],
        )
    }
}

/// Sizes of a rotation, and what it turns by.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Cosines and sines, for heads of size D.
    pub table: &'a Table,
    /// Rows of x, one a token.
    pub rows: usize,
    /// Heads of a row.
    pub heads: Heads,
    /// Added to the mean square, where there is a norm.
    pub eps: f32,
    /// What is added to the norm's weights.
    pub plus: Plus,
    /// How numbers are stored (E).
    pub dtype: Dtype,
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (rows, (H+2KV)·D).
        pub y: F::Write,
        /// E (rows, (H+2KV)·D).
        pub x: F::Read,
        /// Of which positions, i32 (rows).
        pub inputs: F::Inputs,
        /// Where query and key heads are normed.
        pub norm: Option<QkNorm<F>>,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// E (rows, (H+2KV)·D).
        pub dx: F::Write,
        /// E (rows, (H+2KV)·D).
        pub dy: F::Read,
        /// As in forward.
        pub inputs: F::Inputs,
        /// Where query and key heads are normed.
        pub norm: Option<QkNormBackward<F>>,
    }
}

operands! {
    /// The norm of query and key heads in [`forward`].
    pub struct QkNorm<F> {
        /// f32 (rows, H+KV): 1/√(mean(x²) + eps) of each head.
        pub rstd: F::Write,
        /// Weight of query heads, E (D).
        pub wq: F::Read,
        /// Weight of key heads, E (D).
        pub wk: F::Read,
    }
}

operands! {
    /// The norm of query and key heads in [`backward`]. Both gradients are treated as `dwq` is: they are one
    /// kernel's. Where both weights are frozen there are none.
    pub struct QkNormBackward<F> {
        /// Gradient of `wq`, f32 (D).
        pub dwq: Option<F::Add>,
        /// Gradient of `wk`, f32 (D).
        pub dwk: Option<F::Add>,
        /// What forward read, E (rows, (H+2KV)·D).
        pub x: F::Read,
        /// What forward wrote, f32 (rows, H+KV).
        pub rstd: F::Read,
        /// Weight of query heads, E (D).
        pub wq: F::Read,
        /// Weight of key heads, E (D).
        pub wk: F::Read,
    }
}

/// Bytes of scratch of [`backward`], with or without the norm.
#[must_use]
pub fn workspace(rows: usize, heads: Heads, norm: bool, make: Make) -> usize {
    let width = 2 * heads.head_dim;
    match make {
        _ if !norm => 0,
        Make::Cpu => Runs::new(rows).workspace(width),
        Make::Cuda => crate::rmsnorm::cuda::Runs::new(rows).workspace(width),
    }
}

/// Rotates query and key heads by their row's position, after their norm if there is one; copies
/// value heads.
///
/// A number is rounded once, after the rotation. Every position is in the table: other ones panic on the
/// CPU device and make their row NaN on a CUDA device.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Rotation<'_>) {
    let (e, rows, heads) = (size(d.dtype), d.rows, d.heads);
    expect("y", &o.y, rows * heads.width(), e);
    expect("x", o.x, rows * heads.width(), e);
    d.check(o.inputs.positions);
    if let Some(norm) = &o.norm {
        expect("wq", norm.wq, heads.head_dim, e);
        expect("wk", norm.wk, heads.head_dim, e);
        expect("rstd", &norm.rstd, rows * heads.rotated(), size_of::<f32>());
    }
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d);
    }
    q.run(|| with_dtype!(d.dtype, cpu::forward(o, d)));
}

/// Gradient of [`forward`]: rotates back, then through the norm if there is one.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, d: Rotation<'_>, ws: Dst<'_>) {
    let (e, rows, heads) = (size(d.dtype), d.rows, d.heads);
    expect("dx", &o.dx, rows * heads.width(), e);
    expect("dy", o.dy, rows * heads.width(), e);
    d.check(o.inputs.positions);
    if let Some(norm) = &o.norm {
        expect("x", norm.x, rows * heads.width(), e);
        expect("rstd", norm.rstd, rows * heads.rotated(), size_of::<f32>());
        expect("wq", norm.wq, heads.head_dim, e);
        expect("wk", norm.wk, heads.head_dim, e);
        let (q, k) = (norm.dwq.is_some(), norm.dwk.is_some());
        assert_eq!(q, k, "gradients of one kernel");
        for sum in norm.dwq.iter().chain(&norm.dwk) {
            expect("dwq or dwk", &sum.to, heads.head_dim, size_of::<f32>());
        }
    }
    expect_workspace(&ws, workspace(rows, heads, o.norm.is_some(), q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, d, ws);
    }
    q.run(|| with_dtype!(d.dtype, cpu::backward(o, d, ws)));
}

impl Rotation<'_> {
    fn check(&self, positions: Src<'_>) {
        expect("positions", positions, self.rows, size_of::<i32>());
        let (have, want) = (2 * self.table.half, self.heads.head_dim);
        assert_eq!(have, want, "table of another head size");
    }
}

#[cfg(test)]
mod tests;
