//! The gpu lane's work of one part, in order, and when each tensor is used.
//!
//! From the operands alone follow the windows in which a tensor must be on the device: runs of
//! uses without a long pause. A tensor whose home is the device has one window; others have
//! several, with an offload after a window that wrote and a fetch before one that reads.

mod finish;

use std::collections::BTreeSet;
use std::ops::Range;

use lowtide_units::List;
use lowtide_workload::{Access, LocalId, Op, OpId, ParamId, Unit, UnitKind, What, Workload};

use crate::choice::{Choice, LoopOrder, Saved};
use crate::fast::FastMap;
use crate::plan::{
    Gradients, PartName, Phase, Piece, PieceId, Tensor, Use, Work, canonical, gradients_of_outputs,
};

/// One use of a tensor by an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub tensor: Tensor,
    pub access: Use,
    pub offset: u64,
    pub bytes: u64,
}

/// One task of the gpu lane before it has slots.
#[derive(Clone, Debug)]
pub(crate) struct GpuOp {
    pub work: Work,
    /// Consecutive operations of one unit and direction.
    pub run: u32,
    /// Consecutive operations of one unit, direction and micro-batch.
    pub visit: u32,
    pub operands: Vec<Operand>,
    pub workspace: u64,
}

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Train,
    Evaluate,
    Infer,
}

/// The micro-batches of a part, and which ends of a batch it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub micro_batches: Range<u32>,
    /// Nothing was added to a gradient before.
    pub begins: bool,
    /// Gradients are complete behind it.
    pub ends: bool,
    /// The batch is cut into rounds.
    pub rounds: bool,
    /// Micro-batches of the whole batch.
    pub batch: u32,
}

impl Span {
    pub(crate) fn new(w: &Workload, choice: &Choice, part: PartName) -> Self {
        let rounds = choice.rounds(w);
        let last = matches!(part, PartName::Last | PartName::LastFirst);
        Self {
            micro_batches: rounds.span(part),
            begins: matches!(part, PartName::First | PartName::Steady),
            ends: last || rounds.one(),
            rounds: !rounds.one(),
            batch: w.batch.accumulate,
        }
    }

    /// The embeddings whose backward waits for the end of the batch, in forward order: one that shares a table adds to
    /// it in the same order in every cut, the shares of units above of all micro-batches first.
    pub(crate) fn late(&self, w: &Workload) -> Vec<u32> {
        match self.rounds {
            true => sharing(w),
            false => Vec::new(),
        }
    }
}

/// The parameters to whose gradient a unit adds.
fn added_to(unit: &Unit) -> impl Iterator<Item = ParamId> {
    let operands = unit.backward.iter().flat_map(|op| &op.operands);
    operands.filter_map(|o| match o.what {
        What::Gradient(p) => Some(p),
        _ => None,
    })
}

/// The embeddings that add to a gradient to which another unit adds too, in forward order.
pub(crate) fn sharing(w: &Workload) -> Vec<u32> {
    let embeddings = (0..w.units.len()).filter(|&u| w.units[u].kind == UnitKind::Embedding);
    let shares = |&u: &usize| {
        let own: Vec<ParamId> = added_to(&w.units[u]).collect();
        let others = w.units.iter().enumerate().filter(|&(other, _)| other != u);
        let mut others = others.flat_map(|(_, unit)| added_to(unit));
        others.any(|p| own.contains(&p))
    };
    embeddings.filter(shares).map(|u| u as u32).collect()
}

pub(crate) struct Program {
    pub ops: Vec<GpuOp>,
    /// First operation of each visit.
    pub visits: Vec<usize>,
}

/// A stretch of operations during which a tensor is on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub tensor: Tensor,
    /// First and last operation that use it.
    pub first: usize,
    pub last: usize,
    /// Starts with an overwrite: nothing to fetch.
    pub fresh: bool,
    /// Some operation in it writes.
    pub writes: bool,
    /// Another window of the same content follows.
    pub continues: bool,
    /// It is not the first of its content.
    pub continued: bool,
}

struct Builder<'a> {
    w: &'a Workload,
    pieces: &'a List<PieceId, Piece>,
    piece_of: &'a List<ParamId, PieceId>,
    gradients: Gradients,
    ops: Vec<GpuOp>,
    visits: Vec<usize>,
    run: u32,
    last: Option<(u32, bool, u32)>,
    /// Of each sum of a gradient.
    touched: Vec<List<ParamId, bool>>,
    /// The micro-batch whose losses come first in their slot.
    base: u32,
}

