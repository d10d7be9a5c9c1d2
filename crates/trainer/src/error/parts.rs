//! Parts of errors.

use std::path::Path;

use super::TrainError;

/// What a run has kept to go on from and a start does not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// A checkpoint.
    #[error("the checkpoint is not there")]
    Checkpoint,
    /// The state file of a durable run that has not come to its end.
    #[error("the state file of this durable run is not there")]
    State,
    /// The same: it is there, and the run names other drives.
    #[error("has the state of this durable run, and budget.disk names another directory now")]
    Elsewhere,
}

/// What asks for more bytes than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Asked {
    /// Directories of `budget.disk`.
    #[error("budget.disk")]
    Disk,
    /// The tokens of a batch.
    #[error("train.micro_batch, train.seq and train.accumulate together")]
    Batch,
    /// `--parameters` of a bench.
    #[error("--parameters")]
    Parameters,
    /// The host's budget.
    #[error("budget.host")]
    Host,
    /// A CPU device's budget.
    #[error("budget.device")]
    Device,
    /// Both, which are the same memory.
    #[error("budget.device and budget.host together")]
    DeviceAndHost,
}

/// The run file's keys behind a name in the numerics key.
pub(super) fn keys_of(name: &str) -> String {
    let schedule = name.strip_prefix("train.schedule.");
    match name {
        "data.fingerprint" => {
            "training set as packed (data.train, data.eval_split, the tokenizer, its \
             chat template or train.seq; this is its hash)"
                .to_owned()
        }
        "init" => "model.init".to_owned(),
        "shape" => "model".to_owned(),
        _ if name.starts_with("shape.") => format!("model ({name})"),
        _ if name.starts_with("device.") => format!("device ({name})"),
        _ => match schedule.map(|s| s.split('.').next().unwrap_or(s)) {
            Some("shape") => "train.schedule".to_owned(),
            Some("warmup") => "train.warmup_steps or train.warmup_ratio".to_owned(),
            Some("length") => {
                "train.steps or train.epochs, on which the schedule depends".to_owned()
            }
            Some(own) => format!("train.{own}"),
            None => name.to_owned(),
        },
    }
}

impl TrainError {
    /// A file that cannot be used for what the system said.
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |e| Self::File {
            path: path.to_owned(),
            what: e.to_string(),
        }
    }
}
