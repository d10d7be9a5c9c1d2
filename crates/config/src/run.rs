//! The run as checked: plain data, every default filled in, every path absolute.
//!
//! One file because it is one value, and its parts stand in the order of the reference.

use std::path::PathBuf;

use lowtide_units::Bytes;
use lowtide_workload::{Batch, Dtype, Lsp, Moments, OptimizerName};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::error::ConfigError;
use crate::words::{
    Activations, ClipMode, Device, Direct, Format, Init, KeepBest, LastBatch, LoopOrder, NonFinite,
    Offload, OnError, OnUnsaved, Pieces, ScheduleShape, SpikeAction, Strategy, TextBy, Tier,
    TrainOn, UpdateOn,
};
use lowtide_files::shown;

/// A run that is allowed. Whether its files exist and the machine holds it is for others to see.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Name of the run file, for messages.
    pub file: String,
    /// What is trained.
    pub model: Model,
    /// Type of weights and activations in the products.
    pub precision: Dtype,
    /// What computes: the CPU or a GPU.
    pub device: Device,
    /// How many of them train together: a power of two, of which `train.accumulate` is a multiple.
    pub gpus: u32,
    /// Over how many hosts they are spread, each with as many, as a launcher says it; budgets are each host's.
    #[serde(skip)]
    pub hosts: u32,
    /// Seed of the shuffle and of random weights.
    pub seed: u64,
    /// Directory of everything the run writes.
    #[serde(serialize_with = "shown::path")]
    pub output: PathBuf,
    /// Threads that compute; `None`: all cores.
    pub threads: Option<u32>,
    /// Memory it may use.
    pub budget: Budget,
    /// What is trained on.
    pub data: Data,
    /// Batch, steps, learning rate and clipping.
    pub train: Train,
    /// The optimizer with its settings.
    pub optimizer: Optimizer,
    /// How the blocks' matrices are trained in subspaces; `None`: as they are.
    #[serde(rename = "strategy", serialize_with = "as_strategy")]
    pub lsp: Option<Lsp>,
    /// The planner's knobs.
    pub plan: Plan,
    /// When and on how much to evaluate.
    pub eval: Eval,
    /// Saving and resuming.
    pub checkpoint: Checkpoint,
    /// What is recorded.
    pub log: Log,
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Where its dimensions come from.
    pub source: ModelSource,
    /// Where its first weights come from; always random without a directory.
    pub init: Init,
    /// `model.path` as typed, for messages.
    #[serde(skip)]
    pub path_typed: Option<String>,
    /// `model.tokenizer` as typed, for messages.
    #[serde(skip)]
    pub tokenizer_typed: Option<String>,
    /// Directory of the tokenizer or its `tokenizer.json`: the one given, or the model's directory.
    #[serde(serialize_with = "shown::option")]
    pub tokenizer: Option<PathBuf>,
    /// Names of its classes; empty: the model's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// Where a model's dimensions come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelSource {
    /// A Hugging Face directory.
    #[serde(serialize_with = "shown::path")]
    Path(PathBuf),
    /// A built-in shape, one of [`lowtide_workload::builtin_names`].
    Shape(String),
    /// A `config.json`.
    #[serde(serialize_with = "shown::path")]
    Config(PathBuf),
}

/// Memory a run may use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// Bytes of device memory; `None`: what is free at the start.
    pub device: Option<Bytes>,
    /// Bytes of host memory; `None`: what is free at the start.
    pub host: Option<Bytes>,
    /// Bytes that may be written to the disks by the whole run; `None`: any number.
    pub disk_writes: Option<Bytes>,
    /// Space on disks, none of them empty; no entry: no disk.
    pub disk: Vec<DiskBudget>,
}

impl Budget {
    /// All disk space together.
    #[must_use]
    pub fn disk_total(&self) -> Bytes {
        // Saturating: two absurd sizes are refused by whoever reserves them, not by an overflow.
        Bytes(
            self.disk
                .iter()
                .fold(0, |sum, d| sum.saturating_add(d.size.0)),
        )
    }
}

