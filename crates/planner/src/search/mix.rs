//! A whole plan in a few counts: what the search changes, and what each unit gets by it.
//!
//! Units are ranked by their next use: the order of forward. The update of the first is due first
//! (with `exact` clipping all of them begin when the norm is known and run under the next forward;
//! without, the gradient of the first comes last), so what is fastest goes to the first: they stay
//! on the device. Of the others some are updated on the device with their state streamed through
//! it, evenly between those that the host updates, so that host and links work side by side. The
//! last have the latest deadlines: what does not fit on the host goes to disk from there.

use lowtide_units::{Bytes, ids};
use lowtide_workload::{Unit, UnitKind, Workload};

use std::ops::Deref;

use super::ladder::Ladders;
use super::{Pins, Request};
use crate::choice::{Activations, Ahead, Choice, Direct, LoopOrder, Pieces, Processor, Saved};
use crate::draft::Rates;
use crate::plan::Tier;

/// What bounds the knobs: the user's pins, and what blocks may store.
#[derive(Debug)]
pub(super) struct Knobs {
    pub pins: Pins,
    pub ladders: Ladders,
    pub rates: Rates,
    /// What a pool of [`Ahead`] is counted in: bytes of a block's largest tensor that is fetched, and of the
    /// state of its largest parameter.
    grain: [u64; 2],
    /// The device's budget.
    device: u64,
    /// Whether there are drives.
    disk: bool,
    /// Whether units have frozen tensors beside trained ones, whose homes may differ.
    pub bases: bool,
    /// Which transfers pass no host memory.
    pub direct: Direct,
    /// What a running session has in its homes: every mix gets the same, and differs in what comes and goes alone.
    pub held: Option<Choice>,
}

impl Knobs {
    pub(super) fn new(r: &Request<'_>, direct: Direct) -> Self {
        let w = r.workload;
        let (mut tensor, mut state) = (1, 1);
        for unit in w.units.iter().filter(|u| u.kind == UnitKind::Block) {
            for i in unit.saved() {
                tensor = unit.tensors[i].bytes.0.max(tensor);
            }
            for p in ids(&unit.params) {
                let param = &w.params[p];
                let n = w.kept(param);
                tensor = tensor.max(n * w.precision.size());
                if !param.frozen {
                    let own = std::slice::from_ref(param);
                    let own = w.optimizer.state_bytes(w.precision, n, own);
                    state = state.max(n * w.gradient.size() + own);
                }
            }
        }
        Self {
            pins: r.pins,
            ladders: Ladders::new(w, r.machine),
            rates: Rates::new(w, r.machine),
            grain: [tensor, state],
            device: r.budgets.device.0,
            disk: r.budgets.disk.0 > 0,
            bases: w.units.iter().any(|unit| has_base(w, unit)),
            direct,
            held: None,
        }
    }

    /// The same where all homes are those of a choice.
    pub(super) fn holding(self, held: &Choice) -> Self {
        Self {
            held: Some(held.clone()),
            ..self
        }
    }

    /// Whether saved tensors that move may go to the host or to a drive, as the search likes.
    pub(super) fn spills(&self) -> bool {
        self.disk && self.pins.offload.is_none()
    }

    fn ahead(&self, [device, host, updates]: [u8; 3]) -> Ahead {
        let of = |n: u8, grain: u64| Bytes(u64::from(n) * grain / 4);
        Ahead {
            device: Bytes(self.device / 64 * u64::from(device)),
            host: of(host, self.grain[0]),
            updates: of(updates, self.grain[1]),
        }
    }
}

/// Whether a unit has frozen tensors beside trained ones.
fn has_base(w: &Workload, unit: &Unit) -> bool {
    let frozen = |off: bool| ids(&unit.params).any(|p| w.params[p].frozen == off);
    frozen(true) && frozen(false)
}

impl Deref for Knobs {
    type Target = Pins;

    fn deref(&self) -> &Pins {
        &self.pins
    }
}

/// How far copies run ahead in a start: 64ths of the device's budget, quarters of a block's largest tensor, and
/// of its state.
pub(super) const AHEAD: [u8; 3] = [62, 16, 4];

/// The same where it is pinned.
pub(super) fn pinned_ahead(n: u8) -> [u8; 3] {
    let n = n.min(8);
    [n * 8, n * 4, n * 4]
}

/// A knob that counts units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// Units with weights, optimizer state and gradient on the device.
    Resident,
    /// Of the others, units that are updated on the device: their state is fetched and offloaded again.
    Streamed,
    /// Of the others, the last ones, whose weights have a copy that stays on the device.
    Copies,
    /// Of those without a copy, units whose frozen tensors stay on the device, spread evenly, so that those which are
    /// fetched come between them.
    Base,
    /// Of the others, the first ones, whose gradients wait on the device.
    Near,
    /// Rungs of the blocks' ladders, summed over blocks: all have the same number, and the last ones one more.
    Stored,
    /// The last blocks, whose stored tensors stay on the device; those of the other blocks move.
    Staying,
    /// Of these others, the first ones, whose tensors move on to the drives, because they wait longest.
    Spilled,
}

