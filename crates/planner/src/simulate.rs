//! Predicts the time of a plan: the lanes run their tasks in plan order, wait for their edges, and
//! share what they share.
//!
//! A task has a time that it takes alone. While several lanes run, each of them advances at the
//! speed that was measured for it beside the others, or at the fraction of a shared resource that
//! is left to it (`together.rs`).

use std::ops::Range;

use lowtide_units::{Bytes, List, Seconds};
use lowtide_workload::Workload;

use crate::lanes::LaneSet;
use crate::machine::Machine;
use crate::plan::{
    Lane, LaneKind, LaneUse, PartName, PerLane, PerPart, Piece, PieceId, Plan, Prediction, Task,
    TaskId, Tensor, Work,
};
use crate::rounds::Rounds;
use crate::speeds::Speeds;

/// Time of each task of a part when nothing else runs.
#[must_use]
pub fn alone(
    plan: &Plan,
    w: &Workload,
    machine: &Machine,
    part: PartName,
) -> List<TaskId, Seconds> {
    plan.part(part)
        .iter()
        .map(|t| task_alone(&plan.pieces, w, machine, t, plan.is_direct(t)))
        .collect()
}

fn task_alone(
    pieces: &List<PieceId, Piece>,
    w: &Workload,
    machine: &Machine,
    task: &Task,
    direct: bool,
) -> Seconds {
    let bytes = || Bytes(task.args[0].bytes);
    match task.work {
        Work::Compute {
            unit, phase, op, ..
        } => {
            let u = &w.units[unit as usize];
            machine.op(&phase.ops(u)[op], w.precision)
        }
        Work::Fold { piece } => {
            // Each addition reads two sums and writes one.
            let sums = w.sums();
            let bytes = 12 * pieces[piece].elements * u64::from(sums - 1);
            Bytes(bytes) / machine.device_memory + machine.op_overhead * f64::from(sums.ilog2())
        }
        Work::Finish { piece } => {
            let n = pieces[piece].own(w.ranks);
            // Shares of other ranks are read too, and their sum is written and read again.
            let shares = match w.ranks {
                1 => 0,
                ranks => 4 * (u64::from(ranks) + 1),
            };
            Bytes(n * (4 + w.gradient.size() + shares)) / machine.device_memory
                + machine.op_overhead
        }
        Work::Copy => machine.copy(task.lane, bytes()),
        Work::Read | Work::Write if direct => machine.direct(task.lane, bytes()),
        Work::Read | Work::Write => machine.disk(task.lane, bytes()),
        Work::AllGather { .. } | Work::AllToAll { .. } => machine.exchange(task.moved(w.ranks)),
        // The record and what the drives still hold; how long that takes is not measured.
        Work::Commit => machine.disk(task.lane, Bytes(4096)) * 2.0,
        Work::Update { piece } => {
            machine.update(task.lane, pieces[piece].own(w.ranks), w.optimizer)
        }
        Work::Load { .. } | Work::Norm | Work::Losses | Work::Logits { .. } => {
            machine.host_overhead
        }
    }
}

/// What happened to each task: start and end.
#[derive(Clone, Debug, Default)]
pub struct Simulated {
    /// For each part of the sequence, start and end of every task.
    pub parts: Vec<List<TaskId, (f64, f64)>>,
}

impl Simulated {
    /// End of the last task of a part.
    #[must_use]
    pub fn end(&self, part: usize) -> f64 {
        self.parts[part].iter().map(|t| t.1).fold(0.0, f64::max)
    }

    /// Start of the first task of a part.
    #[must_use]
    pub fn start(&self, part: usize) -> f64 {
        self.parts[part]
            .iter()
            .map(|t| t.0)
            .fold(f64::INFINITY, f64::min)
    }
}

struct Running {
    part: usize,
    task: TaskId,
    /// Seconds left at full speed.
    left: f64,
    /// Passes no host memory.
    direct: bool,
}

