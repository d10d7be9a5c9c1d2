//! Advice on budgets that do not hold a plan.

use lowtide_config::DiskBudget;
use lowtide_trainer::error::Refused;

use crate::out::{enough, quoted};

/// What to paste to make it fit.
pub(super) fn fitting(refused: &Refused) -> Vec<String> {
    let (allowed, nearest) = (&refused.refusal.allowed, &refused.refusal.nearest);
    let tiers = [
        ("device", allowed.device.0, nearest.device.0),
        ("host", allowed.host.0, nearest.host.0),
        ("disk", allowed.disk.0, nearest.disk.0),
    ];
    let sets: Vec<String> = tiers
        .iter()
        .filter(|(_, have, need)| need > have)
        .map(|(tier, _, need)| match (*tier, refused.disks.as_slice()) {
            ("disk", [_, ..]) => format!("--set {}", drives(&refused.disks, *need)),
            (tier, _) => format!("--set budget.{tier}={}", enough(*need)),
        })
        .collect();
    let sets = sets.join(" ");
    let mut lines = vec![match refused.beyond() {
        None => format!("budgets that are enough: {sets}"),
        Some((need, total)) => format!(
            "budgets that are enough take {need} of host memory and this machine has {total}: {sets} is for a \
             larger one"
        ),
    }];
    if let Some(disk) = refused.refusal.with_disk {
        lines.push(format!(
            "or a drive, with the memory that is allowed: --set budget.disk={}",
            enough(disk.0)
        ));
    }
    if let Some(answers) = refused.answers {
        lines.push(format!(
            "of these answers with a KV cache take {} of the device and {} of the host: fewer at once take less, and \
             none without a cache, --set eval.generate.cached=0",
            answers.device, answers.host
        ));
    }
    if let Some(b) = refused.nearest_micro_batch {
        lines.push(format!(
            "or fewer sequences at once: --set train.micro_batch={b}"
        ));
    }
    if let Some(rows) = refused.rows_chunk {
        lines.push(format!(
            "or blocks that compute so many tokens at a time, with other last bits: --set train.rows_chunk={rows}"
        ));
    }
    lines
}

/// `budget.disk` with so many bytes in all on the directories that the run names, in the same shares; for a
/// shell, in quotes.
fn drives(disks: &[DiskBudget], need: u64) -> String {
    let all: u128 = disks.iter().map(|d| u128::from(d.size.0)).sum();
    let each = disks.iter().map(|d| {
        let share = u128::from(need) * u128::from(d.size.0) / all.max(1);
        // One more byte than the share rounded down: together they are not less than the need.
        let size = enough(u64::try_from(share).unwrap_or(u64::MAX - 1) + 1);
        format!("{{dir: {}, size: {size}}}", quoted(&d.dir))
    });
    let each: Vec<String> = each.collect();
    format!("'budget.disk=[{}]'", each.join(", "))
}
