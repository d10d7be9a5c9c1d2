//! The embedding against `f64`.

use lowtide_workload::Dtype;

use super::*;
use crate::operands::Planes;
use crate::testing::{DTYPES, Numbers, Rng, Scratch, Tensor, close, everywhere, on_gpu, plus};

/// Rows, C, V, P.
const SHAPES: [(usize, usize, usize, usize); 13] = [
    (1, 1, 1, 1),
    (7, 9, 3, 8),
    (129, 8, 300, 7),
    (1000, 33, 17, 129),
    (9, 1000, 5, 9),
    (40, 7, 1000, 3),
    // Whole vectors: one row, several slabs and spans of columns, tokens of few and of many rows.
    (1, 4096, 3, 1),
    (100, 1032, 40, 100),
    (700, 264, 9, 700),
    // More rows than one block sorts, two and three stages of merging.
    (4096, 8, 5000, 4096),
    (4097, 24, 61, 129),
    (9000, 16, 3, 2),
    (17000, 9, 20000, 4),
];

/// The gradient of a table of tokens alone.
fn backward_tokens(
    q: &Queue,
    dtokens: Sum<'_>,
    dy: Src<'_>,
    tokens: Src<'_>,
    d: Dims,
    ws: Dst<'_>,
) {
    let o = Backward {
        dtokens: Some(dtokens),
        dpositions: None,
        dy,
        inputs: Planes::all(tokens),
    };
    backward(q, o, d, ws);
}

#[track_caller]
fn check((rows, c, vocab, places): (usize, usize, usize, usize), dtype: Dtype) {
    let size = Dims {
        rows: Rows {
            rows,
            width: c,
            dtype,
        },
        vocab,
        positions: places,
    };
    let mut rng = Rng((rows * 31 + c) as u64);
    let w = rng.tensor(vocab * c, dtype, 1.0);
    let wpe = rng.tensor(places * c, dtype, 1.0);
    let dy = rng.tensor(rows * c, dtype, 1.0);
    let old = rng.tensor(vocab * c, Dtype::F32, 1.0);
    let old_positions = rng.tensor(places * c, Dtype::F32, 1.0);
    let tokens: Vec<i32> = (0..rows).map(|_| rng.below(vocab) as i32).collect();
    let positions: Vec<i32> = (0..rows).map(|_| rng.below(places) as i32).collect();
    for with_positions in [false, true] {
        let all = everywhere(|q| {
            let mut y = Tensor::nan(rows * c, dtype);
            let (mut w, mut wpe) = (w.clone(), wpe.clone());
            let (mut tokens, mut positions) = (Numbers::of(&tokens), Numbers::of(&positions));
            let tokens = tokens.src(q);
            let o = Forward {
                y: y.on(q),
                inputs: Planes {
                    positions: positions.src(q),
                    ..Planes::all(tokens)
                },
                tokens: w.src(q),
                positions: with_positions.then(|| wpe.src(q)),
            };
            forward(q, o, size);
            settle(q);
            y
        });
        let positions = if with_positions { &positions[..] } else { &[] };
        let want = reference::forward(&tokens, &w.values(), &wpe.values(), positions, c);
        for (device, y) in all {
            close(&format!("{device} y"), &y, &want, 0.0);
        }
    }
    let want = [(&tokens, vocab), (&positions, places)]
        .map(|(ids, n)| reference::backward(&dy.values(), ids, c, n));
    for accumulate in [false, true] {
        let all = everywhere(|q| {
            let [mut dtokens, mut dpositions] = [&old, &old_positions].map(|old| {
                if accumulate {
                    old.clone()
                } else {
                    Tensor::nan(old.values().len(), Dtype::F32)
                }
            });
            let (mut tokens, mut positions) = (Numbers::of(&tokens), Numbers::of(&positions));
            let [one, two] = [vocab, places].map(|n| workspace(rows, n, q.make()));
            let (mut dy, mut ws) = (dy.clone(), Scratch::new(one.max(two)));
            let sum = |to| Sum { to, accumulate };
            let o = Backward {
                dtokens: Some(sum(dtokens.on(q))),
                dpositions: Some(sum(dpositions.on(q))),
                dy: dy.src(q),
                inputs: Planes {
                    positions: positions.src(q),
                    ..Planes::all(tokens.src(q))
                },
            };
            backward(q, o, size, ws.on(q));
            settle(q);
            [dtokens, dpositions]
        });
        for (device, got) in all {
            for (i, (got, old)) in got.iter().zip([&old, &old_positions]).enumerate() {
                let want = if accumulate {
                    plus(&want[i], &old.values())
                } else {
                    want[i].clone()
                };
                // Sums of n numbers of at most 1 are off by n units of 2^-24 of a partial sum at most, in
                // practice by far less.
                let slack = 2e-5_f64.max(3e-7 * (rows / [vocab, places][i]) as f64);
                close(&format!("{device} table {i}"), got, &want, slack);
            }
        }
    }
}

