//! How fast a machine updates parameters, by optimizer.

use std::collections::BTreeMap;

use lowtide_units::Seconds;
use lowtide_workload::{Moments, Optimizer, OptimizerName};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// The measured rates of one optimizer with one storage of its moments.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Entry")]
pub struct UpdateRate {
    /// The optimizer, with the storage of its moments.
    #[serde(flatten)]
    pub optimizer: Optimizer,
    /// On the host, parameters a second.
    pub host: f64,
    /// On the device, parameters a second.
    pub device: f64,
}

/// As a file has it, where every key must be one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    optimizer: OptimizerName,
    #[serde(default)]
    moments: Moments,
    host: f64,
    device: f64,
}

impl From<Entry> for UpdateRate {
    fn from(entry: Entry) -> Self {
        Self {
            optimizer: Optimizer {
                name: entry.optimizer,
                moments: entry.moments,
            },
            host: entry.host,
            device: entry.device,
        }
    }
}

/// The rates of a machine's updates: one entry an optimizer that was measured, at least one.
///
/// Earlier files have one entry, AdamW's, in keys of its own (`host_adamw`, `device_adamw`, `adamw_moments`); they
/// are read as that entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "File")]
pub struct Updates {
    updates: Vec<UpdateRate>,
}

/// As a file has it.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    updates: Vec<UpdateRate>,
    host_adamw: Option<f64>,
    device_adamw: Option<f64>,
    #[serde(default)]
    adamw_moments: Moments,
    /// Keys of the file that nothing reads.
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

impl TryFrom<File> for Updates {
    type Error = String;

    fn try_from(file: File) -> Result<Self, Self::Error> {
        if let Some(key) = file.unknown.keys().next() {
            return Err(format!("unknown field `{key}`"));
        }
        let mut updates = file.updates;
        match (file.host_adamw, file.device_adamw) {
            (None, None) => {}
            (Some(_), None) => {
                return Err("missing field `device_adamw` beside `host_adamw`".to_owned());
            }
            (None, Some(_)) => {
                return Err("missing field `host_adamw` beside `device_adamw`".to_owned());
            }
            (Some(host), Some(device)) => {
                let optimizer = Optimizer {
                    moments: file.adamw_moments,
                    ..Optimizer::default()
                };
                updates.push(UpdateRate {
                    optimizer,
                    host,
                    device,
                });
            }
        }
        match updates.is_empty() {
            true => Err("missing field `updates`: no rate of an update".to_owned()),
            false => Ok(Self { updates }),
        }
    }
}

impl Updates {
    /// The rates of one optimizer.
    #[must_use]
    pub fn of(rate: UpdateRate) -> Self {
        Self {
            updates: vec![rate],
        }
    }

    /// The measured rates, one entry for each optimizer and storage of its moments.
    pub fn iter(&self) -> impl Iterator<Item = &UpdateRate> {
        self.updates.iter()
    }

    /// Every entry, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut UpdateRate> {
        self.updates.iter_mut()
    }

    /// The entry from which an optimizer's rate is best guessed: its own; else one of its name; else the first.
    #[must_use]
    pub fn nearest(&self, optimizer: Optimizer) -> &UpdateRate {
        let own = self.iter().find(|r| r.optimizer == optimizer);
        let named = || self.iter().find(|r| r.optimizer.name == optimizer.name);
        let like = || {
            let mut all = self.iter();
            all.find(|r| r.optimizer.moments == optimizer.moments)
        };
        own.or_else(named).or_else(like).unwrap_or(&self.updates[0])
    }
}

impl UpdateRate {
    /// The key of a rate in a machine file, and its key in files of before.
    pub(crate) fn key(&self, side: &str) -> String {
        let name = self.optimizer.name;
        match name == OptimizerName::default() {
            true => format!(
                "updates.{name}.{side} (or {side}_{name})",
                name = name.name()
            ),
            false => format!("updates.{}.{side}", name.name()),
        }
    }

    /// How many times as long another optimizer's update takes as the measured one: the ratio of the bytes that they
    /// move. Smaller moments are not assumed to be faster: the extra arithmetic costs what the saved bandwidth gains.
    /// On an H200 with 16 cores of a Xeon, 8-bit and bf16 moments take as long as f32 ones or longer, on either side.
    #[must_use]
    pub fn times(&self, optimizer: Optimizer) -> f64 {
        let moved = optimizer.cost_each() / self.optimizer.cost_each();
        if optimizer.moments == self.optimizer.moments {
            return moved;
        }
        // What the other storage saves does not count; what the other optimizer saves does.
        let same = Optimizer {
            moments: self.optimizer.moments,
            ..optimizer
        };
        moved.max(same.cost_each() / self.optimizer.cost_each())
    }

    /// Time of an update of so many parameters at a rate of this entry.
    pub(crate) fn time(&self, rate: f64, elements: u64, optimizer: Optimizer) -> Seconds {
        Seconds(elements as f64 * self.times(optimizer) / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adamw(moments: Moments) -> Optimizer {
        Optimizer {
            moments,
            ..Optimizer::default()
        }
    }

    /// Rates of f32 moments say what others take, and the other way round.
    #[test]
    fn an_update_takes_the_bytes_that_it_moves_and_is_not_faster_for_fewer() {
        let rate = |moments| UpdateRate {
            optimizer: adamw(moments),
            host: 1e9,
            device: 1e10,
        };
        let f32s = rate(Moments::F32);
        for moments in Moments::ALL {
            assert_eq!(f32s.times(adamw(moments)), 1.0);
        }
        let bf16 = rate(Moments::Bf16);
        assert_eq!(
            bf16.times(adamw(Moments::Bf16)),
            1.0,
            "measured with its own"
        );
        assert!((bf16.times(adamw(Moments::F32)) - 26.0 / 18.0).abs() < 1e-9);
        assert_eq!(
            f32s.time(f32s.host, 1 << 30, adamw(Moments::Int8)).0,
            1.073741824
        );
        // Another optimizer gains what it moves less, its smaller moments nothing.
        for moments in Moments::ALL {
            let lion = Optimizer {
                name: OptimizerName::Lion,
                moments,
            };
            assert!((f32s.times(lion) - 18.0 / 26.0).abs() < 1e-9, "{moments:?}");
        }
    }

    #[test]
    fn the_own_entry_is_nearest() {
        let rates = Updates {
            updates: [Moments::Bf16, Moments::F32]
                .map(|moments| UpdateRate {
                    optimizer: adamw(moments),
                    host: 1e9,
                    device: 1e10,
                })
                .to_vec(),
        };
        let nearest = |moments| rates.nearest(adamw(moments)).optimizer.moments;
        assert_eq!(nearest(Moments::F32), Moments::F32);
        assert_eq!(nearest(Moments::Bf16), Moments::Bf16);
        assert_eq!(
            nearest(Moments::Int8),
            Moments::Bf16,
            "the first of its name"
        );
    }
}
