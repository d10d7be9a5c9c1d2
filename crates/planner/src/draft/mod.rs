//! From choices to tasks: emits every lane's work in one global order, with slots that have a
//! size and a life but no address yet.
//!
//! The order is what the choices mean: a fetch stands where it must begin to be there in time
//! (`timetable`), an update where it is predicted to run, an offload right behind the operation that
//! made the tensor. Lanes run their tasks in this order, so this is where earliest deadline first is
//! decided.

use std::collections::BTreeMap;
use std::ops::Range;

use lowtide_units::{Bytes, List, ids};
use lowtide_workload::{LocalId, ParamId, What, Workload};

use crate::choice::{Choice, Clip, Direct, LoopOrder, Pieces, Processor, Saved};
use crate::fast::FastMap;
use crate::plan::{
    Arg, Lane, PartName, PerPart, Piece, PieceId, SlotId, Task, TaskId, Tensor, Tier, Use, Version,
    Work,
};
use crate::program::{Program, Purpose, Span, Window, program};
use agenda::{Schedule, first_uses, ready_order};
pub(crate) use rates::Rates;
use updates::UpdateQueue;

mod agenda;
mod between;
mod emit;
mod heights;
mod lives;
mod rates;
mod slots;
mod spill;
mod timetable;
mod updates;

#[cfg(test)]
mod spill_tests;
#[cfg(test)]
mod timetable_tests;

/// A slot before it has an address.
#[derive(Clone, Debug)]
pub(crate) struct DraftSlot {
    pub tier: Tier,
    pub bytes: u64,
    pub tensor: Tensor,
    pub persistent: bool,
    /// Of a durable tensor only: which version, and the slot of the other one.
    pub version: Option<(Version, SlotId)>,
    /// First and last task of its part that may use it (transient slots).
    pub birth: usize,
    pub death: usize,
    /// Which part (transient slots).
    pub part: usize,
}

/// Everything but addresses and edges.
pub(crate) struct Draft {
    pub pieces: List<PieceId, Piece>,
    pub slots: List<SlotId, DraftSlot>,
    pub parts: PerPart<List<TaskId, Task>>,
    /// Slots of each micro-batch, see [`crate::plan::Plan::late`].
    pub late: Range<SlotId>,
}

/// Cuts the parameters into pieces. Either all parameters of a piece are frozen or none is. Those of one piece get
/// their gradients from the same units: a gradient moves between two units whole, and a part of it that no unit has
/// added to yet would have no content. With a tied embedding and learned positions, the head adds to the table only.
pub(crate) fn cut(w: &Workload, how: Pieces) -> List<PieceId, Piece> {
    let shared = shared_gradients(w);
    let mut pieces: List<PieceId, Piece> = List::default();
    let mut norm_offset = 0;
    let mut push = |unit: usize, range: Range<ParamId>, pieces: &mut List<PieceId, Piece>| {
        let piece = Piece::new(w, unit as u32, range, norm_offset);
        norm_offset += piece.norm_chunks;
        pieces.push(piece);
    };
    let least = match how {
        Pieces::Unit => u64::MAX,
        Pieces::Split(least) => least,
    };
    for (u, unit) in w.units.iter().enumerate() {
        if unit.params.is_empty() {
            continue;
        }
        let mut start = unit.params.start;
        let mut sum = 0;
        for p in ids(&unit.params) {
            let next = w.params[p].elements;
            let frozen = |p: ParamId| w.params[p].frozen;
            let apart = p > start && {
                let before = ParamId(p.0 - 1);
                shared.get(&p) != shared.get(&before) || frozen(p) != frozen(before)
            };
            if apart || (sum >= least && next >= least) {
                push(u, start..p, &mut pieces);
                (start, sum) = (p, 0);
            }
            sum += next;
        }
        push(u, start..unit.params.end, &mut pieces);
    }
    pieces
}

/// The other units whose backward adds to a parameter's gradient, of those parameters that have such.
fn shared_gradients(w: &Workload) -> FastMap<ParamId, Vec<usize>> {
    let mut shared: FastMap<ParamId, Vec<usize>> = FastMap::default();
    for (u, unit) in w.units.iter().enumerate() {
        for o in unit.backward.iter().flat_map(|op| &op.operands) {
            if let What::Gradient(p) = o.what
                && !unit.params.contains(&p)
            {
                let others = shared.entry(p).or_default();
                if others.last() != Some(&u) {
                    others.push(u);
                }
            }
        }
    }
    shared
}

/// Pieces that have gradients and optimizer state.
fn trained(pieces: &List<PieceId, Piece>) -> impl Iterator<Item = PieceId> {
    let trained = pieces.pairs().filter(|(_, piece)| !piece.frozen);
    trained.map(|(p, _)| p)
}

struct Emitter<'a> {
    w: &'a Workload,
    rates: &'a Rates,
    choice: &'a Choice,
    clip: Clip,
    pieces: &'a List<PieceId, Piece>,
    slots: List<SlotId, DraftSlot>,
    tasks: Vec<Task>,
    part: usize,
    homes: Homes,
    /// Device slots of this part's inputs, by micro-batch.
    inputs: FastMap<u32, SlotId>,
    /// Saved tensors of each unit.
    saved: Vec<Vec<LocalId>>,
    /// Gradients that wait inside this part only (`previous`, first batch).
    waiting: FastMap<PieceId, SlotId>,
    /// What fetches read of durable weights: the next version where updates run under forward.
    reads: Version,
}

