//! Sets of lanes that were measured while they ran at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::lanes::Lane;

/// Lanes that were measured while they ran at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Together {
    /// By lane (`gpu`, `h2d`, `d2h`, `disk-read`, `disk-write`, `host`): its rate while all of them
    /// run over its rate alone, 1 where the others do not disturb it.
    pub speed: BTreeMap<String, f64>,
}

impl Together {
    /// A set of lanes that ran at once, each with its speed as a share of its speed alone.
    #[must_use]
    pub fn of(speeds: impl IntoIterator<Item = (Lane, f64)>) -> Self {
        Self {
            speed: speeds
                .into_iter()
                .map(|(lane, speed)| (lane.name().to_owned(), speed))
                .collect(),
        }
    }

    /// Speed of a lane, where it is one of the set.
    #[must_use]
    pub fn get(&self, lane: Lane) -> Option<f64> {
        self.speed.get(lane.name()).copied()
    }
}
