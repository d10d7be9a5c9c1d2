//! Saved tensors wherever a throw of dice says, and drives of any rate.

use std::sync::Arc;

use lowtide_model::Decoder;
use lowtide_planner::{
    Budgets, Choice, Clip, DirectRates, DiskRates, LoopOrder, Machine, PartName, Plan, Saved,
    Tensor, Tier, Work, build, check,
};
use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};

use super::{choice, machine};

const WAYS: [Saved; 4] = [Saved::Keep, Saved::Host, Saved::Disk, Saved::Recompute];

/// Operations that take their time, and a drive of a rate.
pub fn beside(drive: f64) -> Machine {
    Machine {
        matmul_bf16: FlopsPerSecond(1e8),
        matmul_f32: FlopsPerSecond(1e8),
        disk: Some(DiskRates {
            read: BytesPerSecond(drive),
            write: BytesPerSecond(drive),
            mixed: BytesPerSecond(drive),
            latency: Seconds(1e-9),
            rated_writes: None,
            direct: Some(DirectRates {
                read: BytesPerSecond(drive),
                write: BytesPerSecond(drive),
                mixed: BytesPerSecond(drive),
                latency: Seconds(1e-9),
                most_memory: Bytes::GIB,
            }),
        }),
        ..machine()
    }
}

/// The plan of a choice on a machine, which the checker has seen.
pub fn planned(d: &Decoder, c: &Choice, clip: Clip, m: &Machine) -> Arc<Plan> {
    let plan = build(d.workload(), c, clip, Budgets::UNLIMITED, m);
    check::check(&plan, d.workload(), clip).unwrap_or_else(|e| panic!("{e}: {c:?}"));
    Arc::new(plan)
}

/// Numbers below what is asked for, each from the one before.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// A way for every saved tensor, and everything that copies of it meet on theirs.
pub fn random(d: &Decoder, dice: &mut Dice) -> Choice {
    let mut tier = || Tier::ALL[dice.below(3)];
    let mut c = choice(d, tier(), tier(), tier());
    if c.weights[0] == Tier::Device && c.optimizer[0] != Tier::Device {
        c.weights.fill(Tier::Host);
    }
    c.saved
        .iter_mut()
        .flatten()
        .for_each(|s| *s = WAYS[dice.below(4)]);
    (c.ahead, c.carry) = super::ahead(dice.below(8));
    match dice.below(3) {
        0 => c.order = LoopOrder::BatchMajor,
        1 => c.round = 1,
        _ => {}
    }
    c
}

/// Local tensors that a step of a plan writes to a drive.
pub fn written(plan: &Plan) -> usize {
    let local = |s| matches!(plan.slots[s].tensor, Tensor::Local(..));
    let tasks = plan.part(PartName::Steady).iter();
    let written = tasks.filter(|t| t.work == Work::Write && local(t.args[0].slot));
    written.count()
}
