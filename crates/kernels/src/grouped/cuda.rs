//! Grouped products on a GPU: a block a tile, which finds its expert from the offsets. bf16 on tensor cores, where 16
//! bytes may be read at once; f32 and other sizes by plain kernels.

use lowtide_device::Src;
use lowtide_device::cuda::{Queue, Source};
use lowtide_workload::Dtype;

use super::{Dims, Forward, Input, Weight};
use crate::cuda::define;
use crate::operands::Views;
use crate::rmsnorm::cuda::aligned;

static SOURCE: Source = Source {
    name: "grouped.cu",
    text: include_str!("grouped.cu"),
    headers: &[
        ("common.cuh", include_str!("../common.cuh")),
        ("flash_ptx.cuh", include_str!("../attention/flash_ptx.cuh")),
    ],
};

/// Threads of a block, edges of its tile on tensor cores and without them, and bytes of shared memory: as in
/// `grouped.cu`.
const THREADS: u32 = 256;
const TILE: usize = 128;
const EDGE: usize = 64;
const SHARED: usize = 3 * 2 * TILE * (32 + 8) * 2;

/// How tiles are computed.
#[derive(Clone, Copy)]
struct Way {
    edge: usize,
    shared: usize,
    plain: bool,
}

impl Way {
    fn of(d: Dims, addresses: [u64; 3]) -> Self {
        let whole = d.inner.is_multiple_of(8) && d.cols.is_multiple_of(8);
        match d.routes.dtype == Dtype::Bf16 && whole && aligned(&addresses) {
            true => Self {
                edge: TILE,
                shared: SHARED,
                plain: false,
            },
            false => Self {
                edge: EDGE,
                shared: 0,
                plain: true,
            },
        }
    }

    fn name(self, wide: &'static str, plain: &'static str) -> &'static str {
        if self.plain { plain } else { wide }
    }

    /// Tiles of rows, at most: each expert may have one that is not full.
    fn tiles(self, d: Dims) -> usize {
        let m = d.routes.sorted();
        m / self.edge + d.routes.experts.min(m)
    }
}

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, offsets: Src<'_>, d: Dims) {
    let way = Way::of(d, [o.y.address(), o.x.address(), o.w.address()]);
    let name = way.name("forward", "forward_plain");
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`); a routing's offsets
    // are rows of `x`.
    unsafe {
        q.kernel(&SOURCE, define(d.routes.dtype), name)
            .grid(way.tiles(d), d.cols.div_ceil(way.edge), 1)
            .block(THREADS)
            .shared(way.shared)
            .arg(&o.y)
            .arg(o.x)
            .arg(o.w)
            .arg(offsets)
            .arg(d.routes.experts)
            .arg(d.cols)
            .arg(d.inner)
            .launch();
    }
}

pub(super) fn backward_input(q: &Queue, o: Input<Views<'_>>, offsets: Src<'_>, d: Dims) {
    let way = Way::of(d, [o.dx.address(), o.dy.address(), o.w.address()]);
    let name = way.name("input", "input_plain");
    // SAFETY: as in `forward`.
    unsafe {
        q.kernel(&SOURCE, define(d.routes.dtype), name)
            .grid(way.tiles(d), d.inner.div_ceil(way.edge), 1)
            .block(THREADS)
            .shared(way.shared)
            .arg(&o.dx)
            .arg(o.dy)
            .arg(o.w)
            .arg(offsets)
            .arg(d.routes.experts)
            .arg(d.cols)
            .arg(d.inner)
            .launch();
    }
}

pub(super) fn backward_weight(q: &Queue, o: Weight<Views<'_>>, offsets: Src<'_>, d: Dims) {
    let way = Way::of(d, [o.dw.to.address(), o.dy.address(), o.x.address()]);
    let name = way.name("weight", "weight_plain");
    let (across, down) = (d.inner.div_ceil(way.edge), d.cols.div_ceil(way.edge));
    // SAFETY: as in `forward`.
    unsafe {
        q.kernel(&SOURCE, define(d.routes.dtype), name)
            .grid(across, down, d.routes.experts)
            .block(THREADS)
            .shared(way.shared)
            .arg(&o.dw.to)
            .arg(o.dy)
            .arg(o.x)
            .arg(offsets)
            .arg(d.cols)
            .arg(d.inner)
            .arg(o.dw.accumulate)
            .launch();
    }
}
