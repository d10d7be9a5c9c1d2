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
        /// Label of the task, with its rank where there are several.
        task: String,
        /// What the drive or its file system reported.
        source: TierError,
    },
    /// The engine refused or failed a task.
    #[error("{task}: {source}")]
    Engine {
        /// Label of the task, with its rank where there are several.
        task: String,
        /// Whether the step's numbers are at fault or the task.
        source: EngineError,
    },
    /// The device refused a task, or failed while it ran.
    #[error("{task}: {source}")]
    Device {
        /// Label of the last task that is known to have started on the stream: a GPU reports some failures only at a
        /// later call.
        task: String,
        /// The driver's error.
        source: CudaError,
    },
    /// Ranks cannot continue together.
    #[error("{task}: {source}")]
    Ranks {
        /// Label of the collective; only the rank where another rank stopped outside one.
        task: String,
        /// Which rank stopped, did not come, or was at another collective.
        source: CommError,
    },
    /// A rank in another process failed of something of its own, which has no number here.
    #[error("{what}")]
    Elsewhere {
        /// Number of the rank, from 0.
        rank: usize,
        /// In its own words.
        what: String,
    },
    /// A task panicked: our bug.
    #[error("{task} panicked: {message}")]
    Panic {
        /// Label of the task that the worker was running.
        task: String,
        /// The panic's text.
        message: String,
    },
    /// The system does not start a lane's threads.
    #[error("lane {lane}: {threads} threads cannot be started: {why}")]
    Threads {
        /// Name of the lane.
        lane: String,
        /// How many it was to have.
        threads: usize,
        /// What the system said.
        why: String,
    },
    /// No task completed for too long.
    #[error("no task completed in {seconds} s: {chain}")]
    Stuck {
        /// Time since a task last completed, in whole seconds.
        seconds: u64,
        /// Who waits for whom.
        chain: String,
    },
    /// The runner was stopped from outside.
    #[error("stopped")]
    Stopped,
}
