//! From an error's facts to an exit code and advice: only the command line knows its own flags.
//!
//! One file because each enum's advice is a match of a few words an arm, and whoever writes one looks at its
//! neighbours.

use std::path::{Path, PathBuf};

use lowtide_config::{ConfigError, nearest};
use lowtide_data::DataError;
use lowtide_measure::MeasureError;
use lowtide_planner::Machine;
use lowtide_report::ReportError;
use lowtide_trainer::TrainError;
use lowtide_trainer::error::{
    Absent, Asked, CommError, CudaError, ExecError, FileError, Foreign, JsonProblem, ModelError,
    Refused, TierError,
};
use serde_json::{Value, json};

use crate::out::complain;
use fitting::fitting;

mod fitting;
mod model;
mod paths;
mod ranks;
mod records;

/// Exit code of a bug, and of a difference that `verify` found.
pub const OURS: u8 = 1;
/// Exit code of what the user can put right.
pub const USERS: u8 = 2;

/// Where relative paths begin.
const RELATIVE: &str = "a relative path in the run file begins at that file's directory, one of --set at the \
                        current directory";

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// An error of the crates below.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A plan was asked for and nothing fits; the answer of `plan` comes with it.
    #[error("{}", refused.refusal)]
    Refused {
        /// What was needed and what would fit.
        refused: Box<Refused>,
        /// What the plan was asked for.
        about: Value,
    },
    /// A run cannot be shown.
    #[error(transparent)]
    Report(ReportError),
    /// Arguments that cannot be followed.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do instead.
        help: &'static str,
    },
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<ConfigError> for CliError {
    fn from(e: ConfigError) -> Self {
        Self::Train(e.into())
    }
}

impl From<ExecError> for CliError {
    fn from(e: ExecError) -> Self {
        Self::Train(e.into())
    }
}

impl From<ReportError> for CliError {
    fn from(e: ReportError) -> Self {
        match e {
            ReportError::File(e) => Self::Train(e.into()),
            e => Self::Report(e),
        }
    }
}

impl From<MeasureError> for CliError {
    fn from(e: MeasureError) -> Self {
        Self::Train(e.into())
    }
}

impl From<DataError> for CliError {
    fn from(e: DataError) -> Self {
        Self::Train(e.into())
    }
}

impl CliError {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Train(e) if is_ours(e) => OURS,
            _ => USERS,
        }
    }

    /// Prints the fact and the advice on standard error; returns the JSON answer.
    pub fn report(&self) -> Value {
        let help = self.help();
        complain(&format!("error: {self}"));
        for line in &help {
            complain(&format!("  help: {line}"));
        }
        let mut answer = match self {
            Self::Refused { refused, about } => refusal(refused, about),
            Self::Train(TrainError::Refused(refused)) => refusal(refused, &json!({})),
            _ => json!({}),
        };
        answer["error"] = json!(self.to_string());
        answer["help"] = json!(help);
        answer["exit_code"] = json!(self.code());
        answer
    }

    fn help(&self) -> Vec<String> {
        match self {
            Self::Refused { refused, .. } => fitting(refused),
            Self::Usage { help, .. } => vec![(*help).to_owned()],
            Self::Report(ReportError::NoRun { .. }) => vec![
                "give the directory that the run file names as output, not the model or a checkpoint in it".to_owned(),
            ],
            Self::Report(_) => vec![
                "the file is not as a run wrote it; a copy of the run's output directory may have it whole".to_owned(),
            ],
            Self::Write { .. } => {
                vec!["check that the directory is there and can be written".to_owned()]
            }
            Self::Train(e) => help_of(e),
        }
    }
}

/// What to do about an error, a line each.
fn help_of(e: &TrainError) -> Vec<String> {
    let lines = advice(e);
    match lines.is_empty() {
        true => vec![general(e).to_owned()],
        false => lines,
    }
}