/// Slots that live across the parts of a plan.
#[derive(Clone)]
struct Homes {
    /// The truth of a piece's weights; of durable ones the current version.
    weight: List<PieceId, SlotId>,
    /// A copy that stays on the device although the truth lives elsewhere.
    resident: List<PieceId, Option<SlotId>>,
    /// A copy of durable weights that stays on the host.
    host_copy: List<PieceId, Option<SlotId>>,
    /// None of a frozen piece.
    state: List<PieceId, Option<SlotId>>,
    gradient: List<PieceId, Option<SlotId>>,
    /// Of a batch in rounds: where a gradient stays that is not complete.
    accumulator: List<PieceId, Option<SlotId>>,
    /// Of a batch in rounds: output gradients of embeddings that share a table, of each embedding by micro-batch; and
    /// which tensors those are.
    late: Range<SlotId>,
    late_tensors: Vec<(u32, LocalId)>,
    norm_parts: SlotId,
    clip: SlotId,
    /// The clip factor where updates on the device read it, if there are any.
    clip_device: Option<SlotId>,
    losses_device: SlotId,
    losses_host: SlotId,
    /// Keys and values of units that keep some.
    caches: Vec<(u32, SlotId)>,
}

impl Homes {
    /// Before they are placed.
    fn none() -> Self {
        let nowhere = SlotId(0);
        Self {
            weight: List::default(),
            resident: List::default(),
            host_copy: List::default(),
            state: List::default(),
            gradient: List::default(),
            accumulator: List::default(),
            late: nowhere..nowhere,
            late_tensors: Vec::new(),
            norm_parts: nowhere,
            clip: nowhere,
            clip_device: None,
            losses_device: nowhere,
            losses_host: nowhere,
            caches: Vec::new(),
        }
    }

    /// Whether a unit's tensor is among those that stay between rounds.
    fn is_late(&self, unit: u32, tensor: LocalId) -> bool {
        self.late_tensors.contains(&(unit, tensor))
    }
}

/// Where the truth of a unit's weights lives.
pub(crate) fn weight_home(choice: &Choice, unit: usize) -> Tier {
    match (choice.weights[unit], choice.update[unit]) {
        _ if choice.durable => Tier::Disk,
        (Tier::Device, Processor::Device) => Tier::Device,
        (Tier::Device, Processor::Host) => choice.optimizer[unit],
        (tier, _) => tier,
    }
}

/// Bytes of each tier that hold something across parts. A plan needs more than these.
pub(crate) fn persistent_bytes(w: &Workload, choice: &Choice, clip: Clip) -> [u64; 3] {
    let pieces = cut(w, choice.pieces);
    // Homes have no times.
    let rates = Rates::NONE;
    let mut e = emitter(w, &rates, choice, clip, &pieces);
    e.place_homes();
    let mut bytes = [0; 3];
    for s in &e.slots {
        bytes[s.tier as usize] += s.bytes;
    }
    bytes
}

fn emitter<'a>(
    w: &'a Workload,
    rates: &'a Rates,
    choice: &'a Choice,
    clip: Clip,
    pieces: &'a List<PieceId, Piece>,
) -> Emitter<'a> {
    Emitter {
        w,
        rates,
        choice,
        clip,
        pieces,
        slots: List::default(),
        tasks: Vec::new(),
        part: 0,
        homes: Homes::none(),
        inputs: FastMap::default(),
        saved: Vec::new(),
        waiting: FastMap::default(),
        reads: Version::Current,
    }
}

/// Makes the draft of the parts named; the others are empty. A part is the same whichever others
/// are made with it.
pub(crate) fn draft(
    w: &Workload,
    rates: &Rates,
    choice: &Choice,
    clip: Clip,
    names: &[PartName],
) -> Draft {
    let pieces = cut(w, choice.pieces);
    let mut piece_of = List::from(vec![PieceId(0); w.params.len()]);
    for (i, piece) in pieces.pairs() {
        ids(&piece.params).for_each(|p| piece_of[p] = i);
    }
    let mut e = emitter(w, rates, choice, clip, &pieces);
    e.saved = w.units.iter().map(lowtide_workload::Unit::saved).collect();
    e.place_homes();
    let programs = |purpose, part| {
        let span = Span::new(w, choice, part);
        let made = program(w, choice, &pieces, &piece_of, purpose, &span);
        (made, span)
    };
    let begin = programs(Purpose::Train, PartName::Steady);
    let parts = PerPart::of(|name| {
        if !names.contains(&name) || !has(w, choice, clip, name) {
            return List::default();
        }
        e.part = name as usize;
        e.tasks = Vec::new();
        e.waiting.clear();
        e.reads = Version::Current;
        match name {
            PartName::First | PartName::Steady => {
                e.train(&begin.0, &begin.1, Updates::of(name, clip));
            }
            PartName::Middle | PartName::Last | PartName::LastFirst => {
                let (program, span) = programs(Purpose::Train, name);
                e.train(&program, &span, Updates::of(name, clip));
            }
            PartName::Drain => e.drain(&begin.0),
            PartName::Evaluate | PartName::LastEvaluate => {
                let (program, span) = programs(Purpose::Evaluate, name);
                e.forward(&program, span, Purpose::Evaluate);
            }
            PartName::Infer => {
                let (program, span) = programs(Purpose::Infer, name);
                e.forward(&program, span, Purpose::Infer);
            }
        }
        std::mem::take(&mut e.tasks).into()
    });
    let late = e.homes.late.clone();
    let slots = e.slots;
    Draft {
        pieces,
        slots,
        parts,
        late,
    }
}

