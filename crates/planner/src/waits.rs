//! What a simulated steady step shows: how long each lane works while the others do, and every pause of the gpu lane
//! by what it waited for.

use lowtide_units::{List, Seconds, ids};
use lowtide_workload::Workload;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::plan::{Lane, LaneKind, PartName, Plan, Task, TaskId, Tensor, Work};
use crate::simulate::{Simulated, Steps, across, simulate};

/// What the gpu lane waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// An update on the host.
    HostUpdate,
    /// Norm and clip factor, and the last gradients before them.
    Norm,
    /// Weights on their way to the device.
    Weights,
    /// Optimizer state on its way, either way.
    State,
    /// Gradients on their way, either way.
    Gradients,
    /// Saved tensors and block inputs on their way, either way.
    Activations,
    /// Reads and writes of the drives.
    Disk,
    /// Inputs, losses, and other small things.
    Other,
    /// Everything it needed was done, and the host had not handed it over yet. Only measured: a
    /// simulation hands over at once.
    Launch,
    /// No part of the plan was submitted. Only measured.
    Unsubmitted,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::HostUpdate,
        Self::Norm,
        Self::Weights,
        Self::State,
        Self::Gradients,
        Self::Activations,
        Self::Disk,
        Self::Other,
        Self::Launch,
        Self::Unsubmitted,
    ];

    /// What a lane that waits for this task of another lane waits for.
    #[must_use]
    pub fn of(plan: &Plan, task: &Task) -> Self {
        match task.work {
            Work::Update { .. } if task.lane == Lane::HOST => Self::HostUpdate,
            Work::Norm => Self::Norm,
            Work::Read | Work::Write => Self::Disk,
            Work::AllToAll { .. } => Self::Gradients,
            Work::AllGather { piece: Some(_) } => Self::Weights,
            Work::AllGather { piece: None } => Self::Norm,
            Work::Copy => match plan.slots[task.args[0].slot].tensor {
                Tensor::Weight(_) | Tensor::Shard(_) => Self::Weights,
                Tensor::State(_) => Self::State,
                Tensor::Gradient(_) | Tensor::Accumulator(_) | Tensor::Shares(_) => Self::Gradients,
                Tensor::Local(..) | Tensor::Cache(_) => Self::Activations,
                Tensor::NormParts(_)
                | Tensor::AllNormParts
                | Tensor::NormPartsOfAll
                | Tensor::Clip => Self::Norm,
                Tensor::LossesOfAll | Tensor::Losses | Tensor::Inputs(_) | Tensor::Workspace => {
                    Self::Other
                }
            },
            _ => Self::Other,
        }
    }

    /// As records of it have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostUpdate => "host-update",
            Self::Norm => "norm",
            Self::Weights => "weights",
            Self::State => "state",
            Self::Gradients => "gradients",
            Self::Activations => "activations",
            Self::Disk => "disk",
            Self::Other => "other",
            Self::Launch => "launch",
            Self::Unsubmitted => "unsubmitted",
        }
    }
}

/// A steady step as simulated.
#[derive(Clone, Debug)]
pub struct SteadyStep {
    /// Seconds inside tasks by kind of lane, in the order of [`LaneKind::ALL`]: with what lanes that work at once
    /// take from each other, unlike [`Prediction::lanes`](crate::plan::Prediction::lanes). While a drive reads and
    /// writes, its seconds count once.
    pub lanes: [Seconds; LaneKind::ALL.len()],
    /// Seconds in which the gpu lane stands still, by cause, longest first.
    ///
    /// A pause is followed back from its end: through the task that ended last before it, on whatever lane, the one
    /// that this one had waited for (another lane's, or the one before it on its own), and so on until the pause
    /// began. Each of them counts for its time.
    pub gpu_waits: Vec<(Cause, Seconds)>,
}

