//! From choices to tasks: emits every lane's work in one global order, with slots that have a
//! size and a life but no address yet.
//!
//! The order is what the choices mean: a fetch stands as many windows before its use as
//! `prefetch` says, an update stands where its result is needed next, an offload right behind the
//! operation that made the tensor. Lanes run their tasks in this order, so this is where earliest
//! deadline first is decided.

use std::collections::BTreeMap;

use lowtide_units::Bytes;
use lowtide_workload::{Dtype, What, Workload};

use crate::choice::{Choice, Clip, LoopOrder, Pieces, Processor, Saved};
use crate::fast::FastMap;
use crate::plan::{Arg, Lane, PartName, Piece, Task, Tensor, Tier, Use, Work, state_bytes_each};
use crate::program::{Program, Purpose, Window, program};

/// A slot before it has an address.
#[derive(Clone, Debug)]
pub(crate) struct DraftSlot {
    pub tier: Tier,
    pub bytes: u64,
    pub tensor: Tensor,
    pub persistent: bool,
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
}

/// Cuts the parameters into pieces.
pub(crate) fn cut(w: &Workload, how: Pieces) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut norm_offset = 0;
    let mut push = |unit: usize, range: std::ops::Range<u32>, pieces: &mut Vec<Piece>| {
        let piece = Piece::new(w, unit as u32, range, norm_offset);
        norm_offset += piece.norm_chunks;
        pieces.push(piece);
    };
    for (u, unit) in w.units.iter().enumerate() {
        if unit.params.is_empty() {
            continue;
        }
        match how {
            Pieces::Unit => push(u, unit.params.clone(), &mut pieces),
            Pieces::Split(least) => {
                let mut start = unit.params.start;
                let mut sum = 0;
                for p in unit.params.clone() {
                    let next = w.params[p as usize].elements;
                    if sum >= least && next >= least {
                        push(u, start..p, &mut pieces);
                        (start, sum) = (p, 0);
                    }
                    sum += next;
                }
                push(u, start..unit.params.end, &mut pieces);
            }
        }
    }
    pieces
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
    inputs: Vec<u32>,
    /// Saved tensors of each unit.
    saved: Vec<Vec<u16>>,
    /// Gradients that wait inside this part only (`previous`, first batch).
    waiting: FastMap<u32, u32>,
}

/// Persistent slots.
#[derive(Clone, Default)]
struct Homes {
    /// The truth of a piece's weights.
    weight: Vec<u32>,
    /// A copy that stays on the device although the truth lives elsewhere.
    resident: Vec<Option<u32>>,
    state: Vec<u32>,
    gradient: Vec<Option<u32>>,
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
        inputs: Vec::new(),
        saved: Vec::new(),
        waiting: FastMap::default(),
    }
}