impl Builder<'_> {
    fn visit(&mut self, unit: u32, backward: bool, m: u32) {
        match self.last {
            Some((u, b, _)) if u == unit && b == backward => {}
            None => {}
            _ => self.run += 1,
        }
        if self.last != Some((unit, backward, m)) {
            self.visits.push(self.ops.len());
        }
        self.last = Some((unit, backward, m));
    }

    fn push(&mut self, unit: u32, phase: Phase, op_idx: OpId, op: &Op, m: u32) {
        let operands = op
            .operands
            .iter()
            .map(|o| {
                let tensor = canonical(self.w, &self.gradients, unit, o.what, m, self.piece_of);
                let (offset, bytes) = self.range(unit, o.what, m);
                let sum = (m % self.w.sums()) as usize;
                let access = match (o.access, o.what) {
                    (Access::Read, _) => Use::Read,
                    (Access::Write, _) => Use::Write,
                    (Access::Accumulate, What::Gradient(p)) => {
                        let before = std::mem::replace(&mut self.touched[sum][p], true);
                        if before { Use::Update } else { Use::Write }
                    }
                    (Access::Accumulate, _) => Use::Update,
                };
                Operand {
                    tensor,
                    access,
                    offset,
                    bytes,
                }
            })
            .collect();
        self.ops.push(GpuOp {
            work: Work::Compute {
                unit,
                phase,
                op: op_idx,
                micro_batch: m,
            },
            run: self.run,
            visit: self.visits.len() as u32 - 1,
            operands,
            workspace: op.workspace.0,
        });
    }

    /// Where the operand lies inside its tensor's slot.
    fn range(&self, unit: u32, what: What, m: u32) -> (u64, u64) {
        match what {
            What::Local(i) => (0, self.w.units[unit as usize].tensors[i].bytes.0),
            What::Weight(p) => {
                let piece = &self.pieces[self.piece_of[p]];
                let size = self.w.precision.size();
                (piece.offset_of(p) * size, self.w.params[p].elements * size)
            }
            What::Gradient(p) => {
                let piece = &self.pieces[self.piece_of[p]];
                let sum = u64::from(m % self.w.sums()) * piece.elements;
                (
                    (sum + piece.offset_of(p)) * 4,
                    self.w.params[p].elements * 4,
                )
            }
            What::Cache => (0, self.w.units[unit as usize].cache.0),
            What::Inputs => (0, self.w.batch.input_bytes().0),
            What::Loss => (u64::from(m - self.base) * 16, 16),
        }
    }

    fn all(&mut self, unit: u32, phase: Phase, backward: bool, m: u32) {
        self.visit(unit, backward, m);
        let u = &self.w.units[unit as usize];
        for (i, op) in phase.ops(u).pairs() {
            self.push(unit, phase, i, op, m);
        }
    }

    fn backward(&mut self, unit: u32, m: u32, recompute: &[OpId]) {
        self.visit(unit, true, m);
        let u = &self.w.units[unit as usize];
        for &i in recompute {
            self.push(unit, Phase::Recompute, i, &u.forward[i], m);
        }
        self.all(unit, Phase::Backward, true, m);
    }
}

/// Forward operations that backward has to run again, in forward order: those that write a tensor
/// marked [`Saved::Recompute`], and in turn those that write what these read, unless it is saved.
pub(crate) fn recomputed_ops(unit: &Unit, choice: &[Saved]) -> Vec<OpId> {
    let saved = unit.saved();
    let available = |i: LocalId| {
        unit.input(i).is_some()
            || saved
                .iter()
                .position(|&s| s == i)
                .is_some_and(|k| choice[k] != Saved::Recompute)
    };
    let writer = |i: LocalId| {
        unit.forward.position(|op| {
            op.operands
                .iter()
                .any(|o| o.what == What::Local(i) && o.access == Access::Write)
        })
    };
    let mut wanted: Vec<LocalId> = saved
        .iter()
        .zip(choice)
        .filter(|&(_, &c)| c == Saved::Recompute)
        .map(|(&i, _)| i)
        .collect();
    let mut ops = BTreeSet::new();
    while let Some(i) = wanted.pop() {
        let Some(op) = writer(i) else { continue };
        if !ops.insert(op) {
            continue;
        }
        for o in &unit.forward[op].operands {
            if let (What::Local(j), Access::Read) = (o.what, o.access)
                && !available(j)
            {
                wanted.push(j);
            }
        }
    }
    ops.into_iter().collect()
}

/// Parameters that operations before the part have added to a gradient of. What only embeddings add to whose backward
/// waits for the end of the batch has no share yet.
fn touched(w: &Workload, span: &Span, late: &[u32]) -> List<ParamId, bool> {
    let mut touched = List::from(vec![!span.begins; w.params.len()]);
    if late.is_empty() {
        return touched;
    }
    let mut adds = List::from(vec![false; w.params.len()]);
    let others = (0..).zip(&w.units).filter(|(u, _)| !late.contains(u));
    for p in others.flat_map(|(_, unit)| added_to(unit)) {
        adds[p] = true;
    }
    for p in late.iter().flat_map(|&u| added_to(&w.units[u as usize])) {
        touched[p] &= adds[p];
    }
    touched
}

