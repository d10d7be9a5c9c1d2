//! Rotary positions against `f64`.

use super::*;
use crate::operands::{Planes, Sum};
use crate::testing::{
    DTYPES, Numbers, Rng, Scratch, Tensor, close, differences, dot, everywhere, packed, plus,
};
use reference::Norm;

/// Large, so that its place in the formula shows.
const EPS: f32 = 0.125;
const FACTOR: f64 = 1.25;

fn inv_freq(d: usize) -> Vec<f64> {
    (0..d / 2)
        .map(|i| 10_000_f64.powf(-2.0 * i as f64 / d as f64))
        .collect()
}

fn shapes() -> [(usize, Heads); 12] {
    let heads = |heads, kv_heads, head_dim| Heads {
        heads,
        kv_heads,
        head_dim,
    };
    [
        (1, heads(1, 1, 2)),
        (7, heads(3, 1, 6)),
        (9, heads(4, 2, 16)),
        (129, heads(2, 2, 64)),
        (1000, heads(2, 1, 18)),
        (8, heads(3, 3, 128)),
        // On a GPU: a model's heads; more heads than a block takes at once; runs of which the last
        // is short; head sizes whose threads are no power of two, or more than a warp.
        (33, heads(14, 2, 64)),
        (700, heads(16, 2, 128)),
        (5, heads(80, 40, 128)),
        (21, heads(5, 3, 80)),
        (9, heads(3, 1, 256)),
        (3, heads(2, 1, 1024)),
    ]
}