/// Waits for a stream, so that results may be read and operands released.
fn settle(q: &Queue) {
    if let Some(stream) = q.cuda() {
        stream.synchronize().unwrap();
    }
}

#[test]
fn agrees_with_the_reference() {
    for shape in SHAPES {
        DTYPES.into_iter().for_each(|dtype| check(shape, dtype));
    }
}

#[test]
fn rows_of_one_token_are_added_in_order() {
    // 2^24 swallows ones that come after it, not those before.
    let big = 16_777_216.0;
    for (dy, want) in [([1.0, 1.0, big], big + 2.0), ([big, 1.0, 1.0], big)] {
        let all = everywhere(|q| {
            let mut dy = Tensor::of(&dy, Dtype::F32);
            let mut sums = Tensor::nan(2, Dtype::F32);
            let mut tokens = Numbers::of(&[1, 1, 1]);
            let mut ws = Scratch::new(workspace(3, 2, q.make()));
            let dw = Sum {
                to: sums.on(q),
                accumulate: false,
            };
            let (from, tokens, ws) = (dy.src(q), tokens.src(q), ws.on(q));
            let d = Dims {
                rows: Rows {
                    rows: 3,
                    width: 1,
                    dtype: Dtype::F32,
                },
                vocab: 2,
                positions: 0,
            };
            backward_tokens(q, dw, from, tokens, d, ws);
            settle(q);
            sums
        });
        for (device, dw) in all {
            assert_eq!(dw.values(), [0.0, want], "{device}");
        }
    }
}

#[test]
fn tokens_outside_the_table_reach_no_memory_of_a_device() {
    let (c, vocab) = (8, 5);
    let bad = [i32::MIN, -1, vocab as i32, i32::MAX];
    for dtype in DTYPES {
        let got = on_gpu(|q| {
            let tokens: Vec<i32> = bad.iter().flat_map(|b| [*b, 2]).collect();
            let rows = tokens.len();
            let mut tokens = Numbers::of(&tokens);
            let mut w = Tensor::of(&vec![1.0; vocab * c], dtype);
            let mut y = Tensor::of(&vec![3.0; rows * c], dtype);
            let mut dy = Tensor::of(&vec![1.0; rows * c], dtype);
            let mut dw = Tensor::nan(vocab * c, Dtype::F32);
            let mut ws = Scratch::new(workspace(rows, vocab, q.make()));
            let ids = tokens.src(q);
            let d = Dims {
                rows: Rows {
                    rows,
                    width: c,
                    dtype,
                },
                vocab,
                positions: 0,
            };
            let o = Forward {
                y: y.on(q),
                inputs: Planes::all(ids),
                tokens: w.src(q),
                positions: None,
            };
            forward(q, o, d);
            let acc = Sum {
                to: dw.on(q),
                accumulate: false,
            };
            backward_tokens(q, acc, dy.src(q), ids, d, ws.on(q));
            settle(q);
            let nans: Vec<bool> = y.values().iter().map(|x| x.is_nan()).collect();
            (nans, dw)
        });
        if let Some((nans, dw)) = got {
            for (i, nan) in nans.into_iter().enumerate() {
                assert_eq!(nan, i / c % 2 == 0, "y[{i}]");
            }
            for (i, x) in dw.values().into_iter().enumerate() {
                assert_eq!(x, if i / c == 2 { 4.0 } else { 0.0 }, "dw[{i}]");
            }
        }
    }
}

#[test]
#[should_panic(expected = "view of 8")]
fn a_token_outside_the_table_panics() {
    let (mut y, mut w) = (Tensor::nan(1, Dtype::F32), Tensor::nan(2, Dtype::F32));
    let (q, tokens) = (Queue::new("test", 1), [2]);
    let tokens = Src::of(&tokens);
    let o = Forward {
        y: y.view(),
        inputs: Planes::all(tokens),
        tokens: w.view().into_src(),
        positions: None,
    };
    let rows = Rows {
        rows: 1,
        width: 1,
        dtype: Dtype::F32,
    };
    forward(
        &q,
        o,
        Dims {
            rows,
            vocab: 2,
            positions: 0,
        },
    );
}