/// By part of a sequence and by task, the tasks of the part before that it waits for.
pub(crate) fn across(plan: &Plan, sequence: &[PartName]) -> Vec<List<TaskId, Vec<TaskId>>> {
    let of = |(k, &part): (usize, &PartName)| {
        let mut waits = List::from(vec![Vec::new(); plan.part(part).len()]);
        let before = k.checked_sub(1).map(|before| sequence[before]);
        let seam = before.and_then(|before| plan.seam(before, part));
        for &(to, from) in seam.iter().flat_map(|s| &s.edges) {
            waits[to].push(from);
        }
        waits
    };
    sequence.iter().enumerate().map(of).collect()
}

/// Runs a sequence of parts, each overlapping the one before it where the plan allows.
#[must_use]
pub fn simulate(plan: &Plan, w: &Workload, machine: &Machine, sequence: &[PartName]) -> Simulated {
    let of = |p| match sequence.contains(&p) {
        true => alone(plan, w, machine, p),
        false => List::default(),
    };
    let times = PerPart::of(of);
    let waits = across(plan, sequence);
    let on = |lane| {
        let tasks = |&p: &PartName| plan.part(p).iter().any(|t| t.lane == lane);
        sequence.iter().any(tasks)
    };
    let any = plan.choice.direct.any();
    let is_direct = |p, i| any && plan.is_direct(&plan.part(p)[i]);
    let both_ways = on(Lane::DISK_READ) && on(Lane::DISK_WRITE);
    let mut speeds = Speeds::new(machine, both_ways);
    let mut out = Simulated {
        parts: sequence
            .iter()
            .map(|&p| vec![(-1.0, -1.0); plan.part(p).len()].into())
            .collect(),
    };
    // Each lane's tasks in order.
    let mut lanes: PerLane<Vec<(usize, TaskId)>> = PerLane::default();
    for (k, &part) in sequence.iter().enumerate() {
        for (i, task) in plan.part(part).pairs() {
            lanes[task.lane].push((k, i));
        }
    }
    let used: Vec<Lane> = lanes
        .iter()
        .filter(|(_, tasks)| !tasks.is_empty())
        .map(|(lane, _)| lane)
        .collect();
    let mut next: PerLane<usize> = PerLane::default();
    let mut left_in_part: Vec<usize> = sequence.iter().map(|&p| plan.part(p).len()).collect();
    let mut running: PerLane<Option<Running>> = PerLane::default();
    let mut now = 0.0;
    loop {
        for &l in &used {
            while running[l].is_none() && next[l] < lanes[l].len() {
                let (k, i) = lanes[l][next[l]];
                if !ready(plan, sequence, &out, &waits, &left_in_part, k, i) {
                    break;
                }
                next[l] += 1;
                let left = times[sequence[k]][i].0.max(1e-12);
                out.parts[k][i].0 = now;
                running[l] = Some(Running {
                    part: k,
                    task: i,
                    left,
                    direct: is_direct(sequence[k], i),
                });
            }
        }
        let on = used.iter().copied().filter(|&l| running[l].is_some());
        let speed = speeds.with_direct(LaneSet::of(on), |l| {
            running[l].as_ref().is_some_and(|r| r.direct)
        });
        let step = used
            .iter()
            .filter_map(|&l| running[l].as_ref().map(|r| r.left / speed[l]))
            .fold(f64::INFINITY, f64::min);
        if step.is_infinite() {
            break;
        }
        now += step;
        for &l in &used {
            if let Some(r) = &mut running[l] {
                r.left -= step * speed[l];
                if r.left <= 1e-12 {
                    out.parts[r.part][r.task].1 = now;
                    left_in_part[r.part] -= 1;
                    running[l] = None;
                }
            }
        }
    }
    out
}

