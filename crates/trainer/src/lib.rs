//! The training run around the compiled step: learning-rate schedule, checkpoints, metrics, evaluation.
//!
//! What a program may do with a run stands here, a function or a type for each command: [`Planner`] says what would be,
//! [`train`] does it, [`Comparison`] does it in several ways, [`Judging`] and [`Answering`] try the model, [`verify`]
//! and [`check`] prove it, [`export`] gives it away, [`data`] shows what it learns from, [`device`], [`Probe`],
//! [`bench_step`] and [`bench_generate`] measure. [`error`] has the facts of what goes wrong. All else belongs to the
//! crate.
//!
//! See ARCHITECTURE.md.

mod adaptive;
mod answering;
mod answers;
mod basis;
mod bench;
mod beside;
mod checkpoint;
mod classes;
mod curve;
mod device;
mod drift;
mod dropout;
pub mod error;
mod f1;
mod fit;
mod generate;
mod hub;
mod inputs;
#[doc(hidden)]
pub mod inside;
mod judging;
mod launch;
mod learning_rate;
mod looking;
mod metrics;
mod open;
mod output;
mod pairs;
mod paths;
mod picture;
mod planner;
mod planning;
mod probing;
mod projectors;
mod report;
mod resident;
mod shown;
mod stops;
mod tally;
mod threads;
mod verify;
mod wear;

pub use adaptive::Replan;
pub use answering::{Answering, BadPrompt, Prompt};
pub use answers::Answer;
pub use bench::{StepOptions, generate as bench_generate, step as bench_step};
pub use beside::PlannedAnswers;
pub use device::Device;
pub use error::TrainError;
pub use fit::{
    Best, Comparison, Evaluation, Export, Exported, export_checkpoint as export, lead, train,
};
pub use generate::{Passes, Sampling};
pub use hub::{Names, resolve};
pub use judging::Judging;
pub use launch::{Farewell, Launch, Met, follow};
pub use looking::data;
pub use lowtide_report::outcome::TrainReport;
pub use open::load_model;
pub use output::check::{Checked, check};
pub use output::place::{Place, Taken};
pub use planner::{OfCompression, OfExact, PlanMade, Planner, StepsOfWrites};
pub use planning::Planned;
pub use probing::{Probe, device};
pub use report::{Observer, Phase, StepLine, When};
pub use shown::rates;
pub use verify::{VerifyReport, verify};
pub use wear::Wear;

// Of the crates below, what the values above are made of.
pub use lowtide_device::cuda::Gpu;
pub use lowtide_model::FileDtype;
pub use lowtide_units::{Bytes, Seconds};
pub use lowtide_workload::Workload;
