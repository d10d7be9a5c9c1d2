//! Small workloads and a machine, for the planner's own tests.

mod drives;
mod workloads;

use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::{Optimizer, Workload};

use crate::machine::{DiskRates, Machine, Shared, Source};
use crate::updates::{UpdateRate, Updates};

pub(crate) use drives::*;
pub(crate) use workloads::*;

/// Rates of updates: so many parameters a second on the host.
pub(crate) fn updates(host: f64) -> Updates {
    Updates::of(UpdateRate {
        optimizer: Optimizer::default(),
        host,
        device: 1e10,
    })
}

/// A machine with round rates, so that expected times can be worked out by hand.
pub(crate) fn machine() -> Machine {
    let share = |list: &[(&str, f64)]| list.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
    Machine {
        name: "test".into(),
        date: "2026-11-21".into(),
        source: Source::Measured,
        note: String::new(),
        matmul_bf16: FlopsPerSecond(1e11),
        matmul_f32: FlopsPerSecond(1e11),
        device_memory: BytesPerSecond(1e10),
        op_overhead: Seconds(2e-6),
        h2d: BytesPerSecond(1e10),
        d2h: BytesPerSecond(1e10),
        copy_overhead: Seconds(2e-6),
        net: None,
        links: None,
        network: None,
        updates: updates(1e9),
        host_overhead: Seconds(2e-6),
        disk: Some(DiskRates {
            read: BytesPerSecond(2e9),
            write: BytesPerSecond(1e9),
            mixed: BytesPerSecond(1.2e9),
            latency: Seconds(1e-4),
            rated_writes: None,
            direct: None,
        }),
        shared: vec![Shared {
            name: "host memory".into(),
            share: share(&[("host", 1.0), ("h2d", 0.2), ("d2h", 0.2), ("disk", 0.1)]),
        }],
        together: Vec::new(),
        device_reserve: Bytes(0),
        host_reserve: Bytes(0),
        cuda: false,
        ops: Default::default(),
    }
}

/// Bytes that a choice needs on each tier.
pub(crate) fn needs(w: &Workload, c: &crate::Choice, clip: crate::Clip) -> [u64; 3] {
    let rates = crate::draft::Rates::new(w, &machine());
    let d = crate::draft::draft(w, &rates, c, clip, &crate::plan::PartName::ALL);
    crate::layout::layout(
        &d.slots,
        crate::plan::PartName::ALL.len(),
        crate::layout::Packing::Usual,
    )
    .totals
}
