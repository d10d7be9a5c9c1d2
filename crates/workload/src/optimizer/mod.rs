//! Optimizers as data: which arrays each has for a parameter, what an update moves, which keys set it.
//!
//! One file here and one folder of the kernels make an optimizer. Planner, homes, checkpoints, probe and
//! run file read what the file says; only the kernels know what an update does with the arrays.

mod adamw;
mod lion;
mod moments;
mod state;

pub use moments::Moments;
pub use state::{Encoding, Extent, Init, Role, StateArray, StateSpec};

use serde::{Deserialize, Serialize};

use crate::Dtype;

/// The optimizers there are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW.
    #[default]
    AdamW,
    /// Lion.
    Lion,
}

/// One optimizer, as those see it who do not compute with it.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name in sentences.
    pub title: &'static str,
    /// What it is, in a line.
    pub doc: &'static str,
    /// Other names that a run file may give it.
    pub aliases: &'static [&'static str],
    /// The keys of a run file that set it, below `optimizer`.
    pub settings: &'static [Setting],
    /// The arrays that it has for each parameter, beside the master weight, with moments stored so.
    state: fn(Moments) -> &'static [StateSpec],
}

/// A number that a run file may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key, below `optimizer`.
    pub key: &'static str,
    /// What holds when it is not given, as it would be typed.
    pub default: &'static str,
    /// What it is here, where the key's own line says what it is to others.
    pub doc: Option<&'static str>,
}

impl Setting {
    const fn new(key: &'static str, default: &'static str) -> Self {
        let doc = None;
        Self { key, default, doc }
    }

    const fn with(self, doc: &'static str) -> Self {
        Self {
            doc: Some(doc),
            ..self
        }
    }
}

impl OptimizerName {
    /// All of them.
    pub const ALL: &[Self] = &[Self::AdamW, Self::Lion];

    /// Those that are meant to come.
    pub const PLANNED: &[&'static str] = &["adafactor", "muon", "sgd"];

    /// As a run file spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::Lion => "lion",
        }
    }

    /// What it is.
    #[must_use]
    pub const fn about(self) -> &'static About {
        match self {
            Self::AdamW => &adamw::ABOUT,
            Self::Lion => &lion::ABOUT,
        }
    }

    /// What sets it by this key below `optimizer`; `None` where nothing does.
    #[must_use]
    pub fn setting(self, key: &str) -> Option<&'static Setting> {
        self.about().settings.iter().find(|s| s.key == key)
    }
}

/// Bytes that an update moves a parameter beside the optimizer's arrays: bf16 weight and remainder read and
/// written (in f32 the weight), bf16 gradient read.
const MOVED_BESIDE: f64 = 10.0;

/// An optimizer and how it stores its moments: all of it that decides bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Optimizer {
    /// Which.
    #[serde(rename = "optimizer", default)]
    pub name: OptimizerName,
    /// How its moments are stored.
    #[serde(default)]
    pub moments: Moments,
}

impl Optimizer {
    /// Every optimizer with every storage of its moments.
    pub fn all() -> impl Iterator<Item = Self> {
        let each = |&name| Moments::ALL.map(|moments| Self { name, moments });
        OptimizerName::ALL.iter().flat_map(each)
    }

    /// For people: `AdamW`, `AdamW with int8 moments`.
    #[must_use]
    pub fn title(self) -> String {
        let title = self.name.about().title;
        match self.moments {
            Moments::F32 => title.to_owned(),
            other => format!("{title} with {} moments", other.name()),
        }
    }

    /// Its own arrays for each parameter.
    fn own(self) -> &'static [StateSpec] {
        (self.name.about().state)(self.moments)
    }

    /// Every array of a parameter that lasts from step to step, the weight first, in the order of a
    /// checkpoint.
    pub fn roles(self, precision: Dtype) -> impl Iterator<Item = &'static StateSpec> {
        state::master(precision).iter().chain(self.own())
    }

    /// The arrays beside the weight, in the order in which they lie in a piece's state.
    fn beside_weight(self, precision: Dtype) -> impl Iterator<Item = &'static StateSpec> {
        self.roles(precision).skip(1)
    }

    /// Bytes of the state of `elements` numbers, a multiple of [`Moments::BLOCK`], beside the weight.
    #[must_use]
    pub fn state_bytes(self, precision: Dtype, elements: u64) -> u64 {
        state::bytes(self.beside_weight(precision), elements)
    }

    /// Where the arrays beside the weight lie in the state of a piece of `elements` numbers.
    #[must_use]
    pub fn layout(self, precision: Dtype, elements: u64) -> Vec<StateArray> {
        state::layout(self.beside_weight(precision), elements)
    }

    /// The array of a role in a piece of `elements` numbers; `None` where there is none. That of the weight
    /// starts at the piece's weights, all others in its state.
    #[must_use]
    pub fn array(self, precision: Dtype, elements: u64, role: Role) -> Option<StateArray> {
        let weight = state::layout(self.roles(precision).take(1), elements);
        let mut all = weight.into_iter().chain(self.layout(precision, elements));
        all.find(|a| a.spec.role == role)
    }

    /// Bytes a parameter of weight and state.
    #[must_use]
    pub fn bytes_each(self, precision: Dtype) -> f64 {
        let block = Moments::BLOCK;
        state::bytes(self.roles(precision), block) as f64 / block as f64
    }

    /// Bytes that an update moves a parameter in precision bf16 with bf16 gradients, read and written. What a
    /// rate measured with one optimizer says about another: an update computes a few operations for each number
    /// that it moves.
    #[must_use]
    pub fn moved_each(self) -> f64 {
        let block = Moments::BLOCK;
        let own = state::bytes(self.own().iter(), block);
        MOVED_BESIDE + 2.0 * own as f64 / block as f64
    }
}

#[cfg(test)]
mod tests;
