//! Dealing rows out as batches: shuffled anew each epoch or in the files' order, resumable from two
//! numbers.
//!
//! The order of an epoch is a function of (seed, epoch) or the same in each, so the whole state of a pass over the
//! data is (epoch, position), and a resumed run sees the batches of an unbroken one.

use std::borrow::Borrow;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::deal::Deal;
use super::packing::{NO_LABEL, Packed, Row, pad};
use super::stream::Stream;
use crate::error::DataError;
use lowtide_random::Philox;

/// First of the streams of random numbers that shuffle epochs; other uses of the run's seed keep
/// below it.
const SHUFFLE_STREAMS: u64 = 1 << 63;

/// Rows of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows of a micro-batch, B.
    pub micro_batch: usize,
    /// Micro-batches of a batch, M.
    pub accumulate: usize,
}

impl BatchShape {
    fn rows(self) -> usize {
        self.micro_batch * self.accumulate
    }

    fn check(self) -> Result<Self, DataError> {
        for (name, have) in [
            ("micro-batch", self.micro_batch),
            ("accumulation", self.accumulate),
        ] {
            if have == 0 || self.micro_batch.checked_mul(self.accumulate).is_none() {
                return Err(DataError::Shape {
                    name,
                    have,
                    need: "1 or more",
                });
            }
        }
        Ok(self)
    }
}

/// A micro-batch: four matrices (B, T), row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Micro {
    /// Token ids; padding is 0.
    pub tokens: Vec<i32>,
    /// The token to predict at each place, -100 where there is no loss. Already shifted: the
    /// label of a place is the token of the next.
    pub labels: Vec<i32>,
    /// Positions in the document, from 0 in each.
    pub positions: Vec<i32>,
    /// Index in the row of the first token of the place's document; padding is its own document.
    pub doc_start: Vec<i32>,
}

/// Random numbers of inputs where a run names no data.
const INPUT_STREAM: u64 = 1 << 62;

impl Micro {
    /// `micro_batch` rows of `seq` random tokens, every one supervised, one document a row.
    #[must_use]
    pub fn random(micro_batch: u32, seq: u32, vocab: u32, seed: u64) -> Self {
        let (n, seq) = (micro_batch as usize * seq as usize, seq as usize);
        let random = Philox::new(seed, INPUT_STREAM);
        let tokens = |from: u64| {
            (0..n as u64)
                .map(|i| random.below(from + i, u64::from(vocab)) as i32)
                .collect()
        };
        Self {
            tokens: tokens(0),
            labels: tokens(n as u64),
            positions: (0..n).map(|i| (i % seq) as i32).collect(),
            doc_start: vec![0; n],
        }
    }

    /// The same with labels of so many classes, at the first token of each document alone.
    #[must_use]
    pub fn classified(mut self, classes: u32) -> Self {
        for (label, position) in self.labels.iter_mut().zip(&self.positions) {
            *label = match position {
                0 => label.rem_euclid(classes as i32),
                _ => NO_LABEL,
            };
        }
        self
    }

    /// Sources, which have no loss then, with these targets behind them.
    #[must_use]
    pub fn paired(mut self, targets: Self) -> Self {
        self.labels.fill(NO_LABEL);
        self.tokens.extend(targets.tokens);
        self.labels.extend(targets.labels);
        self.positions.extend(targets.positions);
        self.doc_start.extend(targets.doc_start);
        self
    }

    /// The four planes, in the order in which a model reads them.
    #[must_use]
    pub fn planes(&self) -> [&[i32]; 4] {
        [&self.tokens, &self.labels, &self.positions, &self.doc_start]
    }

    /// B rows of padding, all without loss; of pairs the targets' behind the sources'.
    fn padding(micro_batch: usize, lengths: [usize; 2]) -> Self {
        let n = micro_batch * (lengths[0] + lengths[1]);
        let mut micro = Self {
            tokens: vec![0; n],
            labels: vec![NO_LABEL; n],
            positions: vec![0; n],
            doc_start: vec![0; n],
        };
        for b in 0..micro_batch {
            let rows = micro.rows(b, micro_batch, lengths);
            rows.into_iter().for_each(|row| pad(row, 0));
        }
        micro
    }