/// Whether it is our bug rather than something the user can put right.
fn is_ours(e: &TrainError) -> bool {
    match e {
        TrainError::Arm { source, .. } => is_ours(source),
        TrainError::WrongPlan(_) => true,
        TrainError::Exec(ExecError::Ranks { source, .. }) => {
            matches!(source, CommError::Differs { .. })
        }
        TrainError::Exec(e) => matches!(e, ExecError::Panic { .. } | ExecError::Stuck { .. }),
        TrainError::Tier(e) => matches!(
            e,
            TierError::Range { .. }
                | TierError::Misaligned { .. }
                | TierError::Lengths { .. }
                | TierError::OutOfDisk { .. }
        ),
        _ => false,
    }
}

/// The JSON of a plan that is refused.
fn refusal(refused: &Refused, about: &Value) -> Value {
    let mut answer = about.clone();
    answer["fits"] = json!(false);
    answer["needed"] = json!(refused.refusal.needed);
    answer["allowed"] = json!(refused.refusal.allowed);
    answer["nearest"] = json!(refused.refusal.nearest);
    if let Some(b) = refused.nearest_micro_batch {
        answer["nearest"]["micro_batch"] = json!(b);
    }
    answer
}

/// What to do about errors that say all that there is to say of themselves: where to look.
fn general(e: &TrainError) -> &'static str {
    match e {
        TrainError::Config(ConfigError::Read { .. }) => {
            "give a run file: YAML, such as examples/quickstart/run.yaml"
        }
        TrainError::Config(ConfigError::Syntax { .. }) => {
            "a run file is one YAML document: keys nested by spaces, special characters in quotes; \
             examples/quickstart/run.yaml is one"
        }
        TrainError::Config(_) => {
            "correct it there, or override it with --set KEY=VALUE; `lowtide schema --markdown` describes \
             every key"
        }
        TrainError::Model(_) => {
            "model.path needs a whole Hugging Face directory (config.json, safetensors, tokenizer): if \
             its download was cut off, get it again"
        }
        TrainError::Data(DataError::Streamed(_)) => {
            "put right what is named, and start the same command again: it goes on from the last checkpoint"
        }
        TrainError::Data(DataError::Record { .. } | DataError::NoRecords { .. }) => {
            "data files hold one JSON object a line; data.format and data.fields say which fields are read"
        }
        TrainError::Data(DataError::Template { .. }) => {
            "correct the template there, or give another: data.chat_template"
        }
        TrainError::Data(DataError::Corrupt { .. } | DataError::UnknownToken { .. }) => {
            "get the tokenizer's files again, or give others: model.tokenizer, data.chat_template"
        }
        TrainError::Device(_) => "set device=cpu to run without a GPU",
        _ => "put right what is named, and start the same command again",
    }
}

/// What there is to go on from.
fn newest(checkpoint: Option<&Path>) -> String {
    match checkpoint {
        Some(path) => format!("the newest checkpoint is whole: {}", path.display()),
        None => "no checkpoint was saved before it".to_owned(),
    }
}

