//! Rule 8, of one task: it has the operands that its work has in the workload, each the right bytes
//! of the right tensor, on a lane that reaches them.
//!
//! One file because it is one list of tasks, each with what it must have.

use lowtide_units::{Bytes, List, ids};
use lowtide_workload::{
    Access, Dtype, Input, LocalId, Op, OpId, PARAM_ALIGN, PIECE_ALIGN, ParamId, Unit, UnitKind,
    What, Workload,
};

use super::{CLIP_BYTES, Fault, LOSS_BYTES, size, sums};
use crate::choice::Clip;
use crate::plan::{
    Arg, Lane, PartName, Phase, PieceId, Plan, Task, TaskId, Tensor, Tier, Use, Work,
};

/// The first task that is not one of the workload's.
pub(super) fn operands(plan: &Plan, w: &Workload, clip: Clip) -> Result<(), Fault> {
    pieces(plan, w).map_err(|what| Fault {
        part: PartName::First,
        task: TaskId(0),
        what,
    })?;
    let mut piece_of = List::from(vec![PieceId(0); w.params.len()]);
    for (i, piece) in plan.pieces.pairs() {
        ids(&piece.params).for_each(|p| piece_of[p] = i);
    }
    for part in PartName::ALL {
        let here = Here {
            plan,
            w,
            clip,
            part,
            piece_of: &piece_of,
        };
        for (i, task) in plan.part(part).pairs() {
            here.task(task).map_err(|what| Fault {
                part,
                task: i,
                what,
            })?;
        }
    }
    Ok(())
}

/// Pieces hold every parameter once, in order and apart.
fn pieces(plan: &Plan, w: &Workload) -> Result<(), String> {
    let ranks = u64::from(w.ranks);
    let (mut next, mut chunks) = (ParamId(0), 0);
    for (i, p) in plan.pieces.iter().enumerate() {
        let params = w.params.run(&p.params);
        let Some(params) = params.filter(|x| p.params.start == next && !x.is_empty()) else {
            return Err(format!("piece {i} is not the next parameters"));
        };
        let mut at = 0;
        for (k, param) in params.iter().enumerate() {
            let offset = p.offsets.get(k).copied().unwrap_or(u64::MAX);
            let place = offset >= at && offset.is_multiple_of(PARAM_ALIGN * ranks);
            if param.unit != p.unit || param.frozen != p.frozen || !place {
                return Err(format!("{} has no place in piece {i}", param.name));
            }
            let rows: u64 = param.tensors().map(|rows| rows.end - rows.start).sum();
            if rows != param.rows() {
                return Err(format!("{} is of {rows} rows of tensors", param.name));
            }
            at = offset.saturating_add(param.elements);
        }
        let parts: u64 = params.iter().map(|param| w.norm_chunks(param)).sum();
        let norm = (p.norm_offset, p.norm_chunks) == (chunks, parts);
        if at > p.elements || !p.elements.is_multiple_of(PIECE_ALIGN * ranks) || !norm {
            return Err(format!("piece {i} has not the size of its parameters"));
        }
        next = p.params.end;
        chunks += parts;
    }
    let units = plan.unit_names.len() == w.units.len();
    let same = (plan.accumulate, plan.ranks) == (w.batch.accumulate, w.ranks);
    let tree = w.leaves == 1 || (w.leaves.is_power_of_two() && w.leaves.is_multiple_of(w.ranks));
    let even = tree && u64::from(w.batch.accumulate).is_multiple_of(sums(w));
    if next != w.params.next_id() || !units || !same || !even {
        return Err("the plan is of another workload".to_owned());
    }
    let storage = (plan.precision, plan.gradient, plan.optimizer);
    if storage != (w.precision, w.gradient, w.optimizer) {
        return Err("the plan stores numbers otherwise than the workload".to_owned());
    }
    Ok(())
}

/// The operations of a unit in a phase.
pub(super) fn ops(unit: &Unit, phase: Phase) -> &List<OpId, Op> {
    match phase {
        Phase::Forward | Phase::Recompute => &unit.forward,
        Phase::Backward => &unit.backward,
        Phase::Evaluate => &unit.evaluate,
        Phase::Infer => &unit.infer,
    }
}

/// What an argument must be: a tensor, its bytes, and what is done with them.
struct Want {
    tensor: Tensor,
    offset: u64,
    bytes: u64,
    access: Use,
}

