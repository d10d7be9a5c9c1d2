//! The command line's grammar.
//!
//! One file because it is one grammar, which `--help` shows in this order.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use lowtide_config::Run;
use lowtide_trainer::{Names, StepOptions, resolve};

use crate::error::CliError;

/// Fine-tunes language models that do not fit: every tensor of a step lives on the device, in host
/// memory or on disk by a plan that is checked before anything runs.
#[derive(Debug, Parser)]
#[command(name = "lowtide", version, propagate_version = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print one JSON object as the last line of standard output, and the rest on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// Tell more: the planner's choices, threads, how the disk is reached, hashes of masks.
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// Whether a command line that is not understood asks for an answer that a program reads.
pub fn asks_for_json(args: impl IntoIterator<Item = OsString>) -> bool {
    let options = args.into_iter().skip(1).take_while(|arg| arg != "--");
    options
        .into_iter()
        .any(|arg| arg == "--json" || arg == "--events")
}

impl Args {
    /// Whether a program reads standard output.
    pub fn json(&self) -> bool {
        self.json || matches!(&self.command, Command::Train(args) if args.events)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a run, or go on with it from its newest checkpoint.
    Train(TrainArgs),
    /// Show where everything would live and how long a step would take. Reserves nothing.
    Plan(PlanArgs),
    /// Measure this machine and store its rates.
    Probe(ProbeArgs),
    /// Prove on a slice of the model that the run's plan gives the bits of an all-resident one.
    Verify(VerifyArgs),
    /// Loss (and exact match, if the run asks for it) on the run's evaluation data.
    Eval(EvalArgs),
    /// Write the model of a run's checkpoint as a Hugging Face directory: in another type, in smaller files, or before
    /// the run has ended.
    Export(ExportArgs),
    /// Continue a text or answer a message, to look at a model.
    Generate(GenerateArgs),
    /// Measure how fast this machine does something.
    Bench(BenchArgs),
    /// Read every file of a checkpoint, a model or an output and hold it against its checksum.
    Check(CheckArgs),
    /// Show a run's data: what is trained on, what is cut and left out, lengths. Loads no weights.
    Data(DataArgs),
    /// Show a run, or several beside each other, by their output directories, while they go on or afterwards.
    Report(ReportArgs),
    /// Train some steps exactly and in subspaces, or with other settings, and hold losses and times against each other.
    /// Saves no checkpoint and no model.
    Compare(CompareArgs),
    /// Print a run file made of another trainer's (Axolotl's), with what was not taken over.
    Import(ImportArgs),
    /// Print the JSON schema of a run file.
    Schema {
        /// Print the reference of all keys as Markdown instead.
        #[arg(long)]
        markdown: bool,
    },
    /// Print completions for a shell: `lowtide completions bash > /etc/bash_completion.d/lowtide`.
    Completions {
        /// Whose syntax they are written in.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or that of a command: `lowtide man train | man -l -`.
    Man(ManArgs),
}

/// Which manual page.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The command; all of them in short when left out.
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
}

/// What to check.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// A checkpoint, an exported model, or the output directory of a run with all of them.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// What to import.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The run file of Axolotl.
    #[arg(value_name = "AXOLOTL.yaml")]
    pub file: PathBuf,
}

/// What to train.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// For programs: print each step, evaluation and checkpoint on standard output when it is finished, as a line of
    /// JSON with the key `event`. With the answer behind them, as by --json.
    #[arg(long)]
    pub events: bool,
    /// On a terminal: print lines, as without one, in place of the live view.
    #[arg(long)]
    pub plain: bool,
}

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Steps of each arm: 100, or all of a run that has fewer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// A key of an arm beside the run as it is, which is the first arm; may be repeated: for more keys of an arm by its
    /// name again, for more arms by another. Without: exact training and training in subspaces (strategy.name).
    #[arg(long = "arm", value_name = "NAME:KEY=VALUE")]
    pub arms: Vec<OsString>,
    /// Also draw them as one page, which opens without a network: losses by step and by time, lanes, plans.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Data to show.
#[derive(Debug, clap::Args)]
pub struct DataArgs {
    #[command(flatten)]
    pub run: RunFile,
    /// Also draw them as one page, which opens without a network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Samples of each set.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub samples: u32,
}

