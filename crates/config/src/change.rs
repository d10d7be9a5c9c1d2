//! Keys that may differ from those of a checkpoint when the run names them (`checkpoint.change`).
//!
//! Only keys that leave the stored state what it is: its arrays, its place in the data and what a step
//! is. A run on other data, or of another shape, is a new run from the exported model.

use crate::words::Words;

/// The keys, each with the parts of the numerics key that it decides.
const CHANGEABLE: &[(&str, &[&str])] = &[
    ("train.steps", &["train.schedule.length"]),
    ("train.epochs", &["train.schedule.length"]),
    ("train.learning_rate", &["train.learning_rate"]),
    ("train.schedule", &["train.schedule.shape"]),
    ("train.warmup_steps", &["train.schedule.warmup"]),
    ("train.warmup_ratio", &["train.schedule.warmup"]),
    ("train.decay_ratio", &["train.schedule.decay_ratio"]),
    ("train.min_lr_ratio", &["train.schedule.min_lr_ratio"]),
    ("train.clip.mode", &["train.clip.mode"]),
    ("train.clip.norm", &["train.clip.norm"]),
    ("train.on_nonfinite", &["train.on_nonfinite"]),
    ("train.spike.factor", &["train.spike.factor"]),
    ("train.spike.window", &["train.spike.window"]),
    ("train.spike.action", &["train.spike.action"]),
    ("train.label_smoothing", &["train.label_smoothing"]),
    ("train.neftune_alpha", &["train.neftune_alpha"]),
    ("optimizer.beta1", &["optimizer.beta1"]),
    ("optimizer.beta2", &["optimizer.beta2"]),
    ("optimizer.eps", &["optimizer.eps"]),
    ("optimizer.clip_threshold", &["optimizer.clip_threshold"]),
    ("optimizer.decay_rate", &["optimizer.decay_rate"]),
    ("optimizer.weight_decay", &["optimizer.weight_decay"]),
    ("optimizer.groups", &["optimizer.groups"]),
    ("eval.generate.cached", &["eval.generate.cached"]),
    ("device", &["device"]),
    ("gpus", &["gpus"]),
];

/// Parts that appear or go with another part: naming that one's key is enough.
const FOLLOWS: &[(&str, &[&str])] = &[
    (
        "train.schedule",
        &[
            "train.schedule.length",
            "train.schedule.decay_ratio",
            "train.schedule.min_lr_ratio",
        ],
    ),
    ("train.warmup_steps", &["train.schedule.length"]),
    ("train.warmup_ratio", &["train.schedule.length"]),
    ("train.clip.mode", &["train.clip.norm"]),
    ("train.spike.factor", &["train.spike"]),
    ("train.spike.action", &["train.spike"]),
];

/// The words of `checkpoint.change`.
pub(crate) const WORDS: Words = &[
    ("train.steps", ""),
    ("train.epochs", ""),
    ("train.learning_rate", ""),
    ("train.schedule", ""),
    ("train.warmup_steps", ""),
    ("train.warmup_ratio", ""),
    ("train.decay_ratio", ""),
    ("train.min_lr_ratio", ""),
    ("train.clip.mode", ""),
    ("train.clip.norm", ""),
    ("train.on_nonfinite", ""),
    ("train.spike.factor", ""),
    ("train.spike.window", ""),
    ("train.spike.action", ""),
    ("train.label_smoothing", ""),
    ("train.neftune_alpha", ""),
    ("optimizer.beta1", ""),
    ("optimizer.beta2", ""),
    ("optimizer.eps", ""),
    ("optimizer.clip_threshold", ""),
    ("optimizer.decay_rate", ""),
    ("optimizer.weight_decay", ""),
    ("optimizer.groups", ""),
    ("eval.generate.cached", ""),
    ("device", ""),
    ("gpus", ""),
];

fn has(table: &[(&str, &[&str])], key: &str, part: &str) -> bool {
    let within = |p: &&str| part == *p || part.strip_prefix(*p).is_some_and(|r| r.starts_with('.'));
    table
        .iter()
        .any(|(k, parts)| *k == key && parts.iter().any(within))
}

/// Whether naming `key` lets a part of the numerics key (`train.schedule.length.steps`) differ from a
/// checkpoint's. `one_side`: only one of the two has the part at all.
#[must_use]
pub fn may_change(key: &str, part: &str, one_side: bool) -> bool {
    has(CHANGEABLE, key, part) || (one_side && has(FOLLOWS, key, part))
}

/// The keys whose naming lets a part of the numerics key differ; none: it cannot.
pub fn keys_that_change(part: &str) -> impl Iterator<Item = &'static str> + use<> {
    let part = part.to_owned();
    let keys = CHANGEABLE.iter().map(|c| c.0);
    keys.filter(move |key| has(CHANGEABLE, key, &part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_changes_something_and_is_a_key() {
        assert_eq!(WORDS.len(), CHANGEABLE.len());
        for (word, (key, parts)) in WORDS.iter().zip(CHANGEABLE) {
            assert_eq!(word.0, *key);
            assert!(crate::KEYS.iter().any(|k| k.name == *key), "{key}");
            for part in *parts {
                assert!(may_change(key, part, false));
                assert!(keys_that_change(part).any(|k| k == *key));
            }
        }
        assert!(may_change(
            "train.steps",
            "train.schedule.length.steps",
            false
        ));
        assert!(!may_change(
            "train.schedule",
            "train.schedule.length.steps",
            false
        ));
        assert!(may_change(
            "train.schedule",
            "train.schedule.length.steps",
            true
        ));
        assert!(!may_change("train.steps", "train.schedule.lengths", false));
        assert_eq!(keys_that_change("data.fingerprint").count(), 0);
        assert_eq!(keys_that_change("seed").count(), 0);
    }
}
