//! Puts a plan together: draft, layout, edges inside parts and across their seams, prediction.

use std::ops::Range;

use lowtide_units::{Bytes, Id, List};
use lowtide_workload::Workload;

use crate::check::{overlaps, sequences};
use crate::choice::{Budgets, Choice, Clip};
use crate::draft::{Draft, DraftSlot, Rates, draft};
use crate::edges::Edges;
use crate::layout::{Layout, Packing, layout};
use crate::machine::Machine;
use crate::plan::{
    PartName, PerPart, Plan, Prediction, Seam, Slot, SlotId, Task, TaskId, Tensor, Tier, TierUse,
};
use crate::rounds::Rounds;
use crate::simulate::predict;

/// Builds, lays out and predicts the plan of one set of choices. Does not check it.
#[must_use]
pub fn build(
    w: &Workload,
    choice: &Choice,
    clip: Clip,
    budgets: Budgets,
    machine: &Machine,
) -> Plan {
    packed(w, choice, clip, budgets, machine, Packing::Usual)
}

/// As [`build`], with slots packed as is said.
pub(crate) fn packed(
    w: &Workload,
    choice: &Choice,
    clip: Clip,
    budgets: Budgets,
    machine: &Machine,
    packing: Packing,
) -> Plan {
    let d = draft(w, &Rates::new(w, machine), choice, clip, &PartName::ALL);
    let l = layout(&d.slots, PartName::ALL.len(), packing);
    let activations = activations(&d.slots);
    let mut tiers: Vec<TierUse> = Tier::ALL
        .iter()
        .map(|&tier| TierUse {
            planned_bytes: Bytes(l.totals[tier as usize]),
            budget_bytes: budgets.of(tier),
            transient: Bytes(l.transient[tier as usize]),
            activations: activations[tier as usize],
            ..TierUse::default()
        })
        .collect();
    for s in l.slots.iter().filter(|s| s.persistent) {
        let tier = &mut tiers[s.tier as usize];
        match s.tensor {
            Tensor::Weight(_) | Tensor::Shard(_) => tier.weights += Bytes(s.bytes),
            Tensor::State(_) => tier.optimizer += Bytes(s.bytes),
            Tensor::Gradient(_) | Tensor::Accumulator(_) => tier.gradients += Bytes(s.bytes),
            _ => tier.transient += Bytes(s.bytes),
        }
    }
    let mut plan = assemble(w, choice, clip, d, l, &PartName::ALL);
    plan.tiers = tiers;
    plan.prediction = predict(&plan, w, machine);
    plan
}

/// The most bytes of each tier that local tensors take at once in a part that trains.
fn activations(slots: &[DraftSlot]) -> [Bytes; 3] {
    let training = |part: usize| {
        !matches!(
            PartName::ALL[part],
            PartName::Evaluate | PartName::LastEvaluate | PartName::Infer | PartName::Drain
        )
    };
    let local = |s: &&DraftSlot| matches!(s.tensor, Tensor::Local(..));
    Tier::ALL.map(|tier| {
        let of = || slots.iter().filter(local).filter(move |s| s.tier == tier);
        let stays: u64 = of().filter(|s| s.persistent).map(|s| s.bytes).sum();
        let most = (0..PartName::ALL.len()).filter(|&part| training(part));
        let most = most.map(|part| {
            let lives = of().filter(|s| !s.persistent && s.part == part);
            most_at_once(lives.map(|s| (s.birth, s.death, s.bytes)))
        });
        Bytes(stays + most.max().unwrap_or(0))
    })
}

/// The most bytes that live at once, of first and last use and bytes.
fn most_at_once(lives: impl Iterator<Item = (usize, usize, u64)>) -> u64 {
    // Births come before deaths at the same task: both use it.
    let mut turns: Vec<(usize, bool, u64)> = lives
        .flat_map(|(birth, death, bytes)| [(birth, false, bytes), (death, true, bytes)])
        .collect();
    turns.sort_unstable();
    let (mut living, mut most) = (0, 0);
    for (_, ends, bytes) in turns {
        if ends {
            living -= bytes;
        } else {
            living += bytes;
            most = most.max(living);
        }
    }
    most
}

