//! Process peak memory is what was planned. Alone in its file: a process has one peak.

mod common;

use std::sync::Arc;

use common::{decoder, llama, machine, open, quick, train};
use lowtide_planner::{Budgets, Clip, Pins, Request, Tier, make};
use lowtide_tiers::process;
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, ModelShape};

/// What a process has beside arenas: code, thread stacks, kernels' own scratch.
const BESIDE: u64 = 256 << 20;

/// A model large enough that its arenas, and not the process around them, decide the peak.
#[test]
fn peak_memory_is_what_was_planned() {
    let shape = ModelShape {
        vocab: 4096,
        hidden: 512,
        intermediate: 1408,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        ..llama(6, true)
    };
    let d = decoder(&shape, Dtype::Bf16, 1);
    let machine = machine();
    let budgets = Budgets {
        device: Bytes::MIB * 120,
        host: Bytes::MIB * 300,
        disk: Bytes::ZERO,
    };
    let request = Request {
        workload: d.workload(),
        machine: &machine,
        budgets,
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let plan = Arc::new(make(&request).expect("fits"));
    let mut session = open(&d, &plan, Clip::Exact, quick());
    train(&mut session, 2, 1);
    let planned = plan.tier(Tier::Device).planned_bytes.0 + plan.tier(Tier::Host).planned_bytes.0;
    assert!(
        planned > 200 << 20,
        "{planned} bytes are too few to show anything"
    );
    let peak = process::peak_rss_bytes().expect("a Linux process").0;
    assert!(
        peak <= planned + BESIDE,
        "{peak} bytes at the peak, {planned} planned"
    );
}
