//! The update bit for bit: against exact arithmetic, between paths, threads and cuts; padding.

use super::*;
use crate::testing;

/// The factors of `golden.txt`, and its rows.
pub(super) fn golden() -> (Constants, Vec<[f32; 7]>) {
    let (factors, rows) = testing::golden(include_str!("../golden.txt"));
    let [
        grad_scale,
        one_minus_beta1,
        one_minus_beta2,
        root_correction2,
        eps,
        keep,
        minus_rate,
    ] = factors;
    let c = Constants {
        grad_scale,
        one_minus_beta1,
        one_minus_beta2,
        root_correction2,
        eps,
        keep,
        minus_rate,
        step: 1,
    };
    (c, rows)
}

/// The contract with the device's kernel: bits from exact rational arithmetic (`golden.py`).
#[test]
fn bits_are_those_of_exact_arithmetic() {
    let (c, rows) = golden();
    let column = |i: usize| rows.iter().map(|r| r[i]).collect::<Vec<f32>>();
    for path in paths() {
        let (mut p, mut m, mut v) = (column(1), column(2), column(3));
        let grad = column(0);
        let (master, grad) = (Master::Whole(&mut p), Gradients::F32(&grad));
        update(
            path,
            Chunk {
                master,
                moments: Stored::F32([&mut m, &mut v]),
                grad,
                random: Random::new(1, 0),
                keep: c.keep,
            },
            &c,
        );
        for (i, row) in rows.iter().enumerate() {
            let got = [p[i], m[i], v[i]].map(f32::to_bits);
            assert_eq!(
                got,
                [row[4], row[5], row[6]].map(f32::to_bits),
                "{path:?}, row {i}"
            );
        }
    }
}

/// Gradients and states at the ends of the range, in every combination; in two of three blocks only
/// such that the moments stay finite, which for 8-bit moments a whole block must.
pub(super) fn extremes(a: &mut Arrays) {
    let ends = [
        0.0,
        1e-45,
        1.2e-39,
        f32::MIN_POSITIVE,
        1e-20,
        1.0,
        1.8e19,
        2e19,
        3.0e38,
        f32::from_bits(0x7f7f_7ffe),
        MASTER_MAX,
        f32::MAX,
        f32::INFINITY,
    ];
    let signed: Vec<f32> = ends.iter().flat_map(|&x| [x, -x]).collect();
    let mut rng = Rng(0xed9e);
    let mut pick = |from: &[f32]| from[rng.bits() as usize % from.len()];
    for i in a.used() {
        let n = if (i / BLOCK).is_multiple_of(3) {
            ends.len()
        } else {
            6
        };
        let (both, from) = (&signed[..2 * n], &ends[..n]);
        let (p, m, v, g) = (pick(&signed), pick(both), pick(from), pick(both));
        a.set(i, p, m, v, g);
    }
}

#[test]
fn every_path_gives_the_same_bits() {
    let q = Queue::new("test", 2);
    let cases = DTYPES.map(|types| Moments::ALL.map(|kind| (types, kind)));
    for (types, kind) in cases.into_iter().flatten() {
        let usual = Arrays::new(&LENGTHS);
        let mut ends = Arrays::new(&LENGTHS);
        extremes(&mut ends);
        for start in [usual, ends].map(|a| a.store_as(kind)) {
            let run = |path| {
                let mut a = start.clone();
                for step in 3..6 {
                    a.step(path, &q, types, &Hyper { step, ..HYPER });
                }
                a.bits(types.0)
            };
            let want = run(Path::Portable);
            for path in paths() {
                let got = run(path);
                let other = (0..want.len()).find(|&i| got[i] != want[i]);
                if let Some(i) = other {
                    panic!(
                        "{path:?} {types:?} {kind:?} {i}: {:x?} for {:x?}",
                        got[i], want[i]
                    );
                }
            }
        }
    }
}

#[test]
fn neither_threads_nor_cuts_show_in_the_bits() {
    let lengths = [3 * CHUNK + 77, 5, CHUNK, CHUNK - 1, 130];
    let cases = [DTYPES[0], DTYPES[3]].map(|types| Moments::ALL.map(|kind| (types, kind)));
    for (types, kind) in cases.into_iter().flatten() {
        let start = Arrays::new(&lengths).store_as(kind);
        let run = |threads, segments: Option<Vec<Segment>>| {
            let mut a = start.clone();
            a.segments = segments.unwrap_or(a.segments);
            a.step(Path::best(), &Queue::new("test", threads), types, &HYPER);
            a.bits(types.0)
        };
        let want = run(1, None);
        for threads in [2, 3, 8] {
            assert!(run(threads, None) == want, "{threads} threads");
        }
        // The same numbers as many short segments, so other chunks and other tails.
        let short = |s: &Segment| {
            let Segment {
                offset,
                elements,
                decay,
                updated,
                param,
                start,
                cols,
            } = *s;
            (0..elements).step_by(384).map(move |i| Segment {
                offset: offset + i,
                elements: 384.min(elements - i),
                decay,
                updated,
                param,
                start: start + i as u64,
                cols,
            })
        };
        let segments = start.segments.iter().flat_map(short).collect();
        assert!(run(2, Some(segments)) == want, "shorter segments");
    }
}

