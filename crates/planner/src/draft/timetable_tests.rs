//! Copies stand where they must, seen from the tasks of plans alone: these tests share no times with what
//! placed them.

use lowtide_units::{Bytes, BytesPerSecond, Seconds};
use lowtide_workload::Workload;

use super::{Draft, Rates, draft};
use crate::build::build;
use crate::check::check;
use crate::choice::{Ahead, Budgets, Choice, Clip, Processor, Saved};
use crate::machine::{Machine, NetRates};
use crate::plan::{Lane, PartName, Plan, Tensor, Tier, Use, Work};
use crate::simulate::alone;
use crate::testing::{machine, workload};

const STEADY: &[PartName] = &[PartName::Steady];

/// Everything on the host, saved tensors too: weights and saved tensors share the way back.
fn moved(w: &Workload) -> Choice {
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Host; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.inputs = Tier::Host;
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Host));
    c
}

/// Lanes that do not disturb each other, and links of a speed at which a block's copies take about as long
/// as its operations.
fn apart(link: f64) -> Machine {
    let mut m = machine();
    m.shared.clear();
    m.together.clear();
    (m.h2d, m.d2h) = (BytesPerSecond(link), BytesPerSecond(link));
    m.copy_overhead = Seconds(1e-9);
    m
}

fn planned(w: &Workload, c: &Choice, m: &Machine) -> Plan {
    // Without clipping nothing of the batch before is left to do: the gpu waits for copies alone.
    let plan = build(w, c, Clip::None, Budgets::UNLIMITED, m);
    check(&plan, w, Clip::None).expect("the plan is right");
    plan
}

/// A copy to the device: when it stands in the gpu's order, when it may begin, when it must have ended, and how
/// long it takes.
struct Fetch {
    tensor: Tensor,
    stands: f64,
    earliest: f64,
    deadline: f64,
    seconds: f64,
    /// Operations of the gpu between it and its use.
    ahead: usize,
}

/// The copies to the device of a steady step in which the gpu never waits.
fn fetches(plan: &Plan, w: &Workload, m: &Machine) -> Vec<Fetch> {
    let tasks = &**plan.part(PartName::Steady);
    let times = &*alone(plan, w, m, PartName::Steady);
    // Start and end on the gpu, or of what stands between two of its operations.
    let mut now = 0.0;
    let mut at: Vec<(f64, f64)> = Vec::new();
    for (task, time) in tasks.iter().zip(times) {
        let on_gpu = task.lane == Lane::GPU;
        at.push((now, if on_gpu { now + time.0 } else { now }));
        now = at.last().expect("just pushed").1;
    }
    let mut found = Vec::new();
    for (i, task) in tasks.iter().enumerate() {
        let of_use = matches!(
            plan.slots[task.args[0].slot].tensor,
            Tensor::Weight(_) | Tensor::Local(..)
        );
        if task.lane != Lane::H2D || !of_use {
            continue;
        }
        let (from, to) = (task.args[0].slot, task.args[1].slot);
        let tensor = plan.slots[to].tensor;
        let on_gpu = |t: usize| tasks[t].lane == Lane::GPU;
        let uses = |t: usize| tasks[t].args.iter().any(|a| a.slot == to);
        let used = (i + 1..tasks.len())
            .find(|&t| on_gpu(t) && uses(t))
            .expect("it is used");
        // It was written where it comes from, and used in another slot, before.
        let holds = |t: usize| {
            tasks[t]
                .args
                .iter()
                .any(|a| plan.slots[a.slot].tensor == tensor)
        };
        let last = (0..i).rev().find(|&t| on_gpu(t) && holds(t));
        let written = (0..i).rev().find(|&t| {
            let mut args = tasks[t].args.iter();
            args.any(|a| a.slot == from && a.access != Use::Read)
        });
        let gone = written.map_or(0.0, |t| at[t].0 + times[t].0);
        found.push(Fetch {
            tensor,
            stands: at[i].0,
            earliest: last.map_or(0.0, |t| at[t].1).max(gone),
            deadline: at[used].0,
            seconds: times[i].0,
            ahead: (i..used).filter(|&t| on_gpu(t)).count(),
        });
    }
    found
}

