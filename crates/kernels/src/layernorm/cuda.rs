//! LayerNorm on a GPU: RMSNorm's kernels with a mean, its runs and its second kernel.

use lowtide_device::Dst;
use lowtide_device::cuda::{Queue, Source};

use super::{Backward, Forward};
use crate::Rows;
use crate::cuda::define;
use crate::operands::Views;
use crate::rmsnorm::cuda::{GROUPS, HEADERS, Runs, Teams, aligned, plain_threads, sum_partials};

static SOURCE: Source = Source {
    name: "layernorm.cu",
    text: include_str!("layernorm.cu"),
    headers: HEADERS,
};

/// Dynamic shared memory that every GPU since 8.0 grants a block (8.6 has 99 KiB), less what is
/// static.
const SHARED: usize = 96 << 10;

/// Bytes of shared memory for the backward kernel's two sums over rows.
fn shared(teams: Teams) -> usize {
    2 * 8 * GROUPS * teams.threads() as usize * size_of::<f32>()
}

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, d: Rows, eps: f32) {
    let (rows, c) = (d.rows, d.width);
    let launch = match Teams::new(c, GROUPS).filter(|_| {
        let b = o.b.unwrap_or(o.w).address();
        aligned(&[o.y.address(), o.x.address(), o.w.address(), b])
    }) {
        Some(teams) => q
            .kernel(&SOURCE, define(d.dtype), "forward")
            .grid(rows.div_ceil(teams.teams), 1, 1)
            .block(teams.threads())
            .arg(&o.y)
            .arg(&o.mean)
            .arg(&o.rstd)
            .arg(o.x)
            .arg(o.w)
            .arg(o.b)
            .arg(rows)
            .arg(c)
            .arg(teams.warps as i32)
            .arg(eps),
        None => q
            .kernel(&SOURCE, define(d.dtype), "forward_plain")
            .grid(rows, 1, 1)
            .block(plain_threads(c))
            .arg(&o.y)
            .arg(&o.mean)
            .arg(&o.rstd)
            .arg(o.x)
            .arg(o.w)
            .arg(o.b)
            .arg(c)
            .arg(eps),
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch.launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, d: Rows, ws: Dst<'_>) {
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
    let teams = Teams::new(c, GROUPS).filter(|t| wide && shared(*t) <= SHARED);
    let launch = match teams {
        Some(teams) => q
            .kernel(&SOURCE, define(d.dtype), "backward")
            .block(teams.threads())
            .shared(shared(teams)),
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
            .arg(o.mean)
            .arg(o.rstd)
            .arg(o.w)
            .arg(o.residual)
            .arg(rows)
            .arg(c)
            .arg(runs.run)
            .arg(teams.map_or(0, |t| t.warps as i32))
            .launch();
    }
    let to = o.dw.map(|dw| (dw, o.db.map(|db| db.to)));
    sum_partials(q, to, ws.src(), (c, 2 * c), runs, d.dtype);
}
