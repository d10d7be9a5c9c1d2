//! Gives every slot its address.
//!
//! Persistent slots lie at the bottom of their arena, one behind another, durable extents below all
//! others: their addresses then depend on the pieces alone, and a plan made under other budgets finds
//! what an earlier one committed. Slots that live inside a
//! part share the rest: two may overlap when their lives do not. Parts share it with each other
//! (their lives never meet in plan order; the edges across a seam keep them apart in time).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use lowtide_units::List;

use crate::draft::DraftSlot;
use crate::plan::{Slot, SlotId, Tier};

/// Up to this many slots of a part are placed largest first, which packs tightest and takes longest; more are placed in
/// the order of their birth, unless they are to be packed [tight](Packing::Tight).
const PAIRWISE_MAX: usize = 2500;
/// The same where they are.
const TIGHT_MAX: usize = 20_000;
/// Tasks of a stretch of time, in mean lives of slots.
const STRETCH: usize = 8;

/// How much work is done to need few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// What a search can do at each of its looks.
    Usual,
    /// More, for what must fit the arenas of a session: they are exactly as large as another plan needed them, and
    /// a plan that computes more again has more slots, so a sudden loss of bytes at some number of slots would refuse
    /// what takes fewer.
    Tight,
}

/// Addresses, and the bytes each tier needs.
pub(crate) struct Layout {
    pub slots: List<SlotId, Slot>,
    pub totals: [u64; 3],
    pub transient: [u64; 3],
}

pub(crate) fn layout(drafts: &[DraftSlot], n_parts: usize, packing: Packing) -> Layout {
    let largest_first_max = match packing {
        Packing::Usual => PAIRWISE_MAX,
        Packing::Tight => TIGHT_MAX,
    };
    let mut offsets = vec![0; drafts.len()];
    let mut totals = [0; 3];
    let mut transient = [0; 3];
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); Tier::ALL.len() * n_parts];
    for (i, s) in drafts.iter().enumerate().filter(|(_, s)| !s.persistent) {
        members[s.tier as usize * n_parts + s.part].push(i);
    }
    for tier in Tier::ALL {
        let mut bottom = 0;
        for durable in [true, false] {
            for (i, s) in drafts
                .iter()
                .enumerate()
                .filter(|(_, s)| s.persistent && s.tier == tier && s.version.is_some() == durable)
            {
                offsets[i] = bottom;
                bottom += s.bytes;
            }
        }
        let mut top = bottom;
        for part in 0..n_parts {
            let members = &members[tier as usize * n_parts + part];
            let (end, places) = if members.len() <= largest_first_max {
                let by_size = largest_first(drafts, members);
                // Nothing packs tighter than the most bytes that live at once.
                if by_size.0 == peak(drafts, members) {
                    by_size
                } else {
                    in_order(drafts, members, by_size.0).unwrap_or(by_size)
                }
            } else {
                in_order(drafts, members, u64::MAX).expect("there is no limit")
            };
            for (&i, offset) in members.iter().zip(places) {
                offsets[i] = bottom + offset;
            }
            top = top.max(bottom + end);
        }
        totals[tier as usize] = top;
        transient[tier as usize] = top - bottom;
    }
    let slots = drafts
        .iter()
        .zip(offsets)
        .map(|(s, offset)| Slot {
            tier: s.tier,
            offset,
            bytes: s.bytes,
            tensor: s.tensor,
            persistent: s.persistent,
            version: s.version,
        })
        .collect();
    Layout {
        slots,
        totals,
        transient,
    }
}

#[cfg(test)]
fn lives_meet(a: &DraftSlot, b: &DraftSlot) -> bool {
    a.birth <= b.death && b.birth <= a.death
}

/// The most bytes of these slots that live at once.
fn peak(drafts: &[DraftSlot], members: &[usize]) -> u64 {
    let mut births: Vec<(usize, u64)> = Vec::with_capacity(members.len());
    let mut deaths = births.clone();
    for s in members.iter().map(|&i| &drafts[i]) {
        births.push((s.birth, s.bytes));
        deaths.push((s.death, s.bytes));
    }
    births.sort_unstable();
    deaths.sort_unstable();
    let (mut living, mut most, mut dead) = (0, 0, 0);
    for (birth, bytes) in births {
        while deaths[dead].0 < birth {
            living -= deaths[dead].1;
            dead += 1;
        }
        living += bytes;
        most = most.max(living);
    }
    most
}

