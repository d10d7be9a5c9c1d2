//! Pairs of queries and keys, and tables of relative positions, against `f64`.

use super::*;
use crate::operands::Planes;
use crate::testing::{DTYPES, Numbers, Rng, Scratch, Tensor, close, differences, dot, everywhere};
use table::Table;

/// A row of documents of these lengths, as where each token's begins.
fn starts(lengths: &[usize]) -> Vec<i32> {
    let mut all = Vec::new();
    for &n in lengths {
        let start = all.len() as i32;
        all.extend(std::iter::repeat_n(start, n));
    }
    all
}

struct Case {
    p: Pair,
    /// Where documents start, of all queries and of all keys.
    of: [Vec<i32>; 2],
    bias: bool,
}

/// Own attention of both kinds, and attention to other rows: shorter and longer ones, with fewer and more documents.
fn cases() -> Vec<Case> {
    let pair = |queries, keys, causal, first| Pair {
        batch: 2,
        queries,
        keys,
        heads: 3,
        head_dim: 5,
        scale: 0.7,
        causal,
        first,
    };
    let two = |a: &[usize], b: &[usize]| [starts(a), starts(b)].concat();
    let own = two(&[4, 1, 6], &[11]);
    vec![
        Case {
            p: pair(11, 11, false, [0, 0]),
            of: [own.clone(), own.clone()],
            bias: true,
        },
        Case {
            p: pair(11, 11, true, [0, 0]),
            of: [own.clone(), own],
            bias: true,
        },
        Case {
            p: pair(6, 9, false, [18, 0]),
            of: [two(&[2, 3, 1], &[6]), two(&[4, 5], &[1, 8])],
            bias: false,
        },
        Case {
            p: pair(7, 1, false, [2, 0]),
            of: [two(&[7], &[3, 4]), two(&[1], &[1])],
            bias: true,
        },
    ]
}

impl Case {
    /// Keys' rows, then queries', as the inputs have them; one plane, which an operation reads.
    fn plane(&self) -> Vec<i32> {
        let same = self.p.first == [0, 0];
        let queries = if same { &[][..] } else { &self.of[0] };
        [&self.of[1], queries].concat()
    }

    fn sizes(&self) -> [usize; 3] {
        let (p, c) = (&self.p, self.p.heads * self.p.head_dim);
        let bias = p.heads * p.distances();
        [p.batch * p.queries * c, p.batch * p.keys * 2 * c, bias]
    }

    fn starts(&self) -> [&[i32]; 2] {
        [&self.of[0], &self.of[1]]
    }
}

