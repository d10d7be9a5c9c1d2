//! A machine, and the memory that a plan and what stands beside it take, as the values that people are shown.

use lowtide_planner::{Budgets, Machine, Plan, Tier};
use lowtide_report::memory::{Memory, TierMemory};
use lowtide_report::rates::{Quantity, Rates};
use lowtide_units::Bytes;

/// Memory of a plan, and of answers and of checkpoints beside it, by tier; `budgets` are those of all of it.
#[must_use]
pub fn memory(plan: &Plan, budgets: &Budgets, beside: impl Fn(Tier) -> [Bytes; 2]) -> Memory {
    let of = |tier: Tier| {
        let t = plan.tier(tier);
        let steps = TierMemory {
            weights: t.weights.0,
            optimizer: t.optimizer.0,
            gradients: t.gradients.0,
            transient: t.transient.0,
            activations: t.activations.0,
            planned_bytes: t.planned_bytes.0,
            ..TierMemory::default()
        };
        steps.beside(beside(tier).map(|n| n.0), budgets.of(tier).0)
    };
    Memory {
        device: of(Tier::Device),
        host: of(Tier::Host),
        disk: of(Tier::Disk),
    }
}

/// A machine's rates.
#[must_use]
pub fn rates(m: &Machine) -> Rates {
    use Quantity::{BytesPerSecond, FlopsPerSecond, ParametersPerSecond};
    let row = |name: &str, value| (name.to_owned(), value);
    let mut rows = vec![
        row("matrix product, bf16", FlopsPerSecond(m.matmul_bf16.0)),
        row("matrix product, f32", FlopsPerSecond(m.matmul_f32.0)),
        row("device memory", BytesPerSecond(m.device_memory.0)),
        row("host to device", BytesPerSecond(m.h2d.0)),
        row("device to host", BytesPerSecond(m.d2h.0)),
    ];
    for update in m.updates.iter() {
        let title = update.optimizer.name.about().title;
        for (place, rate) in [("host", update.host), ("device", update.device)] {
            rows.push(row(
                &format!("{title} on the {place}"),
                ParametersPerSecond(rate),
            ));
        }
    }
    rows.push(row("to start a task", Quantity::Seconds(m.host_overhead.0)));
    if let Some(net) = &m.net {
        let name = format!("{} ranks, each gets", net.ranks);
        rows.push(row(&name, BytesPerSecond(net.rate.0)));
    }
    match &m.disk {
        None => rows.push(row("disk", Quantity::Without("--disk DIR"))),
        Some(d) => rows.extend([
            row("disk read", BytesPerSecond(d.read.0)),
            row("disk write", BytesPerSecond(d.write.0)),
            row("disk, both at once", BytesPerSecond(d.mixed.0)),
        ]),
    }
    if let Some(direct) = m.disk.and_then(|d| d.direct) {
        rows.extend([
            row("disk to device", BytesPerSecond(direct.read.0)),
            row("device to disk", BytesPerSecond(direct.write.0)),
            row("both at once", BytesPerSecond(direct.mixed.0)),
        ]);
    }
    if !m.ops.is_empty() {
        rows.push(row("operations timed", Quantity::Count(m.ops.len() as u64)));
    }
    Rates {
        name: m.name.clone(),
        note: m.note.clone(),
        date: m.date.clone(),
        rows,
        together: m.together.iter().map(|t| t.speed.clone()).collect(),
    }
}
