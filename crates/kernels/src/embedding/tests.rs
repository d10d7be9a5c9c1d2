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

/// Sizes of an embedding whose tables have no rows, for a test to set those that it needs.
fn tables(rows: usize, width: usize, dtype: Dtype) -> Dims {
    Dims {
        rows: Rows { rows, width, dtype },
        vocab: 0,
        positions: 0,
        first_position: 0,
        types: 0,
        typed: false,
    }
}

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
        dtypes: None,
        dy,
        inputs: Planes::all(tokens),
    };
    backward(q, o, d, ws);
}

#[track_caller]
fn check((rows, c, vocab, places): (usize, usize, usize, usize), dtype: Dtype) {
    let size = Dims {
        vocab,
        positions: places,
        ..tables(rows, c, dtype)
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
                types: None,
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
                dtypes: None,
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
                vocab: 2,
                ..tables(3, 1, Dtype::F32)
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
                vocab,
                ..tables(rows, c, dtype)
            };
            let o = Forward {
                y: y.on(q),
                inputs: Planes::all(ids),
                tokens: w.src(q),
                positions: None,
                types: None,
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
        types: None,
    };
    let d = Dims {
        vocab: 2,
        ..tables(1, 1, Dtype::F32)
    };
    forward(&q, o, d);
}

/// Three tables: types of labels or all 0, positions that begin at the table's third row.
#[test]
fn types_and_later_positions_agree_with_the_reference() {
    for (rows, c, types, typed) in [
        (1, 8, 1, false),
        (70, 33, 2, true),
        (700, 264, 3, true),
        (90, 16, 2, false),
    ] {
        DTYPES
            .into_iter()
            .for_each(|dtype| check_types(rows, (types, typed), c, dtype));
    }
}

fn check_types(rows: usize, (types, typed): (usize, bool), c: usize, dtype: Dtype) {
    let (vocab, places, first) = (9, 13, 2);
    let d = Dims {
        vocab,
        positions: places,
        first_position: first,
        types,
        typed,
        ..tables(rows, c, dtype)
    };
    let mut rng = Rng(rows as u64);
    let [w, wpe, wtt, dy] = [vocab, places, types, rows].map(|n| rng.tensor(n * c, dtype, 1.0));
    let tokens: Vec<i32> = (0..rows).map(|_| rng.below(vocab) as i32).collect();
    let positions: Vec<i32> = (0..rows)
        .map(|_| rng.below(places - first) as i32)
        .collect();
    let labels: Vec<i32> = (0..rows)
        .map(|_| [3, -100, SECOND_TEXT][rng.below(3)])
        .collect();
    let later: Vec<i32> = positions.iter().map(|p| p + first as i32).collect();
    let second = |l: &i32| i32::from(typed && *l == SECOND_TEXT);
    let of_type: Vec<i32> = labels.iter().map(second).collect();
    let both = reference::forward(&tokens, &w.values(), &wpe.values(), &later, c);
    let third = reference::forward(&of_type, &wtt.values(), &[], &[], c);
    let want = plus(&both, &third);
    let tables = [(&tokens, vocab), (&later, places), (&of_type, types)];
    let want_of = tables.map(|(ids, n)| reference::backward(&dy.values(), ids, c, n));
    let all = everywhere(|q| {
        let mut y = Tensor::nan(rows * c, dtype);
        let mut sums = [vocab, places, types].map(|n| Tensor::nan(n * c, Dtype::F32));
        let (mut w, mut wpe, mut wtt, mut dy) = (w.clone(), wpe.clone(), wtt.clone(), dy.clone());
        let [mut tokens, mut positions, mut labels] =
            [&tokens, &positions, &labels].map(|plane| Numbers::of(plane));
        let bytes = [vocab, places, types].map(|n| workspace(rows, n, q.make()));
        let mut ws = Scratch::new(bytes.into_iter().max().unwrap_or(0));
        let tokens = tokens.src(q);
        let inputs = Planes {
            positions: positions.src(q),
            labels: labels.src(q),
            ..Planes::all(tokens)
        };
        let o = Forward {
            y: y.on(q),
            inputs,
            tokens: w.src(q),
            positions: Some(wpe.src(q)),
            types: Some(wtt.src(q)),
        };
        forward(q, o, d);
        let [one, two, three] = &mut sums;
        let sum = |to| Sum {
            to,
            accumulate: false,
        };
        let o = Backward {
            dtokens: Some(sum(one.on(q))),
            dpositions: Some(sum(two.on(q))),
            dtypes: Some(sum(three.on(q))),
            dy: dy.src(q),
            inputs,
        };
        backward(q, o, d, ws.on(q));
        settle(q);
        (y, sums)
    });
    for (device, (y, sums)) in all {
        close(&format!("{device} y"), &y, &want, 2e-7);
        for (i, (got, want)) in sums.iter().zip(&want_of).enumerate() {
            close(&format!("{device} table {i}"), got, want, 5e-5);
        }
    }
}

