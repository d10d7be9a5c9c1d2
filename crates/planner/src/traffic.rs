//! What a steady step moves over the links and to and from the drives, by what it is.

use lowtide_units::{Bytes, ids};
use lowtide_workload::{ParamKind, Unit, Workload};
use serde::{Deserialize, Serialize};

use crate::plan::{LaneKind, Plan, Tensor, Tier, Work};

/// Bytes of a steady step one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Weights that no step writes.
    pub frozen: Bytes,
    /// Weights that are trained.
    pub weights: Bytes,
    /// Gradients, complete or adding up.
    pub gradients: Bytes,
    /// Optimizer state that updates read or write.
    pub state: Bytes,
    /// Activations, their gradients and all else.
    pub others: Bytes,
}

/// What a steady step moves to the device, from it, from the drives and to them.
#[must_use]
pub fn traffic(plan: &Plan) -> [Traffic; 4] {
    let mut all = [Traffic::default(); 4];
    for (part, times) in plan.rounds().steady() {
        for task in plan.part(part).iter() {
            let way = match (&task.work, task.lane.kind) {
                (Work::Copy, LaneKind::H2d) => 0,
                (Work::Copy, LaneKind::D2h) => 1,
                (Work::Read, _) => 2,
                (Work::Write, _) => 3,
                _ => continue,
            };
            // What passes no host memory comes to the device, or leaves it, all the same.
            let ways = match plan.is_direct(task) {
                true => vec![way, way - 2],
                false => vec![way],
            };
            for way in ways {
                let to = &mut all[way];
                let sum = match plan.slots[task.args[0].slot].tensor {
                    Tensor::Weight(p) if plan.pieces[p].frozen => &mut to.frozen,
                    Tensor::Weight(_) | Tensor::Shard(_) => &mut to.weights,
                    Tensor::Gradient(_) | Tensor::Accumulator(_) => &mut to.gradients,
                    Tensor::State(_) => &mut to.state,
                    _ => &mut to.others,
                };
                *sum += Bytes(task.args[0].bytes * u64::from(times));
            }
        }
    }
    all
}

/// What a plan trains where that is not the model's own matrices, and what a step moves of it. Empty where the
/// matrices are trained as they are.
#[must_use]
pub fn explain_cores(plan: &Plan, w: &Workload) -> String {
    let numbers = |kind: ParamKind| -> f64 {
        let of = w.params.iter().filter(|p| p.kind == kind);
        of.map(|p| p.elements as f64).sum::<f64>() / 1e6
    };
    let [base, projector, core] =
        [ParamKind::Base, ParamKind::Projector, ParamKind::Core].map(numbers);
    if core == 0.0 {
        return String::new();
    }
    let others = w.trained() as f64 / 1e6 - core;
    let [up, down, read, _] = traffic(plan);
    let based = |unit: &Unit| ids(&unit.params).any(|p| w.params[p].kind == ParamKind::Base);
    let based: Vec<usize> = (0..w.units.len()).filter(|&u| based(&w.units[u])).collect();
    let near = based
        .iter()
        .filter(|&&u| plan.choice.home(u, true) == Tier::Device);
    let (near, all) = (near.count(), based.len());
    format!(
        "in subspaces: of {base:.1} M numbers of the blocks' matrices {core:.1} M are trained, along {projector:.1} M of \
         projectors; {others:.1} M others are trained as they are; numbers differ from exact training\n\
         a step reads of what it does not write (bases, projectors, frozen tensors) {}, and moves up {} of trained weights and {} of state, down {} of \
         gradients and {} of state\n\
         bases of {near} of {all} units stay on the device\n",
        match (up.frozen, read.frozen) {
            (Bytes::ZERO, _) => "what stays on the device".to_owned(),
            (bytes, Bytes::ZERO) => format!("{bytes} over the link"),
            (bytes, read) => format!("{bytes} over the link, {read} of it from the drives"),
        },
        up.weights,
        up.state,
        down.gradients,
        down.state,
    )
}