/// Space in one directory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskBudget {
    /// Where; it may not exist yet.
    #[serde(serialize_with = "shown::path")]
    pub dir: PathBuf,
    /// How much, more than nothing.
    pub size: Bytes,
}

/// What is trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    /// Training files; may be empty, see [`Run::training_ready`].
    pub train: Vec<Source>,
    /// Evaluation files; may be empty.
    #[serde(serialize_with = "shown::list")]
    pub eval: Vec<PathBuf>,
    /// `data.train` as typed, one text a file: it may be a name on the Hub.
    #[serde(skip)]
    pub train_typed: Vec<String>,
    /// `data.eval` as typed, one text a file.
    #[serde(skip)]
    pub eval_typed: Vec<String>,
    /// Share of the training examples kept for evaluation; 0 where `eval` is not empty.
    pub eval_split: f64,
    /// How an example is laid out.
    pub format: Format,
    /// Names of fields.
    pub fields: Fields,
    /// Several examples in one sequence.
    pub packing: bool,
    /// Which tokens carry loss.
    pub train_on: TrainOn,
    /// Another order each epoch.
    pub shuffle: bool,
    /// Only so many training examples; `None`: all.
    pub max_examples: Option<u64>,
    /// What becomes of a record that cannot be used.
    pub on_error: OnError,
    /// What of a plain text is a record.
    pub text_by: TextBy,
    /// Longest record of a file.
    pub max_line: Bytes,
    /// Where their tokens are kept.
    pub cache: Cache,
    /// They are tokenised while they are trained on.
    pub streaming: bool,
    /// System prompt for examples that bring none.
    pub system: Option<String>,
    /// Stands between prompt and completion; `None`: nothing.
    pub separator: Option<String>,
    /// A chat template's file; `None`: the tokenizer's.
    #[serde(serialize_with = "shown::option")]
    pub chat_template: Option<PathBuf>,
}

impl Data {
    /// Whether anything is there to evaluate on.
    #[must_use]
    pub fn has_eval(&self) -> bool {
        !self.eval.is_empty() || self.eval_split > 0.0
    }
}

/// Where the tokens of data files are kept between runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// In the user's cache, where that works and the files are large.
    Auto,
    /// Tokens are not kept.
    None,
    /// In this folder.
    #[serde(serialize_with = "shown::path")]
    Path(PathBuf),
}

/// A data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Path of the data file.
    pub path: PathBuf,
    /// How often an epoch has each of its examples.
    pub weight: f64,
}

impl Serialize for Source {
    /// A path, where the weight is 1.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.weight == 1.0 {
            return shown::path(&self.path, to);
        }
        let mut map = to.serialize_map(Some(2))?;
        map.serialize_entry("path", &self.path.display().to_string())?;
        map.serialize_entry("weight", &self.weight)?;
        map.end()
    }
}

/// Names of the fields in a data file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fields {
    /// List of messages.
    pub messages: String,
    /// Field that holds the prompt.
    pub prompt: String,
    /// Field that holds the completion.
    pub completion: String,
    /// Field that holds plain text.
    pub text: String,
    /// Field that holds a second text. This and the next are left out where they are called as they always are, so that
    /// checkpoints of before they existed have the same numerics key.
    #[serde(skip_serializing_if = "is_text_pair")]
    pub text_pair: String,
    /// Field that holds a class.
    #[serde(skip_serializing_if = "is_label")]
    pub label: String,
    /// Field that holds a source.
    #[serde(skip_serializing_if = "is_source")]
    pub source: String,
    /// Field that holds a target.
    #[serde(skip_serializing_if = "is_target")]
    pub target: String,
}

fn is_source(name: &str) -> bool {
    name == "source"
}

fn is_target(name: &str) -> bool {
    name == "target"
}