    /// Row `b` of so many, and the targets of it; these are none where there are no pairs.
    fn rows(&mut self, b: usize, micro_batch: usize, [seq, target]: [usize; 2]) -> [Row<'_>; 2] {
        let first = micro_batch * seq;
        fn cut(
            plane: &mut [i32],
            first: usize,
            source: Range<usize>,
            target: Range<usize>,
        ) -> [&mut [i32]; 2] {
            let (sources, targets) = plane.split_at_mut(first);
            [&mut sources[source], &mut targets[target]]
        }
        let (source, target) = (b * seq..(b + 1) * seq, b * target..(b + 1) * target);
        let of = |plane| cut(plane, first, source.clone(), target.clone());
        let [s_tokens, t_tokens] = of(&mut self.tokens);
        let [s_labels, t_labels] = of(&mut self.labels);
        let [s_positions, t_positions] = of(&mut self.positions);
        let [s_start, t_start] = of(&mut self.doc_start);
        let row = |tokens, labels, positions, doc_start| Row {
            tokens,
            labels,
            positions,
            doc_start,
        };
        [
            row(s_tokens, s_labels, s_positions, s_start),
            row(t_tokens, t_labels, t_positions, t_start),
        ]
    }
}

/// What one update is computed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its micro-batches, M.
    pub micro: Vec<Micro>,
    /// Labels in all of them: what the loss is averaged over.
    pub supervised_tokens: u64,
    /// Tokens in all of them, padding not counted: what throughput is measured in.
    pub real_tokens: u64,
}

impl Batch {
    /// Writes rows in the given order; places beyond them are padding.
    fn of<P: Borrow<Packed>>(
        lengths: [usize; 2],
        shape: BatchShape,
        rows: impl IntoIterator<Item = (P, usize)>,
    ) -> Result<Self, DataError> {
        let mut batch = Self {
            micro: vec![Micro::padding(shape.micro_batch, lengths); shape.accumulate],
            supervised_tokens: 0,
            real_tokens: 0,
        };
        for (i, (packed, row)) in rows.into_iter().enumerate() {
            let micro = &mut batch.micro[i / shape.micro_batch];
            let out = micro.rows(i % shape.micro_batch, shape.micro_batch, lengths);
            let (n_labels, n_tokens) = packed.borrow().write_row(row, out)?;
            batch.supervised_tokens += n_labels;
            batch.real_tokens += n_tokens;
        }
        Ok(batch)
    }
}

/// A place in the endless row of epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Epochs dealt out whole, so the index of the present one.
    pub epoch: u64,
    /// Rows of the present epoch that were dealt out.
    pub position: u64,
}

/// What becomes of the rows that are left at the end of an epoch, fewer than a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastBatch {
    /// The batch goes on with the next epoch's first rows.
    #[default]
    Fill,
    /// They are a batch of their own. Places beyond them are padding without a label, which adds
    /// nothing to a loss that is averaged over labels, nor to a gradient.
    Keep,
    /// They are not dealt out.
    Drop,
}

/// In which order rows are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dealing {
    /// Seed of the order; `None`: each epoch in the order of the rows.
    pub seed: Option<u64>,
    /// What becomes of an epoch's rest.
    pub last_batch: LastBatch,
}

/// Training batches without end. Each epoch deals every row once, in an order of its own if the
/// dealing has a seed; what its last batch is, the dealing says.
#[derive(Debug)]
pub struct Batches {
    shape: BatchShape,
    dealing: Dealing,
    from: Dealer,
}

/// Where rows come from.
#[derive(Debug)]
enum Dealer {
    /// All rows are known.
    Whole(Whole),
    /// They are known window by window.
    Stream(Box<Deal>),
}