fn ready(
    plan: &Plan,
    sequence: &[PartName],
    out: &Simulated,
    waits: &[List<TaskId, Vec<TaskId>>],
    left_in_part: &[usize],
    k: usize,
    i: TaskId,
) -> bool {
    let ended = |k: usize, i: TaskId| out.parts[k][i].1 >= 0.0;
    if k > 0 {
        if crate::check::overlaps(sequence[k - 1], sequence[k]) {
            // Only two parts are in flight.
            if k > 1 && left_in_part[k - 2] > 0 {
                return false;
            }
            if !waits[k][i].iter().all(|&d| ended(k - 1, d)) {
                return false;
            }
        } else if left_in_part[..k].iter().any(|&n| n > 0) {
            return false;
        }
    }
    plan.part(sequence[k])[i].after.iter().all(|&d| ended(k, d))
}

/// What the lanes do in a steady step, whatever the order: no schedule takes less time than the
/// busiest of them.
pub(crate) struct Busy {
    pub lanes: Vec<LaneUse>,
    pub written: Bytes,
    pub read: Bytes,
    pub busiest: Seconds,
}

/// Adds up the tasks of a steady step's parts, each as often as it runs.
pub(crate) fn busy(
    parts: &[(&[Task], u32)],
    pieces: &List<PieceId, Piece>,
    w: &Workload,
    machine: &Machine,
    direct: impl Fn(&Task) -> bool,
) -> Busy {
    let mut lanes = vec![LaneUse::default(); LaneKind::ALL.len()];
    let (mut written, mut read) = (Bytes::ZERO, Bytes::ZERO);
    let (mut reads, mut writes) = (Seconds::ZERO, Seconds::ZERO);
    // What both ways at once gain, of transfers that pass the host and of others; by how much longer those count.
    let [gain, direct_gain] =
        [machine.disk_mix_factor(), machine.fair_direct()].map(|g| g.max(1.0));
    let mut longer = Seconds::ZERO;
    for &(tasks, times) in parts {
        for task in tasks {
            let direct = direct(task);
            let time = task_alone(pieces, w, machine, task, direct) * f64::from(times);
            if direct {
                longer += time * (gain / direct_gain - 1.0);
            }
            let lane = &mut lanes[task.lane.kind as usize];
            lane.busy_seconds += time;
            lane.tasks += times;
            let bytes = task.moved(w.ranks) * u64::from(times);
            lane.bytes += bytes;
            match task.work {
                Work::Write => {
                    written += bytes;
                    writes += time;
                }
                Work::Read => {
                    read += bytes;
                    reads += time;
                }
                _ => {}
            }
        }
    }
    // Reads and writes of the drives may overlap; what no schedule can beat is their joint bound.
    let together = (reads + writes + longer) * (1.0 / gain);
    lanes[LaneKind::Disk as usize].busy_seconds = reads.max(writes).max(together);
    let busiest = lanes
        .iter()
        .map(|l| l.busy_seconds)
        .fold(Seconds::ZERO, Seconds::max);
    Busy {
        lanes,
        written,
        read,
        busiest,
    }
}

/// A few steady steps in parts to simulate, and how to read one step's time off them.
pub(crate) struct Steps {
    pub sequence: Vec<PartName>,
    /// The end of one step and the end of the next, in the middle of a run.
    pub step: Range<usize>,
    /// Steps between the two.
    pub steps: f64,
    /// Of a batch in rounds: a part of that step, how often it repeats beyond the times that it is in the
    /// sequence.
    pub repeat: Option<(usize, u32)>,
}

/// Rounds in the middle of a batch that are simulated; the others take as long as the last of them but one (a
/// round may leave the next one less to do, and the last one ends in what the batch's end has to wait for).
const MIDDLES: u32 = 4;

impl Steps {
    pub(crate) fn new(rounds: Rounds) -> Self {
        if rounds.one() {
            return Self {
                sequence: vec![PartName::Steady; 4],
                step: 1..3,
                steps: 2.0,
                repeat: None,
            };
        }
        let middles = rounds.middles().min(MIDDLES) as usize;
        let mut step = vec![PartName::Steady];
        step.extend(std::iter::repeat_n(PartName::Middle, middles));
        step.push(PartName::Last);
        let n = step.len();
        let beyond = rounds.middles() - middles as u32;
        Self {
            sequence: step.repeat(2),
            step: n - 1..2 * n - 1,
            steps: 1.0,
            repeat: (beyond > 0).then_some((2 * n - 2, beyond)),
        }
    }
}

