use proptest::prelude::*;

use super::super::mask::Example;
use super::super::{Dataset, Packing, TooLong};
use super::*;

/// `n` rows of one document each; token `i + 1` stands for row `i`.
fn rows(n: usize) -> Arc<Packed> {
    let row = |i| Example {
        tokens: vec![i as i32 + 1; 3],
        supervised: vec![false, true, true],
        class: None,
    };
    let data = Dataset::of(&(0..n).map(row).collect::<Vec<_>>()).unwrap();
    Arc::new(Packed::new(data, 4, Packing::No, TooLong::Truncate).unwrap())
}

fn batches(n: usize, micro_batch: usize, accumulate: usize, seed: u64) -> Batches {
    Batches::new(
        rows(n),
        BatchShape {
            micro_batch,
            accumulate,
        },
        shuffled(seed),
    )
    .unwrap()
}

fn shuffled(seed: u64) -> Dealing {
    Dealing {
        seed: Some(seed),
        last_batch: LastBatch::Fill,
    }
}

/// The rows of a batch, by their first tokens; 0 is padding.
fn ids(batch: &Batch) -> Vec<i32> {
    batch
        .micro
        .iter()
        .flat_map(|m| m.tokens.chunks(4).map(|row| row[0]))
        .collect()
}

#[test]
fn a_batch_has_the_shape_asked_for_and_counts_what_is_in_it() {
    let batch = batches(10, 2, 3, 1).next_batch().unwrap();
    assert_eq!(batch.micro.len(), 3);
    for micro in &batch.micro {
        for field in [
            &micro.tokens,
            &micro.labels,
            &micro.positions,
            &micro.doc_start,
        ] {
            assert_eq!(field.len(), 2 * 4);
        }
        assert_eq!(micro.doc_start, [0, 0, 0, 3, 0, 0, 0, 3]);
    }
    assert_eq!((batch.supervised_tokens, batch.real_tokens), (12, 18));
}

#[test]
fn each_epoch_deals_every_row_once_in_an_order_of_its_own() {
    let mut b = batches(7, 2, 1, 5);
    assert_eq!(
        (
            b.batches_per_epoch().unwrap(),
            b.batches_for(2.0).unwrap(),
            b.batches_for(0.1).unwrap()
        ),
        (4, 7, 1)
    );
    let dealt: Vec<i32> = (0..14)
        .flat_map(|_| ids(&b.next_batch().unwrap()))
        .collect();
    assert_eq!(
        b.state(),
        State {
            epoch: 4,
            position: 0
        }
    );
    let epochs: Vec<&[i32]> = dealt.chunks(7).collect();
    for epoch in &epochs {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 3, 4, 5, 6, 7]);
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    let other: Vec<i32> = batches(7, 7, 1, 6).next_batch().unwrap().micro[0]
        .tokens
        .clone();
    assert_ne!(
        other,
        batches(7, 7, 1, 5).next_batch().unwrap().micro[0].tokens,
        "the seed is not used"
    );
}

/// The orders of a seed are part of what a checkpoint means: they must not change with a version.
#[test]
fn the_order_of_a_seed_is_fixed() {
    let mut b = batches(8, 8, 1, 42);
    assert_eq!(ids(&b.next_batch().unwrap()), FIRST_EPOCH);
    assert_eq!(ids(&b.next_batch().unwrap()), SECOND_EPOCH);
}

// From a second implementation, in Python.
const FIRST_EPOCH: [i32; 8] = [7, 4, 3, 6, 1, 5, 2, 8];
const SECOND_EPOCH: [i32; 8] = [3, 4, 6, 1, 2, 5, 8, 7];

fn dealt(n: usize, rows_of_batch: usize, dealing: Dealing) -> Batches {
    let shape = BatchShape {
        micro_batch: rows_of_batch,
        accumulate: 1,
    };
    Batches::new(rows(n), shape, dealing).unwrap()
}