/// Where a task stands.
struct Here<'a> {
    plan: &'a Plan,
    w: &'a Workload,
    clip: Clip,
    part: PartName,
    piece_of: &'a List<ParamId, PieceId>,
}

impl Here<'_> {
    fn task(&self, task: &Task) -> Result<(), String> {
        match task.work {
            Work::Compute {
                unit,
                phase,
                op,
                micro_batch,
            } => self.compute(task, (unit, phase, op, micro_batch)),
            Work::Fold { piece } if sums(self.w) == 1 => {
                Err(format!("adds up one sum of piece {piece}"))
            }
            Work::Fold { piece } => {
                let all = [self.whole(Tensor::Accumulator(self.known(piece)?), Use::Update)];
                self.on(task, Lane::GPU, Tier::Device, &all)
            }
            Work::Finish { piece } => self.finish(task, self.known(piece)?),
            Work::Update { piece } => self.update(task, self.known(piece)?),
            Work::AllToAll { piece } => {
                let piece = self.known(piece)?;
                let all = [
                    self.sum(piece, Use::Read),
                    self.whole(Tensor::Shares(piece), Use::Write),
                ];
                self.on(task, Lane::NET, Tier::Device, &all)
            }
            Work::AllGather { piece } => self.gather(task, piece),
            Work::Copy | Work::Read | Work::Write => self.transfer(task),
            Work::Load { micro_batch } => {
                let all = [self.whole(Tensor::Inputs(micro_batch), Use::Write)];
                self.on(task, Lane::HOST, Tier::Host, &all)
            }
            Work::Norm => {
                let all = [
                    self.whole(self.of_all(Tensor::AllNormParts), Use::Read),
                    self.whole(Tensor::Clip, Use::Write),
                    self.losses(),
                ];
                self.on(task, Lane::HOST, Tier::Host, &all)
            }
            Work::Losses => self.on(task, Lane::HOST, Tier::Host, &[self.losses()]),
            Work::Logits { micro_batch } => self.logits(task, micro_batch),
            Work::Commit => self.commit(task),
        }
    }

    fn known(&self, piece: PieceId) -> Result<PieceId, String> {
        if self.plan.pieces.find(piece).is_some() {
            Ok(piece)
        } else {
            Err(format!("is of piece {piece}, which does not exist"))
        }
    }

    /// All of a tensor.
    fn whole(&self, tensor: Tensor, access: Use) -> Want {
        Want {
            tensor,
            offset: 0,
            bytes: size(self.plan, self.w, tensor),
            access,
        }
    }

    /// The sum of a gradient, of a rank's sums the first.
    fn sum(&self, piece: PieceId, access: Use) -> Want {
        let sums = self.whole(Tensor::Accumulator(piece), access);
        Want {
            bytes: sums.bytes / self::sums(self.w),
            ..sums
        }
    }

    /// The losses of the part's micro-batches.
    fn losses(&self) -> Want {
        let span = self.plan.rounds().span(self.part);
        Want {
            tensor: self.of_all(Tensor::Losses),
            offset: 0,
            bytes: u64::from(span.end - span.start) * LOSS_BYTES * u64::from(self.plan.ranks),
            access: Use::Read,
        }
    }

    /// What has the same of every rank.
    fn of_all(&self, tensor: Tensor) -> Tensor {
        match tensor {
            Tensor::Losses if self.plan.ranks > 1 => Tensor::LossesOfAll,
            Tensor::AllNormParts if self.plan.ranks > 1 => Tensor::NormPartsOfAll,
            one => one,
        }
    }

    /// What every rank has comes together: a piece's weights, norm parts or losses.
    fn gather(&self, task: &Task, piece: Option<PieceId>) -> Result<(), String> {
        let own = task.args.first().map(|a| self.plan.slots[a.slot].tensor);
        let all = match (piece, own) {
            (Some(piece), _) => {
                let piece = self.known(piece)?;
                [
                    self.whole(Tensor::Shard(piece), Use::Read),
                    self.whole(Tensor::Weight(piece), Use::Write),
                ]
            }
            (None, Some(Tensor::AllNormParts)) => [
                self.whole(Tensor::AllNormParts, Use::Read),
                self.whole(Tensor::NormPartsOfAll, Use::Write),
            ],
            (None, _) => {
                let all = self.losses();
                let own = Want {
                    tensor: Tensor::Losses,
                    bytes: all.bytes / u64::from(self.plan.ranks),
                    ..all
                };
                let access = Use::Write;
                [
                    own,
                    Want {
                        access,
                        ..self.losses()
                    },
                ]
            }
        };
        self.on(task, Lane::NET, Tier::Device, &all)
    }

    /// The task's arguments are these, in this order, all of one tier.
    fn on(&self, task: &Task, lane: Lane, tier: Tier, want: &[Want]) -> Result<(), String> {
        if task.lane != lane {
            return Err(format!("runs on lane {}, not {lane}", task.lane));
        }
        self.these(&task.args, tier, want)
    }

    /// The arguments are these, in this order, all of one tier.
    fn these(&self, args: &[Arg], tier: Tier, want: &[Want]) -> Result<(), String> {
        if args.len() != want.len() {
            let (have, want) = (args.len(), want.len());
            return Err(format!("has {have} arguments, not {want}"));
        }
        let pairs = args.iter().zip(want);
        pairs.into_iter().try_for_each(|(a, w)| self.is(a, tier, w))
    }

    fn is(&self, a: &Arg, tier: Tier, want: &Want) -> Result<(), String> {
        let slot = &self.plan.slots[a.slot];
        let name = || want.tensor.name(self.plan);
        let same = slot.tensor == want.tensor || self.sums(slot.tensor, want.tensor);
        if !same {
            let found = slot.tensor.name(self.plan);
            return Err(format!("has {found} where {} belongs", name()));
        }
        if slot.tier != tier {
            return Err(format!("finds {} on the {}", name(), slot.tier));
        }
        if (a.offset, a.bytes) != (want.offset, want.bytes) {
            let (from, bytes) = (a.offset, a.bytes);
            return Err(format!("uses bytes {from}+{bytes} of {}", name()));
        }
        if a.access != want.access {
            return Err(format!("has {:?} for {}", a.access, name()));
        }
        Ok(())
    }

    /// A gradient in f32 adds up where it will wait, or waits where it added up.
    fn sums(&self, have: Tensor, want: Tensor) -> bool {
        let pair = matches!((have, want), (Tensor::Gradient(p), Tensor::Accumulator(q))
            | (Tensor::Accumulator(p), Tensor::Gradient(q)) if p == q);
        pair && self.w.sums_in_place()
    }

    fn compute(&self, task: &Task, at: (u32, Phase, OpId, u32)) -> Result<(), String> {
        let (u, phase, op, m) = at;
        let unit = self.w.units.get(u as usize);
        let Some(o) = unit.and_then(|unit| ops(unit, phase).find(op)) else {
            return Err(format!(
                "is operation {op} of unit {u}, which does not exist"
            ));
        };
        if m >= self.plan.accumulate {
            return Err(format!("is of micro-batch {m}, which does not exist"));
        }
        let n = o.operands.len();
        let scratch = u64::from(o.workspace.0 > 0);
        if task.lane != Lane::GPU || task.args.len() as u64 != n as u64 + scratch {
            return Err(format!(
                "has {} arguments on {}",
                task.args.len(),
                task.lane
            ));
        }
        for (a, operand) in task.args.iter().zip(&o.operands) {
            let mut want = self.operand(u, operand.what, m)?;
            want.access = match operand.access {
                Access::Read => Use::Read,
                Access::Write => Use::Write,
                // A part of what is kept is new, never all of it.
                Access::Accumulate if operand.what == What::Cache => Use::Update,
                // The last reader wrote an input's gradient.
                Access::Accumulate if matches!(operand.what, What::Local(_)) => Use::Update,
                // Rule 7 tells which.
                Access::Accumulate if a.access == Use::Write => Use::Write,
                Access::Accumulate => Use::Update,
            };
            self.is(a, Tier::Device, &want)?;
        }
        let mut scratch = task.args[n..].iter();
        scratch.try_for_each(|a| self.scratch(a, Tier::Device, o.workspace))
    }

    /// The argument is so much scratch.
    fn scratch(&self, a: &Arg, tier: Tier, bytes: Bytes) -> Result<(), String> {
        let slot = &self.plan.slots[a.slot];
        let place = (slot.tensor, slot.tier, a.access);
        match place == (Tensor::Workspace, tier, Use::Write) && a.bytes >= bytes.0 {
            true => Ok(()),
            false => Err(format!("lacks {bytes} of scratch")),
        }
    }

    /// The bytes of an operand of unit `u`. A unit's input is the output of the unit that it names; the
    /// gradient of an output is what the last unit that reads it calls its input's gradient.
    fn operand(&self, u: u32, what: What, m: u32) -> Result<Want, String> {
        let unit = &self.w.units[u as usize];
        let local = |(n, i): (u32, LocalId)| self.whole(Tensor::Local(n, i, m), Use::Read);
        let gradient_of = |n: u32| {
            let last = |reader: &Unit| reader.inputs.iter().any(|input| input.unit == n);
            let last = self.w.units.iter().rposition(last)?;
            let mut inputs = self.w.units[last].inputs.iter();
            let input = inputs.find(|input| input.unit == n)?;
            Some(local((last as u32, input.gradient)))
        };
        let output_of = |n: u32| {
            let output = self.w.units.get(n as usize)?.output?;
            Some(local((n, output)))
        };
        const NOWHERE: &str = "has an operand of a unit that is not there";
        let part = |p: ParamId, tensor: fn(PieceId) -> Tensor, bytes: u64| {
            let piece = self.piece_of[p];
            Want {
                tensor: tensor(piece),
                offset: self.plan.pieces[piece].offset_of(p) * bytes,
                bytes: self.w.params[p].elements * bytes,
                access: Use::Read,
            }
        };
        Ok(match what {
            What::Local(i) if unit.d_output == Some(i) => gradient_of(u).ok_or(NOWHERE)?,
            What::Local(i) => {
                let names = |input: &&Input| [input.tensor, input.gradient].contains(&i);
                match unit.inputs.iter().find(names) {
                    Some(input) if input.tensor == i => output_of(input.unit).ok_or(NOWHERE)?,
                    Some(input) => gradient_of(input.unit).ok_or(NOWHERE)?,
                    None => local((u, i)),
                }
            }
            What::Weight(p) => part(p, Tensor::Weight, self.w.precision.size()),
            What::Gradient(p) => {
                let sum = u64::from(m) % sums(self.w);
                let first = part(p, Tensor::Accumulator, 4);
                Want {
                    offset: first.offset + sum * self.plan.pieces[self.piece_of[p]].elements * 4,
                    ..first
                }
            }
            What::Cache => self.whole(Tensor::Cache(u), Use::Read),
            What::Inputs => self.whole(Tensor::Inputs(m), Use::Read),
            What::Loss => {
                let first = self.plan.rounds().span(self.part).start;
                Want {
                    tensor: Tensor::Losses,
                    offset: u64::from(m.wrapping_sub(first)) * LOSS_BYTES,
                    bytes: LOSS_BYTES,
                    access: Use::Write,
                }
            }
        })
    }

    fn finish(&self, task: &Task, p: PieceId) -> Result<(), String> {
        let parts = self.whole(Tensor::NormParts(p), Use::Write);
        let gradient = self.whole(Tensor::Gradient(p), Use::Write);
        let one = sums(self.w) == 1;
        let want = match (self.w.gradient, self.plan.ranks) {
            (Dtype::F32, 1) if one => vec![self.sum(p, Use::Update), parts],
            (_, 1) => vec![gradient, parts, self.sum(p, Use::Read)],
            _ => vec![gradient, parts, self.whole(Tensor::Shares(p), Use::Update)],
        };
        self.on(task, Lane::GPU, Tier::Device, &want)
    }

    fn update(&self, task: &Task, p: PieceId) -> Result<(), String> {
        let tier = match task.lane {
            Lane::GPU => Tier::Device,
            Lane::HOST => Tier::Host,
            lane => return Err(format!("runs on lane {lane}")),
        };
        let params = self.plan.pieces[p].of(self.w);
        let scratch = Bytes(self.w.optimizer.scratch_bytes(params));
        let mut args = task.args.as_slice();
        if scratch > Bytes::ZERO {
            let (last, before) = args.split_last().ok_or("has no arguments")?;
            self.scratch(last, tier, scratch)?;
            args = before;
        }
        let mut want = vec![
            self.whole(self.plan.master(p), Use::Update),
            self.whole(Tensor::State(p), Use::Update),
            self.whole(Tensor::Gradient(p), Use::Read),
            self.whole(Tensor::Clip, Use::Read),
        ];
        // The piece's own norm parts, with which an update knows that its gradient is finite; with a
        // norm that was made before it needs none.
        let normed = self.clip == Clip::Exact
            || self.clip == Clip::Previous
                && matches!(self.part, PartName::First | PartName::LastFirst);
        match args.get(4).map(|a| self.plan.slots[a.slot].tensor) {
            Some(Tensor::NormParts(_)) => want.push(self.whole(Tensor::NormParts(p), Use::Read)),
            Some(_) => {
                let piece = &self.plan.pieces[p];
                want.push(Want {
                    tensor: Tensor::AllNormParts,
                    offset: piece.norm_offset * 8,
                    bytes: piece.norm_chunks * 8,
                    access: Use::Read,
                });
            }
            None if normed && tier == Tier::Device => {}
            None => return Err("does not see the norm of its gradient".to_owned()),
        }
        self.these(args, tier, &want)
    }

    fn transfer(&self, task: &Task) -> Result<(), String> {
        let [from, to] = task.args.as_slice() else {
            return Err(format!("has {} arguments, not 2", task.args.len()));
        };
        let tier = |a: &Arg| self.plan.slots[a.slot].tier;
        let way = match (task.work, tier(from), tier(to)) {
            (Work::Copy, Tier::Host, Tier::Device) => Lane::H2D,
            (Work::Copy, Tier::Device, Tier::Host) => Lane::D2H,
            (Work::Read, Tier::Disk, Tier::Host) => Lane::DISK_READ,
            (Work::Write, Tier::Host, Tier::Disk) => Lane::DISK_WRITE,
            (Work::Read, Tier::Disk, Tier::Device) if self.plan.choice.direct.read => {
                Lane::DISK_READ
            }
            (Work::Write, Tier::Device, Tier::Disk) if self.plan.choice.direct.write => {
                Lane::DISK_WRITE
            }
            (_, from, to) => return Err(format!("moves from the {from} to the {to}")),
        };
        if task.lane != way {
            return Err(format!("runs on lane {}, not {way}", task.lane));
        }
        if (from.access, to.access) != (Use::Read, Use::Write) || from.bytes != to.bytes {
            return Err("moves other bytes than it reads".to_owned());
        }
        if from.bytes == 0 {
            return Err("moves nothing".to_owned());
        }
        let align = Tier::Disk.align();
        let whole = |a: &Arg| a.offset.is_multiple_of(align) && a.bytes.is_multiple_of(align);
        if task.work != Work::Copy && !(whole(from) && whole(to)) {
            return Err("moves a part of a sector".to_owned());
        }
        if task.work == Work::Copy {
            return Ok(());
        }
        // On the device slots need not begin with a sector.
        let slots = [from, to].map(|a| &self.plan.slots[a.slot]);
        if let Some(s) = slots.iter().find(|s| !s.offset.is_multiple_of(align)) {
            let name = s.tensor.name(self.plan);
            return Err(format!("moves {name}, which begins inside a sector"));
        }
        // A commit proves what was written by a checksum that the processor makes on the way.
        let direct = task.work == Work::Write && tier(from) == Tier::Device;
        if direct && slots[1].version.is_some() {
            return Err("writes a durable extent past the host".to_owned());
        }
        Ok(())
    }

    fn logits(&self, task: &Task, m: u32) -> Result<(), String> {
        let head = self.w.units.iter().rposition(|u| u.kind == UnitKind::Head);
        let (u, last) = head
            .and_then(|u| Some((u, self.w.units[u].infer.last()?)))
            .ok_or("is of a workload without a head")?;
        let made = last.operands.iter().find_map(|o| match (o.what, o.access) {
            (What::Local(i), Access::Write) => Some(Tensor::Local(u as u32, i, m)),
            _ => None,
        });
        let logits = made.ok_or("is of a head without logits")?;
        let want = [self.whole(logits, Use::Read)];
        self.on(task, Lane::HOST, Tier::Host, &want)
    }

    /// Which extents a commit must have is rule 6; it has them whole, and the clip factor last.
    fn commit(&self, task: &Task) -> Result<(), String> {
        let Some((clip, extents)) = task.args.split_last() else {
            return Err("commits nothing".to_owned());
        };
        for a in extents {
            let s = &self.plan.slots[a.slot];
            let whole = (a.offset, a.bytes, a.access) == (0, s.bytes, Use::Read);
            if s.tier != Tier::Disk || !whole {
                return Err(format!("commits a part of {}", s.tensor.name(self.plan)));
            }
        }
        let want = Want {
            bytes: CLIP_BYTES,
            ..self.whole(Tensor::Clip, Use::Read)
        };
        self.is(clip, Tier::Host, &want)
    }
}
