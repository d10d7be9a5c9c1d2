//! The knobs: everything that the planner may choose, and nothing that is in the numerics key.

use lowtide_units::Bytes;
use lowtide_workload::{Access, LocalId, Op, Operand, Unit, UnitKind, What, Workload};
use serde::{Deserialize, Serialize};

use crate::rounds::Rounds;
use crate::tiers::Tier;

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
pub(crate) fn whole(round: &u32) -> bool {
    *round == 0
}

/// The order in which blocks and micro-batches are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoopOrder {
    /// For each block all micro-batches: weights are fetched once a batch each way, a block's
    /// gradient is complete when its backward is done.
    LayerMajor,
    /// For each micro-batch all blocks.
    BatchMajor,
}

/// Where an update runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Processor {
    /// On the host's cores.
    Host,
    /// On the device; state that lives elsewhere is fetched and sent back.
    Device,
}

/// What becomes of a saved tensor between forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Saved {
    /// Stays in its device slot.
    Keep,
    /// Offloaded to the host and fetched again.
    Host,
    /// Offloaded to disk and fetched again.
    Disk,
    /// Dropped and computed again.
    Recompute,
}

/// What the user lets the planner do with saved tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Each tensor of each block stays, moves or is computed again, whichever makes the step shorter.
    #[default]
    Auto,
    /// None moves: what does not stay is computed again.
    Recompute,
    /// None is computed again: what does not stay moves to the host or to a drive.
    Offload,
    /// Every saved tensor stays on the device from forward to backward.
    Keep,
}

/// When the clip factor is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// Every gradient is in before the first update. Updates overlap the next forward.
    Exact,
    /// The norm of the step before (exact at the first). Updates overlap backward.
    Previous,
    /// No clipping. Updates overlap backward.
    None,
}

/// How a unit's parameters are cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pieces {
    /// One piece a unit, or two where another unit adds to some of its gradients only.
    Unit,
    /// As many pieces as parameters allow, none smaller than this many numbers unless alone.
    Split(u64),
}

/// How far copies may run ahead of their use and lag behind it, so that neither the device nor the host is
/// overrun: three bounds, each for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ahead {
    /// The most bytes of the device that may be taken, everything included, while something is there that was fetched
    /// and is not used yet, or that is no longer used but still copied from. Zero: just in time.
    pub device: Bytes,
    /// Bytes of the host that were read from the drives and are not fetched yet, and as many that are still
    /// written to them.
    pub host: Bytes,
    /// The most bytes, on the host and on the device each, that are read or fetched for updates still to run, and as
    /// many that updates have left to be written or offloaded. What is larger goes alone.
    pub updates: Bytes,
}

impl Ahead {
    /// No copy begins before it must, and no slot outlives its use.
    pub const NONE: Self = Self::each(Bytes(0));

    /// As far as predicted times ask for.
    pub const UNLIMITED: Self = Self::each(Bytes(u64::MAX >> 2));

    /// So many bytes in each pool.
    #[must_use]
    pub const fn each(bytes: Bytes) -> Self {
        Self {
            device: bytes,
            host: bytes,
            updates: bytes,
        }
    }
}

/// Which transfers between drives and device pass no host memory, where the drives reach the device's. Optimizer
/// state, and new weights on their way to a drive, pass it whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Direct {
    /// Reads of weights, local tensors and accumulators.
    pub read: bool,
    /// Writes of local tensors and accumulators.
    pub write: bool,
}

impl Direct {
    /// None of them.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };

    /// All of them.
    pub const BOTH: Self = Self {
        read: true,
        write: true,
    };

    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.read || self.write
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    fn none(&self) -> bool {
        !self.any()
    }
}

