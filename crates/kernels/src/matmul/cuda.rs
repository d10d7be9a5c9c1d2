//! Linear layers by cuBLASLt.
//!
//! Bound: 2·m·n·k operations over the rate of the tensor cores (bf16) or of `fma` (f32); for a few
//! rows, the weight's bytes over the bandwidth.

use lowtide_device::cuda::{
    self, Format, NoAlgorithm, PRODUCT_WORKSPACE, Plus, Product, Queue, Source, product,
};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use super::bias;
use super::{Dims, Forward, Input};
use crate::cuda::{define, source};
use crate::number::{expect, size};
use crate::operands::{Sum, Views};

static STORE: Source = source!("matmul/store", "store.cu");

/// Bytes of scratch of any of the four operations.
pub(crate) fn workspace(d: Dims) -> usize {
    PRODUCT_WORKSPACE.max(bias::bias_workspace(d.rows, d.cols))
}

fn format(dtype: Dtype) -> Format {
    match dtype {
        Dtype::Bf16 => Format::Bf16,
        Dtype::F32 => Format::F32,
    }
}

/// `x·wᵀ`, with numbers of `output`.
fn linear(d: Dims, dtype: Dtype, output: Format) -> Product {
    Product {
        rows: d.rows,
        cols: d.cols,
        inner: d.inner,
        a_transposed: false,
        b_transposed: true,
        a_gap: 0,
        d_gap: 0,
        input: format(dtype),
        output,
    }
}

fn keep(q: &Queue, done: Result<(), NoAlgorithm>) {
    if let Err(none) = done {
        q.fail(none.0);
    }
}

/// `y = x·wᵀ + bias + residual`, rounded once: the library adds both to its `f32` sums.
pub(crate) fn forward(
    q: &Queue,
    mut o: Forward<Views<'_>>,
    d: Dims,
    dtype: Dtype,
    mut ws: Dst<'_>,
) {
    // Where rows are no multiple of 16 bytes the library may add the bias in a pass of its own,
    // after a rounding that must not be there.
    let whole = |n: usize| (n * size(dtype)).is_multiple_of(16);
    if (o.bias.is_some() || o.residual.is_some()) && !(whole(d.cols) && whole(d.inner)) {
        return forward_apart(q, o, d, dtype, ws);
    }
    let p = linear(d, dtype, format(dtype));
    let plus = o.residual.map_or(Plus::Nothing, Plus::Other);
    let done = product(q, &p, o.x, o.w, plus, o.y.again(), o.bias, ws.again());
    match done {
        Err(_) if o.bias.is_some() || o.residual.is_some() => {
            forward_apart(q, o, d, dtype, ws);
        }
        done => keep(q, done),
    }
}

/// [`forward`] where the library cannot add the bias and the residual (some sizes that are no
/// multiple of 16 bytes): products of runs of rows in `f32`, then the sums.
pub(super) fn forward_apart(
    q: &Queue,
    mut o: Forward<Views<'_>>,
    d: Dims,
    dtype: Dtype,
    mut ws: Dst<'_>,
) {
    let (e, four) = (size(dtype), size_of::<f32>());
    let half = PRODUCT_WORKSPACE / 2;
    let run = half / (four * d.cols.max(1));
    if run == 0 {
        q.fail(cuda::CudaError::Call {
            call: "matmul::forward",
            what: format!("{} columns are more than its scratch holds", d.cols),
        });
        return;
    }
    for first in (0..d.rows).step_by(run) {
        let d = Dims {
            rows: run.min(d.rows - first),
            ..d
        };
        let (at, len) = (first * d.cols * e, d.rows * d.cols * e);
        let (sums, rest) = ws.lend(0, PRODUCT_WORKSPACE).split_at(half);
        let mut p = sums.part(0, d.rows * d.cols * four);
        let x = o.x.part(first * d.inner * e, d.rows * d.inner * e);
        forward_f32(q, p.again(), x, o.w, d, dtype, rest);
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            q.kernel(&STORE, define(dtype), "store")
                .grid(d.rows, 1, 1)
                .block(256)
                .arg(&o.y.lend(at, len))
                .arg(&p)
                .arg(o.bias)
                .arg(o.residual.map(|r| r.part(at, len)))
                .arg(d.cols)
                .launch();
        }
    }
}

/// `y = x·wᵀ` without rounding to E: `y` is f32 (m, n), `x` is E (m, k), `w` is E (n, k).
pub(crate) fn forward_f32(
    q: &Queue,
    y: Dst<'_>,
    x: Src<'_>,
    w: Src<'_>,
    d: Dims,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    expect("y", &y, d.rows * d.cols, size_of::<f32>());
    expect("x", x, d.rows * d.inner, size(dtype));
    expect("w", w, d.cols * d.inner, size(dtype));
    let p = linear(d, dtype, Format::F32);
    keep(q, product(q, &p, x, w, Plus::Nothing, y, None, ws));
}

/// `y = x·wᵀ` where rows of `y`, of n numbers, are `gap` numbers apart.
pub(crate) fn forward_apart_by(
    q: &Queue,
    (y, gap): (Dst<'_>, usize),
    (x, w): (Src<'_>, Src<'_>),
    d: Dims,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let p = Product {
        d_gap: gap,
        ..linear(d, dtype, format(dtype))
    };
    keep(q, product(q, &p, x, w, Plus::Nothing, y, None, ws));
}

/// `dx = dy·w`; rows of `dy` are `gap` numbers apart.
pub(crate) fn backward_input(
    q: &Queue,
    o: Input<Views<'_>>,
    gap: usize,
    d: Dims,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let p = Product {
        rows: d.rows,
        cols: d.inner,
        inner: d.cols,
        a_transposed: false,
        b_transposed: false,
        a_gap: gap,
        d_gap: 0,
        input: format(dtype),
        output: format(dtype),
    };
    keep(q, product(q, &p, o.dy, o.w, Plus::Nothing, o.dx, None, ws));
}

/// `dw (+)= dyᵀ·x`, in `f32`; rows of `dy` are `gap` numbers apart.
pub(crate) fn backward_weight(
    q: &Queue,
    dw: Sum<'_>,
    (dy, gap, x): (Src<'_>, usize, Src<'_>),
    d: Dims,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    let p = Product {
        rows: d.cols,
        cols: d.inner,
        inner: d.rows,
        a_transposed: true,
        b_transposed: false,
        a_gap: gap,
        d_gap: 0,
        input: format(dtype),
        output: Format::F32,
    };
    let old = if dw.accumulate {
        Plus::Itself
    } else {
        Plus::Nothing
    };
    keep(q, product(q, &p, dy, x, old, dw.to, None, ws));
}
