//! Rotary positions on the fused (rows, (H+2KV)·D) projection, with the optional norm of each query
//! and key head (Qwen3's) before the rotation.
//!
//! Number i of a head turns with number i + D/2, as transformers' `rotate_half`. Bound: bytes over
//! memory rate, one read and one write of the projection.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::rows::Runs;

/// Heads of the fused projection: H query heads, then KV key heads, then KV value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// H.
    pub heads: usize,
    /// KV.
    pub kv_heads: usize,
    /// D, even.
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
        let half = inv_freq.len();
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

/// The norm of query and key heads in [`forward`].
#[derive(Debug)]
pub struct QkNorm<'a> {
    /// Weight of query heads, E (D).
    pub wq: Src<'a>,
    /// Weight of key heads, E (D).
    pub wk: Src<'a>,
    /// f32 (rows, H+KV), written: 1/√(mean(x²) + eps) of each head.
    pub rstd: Dst<'a>,
    /// Added to the mean square.
    pub eps: f32,
}

/// The norm of query and key heads in [`backward`].
#[derive(Debug)]
pub struct QkNormBack<'a> {
    /// What forward read, E (rows, (H+2KV)·D).
    pub x: Src<'a>,
    /// What forward wrote, f32 (rows, H+KV).
    pub rstd: Src<'a>,
    /// Weight of query heads, E (D).
    pub wq: Src<'a>,
    /// Weight of key heads, E (D).
    pub wk: Src<'a>,
    /// Gradient of `wq`, f32 (D).
    pub dwq: Dst<'a>,
    /// Gradient of `wk`, f32 (D).
    pub dwk: Dst<'a>,
    /// Whether to add to `dwq` and `dwk`.
    pub accumulate: bool,
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
/// `y` and `x` are E (rows, (H+2KV)·D), `positions` is i32 (rows). A number is rounded once, after
/// the rotation. Every position is in the table: other ones panic on the CPU device and make their
/// row NaN on a CUDA device.
pub fn forward(
    q: &Queue,
    y: Dst<'_>,
    x: Src<'_>,
    positions: Src<'_>,
    table: &Table,
    norm: Option<QkNorm<'_>>,
    rows: usize,
    heads: Heads,
    dtype: Dtype,
) {
    let e = size(dtype);
    expect("y", &y, rows * heads.width(), e);
    expect("x", x, rows * heads.width(), e);
    expect("positions", positions, rows, size_of::<i32>());
    assert_eq!(2 * table.half, heads.head_dim, "table of another head size");
    if let Some(norm) = &norm {
        expect("wq", norm.wq, heads.head_dim, e);
        expect("wk", norm.wk, heads.head_dim, e);
        expect("rstd", &norm.rstd, rows * heads.rotated(), size_of::<f32>());
    }
    if let Some(q) = q.cuda() {
        return cuda::forward(q, y, x, positions, table, norm, rows, heads, dtype);
    }
    q.run(|| {
        with_dtype!(
            dtype,
            cpu::forward(y, x, positions, table, norm, rows, heads)
        )
    });
}

/// Gradient of [`forward`]: rotates back, then through the norm if there is one.
///
/// `dx` and `dy` are E (rows, (H+2KV)·D), `positions` is i32 (rows).
pub fn backward(
    q: &Queue,
    dx: Dst<'_>,
    dy: Src<'_>,
    positions: Src<'_>,
    table: &Table,
    norm: Option<QkNormBack<'_>>,
    rows: usize,
    heads: Heads,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let e = size(dtype);
    expect("dx", &dx, rows * heads.width(), e);
    expect("dy", dy, rows * heads.width(), e);
    expect("positions", positions, rows, size_of::<i32>());
    assert_eq!(2 * table.half, heads.head_dim, "table of another head size");
    if let Some(norm) = &norm {
        expect("x", norm.x, rows * heads.width(), e);
        expect("rstd", norm.rstd, rows * heads.rotated(), size_of::<f32>());
        expect("wq", norm.wq, heads.head_dim, e);
        expect("wk", norm.wk, heads.head_dim, e);
        expect("dwq", &norm.dwq, heads.head_dim, size_of::<f32>());
        expect("dwk", &norm.dwk, heads.head_dim, size_of::<f32>());
    }
    expect_workspace(&ws, workspace(rows, heads, norm.is_some(), q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, dx, dy, positions, table, norm, rows, heads, dtype, ws);
    }
    q.run(|| {
        with_dtype!(
            dtype,
            cpu::backward(dx, dy, positions, table, norm, rows, heads, ws)
        )
    });
}

#[cfg(test)]
mod tests;
