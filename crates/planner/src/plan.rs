//! The plan as data: tasks in one global order, a slot for every tensor during every part of its
//! life, and the edges that make every lane wait for exactly what it needs.
//!
//! A step is a cycle, so a plan has parts. In *drained* state every update is done; in *pending*
//! state a batch's gradients wait for their update, which runs under the next forward.
//!
//! | part | from | to | work |
//! |---|---|---|---|
//! | `first` | drained | pending | forward, backward |
//! | `steady` | pending | pending | update of the batch before under forward; backward |
//! | `drain` | pending | drained | update |
//! | `evaluate` | drained | drained | forward, loss |
//! | `infer` | drained | drained | forward, logits at marked positions |
//!
//! Of a workload that [decodes](Workload::decodes) there is `infer` alone: one step of making answers, again and
//! again, with keys and values that stay on the device in between.
//!
//! A batch of many micro-batches is cut into [rounds](crate::rounds): `first`, `steady` and `evaluate` are
//! then its first round, and `middle` and `last` the others.
//!
//! With clipping `none`, and with `previous` once a norm is known, updates run inside the batch's
//! own part (under backward), `steady` goes from drained to drained and `drain` is empty; `first`
//! then also updates, after its own norm.
//!
//! One file because it is what a plan is, in the order in which one reads it; parts, lanes and tiers have files of
//! their own.

use std::ops::Range;

use lowtide_units::{Bytes, Id, List, Seconds, id, ids};
use lowtide_workload::{
    Dtype, LocalId, Op, OpId, Optimizer, PIECE_ALIGN, Param, ParamId, Unit, What, Workload,
};
use serde::{Deserialize, Serialize};

pub use crate::lanes::{Lane, LaneKind, PerLane};
pub use crate::parts::{PartName, PerPart};
use crate::rounds::Rounds;
pub use crate::tiers::{PerTier, Tier};

id! {
    /// Which of [`Plan::pieces`].
    pub struct PieceId(u32);
}

/// A run of one unit's parameters that is fetched, accumulated, updated and written as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Which of [`Workload::units`] its parameters belong to.
    pub unit: u32,
    /// Which of [`Workload::params`].
    pub params: Range<ParamId>,
    /// Where each parameter starts, in numbers.
    pub offsets: Vec<u64>,
    /// Numbers in all, padding included; a multiple of [`PIECE_ALIGN`].
    pub elements: u64,
    /// Index of its first norm partial sum among all.
    pub norm_offset: u64,
    /// Its norm partial sums; of several ranks those of each.
    pub norm_chunks: u64,
    /// Its parameters are frozen: it has weights alone, which no task writes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

impl Piece {
    /// Lays out `params` of `unit`, of which all are frozen or none is.
    #[must_use]
    pub fn new(w: &Workload, unit: u32, params: Range<ParamId>, norm_offset: u64) -> Self {
        let mut at = 0;
        let mut norm_chunks = 0;
        let mut offsets = Vec::new();
        for p in ids(&params) {
            offsets.push(at);
            at += w.padded(&w.params[p]);
            norm_chunks += w.norm_chunks(&w.params[p]);
        }
        let elements = lowtide_units::align_up(at, PIECE_ALIGN * u64::from(w.ranks));
        let mut own = ids(&params).map(|p| &w.params[p]);
        let frozen = own.all(|p| p.frozen);
        Self {
            unit,
            frozen,
            params,
            offsets,
            elements,
            norm_offset,
            norm_chunks,
        }
    }

