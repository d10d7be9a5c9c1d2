//! Norms of all queries and of all keys, on threads.

use lowtide_device::Dst;

use super::{Backward, Forward, Norm};
use crate::number::{self, Number};
use crate::operands::Views;
use crate::rmsnorm::cpu::{backward_row, forward_row};
use crate::rows::{self, Runs};

/// Minus zero: nothing is added to weights.
const NONE: f32 = -0.0;

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, d: Norm) {
    let (width, [queries, keys]) = (d.heads.width(), d.widths());
    rows::each(d.rows, width, |first, end| {
        for row in first..end {
            // SAFETY: the task owns `y` and `rstd`, a row is one thread's; nobody writes the rest.
            unsafe {
                let y = number::write::<E>(&o.y, row * width, width);
                let x = number::read::<E>(o.x, row * width, width);
                let rstd = number::write::<f32>(&o.rstd, 2 * row, 2);
                let (wq, wk) = (
                    number::read::<E>(o.wq, 0, queries),
                    number::read::<E>(o.wk, 0, keys),
                );
                let (yq, rest) = y.split_at_mut(queries);
                let (yk, yv) = rest.split_at_mut(keys);
                rstd[0] = forward_row(yq, &x[..queries], wq, (d.eps, NONE));
                rstd[1] = forward_row(yk, &x[queries..][..keys], wk, (d.eps, NONE));
                yv.copy_from_slice(&x[queries + keys..]);
            }
        }
    });
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, d: Norm, ws: Dst<'_>) {
    let (width, [queries, keys]) = (d.heads.width(), d.widths());
    let runs = Runs::new(d.rows);
    runs.each(&ws, queries + keys, |first, end, dw| {
        let (dwq, dwk) = dw.split_at_mut(queries);
        // SAFETY: the task owns `dx`, a row is one thread's; nobody writes the rest.
        unsafe {
            let (wq, wk) = (
                number::read::<E>(o.wq, 0, queries),
                number::read::<E>(o.wk, 0, keys),
            );
            for row in first..end {
                let dx = number::write::<E>(&o.dx, row * width, width);
                let dy = number::read::<E>(o.dy, row * width, width);
                let x = number::read::<E>(o.x, row * width, width);
                let rstd = number::read::<f32>(o.rstd, 2 * row, 2);
                let (dxq, rest) = dx.split_at_mut(queries);
                let (dxk, dxv) = rest.split_at_mut(keys);
                backward_row(
                    dxq,
                    dwq,
                    &dy[..queries],
                    &x[..queries],
                    rstd[0],
                    (wq, NONE),
                    None,
                );
                let (dyk, xk) = (&dy[queries..][..keys], &x[queries..][..keys]);
                backward_row(dxk, dwk, dyk, xk, rstd[1], (wk, NONE), None);
                dxv.copy_from_slice(&dy[queries + keys..]);
            }
        }
    });
    runs.sum_partials(o.dwq, 0, ws.src(), queries + keys);
    runs.sum_partials(o.dwk, queries, ws.src(), queries + keys);
}
