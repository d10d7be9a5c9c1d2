//! A place written by hand for every saved tensor and every unit trains to the same bits as
//! everything resident, and a session reserves what its plan says, to the byte.

use std::sync::Arc;

use crate::common::{checked, choice, decoder, llama, open, quick, rule, train};
use lowtide_model::Decoder;
use lowtide_planner::{
    Ahead, Choice, Clip, LoopOrder, PartName, Phase, PieceId, Pieces, Plan, Processor, Saved,
    SlotId, Tensor, Tier, Work,
};
use lowtide_session::{DiskChoice, Session, SessionOptions};
use lowtide_workload::{Access, Dtype, OpId, What};

const ACCUMULATE: u32 = 2;
const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];
const ORDERS: [LoopOrder; 2] = [LoopOrder::LayerMajor, LoopOrder::BatchMajor];

fn three_blocks(precision: Dtype) -> Arc<Decoder> {
    decoder(&llama(3, true), precision, ACCUMULATE)
}

/// Where among a unit's saved tensors the one with this name is.
fn saved_idx(d: &Decoder, unit: usize, name: &str) -> usize {
    let u = &d.workload().units[unit];
    let names: Vec<&str> = u.saved().iter().map(|&i| &*u.tensors[i].name).collect();
    names
        .iter()
        .position(|&n| n == name)
        .unwrap_or_else(|| panic!("{name} is not in {names:?}"))
}

/// Block 1: one tensor on the host, one on disk, one recomputed, the others kept. Block 2: other
/// ways for the same tensors. Block 3: all ways in turn. Units' weights and state on all tiers,
/// their updates on both processors.
fn by_hand(d: &Decoder, order: LoopOrder) -> Choice {
    let mut c = choice(d, Tier::Host, Tier::Host, Tier::Host);
    c.order = order;
    let ways = [Saved::Host, Saved::Disk, Saved::Recompute, Saved::Keep];
    for (i, name) in ["qkv", "att", "act", "h2"].into_iter().enumerate() {
        c.saved[1][saved_idx(d, 1, name)] = ways[i];
        c.saved[2][saved_idx(d, 2, name)] = ways[(i + 1) % 4];
    }
    c.saved[3]
        .iter_mut()
        .enumerate()
        .for_each(|(i, s)| *s = ways[i % 4]);
    c.weights = vec![
        Tier::Device,
        Tier::Host,
        Tier::Disk,
        Tier::Device,
        Tier::Host,
    ];
    c.optimizer = vec![Tier::Host, Tier::Disk, Tier::Host, Tier::Device, Tier::Disk];
    let (host, device) = (Processor::Host, Processor::Device);
    c.update = vec![host, device, host, device, host];
    c
}

#[test]
fn places_by_hand_train_to_the_same_bits() {
    for precision in [Dtype::Bf16, Dtype::F32] {
        let d = three_blocks(precision);
        for clip in CLIPS {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = checked(&d, &resident, clip);
            let want = train(&mut open(&d, &plan, clip, quick()), 4, ACCUMULATE);
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            for order in ORDERS {
                // Each unit's elsewhere, three ways round.
                for turn in 0..Tier::ALL.len() {
                    let n = d.workload().units.len();
                    let c = Choice {
                        gradients: (0..n).map(|u| Tier::ALL[(u + turn) % 3]).collect(),
                        ..by_hand(&d, order)
                    };
                    let plan = checked(&d, &c, clip);
                    let got = train(&mut open(&d, &plan, clip, quick()), 4, ACCUMULATE);
                    assert_eq!(got, want, "{precision:?} {clip:?} {c:?}");
                }
            }
        }
    }
}

/// Forward operations of a unit that the plan runs again in backward, for micro-batch 0.
fn recomputed(plan: &Plan, unit: u32) -> Vec<OpId> {
    let ops = plan
        .part(PartName::Steady)
        .iter()
        .filter_map(|t| match t.work {
            Work::Compute {
                unit: u,
                phase: Phase::Recompute,
                op,
                micro_batch: 0,
            } if u == unit => Some(op),
            _ => None,
        });
    ops.collect()
}

