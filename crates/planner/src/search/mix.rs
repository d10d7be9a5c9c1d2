//! A whole plan in a few counts: what the search turns, and what each unit gets by it.
//!
//! Units are ranked by their next use: the order of forward. The update of the first is due first
//! (with `exact` clipping all of them begin when the norm is known and run under the next forward;
//! without, the gradient of the first comes last), so what is fastest goes to the first: they stay
//! on the device. Of the others some are updated on the device with their state streamed through
//! it, evenly between those that the host updates, so that host and links work side by side. The
//! last have the latest deadlines: what does not fit on the host goes to disk from there.

use lowtide_workload::{UnitKind, Workload};

use std::ops::Deref;

use super::Pins;
use super::ladder::Ladders;
use crate::choice::{Activations, Choice, LoopOrder, Pieces, Processor, Saved};
use crate::plan::Tier;

/// What bounds the knobs: the user's pins, and what blocks may store.
#[derive(Debug)]
pub(super) struct Knobs {
    pub pins: Pins,
    pub ladders: Ladders,
}

impl Deref for Knobs {
    type Target = Pins;

    fn deref(&self) -> &Pins {
        &self.pins
    }
}

/// A knob that counts units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// Units with weights, optimizer state and gradient on the device.
    Resident,
    /// Of the others, units that are updated on the device, with their state fetched and sent back.
    Streamed,
    /// Of the others, the last of which the device holds a copy of the weights.
    Copies,
    /// Of the others, the first of which gradients wait on the device.
    Near,
    /// Rungs of the blocks' ladders: all blocks have so many, and the last of them one more.
    Stored,
    /// Blocks, the last ones, of which what is stored stays on the device; of the others it moves.
    Staying,
}

impl Count {
    pub(super) const ALL: [Self; 6] = [
        Self::Resident,
        Self::Streamed,
        Self::Copies,
        Self::Near,
        Self::Stored,
        Self::Staying,
    ];

    /// Those that pay with bytes of the device.
    pub(super) const PAID: [Self; 5] = [
        Self::Resident,
        Self::Copies,
        Self::Near,
        Self::Stored,
        Self::Staying,
    ];
}

/// What the search turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mix {
    pub order: LoopOrder,
    /// Micro-batches of a round; 0: the whole batch is one.
    pub round: u32,
    pub pieces: Pieces,
    /// Where gradients wait that do not wait on the device.
    pub waiting: Tier,
    pub inputs: Tier,
    pub prefetch: u8,
    /// Units passed over before the first that is resident: a large embedding may not be worth
    /// its bytes.
    pub skip: usize,
    pub counts: [usize; Count::ALL.len()],
}

impl Mix {
    /// Nothing on the device that need not be.
    pub(super) fn least(order: LoopOrder, pieces: Pieces, waiting: Tier, inputs: Tier) -> Self {
        Self {
            order,
            round: 0,
            pieces,
            waiting,
            inputs,
            prefetch: 1,
            skip: 0,
            counts: [0; Count::ALL.len()],
        }
    }

    pub(super) fn get(&self, count: Count) -> usize {
        self.counts[count as usize]
    }

    /// With one knob set; the others are cut to what is left for them.
    pub(super) fn with(&self, count: Count, value: usize, w: &Workload, pins: &Knobs) -> Self {
        let mut mix = self.clone();
        mix.counts[count as usize] = value.min(mix.most(count, w, pins));
        mix.cut_to(w, pins);
        mix
    }

    /// Cuts each knob to what is left for it.
    pub(super) fn cut_to(&mut self, w: &Workload, pins: &Knobs) {
        for count in Count::ALL {
            self.counts[count as usize] = self.get(count).min(self.most(count, w, pins));
        }
    }

