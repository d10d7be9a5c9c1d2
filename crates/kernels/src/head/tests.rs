//! The head against `f64`.
//!
//! One file because all of it is held against one reference, most of it by one check.

use half::bf16;

use super::*;
use crate::operands::Sum;
use crate::testing::{
    DTYPES, Numbers, Rng, Scratch, Tensor, close, differences, everywhere, on_gpu, plus,
};

/// Rows, C, V, chunk.
type Shape = (usize, usize, usize, usize);
const SHAPES: [Shape; 12] = [
    (1, 1, 1, 1),
    (7, 9, 8, 3),
    (129, 8, 300, 64),
    (40, 33, 1000, 40),
    (300, 16, 129, 1000),
    (9, 129, 7, 8),
    // Rows of whole vectors and not, of every number of threads, and longer than shared memory.
    (300, 16, 4096, 257),
    (5, 8, 40_000, 2),
    (4, 8, 50_257, 3),
    (3, 8, 57_352, 3),
    (3, 8, 151_936, 2),
    (2, 3, 151_937, 2),
];

fn labels(rng: &mut Rng, rows: usize, vocab: usize) -> Vec<i32> {
    let label = |i| {
        if i % 3 == 1 {
            NO_LOSS
        } else {
            rng.below(vocab) as i32
        }
    };
    (0..rows).map(label).collect()
}

fn rounding(dtype: Dtype) -> impl Fn(f64) -> f64 {
    move |x| match dtype {
        Dtype::Bf16 => bf16::from_f64(x).to_f64(),
        Dtype::F32 => x,
    }
}