    /// Its parameters.
    ///
    /// # Panics
    /// When they are not of this workload.
    #[must_use]
    pub fn of<'w>(&self, w: &'w Workload) -> &'w [Param] {
        let params = w.params.run(&self.params);
        params.expect("a piece of this workload")
    }

    /// Numbers of it that each of so many ranks keeps and updates, padding included: of each parameter its share,
    /// where the parameter starts in the piece over the number of ranks.
    #[must_use]
    pub fn own(&self, ranks: u32) -> u64 {
        match self.frozen {
            true => self.elements,
            false => self.elements / u64::from(ranks),
        }
    }

    /// Where parameter `param` starts, in numbers.
    #[must_use]
    pub fn offset_of(&self, param: ParamId) -> u64 {
        self.offsets[param.idx() - self.params.start.idx()]
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tensor {
    /// Weights of a piece.
    Weight(PieceId),
    /// Optimizer state of a piece beside its weights: the arrays of [`Optimizer::layout`].
    State(PieceId),
    /// Complete gradient of a piece, rounded once.
    Gradient(PieceId),
    /// Gradient of a piece while it adds up, f32. In a tree the rank's sums, one behind the other.
    Accumulator(PieceId),
    /// Norm partial sums of a piece, f64.
    NormParts(PieceId),
    /// Norm partial sums of all pieces, f64.
    AllNormParts,
    /// Clip factor and norm.
    Clip,
    /// Loss sum and count of every micro-batch of a round, f64.
    Losses,
    /// Inputs of a micro-batch.
    Inputs(u32),
    /// A local tensor: unit that writes it, index there, micro-batch.
    Local(u32, LocalId, u32),
    /// Keys and values of a unit, kept from one step of decoding to the next.
    Cache(u32),
    /// Scratch of one task.
    Workspace,
    /// A rank's own share of a piece's weights: what it keeps and updates.
    Shard(PieceId),
    /// All ranks' sums of a rank's own share of a gradient, f32, in the order of ranks.
    Shares(PieceId),
    /// Norm partial sums of all pieces and all ranks, f64.
    NormPartsOfAll,
    /// Losses of all ranks, as [`Tensor::Losses`] each.
    LossesOfAll,
}

impl Tensor {
    /// A name for people.
    #[must_use]
    pub fn name(&self, plan: &Plan) -> String {
        let piece = |p: PieceId| {
            let piece = &plan.pieces[p];
            let unit = &plan.unit_names[piece.unit as usize];
            format!("{unit}[{}..{}]", piece.params.start, piece.params.end)
        };
        match *self {
            Self::Weight(p) => format!("weight {}", piece(p)),
            Self::State(p) => format!("optimizer state {}", piece(p)),
            Self::Gradient(p) => format!("gradient {}", piece(p)),
            Self::Accumulator(p) => format!("accumulator {}", piece(p)),
            Self::NormParts(p) => format!("norm parts {}", piece(p)),
            Self::AllNormParts => "norm parts".to_owned(),
            Self::Clip => "clip factor".to_owned(),
            Self::Losses => "losses".to_owned(),
            Self::Inputs(m) => format!("inputs m{m}"),
            Self::Local(u, i, m) => {
                format!("{} tensor {i} m{m}", plan.unit_names[u as usize])
            }
            Self::Cache(u) => format!("{} keys and values", plan.unit_names[u as usize]),
            Self::Workspace => "workspace".to_owned(),
            Self::Shard(p) => format!("own weight {}", piece(p)),
            Self::Shares(p) => format!("gradient shares {}", piece(p)),
            Self::NormPartsOfAll => "norm parts of all ranks".to_owned(),
            Self::LossesOfAll => "losses of all ranks".to_owned(),
        }
    }
}

/// Which of the two extents of a durable tensor a slot means. They change places with each batch's
/// update: what a part wrote as the next version is the current one of the part after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// As committed before this part's update. Nobody writes it.
    Current,
    /// As this part's update makes it.
    Next,
}

id! {
    /// Which of [`Plan::slots`].
    pub struct SlotId(u32);
}

/// A fixed byte range of a tier (on disk: an extent) that holds one tensor for one life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The tier whose address space `offset` is in.
    pub tier: Tier,
    /// First byte in the tier, a multiple of [`Tier::align`].
    pub offset: u64,
    /// Bytes reserved, a multiple of [`Tier::align`].
    pub bytes: u64,
    /// What it holds.
    pub tensor: Tensor,
    /// Lives across parts and steps. Others live inside one part.
    pub persistent: bool,
    /// Of a durable tensor only: which version this slot means, and the slot of the other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<(Version, SlotId)>,
}

/// How a task uses a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Use {
    /// The content is read and stays as it is.
    Read,
    /// All bytes are overwritten; earlier content is not looked at.
    Write,
    /// The content is read, then changed in place.
    Update,
}

