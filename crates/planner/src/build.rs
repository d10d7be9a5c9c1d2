//! Puts a plan together: draft, layout, edges inside parts and across their seams, prediction.

use lowtide_units::Bytes;
use lowtide_workload::Workload;

use crate::check::{overlaps, sequences};
use crate::choice::{Budgets, Choice, Clip};
use crate::draft::{Draft, draft};
use crate::edges::Edges;
use crate::layout::{Layout, layout};
use crate::machine::Machine;
use crate::plan::{PartName, Plan, Prediction, Seam, Slot, Task, Tensor, Tier, TierUse};
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
    let d = draft(w, choice, clip, &PartName::ALL);
    let l = layout(&d.slots, PartName::ALL.len());
    let mut tiers: Vec<TierUse> = Tier::ALL
        .iter()
        .map(|&tier| TierUse {
            planned_bytes: Bytes(l.totals[tier as usize]),
            budget_bytes: budgets.of(tier),
            transient: Bytes(l.transient[tier as usize]),
            ..TierUse::default()
        })
        .collect();
    for s in l.slots.iter().filter(|s| s.persistent) {
        let tier = &mut tiers[s.tier as usize];
        match s.tensor {
            Tensor::Weight(_) => tier.weights += Bytes(s.bytes),
            Tensor::State(_) => tier.optimizer += Bytes(s.bytes),
            Tensor::Gradient(_) => tier.gradients += Bytes(s.bytes),
            _ => tier.transient += Bytes(s.bytes),
        }
    }
    let mut plan = assemble(w, choice, clip, d, l, &PartName::ALL);
    plan.tiers = tiers;
    plan.prediction = predict(&plan, w, machine);
    plan
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
    let seams = join_parts(&l.slots, &mut parts, &overlapping(clip), names);
    Plan {
        model: w.model.clone(),
        unit_names: w.units.iter().map(|u| u.name.clone()).collect(),
        precision: w.precision,
        gradient: w.gradient,
        moments: w.moments,
        choice: choice.clone(),
        pieces: d.pieces,
        slots: l.slots,
        parts,
        seams,
        tiers: Vec::new(),
        prediction: Prediction::default(),
        accumulate: w.batch.accumulate,
    }
}

/// Every two parts of which the later may begin while the earlier runs.
fn overlapping(clip: Clip) -> Vec<(PartName, PartName)> {
    let mut pairs = Vec::new();
    for pair in sequences(clip).iter().flat_map(|s| s.windows(2)) {
        let pair = (pair[0], pair[1]);
        if overlaps(pair.0, pair.1) && !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    pairs
}

/// Derives the edges inside the parts named and across the seams between them.
fn join_parts(
    slots: &[Slot],
    parts: &mut [Vec<Task>],
    pairs: &[(PartName, PartName)],
    names: &[PartName],
) -> Vec<Seam> {
    let mut seams = Vec::new();
    let mut inside: Vec<(PartName, Vec<Vec<u32>>)> = Vec::new();
    for &name in names {
        let mut past = Edges::new(slots);
        inside.push((name, past.extend(&parts[name as usize])));
        let n = parts[name as usize].len() as u32;
        for (i, &(from, to)) in pairs.iter().enumerate() {
            if from == name && names.contains(&to) {
                let found = past.clone().extend(&parts[to as usize]);
                let across = |after: Vec<u32>| after.into_iter().filter(|&d| d < n);
                let edges = found.into_iter().enumerate();
                let edges = edges.flat_map(|(t, after)| across(after).map(move |d| (t as u32, d)));
                seams.push((
                    i,
                    Seam {
                        from,
                        to,
                        edges: edges.collect(),
                    },
                ));
            }
        }
    }
    for (name, found) in inside {
        for (task, after) in parts[name as usize].iter_mut().zip(found) {
            task.after = after;
        }
    }
    seams.sort_by_key(|&(i, _)| i);
    seams.into_iter().map(|(_, seam)| seam).collect()
}