/// Every choice of one plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Choice {
    /// Which comes first in forward and backward: the next block or the next micro-batch.
    pub order: LoopOrder,
    /// How parameters are cut into pieces.
    pub pieces: Pieces,
    /// Home of each unit's weights. `Device`: a copy stays there; the truth is beside the
    /// optimizer state unless the update runs on the device.
    pub weights: Vec<Tier>,
    /// Units whose frozen tensors (bases and projectors) stay on the device wherever the weights are that they train;
    /// empty: none does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<bool>,
    /// Home of each unit's optimizer state.
    pub optimizer: Vec<Tier>,
    /// Where each unit's update runs.
    pub update: Vec<Processor>,
    /// Home of each unit's gradients that wait for the norm, and of its accumulators between
    /// micro-batches.
    pub gradients: Vec<Tier>,
    /// Home of block inputs between forward and backward.
    pub inputs: Tier,
    /// For each unit, what becomes of each of [`lowtide_workload::Unit::saved`].
    pub saved: Vec<Vec<Saved>>,
    /// How far copies run ahead of their use.
    pub ahead: Ahead,
    /// Where the tensors between two units wait. Gradients of outputs wait here; outputs do, too, but on the tier of
    /// [`Choice::inputs`] if this is not the device. Each moves only if it is gone and back in time.
    pub carry: Tier,
    /// Micro-batches of a [round](crate::rounds), layer-major inside; 0: the whole batch is one.
    #[serde(default, skip_serializing_if = "whole")]
    pub round: u32,
    /// Weights and optimizer state in two versions on disk, the newer one committed by each update.
    /// The optimizer state then lives on disk alone; `weights` on device or host is a copy.
    #[serde(default)]
    pub durable: bool,
    /// Which transfers pass no host memory.
    #[serde(default, skip_serializing_if = "Direct::none")]
    pub direct: Direct,
}

impl Choice {
    /// Everything on the device, nothing recomputed.
    #[must_use]
    pub fn resident(w: &Workload) -> Self {
        let n = w.units.len();
        Self {
            order: LoopOrder::LayerMajor,
            pieces: Pieces::Unit,
            weights: vec![Tier::Device; n],
            bases: Vec::new(),
            optimizer: vec![Tier::Device; n],
            update: vec![Processor::Device; n],
            gradients: vec![Tier::Device; n],
            inputs: Tier::Device,
            saved: w
                .units
                .iter()
                .map(|u| vec![Saved::Keep; u.saved().len()])
                .collect(),
            ahead: Ahead::UNLIMITED,
            carry: Tier::Device,
            round: 0,
            durable: false,
            direct: Direct::NONE,
        }
    }

    /// Home of a unit's weights that are trained, or of its frozen ones.
    #[must_use]
    pub fn home(&self, unit: usize, frozen: bool) -> Tier {
        match frozen && self.bases.get(unit) == Some(&true) {
            true => Tier::Device,
            false => self.weights[unit],
        }
    }

    /// How a batch of the workload is cut into rounds.
    #[must_use]
    pub fn rounds(&self, w: &Workload) -> Rounds {
        Rounds::new(self.round, w.batch.accumulate)
    }

    /// Makes weights and optimizer state durable: the truth of both goes to disk.
    pub fn make_durable(&mut self) {
        self.durable = true;
        self.optimizer.fill(Tier::Disk);
    }

    /// Sets what becomes of every saved tensor of the blocks: the last `kept` blocks keep theirs,
    /// the others recompute.
    pub fn keep_last_blocks(&mut self, w: &Workload, kept: usize) {
        self.keep_blocks(w, kept, 0);
    }

    /// As [`Choice::keep_last_blocks`], but of the others the last `light` recompute only what
    /// costs no matrix product or attention: norms, rotations, activations. Those take about as
    /// many bytes as the rest and almost no time.
    pub fn keep_blocks(&mut self, w: &Workload, kept: usize, light: usize) {
        let n_blocks = w.units.iter().filter(|u| u.kind == UnitKind::Block).count();
        let mut block = 0;
        for (unit, saved) in w.units.iter().zip(&mut self.saved) {
            if unit.kind != UnitKind::Block {
                continue;
            }
            let from_end = n_blocks - block;
            block += 1;
            if from_end <= kept {
                saved.fill(Saved::Keep);
            } else if from_end <= kept + light {
                for (value, tensor) in saved.iter_mut().zip(unit.saved()) {
                    *value = if costly(unit, tensor) {
                        Saved::Keep
                    } else {
                        Saved::Recompute
                    };
                }
            } else {
                saved.fill(Saved::Recompute);
            }
        }
    }

