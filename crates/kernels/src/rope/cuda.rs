//! Rotary positions on a GPU, and the table's copy there.

use std::sync::OnceLock;

use lowtide_device::cuda::{CudaError, Launch, Queue, Source};
use lowtide_device::{Memory, View, memory};
use lowtide_units::Bytes;
use lowtide_workload::Dtype;

use super::{Heads, QkNorm, QkNormBack, Table};
use crate::cuda::{define, source};
use crate::rmsnorm::cuda::{Runs, aligned, sum_partials};

static SOURCE: Source = source!("rope", "rope.cu");

const THREADS: usize = 256;
/// Warps of a block.
const WARPS: usize = THREADS / 32;
/// Heads that a thread has under way: `DEPTH` of the kernels.
const DEPTH: usize = 4;

/// Copies of a table on devices, by their number.
pub(super) type Copies = [OnceLock<Memory>; 16];

/// The table on this queue's device; copied there when it is first asked for, which blocks.
pub(super) fn table<'a>(q: &Queue, table: &'a Table) -> Result<View<'a>, CudaError> {
    let slot = &table.devices[usize::from(q.gpu().ordinal())];
    let whole = |m: &'a Memory| m.view(0, m.bytes().0);
    if let Some(memory) = slot.get() {
        return Ok(whole(memory));
    }
    // A position's cosines, then its sines: one run of memory a row.
    let rows = table.cos.chunks_exact(table.half);
    let numbers: Vec<f32> = rows
        .zip(table.sin.chunks_exact(table.half))
        .flat_map(|(cos, sin)| cos.iter().chain(sin).copied())
        .collect();
    let bytes = Bytes(size_of_val(numbers.as_slice()) as u64);
    let copy = Memory::cuda(q.gpu(), bytes)?;
    if bytes.0 > 0 {
        memory::store(&copy.view(0, bytes.0), &numbers);
    }
    // Where two threads came at once, one of two equal copies stays.
    Ok(whole(slot.get_or_init(|| copy)))
}

