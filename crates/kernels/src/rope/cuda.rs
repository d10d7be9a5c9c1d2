//! Rotary positions on a GPU, and the table's copy there.

use std::sync::{Arc, OnceLock};

use lowtide_device::cuda::{CudaError, Launch, Queue, Source};
use lowtide_device::{Dst, Memory, Src, memory};
use lowtide_units::Bytes;
use lowtide_workload::Dtype;

use super::{Backward, Forward, Heads, Rotation, Table};
use crate::cuda::{define, source};
use crate::operands::Views;
use crate::rmsnorm::Plus;
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

/// Where a row's positions are, and the table on the device: what all kernels take after their tensors, with
/// sizes.
#[derive(Clone, Copy)]
struct Turns<'a> {
    positions: Src<'a>,
    on_device: Src<'a>,
    of: Rotation<'a>,
}

impl<'a> Turns<'a> {
    /// `None` where the table does not get there; the queue has the reason.
    fn new(q: &Queue, positions: Src<'a>, of: Rotation<'a>) -> Option<Self> {
        match table(q, of.table) {
            Ok(on_device) => Some(Self {
                positions,
                on_device,
                of,
            }),
            Err(e) => {
                q.fail(e);
                None
            }
        }
    }

    fn args<'l>(self, launch: Launch<'l>) -> Launch<'l> {
        let (heads, table) = (self.of.heads, self.of.table);
        let all = heads.heads + 2 * heads.kv_heads;
        assert!(heads.width() < 1 << 31, "rows of {} numbers", heads.width());
        launch
            .block(THREADS as u32)
            .arg(self.positions)
            .arg(self.on_device)
            .arg(table.cos.len() / table.half.max(1))
            .arg(self.of.rows)
            .arg(heads.heads as u32)
            .arg(heads.rotated() as u32)
            .arg(all as u32)
            .arg(heads.head_dim as u32)
    }

    /// Blocks of the plain kernel, a warp a head.
    fn plain_blocks(self) -> usize {
        let heads = self.of.heads;
        (self.of.rows * (heads.heads + 2 * heads.kv_heads)).div_ceil(WARPS)
    }
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
fn rotate(q: &Queue, (y, x): (&Dst<'_>, Src<'_>), turns: Turns<'_>, back: bool) {
    let r = turns.of;
    let (name, blocks) = if wide(r.heads, &[y.address(), x.address()]) {
        ("rotate_heads", r.rows.div_ceil(WARPS))
    } else {
        ("rotate_heads_plain", turns.plain_blocks())
    };
    let launch = turning(q, r.dtype, (name, blocks), (y, x));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        turns.args(launch).arg(back).launch();
    }
}

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, r: Rotation<'_>) {
    let Some(turns) = Turns::new(q, o.inputs.positions, r) else {
        return;
    };
    let Some(norm) = o.norm else {
        return rotate(q, (&o.y, o.x), turns, false);
    };
    let (name, blocks) = if wide_sums(
        r.heads,
        &[
            o.y.address(),
            o.x.address(),
            norm.wq.address(),
            norm.wk.address(),
        ],
    ) {
        ("rotate_normed", r.rows.div_ceil(WARPS))
    } else {
        ("rotate_normed_plain", turns.plain_blocks())
    };
    let launch = turning(q, r.dtype, (name, blocks), (&o.y, o.x));
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        turns
            .args(launch)
            .arg(norm.wq)
            .arg(norm.wk)
            .arg(&norm.rstd)
            .arg(r.eps)
            .arg(r.plus.number())
            .launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, r: Rotation<'_>, ws: Dst<'_>) {
    let Some(turns) = Turns::new(q, o.inputs.positions, r) else {
        return;
    };
    let Some(norm) = o.norm else {
        return rotate(q, (&o.dx, o.dy), turns, true);
    };
    let (runs, d) = (Runs::new(r.rows), r.heads.head_dim);
    assert!(
        (runs.run * r.heads.width()) < 1 << 32,
        "a run of {} rows of {} numbers",
        runs.run,
        r.heads.width()
    );
    let name = if wide_sums(
        r.heads,
        &[
            o.dx.address(),
            o.dy.address(),
            norm.x.address(),
            norm.wq.address(),
            norm.wk.address(),
        ],
    ) {
        match r.plus {
            Plus::Nothing => "backward_normed",
            Plus::One => "backward_normed_one",
        }
    } else {
        "backward_normed_plain"
    };
    // The wide kernels have no parameter for the last argument, which is then not read.
    let launch = q
        .kernel(&SOURCE, define(r.dtype), name)
        .grid(runs.count, 1, 1)
        .shared(WARPS * 2 * d * size_of::<f32>())
        .arg(&o.dx)
        .arg(&ws)
        .arg(o.dy);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        turns
            .args(launch)
            .arg(runs.run)
            .arg(norm.x)
            .arg(norm.rstd)
            .arg(norm.wq)
            .arg(norm.wk)
            .arg(r.plus.number())
            .launch();
    }
    let to = norm.dwq.map(|dwq| (dwq, norm.dwk.map(|dwk| dwk.to)));
    sum_partials(q, to, ws.src(), (d, 2 * d), runs, r.dtype);
}
