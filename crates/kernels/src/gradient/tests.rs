//! The end of a gradient against the plain version.

use super::*;
use crate::testing::{DTYPES, Numbers, Rng, Tensor, close, everywhere};

const CHUNK: usize = NORM_CHUNK as usize;

fn segment(offset: usize, elements: usize) -> Segment {
    Segment { offset, elements }
}

#[track_caller]
fn check(params: &[Segment], piece: usize, dtype: Dtype, in_place: bool) {
    let mut rng = Rng(piece as u64);
    // Accumulators hold anything in their padding.
    let acc = Tensor::of(
        &rng.vec(piece).iter().map(|x| x * 3.0).collect::<Vec<_>>(),
        Dtype::F32,
    );
    let n_parts = params.iter().map(|s| s.norm_chunks()).sum();
    let all = everywhere(|q| {
        let mut acc = acc.clone();
        let mut grad = Tensor::nan(piece, dtype);
        let mut parts = Numbers::of(&vec![f64::NAN; n_parts]);
        let p = parts.on(q);
        if in_place {
            let acc = acc.on(q);
            finish(q, acc, p, None, params, piece, dtype);
        } else {
            let from = Some(acc.src(q));
            finish(q, grad.on(q), p, from, params, piece, dtype);
        }
        settle(q);
        (if in_place { acc } else { grad }, parts.values())
    });
    let acc: Vec<f32> = acc.values().iter().map(|x| *x as f32).collect();
    let want = reference::finish(&acc, params, dtype);
    for (device, (grad, parts)) in all {
        assert!(
            grad.values() == want.grad,
            "{device}: one rounding, to nearest even; zero in the padding"
        );
        assert_eq!(parts.len(), want.parts.len());
        for (i, (got, want)) in parts.iter().zip(&want.parts).enumerate() {
            assert!(
                (got - want).abs() <= 1e-12 * want,
                "{device} parts[{i}]: {got}, want {want}"
            );
        }
    }
}

/// Waits for a stream, so that results may be read.
fn settle(q: &Queue) {
    if let Some(stream) = q.cuda() {
        stream.synchronize().unwrap();
    }
}

#[test]
fn agrees_with_the_reference() {
    let pieces: [(&[Segment], usize); 4] = [
        (&[segment(0, 1)], 128),
        (&[segment(0, 129), segment(256, 7), segment(384, 128)], 2048),
        (
            &[
                segment(128, 1000),
                segment(1152, CHUNK),
                segment(1280 + CHUNK, 9),
            ],
            4096 + CHUNK,
        ),
        (&[segment(0, 2 * CHUNK + 1)], 2 * CHUNK + 2048),
    ];
    // More segments than a launch takes, none of them at a multiple of anything, empty ones too.
    let many: Vec<Segment> = (0..40)
        .map(|i| {
            segment(
                200 * i + i % 7,
                if i % 9 == 4 { 0 } else { 1 + 37 * i % 190 },
            )
        })
        .collect();
    // Runs longer than a block's width and their borders.
    let long: Vec<Segment> = (0..19)
        .map(|i| segment(i * 3 * CHUNK, CHUNK + 2045 * i))
        .collect();
    let more: [(&[Segment], usize); 4] = [
        (&many, 8192),
        (&long, 19 * 3 * CHUNK),
        (&[], 2048),
        (&[segment(130, 0), segment(1024, 0)], 2048),
    ];
    for (params, piece) in pieces.into_iter().chain(more) {
        DTYPES
            .into_iter()
            .for_each(|dtype| check(params, piece, dtype, false));
        check(params, piece, Dtype::F32, true);
    }
}

#[test]
fn rounding_is_to_nearest_even_and_norms_are_of_rounded_values() {
    let one = |bits: u32| f64::from(f32::from_bits(bits));
    // Halfway cases around 1, both directions, and one just above.
    let acc = [
        one(0x3f80_8000),
        one(0x3f81_8000),
        one(0x3f80_8001),
        one(0xbf80_8000),
    ];
    let want = [1.0, one(0x3f82_0000), one(0x3f81_0000), -1.0];
    let all = everywhere(|q| {
        let mut acc = Tensor::of(&acc, Dtype::F32);
        let mut grad = Tensor::nan(4, Dtype::Bf16);
        let mut parts = Numbers::of(&[f64::NAN]);
        let (to, p, from) = (grad.on(q), parts.on(q), Some(acc.src(q)));
        finish(q, to, p, from, &[segment(0, 4)], 4, Dtype::Bf16);
        settle(q);
        (grad, parts.values())
    });
    for (_, (grad, parts)) in all {
        assert_eq!(grad.values(), want);
        assert_eq!(parts, [want.iter().map(|x| x * x).sum::<f64>()]);
        close("grad", &grad, &want, 0.0);
    }
}

#[test]
fn the_sum_does_not_depend_on_where_the_run_lies() {
    // The same numbers at an aligned place and off it: other widths of access, one order.
    for elements in [CHUNK, 5000, 4099] {
        let numbers = Rng(9).vec(elements);
        let sums = [0, 1, 2, 3, 129].map(|offset| {
            let mut piece = vec![0.0; offset + elements];
            piece[offset..].copy_from_slice(&numbers);
            everywhere(|q| {
                let mut acc = Tensor::of(&piece, Dtype::F32);
                let mut grad = Tensor::nan(piece.len(), Dtype::Bf16);
                let mut parts = Numbers::of(&[f64::NAN]);
                let (to, p, from) = (grad.on(q), parts.on(q), Some(acc.src(q)));
                let params = [segment(offset, elements)];
                finish(q, to, p, from, &params, piece.len(), Dtype::Bf16);
                settle(q);
                parts.values()[0].to_bits()
            })
        });
        assert!(sums.iter().all(|s| *s == sums[0]), "{sums:x?}");
    }
}

#[test]
fn a_nan_stays_one() {
    // Its payload is in the low bits, which rounding must not turn into an infinity or a zero.
    let acc = [
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0xffff_ffff),
        f32::INFINITY,
    ];
    let all = everywhere(|q| {
        let mut acc = Numbers::of(&acc);
        let mut grad = Tensor::nan(3, Dtype::Bf16);
        let mut parts = Numbers::of(&[0.0_f64]);
        let (to, p, from) = (grad.on(q), parts.on(q), Some(acc.src(q)));
        finish(q, to, p, from, &[segment(0, 3)], 3, Dtype::Bf16);
        settle(q);
        // Which NaN it is, each device may choose.
        let values = grad.values();
        (
            values.iter().map(|x| x.is_nan()).collect::<Vec<_>>(),
            values[2],
            parts.values()[0].is_nan(),
        )
    });
    for (device, got) in all {
        let want = (vec![true, true, false], f64::INFINITY, true);
        assert_eq!(got, want, "{device}");
    }
}
