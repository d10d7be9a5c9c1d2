//! The planner's knobs.

use std::ops::Bound::{Included, Unbounded};

use crate::key::KeyDefault::{Unset, Value};
use crate::key::{Key, Kind};
use crate::words::{Activations, Direct, LoopOrder, Offload, Pieces, Tier};

/// Those keys, in the order of the reference.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "plan.loop",
        doc: "Order of micro-batches and blocks in a step. `groups:N`: one group of N micro-batches after the \
              other, each block for all micro-batches of a group before the next block. Larger groups fetch weights \
              less often and keep more activations at once.",
        kind: Kind::PinGroups {
            words: LoopOrder::WORDS,
            max: 100_000,
        },
        default: Value("auto"),
        elsewhere: &["loop_order", "layer_major"],
    },
    place(
        "plan.weights",
        "Where weights stay between uses.",
        &["offload_param"],
    ),
    place(
        "plan.optimizer",
        "Where master weights and moments stay between steps.",
        &["offload_optimizer"],
    ),
    place(
        "plan.gradients",
        "Where complete gradients wait for the update.",
        &["offload_gradients"],
    ),
    place(
        "plan.inputs",
        "Where block inputs wait for the backward pass.",
        &[],
    ),
    Key {
        name: "plan.recompute",
        doc: "Blocks whose inner activations are computed again in the backward pass.",
        kind: Kind::PinCount {
            words: &[("none", "no block"), ("all", "every block")],
            max: 100_000,
        },
        default: Value("auto"),
        elsewhere: &["activation_checkpoint"],
    },
    Key {
        name: "plan.activations",
        doc: "What may become of tensors that the forward pass saves for the backward pass. `auto`: for each of \
              them whatever makes the step shortest. Changes no result.",
        kind: Kind::Pin {
            words: Activations::WORDS,
        },
        default: Value("auto"),
        elsewhere: &["offload_activations", "saved_tensors"],
    },
    Key {
        name: "plan.offload",
        doc: "Where saved tensors go that do not stay on the device and are not computed again. `auto`: to the host, and \
              what has no room there to the disks of the budget. Changes no result.",
        kind: Kind::Pin {
            words: Offload::WORDS,
        },
        default: Value("auto"),
        elsewhere: &["offload_device", "offload_to"],
    },
    Key {
        name: "plan.direct",
        doc: "Whether bytes may go between disks and the device without passing host memory. `auto`: where the machine's \
              rates say that its disks reach the device, and it makes the step shorter. Changes no result.",
        kind: Kind::Pin {
            words: Direct::WORDS,
        },
        default: Value("auto"),
        elsewhere: &["use_gds", "gds", "gpudirect_storage"],
    },
    Key {
        name: "plan.min_gain",
        doc: "Seconds that a step must become shorter for each TB (10^12 bytes) that it writes to the disks of the \
              budget: flash wears out. Changes no result.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Unbounded,
        },
        default: Value("1.0"),
        elsewhere: &[],
    },
    Key {
        name: "plan.prefetch",
        doc: "How far copies run ahead of their use and lag behind it. 0: just in time. N: until N eighths of \
              the device are taken, and N of a block's largest tensors on the host. Changes no result.",
        kind: Kind::PinCount { words: &[], max: 8 },
        default: Value("auto"),
        elsewhere: &["prefetch_factor", "backward_prefetch", "forward_prefetch"],
    },
    Key {
        name: "plan.pieces",
        doc: "Grain at which a block's weights are fetched.",
        kind: Kind::Pin {
            words: Pieces::WORDS,
        },
        default: Value("auto"),
        elsewhere: &[],
    },
    Key {
        name: "plan.adaptive",
        doc: "Plan again while the run goes on, where its lanes work at other rates than it was planned with: where the \
              median of 20 steps has a lane busy for 10% longer or shorter, and another plan makes a step 2% shorter. \
              What stays from step to step keeps its place, and no more memory is taken than was reserved. At most \
              once in 200 steps; on one GPU. Steps beside a checkpoint that is being written do not count, nor do two \
              behind each checkpoint and evaluation: with those at every step or two nothing is found. Changes no \
              result.",
        kind: Kind::Flag,
        default: Value("false"),
        elsewhere: &[],
    },
    Key {
        name: "plan.machine",
        doc: "File with measured rates, as `lowtide probe` writes it. Without it each command measures this machine; docs/faq.md says why.",
        kind: Kind::Path,
        default: Unset("this machine is probed"),
        elsewhere: &["machine_file"],
    },
];

const fn place(name: &'static str, doc: &'static str, elsewhere: &'static [&'static str]) -> Key {
    Key {
        name,
        doc,
        kind: Kind::Pin { words: Tier::WORDS },
        default: Value("auto"),
        elsewhere,
    }
}
