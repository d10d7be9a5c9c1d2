//! A steady step as it is predicted, to be drawn: when each task runs, and what the tiers hold meanwhile.

use lowtide_units::Id;
use lowtide_workload::Workload;

use crate::machine::Machine;
use crate::plan::{PartName, PerTier, Plan, SlotId, TaskId, Tensor};
use crate::simulate::{Steps, simulate};

/// What bytes of a tier hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Weights, whole or a rank's share.
    Weights,
    /// Master weights' remainders and moments.
    Optimizer,
    /// Gradients, complete or adding up.
    Gradients,
    /// Activations and their gradients.
    Activations,
    /// Inputs, losses, norms, scratch of operations.
    Other,
}

impl Content {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Weights,
        Self::Optimizer,
        Self::Gradients,
        Self::Activations,
        Self::Other,
    ];

    /// What kind of content a tensor counts as.
    #[must_use]
    pub const fn of(tensor: Tensor) -> Self {
        match tensor {
            Tensor::Weight(_) | Tensor::Shard(_) => Self::Weights,
            Tensor::State(_) => Self::Optimizer,
            Tensor::Gradient(_) | Tensor::Accumulator(_) | Tensor::Shares(_) => Self::Gradients,
            Tensor::Local(..) | Tensor::Cache(_) => Self::Activations,
            Tensor::NormParts(_)
            | Tensor::AllNormParts
            | Tensor::NormPartsOfAll
            | Tensor::Clip
            | Tensor::Losses
            | Tensor::LossesOfAll
            | Tensor::Inputs(_)
            | Tensor::Workspace => Self::Other,
        }
    }

    /// The name that people are shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Optimizer => "optimizer state",
            Self::Gradients => "gradients",
            Self::Activations => "activations",
            Self::Other => "inputs and scratch",
        }
    }
}

/// Bytes by content, in the order of [`Content::ALL`].
pub type Held = [u64; Content::ALL.len()];

/// A task of the step, with seconds from the step's begin; what runs into the step or out of it is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timed {
    /// The part of the plan that the task is in.
    pub part: PartName,
    /// Index among the part's tasks.
    pub task: TaskId,
    /// When it begins.
    pub start: f64,
    /// When it ends.
    pub end: f64,
}

/// What a tier holds over a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TierOver {
    /// What stays from step to step.
    pub kept: Held,
    /// What comes and goes, from each of these seconds on. The first is zero.
    pub moving: Vec<(f64, Held)>,
}

/// One step in the middle of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// How long it is, in seconds.
    pub seconds: f64,
    /// Its tasks, in the order of their begin.
    pub tasks: Vec<Timed>,
    /// What each tier holds.
    pub memory: PerTier<TierOver>,
    /// Of a batch in rounds: rounds that are not among the tasks, because they are as the last but one.
    pub rounds_left_out: u32,
}

/// Simulates some steps and takes one in the middle, from the end of the one before to its own. A slot is held from the
/// begin of the first task that uses it to the end of the last.
#[must_use]
pub fn timeline(plan: &Plan, w: &Workload, machine: &Machine) -> Timeline {
    let steps = Steps::new(plan.rounds());
    let names = &steps.sequence;
    let run = simulate(plan, w, machine, names);
    let last = if plan.rounds().one() {
        steps.step.start + 1
    } else {
        steps.step.end
    };
    let (from, to) = (run.end(steps.step.start), run.end(last));
    let within = |t: f64| t.clamp(from, to) - from;
    let kept = |i: SlotId| plan.slots[i].persistent || plan.late.contains(&i);

    let mut tasks = Vec::new();
    let mut changes: PerTier<Vec<(f64, usize, i64)>> = PerTier::default();
    for (part, times) in names.iter().zip(&run.parts) {
        let mut lives: Vec<Option<(f64, f64)>> = vec![None; plan.slots.len()];
        for (task, &(start, end)) in times.pairs() {
            let (start, end) = (within(start), within(end));
            if start < end {
                tasks.push(Timed {
                    part: *part,
                    task,
                    start,
                    end,
                });
            }
            let args = plan.part(*part)[task].args.iter();
            for arg in args.filter(|a| !kept(a.slot)) {
                let life = &mut lives[arg.slot.idx()];
                let (a, b) = life.unwrap_or((start, end));
                *life = Some((a.min(start), b.max(end)));
            }
        }
        for ((_, slot), life) in plan.slots.pairs().zip(lives) {
            let Some((start, end)) = life.filter(|(start, end)| start < end) else {
                continue;
            };
            let content = Content::of(slot.tensor) as usize;
            let bytes = slot.bytes as i64;
            changes[slot.tier].push((start, content, bytes));
            changes[slot.tier].push((end, content, -bytes));
        }
    }
    tasks.sort_by(|a, b| a.start.total_cmp(&b.start));

    let mut memory = PerTier::of(|tier| TierOver {
        kept: Held::default(),
        moving: moving(std::mem::take(&mut changes[tier])),
    });
    for (_, slot) in plan.slots.pairs().filter(|(i, _)| kept(*i)) {
        memory[slot.tier].kept[Content::of(slot.tensor) as usize] += slot.bytes;
    }
    Timeline {
        seconds: to - from,
        tasks,
        memory,
        rounds_left_out: steps.repeat.map_or(0, |(_, beyond)| beyond),
    }
}