/// By how much the copy that is latest stands behind the last moment at which its lane could begin with it,
/// all deadlines of the lane met.
fn latest_by(plan: &Plan, w: &Workload, m: &Machine) -> (f64, Option<Tensor>) {
    let mut all = fetches(plan, w, m);
    // Of those with one deadline the last in the lane's order ends last.
    all.reverse();
    all.sort_by(|a, b| b.deadline.total_cmp(&a.deadline));
    let mut free = f64::INFINITY;
    let mut worst = (0.0, None);
    for f in &all {
        free = free.min(f.deadline) - f.seconds;
        // Where the lane is full, or what it moves is not there yet, nothing can be in time.
        let must = free.max(f.earliest).max(0.0);
        if f.stands - must > worst.0 {
            worst = (f.stands - must, Some(f.tensor));
        }
    }
    worst
}

#[test]
fn a_fetch_begins_in_time_where_its_lane_allows_it() {
    let mut fetched = 0;
    for micro_batches in [1, 3] {
        let w = workload(6, micro_batches);
        for link in [2e8, 5e8, 1e9, 4e9] {
            let m = apart(link);
            for carry in [Tier::Device, Tier::Host] {
                let c = Choice { carry, ..moved(&w) };
                let plan = planned(&w, &c, &m);
                let (by, which) = latest_by(&plan, &w, &m);
                assert!(by < 1e-9, "{link}: {by} s late, {which:?}");
                let all = fetches(&plan, &w, &m);
                fetched += all.iter().filter(|f| f.ahead > 0).count();
                // Both kinds are there, or nothing could be queued behind the other.
                assert!(all.iter().any(|f| matches!(f.tensor, Tensor::Weight(_))));
                assert!(link < 1e9 || all.iter().any(|f| matches!(f.tensor, Tensor::Local(..))));
            }
        }
    }
    assert!(fetched > 200, "{fetched} copies ahead of their use");
}

#[test]
fn nothing_ahead_is_just_in_time() {
    let w = workload(4, 2);
    let m = apart(1e9);
    let c = Choice {
        ahead: Ahead::NONE,
        ..moved(&w)
    };
    let plan = planned(&w, &c, &m);
    let all = fetches(&plan, &w, &m);
    assert!(all.len() > 20);
    for f in all {
        assert_eq!(f.ahead, 0, "{:?}", f.tensor);
    }
}

/// The most bytes of a tier that are taken at once in plan order.
fn most(d: &Draft, tier: Tier) -> u64 {
    let n = d.parts[PartName::Steady].len();
    let here = d.slots.iter().filter(|s| s.tier == tier);
    let (stay, pass): (Vec<_>, Vec<_>) = here.partition(|s| s.persistent);
    let at = |t: usize| -> u64 {
        let live = pass.iter().filter(|s| s.birth <= t && t <= s.death);
        live.map(|s| s.bytes).sum()
    };
    let most = (0..n).map(at).max().unwrap_or(0);
    most + stay.iter().map(|s| s.bytes).sum::<u64>()
}

#[test]
fn what_is_ahead_or_behind_its_use_does_not_overrun_the_device() {
    let w = workload(6, 2);
    let m = apart(4e8);
    let rates = Rates::new(&w, &m);
    let with = |device: u64| {
        let mut c = moved(&w);
        c.ahead.device = Bytes(device);
        // The same tensors leave the device as with nothing ahead.
        most(&draft(&w, &rates, &c, Clip::None, STEADY), Tier::Device)
    };
    let (least, free) = (with(1), with(u64::MAX >> 2));
    assert!(
        free > least * 3 / 2,
        "{free} of {least}: something is ahead"
    );
    let mut before = least;
    for tenth in 1..10 {
        let line = least + (free - least) * tenth / 10;
        let taken = with(line);
        assert!(
            taken <= line,
            "{taken} taken, {line} allowed, {least} needed"
        );
        assert!(taken >= before, "{taken} taken of {line}, {before} of less");
        before = taken;
    }
    assert!(before > least, "nothing of what is allowed is used");
}