fn is_text_pair(name: &str) -> bool {
    name == "text_pair"
}

fn is_label(name: &str) -> bool {
    name == "label"
}

/// Batch, steps, learning rate and clipping (section `train`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Train {
    /// How long to train: steps or epochs.
    pub length: Length,
    /// B: sequences at once.
    pub micro_batch: u32,
    /// T: tokens of a sequence.
    pub seq: u32,
    /// Tokens of a target, where `seq` are those of its source; 0 without pairs.
    #[serde(skip_serializing_if = "is_none")]
    pub target: u32,
    /// M: micro-batches of one update.
    pub accumulate: u32,
    /// Leaves of the tree in which gradients add up, a power of two that divides `accumulate` and that the number of
    /// GPUs divides; 1: they add up in order.
    #[serde(skip_serializing_if = "is_one")]
    pub leaves: u32,
    /// What becomes of the rows that do not fill an epoch's last batch.
    pub last_batch: LastBatch,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How it moves.
    pub schedule: Schedule,
    /// How gradients are clipped.
    pub clip: Clip,
    /// Type of the complete gradient.
    pub gradient: Dtype,
    /// What to do at a gradient that is not finite.
    pub on_nonfinite: NonFinite,
    /// What is done at a gradient norm far above those before it; `None`: none is looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spike: Option<Spike>,
    /// The share of each label that is spread evenly over all tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub label_smoothing: f64,
    /// NEFTune's α: how much noise training adds to what the embedding gives.
    #[serde(skip_serializing_if = "is_zero")]
    pub neftune_alpha: f64,
    /// Rows of logits at once; 0: the model chooses from its shape.
    pub logits_chunk: u32,
    /// Rows of a micro-batch that a block computes at a time; 0: all.
    #[serde(skip_serializing_if = "is_none")]
    pub rows_chunk: u32,
    /// Patterns of the names of tensors that are not trained.
    pub freeze: Vec<String>,
    /// Patterns of those that are trained nevertheless.
    pub unfreeze: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(n: &u32) -> bool {
    *n == 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_none(target: &u32) -> bool {
    *target == 0
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// So many updates.
    Steps(u64),
    /// Passes over the data, more than 0; may be a fraction.
    Epochs(f64),
}

/// How the learning rate moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Schedule {
    /// After the warm-up.
    pub shape: ScheduleShape,
    /// The rise to the peak.
    pub warmup: Warmup,
    /// Share of all steps over which `wsd` falls.
    pub decay_ratio: f64,
    /// Rate at the end over the peak.
    pub min_lr_ratio: f64,
}

/// How long the learning rate rises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// So many steps.
    Steps(u64),
    /// Share of all steps.
    Ratio(f64),
}

impl Warmup {
    /// Steps of warm-up in a run of `total` steps; a share is rounded up. Never more than `total`.
    #[must_use]
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps.min(total),
            Self::Ratio(ratio) => ((total as f64 * ratio).ceil() as u64).min(total),
        }
    }
}

/// Clipping by the global norm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Clip {
    /// By which norm.
    pub mode: ClipMode,
    /// Largest norm left as it is; without meaning where the mode is none.
    pub norm: f64,
}

/// When a gradient norm is a spike, and what is done then.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spike {
    /// Above so many times the median of those before it, more than 0.
    pub factor: f64,
    /// How many those are.
    pub window: u32,
    /// What is done.
    pub action: SpikeAction,
}

/// The optimizer with its settings (section `optimizer`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    /// Which optimizer it is.
    pub name: OptimizerName,
    /// Its own settings by key, in the order of its table.
    #[serde(flatten, serialize_with = "as_map")]
    pub settings: Vec<(&'static str, f64)>,
    /// Tensors with settings of their own; of several that fit the first holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// How the moments are stored.
    pub moments: Moments,
    /// Where it runs; `None`: the planner chooses.
    pub update: Option<UpdateOn>,
}

