//! Keys of what is trained.

use crate::key::KeyDefault::Value;
use crate::key::{Key, Kind};
use crate::words::{PROJECTORS, Strategy};

/// Those keys, in the order of the reference.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "strategy.name",
        doc: "What is trained.",
        kind: Kind::word(Strategy::WORDS),
        default: Value("exact"),
        elsewhere: &[],
    },
    Key {
        name: "strategy.lsp.compression",
        doc: "How many times fewer numbers than a matrix has are trained in its place: of its shorter side's directions so \
              many times fewer are kept, rounded down to a multiple of 8. With 1 all are kept, which is exact training but for \
              roundings.",
        kind: Kind::Count { min: 1, max: 1024 },
        default: Value("4"),
        elsewhere: &[],
    },
    Key {
        name: "strategy.lsp.projector",
        doc: "Which directions: chosen before the first step, kept for the whole run.",
        kind: Kind::word(PROJECTORS),
        default: Value("learned"),
        elsewhere: &[],
    },
];
