//! What a lane does while it is measured, unit by unit.

use std::collections::VecDeque;
use std::sync::Mutex;

use lowtide_tiers::{Block, Disk, Extent, Kind, Movement};

use super::lock;
use crate::error::MeasureError;

/// One lane's work while it is measured.
pub(super) struct Party<'a> {
    /// Parameters, flops or bytes of a unit.
    pub(super) amount: f64,
    pub(super) work: Box<dyn Work + 'a>,
}

pub(super) trait Work: Send {
    /// What comes before the first unit that counts.
    fn warm(&mut self) -> Result<(), MeasureError>;
    /// Does one unit of its work.
    fn unit(&mut self) -> Result<(), MeasureError>;
    /// Waits for what is under way.
    fn drain(&mut self) -> Result<(), MeasureError> {
        Ok(())
    }
}

/// Work that is done when it returns.
pub(super) struct Repeat<F>(pub(super) F);

impl<F: FnMut() -> Result<(), MeasureError> + Send> Work for Repeat<F> {
    fn warm(&mut self) -> Result<(), MeasureError> {
        (self.0)()
    }
    fn unit(&mut self) -> Result<(), MeasureError> {
        (self.0)()
    }
}

/// One kind of transfers: always as many in hand, block after block and round again. A unit is a
/// block that has ended.
pub(super) struct Transfers<'a> {
    disk: &'a Disk,
    kind: Kind,
    /// Whose memory it is when they end.
    spare: &'a Mutex<Vec<Block>>,
    /// Memory of the next transfers, the one first that was used longest ago.
    blocks_in_hand: VecDeque<Block>,
    block: u64,
    pub(super) first: u64,
    pub(super) blocks: u64,
    moving: VecDeque<Movement>,
    sent: u64,
}

impl<'a> Transfers<'a> {
    /// `blocks` blocks of `block` bytes each, from the one with the number `first` on.
    pub(super) fn new(
        disk: &'a Disk,
        kind: Kind,
        spare: &'a Mutex<Vec<Block>>,
        (first, blocks, block): (u64, u64, u64),
    ) -> Self {
        Self {
            disk,
            kind,
            spare,
            blocks_in_hand: std::mem::take(&mut *lock(spare)).into(),
            block,
            first,
            blocks,
            moving: VecDeque::new(),
            sent: 0,
        }
    }

    pub(super) fn party(self) -> Party<'a> {
        Party {
            amount: self.block as f64,
            work: Box::new(self),
        }
    }

    fn send(&mut self) {
        let block = self.blocks_in_hand.pop_front();
        let block = block.expect("the oldest was waited for");
        let extent = Extent {
            offset: (self.first + self.sent % self.blocks) * self.block,
            bytes: self.block,
        };
        // Both kinds count their own blocks: the drive serves one of each in turn.
        let moving = self.disk.start(self.kind, extent, block, self.sent);
        self.moving.push_back(moving);
        self.sent += 1;
    }

    /// Waits for the oldest, if there is one.
    fn end(&mut self) -> Result<(), MeasureError> {
        let Some(oldest) = self.moving.pop_front() else {
            return Ok(());
        };
        let (block, done) = oldest.wait();
        self.blocks_in_hand.push_back(block);
        Ok(done?)
    }
}

impl Work for Transfers<'_> {
    fn warm(&mut self) -> Result<(), MeasureError> {
        while !self.blocks_in_hand.is_empty() {
            self.send();
        }
        Ok(())
    }

    fn unit(&mut self) -> Result<(), MeasureError> {
        if self.blocks_in_hand.is_empty() {
            self.end()?;
        }
        self.send();
        Ok(())
    }

    fn drain(&mut self) -> Result<(), MeasureError> {
        while !self.moving.is_empty() {
            self.end()?;
        }
        Ok(())
    }
}

impl Drop for Transfers<'_> {
    fn drop(&mut self) {
        // What a failed one still moves comes back too.
        for moving in self.moving.drain(..) {
            self.blocks_in_hand.push_back(moving.wait().0);
        }
        lock(self.spare).extend(self.blocks_in_hand.drain(..));
    }
}
