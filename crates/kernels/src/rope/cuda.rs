//! Rotary positions on a GPU, and the table's copy there.

use std::sync::{Arc, OnceLock};

use lowtide_device::cuda::{CudaError, Launch, Queue, Source};
use lowtide_device::{Dst, Memory, Src, memory};
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
pub(super) type Copies = Arc<[OnceLock<Memory>; 16]>;

/// The table on this queue's device; copied there when it is first asked for, which blocks.
pub(super) fn table<'a>(q: &Queue, table: &'a Table) -> Result<Src<'a>, CudaError> {
    let slot = &table.devices[usize::from(q.gpu().ordinal())];
    // SAFETY: once it is in its place nobody writes the copy any more.
    let whole = |m: &'a Memory| unsafe { m.src(0, m.bytes().0) };
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
    let mut copy = Memory::cuda(q.gpu(), bytes)?;
    if bytes.0 > 0 {
        memory::store(copy.all(), &numbers);
    }
    // Where two threads came at once, one of two equal copies stays.
    Ok(whole(slot.get_or_init(|| copy)))
}

/// Whether a head can be spread over some threads of a warp, eight numbers of its first half and
/// eight of its second each: what the wide kernels need.
fn wide(heads: Heads, addresses: &[u64]) -> bool {
    let d = heads.head_dim;
    d.is_multiple_of(16) && (16..=512).contains(&d) && aligned(addresses)
}

/// As [`wide`], where the threads of a head also sum over it, by exchanges within the warp.
fn wide_sums(heads: Heads, addresses: &[u64]) -> bool {
    wide(heads, addresses) && heads.head_dim.is_power_of_two()
}

/// What all kernels take after their tensors.
fn shape<'a>(
    launch: Launch<'a>,
    positions: Src<'_>,
    (on_device, table): (Src<'_>, &Table),
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
    (y, x): (&Dst<'_>, Src<'_>),
) -> Launch<'a> {
    q.kernel(&SOURCE, define(dtype), name)
        .grid(blocks, 1, 1)
        .arg(y)
        .arg(x)
}

/// Rotates one way or the other, without a norm.
fn rotate(
    q: &Queue,
    (y, x): (&Dst<'_>, Src<'_>),
    positions: Src<'_>,
    table: (Src<'_>, &Table),
    rows: usize,
    heads: Heads,
    dtype: Dtype,
    back: bool,
) {
    let (name, blocks) = if wide(heads, &[y.address(), x.address()]) {
        ("rotate_heads", rows.div_ceil(WARPS))
    } else {
        ("rotate_heads_plain", plain_blocks(rows, heads))
    };
    let launch = turning(q, dtype, (name, blocks), (y, x));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
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
    y: Dst<'_>,
    x: Src<'_>,
    positions: Src<'_>,
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
        return rotate(q, (&y, x), positions, turns, rows, heads, dtype, false);
    };
    let (name, blocks) = if wide_sums(
        heads,
        &[
            y.address(),
            x.address(),
            norm.wq.address(),
            norm.wk.address(),
        ],
    ) {
        ("rotate_normed", rows.div_ceil(WARPS))
    } else {
        ("rotate_normed_plain", plain_blocks(rows, heads))
    };
    let launch = turning(q, dtype, (name, blocks), (&y, x));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        shape(launch, positions, turns, rows, heads)
            .arg(norm.wq)
            .arg(norm.wk)
            .arg(&norm.rstd)
            .arg(norm.eps)
            .launch();
    }
}

pub(super) fn backward(
    q: &Queue,
    dx: Dst<'_>,
    dy: Src<'_>,
    positions: Src<'_>,
    turns: &Table,
    norm: Option<QkNormBack<'_>>,
    rows: usize,
    heads: Heads,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let on_device = match table(q, turns) {
        Ok(view) => view,
        Err(e) => return q.fail(e),
    };
    let turns = (on_device, turns);
    let Some(norm) = norm else {
        return rotate(q, (&dx, dy), positions, turns, rows, heads, dtype, true);
    };
    let (runs, d) = (Runs::new(rows), heads.head_dim);
    assert!(
        (runs.run * heads.width()) < 1 << 32,
        "a run of {} rows of {} numbers",
        runs.run,
        heads.width()
    );
    let name = if wide_sums(
        heads,
        &[
            dx.address(),
            dy.address(),
            norm.x.address(),
            norm.wq.address(),
            norm.wk.address(),
        ],
    ) {
        "backward_normed"
    } else {
        "backward_normed_plain"
    };
    let launch = q
        .kernel(&SOURCE, define(dtype), name)
        .grid(runs.count, 1, 1)
        .shared(WARPS * 2 * d * size_of::<f32>())
        .arg(&dx)
        .arg(&ws)
        .arg(dy);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        shape(launch, positions, turns, rows, heads)
            .arg(runs.run)
            .arg(norm.x)
            .arg(norm.rstd)
            .arg(norm.wq)
            .arg(norm.wk)
            .launch();
    }
    let to = (norm.dwq, Some(norm.dwk));
    sum_partials(q, to, ws.src(), (d, 2 * d), runs, norm.accumulate, dtype);
}