#[test]
fn agrees_with_the_reference() {
    for (i, case) in cases().iter().enumerate() {
        for dtype in DTYPES {
            let (p, [n, m, biases]) = (&case.p, case.sizes());
            let mut rng = Rng(i as u64 + 1);
            let (query, kv) = (rng.tensor(n, dtype, 1.0), rng.tensor(m, dtype, 1.0));
            let (bias, d_out) = (
                rng.tensor(biases, Dtype::F32, 1.0),
                rng.tensor(n, dtype, 1.0),
            );
            let before = rng.tensor(biases, Dtype::F32, 1.0);
            let done = everywhere(|q| {
                let mut ws = Scratch::new(workspace(p, q.make()));
                let mut plane = Numbers::of(&case.plane());
                let (mut query, mut kv, mut d_out) = (query.clone(), kv.clone(), d_out.clone());
                let (mut bias, mut d_bias) = (bias.clone(), before.clone());
                let mut out = Tensor::nan(n, dtype);
                let mut lse = Tensor::nan(p.batch * p.heads * p.queries, Dtype::F32);
                let (mut dq, mut d_kv) = (Tensor::nan(n, dtype), Tensor::nan(m, dtype));
                let o = Forward {
                    out: out.on(q),
                    lse: lse.on(q),
                    q: query.src(q),
                    kv: kv.src(q),
                    bias: case.bias.then(|| bias.src(q)),
                    inputs: Planes::all(plane.src(q)),
                };
                forward(q, o, p, dtype, ws.on(q));
                let o = Backward {
                    dq: dq.on(q),
                    d_kv: d_kv.on(q),
                    d_bias: case.bias.then(|| Sum {
                        to: d_bias.on(q),
                        accumulate: true,
                    }),
                    d_out: d_out.src(q),
                    q: query.src(q),
                    kv: kv.src(q),
                    bias: case.bias.then(|| bias.src(q)),
                    out: out.src(q),
                    lse: lse.src(q),
                    inputs: Planes::all(plane.src(q)),
                };
                backward(q, o, p, dtype, ws.on(q));
                [out, lse, dq, d_kv, d_bias]
            });
            let values = [&query, &kv, &bias, &d_out].map(Tensor::values);
            let of = (
                &values[0][..],
                &values[1][..],
                case.bias.then_some(&values[2][..]),
            );
            let (out, lse) = reference::forward(of, case.starts(), p);
            let [dq, d_kv, d_bias] = reference::backward(&values[3], of, case.starts(), p);
            let sum: Vec<f64> = match case.bias {
                true => d_bias
                    .iter()
                    .zip(before.values())
                    .map(|(a, b)| a + b)
                    .collect(),
                false => before.values(),
            };
            let slack = if dtype == Dtype::F32 { 2e-6 } else { 2e-2 };
            let want = [&out, &lse, &dq, &d_kv, &sum];
            for (device, made) in &done {
                for (what, (got, want)) in ["out", "lse", "dq", "d_kv", "d_bias"]
                    .into_iter()
                    .zip(made.iter().zip(want))
                {
                    close(&format!("{what} of case {i}, {device}"), got, want, slack);
                }
            }
        }
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    for case in cases() {
        let (p, [n, m, biases]) = (&case.p, case.sizes());
        let mut rng = Rng(3);
        let (q, kv, bias, d_out) = (rng.vec(n), rng.vec(m), rng.vec(biases), rng.vec(n));
        let of = (&q[..], &kv[..], Some(&bias[..]));
        let [dq, d_kv, d_bias] = reference::backward(&d_out, of, case.starts(), p);
        let loss = |q: &[f64], kv: &[f64], bias: &[f64]| {
            let (out, _) = reference::forward((q, kv, Some(bias)), case.starts(), p);
            dot(&out, &d_out)
        };
        differences("dq", &q, &dq, |q| loss(q, &kv, &bias));
        differences("d_kv", &kv, &d_kv, |kv| loss(&q, kv, &bias));
        differences("d_bias", &bias, &d_bias, |bias| loss(&q, &kv, bias));
    }
}

/// As transformers' `_relative_position_bucket` has them (5.17, 32 buckets up to 128): distance, of both sides, of one.
#[test]
fn buckets_are_those_of_the_published_models() {
    let table = |both| Table {
        seq: 200,
        heads: 1,
        buckets: 32,
        most: 128,
        both,
    };
    for (distance, both, one) in BUCKETS {
        assert_eq!(table(true).bucket(distance), both, "{distance}");
        assert_eq!(table(false).bucket(distance), one, "{distance}");
    }
}

#[test]
fn a_table_is_spread_and_gathered() {
    let t = Table {
        seq: 40,
        heads: 3,
        buckets: 8,
        most: 20,
        both: true,
    };
    for (dtype, accumulate) in DTYPES.into_iter().zip([false, true]) {
        let (n, all) = (t.buckets * t.heads, t.heads * t.distances());
        let mut rng = Rng(9);
        let (w, before) = (rng.tensor(n, dtype, 1.0), rng.tensor(n, Dtype::F32, 1.0));
        let d_bias = rng.tensor(all, Dtype::F32, 1.0);
        let done = everywhere(|q| {
            let (mut w, mut d_bias, mut dw) = (w.clone(), d_bias.clone(), before.clone());
            let mut bias = Tensor::nan(all, Dtype::F32);
            let o = table::Forward {
                bias: bias.on(q),
                w: w.src(q),
            };
            table::forward(q, o, &t, dtype);
            let o = table::Backward {
                dw: Sum {
                    to: dw.on(q),
                    accumulate,
                },
                d_bias: d_bias.src(q),
            };
            table::backward(q, o, &t);
            [bias, dw]
        });
        let (w, d) = (w.values(), d_bias.values());
        let mut want = vec![0.0; all];
        let mut sums = if accumulate {
            before.values()
        } else {
            vec![0.0; n]
        };
        for h in 0..t.heads {
            for i in 0..t.distances() {
                let bucket = t.bucket(i as i64 - 39);
                want[h * t.distances() + i] = w[bucket * t.heads + h];
                sums[bucket * t.heads + h] += d[h * t.distances() + i];
            }
        }
        for (device, [bias, dw]) in &done {
            close(&format!("bias, {device}"), bias, &want, 1e-7);
            close(&format!("dw, {device}"), dw, &sums, 2e-6);
        }
    }
}

const BUCKETS: [(i64, usize, usize); 26] = [
    (0, 0, 0),
    (-1, 1, 1),
    (1, 17, 0),
    (-7, 7, 7),
    (7, 23, 0),
    (-8, 8, 8),
    (8, 24, 0),
    (-9, 8, 9),
    (-11, 8, 11),
    (12, 25, 0),
    (-15, 9, 15),
    (16, 26, 0),
    (-20, 10, 17),
    (24, 27, 0),
    (-31, 11, 21),
    (32, 28, 0),
    (-45, 12, 23),
    (46, 29, 0),
    (-63, 13, 26),
    (64, 30, 0),
    (-90, 14, 29),
    (91, 31, 0),
    (-127, 15, 31),
    (128, 31, 0),
    (-150, 15, 31),
    (199, 31, 0),
];