/// What to do about an error, a line each. Long because each error is its own few words, which nothing else says.
fn advice(e: &TrainError) -> Vec<String> {
    let one = |text: &str| vec![text.to_owned()];
    match e {
        TrainError::Refused(refused) => fitting(refused),
        TrainError::OtherKind { .. } => {
            one("models of model_type bert and roberta classify, t5 has an encoder and a decoder, the others predict the \
                 next token; leave out what this one has not")
        }
        TrainError::UnknownShape { name } => {
            let names = shapes();
            let all = names.join(", ");
            match nearest(name, names.iter().map(String::as_str)) {
                Some(near) => vec![
                    format!("did you mean '{near}'?"),
                    format!("there are {all}"),
                ],
                None => vec![format!("there are {all}")],
            }
        }
        TrainError::Path { key, problem, .. } => paths::advice(key, problem),
        TrainError::Budget {
            of: Asked::Disk, ..
        } => one(
            "lower budget.disk, or spread it over directories on several drives: \
             'budget.disk=[{dir: A, size: 100GiB}, {dir: B, size: 100GiB}]'",
        ),
        TrainError::Budget {
            of: Asked::Batch, ..
        } => one(
            "lower train.micro_batch (train.accumulate can rise by as much), train.seq or train.accumulate",
        ),
        TrainError::Budget {
            of: Asked::Parameters,
            ..
        } => one("give fewer, or leave it out"),
        TrainError::DiskWrites(_) => one(
            "allow more, train for fewer steps, or give more host or device memory, so that less lies on the drives",
        ),
        TrainError::Threads { .. }
        | TrainError::Exec(ExecError::Threads { .. })
        | TrainError::Model(ModelError::Threads { .. }) => one(
            "leave threads out to take all cores, or raise the limit on processes (ulimit -u, pids.max)",
        ),
        TrainError::Budget {
            of: Asked::Host | Asked::Device | Asked::DeviceAndHost,
            ..
        } => one(
            "lower budget.host (and, on a CPU, budget.device, whose memory is host memory too); without \
             one the run takes what is free",
        ),
        TrainError::Unlike { .. } => one(
            "choose GPUs that are alike with CUDA_VISIBLE_DEVICES, or lower gpus",
        ),
        TrainError::NoNet { gpus, hosts: 1, .. } => vec![format!(
            "measure it there: lowtide probe --gpus {gpus} --out FILE"
        )],
        TrainError::NoNet { gpus, hosts, .. } => vec![format!(
            "it needs \"network\": {{\"rate\": BYTES_A_SECOND_OF_A_HOST, \"latency\": SECONDS}}, and where a host has \
             several GPUs what those exchange: lowtide probe --gpus {} --out FILE",
            gpus / hosts
        )],
        TrainError::TooLong { positions, .. } => {
            vec![format!(
                "--set train.seq={positions} is the longest this model takes"
            )]
        }
        TrainError::LongAnswers { .. } => one(
            "shorter prompts or answers: --max-new-tokens, or eval.generate.max_new_tokens; of a bench --prompt-tokens and --new-tokens",
        ),
        TrainError::Arm { source, .. } => help_of(source),
        TrainError::Alike { .. } => one(
            "give one of them a key that changes what it does: all make as many steps, without checkpoints and answers",
        ),
        TrainError::Projectors { .. } => one(
            "make room in the output directory, or take another one (output); strategy.lsp.projector=random keeps none",
        ),
        TrainError::Vocabulary { .. } => {
            one("set model.tokenizer to the tokenizer that the model was made with")
        }
        TrainError::NonFinite { step: 0, .. } => one(
            "nothing is trained yet: the model's own numbers overflow. Take another checkpoint of it, or precision=f32",
        ),
        TrainError::NonFinite { checkpoint, .. } => {
            let mut lines = vec![
                "clip gradients (train.clip.mode=exact, a smaller train.clip.norm), lower train.learning_rate or \
                 lengthen its warm-up; train.on_nonfinite=skip leaves out steps whose loss or norm is not finite"
                    .to_owned(),
            ];
            lines.push(newest(checkpoint.as_deref()));
            lines
        }
        TrainError::NoNumbers { .. } => one(
            "its weights are finite, so it was saved after it diverged, or its numbers need precision=f32: take an older checkpoint",
        ),
        TrainError::Spike { checkpoint, .. } => {
            let mut lines = vec![
                "look at the data of this step; train.spike.action=skip leaves such steps out, a larger \
                 train.spike.factor lets them be"
                    .to_owned(),
            ];
            lines.push(newest(checkpoint.as_deref()));
            lines
        }
        TrainError::OtherRun {
            may_change, again, ..
        } => {
            let first = match again {
                Some(again) => format!("give it again to go on with that run (--set {again}, or in the run file)"),
                None => "put it back to go on with that run".to_owned(),
            };
            let mut lines = vec![
                format!("{first}, or start anew in another directory: --set output=DIR"),
                "or start anew here: --set checkpoint.resume=never, which replaces this run's model and its checkpoints"
                    .to_owned(),
            ];
            lines.extend(may_change.map(|key| {
                format!("or go on with the new value from there: --set checkpoint.change=[{key}]")
            }));
            lines
        }
        TrainError::Beyond { .. } => one(
            "make the run longer, or start anew with another output directory or \
             --set checkpoint.resume=never",
        ),
        TrainError::Link { .. } => one("remove the link, or choose another output directory"),
        TrainError::NoMark { .. } | TrainError::Nothing { .. } => one("give a checkpoint (checkpoints/step-N of a run's output), its model, or the output"),
        TrainError::NotOurs { .. } => {
            one("move it away, or choose another output directory: --set output=DIR")
        }
        TrainError::Overlap { .. } => one("choose another output directory: --set output=DIR"),
        TrainError::OwnOutput { .. } => one("export to a directory of its own, such as one beside it"),
        TrainError::Taken { .. } => one("give a directory that is not there yet, or move away what is"),
        TrainError::NoCheckpoint { .. } => one(
            "a run saves when checkpoint.every_steps, checkpoint.every_epochs or checkpoint.every_minutes says so, and at \
             its end; --checkpoint DIR exports one of another directory",
        ),
        TrainError::Locked { .. } => {
            one("wait for that run to end, or give this one another directory: --set output=DIR")
        }
        TrainError::NoLocks { .. } => one(
            "choose an output directory on a file system with locks (a local drive; NFS with its lock \
             service running; Lustre mounted with -o flock): --set output=DIR",
        ),
        TrainError::Room { .. } => one(
            "free some space there, keep fewer checkpoints (--set checkpoint.keep=1), or choose another \
             output directory (--set output=DIR)",
        ),
        TrainError::Unsaved { older, source, .. } => unsaved_advice(source, older.as_deref()),
        TrainError::NotACheckpoint { newest, .. } => vec![
            format!(
                "the newest checkpoint in it: --set checkpoint.resume={}",
                newest.display()
            ),
            "or --set checkpoint.resume=auto, which goes on from the newest one in the output directory"
                .to_owned(),
        ],
        TrainError::Broken { path, whole, .. } => going_on(path, whole.as_deref()),
        TrainError::Durable { .. } => vec![
            "put back what changed (checkpoint.durable, budget.disk, plan.pieces) to go on from that step"
                .to_owned(),
            "or give it up: --set checkpoint.resume=DIR goes on from a checkpoint, \
             --set checkpoint.resume=never starts anew"
                .to_owned(),
        ],
        TrainError::KeptState {
            files, checkpoint, ..
        } => kept_advice(files, checkpoint.as_deref()),
        TrainError::Lost {
            path,
            absent,
            checkpoint,
            ..
        } => lost_advice(path, *absent, checkpoint.as_deref()),
        TrainError::Config(ConfigError::UnknownKey { .. }) => {
            one("`lowtide schema --markdown` lists every key")
        }
        TrainError::Config(ConfigError::UnknownKeys { .. }) => vec![
            "`lowtide schema --markdown` lists every key".to_owned(),
            "a run file of Axolotl: `lowtide import FILE > run.yaml`; docs/coming-from.md has the keys of Axolotl, TRL, \
             torchtune, LLaMA-Factory and DeepSpeed beside lowtide's"
                .to_owned(),
        ],
        TrainError::Config(ConfigError::NotAxolotl { .. }) => one(
            "only run files of Axolotl are brought over; of TRL, torchtune, LLaMA-Factory and DeepSpeed \
             docs/coming-from.md has the keys beside lowtide's: write a run file by it",
        ),
        TrainError::WarmUp { .. } => one(
            "lower train.warmup_steps, say it as a share of the steps (train.warmup_ratio), or raise train.epochs",
        ),
        TrainError::Read(e)
        | TrainError::Config(ConfigError::Read(e))
        | TrainError::Model(ModelError::File(e)) => file_advice(e),
        TrainError::Model(e) => model::advice(e),
        TrainError::Config(_) | TrainError::File { .. } => Vec::new(),
        TrainError::Data(e) => data_advice(e),
        TrainError::Tier(e) => tier_advice(e),
        TrainError::Cuda(e) | TrainError::Exec(ExecError::Device { source: e, .. }) => {
            cuda_advice(e)
        }
        TrainError::Direct(_) => one(
            "set plan.direct to never, or measure again what this machine can do: lowtide probe --disk DIR",
        ),
        TrainError::Device(_) | TrainError::Stopped => Vec::new(),
        TrainError::Meet(e) => ranks::meeting_advice(e),
        TrainError::Launch(_) => ranks::launch_advice(),
        TrainError::RankLimit { name, most, .. } => vec![format!("without {name} it is {most}")],
        TrainError::Exec(ExecError::Disk { .. }) => one(
            "check the drive; the newest checkpoint is whole (of a durable run the last step too, if \
             its drive can be read), and the same command goes on from it",
        ),
        TrainError::Exec(ExecError::Stuck { chain, .. }) if ranks::are_in(chain) => {
            ranks::standstill_advice()
        }
        TrainError::Exec(ExecError::Panic { .. } | ExecError::Stuck { .. })
        | TrainError::WrongPlan(_) => {
            one("this is a bug in lowtide: please report it with the command and its output")
        }
        TrainError::Exec(ExecError::Ranks { source, .. }) => ranks::advice(source),
        TrainError::Exec(_) => Vec::new(),
    }
}

