//! Lion: one moment.

use super::state::{Encoding, StateSpec};
use super::{About, Setting, no_scratch};
use crate::Moments;

const F32: &[StateSpec] = &[StateSpec::moment("first_moment", Encoding::F32)];
const BF16: &[StateSpec] = &[StateSpec::moment("first_moment", Encoding::Bf16)];
const INT8: &[StateSpec] = &[
    StateSpec::moment("first_moment", Encoding::Code),
    StateSpec::scales("first_scale"),
];

fn state(moments: Moments) -> &'static [StateSpec] {
    match moments {
        Moments::F32 => F32,
        Moments::Bf16 => BF16,
        Moments::Int8 => INT8,
    }
}

pub(super) const ABOUT: About = About {
    title: "Lion",
    doc: "steps by the sign of one moment, with decoupled decay (Chen et al. 2023); wants a learning rate 3 to 10 \
          times lower than AdamW",
    aliases: &["lion_32bit"],
    settings: &[
        Setting::new("beta1", "0.9").with("the moment's share in the direction of a step"),
        Setting::new("beta2", "0.99").with("decay of the moment"),
        Setting::new("weight_decay", "0"),
    ],
    moments: &Moments::ALL,
    state,
    again: 0.0,
    reach: 1.0,
    scratch: no_scratch,
};
