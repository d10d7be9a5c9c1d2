//! Emits the tasks of a program: the gpu lane's operations in order, and around each what the agenda says.

use super::agenda::Agenda;
use super::timetable::Event;
use super::*;
use lowtide_workload::OpId;

impl Emitter<'_> {
    /// Emits a whole program with everything that serves it.
    pub(super) fn run(
        &mut self,
        schedule: &Schedule<'_>,
        updates: Updates,
        mut q: UpdateQueue,
    ) -> UpdateQueue {
        let Schedule {
            program,
            span,
            tiers,
            windows,
            agenda,
            times,
            ..
        } = schedule;
        let mut ready: FastMap<usize, Vec<usize>> = FastMap::default();
        if updates == Updates::UnderBackward {
            for (k, (i, _)) in ready_order(program, self.pieces).into_iter().enumerate() {
                ready.entry(i).or_default().push(k);
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
            for &event in agenda.events.at(i) {
                match event {
                    Event::Stage(k) => self.stage(&mut q, k, !updates.at_once()),
                    Event::Lift(k) => self.lift(&mut q, k),
                    Event::Update(k) => {
                        if let Some(f) = self.update(&mut q, k, None) {
                            st.forward.insert(q.order[k], f);
                        }
                    }
                    Event::Read(wi) => self.stage_window(&windows[wi], wi, tiers, &mut st),
                    Event::Fetch(wi) => self.fetch_window(&windows[wi], wi, tiers, &mut st),
                    Event::None => {}
                }
            }
            if !committed && q.done.iter().all(|&done| done) {
                self.commit();
                committed = true;
            }
            self.compute(op, i, windows, agenda, &mut st);
            self.after(op, i, windows, agenda, tiers, updates, &mut st);
            for &k in ready.get(&i).into_iter().flatten() {
                let gradient = st.finished[&q.order[k]];
                self.update(&mut q, k, Some(gradient));
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
        self.linger(times);
        q
    }

    fn persistent_operands(&self, st: &mut Live) {
        for p in self.pieces.ids() {
            let unit = self.unit_of(p);
            if self.weight_tier(p) == Tier::Device {
                let slot = self.homes.resident[p].unwrap_or(self.homes.weight[p]);
                st.device.insert(Tensor::Weight(p), slot);
            }
            if let Some(g) = self.homes.gradient[p]
                && self.choice.gradients[unit] == Tier::Device
            {
                st.device.insert(Tensor::Gradient(p), g);
                if self.w.sums_in_place() {
                    st.device.insert(Tensor::Accumulator(p), g);
                }
            }
        }
        st.device.insert(Tensor::Losses, self.homes.losses_device);
        for &(u, slot) in &self.homes.caches {
            st.device.insert(Tensor::Cache(u), slot);
        }
        if self.choice.rounds(self.w).one() {
            return;
        }
        let sums = trained(self.pieces).map(Tensor::Accumulator);
        let late = ids(&self.homes.late).map(|s| self.slots[s].tensor);
        for t in sums.chain(late) {
            let home = self.outer_home(t).expect("it stays between rounds");
            match self.slots[home].tier {
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
        if self.slots[home].tier != Tier::Disk {
            return;
        }
        if self.direct(window.tensor).read {
            let bytes = self.tensor_bytes(window.tensor);
            let device = self.slot(Tier::Device, bytes, window.tensor);
            self.disk(home, device);
            st.device.insert(window.tensor, device);
        } else {
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
            Tensor::Weight(p) if self.shared(p) => {
                let own = match st.forward.remove(&p) {
                    Some(Forward::Device(slot) | Forward::Host(slot)) => slot,
                    None => {
                        let staged = st.staged.remove(&wi);
                        staged.unwrap_or_else(|| self.fetched_from(p))
                    }
                };
                let whole = self.slot(Tier::Device, self.weight_bytes(p), window.tensor);
                self.gather(p, own, whole);
                whole
            }
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
            if !self.fixed(t) {
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
        let lane = match op.work {
            Work::AllToAll { .. } => Lane::NET,
            _ => Lane::GPU,
        };
        self.push(lane, op.work, args);
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

    fn logits(&mut self, unit: u32, op: OpId, m: u32, st: &Live) {
        let u = &self.w.units[unit as usize];
        let Some(i) = u.logits else {
            return;
        };
        let writes = u.infer[op]
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
}
