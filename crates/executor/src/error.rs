//! Why a run stops.

use lowtide_device::comm::CommError;
use lowtide_device::cuda::CudaError;
use lowtide_tiers::TierError;

/// What an [`crate::Engine`] reports of a task that cannot be done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// A number of the step is not finite: the step's, not ours.
    #[error("{0}")]
    NonFinite(String),
    /// The gradient's norm is far above those of the steps before, and the run is to end at that.
    #[error("{0}")]
    Spike(String),
    /// The task or its step is not what it must be: our bug.
    #[error("{0}")]
    Wrong(String),
}

/// Why a plan's run stops. Once a runner has returned one, it runs nothing more.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExecError {
    /// A disk transfer failed.
    #[error("{task}: {source}")]
    Disk {
        /// Which task.
        task: String,
        /// What happened.
        source: TierError,
    },
    /// The engine refused or failed a task.
    #[error("{task}: {source}")]
    Engine {
        /// Which task.
        task: String,
        /// What happened.
        source: EngineError,
    },
    /// The device refused a task, or failed while it ran.
    #[error("{task}: {source}")]
    Device {
        /// Which task.
        task: String,
        /// What happened.
        source: CudaError,
    },
    /// Ranks cannot go on together.
    #[error("{task}: {source}")]
    Ranks {
        /// Which task.
        task: String,
        /// What happened.
        source: CommError,
    },
    /// A rank in another process failed of something of its own, which has no number here.
    #[error("{what}")]
    Elsewhere {
        /// Which.
        rank: usize,
        /// In its own words.
        what: String,
    },
    /// A task panicked: our bug.
    #[error("{task} panicked: {message}")]
    Panic {
        /// Which task.
        task: String,
        /// The panic's text.
        message: String,
    },
    /// The system does not start a lane's threads.
    #[error("lane {lane}: {threads} threads cannot be started: {why}")]
    Threads {
        /// The lane.
        lane: String,
        /// How many it was to have.
        threads: usize,
        /// What the system said.
        why: String,
    },
    /// No task completed for too long.
    #[error("no task completed in {seconds} s: {chain}")]
    Stuck {
        /// How long.
        seconds: u64,
        /// Who waits for whom.
        chain: String,
    },
    /// The runner was stopped from outside.
    #[error("stopped")]
    Stopped,
}