/// Runs to show.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// Output directories of runs (the run file's `output`).
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    /// Also draw them as one page, which opens without a network: curves, times by lane, answers, settings.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// A run file with overrides, for what is the same for any number of GPUs.
#[derive(Debug, clap::Args)]
pub struct RunFile {
    /// The run file. Written as @RUN.yaml, its paths are relative to the current directory instead of to the file.
    #[arg(value_name = "RUN.yaml")]
    pub file: PathBuf,
    /// Override a key of the run file; may be repeated, later ones win. Paths in it are relative to the
    /// current directory (those in the file to the file's). `--set @FILE`
    /// reads overrides from FILE, one a line.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<OsString>,
}

impl RunFile {
    /// The same, as commands have it that may be given a number of GPUs.
    pub fn args(&self) -> RunArgs {
        RunArgs {
            file: self.file.clone(),
            gpus: None,
            sets: self.sets.clone(),
        }
    }
}

/// A run file with overrides.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The run file. Written as @RUN.yaml, its paths are relative to the current directory instead of to the file.
    #[arg(value_name = "RUN.yaml")]
    pub file: PathBuf,
    /// GPUs of this machine that train together (the key `gpus`): 1, 2, 4, 8 or 16.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub gpus: Option<u32>,
    /// Override a key of the run file; may be repeated, later ones win. Paths in it are relative to the
    /// current directory (those in the file to the file's). `--set @FILE`
    /// reads overrides from FILE, one a line.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<OsString>,
}

impl RunArgs {
    /// Reads and checks the run; a model that it names as the Hugging Face Hub does is found, or fetched without its
    /// weights, and so is data.
    pub fn load(&self) -> Result<Run, CliError> {
        Ok(resolve(self.read()?, Names::Data)?)
    }

    /// As [`RunArgs::load`], with what the cache has of its data; nothing of that is fetched.
    pub fn load_with_data_in_cache(&self) -> Result<Run, CliError> {
        Ok(resolve(self.read()?, Names::DataInCache)?)
    }

    /// The run as one of so many ranks that a launcher has started: `gpus` is their number where it is left out.
    pub fn load_for(&self, (ranks, hosts): (usize, usize)) -> Result<Run, CliError> {
        let mut run = self.read()?;
        if run.gpus == 1 {
            let with = Self {
                file: self.file.clone(),
                gpus: Some(ranks as u32),
                sets: self.sets.clone(),
            };
            run = with.read()?;
        }
        if run.gpus as usize != ranks {
            return Err(CliError::Usage {
                what: format!("gpus is {}, and {ranks} ranks were started", run.gpus),
                help: "leave gpus out, or start as many ranks",
            });
        }
        run.hosts = hosts as u32;
        Ok(resolve(run, Names::Data)?)
    }

    /// As [`RunArgs::load`], with these keys on top.
    pub fn load_with(&self, more: &[String]) -> Result<Run, CliError> {
        let with = Self {
            file: self.file.clone(),
            gpus: self.gpus,
            sets: self
                .sets
                .iter()
                .cloned()
                .chain(more.iter().map(OsString::from))
                .collect(),
        };
        with.load()
    }

    fn read(&self) -> Result<Run, CliError> {
        if self.file.is_dir() {
            return Err(CliError::Usage {
                what: format!(
                    "{}: a directory, not a file: the first argument is a run file",
                    self.file.display()
                ),
                help: "give the run file, RUN.yaml, that the run was started with; eval and generate take the model \
                       that it has made, or another one with --model DIR",
            });
        }
        let mut sets: Vec<String> = self.gpus.iter().map(|n| format!("gpus={n}")).collect();
        sets.extend(overrides(&self.sets)?);
        Ok(Run::load(&self.file, &sets)?)
    }

    /// The run with another model: `model` if given, else the one that the run has made already,
    /// else the run's own.
    pub fn load_with_model(&self, model: Option<&Path>, names: Names) -> Result<Run, CliError> {
        let run = self.read()?;
        let made = run.output.join("model");
        let model = match model {
            Some(model) => std::path::absolute(model).unwrap_or_else(|_| model.to_owned()),
            None if made.exists() => made,
            None => return Ok(resolve(run, names)?),
        };
        // Its tokenizer may be on the Hub all the same.
        Ok(resolve(run.with_model(model), names)?)
    }
}

