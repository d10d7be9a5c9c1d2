//! What can go wrong in a run.

use std::path::PathBuf;

use lowtide_data::DataError;
pub use lowtide_device::comm::CommError;
pub use lowtide_executor::ExecError;
pub use lowtide_files::FileError;
use lowtide_measure::MeasureError;
use lowtide_session::SessionError;
use lowtide_units::Bytes;

use parts::keys_of;
// Errors of the crates below that [`TrainError`] carries, for whoever tells them apart.
pub use lowtide_device::comm::{MeetError, Party};
pub use lowtide_device::cuda::CudaError;
pub use lowtide_files::{Foreign, JsonProblem};
pub use lowtide_model::ModelError;
pub use lowtide_tiers::TierError;
pub use parts::{Absent, Asked, HubProblem, PathProblem, Refused, TooMuch};

mod parts;

/// Flat: whoever tells errors apart looks for one of memory or of the device in one place.
impl From<SessionError> for TrainError {
    fn from(e: SessionError) -> Self {
        match e {
            SessionError::Tier(e) => Self::Tier(e),
            SessionError::Cuda(e) => Self::Cuda(e),
            SessionError::Direct(e) => Self::Direct(e),
            SessionError::Exec(e) => Self::Exec(e),
            SessionError::File { path, what } => Self::File { path, what },
        }
    }
}

/// Flat, as those of a session.
impl From<MeasureError> for TrainError {
    fn from(e: MeasureError) -> Self {
        match e {
            MeasureError::Tier(e) => Self::Tier(e),
            MeasureError::Cuda(e) => Self::Cuda(e),
            MeasureError::Exec(e) => Self::Exec(e),
            MeasureError::Ranks(CommError::Cuda(e)) => Self::Cuda(e),
            MeasureError::Ranks(source) => Self::Exec(ExecError::Ranks {
                task: "measuring what ranks exchange".to_owned(),
                source,
            }),
            MeasureError::File { path, what } => Self::File { path, what },
            MeasureError::Parameters { asked, have, what } => Self::Budget {
                of: Asked::Parameters,
                asked,
                have,
                what,
            },
        }
    }
}

