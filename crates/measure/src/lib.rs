//! The rates of a machine, measured with what a run uses: its kernels, its threads, its memory and its drives.
//!
//! [`probe`] makes a [`Machine`](lowtide_planner::Machine) of them, `contention` what lanes take from each
//! other when they work at once, [`mod@bench`] single rates beside their bounds.
//!
//! See ARCHITECTURE.md.

pub mod bench;
mod contention;
mod error;
mod net;
mod operations;
mod probe;
mod timing;

pub use error::MeasureError;
pub use net::{NetTimes, RankWork};
pub use probe::{Drive, ProbeOptions, probe};

use lowtide_data::Micro;
use lowtide_units::Bytes;
use lowtide_workload::{Batch, ModelShape, Objective};

/// A micro-batch of random tokens and labels for a model, one document a row; of a model of two stacks one pair.
#[must_use]
pub fn random_micro(shape: &ModelShape, batch: Batch, seed: u64) -> Micro {
    let random = |seq, seed| Micro::random(batch.micro_batch, seq, shape.vocab, seed);
    let micro = random(batch.seq, seed);
    match (shape.objective, batch.target) {
        (Objective::NextToken, 0) => micro,
        // Seeds of other micro-batches follow this one.
        (Objective::NextToken, target) => micro.paired(random(target, !seed)),
        (Objective::Classes(n), _) => micro.classified(n),
    }
}

/// Host memory that a run's process takes after its arenas are reserved, whatever the run: stacks of lanes,
/// and what each core stages while weights are filled and checkpoints written.
#[must_use]
pub fn later() -> Bytes {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    Bytes::MIB * 128.max(10 * cores)
}