#[track_caller]
fn check(rows: usize, heads: Heads, with_norm: Option<Plus>, dtype: Dtype) {
    let (added, with_norm) = (with_norm.unwrap_or_default(), with_norm.is_some());
    let (d, n) = (heads.head_dim, rows * heads.width());
    let mut rng = Rng((rows * 131 + n) as u64);
    let (x, dy) = (rng.tensor(n, dtype, 2.0), rng.tensor(n, dtype, 1.0));
    let (wq, wk) = (rng.tensor(d, dtype, 1.0), rng.tensor(d, dtype, 1.0));
    let (old_q, old_k) = (
        rng.tensor(d, Dtype::F32, 1.0),
        rng.tensor(d, Dtype::F32, 1.0),
    );
    let (_, positions) = packed(&mut rng, 1, rows);
    let most = *positions.iter().max().unwrap() as usize;
    let table = Table::new(&inv_freq(d), FACTOR, most + 1);
    let size = Rotation {
        table: &table,
        rows,
        heads,
        eps: EPS,
        plus: added,
        dtype,
    };

    let forwards = everywhere(|q| {
        let mut y = Tensor::nan(n, dtype);
        let mut rstd = Tensor::nan(rows * heads.rotated(), Dtype::F32);
        let (mut x, mut wq, mut wk) = (x.clone(), wq.clone(), wk.clone());
        let mut positions = Numbers::of(&positions);
        let o = Forward {
            y: y.on(q),
            x: x.src(q),
            inputs: Planes::all(positions.src(q)),
            norm: with_norm.then(|| QkNorm {
                rstd: rstd.on(q),
                wq: wq.src(q),
                wk: wk.src(q),
            }),
        };
        forward(q, o, size);
        (y, with_norm.then_some(rstd))
    });
    let rstd = forwards[0].1.1.as_ref();
    let rstd = rstd.map(|r| Tensor::of(&r.values(), Dtype::F32));
    let (xs, dys) = (x.values(), dy.values());
    let weights = |w: &Tensor| -> Vec<f64> {
        let one = if added == Plus::One { 1.0 } else { 0.0 };
        w.values().into_iter().map(|w| one + w).collect()
    };
    let (wqs, wks) = (weights(&wq), weights(&wk));
    let norm = with_norm.then_some(Norm {
        wq: &wqs,
        wk: &wks,
        eps: f64::from(EPS),
    });
    let want = reference::forward(&xs, &positions, &inv_freq(d), FACTOR, norm, heads);
    for (device, (y, other)) in &forwards {
        close(&format!("y, {device}"), y, &want, 4e-6);
        if let (Some(other), Some(rstd)) = (other, &rstd) {
            close(&format!("rstd, {device}"), other, &rstd.values(), 2e-6);
        }
    }

    let want = reference::backward(&dys, &xs, &positions, &inv_freq(d), FACTOR, norm, heads);
    for accumulate in [false, true] {
        let old = |old: &Tensor| {
            if accumulate {
                old.clone()
            } else {
                Tensor::nan(d, Dtype::F32)
            }
        };
        let gradients = everywhere(|q| {
            let mut dx = Tensor::nan(n, dtype);
            let (mut dwq, mut dwk) = (old(&old_q), old(&old_k));
            let (mut x, mut dy, mut wq, mut wk) = (x.clone(), dy.clone(), wq.clone(), wk.clone());
            let mut rstd = rstd.clone().unwrap_or_else(|| Tensor::nan(0, Dtype::F32));
            let mut positions = Numbers::of(&positions);
            let mut ws = Scratch::new(workspace(rows, heads, with_norm, q.make()));
            let sum = |to| Sum { to, accumulate };
            let norm = with_norm.then(|| QkNormBackward {
                dwq: Some(sum(dwq.on(q))),
                dwk: Some(sum(dwk.on(q))),
                x: x.src(q),
                rstd: rstd.src(q),
                wq: wq.src(q),
                wk: wk.src(q),
            });
            let o = Backward {
                dx: dx.on(q),
                dy: dy.src(q),
                inputs: Planes::all(positions.src(q)),
                norm,
            };
            backward(q, o, size, ws.on(q));
            (dx, dwq, dwk)
        });
        let slack = 1e-5 + 1e-6 * rows as f64;
        for (device, (dx, dwq, dwk)) in &gradients {
            close(&format!("dx, {device}"), dx, &want.dx, 1e-5);
            if !with_norm {
                continue;
            }
            let (mut want_q, mut want_k) = (want.dwq.clone(), want.dwk.clone());
            if accumulate {
                want_q = plus(&want_q, &old_q.values());
                want_k = plus(&want_k, &old_k.values());
            }
            close(&format!("dwq, {device}"), dwq, &want_q, slack);
            close(&format!("dwk, {device}"), dwk, &want_k, slack);
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for (rows, heads) in shapes() {
        for dtype in DTYPES {
            check(rows, heads, None, dtype);
            check(rows, heads, Some(Plus::Nothing), dtype);
            check(rows, heads, Some(Plus::One), dtype);
        }
    }
}

/// Where part of a head is rotated, those numbers turn as in a head of that size, and the others stay as they are.
#[test]
fn a_part_of_a_head_is_rotated() {
    let (rows, half, turning) = (37, 8, 3);
    let sizes = |head_dim| Heads {
        heads: 3,
        kv_heads: 2,
        head_dim,
    };
    let (whole, part) = (sizes(2 * half), sizes(2 * turning));
    let inv_freq = inv_freq(2 * turning);
    let mut rng = Rng(5);
    let (_, positions) = packed(&mut rng, 1, rows);
    let most = *positions.iter().max().unwrap() as usize;
    for dtype in DTYPES {
        let x = rng.tensor(rows * whole.width(), dtype, 2.0);
        let of_part = |i: usize| i % half < turning;
        let picked: Vec<f64> = {
            let numbered = x.values().into_iter().enumerate();
            numbered
                .filter(|(i, _)| of_part(*i))
                .map(|(_, x)| x)
                .collect()
        };
        let rotated = |table: &Table, heads: Heads, x: &Tensor| {
            everywhere(|q| {
                let mut y = Tensor::nan(rows * heads.width(), dtype);
                let (mut x, mut positions) = (x.clone(), Numbers::of(&positions));
                let o = Forward {
                    y: y.on(q),
                    x: x.src(q),
                    inputs: Planes::all(positions.src(q)),
                    norm: None,
                };
                let size = Rotation {
                    table,
                    rows,
                    heads,
                    eps: EPS,
                    plus: Plus::Nothing,
                    dtype,
                };
                forward(q, o, size);
                y
            })
        };
        let table = Table::partial(&inv_freq, FACTOR, half, most + 1);
        let all = rotated(&table, whole, &x);
        let table = Table::new(&inv_freq, FACTOR, most + 1);
        let alone = rotated(&table, part, &Tensor::of(&picked, dtype));
        for ((device, y), (_, alone)) in all.iter().zip(&alone) {
            let (y, alone) = (y.values(), alone.values());
            let mut alone = alone.into_iter();
            for (i, (y, x)) in y.into_iter().zip(x.values()).enumerate() {
                let want = if of_part(i) { alone.next().unwrap() } else { x };
                // A GPU has a kernel of its own for whole words, whose sums of two products are fused otherwise.
                let last_bits = match (of_part(i) && *device != "cpu", dtype) {
                    (false, _) => 0.0,
                    (true, Dtype::F32) => 1e-6,
                    (true, Dtype::Bf16) => 1.0 / 128.0,
                };
                let off = (y - want).abs();
                assert!(
                    off <= last_bits * want.abs().max(1.0),
                    "{device}: number {i}: {y} {want}"
                );
            }
        }
    }
}

#[test]
fn far_positions_are_exact() {
    // f32 angles would be off by 1e-2 here.
    let table = Table::new(&[1.0, 0.1], 1.0, 131_073);
    let (cos, sin) = table.at(131_072);
    assert!((f64::from(cos[0]) - 131_072_f64.cos()).abs() < 1e-7);
    assert!((f64::from(sin[1]) - 13_107.2_f64.sin()).abs() < 1e-7);
}

#[test]
fn reference_gradient_is_the_slope() {
    let heads = Heads {
        heads: 3,
        kv_heads: 2,
        head_dim: 6,
    };
    let (rows, positions) = (4, [0, 1, 2, 7]);
    let mut rng = Rng(1);
    let (x, dy) = (rng.vec(rows * heads.width()), rng.vec(rows * heads.width()));
    let (wq, wk) = (rng.vec(6), rng.vec(6));
    let f = |x: &[f64], wq: &[f64], wk: &[f64]| {
        let norm = Some(Norm {
            wq,
            wk,
            eps: f64::from(EPS),
        });
        dot(
            &dy,
            &reference::forward(x, &positions, &inv_freq(6), FACTOR, norm, heads),
        )
    };
    let norm = Some(Norm {
        wq: &wq,
        wk: &wk,
        eps: f64::from(EPS),
    });
    let g = reference::backward(&dy, &x, &positions, &inv_freq(6), FACTOR, norm, heads);
    differences("dx", &x, &g.dx, |x| f(x, &wq, &wk));
    differences("dwq", &wq, &g.dwq, |wq| f(&x, wq, &wk));
    differences("dwk", &wk, &g.dwk, |wk| f(&x, &wq, wk));
    let g = reference::backward(&dy, &x, &positions, &inv_freq(6), FACTOR, None, heads);
    differences("dx without norm", &x, &g.dx, |x| {
        dot(
            &dy,
            &reference::forward(x, &positions, &inv_freq(6), FACTOR, None, heads),
        )
    });
}
