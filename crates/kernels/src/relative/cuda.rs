//! Pairs of queries and keys, and tables of relative positions, on a GPU.

use lowtide_device::Dst;
use lowtide_device::cuda::{Queue, Source};
use lowtide_workload::Dtype;

use super::{Backward, Forward, Pair, table};
use crate::cuda::{define, source};
use crate::operands::{Sum, Views};

static SOURCE: Source = source!("relative", "relative.cu");

/// Bytes of what each query sees, of what sees each key, and of a number for each query and head.
fn parts(p: &Pair) -> [usize; 3] {
    let (queries, keys) = (p.batch * p.queries, p.batch * p.keys);
    [8 * queries, 8 * keys, 4 * queries * p.heads]
}

pub(super) fn workspace(p: &Pair) -> usize {
    parts(p).iter().sum()
}

/// Makes the ranges of what is seen, in the workspace.
fn ranges<'a>(
    q: &Queue,
    starts: [lowtide_device::Src<'_>; 2],
    p: &Pair,
    dtype: Dtype,
    ws: Dst<'a>,
) -> [Dst<'a>; 3] {
    let [seen, seen_by, means] = parts(p);
    let (first, rest) = ws.split_at(seen);
    let (second, rest) = rest.split_at(seen_by);
    let third = rest.part(0, means);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "ranges")
            .grid(p.batch, 1, 1)
            .block(32)
            .arg(starts[0])
            .arg(starts[1])
            .arg(&first)
            .arg(&second)
            .arg(p.queries)
            .arg(p.keys)
            .arg(usize::from(p.causal))
            .launch();
    }
    [first, second, third]
}

pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, p: &Pair, dtype: Dtype, ws: Dst<'_>) {
    let [seen, _, _] = ranges(q, p.starts(o.inputs), p, dtype, ws);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "forward")
            .grid(p.queries, p.heads, p.batch)
            .block(32)
            .arg(&o.out)
            .arg(&o.lse)
            .arg(o.q)
            .arg(o.kv)
            .arg(o.bias)
            .arg(seen.src())
            .arg(p.queries)
            .arg(p.keys)
            .arg(p.heads)
            .arg(p.head_dim)
            .arg(p.scale)
            .launch();
    }
}

/// Long because three launches have the same arguments.
pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, p: &Pair, dtype: Dtype, ws: Dst<'_>) {
    let [seen, seen_by, means] = ranges(q, p.starts(o.inputs), p, dtype, ws);
    // SAFETY: the kernels' own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "backward_queries")
            .grid(p.queries, p.heads, p.batch)
            .block(32)
            .arg(&o.dq)
            .arg(&means)
            .arg(o.d_out)
            .arg(o.q)
            .arg(o.kv)
            .arg(o.bias)
            .arg(o.out)
            .arg(o.lse)
            .arg(seen.src())
            .arg(p.queries)
            .arg(p.keys)
            .arg(p.heads)
            .arg(p.head_dim)
            .arg(p.scale)
            .launch();
        q.kernel(&SOURCE, define(dtype), "backward_keys")
            .grid(p.keys, p.heads, p.batch)
            .block(32)
            .arg(&o.d_kv)
            .arg(means.src())
            .arg(o.d_out)
            .arg(o.q)
            .arg(o.kv)
            .arg(o.bias)
            .arg(o.lse)
            .arg(seen_by.src())
            .arg(p.queries)
            .arg(p.keys)
            .arg(p.heads)
            .arg(p.head_dim)
            .arg(p.scale)
            .launch();
    }
    let Some(Sum { to, accumulate }) = &o.d_bias else {
        return;
    };
    // SAFETY: as above.
    unsafe {
        q.kernel(&SOURCE, define(dtype), "backward_bias")
            .grid(p.distances(), p.heads, 1)
            .block(32)
            .arg(to)
            .arg(means.src())
            .arg(o.d_out)
            .arg(o.q)
            .arg(o.kv)
            .arg(o.bias)
            .arg(o.lse)
            .arg(seen.src())
            .arg(p.queries)
            .arg(p.keys)
            .arg(p.heads)
            .arg(p.head_dim)
            .arg(p.scale)
            .arg(p.batch)
            .arg(usize::from(*accumulate))
            .launch();
    }
}

pub(super) fn spread(q: &Queue, o: table::Forward<Views<'_>>, t: &table::Table, dtype: Dtype) {
    for (bucket, range) in t.ranges().into_iter().enumerate() {
        if range.start == range.end {
            continue;
        }
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            q.kernel(&SOURCE, define(dtype), "spread")
                .grid(t.heads, 1, 1)
                .block(128)
                .arg(&o.bias)
                .arg(o.w)
                .arg(t.heads)
                .arg(t.distances())
                .arg(bucket)
                .arg(range.start)
                .arg(range.end)
                .launch();
        }
    }
}

pub(super) fn gather(q: &Queue, o: table::Backward<Views<'_>>, t: &table::Table) {
    for (bucket, range) in t.ranges().into_iter().enumerate() {
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            q.kernel(&SOURCE, define(Dtype::F32), "gather")
                .grid(t.heads.div_ceil(128), 1, 1)
                .block(128)
                .arg(&o.dw.to)
                .arg(o.d_bias)
                .arg(t.heads)
                .arg(t.distances())
                .arg(bucket)
                .arg(range.start)
                .arg(range.end)
                .arg(usize::from(o.dw.accumulate))
                .launch();
        }
    }
}