/// Rows that are all known, dealt out.
#[derive(Debug)]
struct Whole {
    packed: Arc<Packed>,
    dealing: Dealing,
    state: State,
    /// The order of the present epoch.
    order: Vec<u32>,
}

impl Batches {
    /// Batches from the beginning of epoch 0. Fails where every epoch would be dropped whole: fewer
    /// rows than a batch, and the rest of an epoch is not dealt out.
    pub fn new(
        packed: Arc<Packed>,
        shape: BatchShape,
        dealing: Dealing,
    ) -> Result<Self, DataError> {
        let shape = shape.check()?;
        if dealing.last_batch == LastBatch::Drop && packed.n_rows() < shape.rows() {
            return Err(DataError::AllDropped {
                n_rows: packed.n_rows() as u64,
                batch_rows: shape.rows() as u64,
            });
        }
        let order = order(&packed, dealing, 0);
        let from = Dealer::Whole(Whole {
            packed,
            dealing,
            state: State::default(),
            order,
        });
        Ok(Self {
            shape,
            dealing,
            from,
        })
    }

    /// The same of a stream: windows in the order of the data in epoch 0, in an order of each epoch's own later; rows
    /// shuffled within their window. Both only if the dealing has a seed.
    pub(super) fn streamed(
        stream: Arc<Stream>,
        shape: BatchShape,
        dealing: Dealing,
    ) -> Result<Self, DataError> {
        let shape = shape.check()?;
        let deal = Deal::new(stream, dealing.seed)?;
        if dealing.last_batch == LastBatch::Drop {
            let n_rows = deal.left_up_to(shape.rows())?;
            if n_rows < shape.rows() {
                return Err(DataError::AllDropped {
                    n_rows: n_rows as u64,
                    batch_rows: shape.rows() as u64,
                });
            }
        }
        Ok(Self {
            shape,
            dealing,
            from: Dealer::Stream(Box::new(deal)),
        })
    }

    /// The next batch. The state behind it is in [`state`](Self::state) when the call returns.
    ///
    /// # Errors
    /// Tokens that are kept on disk and cannot be read; of a stream a record that cannot be used.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let (n, last_batch) = (self.shape.rows(), self.dealing.last_batch);
        match &mut self.from {
            Dealer::Whole(whole) => {
                let rows = whole.next_rows(n, last_batch);
                let packed = &*whole.packed;
                let rows = rows.into_iter().map(|row| (packed, row));
                Batch::of([packed.seq(), packed.target()], self.shape, rows)
            }
            Dealer::Stream(deal) => {
                let rows = deal.next_rows(n, last_batch)?;
                Batch::of([deal.seq(), 0], self.shape, rows)
            }
        }
    }

    /// The place behind the last batch: with the same data, shape and seed, [`Self::restore`]
    /// goes on there.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.from {
            Dealer::Whole(whole) => whole.state,
            Dealer::Stream(deal) => deal.state(),
        }
    }

    /// Goes to a place. Fails if this data has no such place (then nothing has changed); whether
    /// it is the same data is for [`Packed::fingerprint`] to tell.
    pub fn restore(&mut self, state: State) -> Result<(), DataError> {
        let whole = match &mut self.from {
            Dealer::Whole(whole) => whole,
            Dealer::Stream(deal) => return deal.restore(state),
        };
        let n_rows = whole.packed.n_rows() as u64;
        let State { epoch, position } = state;
        if position >= n_rows {
            return Err(DataError::Position {
                epoch,
                position,
                n_rows,
            });
        }
        whole.order = order(&whole.packed, self.dealing, epoch);
        whole.state = state;
        Ok(())
    }

    /// Rows of an epoch.
    ///
    /// # Errors
    /// Of a stream, which is read to its end for it, a record that cannot be used.
    fn n_rows(&self) -> Result<usize, DataError> {
        match &self.from {
            Dealer::Whole(whole) => Ok(whole.packed.n_rows()),
            Dealer::Stream(deal) => deal.n_rows(),
        }
    }

    /// Batches that deal out one epoch; with [`LastBatch::Fill`] the last perhaps has rows of the
    /// next.
    ///
    /// # Errors
    /// Of a stream, which is read to its end for it, a record that cannot be used.
    pub fn batches_per_epoch(&self) -> Result<u64, DataError> {
        let (n_rows, n) = (self.n_rows()?, self.shape.rows());
        Ok(match self.dealing.last_batch {
            LastBatch::Fill | LastBatch::Keep => n_rows.div_ceil(n) as u64,
            LastBatch::Drop => (n_rows / n) as u64,
        })
    }

    /// Rows of one epoch.
    ///
    /// # Errors
    /// As [`Self::batches_per_epoch`].
    pub fn rows_per_epoch(&self) -> Result<u64, DataError> {
        Ok(self.n_rows()? as u64)
    }

    /// Rows of a whole batch.
    #[must_use]
    pub fn rows_per_batch(&self) -> u64 {
        self.shape.rows() as u64
    }

    /// Batches that deal out `epochs` epochs (0.5: half of one), at least one.
    ///
    /// # Errors
    /// As [`Self::batches_per_epoch`].
    pub fn batches_for(&self, epochs: f64) -> Result<u64, DataError> {
        let batches = match self.dealing.last_batch {
            // The rest of an epoch is in a batch with the next epoch's rows, so that epochs do not
            // each have a number of batches.
            LastBatch::Fill => epochs * self.n_rows()? as f64 / self.shape.rows() as f64,
            LastBatch::Keep | LastBatch::Drop => epochs * self.batches_per_epoch()? as f64,
        };
        Ok((batches.ceil() as u64).max(1))
    }
}