/// A task's use of bytes of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arg {
    /// Index into [`Plan::slots`].
    pub slot: SlotId,
    /// First byte inside it.
    pub offset: u64,
    /// Length of the range.
    pub bytes: u64,
    /// Whether they are read, overwritten, or both.
    pub access: Use,
}

/// Which operations of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Each operation of a forward pass, once a micro-batch.
    Forward,
    /// A forward operation again, in backward.
    Recompute,
    /// Backward (the head's only list for training).
    Backward,
    /// The head's loss alone.
    Evaluate,
    /// The head's logits.
    Infer,
}

impl Phase {
    /// These operations of a unit.
    #[must_use]
    pub fn ops(self, unit: &Unit) -> &List<OpId, Op> {
        match self {
            Self::Forward | Self::Recompute => &unit.forward,
            Self::Backward => &unit.backward,
            Self::Evaluate => &unit.evaluate,
            Self::Infer => &unit.infer,
        }
    }
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Operation `op` of `unit` on one micro-batch. Args: the operands in order, then the
    /// workspace if it has one. A gradient operand used with [`Use::Write`] is the first of the
    /// batch and overwrites.
    Compute {
        /// Which of [`Workload::units`].
        unit: u32,
        /// List of operations.
        phase: Phase,
        /// Index in it.
        op: OpId,
        /// Micro-batch of the batch, from 0, when the part runs for the first time.
        micro_batch: u32,
    },
    /// Adds up a rank's sums of a gradient, which are complete: the second half of them to the first half, sum by sum,
    /// until the first one has all. Args: accumulator.
    Fold {
        /// Which of [`Plan::pieces`].
        piece: PieceId,
    },
    /// Rounds a complete accumulator to the gradient and sums its squares.
    /// Args: gradient, norm parts, accumulator (absent when the gradient is rounded in place). Of several ranks the
    /// third are the shares, which are added up first in the order of ranks.
    Finish {
        /// Which of [`Plan::pieces`].
        piece: PieceId,
    },
    /// Copies args\[0\] to args\[1\] between device and host.
    Copy,
    /// Reads the extent args\[0\] into args\[1\], on the host or, where the drives reach it, on the device.
    Read,
    /// Writes args\[0\], on the host or, where the drives reach it, on the device, to the extent args\[1\].
    Write,
    /// Fills the host slot args\[0\] with a micro-batch's inputs.
    Load {
        /// Micro-batch, when the part runs for the first time.
        micro_batch: u32,
    },
    /// Sums the norm parts args\[0\] (of all ranks, where there are several) in parameter order and writes norm and
    /// clip factor to args\[1\]. args\[2\]: losses of the last round.
    Norm,
    /// Hands the losses args\[0\] to the caller, behind those of the rounds before (evaluation, and rounds
    /// that do not end in a norm).
    Losses,
    /// Hands the logits args\[0\] to the caller.
    Logits {
        /// Micro-batch whose rows they belong to.
        micro_batch: u32,
    },
    /// The optimizer's step on a piece, on the lane's processor.
    /// Args: weight, state, gradient, clip factor, norm parts (on the device only where they are looked at),
    /// then scratch if the optimizer needs some.
    Update {
        /// Which of [`Plan::pieces`].
        piece: PieceId,
    },
    /// Sends every rank its share of the accumulator args\[0\], which is complete on this one, and gets all ranks'
    /// shares of its own into args\[1\].
    AllToAll {
        /// Which of [`Plan::pieces`].
        piece: PieceId,
    },
    /// Gets every rank's args\[0\] into args\[1\].
    AllGather {
        /// Of a piece's weights: each parameter's shares come together. Otherwise they lie one behind the other.
        piece: Option<PieceId>,
    },
    /// Makes the next version of everything durable survive a power loss, and says so in the
    /// journal. Args: every durable extent, next versions and current ones (which must stay as they
    /// are until this is complete), then the clip factor on the host, which goes into the journal.
    Commit,
}

id! {
    /// Which of a part's tasks, see [`Plan::part`].
    pub struct TaskId(u32);
}

/// One piece of work on one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The lane that does it.
    pub lane: Lane,
    /// What is done, and which arguments that takes.
    pub work: Work,
    /// The bytes that it uses, in the order that its work asks for.
    pub args: Vec<Arg>,
    /// Tasks of the same part, on other lanes, that must be complete. What earlier tasks of the
    /// same lane guarantee is left out.
    pub after: Vec<TaskId>,
}