/// Simulates some steps and looks at one in the middle.
#[must_use]
pub fn steady_step(plan: &Plan, w: &Workload, machine: &Machine) -> SteadyStep {
    let steps = Steps::new(plan.rounds());
    let run = simulate(plan, w, machine, &steps.sequence);
    let names = &steps.sequence;
    let across = across(plan, names);
    let traced = Traced {
        plan,
        names,
        run: &run,
        across: &across,
    };
    let mut lanes = [Seconds::ZERO; LaneKind::ALL.len()];
    let mut found: Vec<(Cause, f64)> = Vec::new();
    // From the end of the gpu's work of one step to that of the next, in the middle of the run.
    let first = steps.step.start + 1;
    let last = if plan.rounds().one() {
        first
    } else {
        steps.step.end
    };
    for part in first..=last {
        let times = match steps.repeat {
            Some((repeated, beyond)) if repeated == part => 1.0 + f64::from(beyond),
            _ => 1.0,
        };
        for (kind, busy) in LaneKind::ALL.into_iter().zip(&mut lanes) {
            *busy += traced.busy(part, kind) * times;
        }
        traced.waits(part, |cause, seconds| {
            let seconds = times * seconds;
            match found.iter_mut().find(|(c, _)| *c == cause) {
                Some((_, sum)) => *sum += seconds,
                None => found.push((cause, seconds)),
            }
        });
    }
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    SteadyStep {
        lanes,
        gpu_waits: found.into_iter().map(|(c, s)| (c, Seconds(s))).collect(),
    }
}

/// A simulated run, to ask why.
struct Traced<'a> {
    plan: &'a Plan,
    names: &'a [PartName],
    run: &'a Simulated,
    /// By part and task, the tasks of the part before that it waits for.
    across: &'a [List<TaskId, Vec<TaskId>>],
}

impl Traced<'_> {
    /// Tasks of a part on lanes of this kind.
    fn tasks(&self, part: usize, kind: LaneKind) -> impl DoubleEndedIterator<Item = TaskId> {
        let tasks = self.plan.part(self.names[part]);
        tasks.ids().filter(move |&i| tasks[i].lane.kind == kind)
    }

    /// Seconds in which a lane of this kind is inside a task of the part.
    fn busy(&self, part: usize, kind: LaneKind) -> Seconds {
        let times = |i| self.run.parts[part][i];
        let mut times: Vec<(f64, f64)> = self.tasks(part, kind).map(times).collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut busy, mut until) = (0.0, f64::NEG_INFINITY);
        for (start, end) in times {
            busy += (end - start.max(until)).max(0.0);
            until = until.max(end);
        }
        Seconds(busy)
    }

    /// Every pause of the gpu lane before a task of the part: its cause and its seconds.
    fn waits(&self, part: usize, mut found: impl FnMut(Cause, f64)) {
        let run = self.run;
        let before = self.tasks(part - 1, LaneKind::Gpu).next_back();
        let mut before = before.map_or(0.0, |i| run.parts[part - 1][i].1);
        for i in self.tasks(part, LaneKind::Gpu) {
            let (start, end) = run.parts[part][i];
            if start > before {
                self.explain((part, i), before, &mut found);
            }
            before = end;
        }
    }

    /// Follows a pause back that began at `from` and ended with the start of a task.
    fn explain(&self, at: (usize, TaskId), from: f64, found: &mut impl FnMut(Cause, f64)) {
        let time = |(k, i): (usize, TaskId)| self.run.parts[k][i];
        let (mut at, mut until) = (at, time(at).0);
        while until > from {
            let candidates = self.needs(at).chain(self.earlier(at));
            let last = candidates.max_by(|&a, &b| time(a).1.total_cmp(&time(b).1));
            let Some(next) = last.filter(|&n| time(n).1 > from) else {
                return found(Cause::Other, until - from);
            };
            let start = time(next).0.max(from);
            let task = &self.plan.part(self.names[next.0])[next.1];
            found(Cause::of(self.plan, task), until - start);
            (at, until) = (next, start);
        }
    }

    /// Tasks that a task waits for: part and index.
    fn needs(&self, (k, i): (usize, TaskId)) -> impl Iterator<Item = (usize, TaskId)> {
        let here = self.plan.part(self.names[k])[i].after.iter();
        let earlier = self.across[k][i].iter().map(move |&d| (k - 1, d));
        here.map(move |&d| (k, d)).chain(earlier)
    }

    /// The task before this one on its lane, in its part or the one before.
    fn earlier(&self, (k, i): (usize, TaskId)) -> Option<(usize, TaskId)> {
        let tasks = |k: usize| self.plan.part(self.names[k]);
        let lane = tasks(k)[i].lane;
        let of = |k: usize, end: TaskId| {
            let mut earlier = ids(&(TaskId(0)..end)).rev();
            Some((k, earlier.find(|&i| tasks(k)[i].lane == lane)?))
        };
        of(k, i).or_else(|| {
            let before = k.checked_sub(1)?;
            of(before, tasks(before).next_id())
        })
    }
}

