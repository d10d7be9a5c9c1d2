//! Where a complete gradient goes, and the updates: read(i+1), update(i), write(i-1) at once.

use super::*;

/// Updates still to be emitted, and how far their reads from disk are ahead.
pub(super) struct UpdateQueue {
    pub(super) order: Vec<PieceId>,
    pub(super) done: Vec<bool>,
    pub(super) read: usize,
    /// Bytes that were read ahead for each update that is still to come, and their sum.
    pub(super) bytes: Vec<u64>,
    pub(super) ahead: u64,
    pub(super) staged: FastMap<(PieceId, Needed), SlotId>,
    /// What was fetched to the device ahead of an update.
    pub(super) lifted: FastMap<PieceId, Fetched>,
}

/// What an update needs that may be on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Needed {
    Weight,
    State,
    Gradient,
}

/// Device slots of what an update needs.
#[derive(Clone, Copy)]
pub(super) struct Fetched {
    weight: SlotId,
    state: SlotId,
    /// Unless it was just made.
    gradient: Option<SlotId>,
}

impl Emitter<'_> {
    pub(super) fn queue(&self, order: Vec<PieceId>) -> UpdateQueue {
        UpdateQueue {
            done: vec![false; order.len()],
            bytes: vec![0; order.len()],
            order,
            read: 0,
            ahead: 0,
            staged: FastMap::default(),
            lifted: FastMap::default(),
        }
    }

    /// Whether a piece is updated on the device.
    pub(super) fn updated_on_device(&self, p: PieceId) -> bool {
        self.choice.update[self.unit_of(p)] == Processor::Device
    }

    /// Fetches what the update at position `k` needs on the device, if that is where it runs and
    /// its gradient waits. The update itself may follow later: in the order of the gpu lane it
    /// would hold up what comes behind it until the copies are done.
    pub(super) fn lift(&mut self, q: &mut UpdateQueue, k: usize) {
        let p = q.order[k];
        if q.done[k] || q.lifted.contains_key(&p) || !self.updated_on_device(p) {
            return;
        }
        let Some(waiting) = self.waiting(p) else {
            return;
        };
        self.stage(q, k, true);
        let fetched = self.fetch_for_update(q, p, Some(waiting));
        q.lifted.insert(p, fetched);
    }

    /// Device slots with weights, state and the waiting gradient of a piece.
    fn fetch_for_update(
        &mut self,
        q: &UpdateQueue,
        p: PieceId,
        waiting: Option<SlotId>,
    ) -> Fetched {
        let staged = |what: Needed| q.staged.get(&(p, what)).copied();
        let (weight, state) = (self.updated_from(p), self.state_home(p));
        let (wb, sb, gb) = (
            self.master_bytes(p),
            self.state_bytes(p),
            self.gradient_bytes(p),
        );
        Fetched {
            state: self.on_device(state, staged(Needed::State), sb),
            gradient: waiting.map(|g| self.on_device(g, staged(Needed::Gradient), gb)),
            weight: self.on_device(weight, staged(Needed::Weight), wb),
        }
    }

    /// Issues the reads from disk that updates up to position `k` need, and where gradients wait those of
    /// later ones as far as reading ahead may go.
    pub(super) fn stage(&mut self, q: &mut UpdateQueue, k: usize, waited: bool) {
        while q.read < q.order.len() {
            let p = q.order[q.read];
            let mut homes = vec![
                (Needed::Weight, self.updated_from(p)),
                (Needed::State, self.state_home(p)),
            ];
            if waited && let Some(g) = self.waiting(p) {
                homes.push((Needed::Gradient, g));
            }
            homes.retain(|&(_, home)| self.slots[home].tier == Tier::Disk);
            let slots = homes.iter().map(|&(_, home)| &self.slots[home]);
            let bytes: u64 = slots.map(|s| s.bytes).sum();
            let further = q.ahead + bytes <= self.choice.ahead.updates.0
                || (q.ahead == 0 && self.choice.ahead.updates.0 > 0);
            if q.read > k && !(waited && further) {
                break;
            }
            for (what, home) in homes {
                let staged = self.on_host(home);
                q.staged.insert((p, what), staged);
            }
            if q.read > k {
                q.bytes[q.read] = bytes;
                q.ahead += bytes;
            }
            q.read += 1;
        }
    }

    /// Emits the update at position `k` and all before it. The gradient comes from where it waits, or from `made`
    /// (device slots of it and of its norm parts) when it was just made. New weights are written to their home and to
    /// the resident copy, if there is one. Where they pass through a host slot on their way to a drive, returns that
    /// slot, so that the next fetch can read from it (forwarding). Long because the inputs and outputs of both
    /// processors stand side by side: they differ by a line here and there.
    pub(super) fn update(
        &mut self,
        q: &mut UpdateQueue,
        k: usize,
        made: Option<Made>,
    ) -> Option<Forward> {
        let gradient = made.map(|m| m.gradient);
        let waited = gradient.is_none();
        if std::mem::replace(&mut q.done[k], true) {
            return None;
        }
        q.ahead -= std::mem::take(&mut q.bytes[k]);
        self.stage(q, k, waited);
        let p = q.order[k];
        let (wb, sb, gb) = (
            self.master_bytes(p),
            self.state_bytes(p),
            self.gradient_bytes(p),
        );
        let weight_home = self.updated_from(p);
        let state_home = self.state_home(p);
        let waiting = self.waiting(p);
        let staged = |what: Needed| q.staged.get(&(p, what)).copied();
        let (w_staged, s_staged) = (staged(Needed::Weight), staged(Needed::State));
        let g_staged = staged(Needed::Gradient);
        let on_device = self.updated_on_device(p);
        let (weight, state, grad);
        if on_device {
            let fetched = match q.lifted.remove(&p) {
                Some(fetched) => fetched,
                None => self.fetch_for_update(q, p, if waited { waiting } else { None }),
            };
            (weight, state) = (fetched.weight, fetched.state);
            let found = gradient.or(fetched.gradient);
            grad = found.expect("a gradient waits, or was just made");
        } else {
            weight = w_staged.unwrap_or(weight_home);
            state = s_staged.unwrap_or(state_home);
            grad = match gradient {
                Some(g) => self.gradient_to_host(g, p),
                None => {
                    let home = waiting.expect("a gradient waits");
                    match self.slots[home].tier {
                        Tier::Device => self.gradient_to_host(home, p),
                        Tier::Host => home,
                        Tier::Disk => g_staged.expect("staged above"),
                    }
                }
            };
        }
        let piece = &self.pieces[p];
        let (norm_offset, norm_bytes) = (piece.norm_offset * 8, piece.norm_chunks * 8);
        let arg = |slot: SlotId, offset: u64, bytes: u64, access: Use| Arg {
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
        // With a norm that is known in time, an update need not look at its own parts; on the device it reads them
        // where they were made.
        match made {
            Some(made) if on_device => args.push(arg(made.parts, 0, norm_bytes, Use::Read)),
            _ if on_device => {}
            _ => args.push(arg(
                self.homes.norm_parts,
                norm_offset,
                norm_bytes,
                Use::Read,
            )),
        }
        let (lane, tier) = match on_device {
            true => (Lane::GPU, Tier::Device),
            false => (Lane::HOST, Tier::Host),
        };
        let scratch = self.w.optimizer.scratch_bytes(self.pieces[p].of(self.w));
        if scratch > 0 {
            let slot = self.slot(tier, scratch, Tensor::Workspace);
            args.push(arg(slot, 0, scratch, Use::Write));
        }
        self.push(lane, Work::Update { piece: p }, args);
        // A durable piece goes to its next versions, and to its copies.
        let truth = self.next_of(self.homes.weight[p]);
        let weight_target = self.next_of(weight_home);
        let state_target = self.next_of(state_home);
        if on_device {
            self.send_back(weight, weight_target, wb);
            self.send_back(state, state_target, sb);
            if let Some(copy) = self.homes.resident[p].filter(|_| self.shared(p)) {
                self.gather(p, weight, copy);
            }
        } else {
            match self.homes.resident[p] {
                Some(copy) if self.shared(p) => self.gather(p, weight, copy),
                Some(copy) => self.copy(weight, copy, wb),
                None => {}
            }
            for (slot, home) in [(weight, weight_target), (state, state_target)] {
                if slot != home {
                    self.disk(slot, home);
                }
            }
        }
        if self.choice.durable && weight_target != truth {
            match self.slots[weight_home].tier {
                Tier::Device => self.send_back(weight_home, truth, wb),
                _ => self.disk(weight_home, truth),
            }
        }
        (weight != weight_home).then_some(if on_device {
            Forward::Device(weight)
        } else {
            Forward::Host(weight)
        })
    }

    /// Where a piece's gradient waits for the norm.
    pub(super) fn waiting(&self, p: PieceId) -> Option<SlotId> {
        self.homes.gradient[p].or_else(|| self.waiting.get(&p).copied())
    }

    pub(super) fn gradient_to_host(&mut self, device: SlotId, p: PieceId) -> SlotId {
        let bytes = self.gradient_bytes(p);
        let host = self.slot(Tier::Host, bytes, Tensor::Gradient(p));
        self.copy(device, host, bytes);
        host
    }

    pub(super) fn finished(&mut self, p: PieceId, updates: Updates, st: &mut Live) {
        let parts = st.device[&Tensor::NormParts(p)];
        let piece = &self.pieces[p];
        let (offset, bytes) = (piece.norm_offset * 8, piece.norm_chunks * 8);
        self.copy_at(parts, self.homes.norm_parts, offset, bytes);
        let source = match self.w.sums_in_place() {
            true => st.device[&Tensor::Accumulator(p)],
            false => st.device[&Tensor::Gradient(p)],
        };
        let bytes = self.gradient_bytes(p);
        match (updates, self.choice.gradients[self.unit_of(p)]) {
            (Updates::UnderBackward, _) => {
                let gradient = source;
                st.finished.insert(p, Made { gradient, parts });
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
                let home = self.homes.gradient[p].expect("gradients wait");
                self.send_back(source, home, bytes);
            }
        }
    }
}