impl Task {
    /// Whether it moves bytes between a drive and the device's memory, with the tier of each slot.
    pub(crate) fn is_direct(&self, tier: impl Fn(SlotId) -> Tier) -> bool {
        let transfer = matches!(self.work, Work::Read | Work::Write);
        transfer && self.args.iter().any(|a| tier(a.slot) == Tier::Device)
    }

    /// Bytes that it moves between tiers, or that each of so many ranks gets from all others; none of other work.
    #[must_use]
    pub fn moved(&self, ranks: u32) -> Bytes {
        let others = u64::from(ranks - 1);
        let bytes = || self.args[0].bytes;
        Bytes(match self.work {
            Work::Copy | Work::Read | Work::Write => bytes(),
            // Of the whole a share goes to each; of parts each comes from its rank.
            Work::AllToAll { .. } => bytes() / u64::from(ranks) * others,
            Work::AllGather { .. } => bytes() * others,
            _ => 0,
        })
    }
}

/// Edges from one part into the part submitted right after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seam {
    /// The earlier part.
    pub from: PartName,
    /// The later part.
    pub to: PartName,
    /// (task of `to`, task of `from` that must be complete).
    pub edges: Vec<(TaskId, TaskId)>,
}

/// How many bytes of a tier hold what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierUse {
    /// Reserved: exactly what the run allocates.
    pub planned_bytes: Bytes,
    /// What the user allowed.
    pub budget_bytes: Bytes,
    /// Weights that stay.
    pub weights: Bytes,
    /// Optimizer state that stays.
    pub optimizer: Bytes,
    /// Gradients that wait for the norm.
    pub gradients: Bytes,
    /// Everything that comes and goes: windows of weights, block inputs, saved tensors, staging.
    pub transient: Bytes,
    /// The most bytes that local tensors (activations and their gradients) of a training part take at once;
    /// they are among `transient`.
    #[serde(default)]
    pub activations: Bytes,
}

/// What one lane does in a steady step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LaneUse {
    /// Seconds of work, counted at the rate the lane has alone.
    pub busy_seconds: Seconds,
    /// Bytes moved (zero for gpu and host).
    pub bytes: Bytes,
    /// How many tasks the step has there, those of all rounds.
    pub tasks: u32,
}

/// Predicted times of a steady step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Time of one step in the middle of a run.
    pub step_seconds: Seconds,
    /// By lane, in the order of [`LaneKind::ALL`]; without the last one where the plan is of one rank.
    pub lanes: Vec<LaneUse>,
    /// Index into [`LaneKind::ALL`] of the lane with the most work.
    pub ruling_lane: u8,
    /// Bytes written to the drives in one step, by all ranks.
    pub disk_bytes_written: Bytes,
    /// Bytes read from the drives in one step, by all ranks.
    pub disk_bytes_read: Bytes,
    /// Time of one evaluation batch.
    pub evaluate_seconds: Seconds,
}

/// A checked, predicted training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// Names of the units.
    pub unit_names: Vec<String>,
    /// Storage of weights.
    pub precision: Dtype,
    /// Storage of complete gradients.
    pub gradient: Dtype,
    /// What updates the parameters, and how it stores its state.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// The choices that made it.
    pub choice: crate::choice::Choice,
    /// How the parameters are cut.
    pub pieces: List<PieceId, Piece>,
    /// Every slot and extent.
    pub slots: List<SlotId, Slot>,
    /// Tasks of each part.
    pub parts: PerPart<List<TaskId, Task>>,
    /// Edges between parts that may overlap in time.
    pub seams: Vec<Seam>,
    /// Use of each tier, in the order of [`Tier::ALL`].
    pub tiers: Vec<TierUse>,
    /// What it will take.
    pub prediction: Prediction,
    /// Micro-batches of a batch.
    pub accumulate: u32,
    /// Ranks that run this plan together, see [`Workload::ranks`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: u32,
    /// Of a batch in rounds: slots that each micro-batch has its own of across rounds, of one tensor after the other
    /// in the order of micro-batches. A task of a part that repeats names those of the first time that it runs; see
    /// [`Plan::shifted`].
    #[serde(default = "none", skip_serializing_if = "Range::is_empty")]
    pub late: Range<SlotId>,
}

