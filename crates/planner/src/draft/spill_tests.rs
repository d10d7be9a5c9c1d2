//! What waits on the host in place of a drive, seen from the tasks of plans.

use lowtide_units::{Bytes, BytesPerSecond, Seconds};
use lowtide_workload::Workload;

use crate::build::build;
use crate::check::check;
use crate::choice::{Ahead, Budgets, Choice, Clip, Saved};
use crate::machine::Machine;
use crate::plan::{PartName, Plan, SlotId, Tensor, Tier, Work};
use crate::simulate::alone;
use crate::testing::{machine, workload};

/// Saved tensors on drives that are so fast, and nothing else away from the device.
fn planned(w: &Workload, drive: f64, host: u64) -> Plan {
    let mut m = machine();
    m.shared.clear();
    (m.copy_overhead, m.matmul_bf16) = (Seconds(1e-9), lowtide_units::FlopsPerSecond(2e10));
    let disk = m.disk.as_mut().expect("a drive");
    (disk.read, disk.write) = (BytesPerSecond(drive), BytesPerSecond(drive));
    (disk.mixed, disk.latency) = (BytesPerSecond(drive), Seconds(1e-9));
    let mut c = Choice::resident(w);
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
    c.ahead = Ahead {
        host: Bytes(host),
        ..Ahead::UNLIMITED
    };
    made(w, &c, &m)
}

fn made(w: &Workload, c: &Choice, m: &Machine) -> Plan {
    let plan = build(w, c, Clip::None, Budgets::UNLIMITED, m);
    check(&plan, w, Clip::None).expect("the plan is right");
    plan
}

/// Of a plan's steady part: local tensors that are written to a drive, those that are read from it, and those
/// that wait on the host, in the order in which they are fetched, with their bytes.
#[derive(Default)]
struct Ways {
    written: Vec<Tensor>,
    read: Vec<Tensor>,
    waiting: Vec<(Tensor, u64)>,
}

fn ways(plan: &Plan) -> Ways {
    let mut ways = Ways::default();
    let local = |t: Tensor| matches!(t, Tensor::Local(..));
    for task in plan.part(PartName::Steady) {
        let Some(arg) = task.args.first() else {
            continue;
        };
        let slot = &plan.slots[arg.slot];
        match task.work {
            Work::Write if local(slot.tensor) => ways.written.push(slot.tensor),
            Work::Read if local(slot.tensor) => ways.read.push(slot.tensor),
            Work::Copy
                if local(slot.tensor)
                    && slot.tier == Tier::Host
                    && !ways.read.contains(&slot.tensor) =>
            {
                ways.waiting.push((slot.tensor, arg.bytes));
            }
            _ => {}
        }
    }
    ways
}

#[test]
fn what_a_drive_is_too_slow_for_waits_on_the_host() {
    let w = workload(8, 2);
    let mut seen = [false; 2];
    let mut before = usize::MAX;
    for drive in [1e12, 1e9, 4e8, 3.5e8, 3e8, 2.5e8, 2e8, 1.5e8, 1e8] {
        let ways = ways(&planned(&w, drive, 1 << 40));
        // What is not read is not written: neither for nothing.
        let (mut read, mut written) = (ways.read.clone(), ways.written.clone());
        read.sort_unstable();
        written.sort_unstable();
        assert_eq!(read, written, "{drive}");
        seen[0] |= !written.is_empty() && ways.waiting.is_empty();
        seen[1] |= !written.is_empty() && !ways.waiting.is_empty();
        assert!(
            written.len() <= before,
            "{drive}: more written by a slower drive"
        );
        before = written.len();
    }
    assert_eq!(seen, [true; 2], "all are written, or some of them");
}

#[test]
fn a_tensor_twice_on_a_tier_is_found() {
    let w = workload(4, 2);
    let good = planned(&w, 1e12, 1 << 40);
    let tasks = good.part(PartName::Steady);
    let local = |s: SlotId| matches!(good.slots[s].tensor, Tensor::Local(..));
    let wrong = |plan: &Plan| {
        let fault = check(plan, &w, Clip::None).expect_err("twice");
        assert!(fault.what.contains("twice"), "{fault}");
    };
    // It is read from the drive while the slot from which it was written still has it, and is fetched from there.
    let reads = |t: &&crate::plan::Task| t.work == Work::Read && local(t.args[0].slot);
    let read = tasks.iter().find(reads).expect("something is read");
    let (extent, staged) = (read.args[0].slot, read.args[1].slot);
    let writes = |t: &&crate::plan::Task| t.work == Work::Write && t.args[1].slot == extent;
    let first = tasks.iter().find(writes).expect("it was written").args[0].slot;
    let mut broken = good.clone();
    for task in broken.parts[PartName::Steady].iter_mut() {
        if task.work == Work::Copy && task.args[0].slot == staged {
            task.args[0].slot = first;
        }
    }
    wrong(&broken);
    // Two extents of one content.
    let mut extents: Vec<SlotId> = tasks
        .iter()
        .filter(|t| t.work == Work::Write && local(t.args[0].slot))
        .map(|t| t.args[1].slot)
        .collect();
    extents.dedup();
    let mut broken = good.clone();
    broken.slots[extents[1]].tensor = good.slots[extents[0]].tensor;
    wrong(&broken);
}

#[test]
fn what_waits_is_needed_first_and_has_room() {
    let w = workload(8, 2);
    let drive = 3e8;
    let free = ways(&planned(&w, drive, 1 << 40));
    let whole: u64 = free.waiting.iter().map(|w| w.1).sum();
    assert!(free.waiting.len() >= 4, "{}", free.waiting.len());
    assert!(ways(&planned(&w, drive, 0)).waiting.is_empty());
    for share in [1, 2, 3] {
        let most = whole * share / 4;
        let plan = planned(&w, drive, most);
        let some = ways(&plan);
        let bytes: u64 = some.waiting.iter().map(|w| w.1).sum();
        assert!(bytes <= most && bytes > 0, "{bytes} of {most}");
        // Those that would have to be read first are the ones that wait.
        let n = some.waiting.len();
        let first: Vec<Tensor> = free.waiting[..n].iter().map(|w| w.0).collect();
        let got: Vec<Tensor> = some.waiting.iter().map(|w| w.0).collect();
        assert_eq!(got, first, "{share} quarters");
    }
}

/// A read in a plan never begins before its write is predicted to have ended without the gpu waiting for it, where
/// all may wait on the host.
#[test]
fn a_step_waits_for_no_drive_where_the_host_has_room() {
    let w = workload(8, 2);
    for drive in [1e12, 4e8, 3e8, 2e8] {
        let plan = planned(&w, drive, 1 << 40);
        let mut m = machine();
        m.shared.clear();
        (m.copy_overhead, m.matmul_bf16) = (Seconds(1e-9), lowtide_units::FlopsPerSecond(2e10));
        let gpu: f64 = plan
            .part(PartName::Steady)
            .iter()
            .zip(alone(&plan, &w, &m, PartName::Steady))
            .filter(|(t, _)| t.lane == crate::plan::Lane::GPU)
            .map(|(_, s)| s.0)
            .sum();
        let step = plan.prediction.step_seconds.0;
        assert!(step <= gpu * 1.1, "{drive}: {step} of {gpu}");
    }
}