impl Whole {
    /// The next `n` rows, or what `last_batch` says at the end of an epoch.
    fn next_rows(&mut self, n: usize, last_batch: LastBatch) -> Vec<usize> {
        let left = self.left();
        let rows = match last_batch {
            LastBatch::Keep => (0..n.min(left)).map(|_| self.next_row()).collect(),
            LastBatch::Fill | LastBatch::Drop => (0..n).map(|_| self.next_row()).collect(),
        };
        if last_batch == LastBatch::Drop && self.left() < n {
            self.next_epoch();
        }
        rows
    }

    /// Rows of the present epoch that were not dealt out yet, at least one.
    fn left(&self) -> usize {
        self.order.len() - self.state.position as usize
    }

    fn next_row(&mut self) -> usize {
        let row = self.order[self.state.position as usize] as usize;
        self.state.position += 1;
        if self.left() == 0 {
            self.next_epoch();
        }
        row
    }

    fn next_epoch(&mut self) {
        self.state = State {
            epoch: self.state.epoch + 1,
            position: 0,
        };
        self.order = order(&self.packed, self.dealing, self.state.epoch);
    }
}

fn order(packed: &Packed, dealing: Dealing, epoch: u64) -> Vec<u32> {
    match dealing.seed {
        Some(seed) => Philox::new(seed, SHUFFLE_STREAMS | epoch).permutation(packed.n_rows()),
        // The number of rows fits: packing has checked that of examples, and permutations too.
        None => (0..packed.n_rows() as u32).collect(),
    }
}

/// Evaluation batches: every row once, in order; the last batch is filled up with padding.
#[derive(Debug)]
pub struct EvalBatches {
    packed: Arc<Packed>,
    shape: BatchShape,
    next: usize,
}

impl EvalBatches {
    /// All rows of `packed`.
    pub fn new(packed: Arc<Packed>, shape: BatchShape) -> Result<Self, DataError> {
        Ok(Self {
            packed,
            shape: shape.check()?,
            next: 0,
        })
    }
}

impl Iterator for EvalBatches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let to = (self.next + self.shape.rows()).min(self.packed.n_rows());
        let rows = self.next..to;
        self.next = to;
        let lengths = [self.packed.seq(), self.packed.target()];
        let rows = rows.map(|row| (&*self.packed, row));
        (rows.len() > 0).then(|| Batch::of(lengths, self.shape, rows))
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
