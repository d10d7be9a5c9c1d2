//! The training run around the compiled step: learning-rate schedule, checkpoints, metrics, evaluation.
//!
//! See ARCHITECTURE.md.

pub mod answers;
pub mod basis;
pub mod bench;
pub mod beside;
pub mod checkpoint;
pub mod classes;
pub mod curve;
pub mod device;
pub mod dropout;
pub mod error;
mod f1;
pub mod fit;
pub mod generate;
pub mod hub;
pub mod inputs;
pub mod launch;
pub mod learning_rate;
pub mod metrics;
pub mod open;
pub mod output;
pub mod pairs;
pub mod paths;
pub mod picture;
pub mod planning;
mod projectors;
pub mod report;
pub mod resident;
pub mod stops;
mod tally;
pub mod threads;
pub mod verify;
pub mod wear;

pub use error::TrainError;
// Errors of the crates below that [`TrainError`] carries, for whoever tells them apart.
pub use lowtide_device::comm::{CommError, MeetError, Party};
pub use lowtide_device::cuda::{CudaError, Gpu};
pub use lowtide_executor::ExecError;
pub use lowtide_files::{FileError, Foreign, JsonProblem};
pub use lowtide_model::{FileDtype, ModelError};
pub use lowtide_tiers::TierError;
pub use lowtide_units::{Bytes, Seconds};
pub use lowtide_workload::Workload;
