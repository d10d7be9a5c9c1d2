//! Host memory that a run's process holds: counted when the plan is made, before anything is reserved.
//!
//! The promise: a process holds no more than was reported as planned. That covers the whole process from its first
//! instruction: what reading data, measuring and planning took at their peak, and then the arenas with all that lies
//! beside them.

use lowtide_executor::Trace;
use lowtide_measure::later;
use lowtide_model::merging_bytes;
use lowtide_planner::{Machine, PartName, Plan, Tier};
use lowtide_tiers::{limits, process};
use lowtide_units::Bytes;
use lowtide_workload::Workload;

/// Bytes that a runner holds for each task of a plan: its place in its lane, on a GPU the events that
/// others wait for.
pub(crate) const TASK: u64 = 2048;
/// Bytes of an event of the trace, and lanes that have some.
const EVENT: u64 = 40;
const LANES: u64 = 6;
/// Batches whose inputs are held at once: one that is prepared, those in flight, the sample that
/// operations were measured on.
const BATCHES: u64 = 5;

/// Host memory of a run's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// What it holds beside its arenas while they are reserved, at most.
    pub beside: Bytes,
    /// The most that it held before: for its data, the measuring of rates, the search for a plan.
    pub start: Bytes,
    /// Ranks of this host.
    pub ranks: u32,
}

/// Host memory that a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Resident bytes when they were read.
    pub now: Bytes,
    /// The most resident bytes so far.
    pub most: Bytes,
}

impl Held {
    /// Of this process.
    #[must_use]
    pub fn now() -> Self {
        Self {
            now: process::rss_bytes().unwrap_or_default(),
            most: process::peak_rss_bytes().unwrap_or_default(),
        }
    }
}

impl Resident {
    /// Counts what is held now by the ranks of this host, other ranks' processes included: when the plan is made and
    /// nothing of it is reserved yet. What a machine file says of libraries that are not loaded yet counts too.
    #[must_use]
    pub fn count(
        (plan, ranks): (&Plan, u32),
        w: &Workload,
        machine: &Machine,
        trace: Trace,
        others: &[Held],
    ) -> Self {
        let tasks: usize = PartName::ALL.iter().map(|&p| plan.part(p).len()).sum();
        let inputs = w.batch.input_bytes().0 * u64::from(w.batch.accumulate);
        let each = TASK * tasks as u64 + BATCHES * inputs + EVENT * LANES * trace.events as u64;
        // The export makes matrices of bases and cores while everything is still reserved.
        let run = each * u64::from(ranks) + merging_bytes(&w.params);
        let here = Held::now();
        let of = |held: &Held| (held.now + later()).max(machine.host_reserve);
        let all = || std::iter::once(&here).chain(others);
        Self {
            beside: all().map(of).sum::<Bytes>() + Bytes(run),
            start: all().map(|held| held.most).sum(),
            ranks,
        }
    }

    /// The most that the process will have held: the host's arena, the CPU device's where there is no
    /// GPU, and what lies beside them; or what it has held already, if that was more.
    #[must_use]
    pub fn planned(&self, plan: &Plan, machine: &Machine) -> Bytes {
        self.start.max(self.arenas(plan, machine) + self.beside)
    }

    /// What the process takes from now on until all is reserved.
    #[must_use]
    pub fn to_come(&self, plan: &Plan, machine: &Machine) -> Bytes {
        let beside = self.beside.saturating_sub(Held::now().now);
        self.arenas(plan, machine) + beside.max(limits::BESIDE)
    }

    /// The host's arena, and the CPU device's where there is no GPU, of all ranks of this host.
    fn arenas(&self, plan: &Plan, machine: &Machine) -> Bytes {
        let arena = |tier| plan.tier(tier).planned_bytes;
        let device = if machine.cuda {
            Bytes::ZERO
        } else {
            arena(Tier::Device)
        };
        (arena(Tier::Host) + device) * u64::from(self.ranks)
    }
}
