//! Lets slots outlive their last task in plan order where that task is a copy that is predicted to end later.
//!
//! A slot that dies with the task that reads it last gives its bytes to the next one in plan order, and
//! that one then waits for the copy. So a slot lives on until its copy has ended, as far as the pools for what
//! is ahead allow: where they are full, the oldest copies' slots go first, as they end first.

use std::collections::VecDeque;

use super::timetable::Times;
use super::*;
use crate::plan::LaneKind;

/// Slots that a copy still uses, oldest first, with the last task until which it does, and the sum of their
/// bytes.
#[derive(Default)]
struct Lingering {
    slots: VecDeque<(usize, SlotId)>,
    bytes: u64,
}

impl Lingering {
    /// Ends the lives of those that are over before a task, and of the oldest until the others have room.
    fn leave(&mut self, now: usize, room: u64, slots: &mut List<SlotId, DraftSlot>) {
        while let Some(&(until, i)) = self.slots.front()
            && (until < now || self.bytes > room)
        {
            slots[i].death = slots[i].death.max(until.min(now.saturating_sub(1)));
            self.bytes -= slots[i].bytes;
            self.slots.pop_front();
        }
    }
}

impl Emitter<'_> {
    /// Predicts when each task of the part ends: lanes work their tasks off in order, none before what it
    /// reads is there, and copies to the device, reads and updates not before the operation that they stand before.
    fn predicted(&self, times: &Times) -> Vec<f64> {
        let mut lanes: FastMap<usize, f64> = FastMap::default();
        let mut filled: FastMap<SlotId, f64> = FastMap::default();
        let (mut op, mut now) = (0, 0.0);
        let mut ends = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            let end = match task.work {
                Work::Compute { .. }
                | Work::Fold { .. }
                | Work::Finish { .. }
                | Work::AllToAll { .. } => {
                    let end = times.ends[op];
                    op += 1;
                    now = times.starts.get(op).copied().unwrap_or(end);
                    match task.lane {
                        // Stands among the operations, and takes none of the gpu's time.
                        Lane::NET => {
                            let free = lanes.entry(task.lane.idx()).or_insert(0.0);
                            *free = free.max(end) + self.rates.task(task, self.pieces, &self.slots);
                            *free
                        }
                        _ => end,
                    }
                }
                _ if task.lane.kind == LaneKind::Gpu => now,
                _ => {
                    let read = task.args.iter().filter(|a| a.access != Use::Write);
                    let there = read.filter_map(|a| filled.get(&a.slot));
                    let there = there.copied().fold(0.0, f64::max);
                    // Copies from the device and writes begin as soon as they can.
                    let stands = match task.lane {
                        Lane::D2H | Lane::DISK_WRITE => 0.0,
                        _ => now,
                    };
                    let free = lanes.entry(task.lane.idx()).or_insert(0.0);
                    *free = free.max(there).max(stands)
                        + self.rates.task(task, self.pieces, &self.slots);
                    *free
                }
            };
            for a in task.args.iter().filter(|a| a.access != Use::Read) {
                filled.insert(a.slot, end);
            }
            ends.push(end);
        }
        ends
    }

    /// Lets slots live until what uses them last is predicted to have ended.
    pub(super) fn linger(&mut self, times: &Times) {
        let n = self.tasks.len();
        let ends = self.predicted(times);
        // The gpu's operations, by task.
        let ops: Vec<usize> = (0..n)
            .filter(|&t| {
                let work = self.tasks[t].work;
                matches!(
                    work,
                    Work::Compute { .. }
                        | Work::Fold { .. }
                        | Work::Finish { .. }
                        | Work::AllToAll { .. }
                )
            })
            .collect();
        let here = |s: &DraftSlot| s.part == self.part && !s.persistent && s.birth < n;
        let mut dying: Vec<(usize, SlotId)> = Vec::new();
        // Bytes of the device that are taken at each task.
        let (mut more, mut less) = (vec![0; n], vec![0; n + 1]);
        for (i, s) in self.slots.pairs().filter(|(_, s)| here(s)) {
            dying.push((s.death, i));
            if s.tier == Tier::Device {
                more[s.birth] += s.bytes;
                less[s.death + 1] += s.bytes;
            }
        }
        dying.sort_unstable();
        let mut dying = dying.into_iter().peekable();
        let ahead = self.choice.ahead;
        let most = [
            ahead.device.0.saturating_sub(self.stays()),
            ahead.host.0,
            ahead.updates.0,
            ahead.updates.0,
        ];
        let mut pools: [Lingering; 4] = Default::default();
        let mut taken = 0;
        for now in 0..n {
            taken = taken + more[now] - less[now];
            for (k, pool) in pools.iter_mut().enumerate() {
                let room = if k == 0 {
                    most[k].saturating_sub(taken)
                } else {
                    most[k]
                };
                pool.leave(now, room, &mut self.slots);
            }
            while let Some((death, i)) = dying.next_if(|&(death, _)| death == now) {
                let Some(pool) = self.pool(&self.slots[i]) else {
                    continue;
                };
                let next = times.starts.partition_point(|&s| s < ends[death]);
                let until = ops.get(next).map_or(n - 1, |&t| t.saturating_sub(1));
                if until > death {
                    pools[pool].slots.push_back((until, i));
                    pools[pool].bytes += self.slots[i].bytes;
                }
            }
        }
        for pool in &mut pools {
            pool.leave(n, 0, &mut self.slots);
        }
    }

    /// The pool whose bytes a slot may live on with after its last use in plan order, if that is a copy, an exchange or
    /// work of the host.
    fn pool(&self, s: &DraftSlot) -> Option<usize> {
        let lane = self.tasks[s.death].lane;
        let of_update = matches!(
            s.tensor,
            Tensor::State(_) | Tensor::Weight(_) | Tensor::Shard(_)
        );
        match (s.tier, s.tensor) {
            (_, Tensor::Workspace) | (Tier::Disk, _) => None,
            (Tier::Device, _) if !matches!(lane, Lane::D2H | Lane::DISK_WRITE | Lane::NET) => None,
            (Tier::Device, _) => Some(if of_update { 2 } else { 0 }),
            (Tier::Host, Tensor::Gradient(_)) => Some(3),
            (Tier::Host, _) if of_update && lane != Lane::H2D => Some(3),
            (Tier::Host, _) => Some(1),
        }
    }
}