/// As transformers' hook makes it of the same numbers (`reference/neftune.py`).
#[test]
fn noise_is_scaled_as_in_pytorch() {
    let golden = include_str!("../../../../reference/golden/neftune.txt");
    let mut lines = 0;
    for line in golden.lines() {
        let numbers: Vec<f64> = line.split(' ').map(|x| x.parse().unwrap()).collect();
        let ([alpha, seq, c, seed, step, first], want) = numbers.split_first_chunk().unwrap();
        let [seq, c] = [*seq, *c].map(|n| n as usize);
        let y: Vec<f64> = (0..want.len()).map(|i| i as f64 / 8.0 - 2.0).collect();
        let of = [*seed, *step, *first].map(|n| n as u64);
        let got = reference::noisy(&y, (seq, c), *alpha, of.into());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{alpha}: {got} for {want}");
        }
        lines += 1;
    }
    assert_eq!(lines, 3);
}

#[test]
fn noise_agrees_with_the_reference() {
    let (vocab, seq, alpha) = (11, 20, 5.0);
    for (rows, c) in [(1, 1), (7, 9), (40, 264), (9, 1000)] {
        for dtype in DTYPES {
            let mut rng = Rng(rows as u64);
            let w = rng.tensor(vocab * c, dtype, 1.0);
            let tokens: Vec<i32> = (0..rows).map(|_| rng.below(vocab) as i32).collect();
            let d = Dims {
                vocab,
                ..tables(rows, c, dtype)
            };
            let plain = reference::forward(&tokens, &w.values(), &[], &[], c);
            let of = |seed, step, first| {
                let noise = Noise::new(largest(alpha, seq, c), seed, step, first);
                let all = everywhere(|q| {
                    let mut y = Tensor::nan(rows * c, dtype);
                    let (mut w, mut tokens) = (w.clone(), Numbers::of(&tokens));
                    let o = Forward {
                        y: y.on(q),
                        inputs: Planes::all(tokens.src(q)),
                        tokens: w.src(q),
                        positions: None,
                        types: None,
                    };
                    noisy(q, o, d, noise);
                    settle(q);
                    y
                });
                let want = reference::noisy(&plain, (seq, c), alpha, (seed, step, first));
                for (device, y) in &all {
                    close(&format!("{device} noise"), y, &want, 1e-7);
                }
                all.into_iter().next().expect("the CPU").1.values()
            };
            let one = of(1, 3, 100);
            // Rows have numbers by their place in the step's batch, whatever micro-batch they are in.
            for (other, what) in [
                (of(2, 3, 100), "seed"),
                (of(1, 4, 100), "step"),
                (of(1, 3, 101), "row"),
            ] {
                assert_ne!(one, other, "{what}");
            }
            assert_eq!(one, of(1, 3, 100));
        }
    }
}

/// Each number of -1 to 1 as often as another, no two rows or steps alike.
#[test]
fn noise_is_even() {
    let all =
        |step: u64| (0..4096).map(move |i| reference::drawn(7, step, i / 64, (i % 64) as u32));
    let n = 4096.0;
    let mean = all(1).sum::<f64>() / n;
    let square = all(1).map(|x| x * x).sum::<f64>() / n;
    // Of even numbers 0 and 1/3, give or take 0.009 and 0.0047.
    assert!(
        mean.abs() < 0.03 && (square - 1.0 / 3.0).abs() < 0.015,
        "{mean} {square}"
    );
    let with = |other: &dyn Fn(usize) -> f64| {
        all(1).enumerate().map(|(i, x)| x * other(i)).sum::<f64>() / n
    };
    let next: Vec<f64> = all(2).collect();
    let own: Vec<f64> = all(1).collect();
    for (what, with) in [
        ("the next step", with(&|i| next[i])),
        ("the next row", with(&|i| own[(i + 64) % 4096])),
        ("the next column", with(&|i| own[(i + 1) % 4096])),
    ] {
        // 0, give or take 1/3 over the root of n.
        assert!(with.abs() < 0.02, "{what}: {with}");
    }
}