/// Arguments that must be text: a run file and its overrides are.
pub fn texts(flag: &str, given: &[OsString]) -> Result<Vec<String>, CliError> {
    let text = |arg: &OsString| {
        let known = arg.to_str().map(str::to_owned);
        known.ok_or_else(|| CliError::Usage {
            what: format!("{flag} {}: not UTF-8", arg.to_string_lossy()),
            help: "go into the directory and give a relative path, or give a link to it that has a \
                   name in UTF-8",
        })
    };
    given.iter().map(text).collect()
}

/// Overrides of keys as they are given, `@FILE` as the lines of the file.
pub fn overrides(given: &[OsString]) -> Result<Vec<String>, CliError> {
    let mut all = Vec::new();
    for text in texts("--set", given)? {
        match text.strip_prefix('@') {
            Some(file) => all.extend(Run::overrides_of(Path::new(file))?),
            None => all.push(text),
        }
    }
    Ok(all)
}

/// Directories of drives, no more than a run can be striped over, and each once.
pub fn directories(flag: &str, given: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let whole = |dir: &PathBuf| std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let all: std::collections::BTreeSet<PathBuf> = given.iter().map(whole).collect();
    let what = match (given.len(), all.len()) {
        (n, _) if n > 64 => format!("{flag}: {n} directories, at most 64 drives are possible"),
        (n, m) if n != m => format!("{flag}: one directory is given twice"),
        _ => return Ok(given.to_vec()),
    };
    let help = "give one directory for each drive";
    Err(CliError::Usage { what, help })
}

/// What to plan.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["file", "shape"])))]
pub struct PlanArgs {
    /// The run file.
    #[arg(value_name = "RUN.yaml")]
    pub file: Option<PathBuf>,
    /// A built-in shape instead of a run file, such as gpt3-175b.
    #[arg(
        long,
        value_name = "NAME",
        requires = "device_memory",
        requires = "host_memory"
    )]
    pub shape: Option<String>,
    /// Sequences computed at once.
    #[arg(long, value_name = "B")]
    pub micro_batch: Option<u32>,
    /// Tokens of a sequence.
    #[arg(long, value_name = "T")]
    pub seq: Option<u32>,
    /// Micro-batches of one update.
    #[arg(long, value_name = "M")]
    pub accumulate: Option<u32>,
    /// GPUs of this machine that train together (the key `gpus`): 1, 2, 4, 8 or 16.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub gpus: Option<u32>,
    /// Hosts that these GPUs are spread over, each with as many and with the budgets of host and disk; with --machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16), requires = "machine")]
    pub hosts: Option<u32>,
    /// Device memory allowed, such as 24GiB; of several GPUs that of each.
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<String>,
    /// Host memory allowed.
    #[arg(long, value_name = "SIZE")]
    pub host_memory: Option<String>,
    /// Disk space allowed: a size, or a size in a directory (then repeatable, one a drive).
    #[arg(long, value_name = "[DIR=]SIZE")]
    pub disk: Vec<OsString>,
    /// Rates to plan with, as `lowtide probe` writes them. Without: the run's `plan.machine` or
    /// this machine, probed; for a shape the reference H200 of examples/machines/h200.json.
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Type of weights and activations.
    #[arg(long)]
    pub precision: Option<Precision>,
    /// By which norm gradients are clipped.
    #[arg(long)]
    pub clip: Option<Clip>,
    /// Override a key of the run; may be repeated, later ones win. Paths in it are relative to the
    /// current directory (those in the file to the file's). `--set @FILE`
    /// reads overrides from FILE, one a line.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<OsString>,
    /// Only the plan: not what other choices, budgets and links would give, nor what training in subspaces is compared
    /// with, which takes several times as long as the plan.
    #[arg(long)]
    pub brief: bool,
    /// Plan also what becomes of saved tensors (recompute, offload, auto) over device memory, or over
    /// micro-batches of other sizes, which are other numbers. Takes some twenty plans.
    #[arg(long, value_name = "OVER")]
    pub curve: Option<CurveOver>,
    /// The planned step as a picture, what each lane does when; with `--curve` the curve.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// The curve as a page: picture and table.
    #[arg(long, value_name = "FILE", requires = "curve")]
    pub html: Option<PathBuf>,
}