#[test]
fn what_is_read_ahead_does_not_overrun_the_host() {
    let w = workload(6, 2);
    let mut m = apart(4e9);
    m.disk.as_mut().expect("a drive").latency = Seconds(1e-9);
    let rates = Rates::new(&w, &m);
    let with = |host: u64, updates: u64| {
        let mut c = moved(&w);
        let n = w.units.len();
        (c.weights, c.optimizer) = (vec![Tier::Disk; n], vec![Tier::Disk; n]);
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
        (c.ahead.host, c.ahead.updates) = (Bytes(host), Bytes(updates));
        let clips = [Clip::None, Clip::Exact];
        clips.map(|clip| most(&draft(&w, &rates, &c, clip, STEADY), Tier::Host))
    };
    let (least, free) = (with(0, 0), with(1 << 40, 1 << 40));
    for k in 0..2 {
        assert!(free[k] > least[k] * 3 / 2, "{free:?} of {least:?}");
        for bytes in [100_000, 200_000, 400_000] {
            let taken = [with(bytes, 0), with(0, bytes), with(bytes, bytes)].map(|t| t[k]);
            // What waits to be used and what waits to be written, each so many bytes, and one that is larger
            // alone.
            let one = 500_000;
            for (i, &t) in taken.iter().enumerate() {
                let pools = if i == 2 { 2 } else { 1 };
                let allowed = least[k] + pools * 2 * bytes.max(one);
                assert!(
                    t <= allowed,
                    "{t} taken, {allowed} allowed, {least:?} needed"
                );
            }
        }
    }
}

#[test]
fn a_slot_lives_until_its_copy_is_predicted_to_have_ended() {
    let w = workload(4, 1);
    // On a slow link a copy takes as long as several operations.
    let slots = live_until_moved(&w, moved(&w), &apart(3e8), Lane::D2H);
    assert!(slots > 5, "{slots} slots outlive their last task");
}

/// Else the next block's gradient gets the bytes of one that is being exchanged, and the gpu waits for every exchange.
#[test]
fn a_slot_lives_until_its_exchange_is_predicted_to_have_ended() {
    let w = Workload {
        ranks: 2,
        ..workload(4, 1)
    };
    let mut m = apart(3e8);
    m.net = Some(NetRates {
        ranks: 2,
        rate: BytesPerSecond(3e8),
        latency: Seconds(1e-9),
        hosts: 1,
    });
    let slots = live_until_moved(&w, Choice::resident(&w), &m, Lane::NET);
    assert!(slots > 1, "{slots} slots outlive their last task");
}

/// How many slots live on behind the last task that uses them, each of them until that task of `lane` has ended.
fn live_until_moved(w: &Workload, mut c: Choice, m: &Machine, lane: Lane) -> usize {
    let rates = Rates::new(w, m);
    c.ahead.device = Ahead::UNLIMITED.device;
    c.ahead.updates = Ahead::UNLIMITED.updates;
    let d = draft(w, &rates, &c, Clip::None, STEADY);
    let plan = planned(w, &c, m);
    let tasks = &*d.parts[PartName::Steady];
    let times = &*alone(&plan, w, m, PartName::Steady);
    assert_eq!(tasks.len(), times.len());
    let (mut now, mut down, mut looked) = (0.0, 0.0f64, 0);
    let mut starts = vec![0.0; tasks.len()];
    for (i, task) in tasks.iter().enumerate() {
        starts[i] = now;
        if task.lane == Lane::GPU {
            now += times[i].0;
        }
    }
    for (i, task) in tasks.iter().enumerate().filter(|(_, t)| t.lane == lane) {
        // It begins when what it reads is written.
        let writes = |t: &crate::plan::Task| {
            let mut args = t.args.iter();
            args.any(|a| a.slot == task.args[0].slot && a.access != Use::Read)
        };
        let writer = (0..i).rev().find(|&t| writes(&tasks[t]));
        let written = writer.map_or(0.0, |t| starts[t] + times[t].0);
        down = down.max(written) + times[i].0;
        let slot = &d.slots[task.args[0].slot];
        let moves = matches!(task.work, Work::Copy | Work::AllToAll { .. });
        if slot.persistent || slot.tier != Tier::Device || !moves {
            continue;
        }
        // The first operation after its death begins when the copy has ended.
        let next = (slot.death + 1..tasks.len()).find(|&t| tasks[t].lane == Lane::GPU);
        if let Some(next) = next {
            assert!(
                starts[next] >= down - 1e-9,
                "{:?}: {} of {down}",
                slot.tensor,
                starts[next]
            );
            looked += usize::from(slot.death > i);
        }
    }
    looked
}

