//! Parts of errors.

use std::path::{Path, PathBuf};

use lowtide_config::DiskBudget;
use lowtide_planner::{Budgets, Refusal};
use lowtide_units::Bytes;

use super::TrainError;

/// Why a run has no plan, and what would have one.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// What was needed, allowed, and the nearest budgets that fit.
    pub refusal: Refusal,
    /// The largest micro-batch (of the same sequence length) that fits the allowed budgets.
    pub nearest_micro_batch: Option<u32>,
    /// Where no smaller micro-batch fits: the `train.rows_chunk` with which this one does.
    pub rows_chunk: Option<u32>,
    /// What of it answers with a KV cache take beside the steps, where the run makes some so.
    pub answers: Option<Budgets>,
    /// The drives that the run allows, whose directories advice on more space has to keep.
    pub disks: Vec<DiskBudget>,
    /// Host memory of this machine, where the plan is for it.
    pub host_total: Option<Bytes>,
    /// Whether the device's memory is host memory too.
    pub device_is_host: bool,
}

impl Refused {
    /// Host memory that the nearest budgets take, where this machine has less than that.
    #[must_use]
    pub fn beyond(&self) -> Option<(Bytes, Bytes)> {
        let nearest = &self.refusal.nearest;
        let device = match self.device_is_host {
            true => nearest.device.0,
            false => 0,
        };
        let need = Bytes(nearest.host.0.saturating_add(device));
        self.host_total
            .filter(|&total| need > total)
            .map(|total| (need, total))
    }
}

/// What is wrong with a path that a key names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// Nothing is there.
    #[error("no such file or directory")]
    Missing,
    /// A link to nothing.
    #[error("a symbolic link to {}, which is not there", to.display())]
    Dangling {
        /// What it names.
        to: PathBuf,
    },
    /// Nothing is there, and as a name on the Hugging Face Hub, which it can be, it cannot be had.
    #[error("no such path; as a name on the Hugging Face Hub, '{name}' {why}")]
    Hub {
        /// The name as typed.
        name: String,
        /// Why it cannot be had.
        why: HubProblem,
    },
    /// Something else is there.
    #[error("{found}, not {needed}")]
    Kind {
        /// What is there.
        found: &'static str,
        /// What must be.
        needed: &'static str,
    },
    /// The system cannot look at it.
    #[error("{0}")]
    Unreadable(String),
    /// The system does not make it.
    #[error("cannot be made: {0}")]
    NotMade(String),
}

/// Why a model cannot be had by its name on the Hugging Face Hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HubProblem {
    /// Neither the environment nor a home directory says where the cache is.
    #[error("cannot be looked for: neither HF_HOME nor HOME says where the cache is")]
    NoCache,
    /// It is not whole in the cache, and nothing may be fetched.
    #[error("has no {lacks} in the cache {}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set", cache.display())]
    Offline {
        /// The Hub's cache directory.
        cache: PathBuf,
        /// The revision or file that is looked for.
        lacks: String,
    },
    /// It is not whole in the cache, and there is no program that fetches it.
    #[error("has no {lacks} in the cache {}, and neither hf nor huggingface-cli can be started to fetch it", cache.display())]
    NoProgram {
        /// The Hub's cache directory.
        cache: PathBuf,
        /// The revision or file that is looked for.
        lacks: String,
    },
    /// The program that fetches it failed.
    #[error("could not be fetched: {program} download: {status}")]
    Failed {
        /// Name of the program, `hf` or `huggingface-cli`.
        program: String,
        /// How it ended.
        status: String,
    },
    /// The program that fetches it ended without an error, which it also does where it does not reach the Hub and a
    /// part is there; and it is still not whole.
    #[error("has no {lacks} in the cache {} even after it was fetched", cache.display())]
    Lacks {
        /// The Hub's cache directory.
        cache: PathBuf,
        /// The revision or file that is missing.
        lacks: String,
    },
    /// A data set has no such part, or not all of its files.
    #[error("has no {part}, or not all of its files{}", listed(has))]
    NoPart {
        /// The part that is looked for.
        part: String,
        /// The parts that there are.
        has: Vec<String>,
    },
    /// The README of a data set has configurations that cannot be used.
    #[error("has a README.md whose configs cannot be used: {why}")]
    Readme {
        /// What is wrong there.
        why: String,
    },
    /// The README of a data set names files for a part that are not read.
    #[error(
        "has {pattern} for that by its README.md, and only .parquet, .jsonl, .json, .csv and .tsv are read from there"
    )]
    Ending {
        /// As the README names them.
        pattern: String,
    },
    /// A data set has more files than are looked at.
    #[error("has more than {most} data files")]
    Many {
        /// How many are looked at.
        most: usize,
    },
    /// More than one set of a data set's files is what is looked for.
    #[error("has several of that{}", listed(parts))]
    Several {
        /// Each as it is named alone.
        parts: Vec<String>,
    },
}

/// The first of many parts, behind a colon.
fn listed(parts: &[String]) -> String {
    match parts.len() {
        0 => String::new(),
        1..=12 => format!(": {}", parts.join(", ")),
        n => format!(": {} and {} more", parts[..12].join(", "), n - 12),
    }
}

/// A run would write more than it may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "budget.disk_writes: {allowed} allowed; {written} are written, the {steps} steps to come would write {needed} \
     ({step} each)"
)]
pub struct TooMuch {
    /// Bytes that the run may write in all.
    pub allowed: Bytes,
    /// Bytes written by its processes before this one.
    pub written: Bytes,
    /// Bytes that this start and the steps to come write.
    pub needed: Bytes,
    /// Steps to come.
    pub steps: u64,
    /// Bytes that a step writes.
    pub step: Bytes,
}

/// What a run has kept to resume from and a start does not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// The newest checkpoint of the output is gone.
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
