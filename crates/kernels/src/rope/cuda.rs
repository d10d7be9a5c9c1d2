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

/// Whether a head can be spread over some threads of a warp, eight numbers of its first half and
/// eight of its second each: what the wide kernels need.
fn wide(heads: Heads, views: &[View<'_>]) -> bool {
    let d = heads.head_dim;
    d.is_multiple_of(16) && (16..=512).contains(&d) && aligned(views)
}

/// As [`wide`], where the threads of a head also sum over it, by exchanges within the warp.
fn wide_sums(heads: Heads, views: &[View<'_>]) -> bool {
    wide(heads, views) && heads.head_dim.is_power_of_two()
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

/// A kernel that makes `y` of `x`, and its blocks.
fn turning<'a>(
    q: &'a Queue,
    dtype: Dtype,
    (name, blocks): (&'static str, usize),
    (y, x): (View<'_>, View<'_>),
) -> Launch<'a> {
    q.kernel(&SOURCE, define(dtype), name)
        .grid(blocks, 1, 1)
        .arg(y)
        .arg(x)
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
    let (name, blocks) = if wide(heads, &[y, x]) {
        ("rotate_heads", rows.div_ceil(WARPS))
    } else {
        ("rotate_heads_plain", plain_blocks(rows, heads))
    };
    let launch = turning(q, dtype, (name, blocks), (y, x));
    shape(launch, positions, table, rows, heads)
        .arg(back)
        .launch();
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
    let (name, blocks) = if wide_sums(heads, &[y, x, norm.wq, norm.wk]) {
        ("rotate_normed", rows.div_ceil(WARPS))
    } else {
        ("rotate_normed_plain", plain_blocks(rows, heads))
    };
    let launch = turning(q, dtype, (name, blocks), (y, x));
    shape(launch, positions, turns, rows, heads)
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
    let name = if wide_sums(heads, &[dx, dy, norm.x, norm.wq, norm.wk]) {
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
