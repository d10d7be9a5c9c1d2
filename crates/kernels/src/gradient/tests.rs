//! The end of a gradient against the plain version.

use super::*;
use crate::testing::{DTYPES, Rng, Tensor, close, on_threads};

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
    let (grad, parts) = on_threads(|q| {
        let mut acc = acc.clone();
        let mut grad = Tensor::nan(piece, dtype);
        let mut parts = vec![f64::NAN; n_parts];
        let p = View::of(&mut parts);
        if in_place {
            let acc = acc.view();
            finish(q, acc, p, acc, params, piece, dtype);
        } else {
            finish(q, grad.view(), p, acc.view(), params, piece, dtype);
        }
        (if in_place { acc } else { grad }, parts)
    });
    let acc: Vec<f32> = acc.values().iter().map(|x| *x as f32).collect();
    let want = reference::finish(&acc, params, dtype);
    assert_eq!(
        grad.values(),
        want.grad,
        "one rounding, to nearest even; zero in the padding"
    );
    for (i, (got, want)) in parts.iter().zip(&want.parts).enumerate() {
        assert!(
            (got - want).abs() <= 1e-12 * want,
            "parts[{i}]: {got}, want {want}"
        );
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
    for (params, piece) in pieces {
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
    let mut acc = Tensor::of(&acc, Dtype::F32);
    let mut grad = Tensor::nan(4, Dtype::Bf16);
    let mut parts = [f64::NAN];
    let q = Queue::new("test", 1);
    let p = View::of(&mut parts);
    finish(
        &q,
        grad.view(),
        p,
        acc.view(),
        &[segment(0, 4)],
        4,
        Dtype::Bf16,
    );
    assert_eq!(grad.values(), want);
    assert_eq!(parts[0], want.iter().map(|x| x * x).sum::<f64>());
    close("grad", &grad, &want, 0.0);
}

#[test]
fn a_nan_stays_one() {
    // Its payload is in the low bits, which rounding must not turn into an infinity or a zero.
    let mut acc = [
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0xffff_ffff),
        f32::INFINITY,
    ];
    let mut grad = Tensor::nan(3, Dtype::Bf16);
    let mut parts = [0.0_f64];
    let q = Queue::new("test", 1);
    let (acc, p) = (View::of(&mut acc), View::of(&mut parts));
    finish(&q, grad.view(), p, acc, &[segment(0, 3)], 3, Dtype::Bf16);
    let got = grad.values();
    assert!(got[0].is_nan() && got[1].is_nan() && got[2] == f64::INFINITY && parts[0].is_nan());
}
