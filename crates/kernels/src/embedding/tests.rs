//! The embedding against `f64`.

use super::*;
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

#[track_caller]
fn check((rows, c, vocab, places): (usize, usize, usize, usize), dtype: Dtype) {
    let mut rng = Rng((rows * 31 + c) as u64);
    let w = rng.tensor(vocab * c, dtype, 1.0);
    let wpe = rng.tensor(places * c, dtype, 1.0);
    let dy = rng.tensor(rows * c, dtype, 1.0);
    let old = rng.tensor(vocab * c, Dtype::F32, 1.0);
    let tokens: Vec<i32> = (0..rows).map(|_| rng.below(vocab) as i32).collect();
    let positions: Vec<i32> = (0..rows).map(|_| rng.below(places) as i32).collect();
    for with_positions in [false, true] {
        let all = everywhere(|q| {
            let mut y = Tensor::nan(rows * c, dtype);
            let (mut w, mut wpe) = (w.clone(), wpe.clone());
            let (mut tokens, mut positions) = (Numbers::of(&tokens), Numbers::of(&positions));
            let positions = with_positions.then(|| (wpe.src(q), positions.src(q)));
            let (to, tokens, w) = (y.on(q), tokens.src(q), w.src(q));
            forward(q, to, tokens, w, positions, rows, c, vocab, dtype);
            settle(q);
            y
        });
        let positions = if with_positions { &positions[..] } else { &[] };
        let want = reference::forward(&tokens, &w.values(), &wpe.values(), positions, c);
        for (device, y) in all {
            close(&format!("{device} y"), &y, &want, 0.0);
        }
    }
    let want = reference::backward(&dy.values(), &tokens, c, vocab);
    for accumulate in [false, true] {
        let all = everywhere(|q| {
            let mut dw = if accumulate {
                old.clone()
            } else {
                Tensor::nan(vocab * c, Dtype::F32)
            };
            let (mut dy, mut tokens) = (dy.clone(), Numbers::of(&tokens));
            let mut ws = Scratch::new(workspace(rows, vocab, q.make()));
            let (to, from, tokens, ws) = (dw.on(q), dy.src(q), tokens.src(q), ws.on(q));
            backward(q, to, from, tokens, rows, c, vocab, accumulate, dtype, ws);
            settle(q);
            dw
        });
        let want = if accumulate {
            plus(&want, &old.values())
        } else {
            want.clone()
        };
        // Sums of n numbers of at most 1 are off by n units of 2^-24 of a partial sum at most, in
        // practice by far less.
        let slack = 2e-5_f64.max(3e-7 * (rows / vocab) as f64);
        for (device, dw) in all {
            close(&format!("{device} dw"), &dw, &want, slack);
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
            let mut dw = Tensor::nan(2, Dtype::F32);
            let mut tokens = Numbers::of(&[1, 1, 1]);
            let mut ws = Scratch::new(workspace(3, 2, q.make()));
            let (to, from, tokens, ws) = (dw.on(q), dy.src(q), tokens.src(q), ws.on(q));
            backward(q, to, from, tokens, 3, 1, 2, false, Dtype::F32, ws);
            settle(q);
            dw
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
            let (to, ids) = (y.on(q), tokens.src(q));
            forward(q, to, ids, w.src(q), None, rows, c, vocab, dtype);
            let (acc, from, ws) = (dw.on(q), dy.src(q), ws.on(q));
            backward(q, acc, from, ids, rows, c, vocab, false, dtype, ws);
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
    forward(
        &q,
        y.view(),
        tokens,
        w.view().into_src(),
        None,
        1,
        1,
        2,
        Dtype::F32,
    );
}
