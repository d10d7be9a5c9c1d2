//! Rows of a stream, dealt out window by window.

use std::sync::Arc;

use lowtide_random::Philox;

use super::batches::{LastBatch, State};
use super::packing::Packed;
use super::stream::{Stream, Window};
use crate::error::DataError;

/// First of the streams of random numbers of streamed epochs: an epoch has 2^32 of them, for the order of its windows
/// and that of each window's rows.
const STREAMS: u64 = 7 << 61;
/// Bits of a position that say which row of its window it is; those above say which of the epoch's windows.
const ROW_BITS: u32 = 32;

/// The rows of a stream in their order, without end.
#[derive(Debug)]
pub(super) struct Deal {
    stream: Arc<Stream>,
    seed: Option<u64>,
    epoch: u64,
    /// The windows of the epoch, in its order; `None`: in that of the data.
    windows: Option<Vec<u32>>,
    /// Which of them is dealt out.
    at: usize,
    packed: Arc<Packed>,
    /// The order of its rows.
    order: Vec<u32>,
    /// How many of them were dealt out, never all.
    row: usize,
}

impl Deal {
    /// From the first row of epoch 0 on.
    pub fn new(stream: Arc<Stream>, seed: Option<u64>) -> Result<Self, DataError> {
        let (mut at, mut packed) = (0, None);
        while packed.is_none() {
            match stream.window(at)? {
                Window::Rows(rows) => packed = Some(rows),
                Window::Empty => at += 1,
                Window::End => return Err(stream.nothing()),
            }
        }
        let packed = packed.expect("the loop ends with one");
        let mut deal = Self {
            stream,
            seed,
            epoch: 0,
            windows: None,
            at,
            order: Vec::new(),
            packed,
            row: 0,
        };
        deal.order = deal.order_of(0, at, &deal.packed);
        Ok(deal)
    }

    pub fn seq(&self) -> usize {
        self.stream.seq()
    }

    fn order_of(&self, epoch: u64, at: usize, packed: &Packed) -> Vec<u32> {
        match self.seed {
            Some(seed) => {
                let stream = STREAMS | epoch << 32 | (at as u64 + 1);
                Philox::new(seed, stream).permutation(packed.n_rows())
            }
            None => (0..packed.n_rows() as u32).collect(),
        }
    }

    /// The order of an epoch's windows. The first epoch has that of the data: it begins before all of them are known.
    fn windows_of(&self, epoch: u64) -> Result<Option<Vec<u32>>, DataError> {
        let Some(seed) = self.seed.filter(|_| epoch > 0) else {
            return Ok(None);
        };
        let n = self.stream.n_windows()?;
        Ok(Some(
            Philox::new(seed, STREAMS | epoch << 32).permutation(n),
        ))
    }

    /// The rows of window `at` of an epoch's order.
    fn window(&self, windows: Option<&Vec<u32>>, at: usize) -> Result<Window, DataError> {
        match windows.map(|order| order.get(at)) {
            None => self.stream.window(at),
            Some(Some(&i)) => self.stream.window(i as usize),
            Some(None) => Ok(Window::End),
        }
    }

    /// Goes to the next window that has rows; whether that is another epoch's.
    fn next_window(&mut self) -> Result<bool, DataError> {
        let (mut epoch, mut at) = (self.epoch, self.at + 1);
        let mut windows = self.windows.clone();
        loop {
            match self.window(windows.as_ref(), at)? {
                Window::Rows(packed) => {
                    let another = epoch != self.epoch;
                    self.order = self.order_of(epoch, at, &packed);
                    (self.epoch, self.windows, self.at) = (epoch, windows, at);
                    (self.packed, self.row) = (packed, 0);
                    return Ok(another);
                }
                Window::Empty => at += 1,
                Window::End => {
                    (epoch, at) = (epoch + 1, 0);
                    windows = self.windows_of(epoch)?;
                }
            }
        }
    }

    /// The next `n` rows, each with what it is a row of; or what `last_batch` says at the end of an epoch.
    pub fn next_rows(
        &mut self,
        n: usize,
        last_batch: LastBatch,
    ) -> Result<Vec<(Arc<Packed>, usize)>, DataError> {
        let mut rows = Vec::with_capacity(n);
        while rows.len() < n {
            if self.row == self.order.len() {
                // The next window could not be read before, and cannot now.
                self.next_window()?;
            }
            rows.push((Arc::clone(&self.packed), self.order[self.row] as usize));
            self.row += 1;
            if self.row == self.order.len() && self.next_window()? && last_batch == LastBatch::Keep
            {
                break;
            }
        }
        if last_batch == LastBatch::Drop && self.left_up_to(n)? < n {
            let epoch = self.epoch;
            while self.epoch == epoch {
                self.next_window()?;
            }
        }
        Ok(rows)
    }

    /// Rows of the present epoch that were not dealt out, counted until there are `n`.
    pub fn left_up_to(&self, n: usize) -> Result<usize, DataError> {
        let (mut left, mut at) = (self.order.len() - self.row, self.at + 1);
        while left < n {
            match self.window(self.windows.as_ref(), at)? {
                Window::Rows(packed) => left += packed.n_rows(),
                Window::Empty => {}
                Window::End => break,
            }
            at += 1;
        }
        Ok(left)
    }

    /// Rows of an epoch.
    pub fn n_rows(&self) -> Result<usize, DataError> {
        let (mut n, mut at) = (0, 0);
        loop {
            match self.stream.window(at)? {
                Window::Rows(packed) => n += packed.n_rows(),
                Window::Empty => {}
                Window::End => return Ok(n),
            }
            at += 1;
        }
    }

    /// Where it is: its epoch, the window in the epoch's order and the row in the window's.
    pub fn state(&self) -> State {
        State {
            epoch: self.epoch,
            position: (self.at as u64) << ROW_BITS | self.row as u64,
        }
    }

    /// Goes to a place; without it nothing has changed.
    pub fn restore(&mut self, state: State) -> Result<(), DataError> {
        let State { epoch, position } = state;
        let (at, row) = ((position >> ROW_BITS) as usize, position as u32 as usize);
        let windows = self.windows_of(epoch)?;
        let n_rows = match self.window(windows.as_ref(), at)? {
            Window::Rows(packed) if row < packed.n_rows() => {
                self.order = self.order_of(epoch, at, &packed);
                (self.epoch, self.windows, self.at) = (epoch, windows, at);
                (self.packed, self.row) = (packed, row);
                return Ok(());
            }
            Window::Rows(packed) => packed.n_rows() as u64,
            Window::Empty | Window::End => 0,
        };
        Err(DataError::Position {
            epoch,
            position: row as u64,
            n_rows,
        })
    }
}