impl Count {
    pub(super) const ALL: [Self; 8] = [
        Self::Resident,
        Self::Streamed,
        Self::Copies,
        Self::Base,
        Self::Near,
        Self::Stored,
        Self::Staying,
        Self::Spilled,
    ];

    /// Those that pay with bytes of the device.
    pub(super) const PAID: [Self; 6] = [
        Self::Resident,
        Self::Copies,
        Self::Base,
        Self::Near,
        Self::Stored,
        Self::Staying,
    ];
}

/// A candidate of the search: one value for each knob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mix {
    pub order: LoopOrder,
    /// Micro-batches of a round; 0: the whole batch is one.
    pub round: u32,
    pub pieces: Pieces,
    /// Where gradients wait that do not wait on the device.
    pub waiting: Tier,
    pub inputs: Tier,
    /// How far copies run ahead of their use: for each bound of [`Ahead`], in the units of [`AHEAD`].
    pub ahead: [u8; 3],
    /// Whether a knob is filled up to where all of that still fits; else to where three quarters of the device's bound
    /// do, and copies are held back.
    pub unhurried: bool,
    pub carry: Tier,
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
            ahead: AHEAD,
            unhurried: true,
            carry: Tier::Device,
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

    /// With copies no further ahead than in what became of it: where they had to be held back, they would
    /// have to be in what is like it.
    pub(super) fn as_settled(&self, choice: &Choice, knobs: &Knobs) -> Self {
        let mut mix = self.clone();
        let of_64 = choice.ahead.device.0 / (knobs.device / 64).max(1);
        mix.ahead[0] = mix.ahead[0].min(of_64.min(64) as u8);
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
            Count::Resident | Count::Streamed | Count::Copies | Count::Base | Count::Near
                if pins.held.is_some() =>
            {
                0
            }
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
            Count::Base if pins.bases && pins.weights.is_none() => {
                others() - self.get(Count::Copies).min(others())
            }
            Count::Near if pins.gradients.is_none() => others(),
            Count::Stored | Count::Staying | Count::Spilled if pins.recompute.is_some() => 0,
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
            Count::Spilled if pins.spills() => match pins.activations {
                Activations::Auto | Activations::Offload => {
                    let staying = self.get(Count::Staying);
                    pins.ladders.blocks.len().saturating_sub(staying)
                }
                Activations::Recompute | Activations::Keep => 0,
            },
            _ => 0,
        }
    }

    /// What every unit gets; where state and weights do not stay on the device they are on the
    /// host.
    pub(super) fn choice(&self, w: &Workload, pins: &Knobs) -> Choice {
        let mut choice = match &pins.held {
            None => self.homes(w, pins),
            Some(held) => Choice {
                order: self.order,
                inputs: self.inputs,
                ahead: pins.ahead(self.ahead),
                carry: self.carry,
                ..held.clone()
            },
        };
        match pins.recompute {
            Some(recomputed) => {
                let blocks = w.units.iter().filter(|u| u.kind == UnitKind::Block).count();
                choice.keep_last_blocks(w, blocks.saturating_sub(recomputed as usize));
            }
            None => self.store(&mut choice, pins),
        }
        choice
    }

    /// Where every unit's weights, state and gradients are; all saved tensors are kept.
    fn homes(&self, w: &Workload, pins: &Knobs) -> Choice {
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
            bases: Vec::new(),
            optimizer: vec![optimizer; n],
            update: vec![update; n],
            gradients: vec![pins.gradients.unwrap_or(self.waiting); n],
            inputs: self.inputs,
            saved: w
                .units
                .iter()
                .map(|u| vec![Saved::Keep; u.saved().len()])
                .collect(),
            ahead: pins.ahead(self.ahead),
            carry: self.carry,
            round: self.round,
            durable: false,
            direct: pins.direct,
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
        let copies = self.get(Count::Copies);
        for &u in others.iter().rev().take(copies) {
            choice.weights[u] = Tier::Device;
        }
        let (bases, rest) = (
            self.get(Count::Base),
            others.len() - copies.min(others.len()),
        );
        if bases > 0 {
            choice.bases = vec![false; n];
            for (i, &u) in others[..rest].iter().enumerate() {
                choice.bases[u] = (i + 1) * bases / rest > i * bases / rest;
            }
        }
        for &u in others.iter().take(self.get(Count::Near)) {
            choice.gradients[u] = Tier::Device;
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
        let spilled = match pins.offload {
            Some(Tier::Disk) => n,
            Some(_) => 0,
            None => self.get(Count::Spilled),
        };
        for (i, &u) in ladders.blocks.iter().rev().enumerate() {
            let steps = stored / n + usize::from(i < stored % n);
            let way = if i < staying {
                Saved::Keep
            } else if n - i <= spilled {
                Saved::Disk
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
