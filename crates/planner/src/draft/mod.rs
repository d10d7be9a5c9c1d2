//! From choices to tasks: emits every lane's work in one global order, with slots that have a
//! size and a life but no address yet.
//!
//! The order is what the choices mean: a fetch stands as many windows before its use as
//! `prefetch` says, an update stands where its result is needed next, an offload right behind the
//! operation that made the tensor. Lanes run their tasks in this order, so this is where earliest
//! deadline first is decided.

use std::collections::BTreeMap;
use std::ops::Range;

use lowtide_units::Bytes;
use lowtide_workload::{Dtype, What, Workload};

use crate::choice::{Choice, Clip, LoopOrder, Pieces, Processor, Saved};
use crate::fast::FastMap;
use crate::plan::{Arg, Lane, PartName, Piece, Task, Tensor, Tier, Use, Version, Work};
use crate::program::{Program, Purpose, Span, Window, program};
use agenda::{Agenda, Schedule, first_use_table, first_uses, ready_order};
use updates::UpdateQueue;

mod agenda;
mod between;
mod slots;
mod updates;

/// A slot before it has an address.
#[derive(Clone, Debug)]
pub(crate) struct DraftSlot {
    pub tier: Tier,
    pub bytes: u64,
    pub tensor: Tensor,
    pub persistent: bool,
    /// Of a durable tensor only: which version, and the slot of the other one.
    pub version: Option<(Version, u32)>,
    /// First and last task of its part that may use it (transient slots).
    pub birth: usize,
    pub death: usize,
    /// Which part (transient slots).
    pub part: usize,
}

/// Everything but addresses and edges.
pub(crate) struct Draft {
    pub pieces: Vec<Piece>,
    pub slots: Vec<DraftSlot>,
    pub parts: Vec<Vec<Task>>,
    /// Slots of each micro-batch, see [`crate::plan::Plan::late`].
    pub late: Range<u32>,
}

