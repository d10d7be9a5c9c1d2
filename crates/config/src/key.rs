//! What one key is: its entry in the list of keys.

use std::ops::Bound;

use lowtide_workload::{OptimizerName, Setting};

use crate::words::Words;

/// One key of a run file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted name, as `--set` takes it.
    pub name: &'static str,
    /// What it does, in a line.
    pub doc: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds when it is not given.
    pub default: KeyDefault,
    /// Names that other trainers use for it, for the hint at an unknown key. Not accepted.
    pub elsewhere: &'static [&'static str],
}

/// What holds when a key is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyDefault {
    /// This value, as it would be typed.
    Value(&'static str),
    /// No value; the words say what happens instead.
    Unset(&'static str),
    /// The value that the run's optimizer has for it ([`lowtide_workload::Setting`]).
    ByOptimizer,
}

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false` (also `yes`, `no`, `on`, `off`).
    Flag,
    /// A whole number within limits, both allowed.
    Count {
        /// Least value that is allowed.
        min: u64,
        /// Greatest value that is allowed.
        max: u64,
    },
    /// A finite number within limits.
    Number {
        /// Lower limit, in or out.
        low: Bound<f64>,
        /// Upper limit, in or out.
        high: Bound<f64>,
    },
    /// Text of any kind.
    Text,
    /// A path, relative to the run file (in `--set`: to the current directory).
    Path,
    /// A path or a list of paths.
    Paths,
    /// A path or a list of paths and `{path, weight}`.
    Sources,
    /// Text or a list of texts.
    Texts,
    /// One or a list of `{match, learning_rate, weight_decay}`.
    Rates,
    /// A size in bytes, such as `24GiB`.
    Size,
    /// A size, `{dir, size}`, or a list of `{dir, size}`.
    Disks,
    /// One word of a list.
    Word {
        /// Spellings and meanings.
        words: Words,
        /// Other spellings that are accepted, and what they stand for.
        aliases: Words,
        /// Words that are meant to work later; a word with a number behind a colon counts as the word.
        planned: &'static [&'static str],
    },
    /// `auto` (the planner chooses) or one word.
    Pin {
        /// Spellings and meanings.
        words: Words,
    },
    /// `auto`, one word, or a whole number.
    PinCount {
        /// Spellings and meanings.
        words: Words,
        /// Most; the least is none.
        max: u64,
    },
    /// `auto`, one word, or `groups:N`.
    PinGroups {
        /// Spellings and meanings.
        words: Words,
        /// The greatest N; the least is 1.
        max: u64,
    },
    /// One word or a list of words.
    Words {
        /// Spellings and meanings.
        words: Words,
    },
    /// A regular expression.
    Pattern,
    /// One word, or else a path.
    WordOrPath {
        /// Spellings and meanings.
        words: Words,
    },
    /// The name of a built-in model shape.
    Shape,
}

impl Key {
    /// What the optimizers that read this key have for it when it is not given.
    pub(crate) fn by_optimizer(&self) -> Vec<(OptimizerName, &'static Setting)> {
        if self.default != KeyDefault::ByOptimizer {
            return Vec::new();
        }
        let last = self.name.rsplit('.').next().unwrap_or(self.name);
        let all = OptimizerName::ALL.iter();
        all.filter_map(|&o| Some((o, o.setting(last)?))).collect()
    }

    /// The default in words, as text and with spellings in `quotes`.
    pub(crate) fn default_words(&self, quote: &str) -> String {
        match self.default {
            KeyDefault::Value(text) => format!("{quote}{text}{quote}"),
            KeyDefault::Unset(text) => text.to_owned(),
            KeyDefault::ByOptimizer => {
                let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
                for (name, Setting { default: text, .. }) in self.by_optimizer() {
                    match groups.iter_mut().find(|g| g.0 == *text) {
                        Some(group) => group.1.push(name.name()),
                        None => groups.push((*text, vec![name.name()])),
                    }
                }
                let each = groups.iter().map(|(text, names)| match groups.len() {
                    1 => format!("{quote}{text}{quote}"),
                    _ => format!("{quote}{text}{quote} ({})", names.join(", ")),
                });
                each.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

impl Kind {
    /// A choice without other spellings.
    pub(crate) const fn word(words: Words) -> Self {
        Self::Word {
            words,
            aliases: &[],
            planned: &[],
        }
    }

    /// What is allowed, in words.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Count { min, max: u64::MAX } => format!("a whole number from {min}"),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Number { low, high } => format!("a number{}", limits(*low, *high)),
            Self::Text => "text".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Paths => "a path or a list of paths".to_owned(),
            Self::Sources => {
                format!(
                    "a path or a list of paths; {{path, weight}} with a weight{}",
                    limits(WEIGHT.0, WEIGHT.1)
                )
            }
            Self::Texts => "text or a list of texts".to_owned(),
            Self::Rates => format!(
                "{{match, learning_rate, weight_decay}}, or a list of such, with a learning rate{} and a decay{}",
                limits(RATE.0, RATE.1),
                limits(DECAY.0, DECAY.1)
            ),
            Self::Size => "a size such as 24GiB, 512MiB, 4TB or 16384".to_owned(),
            Self::Disks => "a size such as 400GiB, or a list of {dir, size}".to_owned(),
            Self::Word { words, .. } => spell(words),
            Self::Pin { words } => format!("auto, {}", spell(words)),
            Self::PinCount { words: [], max } => {
                format!("auto or a whole number from 0 to {max}")
            }
            Self::PinCount { words, max } => {
                format!("auto, {} or a whole number from 0 to {max}", spell(words))
            }
            Self::PinGroups { words, max } => {
                format!("auto, {} or {GROUPS}N with N from 1 to {max}", spell(words))
            }
            Self::Words { words } => format!("one or a list of {}", spell(words)),
            Self::Pattern => "a regular expression (the syntax of Rust's regex crate)".to_owned(),
            Self::WordOrPath { words } => format!("{} or a path", spell(words)),
            Self::Shape => lowtide_workload::builtin_names().join(", "),
        }
    }

    /// The words it takes, `auto` included, aliases not.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let spelled = |words: Words| words.iter().map(|w| w.0);
        match *self {
            Self::Word { words, .. } | Self::WordOrPath { words } | Self::Words { words } => {
                spelled(words).collect()
            }
            Self::Pin { words } | Self::PinCount { words, .. } | Self::PinGroups { words, .. } => {
                std::iter::once(AUTO).chain(spelled(words)).collect()
            }
            Self::Shape => lowtide_workload::builtin_names(),
            _ => Vec::new(),
        }
    }
}

/// Weights of data files.
pub(crate) const WEIGHT: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Included(1000.0));

/// Limits of a learning rate of some tensors.
pub(crate) const RATE: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Included(1.0));

/// Limits of weight decay.
pub(crate) const DECAY: (Bound<f64>, Bound<f64>) = (Bound::Included(0.0), Bound::Included(1.0));

/// What stands before the number of micro-batches of a group.
pub(crate) const GROUPS: &str = "groups:";

/// The word that leaves a choice to the planner.
pub(crate) const AUTO: &str = "auto";

fn spell(words: Words) -> String {
    words.iter().map(|w| w.0).collect::<Vec<_>>().join(", ")
}

fn limits(low: Bound<f64>, high: Bound<f64>) -> String {
    let low = match low {
        Bound::Included(x) => format!(" from {x}"),
        Bound::Excluded(x) => format!(" above {x}"),
        Bound::Unbounded => String::new(),
    };
    let high = match high {
        Bound::Included(x) => format!(" up to {x}"),
        Bound::Excluded(x) => format!(" below {x}"),
        Bound::Unbounded => String::new(),
    };
    low + &high
}
