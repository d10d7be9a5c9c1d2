//! LayerNorm on a GPU: RMSNorm's kernels with a mean, its runs and its second kernel.

use lowtide_device::cuda::{Queue, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use super::cpu::{Gradients, Saved};
use crate::cuda::define;
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

pub(super) fn forward(
    q: &Queue,
    (y, mean, rstd): (Dst<'_>, Dst<'_>, Dst<'_>),
    (x, w, b): (Src<'_>, Src<'_>, Src<'_>),
    (rows, c): (usize, usize),
    eps: f32,
    dtype: Dtype,
) {
    let launch = match Teams::new(c, GROUPS)
        .filter(|_| aligned(&[y.address(), x.address(), w.address(), b.address()]))
    {
        Some(teams) => q
            .kernel(&SOURCE, define(dtype), "forward")
            .grid(rows.div_ceil(teams.teams), 1, 1)
            .block(teams.threads())
            .arg(&y)
            .arg(&mean)
            .arg(&rstd)
            .arg(x)
            .arg(w)
            .arg(b)
            .arg(rows)
            .arg(c)
            .arg(teams.warps as i32)
            .arg(eps),
        None => q
            .kernel(&SOURCE, define(dtype), "forward_plain")
            .grid(rows, 1, 1)
            .block(plain_threads(c))
            .arg(&y)
            .arg(&mean)
            .arg(&rstd)
            .arg(x)
            .arg(w)
            .arg(b)
            .arg(c)
            .arg(eps),
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch.launch();
    }
}

pub(super) fn backward(
    q: &Queue,
    to: Gradients<'_>,
    dy: Src<'_>,
    saved: Saved<'_>,
    residual: Option<Src<'_>>,
    (rows, c): (usize, usize),
    accumulate: bool,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let runs = Runs::new(rows);
    let wide = aligned(&[
        to.dx.address(),
        dy.address(),
        saved.x.address(),
        saved.w.address(),
        residual.unwrap_or(dy).address(),
        ws.address(),
    ]);
    let teams = Teams::new(c, GROUPS).filter(|t| wide && shared(*t) <= SHARED);
    let launch = match teams {
        Some(teams) => q
            .kernel(&SOURCE, define(dtype), "backward")
            .block(teams.threads())
            .shared(shared(teams)),
        None => q
            .kernel(&SOURCE, define(dtype), "backward_plain")
            .block(plain_threads(c)),
    };
    // The plain kernel has no parameter for the last argument, which is then not read.
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch
            .grid(runs.count, 1, 1)
            .arg(&to.dx)
            .arg(&ws)
            .arg(dy)
            .arg(saved.x)
            .arg(saved.mean)
            .arg(saved.rstd)
            .arg(saved.w)
            .arg(residual)
            .arg(rows)
            .arg(c)
            .arg(runs.run)
            .arg(teams.map_or(0, |t| t.warps as i32))
            .launch();
    }
    let to = (to.dw, Some(to.db));
    sum_partials(q, to, ws.src(), (c, 2 * c), runs, accumulate, dtype);
}