/// Cuts the parameters into pieces. Those of one piece get their gradients from the same units: what moves between
/// two of them moves whole, and a part that nobody has added to yet has no content. Of a tied embedding with learned
/// positions the head adds to the table only.
pub(crate) fn cut(w: &Workload, how: Pieces) -> Vec<Piece> {
    let shared = shared_gradients(w);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut norm_offset = 0;
    let mut push = |unit: usize, range: std::ops::Range<u32>, pieces: &mut Vec<Piece>| {
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
        for p in unit.params.clone() {
            let next = w.params[p as usize].elements;
            let apart = p > start && shared.get(&p) != shared.get(&(p - 1));
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
fn shared_gradients(w: &Workload) -> FastMap<u32, Vec<usize>> {
    let mut shared: FastMap<u32, Vec<usize>> = FastMap::default();
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

struct Emitter<'a> {
    w: &'a Workload,
    choice: &'a Choice,
    clip: Clip,
    pieces: &'a [Piece],
    slots: Vec<DraftSlot>,
    tasks: Vec<Task>,
    part: usize,
    homes: Homes,
    /// Device slots of this part's inputs, by micro-batch.
    inputs: FastMap<u32, u32>,
    /// Saved tensors of each unit.
    saved: Vec<Vec<u16>>,
    /// Gradients that wait inside this part only (`previous`, first batch).
    waiting: FastMap<u32, u32>,
    /// What fetches read of durable weights: the next version where updates run under forward.
    reads: Version,
}

/// Persistent slots.
#[derive(Clone, Default)]
struct Homes {
    /// The truth of a piece's weights; of durable ones the current version.
    weight: Vec<u32>,
    /// A copy that stays on the device although the truth lives elsewhere.
    resident: Vec<Option<u32>>,
    /// A copy of durable weights that stays on the host.
    host_copy: Vec<Option<u32>>,
    state: Vec<u32>,
    gradient: Vec<Option<u32>>,
    /// Of a batch in rounds: where a gradient stays that is not complete.
    accumulator: Vec<Option<u32>>,
    /// Of a batch in rounds: output gradients of a tied embedding, by micro-batch.
    late: Range<u32>,
    norm_parts: u32,
    clip: u32,
    /// The clip factor where updates on the device read it, if there are any.
    clip_device: Option<u32>,
    losses_device: u32,
    losses_host: u32,
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
    let mut e = emitter(w, choice, clip, &pieces);
    e.place_homes();
    let mut bytes = [0; 3];
    for s in &e.slots {
        bytes[s.tier as usize] += s.bytes;
    }
    bytes
}

fn emitter<'a>(
    w: &'a Workload,
    choice: &'a Choice,
    clip: Clip,
    pieces: &'a [Piece],
) -> Emitter<'a> {
    Emitter {
        w,
        choice,
        clip,
        pieces,
        slots: Vec::new(),
        tasks: Vec::new(),
        part: 0,
        homes: Homes::default(),
        inputs: FastMap::default(),
        saved: Vec::new(),
        waiting: FastMap::default(),
        reads: Version::Current,
    }
}

/// Makes the draft of the parts named; the others are empty. A part is the same whichever others
/// are made with it.
pub(crate) fn draft(w: &Workload, choice: &Choice, clip: Clip, names: &[PartName]) -> Draft {
    let pieces = cut(w, choice.pieces);
    let mut piece_of = vec![0; w.params.len()];
    for (i, piece) in pieces.iter().enumerate() {
        piece
            .params
            .clone()
            .for_each(|p| piece_of[p as usize] = i as u32);
    }
    let mut e = emitter(w, choice, clip, &pieces);
    e.saved = w.units.iter().map(lowtide_workload::Unit::saved).collect();
    e.place_homes();
    let programs = |purpose, part| {
        let span = Span::new(w, choice, part);
        let made = program(w, choice, &pieces, &piece_of, purpose, &span);
        (made, span)
    };
    let begin = programs(Purpose::Train, PartName::Steady);
    let begin = e.schedule(&begin.0, begin.1);
    let parts = PartName::ALL
        .iter()
        .enumerate()
        .map(|(i, &name)| {
            if !names.contains(&name) || !has(w, choice, clip, name) {
                return Vec::new();
            }
            e.part = i;
            e.tasks = Vec::new();
            e.waiting.clear();
            e.reads = Version::Current;
            match name {
                PartName::First | PartName::Steady => e.train(&begin, Updates::of(name, clip)),
                PartName::Middle | PartName::Last | PartName::LastFirst => {
                    let (program, span) = programs(Purpose::Train, name);
                    let schedule = e.schedule(&program, span);
                    e.train(&schedule, Updates::of(name, clip));
                }
                PartName::Drain => e.drain(begin.program),
                PartName::Evaluate | PartName::LastEvaluate => {
                    let (program, span) = programs(Purpose::Evaluate, name);
                    let schedule = e.schedule(&program, span);
                    e.forward(&schedule, Purpose::Evaluate);
                }
                PartName::Infer => {
                    let (program, span) = programs(Purpose::Infer, name);
                    let schedule = e.schedule(&program, span);
                    e.forward(&schedule, Purpose::Infer);
                }
            }
            std::mem::take(&mut e.tasks)
        })
        .collect();
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
    Host(u32),
    Device(u32),
}

/// What is where while a part is emitted.
struct Live {
    device: FastMap<Tensor, u32>,
    staged: FastMap<usize, u32>,
    spilled: FastMap<Tensor, u32>,
    forward: FastMap<u32, Forward>,
    /// Complete gradients on the device, by piece.
    finished: FastMap<u32, (u32, u32)>,
}

impl Emitter<'_> {
    fn drain(&mut self, train: &Program) {
        if self.clip != Clip::Exact {
            return;
        }
        let mut q = self.queue(first_uses(train, self.pieces.len()));
        for k in 0..q.order.len() {
            self.update(&mut q, k, None);
        }
        self.commit();
    }

    fn norm(&mut self, micro_batches: u32) {
        let (norm, losses) = (self.norm_bytes(), Self::losses_bytes(micro_batches));
        self.copy(self.homes.losses_device, self.homes.losses_host, losses);
        self.push(
            Lane::HOST,
            Work::Norm,
            vec![
                Arg {
                    slot: self.homes.norm_parts,
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
                    slot: self.homes.losses_host,
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

    fn train(&mut self, schedule: &Schedule<'_>, updates: Updates) {
        let train = schedule.program;
        // Gradients are complete, and the norm is known, at the end of the last round.
        let updates = match updates {
            Updates::UnderForward => updates,
            _ if schedule.span.ends => updates,
            _ => Updates::Never,
        };
        let order = match updates {
            Updates::UnderBackward => ready_order(train).into_iter().map(|(_, p)| p).collect(),
            _ => first_uses(train, self.pieces.len()),
        };
        let q = self.queue(order);
        let mut q = self.run(schedule, updates, q);
        let micro_batches = schedule.span.micro_batches.len() as u32;
        if schedule.span.ends {
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

    fn forward(&mut self, schedule: &Schedule<'_>, purpose: Purpose) {
        let q = self.queue(Vec::new());
        self.run(schedule, Updates::Never, q);
        if purpose == Purpose::Evaluate {
            self.losses(schedule.span.micro_batches.len() as u32);
        }
    }

    /// What is on the device when, in a program.
    fn schedule<'p>(&self, program: &'p Program, span: Span) -> Schedule<'p> {
        let prefetch = usize::from(self.choice.prefetch);
        let mut tiers: FastMap<Tensor, Tier> = FastMap::default();
        for o in program.ops.iter().flat_map(|op| &op.operands) {
            tiers
                .entry(o.tensor)
                .or_insert_with(|| self.home_tier(o.tensor));
        }
        let gap = if prefetch == 0 { 1 } else { 2 };
        let resident = |t: Tensor| tiers[&t] == Tier::Device;
        let outlives = |t: Tensor| !span.ends && self.outer_home(t).is_some();
        let windows = program.windows(resident, outlives, gap);
        let agenda = Agenda::new(program, &windows, &tiers, prefetch);
        let first_use = first_use_table(&windows);
        Schedule {
            program,
            span,
            tiers,
            windows,
            agenda,
            first_use,
        }
    }

    /// Emits a whole program with everything that serves it.
    fn run(
        &mut self,
        schedule: &Schedule<'_>,
        updates: Updates,
        mut q: UpdateQueue,
    ) -> UpdateQueue {
        let prefetch = usize::from(self.choice.prefetch);
        let Schedule {
            program,
            span,
            tiers,
            windows,
            agenda,
            first_use,
        } = schedule;
        let mut ready: FastMap<usize, Vec<u32>> = FastMap::default();
        if updates == Updates::UnderBackward {
            for (i, p) in ready_order(program) {
                ready.entry(i).or_default().push(p);
            }
        }
        // Position of each piece in the update order, and the operation before which it is due.
        let position: FastMap<u32, usize> =
            q.order.iter().enumerate().map(|(k, &p)| (p, k)).collect();
        let mut due: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut lifts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        // Windows whose weights an update on the device makes where they are read.
        let mut made: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        if updates == Updates::UnderForward {
            let used = |p: u32| first_use.get(&p).copied().unwrap_or(0);
            // Uses of the pieces whose state passes through the device, so far.
            let mut passing: Vec<usize> = Vec::new();
            for (k, &p) in q.order.iter().enumerate() {
                let ahead = used(q.order[k.saturating_sub(prefetch)]).min(used(p));
                if !self.updated_on_device(p) {
                    due.entry(ahead).or_default().push(k);
                    continue;
                }
                // The gpu lane does it when its result is needed, no earlier. State is several
                // times as many bytes as weights: it is fetched as soon as the one `prefetch`
                // before it made room, so that the link never rests between two of them.
                let home = self.homes.state[p as usize];
                let lift = if self.slots[home as usize].tier == Tier::Device {
                    ahead
                } else {
                    passing.push(used(p));
                    match (passing.len() - 1).checked_sub(prefetch.max(1)) {
                        Some(j) => passing[j].min(used(p)),
                        None => 0,
                    }
                };
                lifts.entry(lift).or_default().push(k);
                due.entry(used(p)).or_default().push(k);
            }
        }
        let under_forward = updates == Updates::UnderForward;
        if under_forward {
            self.reads = Version::Next;
        }
        let mut committed = !under_forward;
        self.inputs.clear();
        span.micro_batches.clone().for_each(|m| self.load_inputs(m));
        let mut late_inputs = self.late_inputs(program, span);
        let mut st = Live {
            device: FastMap::default(),
            staged: FastMap::default(),
            spilled: FastMap::default(),
            forward: FastMap::default(),
            finished: FastMap::default(),
        };
        self.persistent_operands(&mut st);
        for (i, op) in program.ops.iter().enumerate() {
            for m in late_inputs.remove(&i).into_iter().flatten() {
                self.load_inputs(m);
            }
            for &k in lifts.get(&i).into_iter().flatten() {
                self.lift(&mut q, k);
            }
            for &k in due.get(&i).into_iter().flatten() {
                let forward = self.update(&mut q, k, None);
                if let Some(f) = forward {
                    st.forward.insert(q.order[k], f);
                }
            }
            for &wi in agenda.read.at(i) {
                let pending = updates == Updates::UnderForward
                    && matches!(windows[wi].tensor, Tensor::Weight(p)
                        if !windows[wi].continued && position.contains_key(&p));
                if !pending {
                    self.stage_window(&windows[wi], wi, tiers, &mut st);
                }
            }
            for &wi in agenda.fetch.at(i) {
                if let (Tensor::Weight(p), true) =
                    (windows[wi].tensor, updates == Updates::UnderForward)
                    && !windows[wi].continued
                {
                    if self.updated_on_device(p) {
                        made.entry(windows[wi].first).or_default().push(wi);
                        continue;
                    }
                    if let Some(f) = self.update(&mut q, position[&p], None) {
                        st.forward.insert(p, f);
                    }
                }
                self.fetch_window(&windows[wi], wi, tiers, &mut st);
            }
            for &wi in made.get(&i).into_iter().flatten() {
                self.fetch_window(&windows[wi], wi, tiers, &mut st);
            }
            if !committed && q.done.iter().all(|&done| done) {
                self.commit();
                committed = true;
            }
            self.compute(op, i, windows, agenda, &mut st);
            self.after(op, i, windows, agenda, tiers, updates, &mut st);
            for p in ready.get(&i).into_iter().flatten() {
                let gradient = st.finished[p];
                self.update(&mut q, position[p], Some(gradient));
            }
        }
        if under_forward {
            for k in 0..q.order.len() {
                self.update(&mut q, k, None);
            }
        }
        if !committed {
            self.commit();
        }
        self.linger(program, prefetch);
        q
    }

    fn persistent_operands(&self, st: &mut Live) {
        for p in 0..self.pieces.len() as u32 {
            let unit = self.unit_of(p);
            if self.choice.weights[unit] == Tier::Device {
                let slot = self.homes.resident[p as usize].unwrap_or(self.homes.weight[p as usize]);
                st.device.insert(Tensor::Weight(p), slot);
            }
            if let Some(g) = self.homes.gradient[p as usize]
                && self.choice.gradients[unit] == Tier::Device
            {
                st.device.insert(Tensor::Gradient(p), g);
                if self.w.gradient == Dtype::F32 {
                    st.device.insert(Tensor::Accumulator(p), g);
                }
            }
        }
        st.device.insert(Tensor::Losses, self.homes.losses_device);
        if self.choice.rounds(self.w).one() {
            return;
        }
        let sums = (0..self.pieces.len() as u32).map(Tensor::Accumulator);
        let late = self
            .homes
            .late
            .clone()
            .map(|s| self.slots[s as usize].tensor);
        for t in sums.chain(late) {
            let home = self.outer_home(t).expect("it stays between rounds");
            match self.slots[home as usize].tier {
                Tier::Device => st.device.insert(t, home),
                _ => st.spilled.insert(t, home),
            };
        }
    }

    fn stage_window(
        &mut self,
        window: &Window,
        wi: usize,
        tiers: &FastMap<Tensor, Tier>,
        st: &mut Live,
    ) {
        if tiers[&window.tensor] != Tier::Disk {
            return;
        }
        let home = match window.tensor {
            Tensor::Weight(p) => self.fetched_from(p),
            t => st.spilled[&t],
        };
        if self.slots[home as usize].tier == Tier::Disk {
            let staged = self.on_host(home);
            st.staged.insert(wi, staged);
        }
    }

    fn fetch_window(
        &mut self,
        window: &Window,
        wi: usize,
        tiers: &FastMap<Tensor, Tier>,
        st: &mut Live,
    ) {
        debug_assert_ne!(tiers[&window.tensor], Tier::Device);
        let bytes = self.tensor_bytes(window.tensor);
        let slot = match window.tensor {
            Tensor::Weight(p) => match st.forward.remove(&p) {
                Some(Forward::Device(slot)) => slot,
                Some(Forward::Host(slot)) => {
                    let device = self.slot(Tier::Device, bytes, window.tensor);
                    self.copy(slot, device, bytes);
                    device
                }
                None => {
                    let home = self.fetched_from(p);
                    let staged = st.staged.remove(&wi);
                    self.on_device(home, staged, bytes)
                }
            },
            t => {
                let home = st.spilled[&t];
                let staged = st.staged.remove(&wi);
                self.on_device(home, staged, bytes)
            }
        };
        st.device.insert(window.tensor, slot);
    }

    fn compute(
        &mut self,
        op: &crate::program::GpuOp,
        i: usize,
        windows: &[Window],
        agenda: &Agenda,
        st: &mut Live,
    ) {
        // Tensors that begin a life here without a fetch.
        for &wi in agenda.begin.at(i) {
            let t = windows[wi].tensor;
            if let Tensor::Inputs(_) | Tensor::Losses = t {
                continue;
            }
            let fixed = match t {
                Tensor::Weight(_) => true,
                Tensor::Gradient(p) => {
                    self.homes.gradient[p as usize].is_some()
                        && self.choice.gradients[self.unit_of(p)] == Tier::Device
                }
                Tensor::Accumulator(p) if self.sums_in_gradient(p) => true,
                t => self
                    .outer_home(t)
                    .is_some_and(|home| self.slots[home as usize].tier == Tier::Device),
            };
            if !fixed {
                let bytes = self.tensor_bytes(t);
                let slot = self.slot(Tier::Device, bytes, t);
                st.device.insert(t, slot);
            }
        }
        let mut args: Vec<Arg> = op
            .operands
            .iter()
            .map(|o| {
                let slot = match o.tensor {
                    Tensor::Inputs(m) => self.inputs[&m],
                    t => st.device[&t],
                };
                Arg {
                    slot,
                    offset: o.offset,
                    bytes: o.bytes,
                    access: o.access,
                }
            })
            .collect();
        if op.workspace > 0 {
            let slot = self.slot(Tier::Device, op.workspace, Tensor::Workspace);
            args.push(Arg {
                slot,
                offset: 0,
                bytes: op.workspace,
                access: Use::Write,
            });
        }
        self.push(Lane::GPU, op.work, args);
    }

    /// Offloads what ends or pauses after operation `i`, and updates what is complete.
    #[allow(clippy::too_many_arguments)]
    fn after(
        &mut self,
        op: &crate::program::GpuOp,
        i: usize,
        windows: &[Window],
        agenda: &Agenda,
        tiers: &FastMap<Tensor, Tier>,
        updates: Updates,
        st: &mut Live,
    ) {
        if let Work::Finish { piece } = op.work {
            self.finished(piece, updates, st);
        }
        if let Work::Compute {
            unit,
            phase: crate::plan::Phase::Infer,
            op: o,
            micro_batch,
        } = op.work
        {
            self.logits(unit, o, micro_batch, st);
        }
        for &wi in agenda.end.at(i) {
            let window = &windows[wi];
            let tier = tiers[&window.tensor];
            if matches!(window.tensor, Tensor::Weight(_)) || tier == Tier::Device {
                continue;
            }
            if window.continues && window.writes {
                self.spill(window.tensor, tier, st);
            }
        }
    }

    fn spill(&mut self, t: Tensor, tier: Tier, st: &mut Live) {
        let bytes = self.tensor_bytes(t);
        let home = match st.spilled.get(&t) {
            Some(&home) => home,
            None => {
                let home = self.slot(tier, bytes, t);
                st.spilled.insert(t, home);
                home
            }
        };
        let device = st.device[&t];
        self.send_back(device, home, bytes);
    }

    fn logits(&mut self, unit: u32, op: u16, m: u32, st: &Live) {
        let u = &self.w.units[unit as usize];
        let Some(i) = u.tensors.iter().position(|t| t.name == "logits") else {
            return;
        };
        let i = i as u16;
        let writes = u.infer[op as usize]
            .operands
            .iter()
            .any(|o| o.what == What::Local(i) && o.access == lowtide_workload::Access::Write);
        if !writes {
            return;
        }
        let t = Tensor::Local(unit, i, m);
        let bytes = self.tensor_bytes(t);
        let host = self.slot(Tier::Host, bytes, t);
        self.copy(st.device[&t], host, bytes);
        self.push(
            Lane::HOST,
            Work::Logits { micro_batch: m },
            vec![Arg {
                slot: host,
                offset: 0,
                bytes,
                access: Use::Read,
            }],
        );
    }

    /// Lets slots that a copy is still reading outlive it by `prefetch` visits in plan order, so
    /// that the gpu does not wait for a slow copy before it may reuse the bytes.
    fn linger(&mut self, program: &Program, prefetch: usize) {
        if prefetch == 0 {
            return;
        }
        // Task index at which each visit starts.
        let mut starts: Vec<usize> = Vec::with_capacity(program.visits.len());
        let mut op_idx = 0;
        for (t, task) in self.tasks.iter().enumerate() {
            let of_program = matches!(task.work, Work::Compute { .. } | Work::Finish { .. });
            if of_program {
                if program.visits.get(starts.len()) == Some(&op_idx) {
                    starts.push(t);
                }
                op_idx += 1;
            }
        }
        let end = self.tasks.len().saturating_sub(1);
        for s in &mut self.slots {
            if s.part != self.part || s.persistent || s.birth >= self.tasks.len() {
                continue;
            }
            let last = &self.tasks[s.death];
            let slow = match s.tier {
                Tier::Device => last.lane.kind == crate::plan::LaneKind::D2h,
                Tier::Host => true,
                Tier::Disk => false,
            };
            if slow && s.tensor != Tensor::Workspace {
                let next = starts.partition_point(|&x| x <= s.death);
                s.death = starts
                    .get(next + prefetch - 1)
                    .map_or(end, |&x| x)
                    .max(s.death);
            }
        }
    }
}
