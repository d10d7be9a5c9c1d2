//! Transfers between drives and the device's memory that pass no host memory: what a plan of them is, what the checker
//! refuses, and when the search takes them.

use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::Workload;

use crate::build::build;
use crate::check::check;
use crate::choice::{Activations, Ahead, Budgets, Choice, Clip, Direct, Processor, Saved};
use crate::explain::explain;
use crate::machine::{DirectRates, Machine};
use crate::mutants::mutants;
use crate::plan::{Lane, LaneKind, PartName, Plan, Task, Tensor, Tier, Work};
use crate::search::{Pins, Request, plan};
use crate::simulate::{alone, simulate};
use crate::testing::{machine, workload};
use crate::tests::{CLIPS, every_choice};

const WAYS: [Direct; 3] = [
    Direct::BOTH,
    Direct {
        read: true,
        write: false,
    },
    Direct {
        read: false,
        write: true,
    },
];

/// The tests' machine with drives that reach the device at these rates.
fn reaching(read: f64, write: f64) -> Machine {
    let mut m = machine();
    let disk = m.disk.as_mut().expect("a drive");
    disk.direct = Some(DirectRates {
        read: BytesPerSecond(read),
        write: BytesPerSecond(write),
        mixed: BytesPerSecond(1.2 * read.min(write)),
        latency: Seconds(1e-5),
        most_memory: Bytes(640 << 10),
    });
    m
}

/// Weights on the drives, read straight from there; of the saved tensors each second one is there too.
fn on_drives(w: &Workload, direct: Direct) -> Choice {
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.weights = vec![Tier::Disk; n];
    c.optimizer = vec![Tier::Disk; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.inputs = Tier::Disk;
    for (i, saved) in c.saved.iter_mut().flatten().enumerate() {
        *saved = [Saved::Disk, Saved::Keep][i % 2];
    }
    c.ahead = Ahead::NONE;
    c.direct = direct;
    c
}

fn steady<'p>(
    plan: &'p Plan,
    which: impl Fn(&Task) -> bool + 'p,
) -> impl Iterator<Item = &'p Task> {
    let tasks = plan.part(PartName::Steady).iter();
    tasks.filter(move |t| which(t))
}

#[test]
fn every_combination_with_direct_transfers_passes_the_checker() {
    let m = reaching(2e9, 1e9);
    let (mut seen, mut moved) = (0, [0; 2]);
    for accumulate in [1, 3] {
        let all = every_choice(workload(2, accumulate)).into_iter();
        for (i, (w, mut c)) in all.enumerate() {
            // A sixth of those that have anything on the drives.
            let drives = c.weights[0] == Tier::Disk
                || [c.inputs, c.gradients[0]].contains(&Tier::Disk)
                || c.saved.iter().flatten().any(|&s| s == Saved::Disk);
            if !drives || i % 6 != 0 {
                continue;
            }
            c.direct = WAYS[i / 6 % 3];
            if accumulate == 3 && i % 4 == 0 {
                (c.round, c.order) = (2, crate::choice::LoopOrder::LayerMajor);
            }
            let clip = CLIPS[i / 18 % 3];
            let plan = build(&w, &c, clip, Budgets::UNLIMITED, &m);
            if let Err(fault) = check(&plan, &w, clip) {
                panic!("{fault}\n{c:?} {clip:?} M {accumulate}");
            }
            for task in steady(&plan, |t| plan.is_direct(t)) {
                moved[usize::from(task.work == Work::Write)] += 1;
            }
            seen += 1;
        }
    }
    assert!(
        seen > 150 && moved.iter().all(|&n| n > 150),
        "{seen} {moved:?}"
    );
}

