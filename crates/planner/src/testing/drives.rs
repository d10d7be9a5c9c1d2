//! A machine on which saved tensors go to drives, and plans for it.

use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::Workload;

use super::machine;
use crate::choice::{Activations, Budgets, Clip, LoopOrder};
use crate::machine::Machine;
use crate::plan::{Plan, Tier};
use crate::search::{Pins, Request, plan};

/// Products take long and the drive does not.
pub(crate) fn dear() -> Machine {
    let mut m = machine();
    (m.matmul_bf16, m.copy_overhead) = (FlopsPerSecond(5e9), Seconds(1e-7));
    let disk = m.disk.as_mut().expect("a drive");
    (disk.read, disk.write) = (BytesPerSecond(4e9), BytesPerSecond(4e9));
    (disk.mixed, disk.latency) = (BytesPerSecond(5e9), Seconds(1e-7));
    m
}

pub(crate) fn host_state() -> Pins {
    Pins {
        order: Some(LoopOrder::LayerMajor),
        weights: Some(Tier::Host),
        optimizer: Some(Tier::Host),
        gradients: Some(Tier::Host),
        ..Pins::default()
    }
}

fn budgets(host: u64, ranks: u32) -> Budgets {
    // Shares of all ranks have room beside the accumulator.
    let shares = if ranks == 1 { 0 } else { 160 << 10 };
    Budgets {
        device: Bytes((560 << 10) + shares),
        host: Bytes(host),
        disk: Bytes(64 << 20),
    }
}

/// A host on which state has room and little else.
pub(crate) fn planned(w: &Workload, m: &Machine, pins: Pins) -> Plan {
    let with = |pins: Pins, host: u64| {
        let request = Request {
            workload: w,
            machine: m,
            budgets: budgets(host, w.ranks),
            clip: Clip::Exact,
            pins,
        };
        plan(&request).expect("it fits")
    };
    let again = Pins {
        activations: Activations::Recompute,
        ..host_state()
    };
    let least = with(again, 64 << 20).tier(Tier::Host).planned_bytes.0;
    with(pins, least + (96 << 10))
}
