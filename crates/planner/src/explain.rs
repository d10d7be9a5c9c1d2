//! Tells a plan to a person: what lives where, what a step takes, which lane rules.

use std::fmt::Write as _;

use lowtide_units::Bytes;

use crate::choice::{LoopOrder, Processor};
use crate::plan::{LaneKind, Plan, Tier, TierUse};

/// The table that `lowtide plan` prints.
#[must_use]
pub fn explain(plan: &Plan) -> String {
    let mut text = String::new();
    let show = |bytes: Bytes| {
        if bytes.0 == 0 {
            "-".to_owned()
        } else {
            bytes.to_string()
        }
    };
    let _ = writeln!(
        text,
        "{:<14}{:>12}{:>12}{:>12}",
        "", "device", "host", "disk"
    );
    type Column = fn(&TierUse) -> Bytes;
    let rows: [(&str, Column); 6] = [
        ("weights", |t| t.weights),
        ("optimizer", |t| t.optimizer),
        ("gradients", |t| t.gradients),
        ("in motion", |t| t.transient),
        ("planned", |t| t.planned_bytes),
        ("budget", |t| t.budget_bytes),
    ];
    for (name, of) in rows {
        let cells: Vec<String> = Tier::ALL.iter().map(|&t| show(of(plan.tier(t)))).collect();
        let _ = writeln!(
            text,
            "{name:<14}{:>12}{:>12}{:>12}",
            cells[0], cells[1], cells[2]
        );
    }
    let c = &plan.choice;
    let order = match c.order {
        LoopOrder::LayerMajor => "layer-major",
        LoopOrder::BatchMajor => "batch-major",
    };
    let on_device = c.update.iter().filter(|&&p| p == Processor::Device).count();
    let _ = writeln!(
        text,
        "{order}, {} of {} blocks recomputed, updates on {}, {} pieces, prefetch {}",
        c.recomputed_blocks(),
        plan.unit_names.len().saturating_sub(2),
        match on_device {
            0 => "the host".to_owned(),
            n if n == c.update.len() => "the device".to_owned(),
            n => format!(
                "the host and, for {n} of {} units, the device",
                c.update.len()
            ),
        },
        plan.pieces.len(),
        c.prefetch,
    );
    if c.durable {
        let _ = writeln!(
            text,
            "durable: weights and optimizer state in two versions on disk"
        );
    }
    let p = &plan.prediction;
    let lanes: Vec<String> = LaneKind::ALL
        .iter()
        .zip(&p.lanes)
        .map(|(kind, lane)| format!("{} {}", kind.name(), lane.busy_seconds))
        .collect();
    let _ = writeln!(
        text,
        "step {}, ruled by {}: {}",
        p.step_seconds,
        LaneKind::ALL[p.ruling_lane as usize].name(),
        lanes.join(", ")
    );
    if p.disk_bytes_written.0 > 0 {
        let _ = writeln!(
            text,
            "disk: {} read, {} written a step",
            p.disk_bytes_read, p.disk_bytes_written
        );
    }
    text
}