/// The gpu lane's operations of one part. Long because the orders of its loops stand beside each other.
pub(crate) fn program(
    w: &Workload,
    choice: &Choice,
    pieces: &List<PieceId, Piece>,
    piece_of: &List<ParamId, PieceId>,
    purpose: Purpose,
    span: &Span,
) -> Program {
    let late = span.late(w);
    let mut b = Builder {
        w,
        pieces,
        piece_of,
        gradients: gradients_of_outputs(w),
        ops: Vec::new(),
        visits: Vec::new(),
        run: 0,
        last: None,
        touched: vec![touched(w, span, &late); w.sums() as usize],
        base: span.micro_batches.start,
    };
    let n = w.units.len() as u32;
    let head = n - 1;
    let all = || span.micro_batches.clone();
    let recompute: Vec<Vec<OpId>> = w
        .units
        .iter()
        .zip(&choice.saved)
        .map(|(u, c)| recomputed_ops(u, c))
        .collect();
    let embeds = |u: u32| w.units[u as usize].kind == UnitKind::Embedding;
    let head_phase = match purpose {
        Purpose::Train => Phase::Backward,
        Purpose::Evaluate => Phase::Evaluate,
        Purpose::Infer => Phase::Infer,
    };
    let order = if span.rounds {
        LoopOrder::LayerMajor
    } else {
        choice.order
    };
    match order {
        LoopOrder::LayerMajor => {
            for unit in 0..head {
                all().for_each(|m| b.all(unit, Phase::Forward, false, m));
            }
            all().for_each(|m| b.all(head, head_phase, true, m));
            if purpose == Purpose::Train {
                for unit in (0..head).rev().filter(|u| !late.contains(u)) {
                    all().for_each(|m| b.backward(unit, m, &recompute[unit as usize]));
                }
                for &unit in late.iter().rev().filter(|_| span.ends) {
                    (0..span.batch).for_each(|m| b.backward(unit, m, &recompute[unit as usize]));
                }
            }
        }
        LoopOrder::BatchMajor => {
            for m in all() {
                (0..head).for_each(|unit| b.all(unit, Phase::Forward, false, m));
                b.all(head, head_phase, true, m);
                if purpose == Purpose::Train {
                    for unit in (0..head).rev().filter(|&u| !embeds(u)) {
                        b.backward(unit, m, &recompute[unit as usize]);
                    }
                }
            }
            // Embeddings' backward comes last for all micro-batches: a table that is shared then adds
            // up in the same order as layer-major does, head first.
            if purpose == Purpose::Train {
                for unit in (0..head).rev().filter(|&u| embeds(u)) {
                    all().for_each(|m| b.backward(unit, m, &recompute[unit as usize]));
                }
            }
        }
    }
    let mut program = Program {
        ops: b.ops,
        visits: b.visits,
    };
    if purpose == Purpose::Train && span.ends {
        finish::gradients(&mut program, w, pieces);
    }
    program
}

impl Program {
    /// The windows of every tensor, in order of first use, split where the tensor is `apart` from the device
    /// between two operations that use it. What `outlives` the program is not over with its last window.
    pub fn windows(
        &self,
        apart: impl Fn(Tensor, usize, usize) -> bool,
        outlives: impl Fn(Tensor) -> bool,
    ) -> Vec<Window> {
        // The last window of each tensor. New ones of an operation are in the order of their tensors.
        let mut open: FastMap<Tensor, usize> = FastMap::default();
        let mut all: Vec<Window> = Vec::new();
        let mut begun: Vec<Window> = Vec::new();
        for (i, op) in self.ops.iter().enumerate() {
            for o in &op.operands {
                if let Some(window) = begun.iter_mut().find(|w| w.tensor == o.tensor) {
                    window.writes |= o.access != Use::Read;
                    continue;
                }
                // Only local tensors and what Finish makes get new content by an overwrite; an
                // accumulator's parameters are overwritten one by one.
                let renews = o.access == Use::Write
                    && !matches!(o.tensor, Tensor::Accumulator(_) | Tensor::Losses);
                let new = Window {
                    tensor: o.tensor,
                    first: i,
                    last: i,
                    fresh: o.access == Use::Write,
                    writes: o.access != Use::Read,
                    continues: false,
                    continued: false,
                };
                match open.get(&o.tensor).map(|&k| &mut all[k]) {
                    None => begun.push(new),
                    Some(window) if renews && window.last != i => begun.push(new),
                    Some(window) if window.last != i && apart(o.tensor, window.last, i) => {
                        window.continues = true;
                        begun.push(Window {
                            continued: true,
                            fresh: false,
                            ..new
                        });
                    }
                    Some(window) => {
                        window.last = i;
                        window.writes |= o.access != Use::Read;
                    }
                }
            }
            begun.sort_unstable_by_key(|w| w.tensor);
            for window in begun.drain(..) {
                open.insert(window.tensor, all.len());
                all.push(window);
            }
        }
        for (t, k) in open {
            all[k].continues = outlives(t);
        }
        all
    }
}