/// Makes the draft.
pub(crate) fn draft(w: &Workload, choice: &Choice, clip: Clip) -> Draft {
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
    let train = program(w, choice, &pieces, &piece_of, Purpose::Train);
    let evaluate = program(w, choice, &pieces, &piece_of, Purpose::Evaluate);
    let infer = program(w, choice, &pieces, &piece_of, Purpose::Infer);
    let (train, evaluate, infer) = (
        e.schedule(&train),
        e.schedule(&evaluate),
        e.schedule(&infer),
    );
    let parts = PartName::ALL
        .iter()
        .enumerate()
        .map(|(i, &name)| {
            e.part = i;
            e.tasks = Vec::new();
            e.waiting.clear();
            match name {
                PartName::First => e.train(&train, Updates::first(clip)),
                PartName::Steady => e.train(&train, Updates::steady(clip)),
                PartName::Drain => e.drain(train.program),
                PartName::Evaluate => e.forward(&evaluate, Purpose::Evaluate),
                PartName::Infer => e.forward(&infer, Purpose::Infer),
            }
            std::mem::take(&mut e.tasks)
        })
        .collect();
    let slots = e.slots;
    Draft {
        pieces,
        slots,
        parts,
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
    fn first(clip: Clip) -> Self {
        match clip {
            Clip::Exact => Self::Never,
            Clip::Previous => Self::AfterNorm,
            Clip::None => Self::UnderBackward,
        }
    }

    fn steady(clip: Clip) -> Self {
        match clip {
            Clip::Exact => Self::UnderForward,
            Clip::Previous | Clip::None => Self::UnderBackward,
        }
    }
}

/// Updates still to be emitted, and how far their reads from disk are ahead.
struct UpdateQueue {
    order: Vec<u32>,
    done: Vec<bool>,
    read: usize,
    staged: FastMap<(u32, u8), u32>,
}

impl Emitter<'_> {
    // Slots.

    fn slot(&mut self, tier: Tier, bytes: u64, tensor: Tensor) -> u32 {
        let now = self.tasks.len();
        self.new_slot(tier, bytes, tensor, false, now)
    }

    fn home(&mut self, tier: Tier, bytes: u64, tensor: Tensor) -> u32 {
        self.new_slot(tier, bytes, tensor, true, 0)
    }

    fn new_slot(
        &mut self,
        tier: Tier,
        bytes: u64,
        tensor: Tensor,
        persistent: bool,
        birth: usize,
    ) -> u32 {
        let bytes = Bytes(bytes.max(1)).align_up(tier.align()).0;
        let part = self.part;
        self.slots.push(DraftSlot {
            tier,
            bytes,
            tensor,
            persistent,
            birth,
            death: birth,
            part,
        });
        self.slots.len() as u32 - 1
    }

    fn weight_bytes(&self, p: u32) -> u64 {
        self.pieces[p as usize].elements * self.w.precision.size()
    }

    fn state_bytes(&self, p: u32) -> u64 {
        self.pieces[p as usize].elements * state_bytes_each(self.w.precision)
    }

    fn gradient_bytes(&self, p: u32) -> u64 {
        self.pieces[p as usize].elements * self.w.gradient.size()
    }

    fn unit_of(&self, p: u32) -> usize {
        self.pieces[p as usize].unit as usize
    }

    fn losses_bytes(&self) -> u64 {
        16 * u64::from(self.w.batch.accumulate)
    }

    fn norm_bytes(&self) -> u64 {
        self.pieces.iter().map(|p| p.norm_chunks).sum::<u64>() * 8
    }

    fn place_homes(&mut self) {
        let mut homes = Homes::default();
        for p in 0..self.pieces.len() as u32 {
            let unit = self.unit_of(p);
            let truth = weight_home(self.choice, unit);
            let (weight, state) = (self.weight_bytes(p), self.state_bytes(p));
            homes
                .weight
                .push(self.home(truth, weight, Tensor::Weight(p)));
            let copy = self.choice.weights[unit] == Tier::Device && truth != Tier::Device;
            homes
                .resident
                .push(copy.then(|| self.home(Tier::Device, weight, Tensor::Weight(p))));
            homes
                .state
                .push(self.home(self.choice.optimizer[unit], state, Tensor::State(p)));
            let waits = self.clip == Clip::Exact;
            let bytes = self.gradient_bytes(p);
            homes
                .gradient
                .push(waits.then(|| self.home(self.choice.gradients, bytes, Tensor::Gradient(p))));
        }
        let (norm, losses) = (self.norm_bytes(), self.losses_bytes());
        homes.norm_parts = self.home(Tier::Host, norm, Tensor::AllNormParts);
        homes.clip = self.home(Tier::Host, 64, Tensor::Clip);
        let on_device = self.choice.update.contains(&Processor::Device);
        homes.clip_device = on_device.then(|| self.home(Tier::Device, 64, Tensor::Clip));
        homes.losses_device = self.home(Tier::Device, losses, Tensor::Losses);
        homes.losses_host = self.home(Tier::Host, losses, Tensor::Losses);
        self.homes = homes;
    }

    // Tasks.

    fn push(&mut self, lane: Lane, work: Work, args: Vec<Arg>) -> usize {
        let now = self.tasks.len();
        for a in &args {
            let s = &mut self.slots[a.slot as usize];
            s.death = s.death.max(now);
        }
        self.tasks.push(Task {
            lane,
            work,
            args,
            after: Vec::new(),
        });
        now
    }

    /// Copies `bytes` between device and host.
    fn copy(&mut self, from: u32, to: u32, bytes: u64) {
        self.copy_at(from, to, 0, bytes);
    }

    fn copy_at(&mut self, from: u32, to: u32, to_offset: u64, bytes: u64) {
        let lane = if self.slots[to as usize].tier == Tier::Device {
            Lane::H2D
        } else {
            Lane::D2H
        };
        self.push(
            lane,
            Work::Copy,
            vec![
                Arg {
                    slot: from,
                    offset: 0,
                    bytes,
                    access: Use::Read,
                },
                Arg {
                    slot: to,
                    offset: to_offset,
                    bytes,
                    access: Use::Write,
                },
            ],
        );
    }

    /// Moves all of an extent to or from a host slot.
    fn disk(&mut self, from: u32, to: u32) {
        let bytes = self.slots[from as usize].bytes;
        let (lane, work) = if self.slots[from as usize].tier == Tier::Disk {
            (Lane::DISK_READ, Work::Read)
        } else {
            (Lane::DISK_WRITE, Work::Write)
        };
        self.push(
            lane,
            work,
            vec![
                Arg {
                    slot: from,
                    offset: 0,
                    bytes,
                    access: Use::Read,
                },
                Arg {
                    slot: to,
                    offset: 0,
                    bytes,
                    access: Use::Write,
                },
            ],
        );
    }

    /// A host slot with the content of `home`, which is on the host or on disk.
    fn on_host(&mut self, home: u32) -> u32 {
        let s = self.slots[home as usize].clone();
        match s.tier {
            Tier::Disk => {
                let staging = self.slot(Tier::Host, s.bytes, s.tensor);
                self.disk(home, staging);
                staging
            }
            Tier::Host => home,
            Tier::Device => unreachable!("the device is not behind the host"),
        }
    }

    /// A device slot with the content of `home`, `bytes` of it.
    fn on_device(&mut self, home: u32, staged: Option<u32>, bytes: u64) -> u32 {
        let s = self.slots[home as usize].clone();
        if s.tier == Tier::Device {
            return home;
        }
        let host = staged.unwrap_or_else(|| self.on_host(home));
        let device = self.slot(Tier::Device, bytes, s.tensor);
        self.copy(host, device, bytes);
        device
    }

    /// Sends a device slot's content to `home`.
    fn send_back(&mut self, device: u32, home: u32, bytes: u64) {
        let s = self.slots[home as usize].clone();
        match s.tier {
            Tier::Device => debug_assert_eq!(device, home),
            Tier::Host => self.copy(device, home, bytes),
            Tier::Disk => {
                let staging = self.slot(Tier::Host, s.bytes, s.tensor);
                self.copy(device, staging, bytes);
                self.disk(staging, home);
            }
        }
    }

    // Updates.

    fn queue(&self, order: Vec<u32>) -> UpdateQueue {
        UpdateQueue {
            done: vec![false; order.len()],
            order,
            read: 0,
            staged: FastMap::default(),
        }
    }

    /// Issues the reads from disk that updates up to position `to` need.
    fn stage(&mut self, q: &mut UpdateQueue, to: usize, gradients: bool) {
        while q.read < q.order.len().min(to + 1) {
            let p = q.order[q.read];
            let mut homes = vec![
                (0, self.homes.weight[p as usize]),
                (1, self.homes.state[p as usize]),
            ];
            if gradients && let Some(g) = self.waiting(p) {
                homes.push((2, g));
            }
            for (role, home) in homes {
                if self.slots[home as usize].tier == Tier::Disk {
                    let staged = self.on_host(home);
                    q.staged.insert((p, role), staged);
                }
            }
            q.read += 1;
        }
    }

    /// Emits the update at position `k` and all before it. The gradient comes from where it waits,
    /// or from `made` (device slots of it and of its norm parts) when it was just made. Returns nothing; the new weights
    /// are at home, in the resident copy, and for a piece whose truth is on disk in the returned
    /// host slot, from which a fetch can be served (forwarding).
    fn update(
        &mut self,
        q: &mut UpdateQueue,
        k: usize,
        made: Option<(u32, u32)>,
    ) -> Option<Forward> {
        let gradient = made.map(|m| m.0);
        let lead = usize::from(self.choice.prefetch);
        let waited = gradient.is_none();
        self.stage(q, k + lead, waited);
        if std::mem::replace(&mut q.done[k], true) {
            return None;
        }
        let p = q.order[k];
        let (wb, sb, gb) = (
            self.weight_bytes(p),
            self.state_bytes(p),
            self.gradient_bytes(p),
        );
        let unit = self.unit_of(p);
        let weight_home = self.homes.weight[p as usize];
        let state_home = self.homes.state[p as usize];
        let waiting = self.waiting(p);
        let staged = |role: u8| q.staged.get(&(p, role)).copied();
        let (w_staged, s_staged, g_staged) = (staged(0), staged(1), staged(2));
        let on_device = self.choice.update[unit] == Processor::Device;
        let (weight, state, grad);
        if on_device {
            weight = self.on_device(weight_home, w_staged, wb);
            state = self.on_device(state_home, s_staged, sb);
            grad = match gradient {
                Some(g) => g,
                None => self.on_device(waiting.expect("a gradient waits"), g_staged, gb),
            };
        } else {
            weight = w_staged.unwrap_or(weight_home);
            state = s_staged.unwrap_or(state_home);
            grad = match gradient {
                Some(g) => self.gradient_to_host(g, p),
                None => {
                    let home = waiting.expect("a gradient waits");
                    match self.slots[home as usize].tier {
                        Tier::Device => self.gradient_to_host(home, p),
                        Tier::Host => home,
                        Tier::Disk => g_staged.expect("staged above"),
                    }
                }
            };
        }
        let piece = &self.pieces[p as usize];
        let (norm_offset, norm_bytes) = (piece.norm_offset * 8, piece.norm_chunks * 8);
        let arg = |slot: u32, offset: u64, bytes: u64, access: Use| Arg {
            slot,
            offset,
            bytes,
            access,
        };
        let clip = match self.homes.clip_device {
            Some(device) if on_device => device,
            _ => self.homes.clip,
        };
        let mut args = vec![
            arg(weight, 0, wb, Use::Update),
            arg(state, 0, sb, Use::Update),
            arg(grad, 0, gb, Use::Read),
            arg(clip, 0, 64, Use::Read),
        ];
        // With a norm that tells in time, an update need not look at its own parts; on the device
        // it reads them where they were made.
        match made {
            Some((_, parts)) if on_device => args.push(arg(parts, 0, norm_bytes, Use::Read)),
            _ if on_device => {}
            _ => args.push(arg(
                self.homes.norm_parts,
                norm_offset,
                norm_bytes,
                Use::Read,
            )),
        }
        let lane = if on_device { Lane::GPU } else { Lane::HOST };
        self.push(lane, Work::Update { piece: p }, args);
        if on_device {
            self.send_back(weight, weight_home, wb);
            self.send_back(state, state_home, sb);
        } else {
            if let Some(copy) = self.homes.resident[p as usize] {
                self.copy(weight, copy, wb);
            }
            for (slot, home) in [(weight, weight_home), (state, state_home)] {
                if slot != home {
                    self.disk(slot, home);
                }
            }
        }
        (weight != weight_home).then_some(if on_device {
            Forward::Device(weight)
        } else {
            Forward::Host(weight)
        })
    }

    /// Where a piece's gradient waits for the norm.
    fn waiting(&self, p: u32) -> Option<u32> {
        self.homes.gradient[p as usize].or_else(|| self.waiting.get(&p).copied())
    }

    fn gradient_to_host(&mut self, device: u32, p: u32) -> u32 {
        let bytes = self.gradient_bytes(p);
        let host = self.slot(Tier::Host, bytes, Tensor::Gradient(p));
        self.copy(device, host, bytes);
        host
    }

    // Parts.

    fn drain(&mut self, train: &Program) {
        if self.clip != Clip::Exact {
            return;
        }
        let mut q = self.queue(first_uses(train, self.pieces.len()));
        for k in 0..q.order.len() {
            self.update(&mut q, k, None);
        }
    }

    fn norm(&mut self) {
        let (norm, losses) = (self.norm_bytes(), self.losses_bytes());
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
        let order = match updates {
            Updates::UnderBackward => ready_order(train).into_iter().map(|(_, p)| p).collect(),
            _ => first_uses(train, self.pieces.len()),
        };
        let q = self.queue(order);
        let mut q = self.run(schedule, Purpose::Train, updates, q);
        self.norm();
        if updates == Updates::AfterNorm {
            for k in 0..q.order.len() {
                self.update(&mut q, k, None);
            }
        }
    }

    fn forward(&mut self, schedule: &Schedule<'_>, purpose: Purpose) {
        let q = self.queue(Vec::new());
        self.run(schedule, purpose, Updates::Never, q);
        if purpose == Purpose::Evaluate {
            let bytes = self.losses_bytes();
            self.copy(self.homes.losses_device, self.homes.losses_host, bytes);
            self.push(
                Lane::HOST,
                Work::Losses,
                vec![Arg {
                    slot: self.homes.losses_host,
                    offset: 0,
                    bytes,
                    access: Use::Read,
                }],
            );
        }
    }

    /// Home of a tensor between its windows; the device means one window.
    fn home_tier(&self, t: Tensor) -> Tier {
        match t {
            Tensor::Accumulator(_) => self.choice.gradients,
            Tensor::Local(u, i, _) => {
                let unit = &self.w.units[u as usize];
                if let Some(k) = self.saved[u as usize].iter().position(|&s| s == i) {
                    return match self.choice.saved[u as usize][k] {
                        Saved::Keep | Saved::Recompute => Tier::Device,
                        Saved::Host => Tier::Host,
                        Saved::Disk => Tier::Disk,
                    };
                }
                let late_embedding =
                    self.choice.order == LoopOrder::BatchMajor && u == 1 && unit.d_input == Some(i);
                if unit.output == Some(i) || late_embedding {
                    self.choice.inputs
                } else {
                    Tier::Device
                }
            }
            Tensor::Weight(p) => self.choice.weights[self.unit_of(p)],
            _ => Tier::Device,
        }
    }

    /// What is on the device when, in a program.
    fn schedule<'p>(&self, program: &'p Program) -> Schedule<'p> {
        let prefetch = usize::from(self.choice.prefetch);
        let mut tiers: FastMap<Tensor, Tier> = FastMap::default();
        for o in program.ops.iter().flat_map(|op| &op.operands) {
            tiers
                .entry(o.tensor)
                .or_insert_with(|| self.home_tier(o.tensor));
        }
        let gap = if prefetch == 0 { 1 } else { 2 };
        let windows = program.windows(|t| tiers[&t] == Tier::Device, gap);
        let agenda = Agenda::new(program, &windows, &tiers, prefetch);
        let first_use = first_use_table(&windows);
        Schedule {
            program,
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
        purpose: Purpose,
        updates: Updates,
        mut q: UpdateQueue,
    ) -> UpdateQueue {
        let prefetch = usize::from(self.choice.prefetch);
        let Schedule {
            program,
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
        if updates == Updates::UnderForward {
            for (k, p) in q.order.iter().enumerate() {
                let ahead = q.order[k.saturating_sub(prefetch)];
                let at = first_use.get(&ahead).copied().unwrap_or(0);
                let at = at.min(first_use.get(p).copied().unwrap_or(0));
                due.entry(at).or_default().push(k);
            }
        }
        self.load_inputs(purpose);
        let mut st = Live {
            device: FastMap::default(),
            staged: FastMap::default(),
            spilled: FastMap::default(),
            forward: FastMap::default(),
            finished: FastMap::default(),
        };
        self.persistent_operands(&mut st);
        for (i, op) in program.ops.iter().enumerate() {
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
                    && let Some(f) = self.update(&mut q, position[&p], None)
                {
                    st.forward.insert(p, f);
                }
                self.fetch_window(&windows[wi], wi, tiers, &mut st);
            }
            self.compute(op, i, windows, agenda, &mut st);
            self.after(op, i, windows, agenda, tiers, updates, &mut st);
            for p in ready.get(&i).into_iter().flatten() {
                let gradient = st.finished[p];
                self.update(&mut q, position[p], Some(gradient));
            }
        }
        if updates == Updates::UnderForward {
            for k in 0..q.order.len() {
                self.update(&mut q, k, None);
            }
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
                && self.choice.gradients == Tier::Device
            {
                st.device.insert(Tensor::Gradient(p), g);
                if self.w.gradient == Dtype::F32 {
                    st.device.insert(Tensor::Accumulator(p), g);
                }
            }
        }
        st.device.insert(Tensor::Losses, self.homes.losses_device);
    }

    fn load_inputs(&mut self, purpose: Purpose) {
        let m_all = if purpose == Purpose::Infer {
            1
        } else {
            self.w.batch.accumulate
        };
        let bytes = self.w.batch.input_bytes().0;
        self.inputs.clear();
        for m in 0..m_all {
            let host = self.slot(Tier::Host, bytes, Tensor::Inputs(m));
            let arg = Arg {
                slot: host,
                offset: 0,
                bytes,
                access: Use::Write,
            };
            self.push(Lane::HOST, Work::Load { micro_batch: m }, vec![arg]);
            let device = self.slot(Tier::Device, bytes, Tensor::Inputs(m));
            self.copy(host, device, bytes);
            self.inputs.push(device);
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
            Tensor::Weight(p) => self.homes.weight[p as usize],
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
                    let home = self.homes.weight[p as usize];
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

    fn tensor_bytes(&self, t: Tensor) -> u64 {
        match t {
            Tensor::Weight(p) => self.weight_bytes(p),
            Tensor::State(p) => self.state_bytes(p),
            Tensor::Gradient(p) => self.gradient_bytes(p),
            Tensor::Accumulator(p) => self.pieces[p as usize].elements * 4,
            Tensor::NormParts(p) => self.pieces[p as usize].norm_chunks * 8,
            Tensor::AllNormParts => self.norm_bytes(),
            Tensor::Clip => 64,
            Tensor::Losses => self.losses_bytes(),
            Tensor::Inputs(_) => self.w.batch.input_bytes().0,
            Tensor::Local(u, i, _) => self.w.units[u as usize].tensors[i as usize].bytes.0,
            Tensor::Workspace => 0,
        }
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
                        && self.choice.gradients == Tier::Device
                }
                Tensor::Accumulator(p) => {
                    self.w.gradient == Dtype::F32
                        && self.homes.gradient[p as usize].is_some()
                        && self.choice.gradients == Tier::Device
                }
                _ => false,
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
                    Tensor::Inputs(m) => self.inputs[m as usize],
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

    fn finished(&mut self, p: u32, updates: Updates, st: &mut Live) {
        let parts = st.device[&Tensor::NormParts(p)];
        let piece = &self.pieces[p as usize];
        let (offset, bytes) = (piece.norm_offset * 8, piece.norm_chunks * 8);
        self.copy_at(parts, self.homes.norm_parts, offset, bytes);
        let source = match self.w.gradient {
            Dtype::F32 => st.device[&Tensor::Accumulator(p)],
            Dtype::Bf16 => st.device[&Tensor::Gradient(p)],
        };
        let bytes = self.gradient_bytes(p);
        match (updates, self.choice.gradients) {
            (Updates::UnderBackward, _) => {
                st.finished.insert(p, (source, parts));
            }
            (Updates::AfterNorm, Tier::Device) => {
                self.waiting.insert(p, source);
            }
            (Updates::AfterNorm, tier) => {
                let slot = self.slot(tier, bytes, Tensor::Gradient(p));
                self.waiting.insert(p, slot);
                self.send_back(source, slot, bytes);
            }
            (_, Tier::Device) => {}
            _ => {
                let home = self.homes.gradient[p as usize].expect("gradients wait");
                self.send_back(source, home, bytes);
            }
        }
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

/// A program, when its tensors are on the device, and where they are otherwise.
struct Schedule<'p> {
    program: &'p Program,
    tiers: FastMap<Tensor, Tier>,
    windows: Vec<Window>,
    agenda: Agenda,
    /// First operation that reads each piece's weights.
    first_use: FastMap<u32, usize>,
}

/// For each operation, the windows that are read from disk, fetched or begun before it, and those
/// that end after it.
struct Agenda {
    read: Lists,
    fetch: Lists,
    begin: Lists,
    end: Lists,
}

/// A list for each operation, all in one piece of memory.
struct Lists {
    starts: Vec<usize>,
    items: Vec<usize>,
}

impl Lists {
    /// From pairs of operation and item; items of one operation keep their order.
    fn new(n: usize, pairs: &[(usize, usize)]) -> Self {
        let mut starts = vec![0; n + 1];
        for &(op, _) in pairs {
            starts[op + 1] += 1;
        }
        for i in 0..n {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut items = vec![0; pairs.len()];
        for &(op, item) in pairs {
            items[next[op]] = item;
            next[op] += 1;
        }
        Self { starts, items }
    }

    fn at(&self, op: usize) -> &[usize] {
        &self.items[self.starts[op]..self.starts[op + 1]]
    }
}

impl Agenda {
    fn new(
        program: &Program,
        windows: &[Window],
        tiers: &FastMap<Tensor, Tier>,
        prefetch: usize,
    ) -> Self {
        let n = program.ops.len();
        let (mut reads, mut fetches, mut begins, mut ends) = (
            Vec::new(),
            Vec::new(),
            Vec::new(),
            Vec::with_capacity(windows.len()),
        );
        let weights: Vec<usize> = windows
            .iter()
            .filter(|w| is_weight(w.tensor) && tiers[&w.tensor] != Tier::Device)
            .map(|w| w.first)
            .collect();
        let mut nth_weight: usize = 0;
        let mut previous_end: FastMap<Tensor, usize> = FastMap::default();
        for (wi, window) in windows.iter().enumerate() {
            ends.push((window.last, wi));
            let fetched = tiers[&window.tensor] != Tier::Device && !window.fresh;
            if !fetched {
                begins.push((window.first, wi));
                previous_end.insert(window.tensor, window.last);
                continue;
            }
            let earliest = previous_end
                .insert(window.tensor, window.last)
                .map_or(0, |e| e + 1);
            let (fetch, read) = if is_weight(window.tensor) {
                let k = nth_weight;
                nth_weight += 1;
                (
                    weights[k.saturating_sub(prefetch)],
                    weights[k.saturating_sub(2 * prefetch)],
                )
            } else {
                let visit = program.ops[window.first].visit as usize;
                (
                    program.visits[visit.saturating_sub(prefetch)],
                    program.visits[visit.saturating_sub(2 * prefetch)],
                )
            };
            let fetch = fetch.max(earliest).min(window.first);
            fetches.push((fetch, wi));
            reads.push((read.max(earliest).min(fetch), wi));
        }
        Self {
            read: Lists::new(n, &reads),
            fetch: Lists::new(n, &fetches),
            begin: Lists::new(n, &begins),
            end: Lists::new(n, &ends),
        }
    }
}

fn is_weight(t: Tensor) -> bool {
    matches!(t, Tensor::Weight(_))
}

/// First operation that reads each piece's weights.
fn first_use_table(windows: &[Window]) -> FastMap<u32, usize> {
    let mut table = FastMap::default();
    for w in windows {
        if let Tensor::Weight(p) = w.tensor {
            table.entry(p).or_insert(w.first);
        }
    }
    table
}

/// Pieces in order of their first use in forward.
fn first_uses(program: &Program, n_pieces: usize) -> Vec<u32> {
    let used = program
        .ops
        .iter()
        .flat_map(|op| &op.operands)
        .filter_map(|o| match o.tensor {
            Tensor::Weight(p) => Some(p),
            _ => None,
        });
    let mut seen = vec![false; n_pieces];
    used.chain(0..n_pieces as u32)
        .filter(|&p| !std::mem::replace(&mut seen[p as usize], true))
        .collect()
}

/// For each piece the operation after which it may be updated in the same batch: its gradient is
/// complete and nothing reads its weights any more. In that order.
fn ready_order(program: &Program) -> Vec<(usize, u32)> {
    let mut ready: BTreeMap<u32, usize> = BTreeMap::new();
    for (i, op) in program.ops.iter().enumerate() {
        if let Work::Finish { piece } = op.work {
            ready.insert(piece, i);
        }
        for o in &op.operands {
            if let Tensor::Weight(p) = o.tensor {
                ready.insert(p, i);
            }
        }
    }
    let mut order: Vec<(usize, u32)> = ready.into_iter().map(|(p, i)| (i, p)).collect();
    order.sort_unstable();
    order
}
