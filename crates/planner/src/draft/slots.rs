//! Slots without an address, and the tasks that move bytes between them.

use lowtide_workload::UnitKind;

use super::*;

impl Emitter<'_> {
    pub(super) fn slot(&mut self, tier: Tier, bytes: u64, tensor: Tensor) -> SlotId {
        let now = self.tasks.len();
        self.new_slot(tier, bytes, tensor, false, now)
    }

    pub(super) fn home(&mut self, tier: Tier, bytes: u64, tensor: Tensor) -> SlotId {
        self.new_slot(tier, bytes, tensor, true, 0)
    }

    pub(super) fn new_slot(
        &mut self,
        tier: Tier,
        bytes: u64,
        tensor: Tensor,
        persistent: bool,
        birth: usize,
    ) -> SlotId {
        // A drive moves whole sectors: with all of the device's slots in these, each begins with one.
        let align = match tier {
            Tier::Device if self.choice.direct.any() => Tier::Disk.align(),
            _ => tier.align(),
        };
        let bytes = Bytes(bytes.max(1)).align_up(align).0;
        let part = self.part;
        self.slots.push(DraftSlot {
            tier,
            bytes,
            tensor,
            persistent,
            version: None,
            birth,
            death: birth,
            part,
        })
    }

    pub(super) fn weight_bytes(&self, p: PieceId) -> u64 {
        self.pieces[p].elements * self.w.precision.size()
    }

    pub(super) fn state_bytes(&self, p: PieceId) -> u64 {
        let w = self.w;
        w.optimizer
            .state_bytes(w.precision, self.own(p), self.pieces[p].of(w))
    }

    pub(super) fn gradient_bytes(&self, p: PieceId) -> u64 {
        self.own(p) * self.w.gradient.size()
    }

    /// Numbers of a piece that this rank keeps and updates.
    pub(super) fn own(&self, p: PieceId) -> u64 {
        self.pieces[p].own(self.w.ranks)
    }

    /// Whether ranks keep a share of a piece's weights each.
    pub(super) fn shared(&self, p: PieceId) -> bool {
        self.w.ranks > 1 && !self.pieces[p].frozen
    }

    /// What holds the truth of a piece's weights, and its bytes.
    fn master(&self, p: PieceId) -> (Tensor, u64) {
        match self.shared(p) {
            true => (Tensor::Shard(p), self.master_bytes(p)),
            false => (Tensor::Weight(p), self.weight_bytes(p)),
        }
    }

    /// Bytes of a piece's weights that this rank keeps.
    pub(super) fn master_bytes(&self, p: PieceId) -> u64 {
        self.own(p) * self.w.precision.size()
    }

    /// The home of a trained piece's state.
    pub(super) fn state_home(&self, p: PieceId) -> SlotId {
        self.homes.state[p].expect("what is updated has state")
    }

    /// Where operations of a step find a piece's weights, or where they are fetched from.
    pub(super) fn weight_tier(&self, p: PieceId) -> Tier {
        self.choice.home(self.unit_of(p), self.pieces[p].frozen)
    }

    pub(super) fn unit_of(&self, p: PieceId) -> usize {
        self.pieces[p].unit as usize
    }

    /// Bytes of the losses of so many micro-batches.
    pub(super) fn losses_bytes(micro_batches: u32) -> u64 {
        16 * u64::from(micro_batches)
    }

    pub(super) fn norm_bytes(&self) -> u64 {
        self.pieces.iter().map(|p| p.norm_chunks).sum::<u64>() * 8
    }

    pub(super) fn place_homes(&mut self) {
        let (mut weight_homes, mut state_homes) = (List::default(), List::default());
        let (mut resident, mut host_copy, mut gradient) =
            (List::default(), List::default(), List::default());
        for p in self.pieces.ids() {
            let unit = self.unit_of(p);
            let (weight, state) = (self.weight_bytes(p), self.state_bytes(p));
            if self.pieces[p].frozen {
                // Nobody writes it: where it is read from is its only place.
                let tier = self.choice.home(unit, true);
                weight_homes.push(self.home(tier, weight, Tensor::Weight(p)));
                resident.push(None);
                host_copy.push(None);
                state_homes.push(None);
                gradient.push(None);
                continue;
            }
            let truth = weight_home(self.choice, unit);
            let (tensor, bytes) = self.master(p);
            weight_homes.push(self.truth(truth, bytes, tensor));
            // What operations read is whole: of a share there is a copy beside it.
            let elsewhere = truth != Tier::Device || self.shared(p);
            let copy = self.choice.weights[unit] == Tier::Device && elsewhere;
            resident.push(copy.then(|| self.home(Tier::Device, weight, Tensor::Weight(p))));
            let tier = self.choice.optimizer[unit];
            state_homes.push(Some(self.truth(tier, state, Tensor::State(p))));
            let copy = self.choice.durable && self.choice.weights[unit] == Tier::Host;
            host_copy.push(copy.then(|| self.home(Tier::Host, bytes, tensor)));
            let waits = self.clip == Clip::Exact;
            let bytes = self.gradient_bytes(p);
            gradient.push(
                waits.then(|| self.home(self.choice.gradients[unit], bytes, Tensor::Gradient(p))),
            );
        }
        let each = self.choice.rounds(self.w).each();
        let (norm, losses) = (self.norm_bytes(), Self::losses_bytes(each));
        let norm_parts = self.home(Tier::Host, norm, Tensor::AllNormParts);
        let clip = self.home(Tier::Host, 64, Tensor::Clip);
        let on_device = self.choice.update.contains(&Processor::Device);
        let units = self.w.units.iter().zip(0..);
        let caches: Vec<(u32, u64)> = units
            .filter(|(unit, _)| !unit.cache.is_zero())
            .map(|(unit, u)| (u, unit.cache.0))
            .collect();
        let caches = caches
            .into_iter()
            .map(|(u, bytes)| (u, self.home(Tier::Device, bytes, Tensor::Cache(u))))
            .collect();
        self.homes = Homes {
            caches,
            weight: weight_homes,
            resident,
            host_copy,
            state: state_homes,
            gradient,
            accumulator: List::default(),
            late: SlotId(0)..SlotId(0),
            late_tensors: Vec::new(),
            norm_parts,
            clip,
            clip_device: on_device.then(|| self.home(Tier::Device, 64, Tensor::Clip)),
            losses_device: self.home(Tier::Device, losses, Tensor::Losses),
            losses_host: self.home(Tier::Host, losses, Tensor::Losses),
        };
        self.place_between_rounds();
    }

    /// The home of weights or state; of durable ones both versions, and the slot of the current one.
    fn truth(&mut self, tier: Tier, bytes: u64, tensor: Tensor) -> SlotId {
        if !self.choice.durable {
            return self.home(tier, bytes, tensor);
        }
        let current = self.home(Tier::Disk, bytes, tensor);
        let next = self.home(Tier::Disk, bytes, tensor);
        self.slots[current].version = Some((Version::Current, next));
        self.slots[next].version = Some((Version::Next, current));
        current
    }

    /// Where an update puts what it read from `home`: the next version of a durable tensor.
    pub(super) fn next_of(&self, home: SlotId) -> SlotId {
        self.slots[home].version.map_or(home, |(_, n)| n)
    }

    /// Where a fetch finds a piece's weights.
    pub(super) fn fetched_from(&self, p: PieceId) -> SlotId {
        let home = self.homes.weight[p];
        match (self.homes.host_copy[p], self.reads) {
            (Some(copy), _) => copy,
            (None, Version::Current) => home,
            (None, Version::Next) => self.next_of(home),
        }
    }

    /// Where an update finds a piece's weights: a copy that it may change in place spares the read
    /// from disk.
    pub(super) fn updated_from(&self, p: PieceId) -> SlotId {
        let copy = match self.choice.update[self.unit_of(p)] {
            // Of several ranks the copy on the device is of all their shares.
            _ if !self.choice.durable || self.shared(p) => None,
            Processor::Device => self.homes.resident[p],
            Processor::Host => None,
        };
        copy.or(self.homes.host_copy[p])
            .unwrap_or(self.homes.weight[p])
    }

    /// Behind everything that this batch's update wrote.
    pub(super) fn commit(&mut self) {
        if !self.choice.durable {
            return;
        }
        let extents = |e: &Self, of: fn(&Self, SlotId) -> SlotId| -> Vec<SlotId> {
            let homes = e.homes.weight.iter().chain(e.homes.state.iter().flatten());
            homes.map(|&home| of(e, home)).collect()
        };
        let mut slots = extents(self, Self::next_of);
        slots.extend(extents(self, |_, home| home));
        let read = |slot: SlotId, bytes: u64| Arg {
            slot,
            offset: 0,
            bytes,
            access: Use::Read,
        };
        let mut args: Vec<Arg> = slots
            .into_iter()
            .map(|slot| read(slot, self.slots[slot].bytes))
            .collect();
        args.push(read(self.homes.clip, 64));
        self.push(Lane::DISK_WRITE, Work::Commit, args);
    }

    pub(super) fn push(&mut self, lane: Lane, work: Work, args: Vec<Arg>) -> usize {
        let now = self.tasks.len();
        for a in &args {
            let s = &mut self.slots[a.slot];
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
    pub(super) fn copy(&mut self, from: SlotId, to: SlotId, bytes: u64) {
        self.copy_at(from, to, 0, bytes);
    }

    pub(super) fn copy_at(&mut self, from: SlotId, to: SlotId, to_offset: u64, bytes: u64) {
        let lane = if self.slots[to].tier == Tier::Device {
            Lane::H2D
        } else {
            Lane::D2H
        };
        self.transfer(lane, Work::Copy, from, (to, to_offset), bytes);
    }

    /// How a tensor's transfers between device and drives go. Weights of several ranks come in shares, which are no
    /// window's; everything that is updated on the host passes it.
    pub(super) fn direct(&self, t: Tensor) -> Direct {
        let choice = self.choice.direct;
        match t {
            Tensor::Local(..) | Tensor::Accumulator(_) => choice,
            Tensor::Weight(p) => Direct {
                read: choice.read && !self.shared(p),
                write: false,
            },
            _ => Direct::NONE,
        }
    }

    /// Moves all of an extent to or from a slot of the host, or of the device where drives reach it.
    pub(super) fn disk(&mut self, from: SlotId, to: SlotId) {
        let bytes = self.slots[from].bytes;
        let (lane, work) = if self.slots[from].tier == Tier::Disk {
            (Lane::DISK_READ, Work::Read)
        } else {
            (Lane::DISK_WRITE, Work::Write)
        };
        self.transfer(lane, work, from, (to, 0), bytes);
    }

    /// The first `bytes` of `from`, to an offset in another slot.
    fn transfer(&mut self, lane: Lane, work: Work, from: SlotId, to: (SlotId, u64), bytes: u64) {
        let arg = |(slot, offset), access| Arg {
            slot,
            offset,
            bytes,
            access,
        };
        self.push(
            lane,
            work,
            vec![arg((from, 0), Use::Read), arg(to, Use::Write)],
        );
    }

    /// A host slot with the content of `home`, which is on the host or on disk.
    pub(super) fn on_host(&mut self, home: SlotId) -> SlotId {
        let s = self.slots[home].clone();
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
    pub(super) fn on_device(&mut self, home: SlotId, staged: Option<SlotId>, bytes: u64) -> SlotId {
        let s = self.slots[home].clone();
        if s.tier == Tier::Device {
            return home;
        }
        let host = staged.unwrap_or_else(|| self.on_host(home));
        let device = self.slot(Tier::Device, bytes, s.tensor);
        self.copy(host, device, bytes);
        device
    }

    /// Brings all ranks' shares of a piece's weights together on the device, this one's from `own`.
    pub(super) fn gather(&mut self, p: PieceId, own: SlotId, whole: SlotId) {
        let bytes = self.master_bytes(p);
        let own = self.on_device(own, None, bytes);
        self.all_gather(Some(p), (own, bytes), (whole, self.weight_bytes(p)));
    }

    /// Brings bytes of every rank together, from a device slot to another.
    fn all_gather(
        &mut self,
        piece: Option<PieceId>,
        (own, bytes): (SlotId, u64),
        (all, sum): (SlotId, u64),
    ) {
        let arg = |slot, bytes, access| Arg {
            slot,
            offset: 0,
            bytes,
            access,
        };
        let args = vec![arg(own, bytes, Use::Read), arg(all, sum, Use::Write)];
        self.push(Lane::NET, Work::AllGather { piece }, args);
    }

    /// A host slot with `bytes` of every rank's device slot `own`, and how many those are.
    pub(super) fn of_all(&mut self, own: SlotId, bytes: u64, tensor: Tensor) -> (SlotId, u64) {
        let sum = bytes * u64::from(self.w.ranks);
        let device = self.slot(Tier::Device, sum, tensor);
        self.all_gather(None, (own, bytes), (device, sum));
        let host = self.slot(Tier::Host, sum, tensor);
        self.copy(device, host, sum);
        (host, sum)
    }

    /// The losses of so many micro-batches on the host, of all ranks; and their bytes.
    pub(super) fn losses_on_host(&mut self, micro_batches: u32) -> (SlotId, u64) {
        let bytes = Self::losses_bytes(micro_batches);
        let (device, host) = (self.homes.losses_device, self.homes.losses_host);
        if self.w.ranks > 1 {
            return self.of_all(device, bytes, Tensor::LossesOfAll);
        }
        self.copy(device, host, bytes);
        (host, bytes)
    }

    /// The norm parts on the host, of all ranks; and their bytes.
    pub(super) fn norm_parts_on_host(&mut self) -> (SlotId, u64) {
        let (own, bytes) = (self.homes.norm_parts, self.norm_bytes());
        if self.w.ranks == 1 {
            return (own, bytes);
        }
        let device = self.on_device(own, None, bytes);
        self.of_all(device, bytes, Tensor::NormPartsOfAll)
    }

    /// Sends a device slot's content to `home`.
    pub(super) fn send_back(&mut self, device: SlotId, home: SlotId, bytes: u64) {
        let s = self.slots[home].clone();
        match s.tier {
            Tier::Device => debug_assert_eq!(device, home),
            Tier::Host => self.copy(device, home, bytes),
            Tier::Disk if self.direct(s.tensor).write => self.disk(device, home),
            Tier::Disk => {
                let staging = self.slot(Tier::Host, s.bytes, s.tensor);
                self.copy(device, staging, bytes);
                self.disk(staging, home);
            }
        }
    }

    /// Home of a tensor between its windows; the device means one window.
    pub(super) fn home_tier(&self, t: Tensor) -> Tier {
        match t {
            Tensor::Accumulator(p) => self.choice.gradients[self.unit_of(p)],
            Tensor::Local(u, i, _) => {
                let unit = &self.w.units[u as usize];
                if let Some(k) = self.saved[u as usize].iter().position(|&s| s == i) {
                    return match self.choice.saved[u as usize][k] {
                        Saved::Keep | Saved::Recompute => Tier::Device,
                        Saved::Host => Tier::Host,
                        Saved::Disk => Tier::Disk,
                    };
                }
                let read = unit.input_of_gradient(i).map(|input| input.unit as usize);
                let embeds = |u: usize| self.w.units[u].kind == UnitKind::Embedding;
                let late_embedding = match self.choice.rounds(self.w).one() {
                    true => self.choice.order == LoopOrder::BatchMajor && read.is_some_and(embeds),
                    false => self.homes.is_late(u, i),
                };
                if unit.output == Some(i) || late_embedding {
                    self.choice.inputs
                } else if read.is_some() {
                    self.choice.carry
                } else {
                    Tier::Device
                }
            }
            Tensor::Weight(p) => self.weight_tier(p),
            _ => Tier::Device,
        }
    }

    /// Whether a tensor has a slot on the device that stays.
    pub(super) fn fixed(&self, t: Tensor) -> bool {
        match t {
            Tensor::Weight(p) => self.weight_tier(p) == Tier::Device,
            Tensor::Losses | Tensor::Cache(_) => true,
            Tensor::Gradient(p) => {
                self.homes.gradient[p].is_some()
                    && self.choice.gradients[self.unit_of(p)] == Tier::Device
            }
            Tensor::Accumulator(p) if self.sums_in_gradient(p) => true,
            t => self
                .outer_home(t)
                .is_some_and(|home| self.slots[home].tier == Tier::Device),
        }
    }

    pub(super) fn tensor_bytes(&self, t: Tensor) -> u64 {
        match t {
            Tensor::Weight(p) => self.weight_bytes(p),
            Tensor::State(p) => self.state_bytes(p),
            Tensor::Gradient(p) => self.gradient_bytes(p),
            Tensor::Accumulator(p) => self.pieces[p].elements * 4 * u64::from(self.w.sums()),
            Tensor::NormParts(p) => self.pieces[p].norm_chunks * 8,
            Tensor::AllNormParts => self.norm_bytes(),
            Tensor::Clip => 64,
            Tensor::Losses => Self::losses_bytes(self.choice.rounds(self.w).each()),
            Tensor::Inputs(_) => self.w.batch.input_bytes().0,
            Tensor::Local(u, i, _) => self.w.units[u as usize].tensors[i].bytes.0,
            Tensor::Cache(u) => self.w.units[u as usize].cache.0,
            Tensor::Workspace => 0,
            Tensor::Shard(p) => self.master_bytes(p),
            Tensor::Shares(p) => self.own(p) * 4 * u64::from(self.w.ranks),
            Tensor::NormPartsOfAll => self.norm_bytes() * u64::from(self.w.ranks),
            Tensor::LossesOfAll => {
                let own = Self::losses_bytes(self.choice.rounds(self.w).each());
                own * u64::from(self.w.ranks)
            }
        }
    }
}
