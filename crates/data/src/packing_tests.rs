use proptest::prelude::*;

use super::super::mask::Example;
use super::*;

/// An example whose tokens say where they come from: example and place.
fn example(i: usize, supervised: &[bool]) -> Example {
    let tokens = (0..supervised.len()).map(|t| token(i, t)).collect();
    Example {
        tokens,
        supervised: supervised.to_vec(),
        class: None,
    }
}

fn token(i: usize, t: usize) -> i32 {
    (i * 1000 + t + 1) as i32
}

fn packed(
    masks: &[Vec<bool>],
    seq: usize,
    pack: bool,
    too_long: TooLong,
) -> Result<Packed, DataError> {
    let packing = if pack { Packing::BestFit } else { Packing::No };
    packed_as(masks, seq, packing, too_long)
}

fn packed_as(
    masks: &[Vec<bool>],
    seq: usize,
    packing: Packing,
    too_long: TooLong,
) -> Result<Packed, DataError> {
    let examples: Vec<_> = masks
        .iter()
        .enumerate()
        .map(|(i, m)| example(i, m))
        .collect();
    Packed::new(Dataset::of(&examples)?, seq, packing, too_long)
}

struct Written {
    tokens: Vec<i32>,
    labels: Vec<i32>,
    positions: Vec<i32>,
    doc_start: Vec<i32>,
    n_labels: u64,
    n_tokens: u64,
}

fn write(packed: &Packed, i: usize) -> Written {
    let mut w = Written {
        tokens: vec![7777; packed.seq()],
        labels: vec![7777; packed.seq()],
        positions: vec![7777; packed.seq()],
        doc_start: vec![7777; packed.seq()],
        n_labels: 0,
        n_tokens: 0,
    };
    let (tokens, labels) = (&mut w.tokens[..], &mut w.labels[..]);
    let row = Row {
        tokens,
        labels,
        positions: &mut w.positions,
        doc_start: &mut w.doc_start,
    };
    let none = Row {
        tokens: &mut [],
        labels: &mut [],
        positions: &mut [],
        doc_start: &mut [],
    };
    (w.n_labels, w.n_tokens) = packed.write_row(i, [row, none]).unwrap();
    w
}

#[test]
fn a_row_is_written_as_drawn() {
    let masks = [
        vec![false, true, true],
        vec![false, false, true],
        vec![true; 8],
        vec![true; 2],
    ];
    let p = packed(&masks, 8, true, TooLong::Truncate).unwrap();
    assert_eq!(p.n_rows(), 2);
    let w = write(&p, 0);
    assert_eq!(w.tokens, [1, 2, 3, 1001, 1002, 1003, 3001, 3002]);
    assert_eq!(w.labels, [2, 3, -100, -100, 1003, -100, 3002, -100]);
    assert_eq!(w.positions, [0, 1, 2, 0, 1, 2, 0, 1]);
    assert_eq!(w.doc_start, [0, 0, 0, 3, 3, 3, 6, 6]);
    assert_eq!((w.n_labels, w.n_tokens), (4, 8));
    assert_eq!(write(&p, 1).tokens[0], 2001);

    let p = packed(&masks, 8, false, TooLong::Truncate).unwrap();
    assert_eq!(p.n_rows(), 4);
    let w = write(&p, 0);
    assert_eq!(w.tokens, [1, 2, 3, 0, 0, 0, 0, 0]);
    assert_eq!(w.labels, [2, 3, -100, -100, -100, -100, -100, -100]);
    assert_eq!(w.positions, [0, 1, 2, 0, 0, 0, 0, 0]);
    assert_eq!(w.doc_start, [0, 0, 0, 3, 4, 5, 6, 7]);
    assert_eq!((w.n_labels, w.n_tokens), (2, 3));
}

#[test]
fn long_documents_are_cut_or_go_on() {
    let masks = [vec![true; 7]];
    let p = packed(&masks, 3, true, TooLong::Truncate).unwrap();
    let r = p.report();
    assert_eq!(
        (r.n_rows, r.n_truncated, r.n_tokens_lost, r.n_supervised),
        (1, 1, 4, 2)
    );
    assert_eq!(
        write(&p, 0).labels,
        [2, 3, -100],
        "what is cut off is not predicted"
    );

    let p = packed(&masks, 3, true, TooLong::Split).unwrap();
    let r = p.report();
    // The seventh token stands alone: it is predicted in row 1 and has nothing to predict.
    assert_eq!(
        (r.n_rows, r.n_truncated, r.n_tokens_lost, r.n_supervised),
        (2, 0, 1, 6)
    );
    assert_eq!(write(&p, 0).labels, [2, 3, 4]);
    assert_eq!(write(&p, 1).labels, [5, 6, 7]);
    assert_eq!(write(&p, 1).positions, [0, 1, 2]);
}

#[test]
fn what_the_cut_leaves_unsupervised_is_left_out_and_counted() {
    let late = vec![false, false, false, false, true];
    let p = packed(&[late.clone(), vec![true; 2]], 4, true, TooLong::Truncate).unwrap();
    let r = p.report();
    assert_eq!(
        (r.n_rows, r.n_truncated, r.n_cut, r.n_tokens_lost),
        (1, 1, 1, 5)
    );
    let error = packed(&[late], 4, true, TooLong::Truncate).unwrap_err();
    assert!(
        matches!(error, DataError::NothingSupervised { n_cut: 1, .. }),
        "{error}"
    );
    let error = packed(
        &[vec![false; 3], vec![true, false]],
        4,
        true,
        TooLong::Split,
    )
    .unwrap_err();
    assert!(
        matches!(error, DataError::NothingSupervised { n_records: 2, .. }),
        "{error}"
    );
    let error = packed(&[vec![true; 3]], 1, true, TooLong::Split).unwrap_err();
    assert!(matches!(error, DataError::Shape { have: 1, .. }), "{error}");
}