/// What to do about the last save, and where the run stands.
fn unsaved_advice(why: &TrainError, older: Option<&Path>) -> Vec<String> {
    let full = ["No space left", "quota exceeded"];
    let first = match why {
        TrainError::Room { .. } => "free some space".to_owned(),
        e if full.iter().any(|word| e.to_string().contains(word)) => "free some space".to_owned(),
        e => advice(e)
            .into_iter()
            .next()
            .unwrap_or_else(|| "put right what is named".to_owned()),
    };
    vec![match older {
        Some(path) => format!(
            "{first}; the same command goes on from {}, which is whole",
            path.display()
        ),
        None => format!("{first}; there is no earlier checkpoint"),
    }]
}

/// How to go on without a checkpoint that is broken.
fn going_on(broken: &Path, whole: Option<&Path>) -> Vec<String> {
    match whole {
        Some(whole) => vec![
            format!("{} is whole", whole.display()),
            format!(
                "to go on from it: --set checkpoint.resume={}",
                whole.display()
            ),
        ],
        None => vec![
            format!(
                "no other checkpoint of this run is whole; put {} back from a copy, if there is one",
                broken.display()
            ),
            "to start anew: --set checkpoint.resume=never".to_owned(),
        ],
    }
}

/// What to do about a file that is not what its name says.
fn file_advice(e: &FileError) -> Vec<String> {
    let text = match e {
        FileError::Missing { .. } => RELATIVE,
        FileError::Dangling { .. } => {
            "fetch or copy the file that the link names (in a cache of Hugging Face's, download the \
             model again)"
        }
        FileError::NotRegular { .. } => {
            "such files are read more than once and with a known end: write the bytes to a file and \
             name that one"
        }
        FileError::Foreign { kind, .. } => foreign_advice(*kind),
        FileError::Empty { .. } => {
            "write what it is to hold, or fetch it again if its download was cut off"
        }
        FileError::Json {
            problem: JsonProblem::NotANumber { .. },
            ..
        } => {
            "Python's json writes NaN and Infinity, which JSON does not have: put a number or null in \
             its place, or leave the key out"
        }
        _ => return Vec::new(),
    };
    vec![text.to_owned()]
}