/// Tensors that are updated with settings of their own (`optimizer.groups`); at least one of them is given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Patterns of their names.
    #[serde(rename = "match")]
    pub names: Vec<String>,
    /// Peak of the run's schedule for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Their decay, whether they are vectors or matrices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

impl Optimizer {
    /// What decides the bytes of its state.
    #[must_use]
    pub fn what(&self) -> lowtide_workload::Optimizer {
        lowtide_workload::Optimizer {
            name: self.name,
            moments: self.moments,
        }
    }

    /// A setting of its table; `None` where it reads none of that name.
    #[must_use]
    pub fn setting(&self, key: &str) -> Option<f64> {
        let mut all = self.settings.iter();
        all.find(|s| s.0 == key).map(|s| s.1)
    }
}

/// A strategy as the run file has it.
#[allow(clippy::ref_option, reason = "serde's signature")]
fn as_strategy<S: serde::Serializer>(lsp: &Option<Lsp>, serializer: S) -> Result<S::Ok, S::Error> {
    match lsp {
        None => serializer.collect_map([("name", Strategy::Exact)]),
        Some(lsp) => {
            let mut map = serializer.serialize_map(Some(2))?;
            map.serialize_entry("name", &Strategy::Lsp)?;
            map.serialize_entry("lsp", lsp)?;
            map.end()
        }
    }
}

/// Settings as keys beside the others.
fn as_map<S: serde::Serializer>(
    settings: &[(&'static str, f64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(settings.iter().copied())
}

/// The planner's knobs; `None` leaves one to the planner. None of them changes a result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Order of micro-batches and blocks.
    pub loop_order: Option<Loop>,
    /// Where weights stay between uses.
    pub weights: Option<Tier>,
    /// Where master weights and moments stay between steps.
    pub optimizer: Option<Tier>,
    /// Where complete gradients wait.
    pub gradients: Option<Tier>,
    /// Where block inputs wait.
    pub inputs: Option<Tier>,
    /// Which blocks are computed again.
    pub recompute: Option<Recompute>,
    /// What may become of saved tensors.
    pub activations: Option<Activations>,
    /// Where saved tensors go that leave the device.
    pub offload: Option<Offload>,
    /// Whether bytes between disks and the device pass host memory.
    pub direct: Option<Direct>,
    /// Seconds of a step that each TB written to the disks must save.
    pub min_gain: f64,
    /// Blocks fetched ahead, 0 to 8.
    pub prefetch: Option<u32>,
    /// Grain of a fetch.
    pub pieces: Option<Pieces>,
    /// Plan again where lanes are off their rates.
    pub adaptive: bool,
    /// Measured rates; `None`: this machine is probed.
    #[serde(serialize_with = "shown::option")]
    pub machine: Option<PathBuf>,
}

/// The order of micro-batches and blocks that a run asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Loop {
    /// Groups of so many micro-batches, one after the other, layer-major inside. May exceed the batch.
    Groups(u32),
    /// One order for the whole batch.
    #[serde(untagged)]
    Order(LoopOrder),
}

/// Blocks whose inner activations are computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// No block recomputes.
    Nothing,
    /// Every block recomputes.
    All,
    /// So many; which ones is the planner's choice. May exceed the model's blocks.
    Blocks(u32),
}

/// When and on how much to evaluate (section `eval`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Eval {
    /// Each so many steps; 0: after the last only, or by epochs.
    pub every_steps: u64,
    /// Each so many epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_epochs: Option<f64>,
    /// Most micro-batches of one evaluation; `None`: all.
    pub batches: Option<u64>,
    /// Evaluations in a row without a better one, after which training ends; 0: never.
    pub patience: u64,
    /// By more than this an evaluation must be better for the patience to begin anew.
    pub min_delta: f64,
    /// Answers that are decoded and compared.
    pub generate: Generate,
}