#[test]
fn without_a_seed_every_epoch_has_the_order_of_the_rows() {
    for last_batch in [LastBatch::Fill, LastBatch::Keep, LastBatch::Drop] {
        let dealing = Dealing {
            seed: None,
            last_batch,
        };
        let mut b = dealt(5, 2, dealing);
        let got: Vec<i32> = (0..6).flat_map(|_| ids(&b.next_batch().unwrap())).collect();
        let want: [i32; 12] = match last_batch {
            LastBatch::Fill => [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2],
            LastBatch::Keep => [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0],
            LastBatch::Drop => [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4],
        };
        assert_eq!(got, want, "{last_batch:?}");
        let per_epoch = if last_batch == LastBatch::Drop { 2 } else { 3 };
        let three = if last_batch == LastBatch::Fill {
            8
        } else {
            3 * per_epoch
        };
        assert_eq!(
            (b.batches_per_epoch().unwrap(), b.batches_for(3.0).unwrap()),
            (per_epoch, three)
        );
        let state = match last_batch {
            LastBatch::Fill => (2, 2),
            LastBatch::Keep => (2, 0),
            LastBatch::Drop => (3, 0),
        };
        assert_eq!(
            (b.state().epoch, b.state().position),
            state,
            "{last_batch:?}"
        );
    }
}

/// The rest of an epoch as a batch: its rows once, padding that has no label and is not counted.
#[test]
fn a_kept_rest_counts_its_own_labels_alone() {
    let dealing = Dealing {
        seed: Some(3),
        last_batch: LastBatch::Keep,
    };
    let mut b = dealt(7, 4, dealing);
    let (whole, rest) = (b.next_batch().unwrap(), b.next_batch().unwrap());
    assert_eq!((whole.supervised_tokens, whole.real_tokens), (8, 12));
    assert_eq!((rest.supervised_tokens, rest.real_tokens), (6, 9));
    let mut all = [ids(&whole), ids(&rest)].concat();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(rest.micro[0].labels[12..], [-100; 4]);
}

#[test]
fn dropping_all_there_is_is_refused() {
    let dealing = Dealing {
        seed: None,
        last_batch: LastBatch::Drop,
    };
    let shape = BatchShape {
        micro_batch: 2,
        accumulate: 3,
    };
    let error = Batches::new(rows(5), shape, dealing).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::AllDropped {
                n_rows: 5,
                batch_rows: 6
            }
        ),
        "{error}"
    );
}

#[test]
fn a_place_that_does_not_exist_is_refused() {
    let mut b = batches(7, 2, 1, 5);
    b.next_batch().unwrap();
    let before = b.state();
    let error = b
        .restore(State {
            epoch: 1,
            position: 7,
        })
        .unwrap_err();
    assert!(
        matches!(error, DataError::Position { n_rows: 7, .. }),
        "{error}"
    );
    assert_eq!(b.state(), before);
    for (micro_batch, accumulate) in [(0, 1), (1, 0), (usize::MAX, 2)] {
        let shape = BatchShape {
            micro_batch,
            accumulate,
        };
        assert!(matches!(
            Batches::new(rows(1), shape, shuffled(0)),
            Err(DataError::Shape { .. })
        ));
    }
}

#[test]
fn evaluation_sees_every_row_once_in_order_and_then_padding() {
    let shape = BatchShape {
        micro_batch: 2,
        accumulate: 2,
    };
    let got: Vec<Batch> = EvalBatches::new(rows(5), shape)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let all: Vec<Vec<i32>> = got.iter().map(ids).collect();
    assert_eq!(all, [[1, 2, 3, 4], [5, 0, 0, 0]]);
    assert_eq!((got[1].supervised_tokens, got[1].real_tokens), (2, 3));
    let padding = &got[1].micro[1];
    assert!(padding.labels.iter().all(|&l| l == -100));
    assert_eq!(padding.doc_start, [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(padding.positions, [0; 8]);
}

proptest! {
    /// Stopping anywhere and going on from the stored state, written out and read back, deals the
    /// batches of an unbroken pass.
    #[test]
    fn a_resumed_pass_is_the_unbroken_one(
        n in 1usize..30, rows_of_batch in 1usize..9, seed: Option<u64>, rest in 0usize..3, stop in 0usize..40,
    ) {
        let last_batch = [LastBatch::Fill, LastBatch::Keep, LastBatch::Drop][rest];
        prop_assume!(last_batch != LastBatch::Drop || n >= rows_of_batch);
        let new = || dealt(n, rows_of_batch, Dealing { seed, last_batch });
        let mut unbroken = new();
        (0..stop).for_each(|_| _ = unbroken.next_batch().unwrap());
        let stored = serde_json::to_string(&unbroken.state()).unwrap();
        let mut resumed = new();
        resumed.restore(serde_json::from_str(&stored).unwrap()).unwrap();
        for _ in 0..20 {
            prop_assert_eq!(unbroken.next_batch().unwrap(), resumed.next_batch().unwrap());
            prop_assert_eq!(unbroken.state(), resumed.state());
        }
    }
}