/// Ranks of a plan for one GPU.
fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_one(ranks: &u32) -> bool {
    *ranks == 1
}

/// serde's default for plans without such slots.
fn none() -> Range<SlotId> {
    SlotId(0)..SlotId(0)
}

impl Plan {
    /// How the batch is cut into rounds.
    #[must_use]
    pub fn rounds(&self) -> Rounds {
        Rounds::new(self.choice.round, self.accumulate)
    }

    /// The parts that make up a whole `First`, `Steady` or `Evaluate`, in order, each with how many
    /// micro-batches later than it names it runs.
    pub fn round_parts(&self, part: PartName) -> impl Iterator<Item = (PartName, u32)> + use<> {
        let unnormed = !self.part(PartName::LastFirst).is_empty();
        self.rounds().parts(part, unnormed)
    }

    /// The slot that a task means which runs `shift` micro-batches later than it says.
    #[must_use]
    pub fn shifted(&self, slot: SlotId, shift: u32) -> SlotId {
        if self.late.contains(&slot) {
            SlotId(slot.0 + shift)
        } else {
            slot
        }
    }

    /// The kinds of lanes that it has: all, of one rank all but the last.
    #[must_use]
    pub fn lane_kinds(&self) -> &'static [LaneKind] {
        let exchanges = |part: &List<TaskId, Task>| part.iter().any(|t| t.lane == Lane::NET);
        match self.parts.values().any(exchanges) {
            true => &LaneKind::ALL,
            false => &LaneKind::ALL[..LaneKind::ALL.len() - 1],
        }
    }

    /// Tasks of a part.
    #[must_use]
    pub fn part(&self, name: PartName) -> &List<TaskId, Task> {
        &self.parts[name]
    }

    /// The seam between two parts, if they may overlap.
    #[must_use]
    pub fn seam(&self, from: PartName, to: PartName) -> Option<&Seam> {
        self.seams.iter().find(|s| s.from == from && s.to == to)
    }

    /// Whether a task moves bytes between a drive and the device's memory that pass no host memory.
    #[must_use]
    pub fn is_direct(&self, task: &Task) -> bool {
        task.is_direct(|slot| self.slots[slot].tier)
    }

    /// Whether any task does.
    #[must_use]
    pub fn reaches_device(&self) -> bool {
        let mut tasks = self.parts.values().flat_map(|part| part.iter());
        tasks.any(|task| self.is_direct(task))
    }

    /// Use of a tier.
    #[must_use]
    pub fn tier(&self, tier: Tier) -> &TierUse {
        &self.tiers[tier as usize]
    }

    /// Numbers of a piece that each rank keeps and updates.
    #[must_use]
    pub fn own(&self, piece: PieceId) -> u64 {
        self.pieces[piece].own(self.ranks)
    }

    /// The tensor that holds the truth of a piece's weights: of several ranks each one's share.
    #[must_use]
    pub fn master(&self, piece: PieceId) -> Tensor {
        match self.ranks > 1 && !self.pieces[piece].frozen {
            true => Tensor::Shard(piece),
            false => Tensor::Weight(piece),
        }
    }

    /// The piece that holds a parameter.
    #[must_use]
    pub fn piece_of(&self, param: ParamId) -> PieceId {
        let mut pieces = self.pieces.pairs();
        let found = pieces.find(|(_, p)| p.params.contains(&param));
        found.expect("every parameter is in a piece").0
    }

    /// The persistent slots that hold a tensor, the truth first; of a durable one the current
    /// version (see [`Plan::offset`]).
    pub fn homes(&self, tensor: Tensor) -> impl Iterator<Item = (SlotId, &Slot)> {
        let next = |s: &Slot| matches!(s.version, Some((Version::Next, _)));
        self.slots
            .pairs()
            .filter(move |(_, s)| s.persistent && s.tensor == tensor && !next(s))
    }

    /// First byte of a slot in its tier. `flipped`: an odd number of updates was committed, so the
    /// two extents of a durable tensor have changed places.
    #[must_use]
    pub fn offset(&self, slot: SlotId, flipped: bool) -> u64 {
        let s = &self.slots[slot];
        match s.version {
            Some((_, other)) if flipped => self.slots[other].offset,
            _ => s.offset,
        }
    }

    /// Whether the part commits an update, after which versions change places.
    #[must_use]
    pub fn commits(&self, part: PartName) -> bool {
        self.part(part).iter().any(|t| t.work == Work::Commit)
    }

    /// A number that changes when weights and optimizer state lie elsewhere on disk, or are cut
    /// otherwise (FNV-1a): plans of one number read each other's durable extents.
    #[must_use]
    pub fn durable_layout(&self) -> u64 {
        let mut h = Fnv(0xcbf2_9ce4_8422_2325);
        h.add(&[self.precision.size()]);
        for p in &self.pieces {
            h.add(&[u64::from(p.unit), p.elements]);
            h.add(&[u64::from(p.params.start.0), u64::from(p.params.end.0)]);
            h.add(&p.offsets);
        }
        for s in self.slots.iter().filter(|s| s.version.is_some()) {
            let (kind, piece) = match s.tensor {
                Tensor::Weight(p) => (0, p),
                Tensor::State(p) => (1, p),
                Tensor::Shard(p) => (2, p),
                _ => unreachable!("only weights and state are durable"),
            };
            h.add(&[kind, u64::from(piece.0), s.offset, s.bytes]);
        }
        h.0
    }

    /// A number that changes when anything in the plan's tasks or slots changes (FNV-1a).
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut h = Fnv(0xcbf2_9ce4_8422_2325);
        for s in &self.slots {
            h.add(&[s.tier as u64, s.offset, s.bytes, u64::from(s.persistent)]);
        }
        for (name, part) in self.parts.iter() {
            // Parts that only a batch in rounds has.
            if part.is_empty() && name > PartName::Infer {
                continue;
            }
            h.add(&[part.len() as u64]);
            for t in part {
                h.add(&[t.lane.idx() as u64, t.args.len() as u64]);
                for a in &t.args {
                    h.add(&[u64::from(a.slot.0), a.offset, a.bytes, a.access as u64]);
                }
                for &d in &t.after {
                    h.add(&[u64::from(d.0)]);
                }
            }
        }
        h.0
    }
}

