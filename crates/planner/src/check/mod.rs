//! Proves a plan before anything is allocated.
//!
//! Walks every sequence of parts that a run can make and shows, by rules of its own (nothing here
//! is shared with what made the plan):
//! 1. every slot lies inside its tier, and every use inside its slot;
//! 2. every byte that is read holds the tensor that is named, in its newest version: nothing
//!    unwritten, overwritten, stale or of another batch (a weight is never read before its own
//!    update), and one batch reads one version of each weight in forward and backward;
//! 3. every two uses of the same bytes, one of them a write, are ordered by lane order and edges; no
//!    task writes bytes that another of its own arguments has;
//! 4. edges point backward in plan order, so lanes that keep that order cannot deadlock;
//! 5. when a run is drained, every home holds the newest version;
//! 6. of a durable plan: weights and state have two extents each; nothing but an update writes the
//!    next versions, each once, nothing at all the current ones; each update ends in one commit, which finds
//!    every next version new and whole, and until which the current versions stay as they are,
//!    of several ranks until all have committed;
//! 7. the first operation of a batch that has a share in a gradient overwrites it, every other one adds,
//!    in the order of units from the last one down and of micro-batches; then it is finished once and
//!    taken by one update; so is the gradient of an output that several units read: the last one overwrites it, every
//!    other one adds, from the last down, before the unit whose output it is reads it; where gradients add up in a
//!    tree, each sum of a rank is of the micro-batches of its leaf, and all are added up once, when they are complete;
//! 8. the work is the workload's: each task has the operands of its operation, on a lane that reaches
//!    them, and every operation, every end of a gradient, the norm and every update is there exactly
//!    once a step; recomputed operations come as often as they are wanted
//!    (of several ranks a collective is work as any other, and as all ranks run one plan, all make the same ones in the
//!    same order: what this rank has sent nothing is added to, its gradient is made of all ranks' shares, and whole
//!    weights are of the newest shares);
//!    (of a workload that decodes that is forward and the head's logits; its keys and values are one slot a unit on
//!    the device, which stays, is changed in place by that unit's attention, and is nobody else's);
//! 9. no tier holds a local tensor twice at once: what is needed comes from the nearest tier that has it.

mod bounds;
mod complete;
mod content;
mod durable;
mod graph;
mod once;
mod operands;
mod order;
mod replaces;
mod walk;

use std::fmt;

use lowtide_workload::Workload;

use crate::choice::Clip;
use crate::plan::{PartName, PieceId, Plan, TaskId, Tensor};
pub use replaces::replaces;
use walk::{Clock, Knowledge, Walk};

/// What a plan does wrong: always a bug in a planner or a strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Part and task.
    pub part: PartName,
    /// Which of the part.
    pub task: TaskId,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "task {} of part {:?}: {}",
            self.task, self.part, self.what
        )
    }
}

impl std::error::Error for Fault {}

/// The sequences of parts that cover every seam a run can make.
#[must_use]
pub fn sequences(clip: Clip) -> Vec<Vec<PartName>> {
    use PartName::{Drain, Evaluate, First, Infer, Steady};
    match clip {
        Clip::Exact => vec![
            vec![First, Drain, First, Drain, Evaluate, Infer, First, Drain],
            vec![
                First, Steady, Steady, Steady, Drain, Evaluate, First, Steady, Drain,
            ],
        ],
        Clip::Previous | Clip::None => vec![
            vec![
                First, Steady, Steady, Steady, Drain, Evaluate, Infer, Steady, Drain,
            ],
            vec![First, Drain, Steady, Steady, Drain],
        ],
    }
}

/// Whether the part may begin while the one before it still runs.
#[must_use]
pub fn overlaps(from: PartName, to: PartName) -> bool {
    use PartName::{Drain, First, Last, LastFirst, Middle, Steady};
    matches!(
        (from, to),
        (First | Steady | Last | LastFirst, Steady | Drain)
            | (First | Steady | Middle, Middle | Last | LastFirst)
    )
}