#[test]
fn a_tensor_moves_in_a_pause_that_is_long_enough_in_seconds() {
    let w = workload(4, 1);
    let moves = |link: f64, c: &Choice| {
        let plan = planned(&w, c, &apart(link));
        let tasks = plan.part(PartName::Steady).iter();
        let down = tasks.filter(|t| t.lane == Lane::D2H);
        let local = |t: &&crate::plan::Task| matches!(plan.slots[t.args[0].slot].tensor, Tensor::Local(u, ..) if (1..5).contains(&u));
        down.filter(local).count()
    };
    let c = moved(&w);
    let (slow, fast) = (moves(1e6, &c), moves(1e10, &c));
    assert_eq!(slow, 0, "no pause is as long as such a copy");
    // Four blocks of three saved tensors and an output each; those of the last one stay where the pause is short.
    assert!(fast >= 12, "{fast}");
    // Just in time whatever may go goes.
    let c = Choice {
        ahead: Ahead::NONE,
        ..c
    };
    assert!(moves(1e6, &c) >= 12);
}

#[test]
fn what_units_hand_over_leaves_the_device_only_if_it_is_to() {
    let w = workload(3, 4);
    let copies = |carry: Tier| {
        let c = Choice { carry, ..moved(&w) };
        let plan = planned(&w, &c, &apart(1e10));
        let all = fetches(&plan, &w, &apart(1e10));
        let output = |f: &&Fetch| matches!(f.tensor, Tensor::Local(u, i, _) if w.units[u as usize].output == Some(i));
        let gradient = |f: &&Fetch| matches!(f.tensor, Tensor::Local(u, i, _) if w.units[u as usize].input_of_gradient(i).is_some());
        [
            all.iter().filter(output).count(),
            all.iter().filter(gradient).count(),
        ]
    };
    let (stay, go) = (copies(Tier::Device), copies(Tier::Host));
    assert_eq!(stay[1], 0);
    assert!(go[0] > stay[0] && go[1] > 0, "{stay:?} {go:?}");
}

/// Time places, edges prove: a slot that is used again because its copy must have ended by then is refused
/// where nothing says that it has.
#[test]
fn a_slot_that_is_used_again_by_predicted_time_alone_is_refused() {
    let w = workload(4, 1);
    let plan = planned(&w, &moved(&w), &apart(1e9));
    let mut tried = 0;
    for (i, task) in plan.part(PartName::Steady).pairs() {
        for (k, &before) in task.after.iter().enumerate() {
            let copy = &plan.part(PartName::Steady)[before];
            let reads = &plan.slots[copy.args[0].slot];
            // The task takes bytes from which a copy still reads.
            let again = copy.lane == Lane::D2H
                && task.lane != Lane::H2D
                && task
                    .args
                    .iter()
                    .all(|a| a.slot != copy.args[0].slot && a.slot != copy.args[1].slot)
                && reads.tier == Tier::Device;
            if !again {
                continue;
            }
            let mut broken = plan.clone();
            broken.parts[PartName::Steady][i].after.remove(k);
            check(&broken, &w, Clip::None).expect_err("nothing says that the copy has ended");
            tried += 1;
        }
    }
    assert!(tried > 3, "{tried} slots are used again");
}
