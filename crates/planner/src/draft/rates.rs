//! Seconds of what a draft places.

use std::cell::RefCell;

use super::*;
use crate::lanes::LaneSet;
use crate::machine::Machine;
use crate::plan::{Lane, Phase, PieceId};
use crate::program::GpuOp;
use crate::speeds::Speeds;
use lowtide_units::List;
use lowtide_workload::OpId;

/// Seconds of everything that a draft places, with lanes that run beside each other slowed down as measured.
#[derive(Debug)]
pub(crate) struct Rates {
    /// By unit, of each operation: forward, backward, evaluate, infer.
    ops: Vec<[List<OpId, f64>; 4]>,
    /// Rounding of a gradient, a parameter.
    finish: Line,
    /// Adding up a rank's sums of one, a parameter.
    fold: Line,
    pub(super) up: Line,
    pub(super) down: Line,
    /// Reads and writes of the drives that pass the host, and those that do not.
    pub(super) read: [Line; 2],
    pub(super) write: [Line; 2],
    /// What a rank gets from the others, a byte.
    net: Line,
    /// How many ranks share each piece's state.
    ranks: u32,
    /// An update on the host and on the device, a parameter.
    pub(super) host: Line,
    pub(super) device: Line,
}

/// Seconds that grow with what is moved or computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    start: f64,
    each: f64,
}

impl Line {
    pub(super) fn of(self, n: u64) -> f64 {
        match n {
            0 => 0.0,
            _ => self.start + self.each * n as f64,
        }
    }
}

impl Rates {
    pub(crate) fn new(w: &Workload, m: &Machine) -> Self {
        let list = |ops: &[lowtide_workload::Op]| {
            let seconds = ops.iter().map(|op| m.op(op, w.precision).0);
            seconds.collect::<List<OpId, f64>>()
        };
        let speeds = RefCell::new(Speeds::new(m, false));
        let beside = |lane: Lane, others: &[Lane]| {
            let set = LaneSet::of(others.iter().copied()).with(lane);
            speeds.borrow_mut().of(set)[lane]
        };
        let line = |start: f64, one: f64, speed: f64| Line {
            start,
            each: (one - start) / (1u64 << 30) as f64 / speed,
        };
        let gib = Bytes::GIB;
        let both = [Lane::GPU, Lane::H2D, Lane::D2H, Lane::HOST];
        let copy = |lane: Lane| {
            line(
                m.copy(lane, Bytes(0)).0,
                m.copy(lane, gib).0,
                beside(lane, &both),
            )
        };
        let drive = |lane: Lane, others: &[Lane]| {
            let speed = beside(lane, others);
            let set = LaneSet::of(others.iter().copied()).with(lane);
            let direct = (speed * speeds.borrow_mut().direct(lane, set)).min(1.0);
            [
                line(m.disk(lane, Bytes(0)).0, m.disk(lane, gib).0, speed),
                line(m.direct(lane, Bytes(0)).0, m.direct(lane, gib).0, direct),
            ]
        };
        let update = |lane: Lane, others: &[Lane]| {
            let at = |n| m.update(lane, n, w.optimizer).0;
            line(at(0), at(gib.0), beside(lane, others))
        };
        let each = (4 + w.gradient.size()) as f64 / m.device_memory.0;
        Self {
            ops: w
                .units
                .iter()
                .map(|u| {
                    let lists = [&u.forward, &u.backward, &u.evaluate, &u.infer];
                    lists.map(|ops| list(ops))
                })
                .collect(),
            finish: Line {
                start: m.op_overhead.0,
                each,
            },
            fold: Line {
                start: m.op_overhead.0 * f64::from(w.sums().ilog2()),
                each: f64::from(12 * (w.sums() - 1)) / m.device_memory.0,
            },
            up: copy(Lane::H2D),
            down: copy(Lane::D2H),
            read: drive(Lane::DISK_READ, &[Lane::DISK_WRITE]),
            write: drive(Lane::DISK_WRITE, &[Lane::DISK_READ]),
            net: line(m.exchange(Bytes(0)).0, m.exchange(gib).0, 1.0),
            ranks: w.ranks,
            host: update(Lane::HOST, &[Lane::GPU, Lane::H2D]),
            device: update(Lane::GPU, &[]),
        }
    }

