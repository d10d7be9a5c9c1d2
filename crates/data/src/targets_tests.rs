use super::super::batches::{BatchShape, EvalBatches, Micro};
use super::super::mask::Example;
use super::*;
use std::sync::Arc;

/// A pair of so many tokens each, which say where they come from.
fn pair(i: usize, [source, target]: [usize; 2]) -> Example {
    let tokens = (0..source + target)
        .map(|t| (i * 100 + t + 1) as i32)
        .collect();
    let supervised = (0..source + target).map(|t| t >= source).collect();
    Example {
        tokens,
        supervised,
        class: None,
    }
}

fn laid(lengths: &[[usize; 2]], packing: Packing) -> Result<Packed, DataError> {
    let examples: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, &n)| pair(i, n))
        .collect();
    let targets = Targets { len: 4, start: 7 };
    Packed::of_pairs(Dataset::of(&examples)?, 6, targets, packing)
}

/// Sources of all rows, then targets of all rows; documents in one order in both; what decoding starts with in front.
#[test]
fn a_batch_has_sources_then_targets() {
    let packed = Arc::new(laid(&[[2, 2], [3, 1], [5, 3]], Packing::InOrder).unwrap());
    assert_eq!((packed.n_rows(), packed.seq(), packed.target()), (2, 6, 4));
    let shape = BatchShape {
        micro_batch: 2,
        accumulate: 1,
    };
    let batch = EvalBatches::new(packed, shape)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!((batch.supervised_tokens, batch.real_tokens), (6, 16));
    let [micro] = &batch.micro[..] else {
        panic!("one micro-batch");
    };
    let no = NO_LABEL;
    let tokens = [
        [1, 2, 101, 102, 103, 0].as_slice(),
        &[201, 202, 203, 204, 205, 0],
        &[7, 3, 7, 0],
        &[7, 206, 207, 0],
    ];
    assert_eq!(micro.tokens, tokens.concat());
    let none = [no; 12];
    let labels = [none.as_slice(), &[3, 4, 104, no], &[206, 207, 208, no]];
    assert_eq!(micro.labels, labels.concat());
    let positions = [0, 1, 0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 0, 1, 0, 0, 0, 1, 2, 0];
    assert_eq!(micro.positions, positions);
    let starts = [0, 0, 2, 2, 2, 5, 0, 0, 0, 0, 0, 5, 0, 0, 2, 3, 0, 0, 0, 3];
    assert_eq!(micro.doc_start, starts);
}

/// Every plane has all sources, then all targets; only these have labels.
#[test]
fn random_pairs_have_targets_behind_their_sources() {
    let [source, target] = [3, 2].map(|len| Micro::random(2, len, 50, u64::from(len)));
    let pairs = source.clone().paired(target.clone());
    let parts = source.planes().into_iter().zip(target.planes());
    for (at, (plane, (of_source, of_target))) in pairs.planes().into_iter().zip(parts).enumerate() {
        let none = [NO_LABEL; 6];
        let first = if at == 1 { &none[..] } else { of_source };
        assert_eq!(plane, [first, of_target].concat(), "plane {at}");
    }
}

#[test]
fn pairs_share_rows_where_both_have_room() {
    let lengths = [[3, 1], [3, 3], [2, 1], [4, 1], [1, 1]];
    let rows = |packing| {
        let packed = laid(&lengths, packing).unwrap();
        let row = |i| packed.row(i).iter().map(|p| p.example).collect::<Vec<_>>();
        (0..packed.n_rows()).map(row).collect::<Vec<_>>()
    };
    assert_eq!(rows(Packing::InOrder), [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(rows(Packing::BestFit), [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(rows(Packing::No), [[0], [1], [2], [3], [4]]);
}

/// What is too long keeps its end, and says what was lost; what is no pair is left out.
#[test]
fn long_pairs_keep_their_ends() {
    let packed = laid(&[[8, 6], [0, 3], [1, 1]], Packing::No).unwrap();
    let report = packed.report();
    assert_eq!((report.n_rows, report.n_cut, report.n_truncated), (2, 1, 1));
    assert_eq!((report.n_answers_cut, report.n_labels_lost), (1, 2));
    assert_eq!((report.n_tokens, report.n_tokens_lost), (12, 7));
    let shape = BatchShape {
        micro_batch: 1,
        accumulate: 1,
    };
    let mut batches = EvalBatches::new(Arc::new(packed), shape).unwrap();
    let micro = &batches.next().unwrap().unwrap().micro[0];
    assert_eq!(micro.tokens, [1, 2, 3, 4, 5, 8, 7, 9, 10, 11]);
    assert_eq!(micro.labels[6..], [9, 10, 11, 14]);
    assert!(matches!(
        laid(&[[0, 3]], Packing::No),
        Err(DataError::NothingSupervised { .. })
    ));
}
