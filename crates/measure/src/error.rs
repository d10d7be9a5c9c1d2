//! What can go wrong in a measurement.

use std::path::{Path, PathBuf};

use lowtide_units::Bytes;

/// Why a rate was not measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// Memory or disk.
    #[error(transparent)]
    Tier(#[from] lowtide_tiers::TierError),
    /// The CUDA device.
    #[error(transparent)]
    Cuda(#[from] lowtide_device::cuda::CudaError),
    /// Ranks cannot exchange anything.
    #[error(transparent)]
    Ranks(#[from] lowtide_device::comm::CommError),
    /// A task failed.
    #[error(transparent)]
    Exec(#[from] lowtide_executor::ExecError),
    /// More parameters than there is memory for.
    #[error("--parameters: {asked} asked for, {what} has {have}")]
    Parameters {
        /// Bytes asked for.
        asked: Bytes,
        /// Bytes that there are.
        have: Bytes,
        /// What has them: the machine, its control group, a file system.
        what: String,
    },
    /// A file or directory cannot be used.
    #[error("{}: {what}", path.display())]
    File {
        /// Path that could not be written or read.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl MeasureError {
    /// A file that cannot be used for what the system said.
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |e| Self::File {
            path: path.to_owned(),
            what: e.to_string(),
        }
    }
}