    pub(super) fn op(&self, op: &GpuOp, pieces: &List<PieceId, Piece>) -> f64 {
        match op.work {
            Work::Compute {
                unit, phase, op, ..
            } => {
                let list = match phase {
                    Phase::Forward | Phase::Recompute => 0,
                    Phase::Backward => 1,
                    Phase::Evaluate => 2,
                    Phase::Infer => 3,
                };
                self.ops[unit as usize][list][op]
            }
            Work::Fold { piece } => self.fold.of(pieces[piece].elements),
            Work::Finish { piece } => self.finish.of(pieces[piece].own(self.ranks)),
            _ => 0.0,
        }
    }
}

impl Rates {
    /// Of a workload whose times nobody asks for.
    pub(super) const NONE: Self = {
        let none = Line {
            start: 0.0,
            each: 0.0,
        };
        Self {
            ops: Vec::new(),
            finish: none,
            fold: none,
            up: none,
            down: none,
            read: [none; 2],
            write: [none; 2],
            net: none,
            ranks: 1,
            host: none,
            device: none,
        }
    };

    /// A read from the drives into a slot of the host, or `direct` of the device.
    pub(super) fn read(&self, bytes: u64, direct: bool) -> f64 {
        self.read[usize::from(direct)].of(bytes)
    }

    /// A write to the drives, as [`Rates::read`].
    pub(super) fn write(&self, bytes: u64, direct: bool) -> f64 {
        self.write[usize::from(direct)].of(bytes)
    }

    /// A tensor's way to a tier; to the drives through the host, or `direct`.
    pub(super) fn there(&self, bytes: u64, tier: Tier, direct: bool) -> f64 {
        match tier {
            Tier::Disk if direct => self.write(bytes, true),
            Tier::Disk => self.down.of(bytes) + self.write(bytes, false),
            _ => self.down.of(bytes),
        }
    }

    /// Its way back.
    fn back(&self, bytes: u64, tier: Tier, direct: bool) -> f64 {
        match tier {
            Tier::Disk if direct => self.read(bytes, true),
            Tier::Disk => self.up.of(bytes) + self.read(bytes, false),
            _ => self.up.of(bytes),
        }
    }

    /// A tensor's way to a tier and back, with a little to spare.
    pub(super) fn away(&self, bytes: u64, tier: Tier, direct: Direct) -> f64 {
        SPARE * (self.there(bytes, tier, direct.write) + self.back(bytes, tier, direct.read))
    }

    /// What other ranks have, as many bytes each as this one brings; nothing where there are none.
    pub(super) fn gather(&self, own: u64) -> f64 {
        self.net.of(own * u64::from(self.ranks - 1))
    }

    /// A task of a lane that moves bytes, or of the host.
    pub(super) fn task(
        &self,
        task: &Task,
        pieces: &List<PieceId, Piece>,
        slots: &List<SlotId, DraftSlot>,
    ) -> f64 {
        let direct = || task.is_direct(|slot| slots[slot].tier);
        let bytes = task.args.first().map_or(0, |a| a.bytes);
        match (task.work, task.lane) {
            (Work::Copy, Lane::H2D) => self.up.of(bytes),
            (Work::Copy, _) => self.down.of(bytes),
            (Work::Read, _) => self.read(bytes, direct()),
            (Work::Write, _) => self.write(bytes, direct()),
            (Work::Update { piece }, Lane::HOST) => self.host.of(pieces[piece].own(self.ranks)),
            (Work::AllGather { .. } | Work::AllToAll { .. }, _) => {
                self.net.of(task.moved(self.ranks).0)
            }
            _ => 0.0,
        }
    }
}

/// A pause must be longer by this factor than what is to happen in it.
const SPARE: f64 = 1.05;
