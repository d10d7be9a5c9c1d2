//! Tells a plan to a person: what a step takes, which lane rules, what is updated where.

use std::fmt::Write as _;

use lowtide_units::{Bytes, List, Seconds};
use lowtide_workload::{Optimizer, OptimizerName, Workload};
use serde::{Deserialize, Serialize};

use crate::choice::{LoopOrder, Processor};
use crate::machine::Machine;
use crate::plan::{Lane, LaneKind, PieceId, Plan, Tensor, Tier, Work};

/// A lane's name for people: on a machine without a GPU the device's work is the device's.
#[must_use]
pub const fn lane_of(kind: LaneKind, cuda: bool) -> &'static str {
    match kind {
        LaneKind::Gpu if !cuda => "device",
        kind => kind.name(),
    }
}

/// Bytes of the state of each piece, as its home has them.
fn state_bytes(plan: &Plan) -> List<PieceId, u64> {
    let mut all = List::from(vec![0; plan.pieces.len()]);
    for slot in plan.slots.iter().filter(|s| s.persistent) {
        if let Tensor::State(p) = slot.tensor {
            all[p] = slot.bytes;
        }
    }
    all
}

/// Bytes a parameter of state and weight, to a hundredth where rows and columns are among them.
fn bytes_each(plan: &Plan) -> f64 {
    if !plan.optimizer.is_shaped() {
        return plan.optimizer.bytes_each(plan.precision);
    }
    let numbers: u64 = {
        let trained = plan.pieces.iter().filter(|p| !p.frozen);
        trained.map(|p| p.elements).sum()
    };
    let state: u64 = state_bytes(plan).iter().sum();
    let each = plan.precision.size() as f64 + state as f64 / numbers as f64;
    (each * 100.0).round() / 100.0
}

/// What it takes that gradients add up in a tree.
fn tree(plan: &Plan, w: &Workload) -> String {
    let (leaves, more) = (w.leaves, u64::from(w.sums() - 1));
    let bits = format!("gradients add up in a tree: the same bits on up to {leaves} GPUs");
    let trained = || plan.pieces.iter().filter(|p| !p.frozen);
    let largest = trained().map(|p| p.elements).max().unwrap_or(0);
    if more == 0 {
        return format!("{bits}, at no price on as many");
    }
    let numbers: u64 = trained().map(|p| p.elements).sum();
    let (under_way, moved) = (Bytes(4 * largest * more), Bytes(12 * numbers * more));
    format!(
        "{bits}; {} sums of each gradient under way, {under_way} more for the largest, and {moved} of the device's memory \
         read and written a step to add them",
        w.sums()
    )
}

/// What a plan comes to beside the bytes of its tiers: what a step is predicted to take, and what decides both. `w` is
/// what it is the plan of; `cuda`: the device is a GPU. Long because it is a text from top to bottom.
#[must_use]
pub fn explain(plan: &Plan, w: &Workload, cuda: bool) -> String {
    let mut text = String::new();
    if plan.ranks > 1 {
        let _ = writeln!(
            text,
            "of each of {} ranks, which all do the same with a share of their own",
            plan.ranks
        );
    }
    if w.leaves > 1 {
        let _ = writeln!(text, "{}", tree(plan, w));
    }
    if plan.optimizer != Optimizer::default() {
        let optimizer = match plan.optimizer.name {
            name if name == OptimizerName::default() => String::new(),
            name => format!("{}, ", name.about().title),
        };
        let _ = writeln!(
            text,
            "{optimizer}moments in {}: {} bytes a parameter of state and weight",
            plan.optimizer.moments.name(),
            bytes_each(plan)
        );
    }
    // Bases and projectors are frozen too, but a base is trained, and a projector is no part of the model.
    let frozen = w.params.iter().filter(|p| p.frozen && p.kind.is_own());
    let frozen: u64 = frozen.map(|p| p.elements).sum();
    if frozen > 0 {
        let all = w.parameters();
        let _ = writeln!(
            text,
            "frozen: {:.1} M of {:.1} M parameters, without gradient, optimizer state and update",
            frozen as f64 / 1e6,
            all as f64 / 1e6,
        );
    }
    if plan.choice.durable {
        let _ = writeln!(
            text,
            "durable: weights and optimizer state in two versions on disk"
        );
    }
    let p = &plan.prediction;
    let lanes: Vec<String> = LaneKind::ALL
        .iter()
        .zip(&p.lanes)
        .map(|(kind, lane)| {
            let name = lane_of(*kind, cuda);
            format!("{name} {}", lane.busy_seconds)
        })
        .collect();
    let _ = writeln!(
        text,
        "predicted step {}, ruled by {}: {}",
        p.step_seconds,
        lane_of(LaneKind::ALL[p.ruling_lane as usize], cuda),
        lanes.join(", ")
    );
    if p.disk_bytes_written.0 > 0 {
        let day = Bytes((p.disk_bytes_written.0 as f64 * 86_400.0 / p.step_seconds.0) as u64);
        let _ = writeln!(
            text,
            "disk: {} read, {} written a step, {day} written a day",
            p.disk_bytes_read, p.disk_bytes_written
        );
    }
    if plan.reaches_device() {
        let [read, written] = direct(plan);
        let _ = writeln!(
            text,
            "without host memory: {read} read into the device's memory, {written} written from it a step"
        );
    }
    text
}