struct Fnv(u64);

impl Fnv {
    fn add(&mut self, words: &[u64]) {
        for byte in words.iter().flat_map(|w| w.to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Where each unit's output gradient is, see [`canonical`]: the last reader, and its name for it.
pub(crate) type Gradients = Vec<Option<(u32, LocalId)>>;

/// [`Gradients`] of a workload.
pub(crate) fn gradients_of_outputs(w: &Workload) -> Gradients {
    let mut made = vec![None; w.units.len()];
    for (u, unit) in w.units.iter().enumerate() {
        for input in &unit.inputs {
            made[input.unit as usize] = Some((u as u32, input.gradient));
        }
    }
    made
}

/// The tensor that an operand of a unit names, for one micro-batch. A unit's input is an earlier unit's output, and
/// its gradient, whichever reader names it, is the last reader's: so both exist once.
pub(crate) fn canonical(
    w: &Workload,
    gradients: &Gradients,
    unit: u32,
    what: What,
    m: u32,
    piece_of: &List<ParamId, PieceId>,
) -> Tensor {
    let u = &w.units[unit as usize];
    let gradient_of = |unit: u32| {
        let (reader, i) = gradients[unit as usize].expect("an output that is used has a reader");
        Tensor::Local(reader, i, m)
    };
    match what {
        What::Local(i) if u.d_output == Some(i) => gradient_of(unit),
        What::Local(i) => {
            if let Some(input) = u.input(i) {
                let output = w.units[input.unit as usize].output;
                let output = output.expect("a unit that is read has an output");
                return Tensor::Local(input.unit, output, m);
            }
            match u.input_of_gradient(i) {
                Some(input) => gradient_of(input.unit),
                None => Tensor::Local(unit, i, m),
            }
        }
        What::Weight(p) => Tensor::Weight(piece_of[p]),
        What::Gradient(p) => Tensor::Accumulator(piece_of[p]),
        What::Cache => Tensor::Cache(unit),
        What::Inputs => Tensor::Inputs(m),
        What::Loss => Tensor::Losses,
    }
}
