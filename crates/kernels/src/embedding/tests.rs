//! The embedding against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, on_threads, plus};

/// Rows, C, V, P.
const SHAPES: [(usize, usize, usize, usize); 6] = [
    (1, 1, 1, 1),
    (7, 9, 3, 8),
    (129, 8, 300, 7),
    (1000, 33, 17, 129),
    (9, 1000, 5, 9),
    (40, 7, 1000, 3),
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
        let y = on_threads(|q| {
            let mut y = Tensor::nan(rows * c, dtype);
            let (mut w, mut wpe) = (w.clone(), wpe.clone());
            let (mut tokens, mut positions) = (tokens.clone(), positions.clone());
            let positions = with_positions.then(|| (wpe.view(), View::of(&mut positions)));
            let tokens = View::of(&mut tokens);
            forward(
                q,
                y.view(),
                tokens,
                w.view(),
                positions,
                rows,
                c,
                vocab,
                dtype,
            );
            y
        });
        let positions = if with_positions { &positions[..] } else { &[] };
        let want = reference::forward(&tokens, &w.values(), &wpe.values(), positions, c);
        close("y", &y, &want, 0.0);
    }
    let want = reference::backward(&dy.values(), &tokens, c, vocab);
    for accumulate in [false, true] {
        let dw = on_threads(|q| {
            let mut dw = if accumulate {
                old.clone()
            } else {
                Tensor::nan(vocab * c, Dtype::F32)
            };
            let (mut dy, mut tokens) = (dy.clone(), tokens.clone());
            let mut ws = Scratch::new(workspace(rows, vocab, lowtide_device::Make::Cpu));
            let (to, from, tokens) = (dw.view(), dy.view(), View::of(&mut tokens));
            backward(
                q,
                to,
                from,
                tokens,
                rows,
                c,
                vocab,
                accumulate,
                dtype,
                ws.view(),
            );
            dw
        });
        let want = if accumulate {
            plus(&want, &old.values())
        } else {
            want.clone()
        };
        close("dw", &dw, &want, 2e-5);
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
        let mut dy = Tensor::of(&dy, Dtype::F32);
        let mut dw = Tensor::nan(2, Dtype::F32);
        let mut tokens = [1, 1, 1];
        let mut ws = Scratch::new(workspace(3, 2, lowtide_device::Make::Cpu));
        let (q, tokens) = (Queue::new("test", 2), View::of(&mut tokens));
        let (to, from) = (dw.view(), dy.view());
        backward(&q, to, from, tokens, 3, 1, 2, false, Dtype::F32, ws.view());
        assert_eq!(dw.values(), [0.0, want]);
    }
}

#[test]
#[should_panic(expected = "view of 8")]
fn a_token_outside_the_table_panics() {
    let (mut y, mut w) = (Tensor::nan(1, Dtype::F32), Tensor::nan(2, Dtype::F32));
    let (q, mut tokens) = (Queue::new("test", 1), [2]);
    let tokens = View::of(&mut tokens);
    forward(&q, y.view(), tokens, w.view(), None, 1, 1, 2, Dtype::F32);
}