/// Whether a plan has a part at all.
fn has(w: &Workload, choice: &Choice, clip: Clip, name: PartName) -> bool {
    let rounds = choice.rounds(w);
    match name {
        // Nothing is trained.
        _ if w.decodes() => name == PartName::Infer,
        PartName::Middle => rounds.middles() > 0,
        PartName::Last | PartName::LastEvaluate => !rounds.one(),
        PartName::LastFirst => !rounds.one() && clip == Clip::Previous,
        _ => true,
    }
}

/// When the updates of a part run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Updates {
    /// Not in this part.
    Never,
    /// Those of the batch before, under forward.
    UnderForward,
    /// Each as soon as its gradient is complete.
    UnderBackward,
    /// At the end, when the norm is known.
    AfterNorm,
}

impl Updates {
    /// Whether each update follows its gradient.
    fn at_once(self) -> bool {
        self == Self::UnderBackward
    }

    fn of(part: PartName, clip: Clip) -> Self {
        match (part, clip) {
            (PartName::Steady, Clip::Exact) => Self::UnderForward,
            (PartName::First | PartName::LastFirst, Clip::Previous) => Self::AfterNorm,
            (PartName::First | PartName::Steady | PartName::Last, Clip::Previous | Clip::None) => {
                Self::UnderBackward
            }
            _ => Self::Never,
        }
    }
}

/// New weights of a piece that are still where the update left them.
enum Forward {
    Host(SlotId),
    Device(SlotId),
}

/// Device slots of a gradient that was just made, and of its norm parts.
#[derive(Clone, Copy)]
struct Made {
    gradient: SlotId,
    parts: SlotId,
}

/// What is where while a part is emitted.
struct Live {
    device: FastMap<Tensor, SlotId>,
    staged: FastMap<usize, SlotId>,
    spilled: FastMap<Tensor, SlotId>,
    forward: FastMap<PieceId, Forward>,
    /// Complete gradients on the device, by piece.
    finished: FastMap<PieceId, Made>,
}

impl Emitter<'_> {
    fn drain(&mut self, train: &Program) {
        if self.clip != Clip::Exact {
            return;
        }
        let mut q = self.queue(first_uses(train, self.pieces));
        for k in 0..q.order.len() {
            self.update(&mut q, k, None);
        }
        self.commit();
    }

    fn norm(&mut self, micro_batches: u32) {
        let (losses_host, losses) = self.losses_on_host(micro_batches);
        let (norm_parts, norm) = self.norm_parts_on_host();
        self.push(
            Lane::HOST,
            Work::Norm,
            vec![
                Arg {
                    slot: norm_parts,
                    offset: 0,
                    bytes: norm,
                    access: Use::Read,
                },
                Arg {
                    slot: self.homes.clip,
                    offset: 0,
                    bytes: 64,
                    access: Use::Write,
                },
                Arg {
                    slot: losses_host,
                    offset: 0,
                    bytes: losses,
                    access: Use::Read,
                },
            ],
        );
        if let Some(device) = self.homes.clip_device {
            self.copy(self.homes.clip, device, 64);
        }
    }

    fn train(&mut self, program: &Program, span: &Span, updates: Updates) {
        let schedule = self.schedule(program, span.clone(), updates);
        // Gradients are complete, and the norm is known, at the end of the last round.
        let updates = match updates {
            Updates::UnderForward => updates,
            _ if span.ends => updates,
            _ => Updates::Never,
        };
        let q = self.queue(schedule.order.clone());
        let mut q = self.run(&schedule, updates, q);
        let micro_batches = span.micro_batches.len() as u32;
        if span.ends {
            self.norm(micro_batches);
        } else {
            self.losses(micro_batches);
        }
        if updates == Updates::AfterNorm {
            for k in 0..q.order.len() {
                self.update(&mut q, k, None);
            }
        }
        if matches!(updates, Updates::AfterNorm | Updates::UnderBackward) {
            self.commit();
        }
    }

    fn forward(&mut self, program: &Program, span: Span, purpose: Purpose) {
        let schedule = self.schedule(program, span, Updates::Never);
        let q = self.queue(Vec::new());
        self.run(&schedule, Updates::Never, q);
        if purpose == Purpose::Evaluate {
            self.losses(schedule.span.micro_batches.len() as u32);
        }
    }
}
