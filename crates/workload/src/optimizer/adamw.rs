//! AdamW: a first and a second moment.

use super::state::{Encoding, StateSpec};
use super::{About, Setting, no_scratch};
use crate::Moments;

const F32: &[StateSpec] = &[
    StateSpec::moment("first_moment", Encoding::F32),
    StateSpec::moment("second_moment", Encoding::F32),
];
const BF16: &[StateSpec] = &[
    StateSpec::moment("first_moment", Encoding::Bf16),
    StateSpec::moment("second_moment", Encoding::Bf16),
];
const INT8: &[StateSpec] = &[
    StateSpec::moment("first_moment", Encoding::Code),
    StateSpec::moment("second_moment", Encoding::Code),
    StateSpec::scales("first_scale"),
    StateSpec::scales("second_scale"),
];

fn state(moments: Moments) -> &'static [StateSpec] {
    match moments {
        Moments::F32 => F32,
        Moments::Bf16 => BF16,
        Moments::Int8 => INT8,
    }
}

pub(super) const ABOUT: About = About {
    title: "AdamW",
    doc: "AdamW with decoupled decay and epsilon outside the root, as in PyTorch",
    aliases: &["adamw_torch", "AdamW"],
    settings: &[
        Setting::new("beta1", "0.9"),
        Setting::new("beta2", "0.999"),
        Setting::new("eps", "1e-8"),
        Setting::new("weight_decay", "0"),
    ],
    moments: &Moments::ALL,
    state,
    again: 0.0,
    reach: 1.0,
    scratch: no_scratch,
};
