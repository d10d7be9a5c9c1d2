//! A machine's rates as they were measured (`lowtide probe`), as a value and as text.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::people::seconds;
use crate::table::{Column, Table};

/// What a rate is of, or what it is that is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "unit", content = "value")]
pub enum Quantity {
    /// Operations a second.
    FlopsPerSecond(f64),
    /// Bytes a second.
    BytesPerSecond(f64),
    /// Parameters updated a second.
    ParametersPerSecond(f64),
    /// A time, in seconds.
    Seconds(f64),
    /// How many there are, without a unit.
    Count(u64),
    /// Not measured, for want of this option.
    Without(&'static str),
}

impl Quantity {
    fn text(self) -> String {
        match self {
            Self::FlopsPerSecond(x) => format!("{:.1} GFLOP/s", x / 1e9),
            Self::BytesPerSecond(x) => format!("{:.2} GB/s", x / 1e9),
            Self::ParametersPerSecond(x) => format!("{:.3} G parameters/s", x / 1e9),
            Self::Seconds(s) => seconds(s),
            Self::Count(n) => n.to_string(),
            Self::Without(option) => format!("not measured ({option})"),
        }
    }
}

/// The rates of a machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// The machine's name.
    pub name: String,
    /// What it is made of.
    pub note: String,
    /// When they were measured.
    pub date: String,
    /// Each by its name.
    pub rows: Vec<(String, Quantity)>,
    /// Lanes that ran at once: their speeds, as shares of those alone.
    pub together: Vec<BTreeMap<String, f64>>,
}

impl Rates {
    /// Two columns, and below them a line for each set of lanes that ran at once.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::new([Column::left("").wide(22), Column::right("").wide(24)]);
        for (name, quantity) in &self.rows {
            table.row([name.clone(), quantity.text()]);
        }
        let mut text = format!(
            "{} ({}, {})\n{}",
            self.name,
            self.note,
            self.date,
            table.text()
        );
        for speeds in &self.together {
            let slow = speeds
                .iter()
                .map(|(lane, x)| format!("{lane} {:.2}", 1.0 / x));
            let lanes: Vec<String> = slow.collect();
            text += &format!("\n  at once, times as long: {}", lanes.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_stand_in_two_columns() {
        let row = |name: &str, q| (name.to_owned(), q);
        let rates = Rates {
            name: "box".to_owned(),
            note: "one GPU".to_owned(),
            date: "2026-11-28".to_owned(),
            rows: vec![
                row("matrix product, bf16", Quantity::FlopsPerSecond(2.5e9)),
                row("AdamW on the device", Quantity::ParametersPerSecond(1.5e9)),
                row("to start a task", Quantity::Seconds(2e-6)),
                row("disk", Quantity::Without("--disk DIR")),
            ],
            together: vec![BTreeMap::from([("h2d".to_owned(), 0.5)])],
        };
        assert_eq!(
            rates.text(),
            "box (one GPU, 2026-11-28)\n\
             matrix product, bf16                 2.5 GFLOP/s\n\
             AdamW on the device         1.500 G parameters/s\n\
             to start a task                           2.0 µs\n\
             disk                   not measured (--disk DIR)\n  \
             at once, times as long: h2d 2.00"
        );
    }
}
