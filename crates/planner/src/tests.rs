//! Plans of every kind pass the checker; a plan without one edge of any class does not.
//!
//! One file because its tests go through the same plans of every kind.

use lowtide_units::{Bytes, List};
use lowtide_workload::{LocalId, OptimizerName, UnitKind, What};

use crate::build::build;
use crate::check::check;
use crate::choice::{
    Activations, Ahead, Budgets, Choice, Clip, LoopOrder, Pieces, Processor, Saved,
};
use crate::machine::Machine;
use crate::mutants::without_task;
use crate::plan::{LaneKind, PartName, PerLane, Phase, Plan, SlotId, TaskId, Tensor, Tier, Work};
use crate::search::{Pins, PlanError, Request, plan};
use crate::testing::{machine, untied, workload};

/// Just in time, bounded twice, and as far as times ask for.
fn aheads() -> [Ahead; 4] {
    let each = |n| Ahead::each(Bytes(n));
    [Ahead::NONE, each(1 << 16), each(1 << 20), Ahead::UNLIMITED]
}

pub(crate) const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

/// Every combination of homes, loop order, recompute, cut, copies ahead and place of update.
pub(crate) fn every_choice(
    w: lowtide_workload::Workload,
) -> Vec<(lowtide_workload::Workload, Choice)> {
    let n = w.units.len();
    let mut all = Vec::new();
    for order in [LoopOrder::LayerMajor, LoopOrder::BatchMajor] {
        for weights in Tier::ALL {
            for optimizer in Tier::ALL {
                for inputs in Tier::ALL {
                    for gradients in Tier::ALL {
                        for (k, saved) in [Saved::Keep, Saved::Recompute, Saved::Host, Saved::Disk]
                            .into_iter()
                            .enumerate()
                        {
                            let mut c = Choice::resident(&w);
                            c.order = order;
                            c.weights = vec![weights; n];
                            c.optimizer = vec![optimizer; n];
                            let on_device = optimizer == Tier::Device || k % 2 == 1;
                            let update = if on_device {
                                Processor::Device
                            } else {
                                Processor::Host
                            };
                            c.update = vec![update; n];
                            c.inputs = inputs;
                            c.gradients = vec![gradients; n];
                            c.saved.iter_mut().for_each(|s| s.fill(saved));
                            c.ahead = aheads()[k % 4];
                            c.carry = [Tier::Device, Tier::Host][k % 2];
                            c.pieces = if k > 1 {
                                Pieces::Split(1 << 10)
                            } else {
                                Pieces::Unit
                            };
                            if optimizer == Tier::Disk {
                                let mut durable = c.clone();
                                durable.make_durable();
                                all.push((w.clone(), durable));
                            }
                            all.push((w.clone(), c));
                        }
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_combination_of_choices_passes_the_checker() {
    for accumulate in [1, 3] {
        // Each clipping mode sees a third of the combinations, so that the test takes seconds.
        for (i, (w, c)) in every_choice(workload(2, accumulate))
            .into_iter()
            .enumerate()
        {
            let clip = CLIPS[(i + accumulate as usize) % 3];
            let plan = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
            if let Err(fault) = check(&plan, &w, clip) {
                panic!("{fault}\n{c:?} {clip:?} M {accumulate}");
            }
        }
    }
}

fn without_edge(plan: &Plan, part: PartName, task: TaskId, k: usize) -> Plan {
    let mut broken = plan.clone();
    broken.parts[part][task].after.remove(k);
    broken
}

#[test]
fn no_edge_is_superfluous_and_every_missing_one_is_found() {
    let w = workload(2, 2);
    let mut c = Choice::resident(&w);
    let n = w.units.len();
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Disk; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.inputs = Tier::Host;
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
    let good = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    check(&good, &w, Clip::Exact).expect("the whole plan is right");
    let mut found = 0;
    for part in PartName::ALL {
        for task in good.part(part).ids() {
            for k in 0..good.part(part)[task].after.len() {
                let broken = without_edge(&good, part, task, k);
                let t = &good.part(part)[task];
                assert!(
                    check(&broken, &w, Clip::Exact).is_err(),
                    "{part:?} {task}: {t:?} after {:?}",
                    good.part(part)[t.after[k]]
                );
                found += 1;
            }
        }
    }
    assert!(found > 50, "only {found} edges");
    for s in 0..good.seams.len() {
        for k in 0..good.seams[s].edges.len() {
            let mut broken = good.clone();
            broken.seams[s].edges.remove(k);
            assert!(check(&broken, &w, Clip::Exact).is_err(), "seam {s} {k}");
        }
    }
}

#[test]
fn planted_faults_are_found() {
    let w = workload(2, 1);
    let mut c = Choice::resident(&w);
    c.weights = vec![Tier::Host; w.units.len()];
    c.optimizer = vec![Tier::Host; w.units.len()];
    c.update = vec![Processor::Host; w.units.len()];
    let good = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    let fails = |plan: &Plan, words: &str| {
        let fault = check(plan, &w, Clip::Exact).expect_err(words);
        assert!(fault.what.contains(words), "{fault} instead of {words}");
    };
    // A resident copy that is not refreshed after its update.
    c.weights = vec![Tier::Device; w.units.len()];
    let resident = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    for part in [PartName::Steady, PartName::Drain] {
        let refresh = resident
            .part(part)
            .position(|t| {
                t.work == Work::Copy
                    && matches!(resident.slots[t.args[1].slot].tensor, Tensor::Weight(_))
            })
            .expect("weights are refreshed");
        let broken = without_task(&resident, part, refresh);
        fails(&broken, "stale");
    }
    // Two living tensors in one slot.
    let mut broken = good.clone();
    let slots = broken.slots.ids();
    let persistent: Vec<SlotId> = slots
        .filter(|&i| broken.slots[i].persistent && broken.slots[i].tier == Tier::Host)
        .collect();
    broken.slots[persistent[1]].offset = broken.slots[persistent[0]].offset;
    fails(&broken, "which stays");
    // Over budget.
    let mut broken = good.clone();
    broken.tiers[0].budget_bytes = Bytes(1);
    fails(&broken, "needs");
    // A forward edge.
    let mut broken = good.clone();
    broken.parts[PartName::First][TaskId(0)].after = vec![TaskId(1)];
    fails(&broken, "later task");
    // A load that reads.
    let copy = good
        .part(PartName::First)
        .position(|t| matches!(t.work, Work::Load { .. }))
        .expect("inputs are loaded");
    let mut broken = good.clone();
    broken.parts[PartName::First][copy].args[0].access = crate::plan::Use::Read;
    fails(&broken, "has Read for inputs");
    // Two slots of one task share bytes.
    let mut broken = good.clone();
    let transient = |a: &&crate::plan::Arg| !good.slots[a.slot].persistent;
    let two = good.part(PartName::First).iter().find_map(|t| {
        let mut args = t.args.iter().filter(transient);
        (t.lane == crate::plan::Lane::GPU).then(|| Some((args.next()?.slot, args.next()?.slot)))?
    });
    let (a, b) = two.expect("an operation between two tensors");
    let size = |slot: SlotId| good.slots[slot].bytes;
    let (small, large) = if size(a) < size(b) { (a, b) } else { (b, a) };
    broken.slots[small].offset = broken.slots[large].offset;
    fails(&broken, "over its own argument");
    // A read of nothing.
    let copy = |t: &crate::plan::Task| {
        let inputs = |a: &crate::plan::Arg| matches!(good.slots[a.slot].tensor, Tensor::Inputs(_));
        t.work == Work::Copy && inputs(&t.args[0])
    };
    let copy = good.part(PartName::First).position(copy);
    let broken = without_task(&good, PartName::First, copy.expect("inputs are copied"));
    fails(&broken, "unwritten");
}

/// An update by rows and columns has its scratch where it runs, as large as its largest tensor asks for; its state
/// has the bytes of its table, and what a plan shows of it is what was reserved.
#[test]
fn an_update_of_whole_tensors_has_its_scratch() {
    let mut w = untied(2, 2);
    w.optimizer.name = OptimizerName::Adafactor;
    let n = w.units.len();
    let mut offloaded = Choice::resident(&w);
    offloaded.weights = vec![Tier::Host; n];
    offloaded.optimizer = vec![Tier::Disk; n];
    offloaded.gradients = vec![Tier::Host; n];
    offloaded.update = vec![Processor::Host; n];
    let mut streamed = offloaded.clone();
    streamed.update = vec![Processor::Device; n];
    streamed.pieces = Pieces::Split(1 << 10);
    for (c, tier) in [
        (Choice::resident(&w), Tier::Device),
        (offloaded, Tier::Host),
        (streamed, Tier::Device),
    ] {
        for clip in [Clip::Exact, Clip::Previous, Clip::None] {
            let good = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
            check(&good, &w, clip).expect("a right plan");
            let mut found = 0;
            for part in PartName::ALL {
                for i in good.part(part).ids() {
                    let task = &good.part(part)[i];
                    let Work::Update { piece } = task.work else {
                        continue;
                    };
                    found += 1;
                    let params = good.pieces[piece].of(&w);
                    let bytes = w.optimizer.scratch_bytes(params);
                    let last = task.args.last().expect("scratch");
                    let slot = &good.slots[last.slot];
                    assert_eq!((slot.tensor, slot.tier), (Tensor::Workspace, tier));
                    assert_eq!(last.bytes, bytes);
                    let args = |plan: &mut Plan, change: &dyn Fn(&mut Vec<crate::plan::Arg>)| {
                        change(&mut plan.parts[part][i].args);
                        let fault = check(plan, &w, clip).expect_err("scratch is missing");
                        assert!(fault.what.contains("scratch"), "{fault}");
                    };
                    let last = |args: &mut Vec<crate::plan::Arg>| {
                        args.last_mut().expect("scratch").bytes /= 2;
                    };
                    args(&mut good.clone(), &last);
                    args(&mut good.clone(), &|args| _ = args.pop());
                }
            }
            assert!(found >= good.pieces.len());
            let state: u64 = good
                .slots
                .iter()
                .filter(|s| s.persistent && matches!(s.tensor, Tensor::State(_)))
                .map(|s| s.bytes)
                .sum();
            let counted: u64 = good.tiers.iter().map(|t| t.optimizer.0).sum();
            assert_eq!(state, counted);
            let numbers: u64 = good.pieces.iter().map(|p| p.elements).sum();
            let each = state as f64 / numbers as f64;
            assert!((2.0..3.0).contains(&each), "{each} bytes a parameter");
            assert!(
                crate::explain::explain(&good, &w, true).contains("Adafactor, moments in f32: ")
            );
        }
    }
}

#[test]
fn equal_inputs_give_an_equal_plan() {
    let w = workload(3, 2);
    let m = machine();
    let budgets = Budgets {
        device: Bytes(700 << 10),
        host: Bytes(3 << 20),
        disk: Bytes(16 << 20),
    };
    let request = Request {
        workload: &w,
        machine: &m,
        budgets,
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let a = plan(&request);
    let b = plan(&request);
    assert_eq!(a, b);
}

#[test]
fn a_refusal_says_what_would_fit_and_it_does() {
    let m = machine();
    let (mut fitted, mut refused) = (0, 0);
    for accumulate in [1, 2] {
        let w = workload(4, accumulate);
        for device in [100 << 10, 500 << 10, 4 << 20] {
            for host in [100 << 10, 1 << 20, 8 << 20] {
                for disk in [0, 1 << 20, 64 << 20] {
                    let budgets = Budgets {
                        device: Bytes(device),
                        host: Bytes(host),
                        disk: Bytes(disk),
                    };
                    let request = Request {
                        workload: &w,
                        machine: &m,
                        budgets,
                        clip: Clip::Exact,
                        pins: Pins::default(),
                    };
                    match plan(&request) {
                        Ok(p) => {
                            fitted += 1;
                            for t in Tier::ALL {
                                assert!(p.tier(t).planned_bytes <= budgets.of(t));
                            }
                        }
                        Err(PlanError::Refused(r)) => {
                            refused += 1;
                            let again = plan(&Request {
                                budgets: r.nearest,
                                ..request
                            });
                            assert!(again.is_ok(), "{budgets:?} -> {r}: {:?}", again.err());
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        }
    }
    assert!(
        fitted > 5 && refused > 5,
        "{fitted} fitted, {refused} refused"
    );
}

/// How long slots live follows predicted times, so rates decide by a few percent what fits; and a batch's first or
/// last part may need more than a steady step.
#[test]
fn a_refusal_needs_more_than_is_allowed() {
    let (mut fitted, mut refused) = (0, 0);
    for (blocks, clip) in [(4, Clip::Exact), (3, Clip::Previous)] {
        let w = workload(blocks, 1);
        for slower in [1.0, 60.0] {
            let mut m = machine();
            m.h2d.0 /= slower;
            m.d2h.0 /= slower;
            let under = |device: u64| {
                let budgets = Budgets {
                    device: Bytes(device),
                    host: Bytes(64 << 20),
                    disk: Bytes(0),
                };
                let request = Request {
                    workload: &w,
                    machine: &m,
                    budgets,
                    clip,
                    pins: Pins::default(),
                };
                (plan(&request), budgets)
            };
            // Nearer and nearer to the least that fits, from both sides.
            let (mut too_small, mut enough) = (1 << 10, 64 << 20);
            while enough - too_small > enough / 200 {
                let device = u64::midpoint(too_small, enough);
                match under(device) {
                    (Ok(p), budgets) => {
                        fitted += 1;
                        enough = device;
                        assert!(p.tier(Tier::Device).planned_bytes <= budgets.device);
                    }
                    (Err(PlanError::Refused(r)), allowed) => {
                        refused += 1;
                        too_small = device;
                        let fits = |t| r.needed.of(t) <= allowed.of(t);
                        assert!(!Tier::ALL.into_iter().all(fits), "{slower} x: {r}");
                    }
                    (Err(e), _) => panic!("{e}"),
                }
            }
        }
    }
    assert!(fitted > 8 && refused > 8, "{fitted}, {refused}");
}

#[test]
fn no_lane_is_busier_than_the_step_and_more_memory_never_slows() {
    let w = workload(6, 1);
    let m = machine();
    let step = |device: u64, m: &Machine| {
        let budgets = Budgets {
            device: Bytes(device),
            host: Bytes(64 << 20),
            disk: Bytes(64 << 20),
        };
        let request = Request {
            workload: &w,
            machine: m,
            budgets,
            clip: Clip::Exact,
            pins: Pins::default(),
        };
        let p = plan(&request).expect("fits");
        for lane in &p.prediction.lanes {
            assert!(lane.busy_seconds.0 <= p.prediction.step_seconds.0 * (1.0 + 1e-9));
        }
        p.prediction.step_seconds.0
    };
    let small = step(800 << 10, &m);
    let large = step(64 << 20, &m);
    assert!(large < small, "{large} < {small}");
}

/// A tensor that costs nothing to compute, from one that is not saved and costs a product, is kept by a
/// block that recomputes only what is cheap.
#[test]
fn light_blocks_run_no_product_again() {
    let mut w = workload(3, 1);
    for unit in w.units.iter_mut().filter(|u| u.kind == UnitKind::Block) {
        let backward = unit.backward.iter_mut().filter(|op| op.name == "act'");
        for op in backward {
            op.operands.retain(|o| o.what != What::Local(LocalId(2)));
        }
        assert_eq!(
            unit.saved(),
            [LocalId(1), LocalId(3)],
            "the product's own result is not saved"
        );
    }
    let mut c = Choice::resident(&w);
    c.keep_blocks(&w, 0, 3);
    assert_eq!(c.kept_blocks(&w), (0, 3));
    let p = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    let again = p
        .part(PartName::Steady)
        .iter()
        .filter_map(|t| match t.work {
            Work::Compute {
                unit,
                phase: Phase::Recompute,
                op,
                ..
            } => Some(&w.units[unit as usize].forward[op]),
            _ => None,
        });
    let names: Vec<&str> = again.clone().map(|op| op.name.as_str()).collect();
    assert_eq!(names, ["norm", "norm", "norm"]);
    assert!(again.clone().all(|op| op.flops.0 == 0.0));
}

/// Forward of a block that keeps everything leaves its saved tensors; backward of the last one adds
/// gradients to those of all.
#[test]
fn the_peak_of_activations_is_counted() {
    let (w, m) = (workload(3, 1), machine());
    let peak = |kept: usize| {
        let mut c = Choice::resident(&w);
        c.keep_last_blocks(&w, kept);
        let p = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &m);
        let device = p.tier(Tier::Device);
        assert!(device.activations <= device.transient);
        assert!(device.activations.0 > 0);
        device.activations.0
    };
    let unit = &w.units[1];
    let saved = unit.saved().into_iter().map(|i| unit.tensors[i].bytes.0);
    let saved: u64 = saved.sum();
    // At the turn the last block's are there, kept or computed again; of the two below only kept ones.
    assert_eq!(peak(3) - peak(1), 2 * saved);
    assert_eq!(peak(3) - peak(2), saved);
}

/// What the user lets the planner do with saved tensors is what plans do with them.
#[test]
fn pinned_activations_stay_move_or_are_computed_again() {
    let (w, m) = (workload(6, 1), machine());
    let whole = crate::testing::needs(&w, &Choice::resident(&w), Clip::Exact)[0];
    let planned = |activations: Activations, share: f64| {
        let pins = Pins {
            activations,
            ..Pins::default()
        };
        let request = Request {
            workload: &w,
            machine: &m,
            budgets: Budgets {
                device: Bytes((whole as f64 * share) as u64),
                host: Bytes(64 << 20),
                disk: Bytes::ZERO,
            },
            clip: Clip::Exact,
            pins,
        };
        plan(&request).map(|p| p.choice.saved_tensors())
    };
    let [stay, moved, again] = planned(Activations::Keep, 0.5).expect("fits");
    assert!(stay > 0 && moved + again == 0, "{stay} {moved} {again}");
    let [_, moved, again] = planned(Activations::Recompute, 0.15).expect("fits");
    assert!(again > 0 && moved == 0, "{moved} {again}");
    let [_, moved, again] = planned(Activations::Offload, 0.15).expect("fits");
    assert!(moved > 0 && again == 0, "{moved} {again}");
    assert!(planned(Activations::Keep, 0.05).is_err());
    assert!(planned(Activations::Auto, 0.15).is_ok());
}

/// Neither with everything on the host nor with everything on the device: some of each.
#[test]
fn state_that_neither_tier_holds_alone_is_split() {
    let (w, m) = (workload(6, 1), machine());
    let n = w.units.len();
    let mut c = Choice::resident(&w);
    let all_on_device = crate::testing::needs(&w, &c, Clip::Exact);
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Host; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.keep_last_blocks(&w, 0);
    let all_on_host = crate::testing::needs(&w, &c, Clip::Exact);
    let request = |device: u64| Request {
        workload: &w,
        machine: &m,
        budgets: Budgets {
            device: Bytes(device),
            host: Bytes(all_on_host[1] * 7 / 10),
            disk: Bytes::ZERO,
        },
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    assert!(matches!(
        plan(&request(all_on_host[0])),
        Err(PlanError::Refused(_))
    ));
    let between = u64::midpoint(all_on_host[0], all_on_device[0]);
    let p = plan(&request(between)).expect("a part on each");
    let resident = p.choice.optimizer.iter().filter(|&&t| t == Tier::Device);
    assert!((1..n).contains(&resident.count()), "{:?}", p.choice);
}

#[test]
fn bytes_written_are_at_least_the_state_that_lives_on_disk() {
    let w = workload(4, 1);
    let mut c = Choice::resident(&w);
    let n = w.units.len();
    c.weights = vec![Tier::Disk; n];
    c.optimizer = vec![Tier::Disk; n];
    c.update = vec![Processor::Host; n];
    let p = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    assert!(p.prediction.disk_bytes_written.0 >= 12 * w.parameters());
    let disk = &p.prediction.lanes[LaneKind::Disk as usize];
    assert!(disk.busy_seconds.0 > 0.0);
}

/// End of four steady steps when nothing is shared: every task begins when those it waits for and
/// the one before it on its lane have ended, and when the part before the last is over.
fn path(plan: &Plan, w: &lowtide_workload::Workload, m: &Machine) -> (f64, f64) {
    let tasks = plan.part(PartName::Steady);
    let alone = crate::simulate::alone(plan, w, m, PartName::Steady);
    let seam = plan.seam(PartName::Steady, PartName::Steady);
    let mut across = List::from(vec![Vec::new(); tasks.len()]);
    for &(to, from) in seam.iter().flat_map(|s| &s.edges) {
        across[to].push(from);
    }
    let mut lane_end: PerLane<f64> = PerLane::default();
    let mut ends: Vec<List<TaskId, f64>> = Vec::new();
    for k in 0..4 {
        let two_before = match k {
            0 | 1 => 0.0,
            _ => ends[k - 2].iter().copied().fold(0.0, f64::max),
        };
        let mut here: List<TaskId, f64> = List::default();
        for (i, task) in tasks.pairs() {
            let lane = task.lane;
            let mut start = lane_end[lane].max(two_before);
            for &d in &task.after {
                start = start.max(here[d]);
            }
            if k > 0 {
                for &d in &across[i] {
                    start = start.max(ends[k - 1][d]);
                }
            }
            lane_end[lane] = start + alone[i].0;
            here.push(lane_end[lane]);
        }
        ends.push(here);
    }
    let mut busy: PerLane<f64> = PerLane::default();
    for (task, seconds) in tasks.iter().zip(&alone) {
        busy[task.lane] += 4.0 * seconds.0;
    }
    let end = |part: &List<TaskId, f64>| part.iter().copied().fold(0.0, f64::max);
    let longest = ends.iter().map(end).fold(0.0, f64::max);
    (longest, busy.values().copied().fold(0.0, f64::max))
}

#[test]
fn no_simulated_time_is_below_its_bounds() {
    let shared = machine();
    let mut alone = machine();
    alone.shared.clear();
    if let Some(d) = &mut alone.disk {
        // Reads and writes at once, each as fast as alone.
        (d.write, d.mixed) = (d.read, lowtide_units::BytesPerSecond(d.read.0 * 2.0));
    }
    for accumulate in [1, 2] {
        for (i, (w, c)) in every_choice(workload(2, accumulate))
            .into_iter()
            .enumerate()
        {
            if i % 5 != 0 {
                continue;
            }
            let clip = CLIPS[i / 5 % 3];
            for m in [&shared, &alone] {
                let plan = build(&w, &c, clip, Budgets::UNLIMITED, m);
                let run = crate::simulate::simulate(&plan, &w, m, &[PartName::Steady; 4]);
                let simulated = (0..4).map(|k| run.end(k)).fold(0.0, f64::max);
                let (path, lane) = path(&plan, &w, m);
                let bound = path.max(lane) * (1.0 - 1e-9);
                assert!(simulated >= bound, "{simulated} < {bound} {c:?}");
                if m.shared.is_empty() {
                    assert!(
                        simulated <= path * (1.0 + 1e-6),
                        "{simulated} > {path} {c:?}"
                    );
                }
            }
        }
    }
}