#[test]
fn best_fit_fills_the_fullest_row() {
    // 6 and 5 open rows with spaces 4 and 5. The 4 must go into the 4, so that 3 and 2 find the 5.
    let masks = [6, 5, 4, 3, 2].map(|n| vec![true; n]);
    let p = packed(&masks, 10, true, TooLong::Truncate).unwrap();
    assert_eq!(p.n_rows(), 2);
    assert_eq!(p.report().fill(10), 1.0);
    assert_eq!(write(&p, 0).doc_start[9], 6, "example 2 behind example 0");
}

/// A row ends where the next document does not fit, even if a later one would.
#[test]
fn packing_in_order_keeps_the_order_of_the_documents() {
    let examples: Vec<Example> = [4, 5, 3, 10, 1, 2, 12]
        .iter()
        .enumerate()
        .map(|(i, &n)| example(i, &vec![true; n]))
        .collect();
    let of = |too_long| {
        let data = Dataset::of(&examples).unwrap();
        let p = Packed::new(data, 10, Packing::InOrder, too_long).unwrap();
        let firsts = |i| -> Vec<i32> {
            let w = write(&p, i);
            let starts = (0..w.n_tokens as usize).filter(|&t| w.doc_start[t] as usize == t);
            starts.map(|t| w.tokens[t]).collect()
        };
        (0..p.n_rows()).map(firsts).collect::<Vec<_>>()
    };
    // The document of one token has no label and is not there.
    let want = [
        vec![1, 1001],
        vec![2001],
        vec![3001],
        vec![5001],
        vec![6001],
    ];
    assert_eq!(of(TooLong::Truncate), want);
    assert_eq!(of(TooLong::Split), [&want[..], &[vec![6011]]].concat());
}

#[test]
fn the_fingerprint_sees_tokens_masks_and_layout() {
    let base = [vec![true; 5], vec![true; 3], vec![false, true]];
    let of = |masks: &[Vec<bool>], seq, pack| {
        packed(masks, seq, pack, TooLong::Truncate)
            .unwrap()
            .fingerprint()
    };
    let mut other = base.clone();
    other[0][2] = false;
    let prints = [
        of(&base, 8, true),
        of(&base, 8, false),
        of(&base, 9, true),
        of(&other, 8, true),
    ];
    assert_eq!(prints[0], of(&base, 8, true));
    for (i, a) in prints.iter().enumerate() {
        assert!(prints[..i].iter().all(|b| a != b), "{i}");
    }
}

proptest! {
    /// Whatever the lengths and masks: what must be there is there once, in its place.
    #[test]
    fn every_token_and_label_is_dealt_out_once(
        masks in proptest::collection::vec(
            proptest::collection::vec(proptest::bool::weighted(0.7), 1..60), 1..40),
        seq in 2usize..40,
        packing in 0usize..3,
        split: bool,
    ) {
        let too_long = if split { TooLong::Split } else { TooLong::Truncate };
        let packing = [Packing::No, Packing::BestFit, Packing::InOrder][packing];
        let Ok(p) = packed_as(&masks, seq, packing, too_long) else { return Ok(()) };
        // Examples that loading keeps, by their numbers in `masks`.
        let kept: Vec<usize> =
            (0..masks.len()).filter(|&i| masks[i].iter().skip(1).any(|&s| s)).collect();
        let mut seen = std::collections::HashMap::new();
        let mut labels = std::collections::HashMap::new();
        let (mut n_labels, mut n_tokens) = (0, 0);
        for i in 0..p.n_rows() {
            let w = write(&p, i);
            n_labels += w.n_labels;
            n_tokens += w.n_tokens;
            for t in 0..seq {
                let start = w.doc_start[t] as usize;
                prop_assert!(start <= t);
                prop_assert_eq!(w.positions[t] as usize, t - start);
                if t >= w.n_tokens as usize {
                    let padding = (w.tokens[t], w.labels[t], start);
                    prop_assert_eq!(padding, (0, -100, t), "padding");
                    continue;
                }
                *seen.entry(w.tokens[t]).or_insert(0) += 1;
                // The tokens of a document follow each other; no label comes from another one.
                prop_assert_eq!(w.tokens[t] - w.tokens[start], (t - start) as i32);
                if w.labels[t] != -100 {
                    prop_assert_eq!(w.labels[t], w.tokens[t] + 1);
                    *labels.entry(w.labels[t]).or_insert(0) += 1;
                }
            }
            prop_assert!(w.n_labels > 0, "a row without a label");
        }
        prop_assert!(seen.values().chain(labels.values()).all(|&n| n == 1));
        prop_assert_eq!((n_labels, n_tokens), (p.report().n_supervised, p.report().n_tokens));
        prop_assert_eq!((labels.len() as u64, seen.len() as u64), (n_labels, n_tokens));

        let mut want_labels = 0;
        for (&i, limit) in kept.iter().zip(std::iter::repeat(if split { 99 } else { seq })) {
            for (t, &supervised) in masks[i].iter().enumerate().take(limit).skip(1) {
                if supervised {
                    want_labels += 1;
                    prop_assert!(labels.contains_key(&token(i, t)), "label {} of {}", t, i);
                }
            }
        }
        prop_assert_eq!(n_labels, want_labels);
        let all: usize = kept.iter().map(|&i| masks[i].len()).sum();
        prop_assert_eq!(n_tokens + p.report().n_tokens_lost, all as u64);
    }
}