/// The sums of changes from each time on.
fn moving(mut changes: Vec<(f64, usize, i64)>) -> Vec<(f64, Held)> {
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut now = [0i64; Content::ALL.len()];
    let mut all = vec![(0.0, Held::default())];
    for (at, content, bytes) in changes {
        now[content] += bytes;
        let held = now.map(|n| u64::try_from(n).unwrap_or(0));
        match all.last_mut() {
            Some(last) if last.0 == at => last.1 = held,
            _ => all.push((at, held)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use lowtide_units::Bytes;

    use super::*;
    use crate::build::build;
    use crate::choice::{Budgets, Choice, Clip};
    use crate::plan::{Lane, Tier};
    use crate::search::{Pins, Request, plan};
    use crate::simulate::Simulated;
    use crate::testing::{machine, workload};

    /// The slow way: of every slot, whether a task that uses it has begun and one has not ended.
    fn slowly(p: &Plan, steps: &Steps, run: &Simulated, at: f64) -> [u64; 3] {
        let at = run.end(steps.step.start) + at;
        Tier::ALL.map(|tier| {
            let slots = p.slots.pairs().filter(|(_, s)| s.tier == tier);
            let held = slots.map(|(i, s)| {
                if s.persistent || p.late.contains(&i) {
                    return s.bytes;
                }
                let parts = steps.sequence.iter().zip(&run.parts);
                let instances = parts.filter(|(part, times)| {
                    let using = times.pairs().filter(|(t, _)| {
                        let mut args = p.part(**part)[*t].args.iter();
                        args.any(|a| a.slot == i)
                    });
                    let times: Vec<(f64, f64)> = using.map(|(_, t)| *t).collect();
                    times.iter().any(|t| t.0 <= at) && times.iter().any(|t| t.1 > at)
                });
                instances.count() as u64 * s.bytes
            });
            held.sum()
        })
    }

    #[test]
    fn what_is_held_over_a_step_is_what_its_tasks_use_and_fits() {
        let (mut on_disk, mut in_rounds) = (0, 0);
        let m = machine();
        let planned = |device: u64, host: u64| {
            let w = workload(6, 1);
            let budgets = Budgets {
                device: Bytes(device << 10),
                host: Bytes(host << 10),
                disk: Bytes(64 << 20),
            };
            let request = Request {
                workload: &w,
                machine: &m,
                budgets,
                clip: Clip::Exact,
                pins: Pins::default(),
            };
            (plan(&request).expect("fits"), w)
        };
        let rounds = || {
            let w = workload(2, 14);
            let mut c = Choice::resident(&w);
            c.round = 2;
            c.weights.fill(Tier::Host);
            (build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &m), w)
        };
        for (p, w) in [planned(800, 64 << 10), planned(800, 1 << 10), rounds()] {
            let t = timeline(&p, &w, &m);
            let steps = Steps::new(p.rounds());
            let run = simulate(&p, &w, &m, &steps.sequence);
            in_rounds += usize::from(!p.rounds().one());
            if p.rounds().one() {
                let predicted = p.prediction.step_seconds.0;
                assert!((t.seconds / predicted - 1.0).abs() < 0.05, "{}", t.seconds);
            }
            // Each lane does one task at a time.
            for lane in Lane::ALL {
                let of = |t: &&Timed| p.part(t.part)[t.task].lane == lane;
                let all: Vec<&Timed> = t.tasks.iter().filter(of).collect();
                assert!(all.windows(2).all(|w| w[0].end <= w[1].start + 1e-9));
                assert!(all.is_empty() || all.len() > 3);
            }
            for tier in Tier::ALL {
                let over = &t.memory[tier];
                let planned = p.tier(tier).planned_bytes.0;
                let kept: u64 = over.kept.iter().sum();
                let most = over.moving.iter().map(|h| h.1.iter().sum::<u64>()).max();
                let most = kept + most.expect("one is there");
                assert!(most <= planned, "{tier}: {most} of {planned}");
                assert!(most * 10 >= planned * 6, "{tier}: {most} of {planned}");
                on_disk += usize::from(tier == Tier::Disk && most > 0);
                let n = over.moving.len();
                for i in (0..n).step_by(n / 6 + 1) {
                    let (at, held) = over.moving[i];
                    let next = over.moving.get(i + 1).map_or(t.seconds, |m| m.0);
                    if next - at > 1e-9 {
                        let sum = kept + held.iter().sum::<u64>();
                        let slow = slowly(&p, &steps, &run, f64::midpoint(at, next));
                        assert_eq!(sum, slow[tier as usize], "{tier} at {at}");
                    }
                }
            }
        }
        assert!(on_disk > 0 && in_rounds == 1, "{on_disk} {in_rounds}");
    }
}
