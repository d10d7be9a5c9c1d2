//! Norms of all queries and of all keys against `f64`.

use super::*;
use crate::operands::Sum;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, differences, dot, everywhere, plus};

/// Large, so that its place in the formula shows.
const EPS: f32 = 0.125;

fn norm(rows: usize, [heads, kv_heads, head_dim]: [usize; 3], dtype: Dtype) -> Norm {
    Norm {
        rows,
        heads: Heads {
            heads,
            kv_heads,
            head_dim,
        },
        eps: EPS,
        dtype,
    }
}

#[track_caller]
fn check(d: Norm, accumulate: bool) {
    let (width, [queries, keys]) = (d.heads.width(), d.widths());
    let mut rng = Rng((d.rows * 31 + width) as u64);
    let n = d.rows * width;
    let (x, dy) = (rng.tensor(n, d.dtype, 2.0), rng.tensor(n, d.dtype, 1.0));
    let [wq, wk] = [queries, keys].map(|n| rng.tensor(n, d.dtype, 1.0));
    let old = [queries, keys].map(|n| rng.tensor(n, Dtype::F32, 1.0));
    let done = everywhere(|q| {
        let (mut y, mut dx) = (Tensor::nan(n, d.dtype), Tensor::nan(n, d.dtype));
        let mut rstd = Tensor::nan(2 * d.rows, Dtype::F32);
        let [mut dwq, mut dwk] = [0, 1].map(|i| match accumulate {
            true => old[i].clone(),
            false => Tensor::nan([queries, keys][i], Dtype::F32),
        });
        let (mut x, mut dy, mut wq, mut wk) = (x.clone(), dy.clone(), wq.clone(), wk.clone());
        let mut ws = Scratch::new(workspace(d.rows, d.heads, q.make()));
        let (x, wq, wk) = (x.src(q), wq.src(q), wk.src(q));
        let o = Forward {
            y: y.on(q),
            rstd: rstd.on(q),
            x,
            wq,
            wk,
        };
        forward(q, o, d);
        let sum = |to| Some(Sum { to, accumulate });
        let o = Backward {
            dx: dx.on(q),
            dwq: sum(dwq.on(q)),
            dwk: sum(dwk.on(q)),
            dy: dy.src(q),
            x,
            rstd: rstd.src(q),
            wq,
            wk,
        };
        backward(q, o, d, ws.on(q));
        (y, dx, dwq, dwk)
    });
    let (x, dy, wq, wk) = (x.values(), dy.values(), wq.values(), wk.values());
    let want = reference::forward(&x, &wq, &wk, d);
    let g = reference::backward(&dy, &x, &wq, &wk, d);
    let sums = |dw: &[f64], old: &Tensor| match accumulate {
        true => plus(dw, &old.values()),
        false => dw.to_vec(),
    };
    let slack = 4e-6 + 1e-7 * d.rows as f64;
    for (device, (y, dx, dwq, dwk)) in &done {
        let name = |what| format!("{what}, {device}, {d:?}");
        close(&name("y"), y, &want, 2e-6);
        close(&name("dx"), dx, &g.dx, 1e-5);
        close(&name("dwq"), dwq, &sums(&g.dwq, &old[0]), slack);
        close(&name("dwk"), dwk, &sums(&g.dwk, &old[1]), slack);
    }
}

/// Rows of few and of many runs, parts of one number and of more than a block's threads.
#[test]
fn agrees_with_the_reference() {
    for dtype in DTYPES {
        check(norm(1, [1, 1, 1], dtype), false);
        check(norm(7, [4, 2, 6], dtype), true);
        check(norm(40, [3, 1, 10], dtype), false);
        check(norm(1100, [2, 2, 8], dtype), true);
        check(norm(9, [16, 4, 64], dtype), false);
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    let d = norm(3, [4, 2, 3], Dtype::F32);
    let mut rng = Rng(1);
    let [queries, keys] = d.widths();
    let n = d.rows * d.heads.width();
    let (x, wq, wk, dy) = (rng.vec(n), rng.vec(queries), rng.vec(keys), rng.vec(n));
    let g = reference::backward(&dy, &x, &wq, &wk, d);
    let at = |x: &[f64], wq: &[f64], wk: &[f64]| dot(&dy, &reference::forward(x, wq, wk, d));
    differences("dx", &x, &g.dx, |x| at(x, &wq, &wk));
    differences("dwq", &wq, &g.dwq, |wq| at(&x, wq, &wk));
    differences("dwk", &wk, &g.dwk, |wk| at(&x, &wq, wk));
}
