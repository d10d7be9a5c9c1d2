//! Grouped products on threads: one product an expert, on all of them.

use lowtide_device::{Dst, Src};

use super::{Dims, Forward, Input, Weight};
use crate::matmul;
use crate::number::{self, Number};
use crate::operands::{Sum, Views};

/// Calls `work` for each expert with its first row and how many it has.
///
/// # Panics
/// When the offsets are those of no routing: a mistake in the plan or its executor.
fn each(offsets: Src<'_>, d: Dims, mut work: impl FnMut(usize, usize, usize)) {
    let offsets = offsets.read::<i32>();
    let m = d.routes.sorted();
    for (e, pair) in offsets.windows(2).enumerate() {
        let (first, end) = (pair[0], pair[1]);
        assert!(
            0 <= first && first <= end && end as usize <= m,
            "rows {first} to {end} of {m} for expert {e}"
        );
        work(e, first as usize, (end - first) as usize);
    }
}

impl Dims {
    fn rows(self, rows: usize) -> matmul::Dims {
        matmul::Dims {
            rows,
            inner: self.inner,
            cols: self.cols,
        }
    }
}

pub(super) fn forward<E: Number>(
    mut o: Forward<Views<'_>>,
    offsets: Src<'_>,
    d: Dims,
    mut ws: Dst<'_>,
) {
    let (e, n, k) = (size_of::<E>(), d.cols, d.inner);
    each(offsets, d, |expert, first, rows| {
        if rows == 0 {
            return;
        }
        let y = o.y.lend(first * n * e, rows * n * e);
        let x = o.x.part(first * k * e, rows * k * e);
        let w = o.w.part(expert * n * k * e, n * k * e);
        let o = matmul::Forward::product(y, x, w);
        matmul::cpu::forward::<E>(o, d.rows(rows), ws.again());
    });
}

pub(super) fn backward_input<E: Number>(
    mut o: Input<Views<'_>>,
    offsets: Src<'_>,
    d: Dims,
    mut ws: Dst<'_>,
) {
    let (e, n, k) = (size_of::<E>(), d.cols, d.inner);
    each(offsets, d, |expert, first, rows| {
        if rows == 0 {
            return;
        }
        let o = matmul::Input {
            dx: o.dx.lend(first * k * e, rows * k * e),
            dy: o.dy.part(first * n * e, rows * n * e),
            w: o.w.part(expert * n * k * e, n * k * e),
        };
        matmul::cpu::backward_input::<E>(o, d.rows(rows), ws.again());
    });
}

pub(super) fn backward_weight<E: Number>(
    o: Weight<Views<'_>>,
    offsets: Src<'_>,
    d: Dims,
    mut ws: Dst<'_>,
) {
    let (e, n, k) = (size_of::<E>(), d.cols, d.inner);
    let Sum { mut to, accumulate } = o.dw;
    each(offsets, d, |expert, first, rows| {
        let dw = to.lend(expert * n * k * 4, n * k * 4);
        if rows == 0 {
            if !accumulate {
                // SAFETY: the task owns `dw`, and no other thread is at work.
                unsafe { number::write::<f32>(&dw, 0, n * k) }.fill(0.0);
            }
            return;
        }
        let dy = o.dy.part(first * n * e, rows * n * e);
        let x = o.x.part(first * k * e, rows * k * e);
        let dw = Sum { to: dw, accumulate };
        matmul::cpu::backward_weight::<E>(dw, dy, x, d.rows(rows), ws.again());
    });
}