    /// Blocks whose saved tensors are all kept, and blocks that recompute only what is cheap.
    #[must_use]
    pub fn kept_blocks(&self, w: &Workload) -> (usize, usize) {
        let blocks = w.units.iter().zip(&self.saved);
        let blocks = blocks.filter(|(u, _)| u.kind == UnitKind::Block);
        let (mut kept, mut light) = (0, 0);
        for (unit, saved) in blocks {
            let again = |&(&value, tensor): &(&Saved, LocalId)| {
                value == Saved::Recompute && costly(unit, tensor)
            };
            if !saved.contains(&Saved::Recompute) {
                kept += 1;
            } else if !saved.iter().zip(unit.saved()).any(|s| again(&s)) {
                light += 1;
            }
        }
        (kept, light)
    }

    /// Saved tensors of all units that stay, that move to the host or to disk, and that are computed again.
    #[must_use]
    pub fn saved_tensors(&self) -> [usize; 3] {
        let all = || self.saved.iter().flatten();
        let count = |of: &[Saved]| all().filter(|s| of.contains(s)).count();
        [
            count(&[Saved::Keep]),
            count(&[Saved::Host, Saved::Disk]),
            count(&[Saved::Recompute]),
        ]
    }

    /// Bytes of the saved tensors of one micro-batch that stay on the device.
    pub(crate) fn kept_bytes(&self, w: &Workload) -> u64 {
        let of = |(unit, saved): (&Unit, &Vec<Saved>)| -> u64 {
            let kept = unit.saved().into_iter().zip(saved);
            let kept = kept.filter(|&(_, &s)| s == Saved::Keep);
            kept.map(|(t, _)| unit.tensors[t].bytes.0).sum()
        };
        w.units.iter().zip(&self.saved).map(of).sum()
    }

    /// Blocks that recompute anything.
    #[must_use]
    pub fn recomputed_blocks(&self) -> usize {
        self.saved
            .iter()
            .filter(|s| s.contains(&Saved::Recompute))
            .count()
    }
}

/// Whether computing a saved tensor again takes a product or attention: its writer, or a writer of what
/// that reads and is not saved. (What is saved is there, or is computed again for nothing.)
fn costly(unit: &Unit, tensor: LocalId) -> bool {
    let saved = unit.saved();
    let local = |o: &Operand, access| match o.what {
        What::Local(i) if o.access == access => Some(i),
        _ => None,
    };
    let mut wanted = vec![tensor];
    let mut seen = Vec::new();
    while let Some(t) = wanted.pop() {
        let writes = |op: &&Op| {
            op.operands
                .iter()
                .any(|o| local(o, Access::Write) == Some(t))
        };
        let Some(op) = unit.forward.iter().find(writes) else {
            continue;
        };
        if op.flops.0 > 0.0 {
            return true;
        }
        seen.push(t);
        let reads = op.operands.iter().filter_map(|o| local(o, Access::Read));
        let there = |i: &LocalId| unit.input(*i).is_some() || saved.contains(i) || seen.contains(i);
        wanted.extend(reads.filter(|i| !there(i)));
    }
    false
}

/// The most bytes that a plan may use on each tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budgets {
    /// Bytes of the device arena, without what libraries hold beside it.
    pub device: Bytes,
    /// Pinned host memory.
    pub host: Bytes,
    /// Disk space, all drives together.
    pub disk: Bytes,
}

impl Budgets {
    /// The budget of a tier.
    #[must_use]
    pub fn of(&self, tier: Tier) -> Bytes {
        match tier {
            Tier::Device => self.device,
            Tier::Host => self.host,
            Tier::Disk => self.disk,
        }
    }

    /// The same with another budget of a tier.
    #[must_use]
    pub fn with(mut self, tier: Tier, budget: Bytes) -> Self {
        *match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
            Tier::Disk => &mut self.disk,
        } = budget;
        self
    }

    /// Budgets without limit.
    pub const UNLIMITED: Self = Self {
        device: Bytes(u64::MAX >> 2),
        host: Bytes(u64::MAX >> 2),
        disk: Bytes(u64::MAX >> 2),
    };
}
