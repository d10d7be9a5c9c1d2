//! Numbers that steps compute with in f32: what f64 allows must still be allowed after it is rounded.

use crate::error::ConfigError;
use crate::key::KeyDefault;
use crate::keys::KEYS;
use crate::low::Low;
use crate::run::Run;

use super::needs;

/// Keys outside of the optimizer's settings whose values steps read in f32.
const ALSO: &[&str] = &[
    "train.learning_rate",
    "train.clip.norm",
    "train.label_smoothing",
    "train.neftune_alpha",
];

/// Settings that must be less than 1.
const BELOW_ONE: &[&str] = &["optimizer.beta1", "optimizer.beta2"];

/// Refuses what f32 cannot hold: a number that becomes 0, infinite or 1 where it must not be.
pub(super) fn check(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let settings = KEYS.iter().filter(|k| k.default == KeyDefault::ByOptimizer);
    let names = settings.map(|k| k.name).chain(ALSO.iter().copied());
    for name in names {
        if let Some(x) = low.number_given(name) {
            let below_one = BELOW_ONE.contains(&name);
            fault(x, below_one).map_or(Ok(()), |needed| needs(low, name, needed))?;
        }
    }
    for (i, group) in run.optimizer.groups.iter().enumerate() {
        for (what, x) in [
            ("learning_rate", group.learning_rate),
            ("weight_decay", group.weight_decay),
        ] {
            if let Some(needed) = x.and_then(|x| fault(x, false)) {
                let needed = format!("as '{what}' of its entry {} {needed}", i + 1);
                return needs(low, "optimizer.groups", &needed);
            }
        }
    }
    Ok(())
}

/// What is needed in place of a number that does not survive f32.
fn fault(x: f64, below_one: bool) -> Option<&'static str> {
    let single = x as f32;
    if below_one && single >= 1.0 {
        return Some("a number up to 0.99999994, the greatest below 1 that f32 has");
    }
    if single.is_infinite() {
        return Some("a number up to 3.4e38, the greatest that f32 has");
    }
    // Numbers below the least normal one have few digits left, and some processors take them for 0.
    match x != 0.0 && single.abs() < f32::MIN_POSITIVE {
        true if x < 0.0 => Some("a number to -1.2e-38, the least that f32 has in full"),
        true => Some("a number from 1.2e-38, the least that f32 has in full"),
        false => None,
    }
}