/// Why a run cannot start, resume, continue or be saved.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The run asks for what a model of this kind has not.
    #[error("{key}: {why}")]
    OtherKind {
        /// The key, or the command.
        key: &'static str,
        /// What a model of this kind has not.
        why: &'static str,
    },
    /// Data, tokenizer or metrics.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A model's files, its configuration, or its description as a workload.
    #[error(transparent)]
    Model(#[from] lowtide_model::ModelError),
    /// Memory or disk.
    #[error(transparent)]
    Tier(#[from] lowtide_tiers::TierError),
    /// The CUDA device.
    #[error(transparent)]
    Cuda(#[from] lowtide_device::cuda::CudaError),
    /// The plan moves bytes between drives and the GPU's memory past the host's, and the drives do not reach it.
    #[error("this plan's drives are to reach the GPU's memory: {0}")]
    Direct(lowtide_device::cuda::NoDirect),
    /// The run was asked to end before this was done.
    #[error("stopped before it was done")]
    Stopped,
    /// The run asks for what the device cannot do.
    #[error("{0}")]
    Device(String),
    /// Ranks that are processes did not come together.
    #[error(transparent)]
    Meet(lowtide_device::comm::MeetError),
    /// Answers with their prompts are longer than the model has positions.
    #[error(
        "{tokens} tokens of a prompt and its answer, and the model has positions for {positions}"
    )]
    LongAnswers {
        /// Of the longest.
        tokens: u32,
        /// How many there are.
        positions: u32,
    },
    /// The environment says how long ranks wait for each other, and it is no such time.
    #[error("{name} is '{value}', which is no whole number of seconds from 1 to {most}")]
    RankLimit {
        /// Name of the variable.
        name: &'static str,
        /// Value that it has.
        value: String,
        /// Most seconds that it may say.
        most: u64,
    },
    /// What a launcher says of this process cannot be done.
    #[error("{0}")]
    Launch(String),
    /// The run file.
    #[error(transparent)]
    Config(#[from] lowtide_config::ConfigError),
    /// A task failed.
    #[error(transparent)]
    Exec(#[from] lowtide_executor::ExecError),
    /// No built-in shape has this name.
    #[error("no built-in shape is called '{name}'")]
    UnknownShape {
        /// The name that was asked for.
        name: String,
    },
    /// Sequences are longer than the model's longest.
    #[error(
        "train.seq is {seq}, and {}",
        match config {
            Some(path) => format!("{}: '{key}' is {positions}", path.display()),
            None => format!("the shape of model.shape has {positions} positions"),
        }
    )]
    TooLong {
        /// Tokens of a sequence.
        seq: u32,
        /// Positions that the model has.
        positions: u32,
        /// Where it says so.
        config: Option<PathBuf>,
        /// Under which key.
        key: &'static str,
    },
    /// GPUs that are to train together are not alike.
    #[error("cuda:0 is {first}, but cuda:{ordinal} is {other}: all GPUs of a run must be alike")]
    Unlike {
        /// The first one's name.
        first: String,
        /// Number of the first GPU that is of another kind.
        ordinal: u8,
        /// Name of that GPU.
        other: String,
    },
    /// A machine file does not say how fast its GPUs exchange bytes.
    #[error("{}: no rate of what {gpus} GPUs{} exchange (key 'net'{}{})", path.display(),
        match hosts { 1 => String::new(), hosts => format!(" on {hosts} hosts") },
        have.map_or(String::new(), |n| format!(", which is of {n}")),
        match (hosts, network) { (1, _) | (_, true) => "", _ => "; key 'network'" })]
    NoNet {
        /// The machine file.
        path: PathBuf,
        /// How many the run has.
        gpus: u32,
        /// On how many hosts.
        hosts: u32,
        /// How many it says it of.
        have: Option<u32>,
        /// Whether it says what connects hosts.
        network: bool,
    },
    /// The tokenizer has tokens that the model has no row for.
    #[error(
        "the tokenizer has {tokens} tokens, the last of them '{token}' with id {id}; the model has rows \
         for the ids up to {}",
        vocab - 1
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// The one with the largest id.
        token: String,
        /// Largest id of the tokenizer.
        id: i32,
        /// Rows of the embedding.
        vocab: u32,
    },
    /// Nothing fits the budgets.
    #[error("{}", .0.refusal)]
    Refused(Box<Refused>),
    /// The planner made a plan that its checker refuses: our bug.
    #[error("the plan is wrong: {0}")]
    WrongPlan(lowtide_planner::check::Fault),
    /// A loss, a gradient or a number of the state that is to be saved is not finite.
    #[error("step {step}: {what}")]
    NonFinite {
        /// Which step, from 1.
        step: u64,
        /// What was seen.
        what: String,
        /// The newest checkpoint, which is intact.
        checkpoint: Option<PathBuf>,
    },
    /// A model's logits are no numbers, of which no token can be chosen.
    #[error("{what}")]
    NoNumbers {
        /// Of which answer, behind how many tokens.
        what: String,
    },
    /// A gradient norm is far above those before it, and the run is to end at that.
    #[error("step {step}: {what}")]
    Spike {
        /// Which step, from 1.
        step: u64,
        /// What was seen.
        what: String,
        /// The newest checkpoint, which is intact.
        checkpoint: Option<PathBuf>,
    },
    /// Learned projectors cannot be kept until the run reads them.
    #[error("{}: learned projectors cannot be kept there: {source}", dir.display())]
    Projectors {
        /// The output directory that the file without a name is made in.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not there, or is not what its name says.
    #[error(transparent)]
    Read(#[from] FileError),
    /// A path that a key of the run names cannot be used.
    #[error("{key}: {}: {problem}", path.display())]
    Path {
        /// The key of the run that names the path.
        key: &'static str,
        /// The path as it was looked up.
        path: PathBuf,
        /// What is wrong with it.
        problem: PathProblem,
    },
    /// A budget beyond what there is.
    #[error("{of}: {asked} asked for, {what} has {have}")]
    Budget {
        /// What asked for it.
        of: Asked,
        /// Bytes asked for.
        asked: Bytes,
        /// Bytes that there are.
        have: Bytes,
        /// What has them: the machine, its control group, a file system.
        what: String,
    },
    /// The warm-up of a run of epochs is longer than the run.
    #[error("train.warmup_steps is {warmup}, and train.epochs {epochs} makes {steps} steps")]
    WarmUp {
        /// Steps of warm-up.
        warmup: u64,
        /// Passes over the data.
        epochs: f64,
        /// Steps that they are.
        steps: u64,
    },
    /// The run would write more to its drives than it may.
    #[error(transparent)]
    DiskWrites(Box<TooMuch>),
    /// The system starts fewer threads than were asked for.
    #[error("threads: {asked} asked for, about {started} can be started: {why}")]
    Threads {
        /// Threads asked for.
        asked: usize,
        /// About how many could be started.
        started: usize,
        /// What the system said.
        why: String,
    },
    /// A file cannot be used.
    #[error("{}: {what}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A symbolic link stands at the name of an output.
    #[error("{}: a symbolic link, and lowtide does not write through links", path.display())]
    Link {
        /// Path of the link itself.
        path: PathBuf,
    },
    /// Something that lowtide did not write stands at the name of an output.
    #[error("{}: not written by lowtide, and the run would replace it", path.display())]
    NotOurs {
        /// What stands there.
        path: PathBuf,
    },
    /// A directory that lowtide has not written was to be checked.
    #[error("{}: no checkpoint, model or output of lowtide", path.display())]
    NoMark {
        /// The directory that was to be checked.
        path: PathBuf,
    },
    /// An output of which nothing can be checked.
    #[error("{}: {what}", path.display())]
    Nothing {
        /// Where it would be.
        path: PathBuf,
        /// What is not there.
        what: &'static str,
    },
    /// An input of the run stands where an output goes.
    #[error("{key}: {} is (in) {}, which the run writes", input.display(), output.display())]
    Overlap {
        /// The input's key.
        key: &'static str,
        /// Path of the input.
        input: PathBuf,
        /// The directory that the run writes.
        output: PathBuf,
    },
    /// A model is to be exported into what the run itself writes.
    #[error("{}: the run keeps {} for itself", path.display(), own.display())]
    OwnOutput {
        /// Where the model was to be exported.
        path: PathBuf,
        /// What the run writes.
        own: PathBuf,
    },
    /// Where a model is to be exported to is something that is no model of lowtide's.
    #[error("{}: something is there that lowtide has not written as a model", path.display())]
    Taken {
        /// Where the model was to be exported.
        path: PathBuf,
    },
    /// A run has no checkpoint to export.
    #[error("{}: no checkpoint", path.display())]
    NoCheckpoint {
        /// Where they would be.
        path: PathBuf,
    },
    /// Another run has the output directory.
    #[error("{}: another run of lowtide writes into this directory", path.display())]
    Locked {
        /// The file whose lock the other run holds, or the directory.
        path: PathBuf,
    },
    /// The output directory's file system has no locks.
    #[error("{}: cannot be locked against a second run: {what}", path.display())]
    NoLocks {
        /// The file or directory that was to be locked.
        path: PathBuf,
        /// What the system said.
        what: String,
    },
    /// A file system has too little room for what the run will write.
    #[error(
        "{}: the run needs {need} on this file system ({}), and {have} are free",
        path.display(),
        parts.iter().map(|(what, bytes)| format!("{bytes} {what}")).collect::<Vec<_>>().join(", ")
    )]
    Room {
        /// Where the file system is mounted.
        path: PathBuf,
        /// Bytes for all of it.
        need: lowtide_units::Bytes,
        /// Bytes that this user can still write there.
        have: lowtide_units::Bytes,
        /// What takes how many.
        parts: Vec<(String, lowtide_units::Bytes)>,
    },
    /// `checkpoint.resume` names a directory that is no checkpoint but holds some.
    #[error(
        "checkpoint.resume: {}: no checkpoint, but a directory that holds checkpoints",
        path.display()
    )]
    NotACheckpoint {
        /// The directory that `checkpoint.resume` names.
        path: PathBuf,
        /// The newest checkpoint in it.
        newest: PathBuf,
    },
    /// A checkpoint cannot be resumed.
    #[error("{}: a broken checkpoint: {what}", path.display())]
    Broken {
        /// The broken checkpoint's directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// The newest other one of the run; every byte of it is right.
        whole: Option<PathBuf>,
    },
    /// One of the runs that are compared cannot be made.
    #[error("arm {arm}: {source}")]
    Arm {
        /// What the run is called.
        arm: String,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// Two of the runs that are compared would be one.
    #[error("arm {second} is arm {first}: none of its settings makes another run of it")]
    Alike {
        /// The name of the one.
        first: String,
        /// The name of the other one.
        second: String,
    },
    /// The state at the end of a run, or where the run stops for it on the way, could not be saved.
    #[error("the checkpoint of step {step} was not saved: {source}")]
    Unsaved {
        /// Updates that were made.
        step: u64,
        /// Why it was not saved.
        source: Box<Self>,
        /// The newest checkpoint that is there; it is whole.
        older: Option<PathBuf>,
    },
    /// A durable run's state, newer than its checkpoints, that this run does not fit.
    #[error("{}: holds the state after step {step}, and this run cannot go on from it: {what}", path.display())]
    Durable {
        /// The first drive's state file.
        path: PathBuf,
        /// Updates that were made.
        step: u64,
        /// What does not fit.
        what: String,
    },
    /// State that an earlier run asked to keep, which cannot be resumed and is not given up unasked.
    #[error("{}: {what}", path.display())]
    KeptState {
        /// The file that it is about.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// The state files of the run's drives that are there.
        files: Vec<PathBuf>,
        /// The newest checkpoint.
        checkpoint: Option<PathBuf>,
    },
    /// A run had kept steps from which this start would not resume.
    #[error(
        "{}: {absent}, and the run would {}: the steps up to {told}, of which {by} tells, would be lost",
        path.display(),
        match from {
            0 => "begin at step 1".to_owned(),
            step => format!("go on from step {step}"),
        }
    )]
    Lost {
        /// Where what was kept is expected.
        path: PathBuf,
        /// What of it is not there.
        absent: Absent,
        /// The run's output.
        output: PathBuf,
        /// The last step that the output has a record of.
        told: u64,
        /// What has the record: the mark, or a file of the output.
        by: String,
        /// The step from which the start would resume; 0: it would begin anew.
        from: u64,
        /// The newest checkpoint that is there.
        checkpoint: Option<PathBuf>,
    },
    /// A checkpoint belongs to a run with other numbers.
    #[error("{}: made by a run with another {}: {theirs} there, {ours} here", path.display(), keys_of(key))]
    OtherRun {
        /// The checkpoint's directory, or the file that the journal is in.
        path: PathBuf,
        /// What differs, as the numerics key names it.
        key: String,
        /// Its value in the checkpoint.
        theirs: String,
        /// Its value in this run.
        ours: String,
        /// The key whose naming in `checkpoint.change` would allow it, if one would.
        may_change: Option<&'static str>,
        /// The checkpoint's value as an override, where it is one key's.
        again: Option<String>,
    },
    /// A checkpoint is beyond the end of the run.
    #[error("{}: made after step {step}, the run ends at step {total}", path.display())]
    Beyond {
        /// The checkpoint, or the journal.
        path: PathBuf,
        /// Updates that had been made when it was written.
        step: u64,
        /// Steps of the run.
        total: u64,
    },
}
