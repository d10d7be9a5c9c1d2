//! Run files of Axolotl as run files of ours, with a list of what has no place here.
//!
//! One file because it is one table of their keys and what is done with each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::elsewhere::{Elsewhere, elsewhere};
use crate::error::ConfigError;
use crate::key::Kind;
use crate::keys::KEYS;
use crate::tree::{self, Entry, Node, Tree, shortened};

/// A run file made of another trainer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The run file: what was taken over, and as comments at its end what was not.
    pub yaml: String,
    /// What was not taken over: the other trainer's key, and why.
    pub dropped: Vec<(String, String)>,
    /// What of it makes another training of it: data sets that are not trained on, adapters, another objective.
    pub warned: Vec<(String, String)>,
}

/// What becomes of a key.
enum Way {
    /// Its value, as it is, is that of our key.
    Same(&'static str),
    /// The same of a whole number above 0; another value asks for nothing.
    Positive(&'static str),
    /// Each so many steps, or a share of all steps: the keys for steps and for epochs.
    Steps([&'static str; 2]),
    /// So many times an epoch: our key says each how many epochs.
    PerEpoch(&'static str),
    /// `epoch`: each epoch.
    Strategy(&'static str),
    /// Words for words.
    Words(&'static str, &'static [(&'static str, &'static str)]),
    /// There is nothing to say here: why.
    Needless(&'static str),
    /// It asks for something else than lowtide does: why.
    Other(&'static str),
}

/// Keys by which files of other trainers are known.
const OTHERS: [(&[&str], &str); 4] = [
    (
        &["finetuning_type", "cutoff_len", "dataset_dir"],
        "LLaMA-Factory",
    ),
    (
        &["zero_optimization", "train_micro_batch_size_per_gpu"],
        "DeepSpeed",
    ),
    (&["checkpointer", "tokenizer", "metric_logger"], "torchtune"),
    (
        &[
            "model_name_or_path",
            "dataset_name",
            "per_device_train_batch_size",
            "num_train_epochs",
        ],
        "TRL or transformers",
    ),
];

const PLANNED: &str = "the planner decides what is recomputed, offloaded and overlapped";
const ADAPTERS: &str = "lowtide trains all parameters, not adapters";
const ADAPTER: &str = "lowtide trains all parameters, not adapters; a learning rate for adapters is usually about ten times too large \
     here";
/// When a run evaluates and saves, by steps and by epochs.
const EVALUATIONS: [&str; 2] = ["eval.every_steps", "eval.every_epochs"];
const SAVES: [&str; 2] = ["checkpoint.every_steps", "checkpoint.every_epochs"];
/// What Axolotl does where a key is not given, and lowtide does not.
const DEFAULTS: [(&str, &str); 2] = [("data.packing", "false"), ("train.seq", "512")];
/// Keys without which a run trains something else: they are warned of, not only listed.
const OTHER_TRAINING: [&str; 5] = [
    "adapter",
    "load_in_8bit",
    "load_in_4bit",
    "unfrozen_parameters",
    "rl",
];
const QUANTISED: &str = "lowtide trains weights in bf16 or f32";

/// Axolotl's keys, but for `datasets` and `test_datasets`.
const AXOLOTL: &[(&str, Way)] = {
    use Way::{Needless, Other, PerEpoch, Positive, Same, Steps, Strategy, Words};
    &[
        ("base_model", Same("model.path")),
        ("tokenizer_config", Same("model.tokenizer")),
        ("output_dir", Same("output")),
        ("seed", Same("seed")),
        ("val_set_size", Same("data.eval_split")),
        ("sample_packing", Same("data.packing")),
        (
            "train_on_inputs",
            Words("data.train_on", &[("true", "all"), ("false", "assistant")]),
        ),
        ("shuffle_merged_datasets", Same("data.shuffle")),
        ("sequence_len", Same("train.seq")),
        ("micro_batch_size", Same("train.micro_batch")),
        ("gradient_accumulation_steps", Same("train.accumulate")),
        ("num_epochs", Same("train.epochs")),
        ("max_steps", Positive("train.steps")),
        ("learning_rate", Same("train.learning_rate")),
        (
            "lr_scheduler",
            Words(
                "train.schedule",
                &[
                    ("cosine", "cosine"),
                    ("linear", "linear"),
                    ("constant", "constant"),
                    ("constant_with_warmup", "constant"),
                ],
            ),
        ),
        ("cosine_min_lr_ratio", Same("train.min_lr_ratio")),
        ("warmup_steps", Same("train.warmup_steps")),
        ("warmup_ratio", Same("train.warmup_ratio")),
        ("max_grad_norm", Same("train.clip.norm")),
        (
            "optimizer",
            Words(
                "optimizer.name",
                &[
                    ("adamw_torch", "adamw"),
                    ("adamw_torch_fused", "adamw"),
                    ("adamw_hf", "adamw"),
                    ("adafactor", "adafactor"),
                    ("lion_pytorch", "lion"),
                ],
            ),
        ),
        ("adam_beta1", Same("optimizer.beta1")),
        ("adam_beta2", Same("optimizer.beta2")),
        ("adam_epsilon", Same("optimizer.eps")),
        ("weight_decay", Same("optimizer.weight_decay")),
        (
            "bf16",
            Words(
                "precision",
                &[("true", "bf16"), ("auto", "bf16"), ("full", "bf16")],
            ),
        ),
        ("eval_steps", Steps(EVALUATIONS)),
        ("evals_per_epoch", PerEpoch(EVALUATIONS[1])),
        ("eval_strategy", Strategy(EVALUATIONS[1])),
        ("evaluation_strategy", Strategy(EVALUATIONS[1])),
        ("early_stopping_patience", Same("eval.patience")),
        ("early_stopping_threshold", Same("eval.min_delta")),
        (
            "load_best_model_at_end",
            Words(
                "checkpoint.keep_best",
                &[("true", "loss"), ("false", "none")],
            ),
        ),
        ("metric_for_best_model", Same("checkpoint.keep_best")),
        ("save_steps", Steps(SAVES)),
        ("saves_per_epoch", PerEpoch(SAVES[1])),
        ("save_strategy", Strategy(SAVES[1])),
        ("save_total_limit", Same("checkpoint.keep")),
        ("logging_steps", Positive("log.every_steps")),
        ("use_tensorboard", Same("log.tensorboard")),
        ("adapter", Other(ADAPTER)),
        ("lora_r", Other(ADAPTERS)),
        ("lora_alpha", Other(ADAPTERS)),
        ("lora_dropout", Other(ADAPTERS)),
        ("lora_target_modules", Other(ADAPTERS)),
        ("lora_target_linear", Other(ADAPTERS)),
        ("load_in_8bit", Other(QUANTISED)),
        ("load_in_4bit", Other(QUANTISED)),
        ("fp16", Other(QUANTISED)),
        (
            "unfrozen_parameters",
            Other("it is a list of expressions; name what is not trained with train.freeze"),
        ),
        ("label_smoothing_factor", Same("train.label_smoothing")),
        ("neftune_noise_alpha", Same("train.neftune_alpha")),
        ("noisy_embedding_alpha", Same("train.neftune_alpha")),
        (
            "resume_from_checkpoint",
            Other("its checkpoints are of another trainer"),
        ),
        ("gradient_checkpointing", Needless(PLANNED)),
        ("gradient_checkpointing_kwargs", Needless(PLANNED)),
        ("deepspeed", Needless(PLANNED)),
        ("fsdp", Needless(PLANNED)),
        ("fsdp_config", Needless(PLANNED)),
        ("activation_offloading", Needless(PLANNED)),
        (
            "flash_attention",
            Needless("attention is chosen by the device"),
        ),
        (
            "sdp_attention",
            Needless("attention is chosen by the device"),
        ),
        ("tf32", Needless("products are in bf16 with sums in f32")),
        ("pad_to_sequence_len", Needless("rows have one length")),
        (
            "eval_sample_packing",
            Needless("evaluation data are packed like the others"),
        ),
        (
            "chat_template",
            Other(
                "the model's own template is used; data.chat_template names a file with another one",
            ),
        ),
        (
            "auto_resume_from_checkpoints",
            Needless(
                "a run goes on from its newest checkpoint; checkpoint.resume: never begins anew",
            ),
        ),
        ("model_type", Needless("config.json says it")),
        ("tokenizer_type", Needless("tokenizer.json says it")),
        ("is_llama_derived_model", Needless("config.json says it")),
        (
            "dataset_prepared_path",
            Needless("tokens are kept in the cache; data.cache names another folder"),
        ),
        ("strict", Needless("every key is checked")),
    ]
};

/// The keys of Axolotl that are known, each with ours or with why there is none.
#[must_use]
pub fn axolotl_keys() -> Vec<(&'static str, &'static str)> {
    let each = AXOLOTL.iter().map(|(name, way)| {
        let is = match way {
            Way::Same(key)
            | Way::Positive(key)
            | Way::Words(key, _)
            | Way::Steps([key, _])
            | Way::PerEpoch(key)
            | Way::Strategy(key) => key,
            Way::Needless(why) | Way::Other(why) => why,
        };
        (*name, *is)
    });
    each.collect()
}

#[derive(Default)]
struct Import {
    /// Our keys with their values, as YAML.
    given: BTreeMap<&'static str, String>,
    dropped: Vec<(String, String)>,
    warned: Vec<(String, String)>,
    /// What the records of the first data set are.
    layout: Layout,
    /// By what the best model is found, where it is said.
    metric: Option<String>,
    /// What happens each such share of all steps: their key, ours, the share.
    shares: Vec<(String, [&'static str; 2], f64)>,
    /// Keys that are given because Axolotl's default is another one.
    defaults: Vec<&'static str>,
}

/// What the records of a data set are: their format, if it is said, and the names of their fields.
#[derive(Clone, Default)]
struct Layout {
    format: Option<&'static str>,
    /// Names that are given and are not the usual ones here.
    fields: BTreeMap<&'static str, String>,
    /// Their messages are called `conversations` where no name is given.
    sharegpt: bool,
    /// Sets are among them whose messages have the other usual name, which a run reads too that gives no name.
    both: bool,
}

/// Reads a run file of Axolotl. `file` names it in errors.
///
/// # Errors
/// The text is not YAML, no mapping, or has neither a model nor data by Axolotl's names.
pub fn import_axolotl(text: &str, file: &str) -> Result<Imported, ConfigError> {
    let root = tree::parse(text, &tree::in_file(&file.into()))?;
    let Tree::Map(entries) = &root.tree else {
        return Err(ConfigError::WrongType {
            at: root.at.clone(),
            key: "(the file)".to_owned(),
            found: root.found(),
            allowed: "a mapping of Axolotl's keys".to_owned(),
        });
    };
    let has = |names: &[&str]| entries.iter().any(|e| names.contains(&e.key.as_str()));
    if !has(&["base_model", "datasets"]) {
        let like = OTHERS.iter().find(|(names, _)| has(names));
        return Err(ConfigError::NotAxolotl {
            file: file.to_owned(),
            like: like.map(|(_, trainer)| *trainer),
        });
    }
    let mut import = Import::default();
    for entry in import.last_of_each("", entries) {
        import.entry(entry);
    }
    import.shares_of_all();
    import.best();
    import.one_of_each();
    import.defaults();
    import.checked();
    Ok(import.done(file))
}

/// The same of a file.
///
/// # Errors
/// The file cannot be read, or as [`import_axolotl`].
pub fn import_axolotl_file(path: &Path) -> Result<Imported, ConfigError> {
    let text = lowtide_files::read_text(path, lowtide_files::SMALL)?;
    import_axolotl(&text, &path.display().to_string())
}

impl Import {
    fn drop(&mut self, key: &str, node: &Node, why: &str) {
        let value = match &node.tree {
            Tree::Scalar(text) => format!("{}: {}", shortened(key), shortened(text)),
            _ => shortened(key),
        };
        self.dropped.push((value, why.to_owned()));
    }

    /// Takes over a value. Of two keys that are one here the first holds.
    fn give(&mut self, key: &'static str, value: String) {
        match self.given.get(key) {
            Some(first) if *first != value => {
                let why = format!("another key has already given {key}: {first}");
                self.dropped.push((format!("{key}: {value}"), why));
            }
            _ => {
                self.given.insert(key, value);
            }
        }
    }

    /// The pairs of a mapping without those that are given again below: of a key given twice the last holds, as
    /// Axolotl's reader has it.
    fn last_of_each<'a>(&mut self, section: &str, entries: &'a [Entry]) -> Vec<&'a Entry> {
        let mut all = Vec::new();
        let each = entries.iter().enumerate();
        let last: BTreeMap<&str, usize> = each.map(|(i, e)| (e.key.as_str(), i)).collect();
        for (i, entry) in entries.iter().enumerate() {
            match last.get(entry.key.as_str()).filter(|&&last| last > i) {
                Some(&last) => {
                    let last = &entries[last];
                    let why = format!("given again at {}, which holds", last.at);
                    self.drop(&format!("{section}{}", entry.key), &entry.value, &why);
                }
                None => all.push(entry),
            }
        }
        all
    }

    fn entry(&mut self, entry: &Entry) {
        let (name, node) = (entry.key.as_str(), &entry.value);
        match name {
            _ if node.tree == Tree::Null => return,
            "datasets" => return self.data("data.train", name, node),
            "test_datasets" => return self.data("data.eval", name, node),
            "optimizer" if self.small_moments(node) => return,
            // No norm is the largest one.
            "max_grad_norm" if is_zero(node) => {
                return self.give("train.clip.mode", "none".to_owned());
            }
            "metric_for_best_model" if let Tree::Scalar(text) = &node.tree => {
                self.metric = Some(text.clone());
                return;
            }
            "chat_template" if node.tree == Tree::Scalar("tokenizer_default".to_owned()) => return,
            _ => {}
        }
        let Some((_, way)) = AXOLOTL.iter().find(|(known, _)| *known == name) else {
            return self.unknown(name, name, node);
        };
        let scalar = match &node.tree {
            Tree::Scalar(text) => Some(text.as_str()),
            _ => None,
        };
        match (way, scalar) {
            (Way::Same(key), Some(text)) => {
                let truth = is_flag(key).then(|| truth(text)).flatten();
                self.give(key, truth.map_or_else(|| quoted(text), str::to_owned));
            }
            (Way::Positive(key), Some(text)) => match text.parse::<u64>() {
                Ok(n) if n > 0 => self.give(key, n.to_string()),
                _ => self.drop(name, node, "only a number of steps is taken over"),
            },
            (Way::Steps(keys), Some(text)) => match text.parse::<f64>() {
                Ok(n) if n >= 1.0 && n.fract() == 0.0 => self.give(keys[0], text.to_owned()),
                Ok(share) if share > 0.0 && share < 1.0 => {
                    self.shares.push((name.to_owned(), *keys, share));
                }
                _ => self.drop(
                    name,
                    node,
                    "only a number of steps or a share of all is taken over",
                ),
            },
            (Way::PerEpoch(key), Some(text)) => match text.parse::<u32>() {
                Ok(n) if n > 0 => self.give(key, format!("{}", 1.0 / f64::from(n))),
                _ => self.drop(name, node, "only a whole number of times is taken over"),
            },
            (Way::Strategy(key), Some(text)) => match text {
                "epoch" => self.give(key, "1".to_owned()),
                // What says how many says it.
                "steps" | "no" => {}
                _ => self.drop(name, node, "there is no such choice here"),
            },
            (Way::Words(key, words), Some(text)) => {
                let text = truth(text).unwrap_or(text);
                match words.iter().find(|(theirs, _)| *theirs == text) {
                    Some((_, ours)) => self.give(key, (*ours).to_owned()),
                    None => self.drop(name, node, "there is no such choice here"),
                }
            }
            (Way::Needless(why), _) => self.drop(name, node, why),
            // What is switched off is not missed.
            (Way::Other(_), Some(text)) if truth(text) == Some("false") => {}
            (Way::Other(why), _) => {
                self.drop(name, node, why);
                self.warn_of(name);
            }
            (_, None) => self.drop(
                name,
                node,
                "a list or a mapping where one value is expected",
            ),
        }
    }

    /// Leaves out a key that the table has not, which stands at `whole`, with what is known of it.
    fn unknown(&mut self, whole: &str, name: &str, node: &Node) {
        let off = matches!(&node.tree, Tree::Scalar(text) if truth(text) == Some("false"));
        match elsewhere(name) {
            // What is switched off is not missed.
            Some(Elsewhere::None(_)) if off => {}
            Some(Elsewhere::None(why)) => {
                self.drop(whole, node, why);
                self.warn_of(name);
            }
            Some(Elsewhere::Key(key)) => {
                let why = format!("{key} comes nearest; it takes other values");
                self.drop(whole, node, &why);
            }
            None => {
                let own = KEYS.iter().map(|k| k.name);
                let own = own.filter(|key| key.rsplit('.').next() == Some(name));
                let why = match own.collect::<Vec<_>>().join(" or ") {
                    none if none.is_empty() => {
                        "lowtide has nothing like it, or does not know it".to_owned()
                    }
                    own => format!("no key of Axolotl's; here it is {own}"),
                };
                self.drop(whole, node, &why);
            }
        }
    }

    /// Warns of the key that was left out last, where the run trains something else without it.
    fn warn_of(&mut self, name: &str) {
        if OTHER_TRAINING.contains(&name) {
            self.warned.extend(self.dropped.last().cloned());
        }
    }

    /// AdamW whose moments have 8 bits.
    fn small_moments(&mut self, node: &Node) -> bool {
        let names = ["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"];
        let small = matches!(&node.tree, Tree::Scalar(text) if names.contains(&text.as_str()));
        if small {
            self.give("optimizer.name", "adamw".to_owned());
            self.give("optimizer.moments", "int8".to_owned());
        }
        small
    }

    /// A list of data sets: their files, and what all of them are.
    fn data(&mut self, key: &'static str, name: &str, node: &Node) {
        let Tree::List(items) = &node.tree else {
            return self.drop(name, node, "a list of data sets is expected");
        };
        let mut files = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let Tree::Map(entries) = &item.tree else {
                self.drop(
                    &format!("{name}[{i}]"),
                    item,
                    "a mapping with 'path' is expected",
                );
                continue;
            };
            let entries = self.last_of_each(&format!("{name}[{i}]."), entries);
            let text = |key: &str| {
                let entry = entries.iter().find(|e| e.key == key)?;
                match &entry.value.tree {
                    Tree::Scalar(text) => Some(vec![text.clone()]),
                    Tree::List(list) => {
                        let each = list.iter().map(|n| match &n.tree {
                            Tree::Scalar(text) => Some(text.clone()),
                            _ => None,
                        });
                        each.collect()
                    }
                    _ => None,
                }
            };
            // `path: json` with files is how a loader is named.
            let own = text("data_files")
                .or_else(|| text("path"))
                .unwrap_or_default();
            let layout = Layout::of(&entries);
            if let Some(differs) = self.layout.differs(&layout) {
                let why = format!(
                    "{differs}, and all records of a run have one layout: write them as the first are, and add the \
                     file to {key}"
                );
                let what = format!("{name}[{i}] ({})", shortened(&own.join(", ")));
                self.warned.push((what.clone(), why.clone()));
                self.dropped.push((what, why));
                continue;
            }
            match self.layout.format {
                None => self.layout = layout,
                Some(_) => self.layout.join(layout),
            }
            files.extend(own);
            for entry in entries {
                self.of_data(&format!("{name}[{i}].{}", entry.key), entry);
            }
        }
        match &files[..] {
            [] => {}
            [one] => self.give(key, quoted(one)),
            all => {
                let all: Vec<_> = all.iter().map(|file| quoted(file)).collect();
                self.give(key, format!("[{}]", all.join(", ")));
            }
        }
    }

    /// One key of a data set.
    fn of_data(&mut self, whole: &str, entry: &Entry) {
        let Tree::Scalar(text) = &entry.value.tree else {
            if entry.value.tree == Tree::Null {
                return;
            }
            if !["data_files", "path"].contains(&entry.key.as_str()) {
                self.unknown(whole, &entry.key, &entry.value);
            }
            return;
        };
        let field = match (entry.key.as_str(), text.as_str()) {
            ("path" | "data_files" | "ds_type", _) => return,
            ("type", kind) if format_of(kind).is_some() => {
                let format = format_of(kind).unwrap_or_default();
                return self.give("data.format", format.to_owned());
            }
            ("split", "train") => return,
            (key, _) => match field_of(key) {
                Some((field, _)) => field,
                None => return self.unknown(whole, key, &entry.value),
            },
        };
        self.give(field, quoted(text));
    }

    /// What was given, in sections.
    fn yaml(&self) -> String {
        let mut text = String::new();
        let mut open: Vec<&str> = Vec::new();
        for key in KEYS.iter().map(|k| k.name) {
            let Some(value) = self.given.get(key) else {
                continue;
            };
            let parts: Vec<&str> = key.split('.').collect();
            let (last, sections) = parts.split_last().expect("a key has a name");
            let same = open
                .iter()
                .zip(sections)
                .take_while(|(a, b)| a == b)
                .count();
            open.truncate(same);
            for section in &sections[same..] {
                let _ = writeln!(text, "{:1$}{section}:", "", 2 * open.len());
                open.push(section);
            }
            let _ = writeln!(text, "{:1$}{last}: {value}", "", 2 * open.len());
        }
        text
    }

    fn done(self, file: &str) -> Imported {
        let mut yaml = format!(
            "# From {} by `lowtide import`.\n",
            shortened(file).replace('\n', " ")
        );
        if !self.defaults.is_empty() {
            let _ = writeln!(
                yaml,
                "# Not said there, as Axolotl has it by default: {}.",
                self.defaults.join(", ")
            );
        }
        yaml += &self.yaml();
        if !self.dropped.is_empty() {
            yaml += "# Not taken over:\n";
        }
        for (what, why) in &self.dropped {
            let line = format!("#   {what}: {why}");
            let _ = writeln!(yaml, "{}", line.replace(['\n', '\r'], " "));
        }
        Imported {
            yaml,
            dropped: self.dropped,
            warned: self.warned,
        }
    }
}

impl Layout {
    /// Of a data set with these keys.
    fn of(entries: &[&Entry]) -> Self {
        let mut layout = Self::default();
        for entry in entries {
            let Tree::Scalar(text) = &entry.value.tree else {
                continue;
            };
            match (entry.key.as_str(), field_of(&entry.key)) {
                ("type", _) => {
                    layout.format = format_of(text);
                    layout.sharegpt = text == "sharegpt";
                }
                // A name that holds anyway is as good as none.
                (_, Some((field, usual))) if usual != text => {
                    layout.fields.insert(field, text.clone());
                }
                _ => {}
            }
        }
        layout
    }

    /// In what another data set is not laid out like this one; a set whose format is not known is taken to be alike
    /// in that.
    fn differs(&self, other: &Self) -> Option<String> {
        let (first, format) = (self.format?, other.format.or(self.format)?);
        if first != format {
            return Some(format!(
                "its records are {format}, those of the first data set {first}"
            ));
        }
        // What a format does not read makes no difference.
        let read = match first {
            "chat" => "data.fields.messages",
            "text" => "data.fields.text",
            _ => return None,
        };
        let named = |layout: &Self| layout.fields.contains_key(read);
        let (ours, theirs) = (self.name(read), other.name(read));
        // Without a name the reader takes either usual one.
        let usual = !named(self) && !named(other);
        let differ = ours != theirs || self.both;
        (differ && !usual).then(|| {
            let ours = match ours == theirs {
                true => MESSAGES
                    .into_iter()
                    .find(|name| *name != theirs)
                    .unwrap_or(ours),
                false => ours,
            };
            let (ours, theirs) = (shortened(ours), shortened(theirs));
            format!("its records have '{theirs}' where those of the first data set have '{ours}'")
        })
    }

    /// What a field of its records is called.
    fn name<'a>(&'a self, field: &'a str) -> &'a str {
        let usual = match field {
            "data.fields.messages" => MESSAGES[usize::from(self.sharegpt)],
            _ => field.rsplit('.').next().unwrap_or(field),
        };
        self.fields.get(field).map_or(usual, String::as_str)
    }

    /// Takes in another one that does not differ.
    fn join(&mut self, other: Self) {
        let messages = "data.fields.messages";
        self.both |= other.format.is_some() && self.name(messages) != other.name(messages);
        for (field, name) in other.fields {
            self.fields.entry(field).or_insert(name);
        }
    }
}

/// What the list of messages is called where no name is given: in most data sets, and in ShareGPT's.
const MESSAGES: [&str; 2] = ["messages", "conversations"];

/// The key here of a key that names a field of a data set's records, and its usual name.
fn field_of(key: &str) -> Option<(&'static str, &'static str)> {
    match key {
        "field_messages" => Some(("data.fields.messages", "messages")),
        "field" | "text_column" => Some(("data.fields.text", "text")),
        _ => None,
    }
}

/// `true` or `false` for what Axolotl's readers (YAML 1.1, then pydantic) take for them.
fn truth(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" | "t" | "1" => Some("true"),
        "false" | "no" | "off" | "n" | "f" | "0" => Some("false"),
        _ => None,
    }
}

/// Whether a key here is true or false.
fn is_flag(key: &str) -> bool {
    KEYS.iter()
        .any(|k| k.name == key && matches!(k.kind, Kind::Flag))
}

/// Whether it is the number 0.
fn is_zero(node: &Node) -> bool {
    matches!(&node.tree, Tree::Scalar(text) if text.parse() == Ok(0.0))
}

/// What Axolotl's types of data sets are here.
fn format_of(kind: &str) -> Option<&'static str> {
    match kind {
        "chat_template" | "sharegpt" => Some("chat"),
        "alpaca" => Some("alpaca"),
        "completion" => Some("text"),
        _ => None,
    }
}

/// A value as YAML: plain where nothing in it has a meaning there.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./+".contains(c);
    match !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}

mod whole;

#[cfg(test)]
mod tests;