fn foreign_advice(kind: Foreign) -> &'static str {
    match kind {
        Foreign::LfsPointer => {
            "the repository was cloned without its large files: run `git lfs pull` in its directory"
        }
        Foreign::Page => "the download saved a page instead of the file: fetch the file again",
        Foreign::Zip | Foreign::Gguf => {
            "weights must be safetensors: load the model with transformers and save it with \
             save_pretrained(DIR)"
        }
        Foreign::Gzip | Foreign::Zstd => "unpack it first",
        Foreign::Parquet => "write it as JSONL first (datasets: Dataset.to_json)",
    }
}

fn data_advice(e: &DataError) -> Vec<String> {
    let text = match e.itself() {
        DataError::Record { problem, .. } => return records::advice(problem),
        DataError::ForeignFile { what, path } => return records::conversion(*what, path),
        DataError::AllSkipped { .. } => {
            "data.on_error=stop shows what is wrong with the first record"
        }
        DataError::File(e) => return file_advice(e),
        DataError::NoChatTemplate { .. } => {
            "give data.chat_template, or a tokenizer directory that has one"
        }
        DataError::OtherTokenizer { .. } => {
            "convert it once: python -c \"from transformers import AutoTokenizer as T; \
             T.from_pretrained('DIR').save_pretrained('DIR')\" (needs sentencepiece or tiktoken)"
        }
        DataError::Hostile { .. } => {
            "the file is damaged or made to harm: fetch it again from where the model was published"
        }
        DataError::NothingSupervised { .. } => {
            "check data.format, data.train_on and train.seq: no token would carry loss"
        }
        DataError::ParquetMemory { .. } => {
            "raise budget.host, or write the file with smaller row groups (pyarrow: write_table(row_group_size=1000))"
        }
        DataError::Examples { .. } => {
            "let tokens be kept on disk (data.cache: auto, or a folder with room), raise budget.host, or name fewer or \
             smaller files in data.train"
        }
        DataError::Kept { .. } => {
            "name another folder, with room, in data.cache, or without data.streaming hold tokens in memory (data.cache: \
             none); what is damaged is made anew at the next start"
        }
        DataError::Changed { .. } => {
            "let nothing write to data files while a run streams them; a run that goes on refuses other data than it began with"
        }
        DataError::WeightOfNone { .. } => {
            "raise data.train[i].weight until it leaves an example, or leave the file out"
        }
        DataError::WeightTooLarge { .. } => "lower data.train[i].weight, or raise budget.host",
        DataError::SplitOfTwice { .. } => {
            "use one entry with a weight: `{path: FILE, weight: 2}` has each example twice, and on one side only"
        }
        DataError::Parquet { .. } => {
            "fetch it again; where it is whole, write it as JSONL (datasets: Dataset.to_json, pandas: DataFrame.to_json)"
        }
        DataError::SplitOfAll { .. } => "keep fewer, name a file in data.eval, or add examples",
        DataError::SplitOfOne { .. } => "name a file in data.eval, or add examples",
        DataError::AllDropped { .. } => {
            "set train.last_batch to keep or fill, or lower train.micro_batch or train.accumulate"
        }
        DataError::Missing { .. } => RELATIVE,
        _ => return Vec::new(),
    };
    vec![text.to_owned()]
}

