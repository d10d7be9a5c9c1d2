//! Gives every slot its address.
//!
//! Persistent slots lie at the bottom of their arena, one behind another. Slots that live inside a
//! part share the rest: two may overlap when their lives do not. Parts share it with each other
//! (their lives never meet in plan order; the edges across a seam keep them apart in time).

use std::collections::BTreeMap;

use crate::draft::DraftSlot;
use crate::plan::{Slot, Tier};

/// Up to this many slots of a part are placed largest first, which packs tightest but looks at
/// every pair; more are placed in the order of their birth.
const PAIRWISE_MAX: usize = 2500;

/// Addresses, and the bytes each tier needs.
pub(crate) struct Layout {
    pub slots: Vec<Slot>,
    pub totals: [u64; 3],
    pub transient: [u64; 3],
}

pub(crate) fn layout(drafts: &[DraftSlot], n_parts: usize) -> Layout {
    let mut offsets = vec![0; drafts.len()];
    let mut totals = [0; 3];
    let mut transient = [0; 3];
    for tier in Tier::ALL {
        let mut bottom = 0;
        for (i, s) in drafts
            .iter()
            .enumerate()
            .filter(|(_, s)| s.persistent && s.tier == tier)
        {
            offsets[i] = bottom;
            bottom += s.bytes;
        }
        let mut top = bottom;
        for part in 0..n_parts {
            let members: Vec<usize> = (0..drafts.len())
                .filter(|&i| {
                    let s = &drafts[i];
                    !s.persistent && s.tier == tier && s.part == part
                })
                .collect();
            let (end, places) = if members.len() <= PAIRWISE_MAX {
                let by_size = largest_first(drafts, &members);
                let by_birth = in_order(drafts, &members);
                if by_size.0 <= by_birth.0 {
                    by_size
                } else {
                    by_birth
                }
            } else {
                in_order(drafts, &members)
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
        })
        .collect();
    Layout {
        slots,
        totals,
        transient,
    }
}

fn lives_meet(a: &DraftSlot, b: &DraftSlot) -> bool {
    a.birth <= b.death && b.birth <= a.death
}

/// Each slot, largest first, at the lowest address where it meets nobody.
fn largest_first(drafts: &[DraftSlot], members: &[usize]) -> (u64, Vec<u64>) {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&k| {
        let s = &drafts[members[k]];
        (std::cmp::Reverse(s.bytes), s.birth, k)
    });
    let mut places = vec![0; members.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut end = 0;
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for k in order {
        let s = &drafts[members[k]];
        taken.clear();
        taken.extend(
            placed
                .iter()
                .filter(|&&j| lives_meet(s, &drafts[members[j]]))
                .map(|&j| (places[j], places[j] + drafts[members[j]].bytes)),
        );
        taken.sort_unstable();
        let mut at = 0;
        for &(from, to) in &taken {
            if from >= at + s.bytes {
                break;
            }
            at = at.max(to);
        }
        places[k] = at;
        end = end.max(at + s.bytes);
        placed.push(k);
    }
    (end, places)
}

/// Slots in order of birth, each in the smallest gap that holds it.
fn in_order(drafts: &[DraftSlot], members: &[usize]) -> (u64, Vec<u64>) {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&k| (drafts[members[k]].birth, k));
    let mut places = vec![0; members.len()];
    // Free gaps by start; the last one is open-ended.
    let mut gaps: BTreeMap<u64, u64> = BTreeMap::from([(0, u64::MAX)]);
    let mut living: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    let mut end = 0;
    for k in order {
        let s = &drafts[members[k]];
        while let Some((&(death, j), &at)) = living.first_key_value() {
            if death >= s.birth {
                break;
            }
            living.remove(&(death, j));
            free(&mut gaps, at, drafts[members[j]].bytes);
        }
        let (&start, &to) = gaps
            .iter()
            .filter(|&(&from, &to)| to - from >= s.bytes)
            .min_by_key(|&(&from, &to)| (if to == u64::MAX { u64::MAX } else { to - from }, from))
            .expect("the last gap is open-ended");
        gaps.remove(&start);
        if start + s.bytes < to {
            gaps.insert(start + s.bytes, to);
        }
        places[k] = start;
        end = end.max(start + s.bytes);
        living.insert((s.death, k), start);
    }
    (end, places)
}

fn free(gaps: &mut BTreeMap<u64, u64>, at: u64, bytes: u64) {
    let mut from = at;
    let mut to = at + bytes;
    if let Some((&before, &before_end)) = gaps.range(..at).next_back()
        && before_end == at
    {
        gaps.remove(&before);
        from = before;
    }
    if let Some(after_end) = gaps.remove(&to) {
        to = after_end;
    }
    gaps.insert(from, to);
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
            birth,
            death,
            part: 0,
        }
    }

    fn check(drafts: &[DraftSlot]) {
        let members: Vec<usize> = (0..drafts.len()).collect();
        for (end, places) in [largest_first(drafts, &members), in_order(drafts, &members)] {
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
        assert_eq!(layout(&drafts, 1).totals[0], 10);
    }
}