/// What `--curve` goes over.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CurveOver {
    /// Device memory allowed.
    Device,
    /// Sequences of a micro-batch.
    Batch,
}

/// Types of numbers that `--precision` knows.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Precision {
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
}

/// Modes that `--clip` knows.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Clip {
    /// By this step's norm.
    Exact,
    /// By the norm of the step before.
    Previous,
    /// Not at all.
    None,
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// A run file: its operations are timed at their own shapes, and its drives.
    #[arg(value_name = "RUN.yaml")]
    pub file: Option<PathBuf>,
    /// A directory on a drive to measure; may be repeated, one a drive.
    #[arg(long, value_name = "DIR")]
    pub disk: Vec<PathBuf>,
    /// Bytes that these drives together are rated for over their life, such as 600TB, as their maker says: `plan` then
    /// tells how long a run may go on.
    #[arg(long, value_name = "SIZE", requires = "disk")]
    pub disk_rated_writes: Option<String>,
    /// Where the rates are stored.
    #[arg(long, value_name = "FILE", default_value = "machine.json")]
    pub out: PathBuf,
    /// Also measure what so many GPUs exchange with each other; without: as many as the run has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub gpus: Option<u32>,
    /// What to measure: `cpu`, `cuda:0` or `auto`; without: the run's device.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Threads that compute; without: the run's, or all cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Override a key of the run file; may be repeated, later ones win. Paths in it are relative to the
    /// current directory (those in the file to the file's). `--set @FILE`
    /// reads overrides from FILE, one a line.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "file")]
    pub sets: Vec<OsString>,
}

/// What to bench.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: Bench,
}

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Train a shape with random weights on random tokens, and time its steps.
    Step(Box<BenchStepArgs>),
    /// Make answers of a shape with random weights to random prompts, with keys and values that are kept, and time
    /// them.
    Generate(Box<BenchGenerateArgs>),
    /// AdamW on the host's cores: its rate, its share of a copy of memory, and what copies and I/O
    /// beside it cost.
    Host(BenchHostArgs),
    /// Copies between host memory and the GPU by size: each way, and both at once.
    Links(BenchLinksArgs),
    /// A drive through the disk lane: reads, writes and the optimizer's mixes, against plain threads.
    Disk(BenchDiskArgs),
}

/// The host to measure.
#[derive(Debug, clap::Args)]
pub struct BenchHostArgs {
    /// Threads that update; without: as a run would take.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Parameters; without: 2^28, or what fits half of free memory.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(256..))]
    pub parameters: Option<u64>,
    /// A directory on a drive whose transfers run beside; may be repeated, one a drive.
    #[arg(long, value_name = "DIR")]
    pub disk: Vec<PathBuf>,
    /// Whose copies run beside: `cpu`, `cuda:0` or `auto`.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Seconds for each figure.
    #[arg(
        long,
        value_name = "S",
        default_value_t = 0.3,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
}

/// The links to measure.
#[derive(Debug, clap::Args)]
pub struct BenchLinksArgs {
    /// Seconds for each figure.
    #[arg(
        long,
        value_name = "S",
        default_value_t = 0.3,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
}

/// The drive to measure.
#[derive(Debug, clap::Args)]
pub struct BenchDiskArgs {
    /// A directory on the drive.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Size of the file; more than the drive's own cache.
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    pub size: String,
    /// Seconds for each figure.
    #[arg(
        long,
        value_name = "S",
        default_value_t = 3.0,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
}

/// A step to time.
#[derive(Debug, clap::Args)]
pub struct BenchStepArgs {
    /// What to train, where, under which budgets.
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Steps that are timed, after `--warm-up` that are not. One more is under way behind the last.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub steps: u64,
    /// Steps before the first that is timed. With none, where a step takes minutes: the first step has no update of
    /// one before it, and has all that is made at its first use.
    #[arg(long, value_name = "N", default_value_t = StepOptions::WARM_UP,
        value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub warm_up: u64,
    /// Write what every lane did to this file, for Perfetto; the steps then take a little longer.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Then time as many steps without checkpoints and as many with them, which are written to this directory and
    /// removed.
    #[arg(long, value_name = "DIR")]
    pub checkpoints: Option<PathBuf>,
    /// A checkpoint each so many of these steps.
    #[arg(long, value_name = "N", default_value_t = 5, requires = "checkpoints",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub checkpoint_every: u64,
}