fn cuda_advice(e: &CudaError) -> Vec<String> {
    let text = match e {
        CudaError::NoDevice(_) => {
            "install NVIDIA's driver (nvidia-smi should list the GPU), or set device=cpu"
        }
        CudaError::Ordinal { .. } => "CUDA_VISIBLE_DEVICES chooses the GPU that is cuda:0",
        CudaError::TooOld { .. } => "set device=cpu, or use an Ampere or later GPU",
        CudaError::Driver { .. } => {
            "update NVIDIA's driver, or install the -cu12 packages of the libraries"
        }
        CudaError::Library { library, .. } => {
            let package = library.package();
            return vec![
                format!("pip install {package} (any Python environment with PyTorch 2.11 has it)"),
                "or set LOWTIDE_CUDA_LIBS to the folder of the library".to_owned(),
            ];
        }
        CudaError::Environment { name, .. } => return vec![format!("unset {name}")],
        CudaError::Pace { .. } | CudaError::NoLink => {
            return vec![format!("unset {}", CudaError::PACE)];
        }
        CudaError::Memory { .. } => {
            "lower budget.device, or end what else uses the GPU (nvidia-smi lists it)"
        }
        CudaError::Pin { limit: None, .. } => {
            "lower budget.host: the driver refuses to pin as much"
        }
        CudaError::Pin { .. } => {
            "raise the limit of locked memory (ulimit -l), or lower budget.host"
        }
        CudaError::BadLibrary { .. } => {
            "set LOWTIDE_CUDA_LIBS to a folder with one version of the library and its parts"
        }
        CudaError::Compile { .. } => {
            "this is a bug in lowtide, or a compiler it does not know: please report it"
        }
        CudaError::Call { .. } => "LOWTIDE_SYNC=1 names the task at which it happens",
    };
    vec![text.to_owned()]
}

