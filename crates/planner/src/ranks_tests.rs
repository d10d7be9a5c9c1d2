//! Plans of several ranks: each rank runs the same one, in which it exchanges gradients and weights with the others.

use lowtide_units::{BytesPerSecond, Seconds};
use lowtide_workload::{Dtype, Workload};

use crate::build::build;
use crate::check::check;
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Pieces, Processor, Saved};
use crate::machine::{Machine, NetRates, NetworkRates, RankLinks, Shared};
use crate::mutants::mutants;
use crate::plan::{Lane, LaneKind, PartName, PieceId, Plan, Task, Tensor, Tier, Use, Work};
use crate::simulate::activations_written;
use crate::testing::{frozen, machine, untied, workload};
use crate::tests::{CLIPS, every_choice};
use crate::together::Together;
use crate::traffic::traffic;

fn of_ranks(mut w: Workload, ranks: u32) -> Workload {
    w.ranks = ranks;
    w
}

#[test]
fn every_combination_of_choices_of_several_ranks_passes_the_checker() {
    let mut seen = 0;
    for (ranks, accumulate) in [(2, 1), (4, 3)] {
        let w = of_ranks(workload(2, accumulate), ranks);
        let choices = every_choice(w).into_iter();
        for (i, (mut w, mut c)) in choices.enumerate() {
            let clip = CLIPS[(i + accumulate as usize) % 3];
            if i % 5 == 0 {
                w.gradient = Dtype::F32;
            }
            if i % 7 == 0 && accumulate > 1 {
                c.round = 1;
            }
            let plan = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
            if let Err(fault) = check(&plan, &w, clip) {
                panic!("{fault}\n{c:?} {clip:?} M {accumulate} {ranks} ranks");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 1728);
}

/// The same, with gradients that add up in a tree.
fn in_a_tree(w: Workload, ranks: u32, leaves: u32) -> Workload {
    Workload {
        leaves,
        ..of_ranks(w, ranks)
    }
}

#[test]
fn every_combination_of_choices_in_a_tree_passes_the_checker() {
    let mut seen = 0;
    for (ranks, accumulate, leaves) in [(1, 2, 2), (2, 4, 4), (2, 1, 2)] {
        let w = in_a_tree(workload(2, accumulate), ranks, leaves);
        let sums = w.sums();
        let choices = every_choice(w).into_iter();
        let suits = |c: &Choice| sums == 1 || c.order == LoopOrder::LayerMajor;
        for (i, (mut w, mut c)) in choices.filter(|(_, c)| suits(c)).enumerate() {
            // Of one rank all, also durable ones; of several some.
            if ranks > 1 && (c.durable || i % 4 != 0) {
                continue;
            }
            let clip = CLIPS[(i / 4 + accumulate as usize) % 3];
            if i % 5 == 0 {
                w.gradient = Dtype::F32;
            }
            if i % 3 == 0 && accumulate > sums {
                c.round = sums;
            }
            let plan = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
            if let Err(fault) = check(&plan, &w, clip) {
                panic!("{fault}\n{c:?} {clip:?} M {accumulate} {ranks} ranks");
            }
            seen += 1;
        }
    }
    assert!(seen > 500, "{seen}");
}

/// What a tree takes is in the plan: sums of a gradient under way, and what adds them up.
#[test]
fn a_tree_has_its_price() {
    let plan = |leaves: u32, ranks: u32| {
        let w = in_a_tree(untied(4, 8 / ranks), ranks, leaves);
        let c = on_host(&w);
        let plan = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
        check(&plan, &w, Clip::Exact).expect("a right plan");
        plan
    };
    let (order, two, eight) = (plan(1, 1), plan(2, 1), plan(8, 1));
    let device = |p: &Plan| p.tier(Tier::Device).planned_bytes.0;
    let largest = order
        .pieces
        .iter()
        .map(|p| p.elements * 4)
        .max()
        .expect("pieces");
    assert!(device(&two) >= device(&order) + largest);
    assert!(device(&eight) >= device(&order) + 7 * largest);
    let seconds = |p: &Plan| p.prediction.lanes[LaneKind::Gpu as usize].busy_seconds.0;
    assert!(seconds(&order) < seconds(&two) && seconds(&two) < seconds(&eight));
    let folds = |p: &Plan| {
        let tasks = p.part(PartName::Steady).iter();
        tasks
            .filter(|t| matches!(t.work, Work::Fold { .. }))
            .count()
    };
    assert_eq!(
        [&order, &two, &plan(2, 2)].map(folds),
        [0, two.pieces.len(), 0]
    );
}

/// A gradient whose sums are taken as they are, or of other micro-batches, is found.
#[test]
fn a_wrong_sum_of_a_tree_is_found() {
    for ranks in [1, 2] {
        let w = in_a_tree(workload(1, 4), ranks, 2 * ranks);
        let good = build(
            &w,
            &on_host(&w),
            Clip::Exact,
            Budgets::UNLIMITED,
            &machine(),
        );
        check(&good, &w, Clip::Exact).expect("a right plan");
        let fault = |change: &dyn Fn(&mut Task) -> bool| {
            let mut broken = good.clone();
            let tasks = broken.parts[PartName::Steady].iter_mut();
            let changed = tasks.filter_map(|t| change(t).then_some(())).next();
            changed.expect("a task to change");
            check(&broken, &w, Clip::Exact)
                .expect_err("it is wrong")
                .what
        };
        let of_first = |t: &Task| matches!(t.work, Work::Compute { micro_batch: 0, .. });
        let each = |p: PieceId| good.pieces[p].elements * 4;
        // The share of one micro-batch into the sum of the other leaf.
        let moved = fault(&|t| {
            let own = of_first(t);
            let arg = t.args.iter_mut().find(|a| {
                let of = good.slots[a.slot].tensor;
                matches!(of, Tensor::Accumulator(_)) && a.access == Use::Write && own
            });
            let Some(arg) = arg else { return false };
            let Tensor::Accumulator(p) = good.slots[arg.slot].tensor else {
                return false;
            };
            arg.offset += each(p);
            true
        });
        assert!(moved.contains("uses bytes"), "{moved}");
        // What adds up, left out: as the whole work is looked for first, in the place of another piece's.
        let other = good.pieces.ids().nth(1).expect("two pieces");
        let twice = fault(&|t| match &mut t.work {
            Work::Fold { piece } if *piece != other => {
                *piece = other;
                true
            }
            _ => false,
        });
        assert!(!twice.is_empty());
    }
}

fn on_host(w: &Workload) -> Choice {
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Host; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c
}

/// Everything on disk, updates on the device, pieces cut.
fn on_disk(w: &Workload) -> Choice {
    let n = w.units.len();
    let mut c = on_host(w);
    c.weights = vec![Tier::Disk; n];
    c.optimizer = vec![Tier::Disk; n];
    c.update = vec![Processor::Device; n];
    c.pieces = Pieces::Split(1 << 10);
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
    c
}

#[test]
fn every_mutant_of_a_task_of_several_ranks_is_found_or_is_right() {
    let w = of_ranks(workload(1, 2), 2);
    let long = of_ranks(workload(1, 3), 2);
    let mut f32 = of_ranks(untied(1, 2), 4);
    f32.gradient = Dtype::F32;
    let still = of_ranks(frozen(untied(1, 1), &[0]), 2);
    let tree = in_a_tree(workload(1, 4), 2, 4);
    let alone = in_a_tree(untied(1, 2), 1, 2);
    let leaves = Choice {
        round: 2,
        ..on_host(&tree)
    };
    let rounds = Choice {
        round: 1,
        ..on_host(&long)
    };
    let cases = [
        (&w, Choice::resident(&w), Clip::Exact),
        (&w, on_host(&w), Clip::Exact),
        (&long, rounds, Clip::Exact),
        (&f32, on_disk(&f32), Clip::Previous),
        (&still, on_host(&still), Clip::None),
        (&tree, leaves, Clip::Exact),
        (&alone, on_host(&alone), Clip::None),
    ];
    let (mut exchanges, mut all) = (0, 0);
    for (w, c, clip) in cases {
        let good = build(w, &c, clip, Budgets::UNLIMITED, &machine());
        check(&good, w, clip).expect("the whole plan is right");
        for mutant in mutants(&good) {
            let net = |w: &Work| matches!(w, Work::AllToAll { .. } | Work::AllGather { .. });
            exchanges += usize::from(mutant.works.iter().any(net));
            all += 1;
            if check(&mutant.plan, w, clip).is_ok() {
                assert!(mutant.equivalent(w).is_some(), "let go: {mutant}");
            }
        }
    }
    assert!(exchanges > 400 && all > 5000, "{exchanges} of {all}");
}

#[test]
fn a_missing_edge_between_ranks_is_found() {
    for c in [on_host, on_disk] {
        let w = of_ranks(workload(1, 1), 2);
        let good = build(&w, &c(&w), Clip::Exact, Budgets::UNLIMITED, &machine());
        let mut found = 0;
        for part in PartName::ALL {
            for (t, task) in good.part(part).pairs() {
                for k in 0..task.after.len() {
                    let mut broken = good.clone();
                    broken.parts[part][t].after.remove(k);
                    let told = check(&broken, &w, Clip::Exact);
                    assert!(told.is_err(), "{part:?} {t}: {:?}", task.work);
                    found += 1;
                }
            }
        }
        assert!(found > 50, "{found}");
    }
}

/// Bytes of what lasts, by tier and tensor.
fn kept(plan: &Plan, which: fn(Tensor) -> bool) -> u64 {
    let slots = plan.slots.iter();
    let kept = slots.filter(|s| s.persistent && which(s.tensor));
    kept.map(|s| s.bytes).sum()
}

#[test]
fn each_rank_keeps_its_share() {
    let plan = |ranks| {
        let w = of_ranks(workload(2, 1), ranks);
        build(
            &w,
            &on_host(&w),
            Clip::Exact,
            Budgets::UNLIMITED,
            &machine(),
        )
    };
    let (one, four) = (plan(1), plan(4));
    let truth = |t| matches!(t, Tensor::Weight(_) | Tensor::Shard(_) | Tensor::State(_));
    let gradients = |t| matches!(t, Tensor::Gradient(_));
    for which in [truth, gradients] {
        let (one, four) = (kept(&one, which), kept(&four, which));
        // Each share is padded to whole pages.
        let pages = 4096 * 4 * 20;
        assert!(
            four >= one / 4 && four <= one / 4 + pages,
            "{four} of {one}"
        );
    }
    // What a rank gets of others are all shares but its own, of gradients as of weights.
    let got = |p: &Plan| p.prediction.lanes[LaneKind::Net as usize].bytes.0 as f64;
    let grown = got(&four) / got(&plan(2));
    assert!((grown / 1.5 - 1.0).abs() < 0.1, "{grown} times as much");
    let net = |p: &Plan| {
        let tasks = p.part(PartName::Steady).iter();
        tasks.filter(|t| t.lane == Lane::NET).count()
    };
    assert_eq!(net(&one), 0, "one rank exchanges nothing");
    assert!(net(&four) > 0);
    assert_eq!((one.lane_kinds().len(), four.lane_kinds().len()), (5, 6));
    assert_eq!(four.prediction.lanes.len(), 6);
}

/// What the search counts of a parameter is what its piece has.
#[test]
fn each_rank_keeps_all_of_a_frozen_parameter() {
    let w = of_ranks(frozen(workload(2, 1), &[2, 3]), 4);
    let choice = Choice::resident(&w);
    let plan = build(&w, &choice, Clip::Exact, Budgets::UNLIMITED, &machine());
    for piece in plan.pieces.iter() {
        let kept: u64 = piece.of(&w).iter().map(|p| w.kept(p)).sum();
        // A piece is padded once more, to whole pages.
        let own = piece.own(4);
        assert!(kept <= own && own < kept + 4096, "{kept} {piece:?}");
    }
    assert!(plan.pieces.iter().any(|piece| piece.frozen));
}

#[test]
fn ranks_share_what_the_host_has_and_keep_what_a_gpu_has() {
    let mut one = machine();
    one.ops.insert("op".to_owned(), Seconds(1.0));
    let of = |list: &[(&str, f64)]| list.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
    one.shared = vec![
        Shared {
            name: "host memory".to_owned(),
            share: of(&[("host", 1.0), ("h2d", 0.2), ("disk", 0.1)]),
        },
        Shared {
            name: "a link both ways".to_owned(),
            share: of(&[("h2d", 0.5), ("d2h", 0.5)]),
        },
    ];
    for cuda in [false, true] {
        one.cuda = cuda;
        assert_eq!(one.share(1), one);
        let rank = one.share(4);
        let disk = |m: &Machine| m.disk.map(|d| d.mixed.0);
        assert_eq!(disk(&rank).map(|x| x * 4.0), disk(&one));
        let host = |m: &Machine| m.updates.iter().map(|u| u.host).sum::<f64>();
        assert_eq!(host(&rank) * 4.0, host(&one));
        let own = |m: &Machine| {
            let updates: f64 = m.updates.iter().map(|u| u.device).sum();
            let rates = [m.matmul_bf16.0, m.matmul_f32.0, m.device_memory.0];
            let all = rates.into_iter().chain([m.h2d.0, m.d2h.0, updates]);
            all.chain([1.0 / m.ops["op"].0]).collect::<Vec<f64>>()
        };
        let factor = if cuda { 1.0 } else { 4.0 };
        let whole: Vec<f64> = own(&rank).into_iter().map(|x| x * factor).collect();
        assert_eq!(whole, own(&one), "cuda {cuda}");
        let shares = |i: usize, lane: &str| rank.shared[i].share[lane];
        let copies = if cuda { 0.8 } else { 0.2 };
        assert_eq!([shares(0, "host"), shares(0, "h2d")], [1.0, copies]);
        assert_eq!([shares(0, "disk"), shares(1, "h2d")], [0.1, 0.5]);
    }
}

/// What a plan writes of activations is counted of as many ranks as all that it writes.
#[test]
fn what_all_ranks_write_counts_the_same_everywhere() {
    for ranks in [1, 4] {
        let w = of_ranks(workload(4, 2), ranks);
        let mut c = Choice::resident(&w);
        c.order = LoopOrder::BatchMajor;
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
        let plan = build(&w, &c, Clip::None, Budgets::UNLIMITED, &machine());
        let written = plan.prediction.disk_bytes_written;
        assert!(written.0 > 0);
        assert_eq!(activations_written(&plan), written, "{ranks} ranks");
    }
}

/// A rank's own part of a weight is a weight, wherever it is copied.
#[test]
fn a_part_of_a_weight_counts_as_a_weight() {
    let w = of_ranks(workload(2, 1), 2);
    let plan = build(&w, &on_host(&w), Clip::None, Budgets::UNLIMITED, &machine());
    let shards = plan.rounds().steady().into_iter().map(|(part, times)| {
        let copies = plan.part(part).iter().filter(|t| t.work == Work::Copy);
        let of_shard = |t: &&Task| {
            let tensor = plan.slots[t.args[0].slot].tensor;
            matches!(tensor, Tensor::Shard(_)) && t.lane.kind == LaneKind::H2d
        };
        let bytes = copies.filter(of_shard).map(|t| t.args[0].bytes);
        bytes.sum::<u64>() * u64::from(times)
    });
    let shards: u64 = shards.sum();
    assert!(shards > 0);
    assert!(traffic(&plan)[0].weights.0 >= shards);
}

/// Over hosts, what a rank gets from ranks elsewhere comes through its host's line with what the others there get.
#[test]
fn what_ranks_of_several_hosts_exchange_follows_from_both_rates() {
    let net = |ranks, rate, latency| NetRates {
        ranks,
        rate: BytesPerSecond(rate),
        latency: Seconds(latency),
        hosts: 1,
    };
    let mut m = machine();
    (m.net, m.network) = (Some(net(2, 1e11, 1e-5)), None);
    assert_eq!(m.net_of(2, 1), m.net);
    assert_eq!((m.net_of(4, 2), m.net_of(4, 1)), (None, None));
    m.network = Some(NetworkRates {
        rate: BytesPerSecond(1e10),
        latency: Seconds(5e-5),
    });
    assert_eq!(m.net_of(4, 1), None, "one host with four");
    // 16 ranks on 8 hosts: of 15 shares 14 come through the line, for two ranks: 28 shares at 10 GB/s.
    let all = m.net_of(16, 8).expect("both are known");
    assert_eq!((all.ranks, all.hosts, all.latency), (16, 8, Seconds(5e-5)));
    assert!(
        (all.rate.0 / (15.0 / 28.0 * 1e10) - 1.0).abs() < 1e-12,
        "{all:?}"
    );
    // A line that is faster than what ranks of one host exchange does not rule.
    m.network = m.network.map(|n| NetworkRates {
        rate: BytesPerSecond(1e13),
        ..n
    });
    let all = m.net_of(4, 2).expect("both are known");
    assert!((all.rate.0 / 3e11 - 1.0).abs() < 1e-12, "{all:?}");
    // One rank a host needs the network alone, and what was measured over hosts counts as it is.
    m.net = None;
    assert_eq!(m.net_of(8, 8).map(|n| n.rate.0.round()), Some(1e13));
    assert_eq!(m.net_of(16, 8), None);
    m.net = Some(NetRates {
        hosts: 2,
        ..net(4, 7e9, 1e-4)
    });
    assert_eq!(m.net_of(4, 2), m.net);
    m.net = m.net.map(|n| NetRates { hosts: 5, ..n });
    assert_eq!(
        m.check().expect_err("more hosts than ranks").key,
        "net.hosts"
    );
}

/// Copies of all ranks at once are as fast as they were measured, alone and beside others. What was measured of one
/// rank stays where nothing else is known.
#[test]
fn copies_of_all_ranks_are_as_fast_as_they_were_measured_at_once() {
    let mut m = machine();
    (m.cuda, m.h2d, m.d2h) = (true, BytesPerSecond(50e9), BytesPerSecond(40e9));
    let set = |speeds: &[(Lane, f64)]| Together::of(speeds.iter().copied());
    let of_disk = set(&[(Lane::DISK_READ, 0.6), (Lane::HOST, 0.5)]);
    let of_one = set(&[(Lane::H2D, 0.9), (Lane::D2H, 0.8)]);
    let all_lanes = |h2d| {
        let (h2d, d2h) = ((Lane::H2D, h2d), (Lane::D2H, 0.5));
        set(&[h2d, d2h, (Lane::HOST, 0.4), (Lane::DISK_READ, 0.3)])
    };
    m.together = vec![of_one, of_disk.clone(), all_lanes(0.8)];
    // Nothing was measured with two.
    let two = m.share(2);
    assert_eq!(
        (two.h2d, two.d2h, &two.together),
        (m.h2d, m.d2h, &m.together)
    );
    let of_all = set(&[(Lane::H2D, 0.7), (Lane::D2H, 0.6)]);
    m.links = Some(RankLinks {
        ranks: 2,
        h2d: BytesPerSecond(45e9),
        // Faster than one rank alone: a slip of measuring.
        d2h: BytesPerSecond(44e9),
        together: vec![of_all.clone()],
    });
    let two = m.share(2);
    assert_eq!((two.h2d.0, two.d2h.0), (45e9, 40e9));
    // With drives beside them copies are no faster than without.
    assert_eq!(two.together, [of_disk, all_lanes(0.7), of_all]);
    // Another number of ranks says nothing, and one rank has its link alone.
    for ranks in [1, 4] {
        let other = m.share(ranks);
        assert_eq!((other.h2d, &other.together), (m.h2d, &m.together));
    }
    // A rate of 0 is named.
    m.links.as_mut().expect("given above").d2h.0 = 0.0;
    assert_eq!(m.check().expect_err("no rate").key, "links.d2h");
}