#[cfg(test)]
mod tests {
    use lowtide_units::Bytes;

    use super::*;
    use crate::build::build;
    use crate::choice::{Budgets, Choice, Clip, Processor};
    use crate::plan::Tier;
    use crate::search::{Pins, Request, plan};
    use crate::testing::{machine, workload};

    #[test]
    fn work_and_waits_of_the_gpu_make_a_step_and_sharing_only_adds_work() {
        let mut waited = 0;
        for (blocks, micro_batches, device) in
            [(6, 1, 800), (6, 1, 1600), (6, 1, 64 << 10), (4, 8, 800)]
        {
            let (w, m) = (workload(blocks, micro_batches), machine());
            let budgets = Budgets {
                device: Bytes(device << 10),
                host: Bytes(64 << 20),
                disk: Bytes(64 << 20),
            };
            let p = plan(&Request {
                workload: &w,
                machine: &m,
                budgets,
                clip: Clip::Exact,
                pins: Pins::default(),
            })
            .expect("fits");
            let step = steady_step(&p, &w, &m);
            let waits: f64 = step.gpu_waits.iter().map(|(_, s)| s.0).sum();
            waited += usize::from(waits > 0.0);
            if p.rounds().one() {
                let sum = step.lanes[LaneKind::Gpu as usize].0 + waits;
                let predicted = p.prediction.step_seconds.0;
                assert!((sum / predicted - 1.0).abs() < 0.02, "{sum} {predicted}");
            }
            for (lane, nominal) in step.lanes.iter().zip(&p.prediction.lanes) {
                // The drives' figure of a plan is a bound for reads and writes of one mixed rate.
                assert!(
                    lane.0 >= nominal.busy_seconds.0 * 0.98,
                    "{lane} {nominal:?}"
                );
            }
        }
        assert!(waited > 0, "some plan waits");
    }

    /// Updates on the host, slower by a factor, with next to nothing else to wait for: neither the gradients that
    /// they begin with, nor copies that queue behind the weights that they make.
    #[test]
    fn each_task_that_leads_to_the_end_of_a_pause_counts_for_its_own_time() {
        let waits = |units: usize, slower: f64| {
            let (w, mut m) = (workload(6, 1), machine());
            m.updates = crate::testing::updates(1e9 / slower);
            let mut c = Choice::resident(&w);
            c.optimizer[..units].fill(Tier::Host);
            c.update[..units].fill(Processor::Host);
            let p = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &m);
            steady_step(&p, &w, &m).gpu_waits
        };
        for units in [2, 8] {
            let (normal, slow) = (waits(units, 1.0), waits(units, 50.0));
            let sum = |waits: &[(Cause, Seconds)], updates: bool| -> f64 {
                let of = waits
                    .iter()
                    .filter(|w| (w.0 == Cause::HostUpdate) == updates);
                of.map(|w| w.1.0).sum()
            };
            assert!(
                sum(&slow, true) > 10.0 * sum(&normal, true),
                "{normal:?} {slow:?}"
            );
            assert!(sum(&slow, false) < 0.1 * sum(&slow, true), "{slow:?}");
        }
    }
}