/// What goes straight has no copy on a link and no slot on the host; everything else is as it was.
#[test]
fn a_direct_transfer_takes_neither_link_nor_host() {
    let (w, m) = (workload(2, 1), reaching(2e9, 1e9));
    let plan_of = |direct| {
        let c = on_drives(&w, direct);
        let plan = build(&w, &c, Clip::None, Budgets::UNLIMITED, &m);
        check(&plan, &w, Clip::None).expect("a right plan");
        plan
    };
    let (bounced, straight) = (plan_of(Direct::NONE), plan_of(Direct::BOTH));
    assert!(!bounced.reaches_device() && straight.reaches_device());
    assert!(!explain(&bounced, &w, true).contains("without host memory"));
    assert!(explain(&straight, &w, true).contains("without host memory"));
    let local = |plan: &Plan, tier| {
        let there = plan
            .slots
            .iter()
            .filter(|s| s.tier == tier && !s.persistent);
        there
            .filter(|s| matches!(s.tensor, Tensor::Local(..)))
            .count()
    };
    assert!(local(&bounced, Tier::Host) > 0 && local(&bounced, Tier::Disk) > 0);
    assert!(local(&straight, Tier::Host) < local(&bounced, Tier::Host));
    assert_eq!(local(&straight, Tier::Disk), local(&bounced, Tier::Disk));
    let lane = |plan: &Plan, kind: LaneKind| plan.prediction.lanes[kind as usize].bytes.0;
    let of = |plan: &Plan, work: Work| -> u64 {
        let own = steady(plan, |t| t.work == work && plan.is_direct(t));
        own.map(|t| t.args[0].bytes).sum()
    };
    let (read, written) = (of(&straight, Work::Read), of(&straight, Work::Write));
    assert!(read > 0 && written > 0);
    // To the byte: sectors are whole here.
    let (up, down) = (LaneKind::H2d, LaneKind::D2h);
    assert_eq!(lane(&bounced, up) - lane(&straight, up), read);
    assert_eq!(lane(&bounced, down) - lane(&straight, down), written);
    let disk = LaneKind::Disk;
    assert_eq!(lane(&bounced, disk), lane(&straight, disk));
    // Each at its own rate, and state at that of transfers which pass the host.
    let times = alone(&straight, &w, &m, PartName::Steady);
    for (task, time) in straight.part(PartName::Steady).iter().zip(&times) {
        let (rate, latency) = match (task.work, straight.is_direct(task)) {
            (Work::Read, true) => (2e9, 1e-5),
            (Work::Write, true) => (1e9, 1e-5),
            (Work::Read, false) => (2e9, 1e-4),
            (Work::Write, false) => (1e9, 1e-4),
            _ => continue,
        };
        let want = task.args[0].bytes as f64 / rate + latency;
        assert!((time.0 - want).abs() < 1e-12, "{task:?}: {time}");
    }
    // Each way by itself.
    for way in &WAYS[1..] {
        let plan = plan_of(*way);
        assert_eq!(of(&plan, Work::Read) > 0, way.read);
        assert_eq!(of(&plan, Work::Write) > 0, way.write);
    }
}

/// However the drives' mixed rates compare, no transfer is timed faster than it was measured alone.
#[test]
fn no_direct_transfer_is_faster_than_alone() {
    let w = workload(2, 1);
    for (host, direct) in [(0.9, 1.5), (1.5, 1.0), (0.6, 2.0)] {
        let mut m = reaching(2e9, 1e9);
        m.together.clear();
        let fair = 2.0 / (1.0 / 2e9 + 1.0 / 1e9);
        let disk = m.disk.as_mut().expect("a drive");
        (disk.read, disk.write) = (BytesPerSecond(2e9), BytesPerSecond(1e9));
        disk.mixed = BytesPerSecond(host * fair);
        disk.direct.as_mut().expect("direct rates").mixed = BytesPerSecond(direct * fair);
        let c = on_drives(&w, Direct::BOTH);
        let plan = build(&w, &c, Clip::None, Budgets::UNLIMITED, &m);
        let times = alone(&plan, &w, &m, PartName::Steady);
        let run = simulate(&plan, &w, &m, &[PartName::Steady]);
        let mut seen = 0;
        for (id, task) in plan.part(PartName::Steady).pairs() {
            if plan.is_direct(task) {
                let (begin, end) = run.parts[0][id];
                let least = times[id].0 * (1.0 - 1e-9);
                assert!(
                    end - begin >= least,
                    "{task:?}: {}, {}",
                    end - begin,
                    times[id]
                );
                seen += 1;
            }
        }
        assert!(seen > 4, "{seen}");
    }
}

