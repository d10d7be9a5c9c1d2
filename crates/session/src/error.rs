//! What can go wrong in a session.

use std::path::{Path, PathBuf};

/// Why a session cannot be opened, or a step was not made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Memory or disk.
    #[error(transparent)]
    Tier(#[from] lowtide_tiers::TierError),
    /// The CUDA device.
    #[error(transparent)]
    Cuda(#[from] lowtide_device::cuda::CudaError),
    /// The plan moves bytes between drives and the GPU's memory past the host's, and the drives do not reach it.
    #[error("this plan's drives are to reach the GPU's memory: {0}")]
    Direct(#[from] lowtide_device::cuda::NoDirect),
    /// A task failed.
    #[error(transparent)]
    Exec(#[from] lowtide_executor::ExecError),
    /// A file or directory cannot be used.
    #[error("{}: {what}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl SessionError {
    /// A file that cannot be used for what the system said.
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |e| Self::File {
            path: path.to_owned(),
            what: e.to_string(),
        }
    }
}