/// How to go on where what a run has kept is not there.
fn lost_advice(path: &Path, absent: Absent, checkpoint: Option<&Path>) -> Vec<String> {
    let dir = path.parent().unwrap_or(path);
    let back = match absent {
        Absent::Checkpoint => "put it back from a copy, if there is one".to_owned(),
        Absent::State => format!("put it back (is the drive of {} mounted?)", dir.display()),
        Absent::Elsewhere => format!(
            "name that directory again to go on from there: budget.disk in the run file, {}",
            dir.display()
        ),
    };
    let mut lines = vec![format!("nothing was changed: {back}")];
    lines.extend(checkpoint.map(|dir| {
        format!(
            "or go on from the newest checkpoint, and make the steps behind it again: --set \
             checkpoint.resume={}",
            dir.display()
        )
    }));
    lines.push(
        "or begin again at step 1, over what is there: --set checkpoint.resume=never; or elsewhere: --set \
         output=DIR"
            .to_owned(),
    );
    lines
}

fn kept_advice(files: &[PathBuf], checkpoint: Option<&Path>) -> Vec<String> {
    let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    let (resume, then) = match checkpoint {
        Some(dir) => (
            dir.display().to_string(),
            format!("goes on from {}", dir.display()),
        ),
        None => (
            "never".to_owned(),
            "begins at step 1, no checkpoint was saved".to_owned(),
        ),
    };
    vec![
        "nothing was changed: put back what is missing or was damaged, if you can (a drive that is not \
         mounted, a copy of the file)"
            .to_owned(),
        format!(
            "or move or delete {} and start with --set checkpoint.resume={resume}: the run then {then}",
            files.join(" and ")
        ),
    ]
}

fn tier_advice(e: &TierError) -> Vec<String> {
    let text = match e {
        TierError::Space { .. } => {
            "free some space, or spread budget.disk over several directories"
        }
        TierError::InUse { .. } => {
            "another run or probe uses it: wait for that one, or give this one another directory"
        }
        TierError::NoLocks { .. } => {
            "its file system has no locks (flock), so two runs could write there at once: name a \
             directory on a local drive, or mount that file system with locks (NFS: with lockd; \
             Lustre: -o flock)"
        }
        TierError::BadFile { .. } => {
            "move it away or delete it if nobody needs it, or name another directory"
        }
        TierError::HostMemory { limit, .. } if limit.is_group() => {
            "raise the memory limit of the container (its control group), or lower budget.host and \
             budget.device (the CPU device's memory is host memory too)"
        }
        TierError::Kept { .. } => {
            "a durable run that did not end left it: go on with that run, or give this one other \
             directories in budget.disk; if nobody wants that run's last steps, delete the file"
        }
        TierError::HostMemory { .. } | TierError::Map { .. } => {
            "lower budget.host and budget.device (the CPU device's memory is host memory too)"
        }
        TierError::File { .. } => "check that the directories of budget.disk can be written",
        _ => return Vec::new(),
    };
    vec![text.to_owned()]
}

/// Names of the built-in shapes, as the schema has them.
fn shapes() -> Vec<String> {
    let schema = lowtide_config::schema();
    let names = schema["properties"]["model"]["properties"]["shape"]["enum"].as_array();
    names
        .into_iter()
        .flatten()
        .filter_map(|n| n.as_str().map(str::to_owned))
        .collect()
}

/// Prints a note about where a machine's rates come from; returns it for JSON.
pub fn machine_json(machine: &Machine) -> Value {
    json!({ "name": machine.name, "date": machine.date, "source": machine.source })
}
