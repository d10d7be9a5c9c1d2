//! The gradient of a bias on a CUDA device.
//!
//! Bound: the bytes of dy over the memory's rate. Runs of rows are summed apart, by as many blocks
//! as fill a device, and then added in order: the order depends on the shape alone.

use lowtide_device::cuda::{self, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use super::Dims;
use crate::cuda::{define, source};
use crate::operands::Sum;

static SOURCE: Source = source!("bias", "bias.cu");

/// As in the source: warps of a block, columns of a block.
const WARPS: usize = 8;
const SLAB: usize = 256;
/// Fewest rows of a run, so that its partial sums are a percent of what it reads.
const SHORT: usize = 256;
/// Most partial sums of a column, which the last launch adds in order.
const RUNS: usize = 64;

/// Rows of a run, a multiple of the warps of a block.
fn run(rows: usize) -> usize {
    rows.div_ceil(RUNS).next_multiple_of(WARPS).max(SHORT)
}

/// Bytes of scratch of [`backward_bias`]: a sum for each run of rows and each column.
pub(super) fn bias_workspace(rows: usize, cols: usize) -> usize {
    rows.div_ceil(run(rows)) * cols * size_of::<f32>()
}

/// `db (+)= Σ dy` over rows: `db` is f32 (cols), `dy` is E (rows, cols); in the stream when the call
/// returns. The complete sum is added to what is there, in one addition a number.
pub(super) fn backward_bias(
    q: &cuda::Queue,
    db: Sum<'_>,
    dy: Src<'_>,
    d: Dims,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let (rows, cols) = (d.rows, d.cols);
    if rows == 0 {
        if !db.accumulate {
            q.fill(db.to, 0);
        }
        return;
    }
    let run = run(rows);
    let runs = rows.div_ceil(run);
    let parts = ws.part(0, bias_workspace(rows, cols));
    let wide = cols.is_multiple_of(8) && dy.address().is_multiple_of(16);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "runs")
            .grid(cols.div_ceil(SLAB), runs, 1)
            .block(32 * WARPS as u32)
            .arg(&parts)
            .arg(dy)
            .arg(rows)
            .arg(cols)
            .arg(run)
            .arg(wide)
            .launch();
    }
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "total")
            .grid(cols.div_ceil(32), 1, 1)
            .block(32 * WARPS as u32)
            .arg(&db.to)
            .arg(&parts)
            .arg(runs)
            .arg(cols)
            .arg(db.accumulate)
            .launch();
    }
}
