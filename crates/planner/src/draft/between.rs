//! What holds the rounds of a batch together: homes for what stays between two of them, inputs that are
//! loaded again, losses that are handed on.

use lowtide_units::Id;

use super::*;
use crate::plan::gradients_of_outputs;
use crate::program::sharing;

impl Emitter<'_> {
    /// What stays between two rounds of a batch: accumulators, and output gradients of embeddings that share a table.
    pub(super) fn place_between_rounds(&mut self) {
        let rounds = self.choice.rounds(self.w);
        self.homes.accumulator = vec![None; self.pieces.len()].into();
        if rounds.one() {
            return;
        }
        for p in trained(self.pieces) {
            if !self.sums_in_gradient(p) {
                let (tier, t) = (
                    self.choice.gradients[self.unit_of(p)],
                    Tensor::Accumulator(p),
                );
                let home = self.home(tier, self.tensor_bytes(t), t);
                self.homes.accumulator[p] = Some(home);
            }
        }
        let start = self.slots.next_id();
        let gradients = gradients_of_outputs(self.w);
        let late = sharing(self.w).into_iter().map(|u| gradients[u as usize]);
        self.homes.late_tensors = late.flatten().collect();
        for (reader, i) in self.homes.late_tensors.clone() {
            for m in 0..self.w.batch.accumulate {
                let t = Tensor::Local(reader, i, m);
                self.home(self.choice.inputs, self.tensor_bytes(t), t);
            }
        }
        self.homes.late = start..self.slots.next_id();
    }

    /// Whether a piece's gradient adds up where it will wait.
    pub(super) fn sums_in_gradient(&self, p: PieceId) -> bool {
        self.w.sums_in_place()
            && self.homes.gradient[p].is_some()
            && self.choice.gradients[self.unit_of(p)] == Tier::Device
    }

    /// Where a tensor is that was there before the part, or will be after it.
    pub(super) fn outer_home(&self, t: Tensor) -> Option<SlotId> {
        match t {
            Tensor::Accumulator(p) if self.sums_in_gradient(p) => self.homes.gradient[p],
            Tensor::Accumulator(p) => self.homes.accumulator[p],
            Tensor::Local(u, i, m) => {
                let k = self.homes.late_tensors.iter().position(|&t| t == (u, i))?;
                let at = k * self.w.batch.accumulate as usize + m as usize;
                let slot = SlotId::new(self.homes.late.start.idx() + at);
                self.homes.late.contains(&slot).then_some(slot)
            }
            _ => None,
        }
    }

    /// Hands the losses of a round to the caller.
    pub(super) fn losses(&mut self, micro_batches: u32) {
        let (slot, bytes) = self.losses_on_host(micro_batches);
        let arg = Arg {
            slot,
            offset: 0,
            bytes,
            access: Use::Read,
        };
        self.push(Lane::HOST, Work::Losses, vec![arg]);
    }

    /// Reads a micro-batch's inputs and sends them to the device.
    pub(super) fn load_inputs(&mut self, m: u32) {
        let bytes = self.w.batch.input_bytes().0;
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
        self.inputs.insert(m, device);
    }

    /// Inputs of micro-batches of earlier rounds, by the operation before which they are loaded again:
    /// a few before the one that reads them.
    pub(super) fn late_inputs(&self, program: &Program, span: &Span) -> BTreeMap<usize, Vec<u32>> {
        const AHEAD: usize = 2;
        let mut uses: Vec<(usize, u32)> = Vec::new();
        let mut seen = vec![false; span.micro_batches.start as usize];
        if span.ends && span.rounds {
            for (i, op) in program.ops.iter().enumerate() {
                for o in &op.operands {
                    if let Tensor::Inputs(m) = o.tensor
                        && m < span.micro_batches.start
                        && !std::mem::replace(&mut seen[m as usize], true)
                    {
                        uses.push((i, m));
                    }
                }
            }
        }
        let mut loads: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (k, &(_, m)) in uses.iter().enumerate() {
            let before = uses[k.saturating_sub(AHEAD)].0;
            loads.entry(before).or_default().push(m);
        }
        loads
    }
}