/// Bytes that a steady step reads from the drives into the device's memory, and that it writes from there.
fn direct(plan: &Plan) -> [Bytes; 2] {
    let steady = plan.rounds().steady().into_iter();
    let mut sums = [Bytes::ZERO; 2];
    for (part, times) in steady {
        for task in plan.part(part).iter().filter(|t| plan.is_direct(t)) {
            let way = usize::from(task.work == Work::Write);
            sums[way] += task.moved(plan.ranks) * u64::from(times);
        }
    }
    sums
}

/// How a plan turned the planner's knobs, in a line.
#[must_use]
pub fn explain_choices(plan: &Plan) -> String {
    let c = &plan.choice;
    let rounds = plan.rounds();
    let order = match c.order {
        _ if !rounds.one() => format!(
            "{} rounds of {} micro-batches",
            rounds.count(),
            rounds.each()
        ),
        LoopOrder::LayerMajor => "layer-major".to_owned(),
        LoopOrder::BatchMajor => "batch-major".to_owned(),
    };
    let updated = || (0..c.update.len()).filter(|&u| is_updated(plan, u));
    let on_device = updated()
        .filter(|&u| c.update[u] == Processor::Device)
        .count();
    let units = updated().count();
    let [stay, move_away, again] = c.saved_tensors();
    format!(
        "{order}, of saved tensors {stay} stay, {move_away} move and {again} are computed again, \
         updates on {}, {} pieces, {}\n",
        match on_device {
            0 => "the host".to_owned(),
            n if n == units => "the device".to_owned(),
            n => format!("the host and, for {n} of {units} units, the device"),
        },
        plan.pieces.len(),
        match c.ahead.device.0 {
            0 => "copies just in time".to_owned(),
            _ => format!(
                "copies ahead of their use until {} of the device are taken",
                c.ahead.device
            ),
        },
    )
}

/// Whether a unit has anything to update: all do but those that are frozen.
fn is_updated(plan: &Plan, unit: usize) -> bool {
    let mut own = plan.pieces.iter().filter(|p| p.unit as usize == unit);
    own.clone().next().is_none() || own.any(|p| !p.frozen)
}

/// One of the ways to update, and how much of a plan's updates it does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Units with something to update.
    pub units: u32,
    /// Parameters, padding included.
    pub parameters: u64,
    /// Seconds on the lane that they keep busiest: the host; the gpu; h2d, for state that passes
    /// through the device.
    pub seconds: Seconds,
}

/// How a plan splits its updates: on the host; on the device with resident state; on the device
/// with state that passes through it.
#[must_use]
pub fn split(plan: &Plan, machine: &Machine) -> [Share; 3] {
    let c = &plan.choice;
    let mut shares = [Share {
        units: 0,
        parameters: 0,
        seconds: Seconds::ZERO,
    }; 3];
    let state = state_bytes(plan);
    for u in (0..c.update.len()).filter(|&u| is_updated(plan, u)) {
        let kind = match (c.update[u], c.optimizer[u]) {
            (Processor::Host, _) => 0,
            (Processor::Device, Tier::Device) => 1,
            (Processor::Device, _) => 2,
        };
        shares[kind].units += 1;
        let pieces = plan.pieces.iter().zip(&state);
        for (piece, &state) in pieces.filter(|(p, _)| p.unit as usize == u && !p.frozen) {
            shares[kind].parameters += piece.own(plan.ranks);
            shares[kind].seconds += match kind {
                0 => machine.update(Lane::HOST, piece.own(plan.ranks), plan.optimizer),
                1 => machine.update(Lane::GPU, piece.own(plan.ranks), plan.optimizer),
                _ => machine.copy(Lane::H2D, Bytes(state)),
            };
        }
    }
    shares
}

/// Where the updates of a plan run, in a line for each way that is used.
#[must_use]
pub fn explain_updates(plan: &Plan, machine: &Machine, cuda: bool) -> String {
    let ways = [
        ("on the host", LaneKind::Host),
        ("on the device, state resident", LaneKind::Gpu),
        ("on the device, state streamed", LaneKind::H2d),
    ];
    let mut text = String::new();
    for (share, (way, lane)) in split(plan, machine).iter().zip(ways) {
        if share.units > 0 {
            let _ = writeln!(
                text,
                "updates {way}: {} units, {:.1} M parameters, {lane} {}",
                share.units,
                share.parameters as f64 / 1e6,
                share.seconds,
                lane = lane_of(lane, cuda),
            );
        }
    }
    let nearest = machine.updates.nearest(plan.optimizer);
    if nearest.optimizer != plan.optimizer {
        let _ = writeln!(
            text,
            "no rate of {} was measured: that of {}, times {:.2} by the bytes that an update moves",
            plan.optimizer.title(),
            nearest.optimizer.title(),
            1.0 / nearest.times(plan.optimizer),
        );
    }
    // Why not all of it on the host and all of the rest through the links.
    for shared in &machine.shared {
        let of = |lane: &str| shared.share.get(lane).copied().unwrap_or(0.0);
        let together = of("host") + of("h2d") + of("d2h");
        let used = [LaneKind::Host, LaneKind::H2d]
            .iter()
            .all(|&lane| plan.prediction.lanes[lane as usize].busy_seconds > Seconds::ZERO);
        if of("host") > 0.0 && together > 1.0 && used {
            let _ = writeln!(
                text,
                "copies and updates on the host share {}: beside copies both ways updates run at {:.0}% of their rate",
                match shared.name.as_str() {
                    "cores" => "the processor's cores",
                    name => name,
                },
                100.0 / together
            );
        }
    }
    text
}
