//! Norms of all queries and of all keys, on a GPU. As in RMSNorm, runs of rows leave partial sums of the weights'
//! gradients in `ws`.

use lowtide_device::Dst;
use lowtide_device::cuda::{Queue, Source};

use super::{Backward, Forward, Norm};
use crate::cuda::{define, source};
use crate::operands::Views;
use crate::rmsnorm::cuda::{Runs, sum_partials};

static SOURCE: Source = source!("qknorm", "qknorm.cu");

const THREADS: u32 = 256;

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, d: Norm) {
    let [queries, keys] = d.widths();
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), "forward")
            .grid(d.rows, 1, 1)
            .block(THREADS)
            .arg(&o.y)
            .arg(&o.rstd)
            .arg(o.x)
            .arg(o.wq)
            .arg(o.wk)
            .arg(queries)
            .arg(keys)
            .arg(d.eps)
            .launch();
    }
}

pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, d: Norm, ws: Dst<'_>) {
    let [queries, keys] = d.widths();
    let runs = Runs::new(d.rows);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(d.dtype), "backward")
            .grid(runs.count, 1, 1)
            .block(THREADS)
            .arg(&o.dx)
            .arg(&ws)
            .arg(o.dy)
            .arg(o.x)
            .arg(o.rstd)
            .arg(o.wq)
            .arg(o.wk)
            .arg(d.rows)
            .arg(queries)
            .arg(keys)
            .arg(runs.run)
            .launch();
    }
    let width = queries + keys;
    let sums = [(o.dwq, 0, queries), (o.dwk, queries, keys)];
    for (dw, from, n) in sums {
        let at = from * size_of::<f32>();
        let partials = ws.src().part(at, runs.workspace(width) - at);
        let to = dw.map(|dw| (dw, None));
        sum_partials(q, to, partials, (n, width), runs, d.dtype);
    }
}
