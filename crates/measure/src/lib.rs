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
pub use net::{NetTimes, net_rates};
pub use probe::{Drive, ProbeOptions, probe};

use lowtide_units::Bytes;

/// Host memory that a run's process takes after its arenas are reserved, whatever the run: stacks of lanes,
/// and what each core stages while weights are filled and checkpoints written.
#[must_use]
pub fn later() -> Bytes {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    Bytes::MIB * 128.max(10 * cores)
}
