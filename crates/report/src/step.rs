//! Where the time of a step goes, predicted beside measured: by lane, and by what the gpu lane waited for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::people::seconds;
use crate::table::{Column, Table};

/// Lanes in the order in which they are shown.
pub const LANES: [&str; 6] = ["gpu", "h2d", "d2h", "disk", "host", "net"];

/// Predicted and measured seconds of one lane in one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneCompared {
    /// Predicted seconds of work, with what lanes that work at once take from each other.
    pub predicted_seconds: f64,
    /// Measured seconds inside tasks, of the disk lanes together; mean over the steps.
    pub measured_seconds: f64,
}

/// Predicted and measured seconds of one step in which the gpu lane stands still for one cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitCompared {
    /// What it waits for: a name that [`waited_for`] knows.
    pub cause: String,
    /// Seconds by the plan's simulation.
    pub predicted_seconds: f64,
    /// Measured seconds; mean over the steps.
    pub measured_seconds: f64,
}

impl WaitCompared {
    /// The longer of both.
    #[must_use]
    pub fn longer(&self) -> f64 {
        self.predicted_seconds.max(self.measured_seconds)
    }
}

/// What a lane waits for, as people read it, by the name that files have for it.
#[must_use]
pub fn waited_for(cause: &str) -> &str {
    match cause {
        "host-update" => "updates on the host",
        "norm" => "the norm",
        "weights" => "weights in motion",
        "state" => "optimizer state in motion",
        "gradients" => "gradients in motion",
        "activations" => "activations in motion",
        "disk" => "the disk",
        "other" => "inputs and small copies",
        "launch" => "the host's launches",
        "unsubmitted" => "the next step's submission",
        unknown => unknown,
    }
}

/// A lane's name for people: without a GPU (`gpu`) the device's work is the device's.
#[must_use]
pub fn lane(name: &str, gpu: bool) -> &str {
    match name {
        "gpu" if !gpu => "device",
        name => name,
    }
}

/// Lanes and waits of a step of so many seconds as one table: of waits those that are at least a thousandth of it.
/// What is predicted of a lane has lanes that work at once slow each other down, as what is measured has.
#[must_use]
pub fn compared(
    lanes: &BTreeMap<String, LaneCompared>,
    waits: &[WaitCompared],
    step_seconds: f64,
    gpu: bool,
) -> Table {
    let mut table = Table::new([
        Column::left("lanes, working at once").wide(22),
        Column::right("predicted").wide(12),
        Column::right("measured").wide(12),
        Column::left("").behind(2),
    ]);
    for name in LANES {
        if let Some(of) = lanes.get(name) {
            let each = [of.predicted_seconds, of.measured_seconds].map(seconds);
            table.row([lane(name, gpu).to_owned()].into_iter().chain(each));
        }
    }
    let sum = |each: fn(&WaitCompared) -> f64| seconds(waits.iter().map(each).sum());
    table.row([
        format!("{} waits", lane("gpu", gpu)),
        sum(|w| w.predicted_seconds),
        sum(|w| w.measured_seconds),
        "for:".to_owned(),
    ]);
    for w in waits.iter().filter(|w| w.longer() >= 0.001 * step_seconds) {
        table.row([
            String::new(),
            seconds(w.predicted_seconds),
            seconds(w.measured_seconds),
            waited_for(&w.cause).to_owned(),
        ]);
    }
    table
}

/// Bytes that the lanes moved: `d2h 1.5 GiB, h2d 2.0 GiB`.
#[must_use]
pub fn moved(by_lane: &BTreeMap<String, u64>) -> String {
    let each = by_lane
        .iter()
        .map(|(lane, n)| format!("{lane} {}", crate::people::bytes(*n)));
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_compared_by_lane_and_by_wait() {
        let of = |predicted_seconds, measured_seconds| LaneCompared {
            predicted_seconds,
            measured_seconds,
        };
        let lanes = [("h2d", of(0.5, 0.25)), ("gpu", of(2.0, 123.0))];
        let lanes = lanes.map(|(name, of)| (name.to_owned(), of)).into();
        let wait = |cause: &str, predicted_seconds| WaitCompared {
            cause: cause.to_owned(),
            predicted_seconds,
            measured_seconds: 0.0,
        };
        let waits = [wait("norm", 0.5), wait("disk", 0.0001)];
        assert_eq!(
            compared(&lanes, &waits, 2.0, false).text(),
            "lanes, working at once   predicted    measured\n\
             device                      2.00 s       123 s\n\
             h2d                       500.0 ms    250.0 ms\n\
             device waits              500.1 ms      0.0 µs  for:\n                          \
             500.0 ms      0.0 µs  the norm"
        );
        assert!(
            compared(&lanes, &waits, 2.0, true)
                .text()
                .contains("\ngpu ")
        );
    }
}