    /// The largest value of a knob, zero where a pin holds it fast.
    pub(super) fn most(&self, count: Count, w: &Workload, pins: &Knobs) -> usize {
        let n = w.units.len();
        let device = |pin: Option<Tier>| pin.is_none_or(|t| t == Tier::Device);
        let others = || n - self.get(Count::Resident).min(n);
        match count {
            Count::Resident => {
                let free = !pins.durable
                    && device(pins.weights)
                    && device(pins.optimizer)
                    && pins.update != Some(Processor::Host);
                if free { n - self.skip.min(n) } else { 0 }
            }
            Count::Streamed if pins.update.is_none() && pins.optimizer != Some(Tier::Device) => {
                others()
            }
            Count::Copies if pins.weights.is_none() => others(),
            Count::Near if pins.gradients.is_none() => others(),
            Count::Stored | Count::Staying if pins.recompute.is_some() => 0,
            Count::Stored => match pins.activations {
                Activations::Auto | Activations::Recompute => {
                    pins.ladders.blocks.len() * pins.ladders.steps
                }
                Activations::Offload | Activations::Keep => 0,
            },
            Count::Staying => match pins.activations {
                Activations::Auto | Activations::Offload => pins.ladders.blocks.len(),
                Activations::Recompute | Activations::Keep => 0,
            },
            _ => 0,
        }
    }

    /// What every unit gets; where state and weights do not stay on the device they are on the
    /// host.
    pub(super) fn choice(&self, w: &Workload, pins: &Knobs) -> Choice {
        let n = w.units.len();
        let durable = pins.durable.then_some(Tier::Disk);
        let optimizer = pins.optimizer.or(durable).unwrap_or(Tier::Host);
        let update = match (pins.update, optimizer) {
            (_, Tier::Device) => Processor::Device,
            (pinned, _) => pinned.unwrap_or(Processor::Host),
        };
        let mut choice = Choice {
            order: self.order,
            pieces: self.pieces,
            weights: vec![pins.weights.unwrap_or(Tier::Host); n],
            optimizer: vec![optimizer; n],
            update: vec![update; n],
            gradients: vec![pins.gradients.unwrap_or(self.waiting); n],
            inputs: self.inputs,
            saved: w
                .units
                .iter()
                .map(|u| vec![Saved::Keep; u.saved().len()])
                .collect(),
            prefetch: self.prefetch,
            round: self.round,
            durable: false,
        };
        if pins.durable {
            choice.make_durable();
        }
        let resident = self.skip..self.skip + self.get(Count::Resident);
        for u in resident.clone() {
            choice.weights[u] = Tier::Device;
            choice.optimizer[u] = Tier::Device;
            choice.update[u] = Processor::Device;
            if pins.gradients.is_none() {
                choice.gradients[u] = Tier::Device;
            }
        }
        let others: Vec<usize> = (0..n).filter(|u| !resident.contains(u)).collect();
        let streamed = self.get(Count::Streamed);
        for (i, &u) in others.iter().enumerate() {
            if (i + 1) * streamed / others.len() > i * streamed / others.len() {
                choice.update[u] = Processor::Device;
            }
        }
        for &u in others.iter().rev().take(self.get(Count::Copies)) {
            choice.weights[u] = Tier::Device;
        }
        for &u in others.iter().take(self.get(Count::Near)) {
            choice.gradients[u] = Tier::Device;
        }
        match pins.recompute {
            Some(recomputed) => {
                let blocks = w.units.iter().filter(|u| u.kind == UnitKind::Block).count();
                choice.keep_last_blocks(w, blocks.saturating_sub(recomputed as usize));
            }
            None => self.store(&mut choice, pins),
        }
        choice
    }

    /// What becomes of the blocks' saved tensors.
    fn store(&self, choice: &mut Choice, pins: &Knobs) {
        let ladders = &pins.ladders;
        let n = ladders.blocks.len();
        let (stored, staying) = match pins.activations {
            Activations::Auto => (self.get(Count::Stored), self.get(Count::Staying)),
            Activations::Recompute => (self.get(Count::Stored), n),
            Activations::Offload => (n * ladders.steps, self.get(Count::Staying)),
            Activations::Keep => (n * ladders.steps, n),
        };
        for (i, &u) in ladders.blocks.iter().rev().enumerate() {
            let steps = stored / n + usize::from(i < stored % n);
            let way = if i < staying {
                Saved::Keep
            } else {
                Saved::Host
            };
            for (value, &stored) in choice.saved[u]
                .iter_mut()
                .zip(&ladders.rung(u, steps).stored)
            {
                *value = if stored { way } else { Saved::Recompute };
            }
        }
    }
}