/// The bits would be equal too if a plan kept everything: that it does what was asked shows in its
/// slots and tasks.
#[test]
fn plans_do_what_was_asked() {
    let d = three_blocks(Dtype::Bf16);
    for order in ORDERS {
        // Just in time: nothing stays because its pause is shorter than a fetch ahead of its use.
        let c = Choice {
            ahead: Ahead::NONE,
            ..by_hand(&d, order)
        };
        let plan = checked(&d, &c, Clip::Exact);
        let used: Vec<Vec<SlotId>> = PartName::ALL
            .iter()
            .map(|&p| {
                plan.part(p)
                    .iter()
                    .flat_map(|t| &t.args)
                    .map(|a| a.slot)
                    .collect()
            })
            .collect();
        let is_on = |tensor: Tensor, tier: Tier| {
            used[PartName::Steady as usize].iter().any(|&s| {
                let slot = &plan.slots[s];
                (slot.tensor, slot.tier) == (tensor, tier)
            })
        };
        for unit in 1..=3 {
            let u = &d.workload().units[unit];
            let again = recomputed(&plan, unit as u32);
            let mut seen = [0; 4];
            for (&tensor, &asked) in u.saved().iter().zip(&c.saved[unit]) {
                let name = format!("{order:?} {} {}", u.name, u.tensors[tensor].name);
                let writer = u.forward.position(|op| {
                    op.operands
                        .iter()
                        .any(|o| o.what == What::Local(tensor) && o.access == Access::Write)
                });
                let writer = writer.expect("forward writes what it saves");
                // An operation that runs again writes all its results again: the others of a
                // recomputed tensor need not travel.
                let way = if again.contains(&writer) {
                    Saved::Recompute
                } else {
                    asked
                };
                seen[way as usize] += 1;
                assert!(
                    asked != Saved::Recompute || way == asked,
                    "{name} is not computed again"
                );
                for m in 0..ACCUMULATE {
                    let local = Tensor::Local(unit as u32, tensor, m);
                    // On its way to disk it passes through host memory.
                    let host = matches!(way, Saved::Host | Saved::Disk);
                    assert_eq!(is_on(local, Tier::Host), host, "{name} m{m}");
                    assert_eq!(is_on(local, Tier::Disk), way == Saved::Disk, "{name} m{m}");
                    assert!(is_on(local, Tier::Device), "{name} m{m}");
                }
            }
            assert!(
                seen.iter().all(|&n| n > 0),
                "{order:?} {}: of each way {seen:?}",
                u.name
            );
        }
        for (unit, (weights, optimizer)) in c.weights.iter().zip(&c.optimizer).enumerate() {
            let of_unit = |p: &PieceId| plan.pieces[*p].unit as usize == unit;
            for piece in (plan.pieces.ids()).filter(of_unit) {
                let homes = |t: Tensor| plan.homes(t).map(|(_, s)| s.tier).collect::<Vec<_>>();
                assert!(
                    homes(Tensor::Weight(piece)).contains(weights),
                    "{order:?} {unit}"
                );
                assert_eq!(
                    homes(Tensor::State(piece)),
                    [*optimizer],
                    "{order:?} {unit}"
                );
            }
        }
    }
}

/// Plans that differ in what they hold where.
fn plans(d: &Decoder) -> Vec<Choice> {
    let mut all = vec![
        choice(d, Tier::Device, Tier::Device, Tier::Device),
        choice(d, Tier::Host, Tier::Host, Tier::Host),
        choice(d, Tier::Disk, Tier::Disk, Tier::Disk),
        choice(d, Tier::Device, Tier::Disk, Tier::Host),
        by_hand(d, LoopOrder::LayerMajor),
        by_hand(d, LoopOrder::BatchMajor),
    ];
    let mut pieces = Choice {
        pieces: Pieces::Split(256),
        ahead: crate::common::ahead(1).0,
        carry: Tier::Host,
        ..all[2].clone()
    };
    pieces
        .saved
        .iter_mut()
        .for_each(|s| s.fill(Saved::Recompute));
    all.push(pieces);
    all
}

/// Bytes behind the headers of the state files below `dir`, and bytes the file system gave them.
fn on_drives(dirs: &[std::path::PathBuf]) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let header = 2 << 20;
    let files = dirs
        .iter()
        .map(|d| std::fs::metadata(d.join("lowtide-state.bin")));
    files
        .map(|m| m.expect("a state file"))
        .fold((0, 0), |sum, m| {
            (sum.0 + m.len() - header, sum.1 + m.blocks() * 512)
        })
}

#[test]
fn a_session_reserves_what_its_plan_says() {
    let d = three_blocks(Dtype::Bf16);
    let mut seen = std::collections::BTreeSet::new();
    for clip in CLIPS {
        for c in plans(&d) {
            let plan = checked(&d, &c, clip);
            let planned = Tier::ALL.map(|t| plan.tier(t).planned_bytes.0);
            // No byte more than the last slot needs.
            for tier in Tier::ALL {
                let ends = plan
                    .slots
                    .iter()
                    .filter(|s| s.tier == tier)
                    .map(|s| s.offset + s.bytes);
                assert_eq!(
                    planned[tier as usize],
                    ends.max().unwrap_or(0),
                    "{tier} {c:?}"
                );
            }
            // The reported figures add up to it for everything that stays.
            let table = &plan.tiers;
            for (tier, used) in Tier::ALL.iter().zip(table) {
                let stays = used.weights + used.optimizer + used.gradients;
                assert_eq!(
                    (stays + used.transient).0,
                    planned[*tier as usize],
                    "{tier} {c:?}"
                );
            }

            let dir = tempfile::tempdir().expect("a directory");
            let dirs = [dir.path().join("a"), dir.path().join("b")];
            let drives = dirs.iter().cloned().zip([1.0, 3.0]).collect();
            let options = SessionOptions {
                disk: DiskChoice::Directories(drives),
                ..quick()
            };
            let session = Session::open(Arc::clone(&d), Arc::clone(&plan), rule(clip), options)
                .expect("room for a tiny model");
            assert_eq!(session.reserved(), planned, "{c:?}");
            if planned[2] > 0 {
                let (bytes, given) = on_drives(&dirs);
                assert_eq!(bytes, planned[2], "{c:?}");
                assert!(
                    given >= planned[2],
                    "{given} of {bytes} bytes are really there: {c:?}"
                );
            } else {
                assert!(!dirs[0].exists(), "no disk, no directory");
            }
            seen.insert(planned);
        }
    }
    assert!(seen.len() >= 10, "{} different sets of sizes", seen.len());
}