#[track_caller]
fn check((rows, hidden, vocab, chunk): Shape, dtype: Dtype, bend: Bend, smoothing: f32) {
    let d = Head {
        rows,
        hidden,
        vocab,
        chunk,
        bend,
        smoothing,
    };
    let mut rng = Rng((rows * 31 + vocab) as u64);
    let h = rng.tensor(rows * hidden, dtype, 2.0);
    let w = rng.tensor(vocab * hidden, dtype, 1.0);
    let labels = labels(&mut rng, rows, vocab);
    let old = rng.tensor(vocab * hidden, Dtype::F32, 1.0);
    let scale = 0.37_f32;
    let (hs, ws) = (h.values(), w.values());
    let want = reference::train(
        &hs,
        &ws,
        &labels,
        f64::from(scale),
        (hidden, bend, f64::from(smoothing)),
        rounding(dtype),
    );
    let sharp = (hidden, bend, 0.0);
    let sharp = match smoothing {
        0.0 => want.loss,
        _ => reference::train(&hs, &ws, &labels, 1.0, sharp, rounding(dtype)).loss,
    };
    for accumulate in [false, true] {
        let all = everywhere(|q| {
            let n = vocab * hidden;
            let mut dw = if accumulate {
                old.clone()
            } else {
                Tensor::nan(n, Dtype::F32)
            };
            let mut dh = Tensor::nan(rows * hidden, dtype);
            let (mut h, mut w, mut labels) = (h.clone(), w.clone(), Numbers::of(&labels));
            let (mut sums, mut alone) = (Numbers::of(&[f64::NAN; 2]), Numbers::of(&[f64::NAN; 2]));
            let mut ws = Scratch::new(workspace(&d, dtype, q.make()));
            let (hv, wv, lv) = (h.src(q), w.src(q), labels.src(q));
            let mut ws = ws.on(q);
            let inputs = Planes::all(lv);
            let o = Train {
                dh: dh.on(q),
                dw: Some(Sum {
                    to: dw.on(q),
                    accumulate,
                }),
                loss: sums.on(q),
                h: hv,
                w: wv,
                inputs,
            };
            train(q, o, scale, &d, dtype, ws.again());
            let o = Loss {
                loss: alone.on(q),
                h: hv,
                w: wv,
                inputs,
            };
            loss(q, o, &d, dtype, ws);
            settle(q);
            (dh, dw, sums.values(), alone.values())
        });
        for (device, (dh, dw, sums, alone)) in all {
            assert_eq!(sums[1], f64::from(Counts::of(alone[1]).rows), "{device}");
            if smoothing == 0.0 {
                assert_eq!(sums[0], alone[0], "{device}: the loss alone has other bits");
            }
            // A logit on the border between two bf16 values may round the other way; then the sums
            // differ by a unit of bf16 at that logit.
            let flip = if dtype == Dtype::Bf16 { 2e-2 } else { 0.0 };
            assert_eq!(sums[1], want.count, "{device}");
            let off = (sums[0] - want.loss).abs();
            assert!(
                off <= (1e-6 + flip / 4.0) * (1.0 + want.loss),
                "{device}: loss {} for {}, {d:?}",
                sums[0],
                want.loss
            );
            // An evaluation does not smooth.
            let off = (alone[0] - sharp).abs();
            let most = (1e-6 + flip / 4.0) * (1.0 + sharp);
            assert!(off <= most, "{device}: {} for {sharp}", alone[0]);
            close(&format!("{device} dh"), &dh, &want.dh, 1e-5 + flip);
            let dw_want = if accumulate {
                plus(&want.dw, &old.values())
            } else {
                want.dw.clone()
            };
            close(&format!("{device} dw"), &dw, &dw_want, 2e-5 + flip);
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
        let plain = |dtype| check(shape, dtype, Bend::NONE, 0.0);
        DTYPES.into_iter().for_each(plain);
    }
}

/// A factor alone, a cap that bites, and one that hardly does; rows of whole vectors and not.
#[test]
fn bent_logits_agree_with_the_reference() {
    let bend = |factor, cap| Bend { factor, cap };
    let few: fn(&Shape) -> bool = |(rows, ..)| matches!(rows, 7 | 40 | 129 | 5);
    for shape in SHAPES.into_iter().filter(few) {
        for dtype in DTYPES {
            check(shape, dtype, bend(0.125, None), 0.0);
            check(shape, dtype, bend(1.0, Some(1.5)), 0.0);
            check(shape, dtype, bend(3.0, Some(30.0)), 0.0);
        }
    }
}

/// Little, much and all of the label, plain and bent; rows of whole vectors and not, and of every number of threads.
#[test]
fn smoothed_labels_agree_with_the_reference() {
    let cap = Bend {
        factor: 3.0,
        cap: Some(30.0),
    };
    for shape in SHAPES.into_iter().filter(|s| s.0 != 300) {
        for dtype in DTYPES {
            check(shape, dtype, Bend::NONE, 0.1);
        }
    }
    for (bend, smoothing) in [(cap, 0.1), (Bend::NONE, 1.0), (cap, 0.75)] {
        for dtype in DTYPES {
            check((40, 33, 1000, 40), dtype, bend, smoothing);
            check((7, 9, 8, 3), dtype, bend, smoothing);
        }
    }
}

/// `reference/label_smoothing.py` says what PyTorch makes of the same numbers, in f64.
#[test]
fn smoothed_labels_are_those_of_pytorch() {
    let signed = |i: u64| {
        let z = i
            .wrapping_add(0x9e37_79b9_7f4a_7c15)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        f64::from(((z >> 31) as u32) as i32 as f32 / 2f32.powi(31))
    };
    let golden = include_str!("../../../../reference/golden/label_smoothing.txt");
    let (rows, hidden, vocab) = (5, 4, 7);
    let all = |first: u64, n: usize| -> Vec<f64> {
        (0..n as u64).map(|i| 4.0 * signed(first + i)).collect()
    };
    let (h, w) = (all(0, rows * hidden), all(1000, vocab * hidden));
    let labels = [3, NO_LOSS, 6, 0, 3];
    for line in golden.lines() {
        let mut numbers = line.split(' ').map(|x| x.parse::<f64>().unwrap());
        let e = numbers.next().unwrap();
        let want: Vec<f64> = numbers.collect();
        let of = reference::train(&h, &w, &labels, 1.0, (hidden, Bend::NONE, e), |x| x);
        let all = [&[of.loss][..], &of.dh, &of.dw].concat();
        assert_eq!(all.len(), want.len());
        for (got, want) in all.iter().zip(&want) {
            assert!((got - want).abs() < 1e-13, "{e}: {got} for {want}");
        }
        let d = Head {
            rows,
            hidden,
            vocab,
            chunk: 2,
            bend: Bend::NONE,
            smoothing: e as f32,
        };
        let dtype = Dtype::F32;
        let got = everywhere(|q| {
            let (mut h, mut w) = (Tensor::of(&h, dtype), Tensor::of(&w, dtype));
            let (mut labels, mut sums) = (Numbers::of(&labels), Numbers::of(&[f64::NAN; 2]));
            let mut dh = Tensor::nan(rows * hidden, dtype);
            let mut dw = Tensor::nan(vocab * hidden, dtype);
            let mut ws = Scratch::new(workspace(&d, dtype, q.make()));
            let o = Train {
                dh: dh.on(q),
                dw: Some(Sum {
                    to: dw.on(q),
                    accumulate: false,
                }),
                loss: sums.on(q),
                h: h.src(q),
                w: w.src(q),
                inputs: Planes::all(labels.src(q)),
            };
            train(q, o, 1.0, &d, dtype, ws.on(q));
            settle(q);
            (sums.values()[0], dh, dw)
        });
        for (device, (loss, dh, dw)) in got {
            let off = (loss - want[0]).abs();
            assert!(off < 1e-6 * want[0], "{device}: {loss} for {}", want[0]);
            let (of_h, of_w) = want[1..].split_at(rows * hidden);
            close(&format!("{device} dh"), &dh, of_h, 1e-5);
            close(&format!("{device} dw"), &dw, of_w, 2e-5);
        }
    }
}

/// Without the library's products, whose kernels compute-sanitizer cannot run under its race check.
#[test]
fn the_kernels_alone_agree_with_the_reference() {
    for (rows, _, vocab, _) in SHAPES {
        for dtype in DTYPES {
            for scale in [None, Some(0.37_f32)] {
                check_alone(rows, vocab, dtype, scale);
            }
        }
    }
}

#[track_caller]
fn check_alone(rows: usize, vocab: usize, dtype: Dtype, scale: Option<f32>) {
    let mut rng = Rng((rows * 37 + vocab) as u64);
    let given = rng.tensor(rows * vocab, dtype, 4.0);
    let labels = labels(&mut rng, rows, vocab);
    // What an earlier chunk left.
    let earlier = Counts { rows: 3, right: 2 };
    let before = match scale {
        Some(_) => [2.5_f64, 3.0],
        None => [2.5, earlier.word()],
    };
    for first in [true, false] {
        let got = on_gpu(|q| {
            let mut logits = given.clone();
            let (mut labels, mut losses) =
                (Numbers::of(&labels), Numbers::of(&vec![f64::NAN; rows]));
            let mut sums = Numbers::of(if first { &[f64::NAN; 2] } else { &before });
            let chunk = cuda::Chunk {
                logits: logits.on(q),
                losses: losses.on(q),
                labels: labels.src(q),
                vocab,
                gap: 0,
                first,
                bend: Bend::NONE,
                smoothing: 0.0,
            };
            let stream = q.cuda().expect("a GPU");
            cuda::after_product(stream, sums.on(q), chunk, scale, dtype);
            settle(q);
            (logits, sums.values())
        });
        let Some((logits, sums)) = got else { return };
        let values = given.values();
        let mut want = values.clone();
        let (mut right, mut sum) = match first {
            true => (0, [0.0; 2]),
            false => (earlier.right, [2.5, 3.0]),
        };
        for (row, &label) in labels.iter().enumerate() {
            let at = row * vocab..(row + 1) * vocab;
            let factor = f64::from(scale.unwrap_or(0.0));
            if let Ok(label) = usize::try_from(label) {
                let (loss, gradient) = reference::row_of(&values[at.clone()], label, factor);
                (sum[0], sum[1]) = (sum[0] + loss, sum[1] + 1.0);
                want[at].copy_from_slice(&gradient);
            } else {
                want[at].fill(0.0);
            }
        }
        for (row, label) in labels.iter().enumerate().filter(|_| scale.is_none()) {
            let of = &values[row * vocab..(row + 1) * vocab];
            let hit = usize::try_from(*label).is_ok_and(|l| reference::is_right(of, l));
            right += u32::from(hit);
        }
        match scale {
            Some(_) => assert_eq!(sums[1], sum[1]),
            None => {
                let rows = sum[1] as u32;
                assert_eq!(Counts::of(sums[1]), Counts { rows, right });
            }
        }
        let off = (sums[0] - sum[0]).abs();
        assert!(
            off <= 1e-6 * (1.0 + sum[0]),
            "loss {} for {}",
            sums[0],
            sum[0]
        );
        if scale.is_none() {
            want = values.clone();
            let firsts = want.iter_mut().step_by(vocab);
            for (row, (first, label)) in firsts.zip(&labels).enumerate() {
                let of = &values[row * vocab..(row + 1) * vocab];
                let hit = usize::try_from(*label).is_ok_and(|l| reference::is_right(of, l));
                *first = f64::from(u8::from(hit));
            }
        }
        close(&format!("{rows} rows of {vocab}"), &logits, &want, 3e-6);
    }
}

/// Whole numbers, whose products are exact in every type, so that logits are equal where they should be. Labels have
/// the largest logit, share it with an earlier or a later one, or are any.
#[test]
fn labels_that_greedy_decoding_takes_are_counted() {
    let bent = Bend {
        factor: 1.0,
        cap: Some(30.0),
    };
    let cases = SHAPES.into_iter().filter(|s| s.0 > 1 && s.3 < s.0);
    for ((rows, _, vocab, chunk), (dtype, bend)) in cases.flat_map(|shape| {
        let kinds = [
            (Dtype::F32, Bend::NONE),
            (Dtype::Bf16, Bend::NONE),
            (Dtype::Bf16, bent),
        ];
        kinds.map(|kind| (shape, kind))
    }) {
        let hidden = 4;
        let d = Head {
            rows,
            hidden,
            vocab,
            chunk,
            bend,
            smoothing: 0.0,
        };
        let mut rng = Rng((rows + vocab) as u64);
        let mut whole = |n| -> Vec<f64> { (0..n).map(|_| rng.below(5) as f64 - 2.0).collect() };
        let (h, w) = (whole(rows * hidden), whole(vocab * hidden));
        let logits = reference::logits(&h, &w, hidden);
        let label = |(row, of): (usize, &[f64])| {
            let most = of.iter().copied().fold(f64::MIN, f64::max);
            let first = of.iter().position(|x| *x == most);
            let last = of.iter().rposition(|x| *x == most);
            let label = match row % 4 {
                0 => return NO_LOSS,
                1 => first,
                2 => last,
                _ => Some(row * 7 % vocab),
            };
            label.expect("a largest one") as i32
        };
        let labels: Vec<i32> = logits.chunks_exact(vocab).enumerate().map(label).collect();
        let of = logits.chunks_exact(vocab).zip(&labels);
        let hits = of.filter(|(of, l)| **l >= 0 && reference::is_right(of, **l as usize));
        let want = Counts {
            rows: labels.iter().filter(|l| **l >= 0).count() as u32,
            right: hits.count() as u32,
        };
        let got = everywhere(|q| {
            let (mut h, mut w) = (Tensor::of(&h, dtype), Tensor::of(&w, dtype));
            let (mut labels, mut sums) = (Numbers::of(&labels), Numbers::of(&[f64::NAN; 2]));
            let mut ws = Scratch::new(workspace(&d, dtype, q.make()));
            let o = Loss {
                loss: sums.on(q),
                h: h.src(q),
                w: w.src(q),
                inputs: Planes::all(labels.src(q)),
            };
            loss(q, o, &d, dtype, ws.on(q));
            settle(q);
            sums.values()
        });
        for (device, sums) in got {
            assert_eq!(Counts::of(sums[1]), want, "{device}: {d:?} {dtype:?}");
        }
    }
}

#[test]
fn logits_of_marked_rows() {
    let (seq, n) = (5, 7);
    let bent = Bend {
        factor: 0.5,
        cap: Some(2.0),
    };
    for (dtype, chunk, bend) in [
        (Dtype::F32, 3, Bend::NONE),
        (Dtype::Bf16, 3, Bend::NONE),
        (Dtype::Bf16, 100, Bend::NONE),
        (Dtype::Bf16, 3, bent),
    ] {
        let d = Head {
            rows: seq * n,
            hidden: 9,
            vocab: 33,
            chunk,
            bend,
            smoothing: 0.0,
        };
        let mut rng = Rng(6);
        let h = rng.tensor(d.rows * d.hidden, dtype, 1.0);
        let w = rng.tensor(d.vocab * d.hidden, dtype, 1.0);
        let mut marks = vec![NO_LOSS; d.rows];
        // The first sequence has no mark; the others one each, at both ends and inside.
        (1..n).for_each(|i| marks[i * seq + (i * 2 - 2) % seq] = 3);
        let got = everywhere(|q| {
            let mut out = Tensor::nan(n * d.vocab, Dtype::F32);
            let (mut h, mut w, mut marks) = (h.clone(), w.clone(), Numbers::of(&marks));
            let mut ws = Scratch::new(workspace(&d, dtype, q.make()));
            let o = Logits {
                logits: out.on(q),
                h: h.src(q),
                w: w.src(q),
                inputs: Planes::all(marks.src(q)),
            };
            logits(q, o, seq, &d, dtype, ws.on(q));
            settle(q);
            out
        });
        let all = reference::logits(&h.values(), &w.values(), d.hidden);
        let mut want = vec![0.0; n * d.vocab];
        for i in 1..n {
            let row = i * seq + (i * 2 - 2) % seq;
            let of = want[i * d.vocab..][..d.vocab].iter_mut();
            of.zip(&all[row * d.vocab..])
                .for_each(|(to, &x)| *to = reference::bent(x, bend).0);
        }
        for (device, out) in got {
            close(&format!("{device} logits"), &out, &want, 1e-6);
        }
    }
}

#[test]
fn large_logits_do_not_overflow() {
    let d = Head {
        rows: 2,
        hidden: 1,
        vocab: 3,
        chunk: 2,
        bend: Bend::NONE,
        smoothing: 0.0,
    };
    let dtype = Dtype::F32;
    let all = everywhere(|q| {
        let mut h = Tensor::of(&[100.0, -100.0], dtype);
        let mut w = Tensor::of(&[3.0, 2.0, -3.0], dtype);
        let (mut labels, mut sums) = (Numbers::of(&[0, 0]), Numbers::of(&[f64::NAN; 2]));
        let (mut dh, mut dw) = (Tensor::nan(2, dtype), Tensor::nan(3, dtype));
        let mut ws = Scratch::new(workspace(&d, dtype, q.make()));
        let o = Train {
            dh: dh.on(q),
            dw: Some(Sum {
                to: dw.on(q),
                accumulate: false,
            }),
            loss: sums.on(q),
            h: h.src(q),
            w: w.src(q),
            inputs: Planes::all(labels.src(q)),
        };
        train(q, o, 1.0, &d, dtype, ws.on(q));
        settle(q);
        (sums.values(), dh, dw)
    });
    for (device, (sums, dh, dw)) in all {
        assert_eq!(sums, [600.0, 2.0], "{device}");
        close("dh", &dh, &[0.0, -6.0], 1e-6);
        close("dw", &dw, &[100.0, 0.0, -100.0], 1e-4);
    }
}

#[test]
fn a_label_outside_the_table_is_a_loss_that_is_no_number_on_a_device() {
    let (d, dtype) = (
        Head {
            rows: 3,
            hidden: 8,
            vocab: 16,
            chunk: 2,
            bend: Bend::NONE,
            smoothing: 0.0,
        },
        Dtype::Bf16,
    );
    for bad in [16, i32::MAX] {
        let got = on_gpu(|q| {
            let mut rng = Rng(3);
            let mut h = rng.tensor(d.rows * d.hidden, dtype, 1.0);
            let mut w = rng.tensor(d.vocab * d.hidden, dtype, 1.0);
            let (mut labels, mut sums) = (Numbers::of(&[1, bad, 2]), Numbers::of(&[0.0_f64; 2]));
            let mut dh = Tensor::nan(d.rows * d.hidden, dtype);
            let mut dw = Tensor::nan(d.vocab * d.hidden, Dtype::F32);
            let mut ws = Scratch::new(workspace(&d, dtype, q.make()));
            let o = Train {
                dh: dh.on(q),
                dw: Some(Sum {
                    to: dw.on(q),
                    accumulate: false,
                }),
                loss: sums.on(q),
                h: h.src(q),
                w: w.src(q),
                inputs: Planes::all(labels.src(q)),
            };
            train(q, o, 1.0, &d, dtype, ws.on(q));
            settle(q);
            let nans: Vec<bool> = dh.values().iter().map(|x| x.is_nan()).collect();
            (sums.values()[0].is_nan(), sums.values()[1], nans)
        });
        if let Some((nan, count, nans)) = got {
            assert!(nan && count == 3.0);
            let want = (0..d.rows * d.hidden).map(|i| i / d.hidden == 1);
            assert!(nans.into_iter().eq(want), "other rows' gradients");
        }
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    let (rows, c, vocab) = (5, 4, 7);
    let mut rng = Rng(1);
    let (h, w) = (rng.vec(rows * c), rng.vec(vocab * c));
    let labels = labels(&mut rng, rows, vocab);
    let bent = Bend {
        factor: 0.7,
        cap: Some(0.9),
    };
    for bend in [Bend::NONE, bent] {
        for e in [0.0, 0.3] {
            let how = (c, bend, e);
            let f = |h: &[f64], w: &[f64]| reference::train(h, w, &labels, 0.5, how, |x| x);
            let g = f(&h, &w);
            differences("dh", &h, &g.dh, |h| 0.5 * f(h, &w).loss);
            differences("dw", &w, &g.dw, |w| 0.5 * f(&h, w).loss);
        }
    }
}