/// Threads that have a head in the wide kernels, where they can have it: eight numbers of its first
/// half and eight of its second each.
fn lanes(heads: Heads, views: &[View<'_>]) -> Option<usize> {
    let lanes = heads.head_dim / 16;
    (heads.head_dim.is_multiple_of(16) && (1..=THREADS).contains(&lanes) && aligned(views))
        .then_some(lanes)
}

/// As [`lanes`], where the threads of a head also sum over it, by exchanges within a warp.
fn summing_lanes(heads: Heads, views: &[View<'_>]) -> Option<usize> {
    lanes(heads, views).filter(|n| n.is_power_of_two() && *n <= 32)
}

/// Blocks, and rows of a block, that give each thread `DEPTH` heads at a time.
fn blocks(rows: usize, heads: Heads, lanes: usize) -> (usize, usize) {
    let all = heads.heads + 2 * heads.kv_heads;
    let block_rows = (DEPTH * (THREADS / lanes) / all.max(1)).max(1);
    (rows.div_ceil(block_rows), block_rows)
}

/// What all kernels take after their tensors.
fn shape<'a>(
    launch: Launch<'a>,
    positions: View<'_>,
    (on_device, table): (View<'_>, &Table),
    rows: usize,
    heads: Heads,
) -> Launch<'a> {
    let all = heads.heads + 2 * heads.kv_heads;
    assert!(heads.width() < 1 << 31, "rows of {} numbers", heads.width());
    launch
        .block(THREADS as u32)
        .arg(positions)
        .arg(on_device)
        .arg(table.cos.len() / table.half.max(1))
        .arg(rows)
        .arg(heads.heads as u32)
        .arg(heads.rotated() as u32)
        .arg(all as u32)
        .arg(heads.head_dim as u32)
}

/// Rotates one way or the other, without a norm.
fn rotate(
    q: &Queue,
    (y, x): (View<'_>, View<'_>),
    positions: View<'_>,
    table: (View<'_>, &Table),
    rows: usize,
    heads: Heads,
    dtype: Dtype,
    back: bool,
) {
    if let Some(lanes) = lanes(heads, &[y, x]) {
        let (blocks, block_rows) = blocks(rows, heads, lanes);
        let launch = q
            .kernel(&SOURCE, define(dtype), "rotate_heads")
            .grid(blocks, 1, 1)
            .arg(y)
            .arg(x);
        shape(launch, positions, table, rows, heads)
            .arg(block_rows as u32)
            .arg(back)
            .launch();
    } else {
        let launch = q
            .kernel(&SOURCE, define(dtype), "rotate_heads_plain")
            .grid(plain_blocks(rows, heads), 1, 1)
            .arg(y)
            .arg(x);
        shape(launch, positions, table, rows, heads)
            .arg(back)
            .launch();
    }
}

/// Blocks of the plain kernel, a warp a head.
fn plain_blocks(rows: usize, heads: Heads) -> usize {
    (rows * (heads.heads + 2 * heads.kv_heads)).div_ceil(WARPS)
}

pub(super) fn forward(
    q: &Queue,
    y: View<'_>,
    x: View<'_>,
    positions: View<'_>,
    turns: &Table,
    norm: Option<QkNorm<'_>>,
    rows: usize,
    heads: Heads,
    dtype: Dtype,
) {
    let on_device = match table(q, turns) {
        Ok(view) => view,
        Err(e) => return q.fail(e),
    };
    let turns = (on_device, turns);
    let Some(norm) = norm else {
        return rotate(q, (y, x), positions, turns, rows, heads, dtype, false);
    };
    let launch = if let Some(lanes) = summing_lanes(heads, &[y, x, norm.wq, norm.wk]) {
        let (blocks, block_rows) = blocks(rows, heads, lanes);
        let launch = q
            .kernel(&SOURCE, define(dtype), "rotate_normed")
            .grid(blocks, 1, 1)
            .arg(y)
            .arg(x);
        shape(launch, positions, turns, rows, heads).arg(block_rows as u32)
    } else {
        let launch = q
            .kernel(&SOURCE, define(dtype), "rotate_normed_plain")
            .grid(plain_blocks(rows, heads), 1, 1)
            .arg(y)
            .arg(x);
        shape(launch, positions, turns, rows, heads)
    };
    launch
        .arg(norm.wq)
        .arg(norm.wk)
        .arg(norm.rstd)
        .arg(norm.eps)
        .launch();
}

pub(super) fn backward(
    q: &Queue,
    dx: View<'_>,
    dy: View<'_>,
    positions: View<'_>,
    turns: &Table,
    norm: Option<QkNormBack<'_>>,
    rows: usize,
    heads: Heads,
    dtype: Dtype,
    ws: View<'_>,
) {
    let on_device = match table(q, turns) {
        Ok(view) => view,
        Err(e) => return q.fail(e),
    };
    let turns = (on_device, turns);
    let Some(norm) = norm else {
        return rotate(q, (dx, dy), positions, turns, rows, heads, dtype, true);
    };
    let (runs, d) = (Runs::new(rows), heads.head_dim);
    assert!(
        (runs.run * heads.width()) < 1 << 32,
        "a run of {} rows of {} numbers",
        runs.run,
        heads.width()
    );
    let wide = summing_lanes(heads, &[dx, dy, norm.x, norm.wq, norm.wk]).is_some();
    let name = if wide {
        "backward_normed"
    } else {
        "backward_normed_plain"
    };
    let launch = q
        .kernel(&SOURCE, define(dtype), name)
        .grid(runs.count, 1, 1)
        .shared(WARPS * 2 * d * size_of::<f32>())
        .arg(dx)
        .arg(ws)
        .arg(dy);
    shape(launch, positions, turns, rows, heads)
        .arg(runs.run)
        .arg(norm.x)
        .arg(norm.rstd)
        .arg(norm.wq)
        .arg(norm.wk)
        .launch();
    let to = (norm.dwq, Some(norm.dwk));
    sum_partials(q, to, ws, (d, 2 * d), runs, norm.accumulate, dtype);
}