#[test]
fn planted_faults_of_direct_transfers_are_found() {
    let (w, m) = (workload(2, 1), reaching(2e9, 1e9));
    let c = on_drives(&w, Direct::BOTH);
    let good = build(&w, &c, Clip::None, Budgets::UNLIMITED, &m);
    check(&good, &w, Clip::None).expect("a right plan");
    let fails = |plan: &Plan, words: &str| {
        let fault = check(plan, &w, Clip::None).expect_err(words);
        assert!(fault.what.contains(words), "{fault} instead of {words}");
    };
    let part = PartName::Steady;
    let first = |work: Work| {
        let found = good
            .part(part)
            .position(|t| t.work == work && good.is_direct(t));
        found.expect("there is one")
    };
    let (read, write) = (first(Work::Read), first(Work::Write));
    // The plan does not say that drives reach the device.
    for (direct, words) in [
        (WAYS[1], "moves from the device to the disk"),
        (WAYS[2], "moves from the disk to the device"),
    ] {
        let mut broken = good.clone();
        broken.choice.direct = direct;
        fails(&broken, words);
    }
    // A slot that begins inside a sector.
    let mut broken = good.clone();
    broken.tiers[0].planned_bytes += Bytes(256);
    let end = |s: &crate::plan::Slot| s.offset + s.bytes;
    for s in &mut broken.slots {
        if s.tier == Tier::Device && !s.persistent {
            s.offset += 256;
        }
    }
    assert!(broken.slots.iter().any(|s| end(s) > 0));
    fails(&broken, "begins inside a sector");
    // On another lane.
    for (task, lane) in [(read, Lane::H2D), (write, Lane::D2H)] {
        let mut broken = good.clone();
        broken.parts[part][task].lane = lane;
        fails(&broken, "runs on lane");
    }
    // Past the host there is no checksum of what is durable.
    let mut durable = on_drives(&w, Direct::BOTH);
    durable.make_durable();
    durable.weights.fill(Tier::Device);
    let mut broken = build(&w, &durable, Clip::None, Budgets::UNLIMITED, &m);
    check(&broken, &w, Clip::None).expect("a right plan");
    let (task, copy) = {
        let next = |t: &Task| {
            let to = t.args.get(1).map(|a| &broken.slots[a.slot])?;
            let weight = matches!(to.tensor, Tensor::Weight(_));
            (t.work == Work::Write && weight && to.version.is_some()).then_some(to.tensor)
        };
        let mut tasks = broken.part(part).pairs();
        let (task, tensor) = tasks
            .find_map(|(i, t)| Some((i, next(t)?)))
            .expect("written");
        let mut copies = broken.homes(tensor).filter(|(_, s)| s.tier == Tier::Device);
        (task, copies.next().expect("it stays on the device").0)
    };
    broken.parts[part][task].args[0].slot = copy;
    fails(&broken, "writes a durable extent past the host");
    // Without any one of its edges, and with any task wrong.
    let mut found = 0;
    for task in good.part(part).ids() {
        let this = &good.part(part)[task];
        if !good.is_direct(this) {
            continue;
        }
        for k in 0..this.after.len() {
            let mut broken = good.clone();
            broken.parts[part][task].after.remove(k);
            assert!(check(&broken, &w, Clip::None).is_err(), "{this:?} {k}");
            found += 1;
        }
    }
    assert!(found > 10, "{found} edges");
    let direct = |t: &Task| good.is_direct(t);
    let mut found = 0;
    for mutant in mutants(&good) {
        let planted = mutant.part == part && direct(&good.part(part)[mutant.task]);
        if !planted || mutant.equivalent(&w).is_some() {
            continue;
        }
        assert!(check(&mutant.plan, &w, Clip::None).is_err(), "{mutant}");
        found += 1;
    }
    assert!(found > 20, "{found} mutants");
}

#[test]
fn the_search_takes_what_is_faster() {
    let w = workload(4, 4);
    let pins = Pins {
        weights: Some(Tier::Host),
        optimizer: Some(Tier::Host),
        gradients: Some(Tier::Host),
        min_gain: 0.0,
        ..Pins::default()
    };
    let machine_with = |direct: Option<(f64, f64)>| {
        let mut m = match direct {
            Some((read, write)) => reaching(read, write),
            None => machine(),
        };
        (m.matmul_bf16, m.copy_overhead) = (FlopsPerSecond(2e10), Seconds(1e-7));
        (m.h2d, m.d2h) = (BytesPerSecond(1.5e8), BytesPerSecond(1.5e8));
        let disk = m.disk.as_mut().expect("a drive");
        (disk.read, disk.write) = (BytesPerSecond(1e9), BytesPerSecond(1e9));
        (disk.mixed, disk.latency) = (BytesPerSecond(1.2e9), Seconds(1e-7));
        if let Some(direct) = &mut disk.direct {
            direct.latency = Seconds(1e-7);
        }
        m
    };
    let planned = |m: &Machine, pins: Pins, host: u64| {
        let request = Request {
            workload: &w,
            machine: m,
            budgets: Budgets {
                device: Bytes(640 << 10),
                host: Bytes(host),
                disk: Bytes(64 << 20),
            },
            clip: Clip::Exact,
            pins,
        };
        plan(&request).expect("it fits")
    };
    // A host on which state has room and little else, and a slow link.
    let again = Pins {
        activations: Activations::Recompute,
        ..pins
    };
    let least = planned(&machine_with(None), again, 64 << 20);
    let host = least.tier(Tier::Host).planned_bytes.0 + (64 << 10);
    let with = |direct, pins| planned(&machine_with(direct), pins, host);
    let seconds = |p: &Plan| p.prediction.step_seconds.0;
    let bounced = with(None, pins);
    assert!(!bounced.reaches_device());
    let fast = with(Some((4e9, 4e9)), pins);
    assert!(fast.reaches_device(), "{:?}", fast.choice.direct);
    assert!(seconds(&fast) < seconds(&bounced) * 0.99);
    // A path that is slower than the way through the host is not taken.
    let slow = with(Some((1e5, 1e5)), pins);
    assert!(!slow.reaches_device() && slow.choice.direct == Direct::NONE);
    assert!(seconds(&slow) <= seconds(&bounced));
    // Where not all of the device's share may be registered, nothing changes.
    let mut least = machine_with(Some((4e9, 4e9)));
    let disk = least.disk.as_mut().expect("a drive");
    disk.direct.as_mut().expect("direct rates").most_memory.0 -= 1;
    let unused = planned(&least, pins, host);
    assert_eq!(unused.choice, bounced.choice);
    // Where it may not be taken, nothing changes.
    let never = Pins {
        bounce: true,
        ..pins
    };
    let unused = with(Some((4e9, 4e9)), never);
    assert_eq!(unused.hash(), bounced.hash());
    assert_eq!(unused.choice, bounced.choice);
}