/// Greedy answers to the prompts of the evaluation data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generate {
    /// Count answers that equal the reference, before and after training.
    pub exact_match: bool,
    /// Most tokens of an answer.
    pub max_new_tokens: u32,
    /// Most prompts that are answered.
    pub max_examples: u64,
    /// What of an answer and of its reference is compared; `None`: all of both.
    pub extract: Option<String>,
    /// Also each so many steps; 0: before and after training only.
    pub every_steps: u64,
    /// Prompts that are answered at once with a KV cache; `None`: without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<u32>,
}

/// Saving and resuming.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checkpoint {
    /// Each so many steps; 0: not by steps.
    pub every_steps: u64,
    /// Each so many epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_epochs: Option<f64>,
    /// When so many minutes have passed; 0: not by time.
    pub every_minutes: f64,
    /// They are written while steps go on, where that can be.
    pub background: bool,
    /// Checkpoints kept, at least 1.
    pub keep: u32,
    /// What becomes of the run where one cannot be written.
    pub on_error: OnUnsaved,
    /// By what the best checkpoint is kept.
    pub keep_best: KeepBest,
    /// Whether the run file or an override says so.
    #[serde(skip)]
    pub keep_best_given: bool,
    /// Where to go on from.
    pub resume: Resume,
    /// Each update is committed on disk.
    pub durable: bool,
    /// Keys that may differ from those of what the run goes on from.
    pub change: Vec<&'static str>,
}

/// Where to go on from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// The newest checkpoint in the output directory, if there is one.
    Auto,
    /// From the base model, whatever checkpoints there are.
    Never,
    /// From the checkpoint in this directory.
    #[serde(serialize_with = "shown::path")]
    Path(PathBuf),
}

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Log {
    /// Metrics each so many steps, at least 1.
    pub every_steps: u64,
    /// The run as a page.
    pub report: bool,
    /// Whether events for TensorBoard are written.
    pub tensorboard: bool,
    /// A Perfetto trace.
    pub trace: bool,
}

impl Run {
    /// GPUs of each host: what shares its memory and its drives.
    #[must_use]
    pub fn gpus_of_host(&self) -> u32 {
        (self.gpus / self.hosts).max(1)
    }

    /// The run with another model, the Hugging Face directory `dir`; its tokenizer too, unless the run
    /// has one of its own.
    #[must_use]
    pub fn with_model(mut self, dir: PathBuf) -> Self {
        self.place_model(dir);
        (self.model.path_typed, self.model.init) = (None, Init::Pretrained);
        self
    }

    /// Says where the run's model lies, the Hugging Face directory `dir`, and its tokenizer too, unless the run has one
    /// of its own.
    pub fn place_model(&mut self, dir: PathBuf) {
        let model = &mut self.model;
        let of_model = match (&model.source, &model.tokenizer) {
            (ModelSource::Path(old), Some(tokenizer)) => old == tokenizer,
            (_, tokenizer) => tokenizer.is_none(),
        };
        if of_model {
            model.tokenizer = Some(dir.clone());
        }
        model.source = ModelSource::Path(dir);
    }

    /// B, T and M of the run, and the length of its targets.
    #[must_use]
    pub fn batch(&self) -> Batch {
        let Train {
            micro_batch,
            seq,
            target,
            accumulate,
            ..
        } = self.train;
        Batch {
            target,
            micro_batch,
            seq,
            accumulate,
        }
    }

    /// Whether the run says all that training needs and planning does not: training files and a
    /// tokenizer.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] with the key.
    pub fn training_ready(&self) -> Result<(), ConfigError> {
        let missing = |key: &str, why: &str| {
            let (file, key, why) = (self.file.clone(), key.to_owned(), why.to_owned());
            Err(ConfigError::Missing { file, key, why })
        };
        if self.data.train.is_empty() {
            return missing("data.train", "there is nothing to train on");
        }
        if self.model.tokenizer.is_none() {
            return missing(
                "model.tokenizer",
                "without 'model.path' there is none to read text",
            );
        }
        Ok(())
    }
}
