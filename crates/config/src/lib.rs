//! The run a user asked for: first as typed, then as checked.
//!
//! A run is one YAML file and any number of `--set key.path=value` overrides. Reading it has two
//! ends and a list between them:
//!
//! - `low` holds exactly what was typed, key by key, each value with its file, line and column;
//! - [`Run`] holds what it means: every default filled in, every path absolute, every rule between
//!   keys checked. It is plain data and nothing downstream asks again whether a value is allowed;
//! - [`KEYS`] is the one list of keys. A key's name, meaning, type, default and limits stand there
//!   and nowhere else; parsing, the errors, [`schema`] and [`reference_markdown`] are read off it.
//!
//! Nothing here opens a model, looks at the machine or touches a path beyond the run file itself:
//! a run for a machine that is elsewhere can be checked here. Values that are planned but not built
//! (`optimizer.name: lion`) say so rather than pass as unknown.

mod build;
mod change;
mod docs;
mod elsewhere;
mod error;
mod import;
mod key;
mod keys;
mod load;
mod low;
mod nearest;
mod numerics;
mod rules;
mod run;
mod tree;
mod value;
mod words;

pub use change::{keys_that_change, may_change};
pub use docs::{reference_markdown, schema};
pub use elsewhere::{Elsewhere, elsewhere};
pub use error::{ConfigError, Place};
pub use import::{Imported, axolotl_keys, import_axolotl, import_axolotl_file};
pub use key::{Key, KeyDefault, Kind};
pub use keys::{KEYS, SECTIONS};
pub use lowtide_workload::builtin_names as shape_names;
pub use nearest::nearest;
pub use run::{
    Budget, Cache, Checkpoint, Clip, Data, DiskBudget, Eval, Fields, Generate, Group, Length, Log,
    Loop, Model, ModelSource, Optimizer, Plan, Recompute, Resume, Run, Schedule, Source, Spike,
    Train, Warmup,
};
pub use words::{
    Activations, ClipMode, Device, Direct, Format, Init, KeepBest, LastBatch, LoopOrder, NonFinite,
    Offload, OnError, OnUnsaved, Pieces, Reduce, ScheduleShape, SpikeAction, Strategy, TextBy,
    Tier, TrainOn, UpdateOn,
};