/// Time of a steady step. Looks at its parts and at the seams between them.
pub(crate) fn steady_seconds(
    plan: &Plan,
    w: &Workload,
    machine: &Machine,
    busiest: Seconds,
) -> Seconds {
    let steps = Steps::new(plan.rounds());
    let run = simulate(plan, w, machine, &steps.sequence);
    let mut seconds = (run.end(steps.step.end) - run.end(steps.step.start)) / steps.steps;
    if let Some((part, times)) = steps.repeat {
        seconds += f64::from(times) * (run.end(part - 1) - run.end(part - 2));
    }
    Seconds(seconds).max(busiest)
}

/// The figures of a plan's steady step.
#[must_use]
pub fn predict(plan: &Plan, w: &Workload, machine: &Machine) -> Prediction {
    // Where nothing is trained, a step of decoding.
    let steady = match w.decodes() {
        true => vec![(PartName::Infer, 1)],
        false => plan.rounds().steady(),
    };
    let parts: Vec<(&[Task], u32)> = steady
        .into_iter()
        .map(|(part, times)| (&**plan.part(part), times))
        .collect();
    let Busy {
        lanes,
        written,
        read,
        busiest,
    } = busy(&parts, &plan.pieces, w, machine, |t| plan.is_direct(t));
    let lanes = lanes[..plan.lane_kinds().len()].to_vec();
    let ruling_lane = (0..lanes.len())
        .max_by(|&a, &b| lanes[a].busy_seconds.0.total_cmp(&lanes[b].busy_seconds.0))
        .expect("there are lanes") as u8;
    Prediction {
        step_seconds: match w.decodes() {
            true => decoding_seconds(plan, w, machine).max(busiest),
            false => steady_seconds(plan, w, machine, busiest),
        },
        lanes,
        ruling_lane,
        disk_bytes_written: written * u64::from(w.ranks),
        disk_bytes_read: read * u64::from(w.ranks),
        evaluate_seconds: evaluate_seconds(plan, w, machine),
    }
}

/// Bytes of saved tensors, block inputs and the like that a steady step of all ranks writes to the drives.
#[must_use]
pub fn activations_written(plan: &Plan) -> Bytes {
    let local = |t: &&Task| {
        let slot = t.args.first().map(|a| &plan.slots[a.slot]);
        t.work == Work::Write && slot.is_some_and(|s| matches!(s.tensor, Tensor::Local(..)))
    };
    let of = |part| {
        plan.part(part)
            .iter()
            .filter(local)
            .map(|t| t.args[0].bytes)
    };
    let parts = plan.rounds().steady().into_iter();
    let of_rank: u64 = parts
        .map(|(part, times)| u64::from(times) * of(part).sum::<u64>())
        .sum();
    Bytes(of_rank * u64::from(plan.ranks))
}

/// Time of one step of decoding. It begins when the one before has ended: a token is known then.
pub(crate) fn decoding_seconds(plan: &Plan, w: &Workload, machine: &Machine) -> Seconds {
    Seconds(simulate(plan, w, machine, &[PartName::Infer]).end(0))
}

/// Time of one evaluation batch; its rounds do not overlap.
fn evaluate_seconds(plan: &Plan, w: &Workload, machine: &Machine) -> Seconds {
    let rounds = plan.rounds();
    let one = simulate(plan, w, machine, &[PartName::Evaluate]).end(0);
    if rounds.one() {
        return Seconds(one);
    }
    let last = simulate(plan, w, machine, &[PartName::LastEvaluate]).end(0);
    Seconds(one * f64::from(rounds.count() - 1) + last)
}