/// A sequence part by part: each round, with how many micro-batches later than it says it runs. All
/// rounds but the first and the last are alike, and no more than two parts are in flight: of many of them
/// the first and the last two stand for all.
fn walked(plan: &Plan, sequence: &[PartName]) -> Vec<(PartName, u32)> {
    let rounds = plan.rounds();
    let most = (rounds.middles().saturating_sub(1)) * rounds.each();
    let stands = |&(part, shift): &(PartName, u32)| match part {
        PartName::Middle => shift == 0 || shift + rounds.each() >= most,
        PartName::Evaluate => shift <= rounds.each(),
        _ => true,
    };
    let parts = sequence.iter().flat_map(|&p| plan.round_parts(p));
    parts.filter(stands).collect()
}

/// Checks every sequence. `Ok` means that the plan may run, and is a step of the workload.
///
/// # Errors
/// The first thing found wrong.
pub fn check(plan: &Plan, w: &Workload, clip: Clip) -> Result<(), Fault> {
    graph::graph(w)?;
    bounds::bounds(plan)?;
    once::once(plan)?;
    operands::operands(plan, w, clip)?;
    complete::complete(plan, w, clip)?;
    for sequence in sequences(clip) {
        let mut walk = Walk::new(plan, w);
        walk.start()?;
        let mut before: Option<(PartName, Knowledge, Clock)> = None;
        for (part, shift) in walked(plan, &sequence) {
            walk.shift = shift;
            before = Some(walk.part(part, before)?);
            if clip != Clip::Exact || matches!(part, PartName::Drain | PartName::Evaluate) {
                walk.drained()?;
            }
        }
    }
    Ok(())
}

/// Bytes of a tensor that have a meaning.
fn size(plan: &Plan, w: &Workload, tensor: Tensor) -> u64 {
    let elements = |p: PieceId| plan.pieces[p].elements;
    let ranks = u64::from(plan.ranks);
    match tensor {
        Tensor::Weight(p) => elements(p) * plan.precision.size(),
        Tensor::State(p) => {
            let params = plan.pieces[p].of(w);
            w.optimizer.state_bytes(plan.precision, plan.own(p), params)
        }
        Tensor::Gradient(p) => plan.own(p) * plan.gradient.size(),
        Tensor::Accumulator(p) => elements(p) * 4 * sums(w),
        Tensor::NormParts(p) => plan.pieces[p].norm_chunks * 8,
        Tensor::AllNormParts => plan.pieces.iter().map(|p| p.norm_chunks * 8).sum(),
        Tensor::Clip => CLIP_BYTES,
        Tensor::Losses => u64::from(plan.rounds().each()) * LOSS_BYTES,
        Tensor::Inputs(_) => w.batch.input_bytes().0,
        Tensor::Local(u, i, _) => w.units[u as usize].tensors[i].bytes.0,
        Tensor::Cache(u) => w.units[u as usize].cache.0,
        Tensor::Workspace => u64::MAX,
        Tensor::Shard(p) => plan.own(p) * plan.precision.size(),
        Tensor::Shares(p) => plan.own(p) * 4 * ranks,
        Tensor::NormPartsOfAll => size(plan, w, Tensor::AllNormParts) * ranks,
        Tensor::LossesOfAll => size(plan, w, Tensor::Losses) * ranks,
    }
}

/// Sums of a gradient that each rank makes apart: one, but for the leaves of a tree.
fn sums(w: &Workload) -> u64 {
    match w.leaves {
        0 | 1 => 1,
        leaves => u64::from(leaves / w.ranks),
    }
}

/// Clip factor, norm and go-ahead, and room.
const CLIP_BYTES: u64 = 64;
/// Sum of losses and their number, of one micro-batch.
const LOSS_BYTES: u64 = 16;
