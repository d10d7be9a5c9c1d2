use proptest::prelude::*;

use super::super::mask::Example;
use super::super::{Dataset, TooLong};
use super::*;

/// `n` rows of one document each; token `i + 1` stands for row `i`.
fn rows(n: usize) -> Arc<Packed> {
    let row = |i| Example {
        tokens: vec![i as i32 + 1; 3],
        supervised: vec![false, true, true],
    };
    let data = Dataset::of(&(0..n).map(row).collect::<Vec<_>>()).unwrap();
    Arc::new(Packed::new(data, 4, false, TooLong::Truncate).unwrap())
}

fn batches(n: usize, micro_batch: usize, accumulate: usize, seed: u64) -> Batches {
    Batches::new(
        rows(n),
        BatchShape {
            micro_batch,
            accumulate,
        },
        seed,
    )
    .unwrap()
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
    let batch = batches(10, 2, 3, 1).next_batch();
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
            b.batches_per_epoch(),
            b.batches_for(2.0),
            b.batches_for(0.1)
        ),
        (4, 7, 1)
    );
    let dealt: Vec<i32> = (0..14).flat_map(|_| ids(&b.next_batch())).collect();
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
    let other: Vec<i32> = batches(7, 7, 1, 6).next_batch().micro[0].tokens.clone();
    assert_ne!(
        other,
        batches(7, 7, 1, 5).next_batch().micro[0].tokens,
        "the seed is not used"
    );
}

/// The orders of a seed are part of what a checkpoint means: they must not change with a version.
#[test]
fn the_order_of_a_seed_is_fixed() {
    let mut b = batches(8, 8, 1, 42);
    assert_eq!(ids(&b.next_batch()), FIRST_EPOCH);
    assert_eq!(ids(&b.next_batch()), SECOND_EPOCH);
}

// From a second implementation, in Python.
const FIRST_EPOCH: [i32; 8] = [7, 4, 3, 6, 1, 5, 2, 8];
const SECOND_EPOCH: [i32; 8] = [3, 4, 6, 1, 2, 5, 8, 7];

#[test]
fn a_place_that_does_not_exist_is_refused() {
    let mut b = batches(7, 2, 1, 5);
    b.next_batch();
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
            Batches::new(rows(1), shape, 0),
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
    let got: Vec<Batch> = EvalBatches::new(rows(5), shape).unwrap().collect();
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
        n in 1usize..30, micro_batch in 1usize..5, accumulate in 1usize..4, seed: u64, stop in 0usize..40,
    ) {
        let mut unbroken = batches(n, micro_batch, accumulate, seed);
        (0..stop).for_each(|_| _ = unbroken.next_batch());
        let stored = serde_json::to_string(&unbroken.state()).unwrap();
        let mut resumed = batches(n, micro_batch, accumulate, seed);
        resumed.restore(serde_json::from_str(&stored).unwrap()).unwrap();
        for _ in 0..20 {
            prop_assert_eq!(unbroken.next_batch(), resumed.next_batch());
            prop_assert_eq!(unbroken.state(), resumed.state());
        }
    }
}
