//! Optimizers as data: which arrays each has for a parameter, what an update moves, which keys set it.
//!
//! One file here and one folder of the kernels make an optimizer. Planner, homes, checkpoints, probe and
//! run file read what the file says; only the kernels know what an update does with the arrays.

mod adafactor;
mod adamw;
mod lion;
mod moments;
mod state;

pub use adafactor::Factoring;
pub use moments::Moments;
pub use state::{Encoding, Extent, Init, Role, StateArray, StateSpec};

use serde::{Deserialize, Serialize};

use crate::{Dtype, Param};

/// The optimizers there are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay (Loshchilov and Hutter): two moments.
    #[default]
    AdamW,
    /// Steps of one size along a sign (Chen et al.): one moment.
    Lion,
    /// A factored second moment, one number a row and a column (Shazeer and Stern).
    Adafactor,
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
    /// The ways in which its moments can be stored, of [`Moments`].
    pub moments: &'static [Moments],
    /// The arrays that it has for each parameter, beside the master weight, with moments stored so.
    state: fn(Moments) -> &'static [StateSpec],
    /// Bytes a number that an update moves beyond its weight, gradient and arrays, each once.
    again: f64,
    /// What share of the memory's rate its updates reach, where AdamW's reach all of it.
    reach: f64,
    /// Scratch of an update of one tensor of so many rows and columns, in bytes.
    scratch: fn(u64, u64) -> u64,
}

/// Of an optimizer that needs none.
const fn no_scratch(_: u64, _: u64) -> u64 {
    0
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
    pub const ALL: &[Self] = &[Self::AdamW, Self::Lion, Self::Adafactor];

    /// Those that are meant to come.
    pub const PLANNED: &[&'static str] = &["muon", "sgd"];

    /// As a run file spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::Lion => "lion",
            Self::Adafactor => "adafactor",
        }
    }

    /// What it is.
    #[must_use]
    pub const fn about(self) -> &'static About {
        match self {
            Self::AdamW => &adamw::ABOUT,
            Self::Lion => &lion::ABOUT,
            Self::Adafactor => &adafactor::ABOUT,
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
    /// The formula, which decides the arrays that a parameter has.
    #[serde(rename = "optimizer", default)]
    pub name: OptimizerName,
    /// How its moments are stored.
    #[serde(default)]
    pub moments: Moments,
}

impl Optimizer {
    /// Every optimizer with every storage of its moments.
    pub fn all() -> impl Iterator<Item = Self> {
        let each = |&name: &OptimizerName| {
            let moments = name.about().moments.iter();
            moments.map(move |&moments| Self { name, moments })
        };
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

    /// The roles of which a parameter has entries: a vector has none of columns.
    pub fn roles_of(
        self,
        precision: Dtype,
        param: &Param,
    ) -> impl Iterator<Item = &'static StateSpec> {
        self.roles(precision).filter(|spec| spec.entries(param) > 0)
    }

    /// The arrays beside the weight, in the order in which they lie in a piece's state.
    fn beside_weight(self, precision: Dtype) -> impl Iterator<Item = &'static StateSpec> {
        self.roles(precision).skip(1)
    }

    /// Whether it has arrays of a parameter's rows or columns: an update then needs each tensor whole.
    #[must_use]
    pub fn is_shaped(self) -> bool {
        let shaped = |s: &StateSpec| matches!(s.extent, Extent::Row | Extent::Column);
        self.own().iter().any(shaped)
    }

    /// Bytes of the state of a piece beside the weight: of `elements` numbers, a multiple of
    /// [`Moments::BLOCK`], with these parameters.
    #[must_use]
    pub fn state_bytes(self, precision: Dtype, elements: u64, params: &[Param]) -> u64 {
        state::bytes(self.beside_weight(precision), elements, params)
    }

    /// Where the arrays beside the weight lie in the state of a piece of `elements` numbers with these
    /// parameters.
    #[must_use]
    pub fn layout(self, precision: Dtype, elements: u64, params: &[Param]) -> Vec<StateArray> {
        state::layout(self.beside_weight(precision), elements, params)
    }

    /// The array of a role in a piece of `elements` numbers with these parameters; `None` where there is none.
    /// That of the weight starts at the piece's weights, all others in its state.
    #[must_use]
    pub fn array(
        self,
        precision: Dtype,
        elements: u64,
        params: &[Param],
        role: Role,
    ) -> Option<StateArray> {
        let weight = state::layout(self.roles(precision).take(1), elements, params);
        let state = self.layout(precision, elements, params);
        weight
            .into_iter()
            .chain(state)
            .find(|a| a.spec.role == role)
    }

    /// Bytes of scratch of an update of a piece with these parameters, garbage before and after.
    #[must_use]
    pub fn scratch_bytes(self, params: &[Param]) -> u64 {
        let of = |p: &Param| {
            let tensors = p.tensors().map(|rows| rows.end - rows.start);
            let each = tensors.map(|rows| (self.name.about().scratch)(rows, p.cols));
            each.max().unwrap_or(0)
        };
        params.iter().map(of).max().unwrap_or(0)
    }

    /// Bytes a parameter of weight and state, but for arrays of rows and columns.
    #[must_use]
    pub fn bytes_each(self, precision: Dtype) -> f64 {
        let block = Moments::BLOCK;
        state::bytes(self.roles(precision), block, &[]) as f64 / block as f64
    }

    /// What a rate measured with one optimizer says about another: the bytes of [`Optimizer::moved_each`], as many
    /// more as an update is slower than the memory. An update computes a few operations for each number that it moves.
    #[must_use]
    pub fn cost_each(self) -> f64 {
        self.moved_each() / self.name.about().reach
    }

    /// Bytes that an update moves a parameter in precision bf16 with bf16 gradients, read and written.
    #[must_use]
    pub fn moved_each(self) -> f64 {
        let block = Moments::BLOCK;
        let own = state::bytes(self.own().iter(), block, &[]);
        MOVED_BESIDE + 2.0 * own as f64 / block as f64 + self.name.about().again
    }
}

#[cfg(test)]
mod tests;