/// The same parameters in another order, among others, at other places: as another plan's pieces.
#[test]
fn a_parameters_place_does_not_show_in_its_bits() {
    let lengths = [CHUNK + 77, 5, 640, 130];
    let q = Queue::new("test", 2);
    let run = |kind, order: &[usize], steps: std::ops::Range<u64>| {
        let whole = Arrays::new(&lengths).store_as(kind);
        let mut a = Arrays::new(&order.iter().map(|&i| lengths[i]).collect::<Vec<_>>());
        for (s, &i) in a.segments.clone().iter().zip(order) {
            let from = whole.segments[i];
            for n in 0..s.elements {
                let (to, from) = (s.offset + n, from.offset + n);
                a.set(
                    to,
                    whole.w32[from],
                    whole.m[from],
                    whole.v[from],
                    whole.g32[from],
                );
            }
        }
        for (s, &i) in a.segments.iter_mut().zip(order) {
            (s.decay, s.param) = (whole.segments[i].decay, whole.segments[i].param);
        }
        let mut a = a.store_as(kind);
        for step in steps {
            a.step(Path::best(), &q, DTYPES[0], &Hyper { step, ..HYPER });
        }
        let bits = a.bits(Dtype::Bf16);
        let mut all = vec![Vec::new(); lengths.len()];
        for (s, &i) in a.segments.iter().zip(order) {
            all[i] = bits[s.offset..s.offset + s.elements].to_vec();
        }
        all
    };
    for kind in Moments::ALL {
        let want = run(kind, &[0, 1, 2, 3], 3..6);
        assert!(run(kind, &[2, 0, 3, 1], 3..6) == want, "{kind:?}");
        assert!(
            run(kind, &[0, 1, 2, 3], 4..7) != want,
            "{kind:?}: steps differ"
        );
        let alone = run(kind, &[2], 3..6);
        assert!(alone[2] == want[2], "{kind:?}, a piece of its own");
    }
}

#[test]
fn padding_keeps_its_bits_and_reaches_no_number() {
    let q = Queue::new("test", 2);
    for path in paths() {
        let cases = DTYPES.map(|types| Moments::ALL.map(|kind| (types, kind)));
        for (types, kind) in cases.into_iter().flatten() {
            let mut a = Arrays::new(&LENGTHS).store_as(kind);
            a.step(path, &q, types, &HYPER);
            let mut padding = vec![true; a.m.len()];
            a.used().into_iter().for_each(|i| padding[i] = false);
            for (i, padding) in padding.into_iter().enumerate() {
                if padding {
                    assert_eq!((a.w16[i], a.rem[i]), (POISON_16, POISON_16 as i16), "{i}");
                    let f32s = [a.w32[i], a.m[i], a.v[i]].map(f32::to_bits);
                    assert_eq!(f32s, [POISON; 3], "{i}");
                    assert_eq!((a.m16[i], a.v16[i]), (POISON_16, POISON_16), "{i}");
                    assert_eq!((a.m8[i], a.v8[i]), (POISON_8, POISON_8), "{i}");
                } else {
                    assert!(
                        a.master(i, types.0).is_finite() && a.v[i].is_finite(),
                        "{i}"
                    );
                }
            }
            let scales = a.m_scale.iter().zip(&a.v_scale).enumerate();
            for (block, (m, v)) in scales {
                let used = a.segments.iter().any(|s| {
                    let end = s.offset + s.elements.next_multiple_of(BLOCK);
                    (s.offset..end).contains(&(block * BLOCK))
                });
                let poisoned = [m, v].map(|x| x.to_bits() == POISON);
                assert_eq!(poisoned, [!used; 2], "scales of block {block}");
            }
        }
    }
}

/// A weight near the top stays finite, and an infinite update shows.
#[test]
fn the_top_of_the_range() {
    let q = Queue::new("test", 1);
    for path in paths() {
        let mut a = Arrays::new(&[40]);
        for i in a.used() {
            let g = if i % 2 == 0 { -1.0 } else { f32::NEG_INFINITY };
            a.set(i, MASTER_MAX, 0.0, 0.0, g);
        }
        a.segments[0].decay = false;
        a.step(path, &q, DTYPES[0], &Hyper { lr: 1e36, ..HYPER });
        for i in a.used() {
            if i % 2 == 0 {
                assert_eq!((a.w16[i], a.rem[i]), (0x7f7f, 0x7fff), "{path:?} {i}");
            } else {
                assert_eq!((a.w16[i], a.rem[i]), (0x7fc0, 0), "{path:?} {i}");
            }
        }
    }
}
