//! The memory of a run by tier, as it is planned: what each holds of what, and what stands beside the steps.

use serde::{Deserialize, Serialize};

use crate::people::bytes;
use crate::table::{Column, Table};

/// Bytes of one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierMemory {
    /// All that is reserved: the sum of all below but for `activations`, which are a part of `transient`.
    pub planned_bytes: u64,
    /// What may be reserved.
    pub budget_bytes: u64,
    /// Weights that stay.
    pub weights: u64,
    /// Optimizer state that stays.
    pub optimizer: u64,
    /// Gradients that wait for the norm.
    pub gradients: u64,
    /// What comes and goes in a step.
    pub transient: u64,
    /// The most of that which activations and their gradients take at once.
    pub activations: u64,
    /// What answers with a KV cache hold beside the steps (`eval.generate.cached`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub answers: u64,
    /// What checkpoints pass through that are written while steps go on (`checkpoint.background`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub checkpoints: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
pub(crate) fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl TierMemory {
    /// The same with answers and checkpoints beside the steps; the budget is that of all of them.
    #[must_use]
    pub fn beside(self, [answers, checkpoints]: [u64; 2], budget_bytes: u64) -> Self {
        Self {
            answers,
            checkpoints,
            planned_bytes: self.planned_bytes + answers + checkpoints,
            budget_bytes,
            ..self
        }
    }
}

/// Bytes of each tier, of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The device, of one rank.
    pub device: TierMemory,
    /// The host, of one rank.
    pub host: TierMemory,
    /// The drives, of one rank.
    pub disk: TierMemory,
}

impl Memory {
    /// One row for each kind of content; of what stands beside the steps only what there is.
    #[must_use]
    pub fn table(&self) -> Table {
        type Row = (&'static str, fn(&TierMemory) -> u64, bool);
        let rows: [Row; 9] = [
            ("weights", |t| t.weights, true),
            ("optimizer", |t| t.optimizer, true),
            ("gradients", |t| t.gradients, true),
            ("in motion", |t| t.transient, true),
            ("  activations", |t| t.activations, true),
            ("answers", |t| t.answers, false),
            ("checkpoints", |t| t.checkpoints, false),
            ("planned", |t| t.planned_bytes, true),
            ("budget", |t| t.budget_bytes, true),
        ];
        let mut table = Table::new([
            Column::left("").wide(14),
            Column::right("device").wide(12),
            Column::right("host").wide(12),
            Column::right("disk").wide(12),
        ]);
        for (name, of, always) in rows {
            let each = [&self.device, &self.host, &self.disk].map(of);
            if always || each.iter().any(|&n| n > 0) {
                let shown = each.map(|n| match n {
                    0 => "-".to_owned(),
                    n => bytes(n),
                });
                table.row([name.to_owned()].into_iter().chain(shown));
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_beside_the_steps_has_its_rows_and_is_in_the_sum() {
        let tier = TierMemory {
            weights: 3 << 20,
            transient: 1 << 20,
            activations: 1 << 19,
            planned_bytes: 4 << 20,
            budget_bytes: 8 << 20,
            ..TierMemory::default()
        };
        let alone = Memory {
            device: tier,
            ..Memory::default()
        };
        let text = alone.table().text();
        assert_eq!(text.lines().count(), 8, "{text}");
        assert!(!text.contains("answers") && !text.contains("checkpoints"));
        let with = Memory {
            host: tier.beside([2 << 20, 1 << 20], 16 << 20),
            ..alone
        };
        assert_eq!(
            with.table().text(),
            "                    device        host        disk\n\
             weights            3.0 MiB     3.0 MiB           -\n\
             optimizer                -           -           -\n\
             gradients                -           -           -\n\
             in motion          1.0 MiB     1.0 MiB           -\n  \
               activations    512.0 KiB   512.0 KiB           -\n\
             answers                  -     2.0 MiB           -\n\
             checkpoints              -     1.0 MiB           -\n\
             planned            4.0 MiB     7.0 MiB           -\n\
             budget             8.0 MiB    16.0 MiB           -"
        );
        let json = serde_json::to_value(with).expect("plain values");
        assert_eq!(json["host"]["answers"], 2 << 20);
        assert_eq!(json["device"].get("answers"), None);
        assert_eq!(
            serde_json::from_value::<Memory>(json).expect("its own"),
            with
        );
        assert!(
            with.table()
                .html()
                .contains("<td>answers</td><td class=\"n\">-</td>")
        );
    }
}
