//! Rule 8, of a step: all work of the workload is there, each piece of it exactly once.

use lowtide_workload::{Access, OpId, ParamId, UnitKind, What, Workload};

use super::Fault;
use super::operands::ops;
use crate::choice::Clip;
use crate::fast::FastMap;
use crate::plan::{PartName, Phase, PieceId, Plan, TaskId, Work};

/// Work that must be there exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    Compute(u32, Phase, OpId, u32),
    Fold(PieceId),
    AllToAll(PieceId),
    Finish(PieceId),
    Update(PieceId),
    Load(u32),
    Norm,
    Losses,
    Logits(u32),
}

/// The first part whose work is not that of the workload.
pub(super) fn complete(plan: &Plan, w: &Workload, clip: Clip) -> Result<(), Fault> {
    PartName::ALL
        .into_iter()
        .try_for_each(|part| whole(plan, w, clip, part))
}

fn whole(plan: &Plan, w: &Workload, clip: Clip, part: PartName) -> Result<(), Fault> {
    let fault = |task: TaskId, what: String| Err(Fault { part, task, what });
    let wanted = wanted(plan, w, clip, part);
    let mut left: FastMap<Item, bool> = wanted.iter().map(|&item| (item, false)).collect();
    let mut normed = false;
    for (i, task) in plan.part(part).pairs() {
        let item = match task.work {
            // As often as wanted, of what the part's backward needs.
            Work::Compute {
                unit,
                phase: Phase::Recompute,
                op,
                micro_batch,
            } => {
                let forward = Item::Compute(unit, Phase::Forward, op, micro_batch);
                if left.contains_key(&forward) {
                    continue;
                }
                return fault(i, "recomputes what the part does not compute".to_owned());
            }
            // What they bring is as right or wrong as what a copy brings.
            Work::AllGather { .. } if plan.ranks > 1 => continue,
            Work::AllGather { .. } => return fault(i, "gathers of one rank".to_owned()),
            Work::Copy | Work::Read | Work::Write | Work::Commit => continue,
            Work::Compute {
                unit,
                phase,
                op,
                micro_batch,
            } => Item::Compute(unit, phase, op, micro_batch),
            Work::Fold { piece } => Item::Fold(piece),
            Work::AllToAll { piece } => Item::AllToAll(piece),
            Work::Finish { piece } => Item::Finish(piece),
            Work::Update { piece } => {
                if normed != updates_after_norm(clip, part) {
                    let side = if normed { "after" } else { "before" };
                    return fault(i, format!("updates {side} the norm"));
                }
                Item::Update(piece)
            }
            Work::Load { micro_batch } => Item::Load(micro_batch),
            Work::Norm => {
                normed = true;
                Item::Norm
            }
            Work::Losses => Item::Losses,
            Work::Logits { micro_batch } => Item::Logits(micro_batch),
        };
        match left.get_mut(&item) {
            None => return fault(i, format!("{item:?} is not this part's work")),
            Some(true) => return fault(i, format!("{item:?} is there twice")),
            Some(done) => *done = true,
        }
    }
    match wanted.iter().find(|item| !left[item]) {
        None => Ok(()),
        Some(item) => fault(TaskId(0), format!("{item:?} is not there")),
    }
}

/// Whether a part's updates use the norm of their own batch, which the part makes.
fn updates_after_norm(clip: Clip, part: PartName) -> bool {
    clip == Clip::Previous && matches!(part, PartName::First | PartName::LastFirst)
}

/// What a part is to do, by the rounds of the batch and how gradients are clipped.
fn wanted(plan: &Plan, w: &Workload, clip: Clip, part: PartName) -> Vec<Item> {
    use PartName::{Drain, Evaluate, First, Infer, Last, LastEvaluate, LastFirst, Middle, Steady};
    let rounds = plan.rounds();
    let (one, span) = (rounds.one(), rounds.span(part));
    // Frozen ones have no gradient and no update.
    let pieces = || {
        let trained = plan.pieces.pairs().filter(|(_, piece)| !piece.frozen);
        trained.map(|(p, _)| p)
    };
    let mut all = Vec::new();
    let there = match part {
        Middle => rounds.middles() > 0,
        Last | LastEvaluate => !one,
        LastFirst => !one && clip == Clip::Previous,
        _ => true,
    };
    if !there || (w.decodes() && part != Infer) {
        return all;
    }
    if part == Drain {
        if clip == Clip::Exact {
            all.extend(pieces().map(Item::Update));
        }
        return all;
    }
    let trains = !matches!(part, Evaluate | LastEvaluate | Infer);
    let ends = trains && (one || matches!(part, Last | LastFirst));
    let mut push = |u: usize, phase: Phase, m: u32| {
        let list = ops(&w.units[u], phase).ids();
        all.extend(list.map(|op| Item::Compute(u as u32, phase, op, m)));
    };
    // Of a batch in rounds a table that is shared gets its embeddings' shares at the end.
    let late = if one { Vec::new() } else { shared(w) };
    for m in span.clone() {
        for (u, unit) in w.units.iter().enumerate() {
            push(u, Phase::Forward, m);
            let head = unit.kind == UnitKind::Head;
            match part {
                Evaluate | LastEvaluate if head => push(u, Phase::Evaluate, m),
                Infer if head => push(u, Phase::Infer, m),
                _ if trains && !late.contains(&u) => push(u, Phase::Backward, m),
                _ => {}
            }
        }
    }
    let again = match !late.is_empty() && ends {
        true => 0..span.start,
        false => 0..0,
    };
    for &u in late.iter().filter(|_| ends) {
        (0..plan.accumulate).for_each(|m| push(u, Phase::Backward, m));
    }
    all.extend(again.chain(span.clone()).map(Item::Load));
    if ends {
        all.extend(pieces().map(Item::Finish));
        if super::sums(w) > 1 {
            all.extend(pieces().map(Item::Fold));
        }
        if plan.ranks > 1 {
            all.extend(pieces().map(Item::AllToAll));
        }
        all.push(Item::Norm);
    } else if part == Infer {
        all.extend(span.map(Item::Logits));
    } else {
        all.push(Item::Losses);
    }
    let updates = match clip {
        Clip::Exact => part == Steady,
        Clip::Previous | Clip::None => ends && matches!(part, First | Steady | Last | LastFirst),
    };
    if updates {
        all.extend(pieces().map(Item::Update));
    }
    all
}

/// The embeddings that are not alone in adding to a gradient.
fn shared(w: &Workload) -> Vec<usize> {
    let mut adders: FastMap<ParamId, Vec<usize>> = FastMap::default();
    for (u, unit) in w.units.iter().enumerate() {
        for o in unit.backward.iter().flat_map(|op| &op.operands) {
            if let (What::Gradient(p), Access::Accumulate) = (o.what, o.access) {
                adders.entry(p).or_default().push(u);
            }
        }
    }
    let several = |of: &&Vec<usize>| of.iter().any(|&u| u != of[0]);
    let found = adders.values().filter(several).flatten().copied();
    let mut found: Vec<usize> = found
        .filter(|&u| w.units[u].kind == UnitKind::Embedding)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}