/// A slot that was placed: its life and its addresses.
#[derive(Clone, Copy)]
struct Life {
    from: u64,
    to: u64,
    birth: u32,
    death: u32,
}

/// Slots that were placed, by the stretches of time in which they live, in the order of their addresses within each
/// stretch. So a new slot is compared only with those that may live at the same time, and only up to the gap that it
/// takes.
struct Placed {
    /// log2 of the tasks of a stretch.
    shift: u32,
    stretches: Vec<Vec<Life>>,
}

impl Placed {
    fn new(drafts: &[DraftSlot], members: &[usize]) -> Self {
        let lives = || members.iter().map(|&i| &drafts[i]);
        let end = lives().map(|s| s.death).max().unwrap_or(0);
        // A few times as long as the mean life, so that most are in one.
        let ages: usize = lives().map(|s| s.death - s.birth + 1).sum();
        let shift = (STRETCH * ages / members.len().max(1)).max(1).ilog2();
        Self {
            shift,
            stretches: vec![Vec::new(); (end >> shift) + 1],
        }
    }

    fn of(&self, s: &DraftSlot) -> std::ops::RangeInclusive<usize> {
        s.birth >> self.shift..=s.death >> self.shift
    }

    fn add(&mut self, s: &DraftSlot, from: u64) {
        let life = Life {
            from,
            to: from + s.bytes,
            birth: s.birth as u32,
            death: s.death as u32,
        };
        let stretches = self.of(s);
        for stretch in &mut self.stretches[stretches] {
            let at = stretch.partition_point(|l| l.from < from);
            stretch.insert(at, life);
        }
    }

    /// The lowest address at which the slot overlaps no other that lives at the same time. `seen` is scratch.
    fn gap(&self, s: &DraftSlot, seen: &mut Vec<usize>) -> u64 {
        let stretches = &self.stretches[self.of(s)];
        seen.clear();
        seen.resize(stretches.len(), 0);
        let mut at = 0;
        // Every life looked at begins below the end of the bytes wanted: where it meets the slot, these can only lie
        // behind it. They move up until no stretch has another such life; one that was seen is not looked at again.
        loop {
            let before = at;
            for (lives, seen) in stretches.iter().zip(seen.iter_mut()) {
                while let Some(l) = lives.get(*seen).filter(|l| l.from < at + s.bytes) {
                    if l.meets(s) {
                        at = at.max(l.to);
                    }
                    *seen += 1;
                }
            }
            if at == before {
                return at;
            }
        }
    }
}

impl Life {
    fn meets(&self, s: &DraftSlot) -> bool {
        s.birth as u32 <= self.death && self.birth <= s.death as u32
    }
}

/// Each slot, largest first, at the lowest address where it overlaps no other.
fn largest_first(drafts: &[DraftSlot], members: &[usize]) -> (u64, Vec<u64>) {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&k| {
        let s = &drafts[members[k]];
        (Reverse(s.bytes), s.birth, k)
    });
    let mut places = vec![0; members.len()];
    let mut placed = Placed::new(drafts, members);
    let mut end = 0;
    let mut scratch = Vec::new();
    for k in order {
        let s = &drafts[members[k]];
        let at = placed.gap(s, &mut scratch);
        places[k] = at;
        end = end.max(at + s.bytes);
        placed.add(s, at);
    }
    (end, places)
}

/// Slots in order of birth, each in the smallest gap that holds it. Nothing if they do not end below `limit`.
fn in_order(drafts: &[DraftSlot], members: &[usize], limit: u64) -> Option<(u64, Vec<u64>)> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&k| (drafts[members[k]].birth, k));
    let mut places = vec![0; members.len()];
    // Free gaps by start, none touching the next; the last one is open-ended.
    let mut gaps: Vec<(u64, u64)> = vec![(0, u64::MAX)];
    // Those that live, the first to die on top.
    let mut living: BinaryHeap<Reverse<(usize, usize, u64)>> = BinaryHeap::new();
    let mut end = 0;
    for k in order {
        let s = &drafts[members[k]];
        while let Some(&Reverse((death, j, at))) = living.peek() {
            if death >= s.birth {
                break;
            }
            living.pop();
            free(&mut gaps, at, drafts[members[j]].bytes);
        }
        let (_, i) = gaps
            .iter()
            .enumerate()
            .filter(|&(_, &(from, to))| to - from >= s.bytes)
            .map(|(i, &(from, to))| (if to == u64::MAX { u64::MAX } else { to - from }, i))
            .min()
            .expect("the last gap is open-ended");
        let (start, to) = gaps[i];
        if start + s.bytes < to {
            gaps[i].0 = start + s.bytes;
        } else {
            gaps.remove(i);
        }
        places[k] = start;
        end = end.max(start + s.bytes);
        if end >= limit {
            return None;
        }
        living.push(Reverse((s.death, k, start)));
    }
    Some((end, places))
}

