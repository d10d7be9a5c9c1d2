//! RMSNorm on a GPU, and what every operation shares that sums a gradient over rows.
//!
//! Runs of rows leave partial sums in `ws`, a second kernel adds them up. Where runs end is a
//! matter of the number of rows alone, so bits do not depend on the GPU.

use lowtide_device::cuda::{Queue, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use super::{Backward, Forward};
use crate::Rows;
use crate::cuda::define;
use crate::operands::{Sum, Views};

/// Header of the kernels that RMSNorm and LayerNorm share, beside the common one.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../common.cuh")),
    ("norm.cuh", include_str!("norm.cuh")),
];

pub(crate) static SOURCE: Source = Source {
    name: "rmsnorm.cu",
    text: include_str!("rmsnorm.cu"),
    headers: HEADERS,
};

/// Groups of eight numbers that a thread holds, and most warps of a block: as in `norm.cuh`.
pub(crate) const GROUPS: usize = 4;
const WARPS: usize = 16;
/// Groups that a thread of the backward kernel holds, as in `rmsnorm.cu`. Two, because registers must hold the next
/// row as well: it is loaded before this one is summed, so that loads and sums overlap.
const BACK_GROUPS: usize = 2;

/// How rows are cut when each run of them leaves one partial sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    /// Rows of a run; the last may have fewer.
    pub run: usize,
    /// How many runs, and so how many partial sums of each column.
    pub count: usize,
}

impl Runs {
    /// At most 256 runs of at least 8 rows: two blocks a multiprocessor of the largest GPUs, all
    /// at once, and a partial for 64 rows of 16384.
    pub(crate) fn new(rows: usize) -> Self {
        let run = rows.div_ceil(256).max(8);
        Self {
            run,
            count: rows.div_ceil(run),
        }
    }

    /// Bytes of partial sums, `width` numbers of `f32` a run.
    pub(crate) fn workspace(self, width: usize) -> usize {
        self.count * width * size_of::<f32>()
    }
}

/// Whether every address is one where 16 bytes may be read at once.
pub(crate) fn aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|at| at.is_multiple_of(16))
}

/// Teams of warps, each with a row of registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Teams {
    /// Warps of a team, which works on one row at a time.
    pub warps: usize,
    /// Teams of a block, about eight warps of them.
    pub teams: usize,
}

impl Teams {
    /// For rows of `c` numbers, of which a thread holds up to `groups` groups of eight; none where
    /// the plain kernels have to do.
    pub(crate) fn new(c: usize, groups: usize) -> Option<Self> {
        let warps = c.div_ceil(8 * 32 * groups).max(1);
        (c.is_multiple_of(8) && warps <= WARPS).then_some(Self {
            warps,
            teams: (8 / warps).max(1),
        })
    }

    /// Threads of a block.
    pub(crate) fn threads(self) -> u32 {
        (32 * self.warps * self.teams) as u32
    }
}

/// Threads of a block that has a row of `c` numbers in a plain kernel.
pub(crate) fn plain_threads(c: usize) -> u32 {
    c.next_multiple_of(32).clamp(32, 256) as u32
}

/// `first (+)= Σ partials[..n]` and, as `first` is, `second (+)= Σ partials[n..2n]` over runs of `width` numbers in
/// `ws`. The kernel is the same for either `dtype`: that of the module that is loaded anyway.
pub(crate) fn sum_partials(
    q: &Queue,
    sums: Option<(Sum<'_>, Option<Dst<'_>>)>,
    ws: Src<'_>,
    (n, width): (usize, usize),
    runs: Runs,
    dtype: Dtype,
) {
    let Some((first, second)) = sums else {
        return;
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "sum_partials")
            .grid(n.div_ceil(32), 1 + usize::from(second.is_some()), 1)
            .block(512)
            .arg(&first.to)
            .arg(second.as_ref())
            .arg(ws)
            .arg(n)
            .arg(width)
            .arg(runs.count)
            .arg(first.accumulate)
            .launch();
    }
}

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, d: Rows, eps: f32, plus: f32) {
    let (rows, c) = (d.rows, d.width);
    let launch = match Teams::new(c, GROUPS)
        .filter(|_| aligned(&[o.y.address(), o.x.address(), o.w.address()]))
    {
        Some(teams) => q
            .kernel(&SOURCE, define(d.dtype), "forward")
            .grid(rows.div_ceil(teams.teams), 1, 1)
            .block(teams.threads())
            .arg(&o.y)
            .arg(&o.rstd)
            .arg(o.x)
            .arg(o.w)
            .arg(rows)
            .arg(c)
            .arg(teams.warps as i32)
            .arg(eps)
            .arg(plus),
        None => q
            .kernel(&SOURCE, define(d.dtype), "forward_plain")
            .grid(rows, 1, 1)
            .block(plain_threads(c))
            .arg(&o.y)
            .arg(&o.rstd)
            .arg(o.x)
            .arg(o.w)
            .arg(c)
            .arg(eps)
            .arg(plus),
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch.launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, d: Rows, plus: f32, ws: Dst<'_>) {
    let (rows, c) = (d.rows, d.width);
    let runs = Runs::new(rows);
    let wide = aligned(&[
        o.dx.address(),
        o.dy.address(),
        o.x.address(),
        o.w.address(),
        o.residual.unwrap_or(o.dy).address(),
        ws.address(),
    ]);
    let teams = Teams::new(c, BACK_GROUPS).filter(|_| wide);
    let launch = match teams {
        Some(teams) => q
            .kernel(&SOURCE, define(d.dtype), "backward")
            .block(teams.threads())
            // Each team's sums: 32 KiB at most, as a team holds its row in 512 threads or fewer.
            .shared(teams.teams * c * size_of::<f32>()),
        None => q
            .kernel(&SOURCE, define(d.dtype), "backward_plain")
            .block(plain_threads(c)),
    };
    // The plain kernel has no parameter for the last argument, which is then not read.
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch
            .grid(runs.count, 1, 1)
            .arg(&o.dx)
            .arg(&ws)
            .arg(o.dy)
            .arg(o.x)
            .arg(o.rstd)
            .arg(o.w)
            .arg(o.residual)
            .arg(rows)
            .arg(c)
            .arg(runs.run)
            .arg(plus)
            .arg(teams.map_or(0, |t| t.warps as i32))
            .launch();
    }
    let to = o.dw.map(|dw| (dw, None));
    sum_partials(q, to, ws.src(), (c, c), runs, d.dtype);
}
