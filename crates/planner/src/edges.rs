//! Derives what each task must wait for from the bytes it uses, and leaves out what its lane's own
//! order and its other edges already guarantee.

use std::collections::BTreeMap;

use crate::plan::{LANES, Slot, Task, Tier, Use};

/// For each lane one past the last task known to be complete; 0: none.
pub(crate) type Clock = [u32; LANES];

fn join(a: &mut Clock, b: &Clock) {
    for (x, y) in a.iter_mut().zip(b) {
        *x = (*x).max(*y);
    }
}

/// Who used a byte range last.
#[derive(Clone, Copy, Default)]
struct Users {
    writer: Clock,
    readers: Clock,
}

/// Uses of an arena's bytes, as ranges that cover it without gaps or overlaps.
#[derive(Default)]
struct Ranges(BTreeMap<u64, (u64, Users)>);

impl Ranges {
    fn split(&mut self, at: u64) {
        if let Some((&from, &(to, users))) = self.0.range(..at).next_back()
            && to > at
        {
            self.0.insert(from, (at, users));
            self.0.insert(at, (to, users));
        }
    }

    /// Collects into `needs` what an access to `from..to` must follow, and records it.
    fn access(
        &mut self,
        from: u64,
        to: u64,
        access: Use,
        lane: usize,
        mark: u32,
        needs: &mut Clock,
    ) {
        self.split(from);
        self.split(to);
        let mut at = from;
        let inside: Vec<u64> = self.0.range(from..to).map(|(&k, _)| k).collect();
        let mut gaps = Vec::new();
        for k in inside {
            if k > at {
                gaps.push((at, k));
            }
            let (end, users) = self.0.get_mut(&k).expect("just listed");
            join(needs, &users.writer);
            if access == Use::Read {
                users.readers[lane] = mark;
            } else {
                join(needs, &users.readers);
                *users = Users::default();
                users.writer[lane] = mark;
            }
            at = *end;
        }
        if at < to {
            gaps.push((at, to));
        }
        for (a, b) in gaps {
            let mut users = Users::default();
            if access == Use::Read {
                users.readers[lane] = mark;
            } else {
                users.writer[lane] = mark;
            }
            self.0.insert(a, (b, users));
        }
    }
}

/// For every task of a sequence, the tasks (by position) that it must wait for, no more than one a
/// lane. `sequence` may be two parts one behind the other.
pub(crate) fn edges(slots: &[Slot], sequence: &[&Task]) -> Vec<Vec<u32>> {
    let mut arenas: [Ranges; 3] = Default::default();
    let mut known: Vec<Clock> = Vec::with_capacity(sequence.len());
    let mut last_of_lane: [Option<usize>; LANES] = [None; LANES];
    let mut all = Vec::with_capacity(sequence.len());
    for (i, task) in sequence.iter().enumerate() {
        let lane = task.lane.idx();
        let mark = i as u32 + 1;
        let mut needs: Clock = [0; LANES];
        for arg in &task.args {
            let slot = &slots[arg.slot as usize];
            // A transient slot is used as a whole: its last user may fill all of it when its life
            // ends, and the next holder of any of its bytes waits for all its users.
            let (from, bytes) = if slot.persistent {
                (slot.offset + arg.offset, arg.bytes)
            } else {
                (slot.offset, slot.bytes)
            };
            let arena = &mut arenas[slot.tier as usize];
            debug_assert!(Tier::ALL[slot.tier as usize] == slot.tier);
            let mut with_self = [0; LANES];
            arena.access(from, from + bytes, arg.access, lane, mark, &mut with_self);
            join(&mut needs, &with_self);
        }
        // What the lane's own order guarantees.
        let mut have: Clock = last_of_lane[lane].map_or([0; LANES], |p| {
            let mut c = known[p];
            c[lane] = p as u32 + 1;
            c
        });
        let mut wanted: Vec<u32> = (0..LANES)
            .filter(|&l| l != lane)
            .map(|l| needs[l])
            .filter(|&t| t > 0 && t != mark)
            .map(|t| t - 1)
            .collect();
        // Later tasks know more, so ask them first.
        wanted.sort_unstable_by(|a, b| b.cmp(a));
        let mut after = Vec::new();
        for t in wanted {
            let l = sequence[t as usize].lane.idx();
            if have[l] > t {
                continue;
            }
            after.push(t);
            join(&mut have, &known[t as usize]);
            have[l] = have[l].max(t + 1);
        }
        after.sort_unstable();
        known.push(have);
        last_of_lane[lane] = Some(i);
        all.push(after);
    }
    all
}