/// Gives bytes back: a new gap, or a longer one.
fn free(gaps: &mut Vec<(u64, u64)>, at: u64, bytes: u64) {
    let to = at + bytes;
    let i = gaps.partition_point(|&(from, _)| from < at);
    let after = gaps.get(i).is_some_and(|&(from, _)| from == to);
    let before = i > 0 && gaps[i - 1].1 == at;
    match (before, after) {
        (true, true) => {
            gaps[i - 1].1 = gaps[i].1;
            gaps.remove(i);
        }
        (true, false) => gaps[i - 1].1 = to,
        (false, true) => gaps[i].0 = at,
        (false, false) => gaps.insert(i, (at, to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Tensor;

    fn slot(bytes: u64, birth: usize, death: usize) -> DraftSlot {
        DraftSlot {
            tier: Tier::Device,
            bytes,
            tensor: Tensor::Workspace,
            persistent: false,
            version: None,
            birth,
            death,
            part: 0,
        }
    }

    /// What `largest_first` says in one sentence, looking at every pair.
    fn plainly(drafts: &[DraftSlot]) -> Vec<u64> {
        let mut order: Vec<usize> = (0..drafts.len()).collect();
        order.sort_by_key(|&k| (Reverse(drafts[k].bytes), drafts[k].birth, k));
        let mut places = vec![0; drafts.len()];
        for (n, &k) in order.iter().enumerate() {
            let met: Vec<usize> = order[..n]
                .iter()
                .copied()
                .filter(|&j| lives_meet(&drafts[j], &drafts[k]))
                .collect();
            let free = |at: u64| {
                met.iter().all(|&j| {
                    at + drafts[k].bytes <= places[j] || places[j] + drafts[j].bytes <= at
                })
            };
            let ends = met.iter().map(|&j| places[j] + drafts[j].bytes);
            let at = ends.chain([0]).filter(|&at| free(at)).min();
            places[k] = at.expect("behind all of them");
        }
        places
    }

    fn check(drafts: &[DraftSlot]) {
        let members: Vec<usize> = (0..drafts.len()).collect();
        assert_eq!(largest_first(drafts, &members).1, plainly(drafts));
        let by_birth = in_order(drafts, &members, u64::MAX).expect("there is no limit");
        assert!(in_order(drafts, &members, by_birth.0).is_none());
        assert!(in_order(drafts, &members, by_birth.0 + 1).is_some());
        for (end, places) in [largest_first(drafts, &members), by_birth] {
            for i in 0..drafts.len() {
                assert!(places[i] + drafts[i].bytes <= end);
                for j in 0..i {
                    let apart = places[i] + drafts[i].bytes <= places[j]
                        || places[j] + drafts[j].bytes <= places[i];
                    assert!(apart || !lives_meet(&drafts[i], &drafts[j]), "{i} and {j}");
                }
            }
        }
    }

    #[test]
    fn living_slots_never_overlap() {
        check(&[
            slot(10, 0, 3),
            slot(20, 1, 2),
            slot(10, 3, 5),
            slot(30, 4, 6),
        ]);
        let mut x = 7u64;
        let mut next = move |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) % n
        };
        for _ in 0..50 {
            let drafts: Vec<DraftSlot> = (0..60)
                .map(|_| {
                    let birth = next(100) as usize;
                    slot(1 + next(50), birth, birth + next(20) as usize)
                })
                .collect();
            check(&drafts);
        }
    }

    #[test]
    fn bytes_are_used_again() {
        let drafts = [slot(10, 0, 1), slot(10, 2, 3), slot(10, 4, 5)];
        assert_eq!(layout(&drafts, 1, Packing::Usual).totals[0], 10);
    }
}