/// A plan with edges in and between the parts named.
pub(crate) fn assemble(
    w: &Workload,
    choice: &Choice,
    clip: Clip,
    d: Draft,
    l: Layout,
    names: &[PartName],
) -> Plan {
    let mut parts = d.parts;
    let rounds = choice.rounds(w);
    let join = Join {
        slots: &l.slots,
        late: &d.late,
        rounds,
        pairs: overlapping(clip, rounds),
    };
    let seams = join.parts(&mut parts, names);
    Plan {
        model: w.model.clone(),
        unit_names: w.units.iter().map(|u| u.name.clone()).collect(),
        precision: w.precision,
        gradient: w.gradient,
        optimizer: w.optimizer,
        choice: choice.clone(),
        pieces: d.pieces,
        slots: l.slots,
        parts,
        seams,
        tiers: Vec::new(),
        prediction: Prediction::default(),
        accumulate: w.batch.accumulate,
        ranks: w.ranks,
        late: d.late,
    }
}

/// Pairs of parts of which the later one may begin while the earlier one runs.
fn overlapping(clip: Clip, rounds: Rounds) -> Vec<(PartName, PartName)> {
    let mut pairs = Vec::new();
    for sequence in sequences(clip) {
        let sequence: Vec<PartName> = sequence
            .into_iter()
            .flat_map(|part| rounds.parts(part, clip == Clip::Previous))
            .map(|(part, _)| part)
            .collect();
        for pair in sequence.windows(2) {
            let pair = (pair[0], pair[1]);
            if overlaps(pair.0, pair.1) && !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
    }
    pairs
}

/// Derives the edges inside parts and across the seams between them.
struct Join<'a> {
    slots: &'a List<SlotId, Slot>,
    late: &'a Range<SlotId>,
    rounds: Rounds,
    pairs: Vec<(PartName, PartName)>,
}

impl Join<'_> {
    fn parts(&self, parts: &mut PerPart<List<TaskId, Task>>, names: &[PartName]) -> Vec<Seam> {
        let mut seams = Vec::new();
        let mut inside: Vec<(PartName, Vec<Vec<u32>>)> = Vec::new();
        for &name in names {
            let tasks = &parts[name];
            let mut past = Edges::new(self.slots, self.late);
            inside.push((name, past.extend(tasks, 0)));
            for (i, &(from, to)) in self.pairs.iter().enumerate() {
                if from == name && names.contains(&to) {
                    let next = &parts[to];
                    let edges = self.across((from, tasks, &past), (to, next));
                    seams.push((i, Seam { from, to, edges }));
                }
            }
        }
        for (name, found) in inside {
            for (task, after) in parts[name].iter_mut().zip(found) {
                task.after = after.into_iter().map(TaskId).collect();
            }
        }
        seams.sort_by_key(|&(i, _)| i);
        seams.into_iter().map(|(_, seam)| seam).collect()
    }

    /// The edges from a part, with what it leaves behind, into another one.
    fn across(
        &self,
        (from, tasks, past): (PartName, &[Task], &Edges<'_>),
        (to, next): (PartName, &[Task]),
    ) -> Vec<(TaskId, TaskId)> {
        use PartName::Middle;
        let round = self.rounds.each();
        // How much later than it says the part runs that is followed, and the one that follows it.
        let (before, shift) = match (from, to) {
            (Middle, Middle) => (0, round),
            (Middle, _) => (self.rounds.middles().saturating_sub(1) * round, 0),
            _ => (0, 0),
        };
        let mut past = if before == 0 || self.late.is_empty() {
            past.clone()
        } else {
            let mut past = Edges::new(self.slots, self.late);
            past.extend(tasks, before);
            past
        };
        let n = tasks.len() as u32;
        let found = past.extend(next, shift).into_iter().enumerate();
        found
            .flat_map(|(t, after)| {
                let across = after.into_iter().filter(move |&d| d < n);
                across.map(move |d| (TaskId::new(t), TaskId(d)))
            })
            .collect()
    }
}