/// Answers to time.
#[derive(Debug, clap::Args)]
pub struct BenchGenerateArgs {
    /// Of what, where, under which budgets.
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub prompt_tokens: u32,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub new_tokens: u32,
    /// Answers that are made at once.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=256))]
    pub answers: u32,
}

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Steps to train both ways.
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub steps: u64,
    /// Blocks of the slice.
    #[arg(long, value_name = "K", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub blocks: u32,
    /// Spoil one bit, to see that the comparison finds it.
    #[arg(long, hide = true)]
    pub plant_fault: bool,
}

/// What to evaluate.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// A Hugging Face model directory; without: the model that the run has made, or starts from.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Make so many answers at once with keys and values that are kept, in a session of their own: many times as
    /// fast, and with other last bits than answers without a cache.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cached: Option<u32>,
}

/// What the help of `export` ends with.
const EXPORT: &str = "\
DIR gets what transformers and vLLM read: config.json, the weights as model.safetensors, or in several \
files with an index, the tokenizer's files, generation_config.json, and README.md, the model's card. It is written \
under another name and renamed when it is whole. The run's checkpoints stay as they are.

Examples:
  lowtide export run.yaml model                                the best checkpoint, or the newest
  lowtide export run.yaml model --dtype f32 --shard-size 2GiB  master weights, in files of 2 GiB
  lowtide export run.yaml early --checkpoint out/checkpoints/step-00000050";

/// What to export.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXPORT)]
pub struct ExportArgs {
    #[command(flatten)]
    pub run: RunFile,
    /// The model's directory: a new one, an empty one, or a model that lowtide has written, which is replaced when the
    /// new one is whole.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// A checkpoint (checkpoints/step-N of an output); without: the best one where the run keeps it
    /// (`checkpoint.keep_best`), else the newest.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Type of the numbers; without: the run's precision. f32 and f16 are made of the f32 master weights.
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<FileDtype>,
    /// Largest file of weights, such as 5GB or 2GiB; a tensor that is larger has one of its own.
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub shard_size: String,
}

/// Types of numbers that `export --dtype` knows.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FileDtype {
    /// IEEE single: the master weights to the bit.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half; a weight beyond 65504 is refused.
    F16,
}

/// What to generate from.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("from").args(["prompt", "message"])))]
pub struct GenerateArgs {
    #[command(flatten)]
    pub run: RunFile,
    /// Text to continue.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A user's message to answer, by the chat template.
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// A Hugging Face model directory; without: the model that the run has made, or starts from.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Most new tokens; without: the run's `eval.generate.max_new_tokens`.
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<u32>,
    /// Keep no keys and values: each token runs all before it again, with the bits of `eval` and of answers during
    /// training.
    #[arg(long)]
    pub no_cache: bool,
    /// 0 takes the most likely token each time.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub temperature: f64,
    /// Choose among the most likely tokens that together have this probability.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub top_p: f64,
    /// Seed of the choice.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn benches_have_their_own_arguments() {
        let parses = |line: &str| Args::try_parse_from(line.split(' ')).is_ok();
        assert!(parses(
            "lowtide bench host --threads 4 --parameters 4096 --disk a --disk b"
        ));
        assert!(parses("lowtide bench links --json"));
        assert!(parses("lowtide bench disk --dir a --size 1GiB"));
        assert!(!parses("lowtide bench disk"));
        assert!(!parses("lowtide bench host --parameters 0"));
    }

    #[test]
    fn a_plan_is_of_a_run_or_of_a_shape_with_budgets() {
        let parses = |line: &str| Args::try_parse_from(line.split(' ')).is_ok();
        assert!(parses("lowtide plan run.yaml"));
        assert!(parses(
            "lowtide plan --shape x --device-memory 1GiB --host-memory 1GiB"
        ));
        assert!(!parses("lowtide plan"));
        assert!(!parses(
            "lowtide plan run.yaml --shape x --device-memory 1 --host-memory 1"
        ));
        assert!(!parses("lowtide plan --shape x --device-memory 1GiB"));
        // Without a text the command itself says what is missing.
        assert!(parses("lowtide generate run.yaml"));
        assert!(!parses("lowtide generate run.yaml --prompt a --message b"));
    }
}
