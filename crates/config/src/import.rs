//! Run files of Axolotl as run files of ours, with a list of what has no place here.
//!
//! One file because it is one table of their keys and what is done with each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::elsewhere::{Elsewhere, elsewhere};
use crate::error::ConfigError;
use crate::keys::KEYS;
use crate::run::Run;
use crate::tree::{self, Entry, Node, Tree, shortened};

/// A run file made of another trainer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The run file: what was taken over, and as comments at its end what was not.
    pub yaml: String,
    /// What was not taken over: the other trainer's key, and why.
    pub dropped: Vec<(String, String)>,
    /// What of it are data sets that would have been trained on.
    pub sets: Vec<(String, String)>,
}

/// What becomes of a key.
enum Way {
    /// Its value, as it is, is that of our key.
    Same(&'static str),
    /// The same of a whole number above 0; another value asks for nothing.
    Positive(&'static str),
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
const QUANTISED: &str = "lowtide trains weights in bf16 or f32";

/// Axolotl's keys, but for `datasets` and `test_datasets`.
const AXOLOTL: &[(&str, Way)] = {
    use Way::{Needless, Other, Positive, Same, Words};
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
        ("eval_steps", Positive("eval.every_steps")),
        ("early_stopping_patience", Same("eval.patience")),
        (
            "load_best_model_at_end",
            Words(
                "checkpoint.keep_best",
                &[("true", "loss"), ("false", "none")],
            ),
        ),
        ("save_steps", Positive("checkpoint.every_steps")),
        ("save_total_limit", Same("checkpoint.keep")),
        ("logging_steps", Positive("log.every_steps")),
        ("use_tensorboard", Same("log.tensorboard")),
        ("adapter", Other(ADAPTERS)),
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
            Way::Same(key) | Way::Positive(key) | Way::Words(key, _) => key,
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
    sets: Vec<(String, String)>,
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
    for entry in entries {
        import.entry(entry);
    }
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

    fn give(&mut self, key: &'static str, value: String) {
        self.given.insert(key, value);
    }

    fn entry(&mut self, entry: &Entry) {
        let (name, node) = (entry.key.as_str(), &entry.value);
        match name {
            _ if node.tree == Tree::Null => return,
            "datasets" => return self.data("data.train", name, node),
            "test_datasets" => return self.data("data.eval", name, node),
            "optimizer" if self.small_moments(node) => return,
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
            (Way::Same(key), Some(text)) => self.give(key, quoted(text)),
            (Way::Positive(key), Some(text)) => match text.parse::<u64>() {
                Ok(n) if n > 0 => self.give(key, n.to_string()),
                _ => self.drop(name, node, "only a number of steps is taken over"),
            },
            (Way::Words(key, words), Some(text)) => {
                match words.iter().find(|(theirs, _)| *theirs == text) {
                    Some((_, ours)) => self.give(key, (*ours).to_owned()),
                    None => self.drop(name, node, "there is no such choice here"),
                }
            }
            (Way::Needless(why), _) => self.drop(name, node, why),
            // What is switched off is not missed.
            (Way::Other(_), Some("false")) => {}
            (Way::Other(why), _) => self.drop(name, node, why),
            (_, None) => self.drop(
                name,
                node,
                "a list or a mapping where one value is expected",
            ),
        }
    }

    /// Leaves out a key that the table has not, which stands at `whole`, with what is known of it.
    fn unknown(&mut self, whole: &str, name: &str, node: &Node) {
        let off = matches!(&node.tree, Tree::Scalar(text) if text == "false");
        match elsewhere(name) {
            // What is switched off is not missed.
            Some(Elsewhere::None(_)) if off => {}
            Some(Elsewhere::None(why)) => self.drop(whole, node, why),
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
        // What the records of all data are; evaluation data may say it first.
        let mut first = self.given.get("data.format").cloned();
        for (i, item) in items.iter().enumerate() {
            let Tree::Map(entries) = &item.tree else {
                self.drop(
                    &format!("{name}[{i}]"),
                    item,
                    "a mapping with 'path' is expected",
                );
                continue;
            };
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
            let format = text("type").and_then(|kind| format_of(kind.first()?));
            if let (Some(first), Some(format)) = (&first, format)
                && first != format
            {
                let why = format!(
                    "its records are {format}, those of the first data set {first}, and all records of a run have one \
                     layout: write them as the first are, and add the file to {key}"
                );
                let what = format!("{name}[{i}] ({})", shortened(&own.join(", ")));
                self.sets.push((what.clone(), why.clone()));
                self.dropped.push((what, why));
                continue;
            }
            first = first.or(format.map(str::to_owned));
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
            ("field_messages", _) => "data.fields.messages",
            ("field" | "text_column", _) => "data.fields.text",
            _ => {
                return self.unknown(whole, &entry.key, &entry.value);
            }
        };
        self.give(field, quoted(text));
    }

    /// Takes away what the run file's rules do not allow, with their reason.
    fn checked(&mut self) {
        // A run needs a model; what else is wrong is looked for without one too.
        let some: &[String] = match self.given.contains_key("model.path") {
            true => &[],
            false => &["model.shape=qwen2.5-0.5b".to_owned()],
        };
        while let Err(e) = Run::parse(&self.yaml(), "run.yaml", Path::new("/"), some) {
            let about = e.key().map(str::to_owned);
            let bad = self
                .given
                .keys()
                .copied()
                .find(|key| about.as_deref() == Some(*key));
            let Some(bad) = bad else { return };
            let value = self.given.remove(bad).unwrap_or_default();
            // The place is one in a file that nobody has.
            let why = e.to_string();
            let why = why
                .split_once(": ")
                .map_or(why.as_str(), |(_, why)| why)
                .to_owned();
            self.dropped.push((format!("{bad}: {value}"), why));
        }
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
            sets: self.sets,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "
base_model: models/Qwen2.5-3B
adapter:
load_in_4bit: false
datasets:
  - path: json
    data_files: [a.jsonl, 'b c.jsonl']
    type: chat_template
    field_messages: conversations
    roles_to_train: [assistant]
val_set_size: 0.05
sequence_len: 4096
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 3
learning_rate: 2e-5
lr_scheduler: cosine
optimizer: paged_adamw_8bit
bf16: auto
eval_steps: 0.1
save_steps: 200
gradient_checkpointing: true
wandb_project: mine
output_dir: ./out
";

    #[test]
    fn a_run_of_axolotl_is_a_run_of_ours() {
        let imported = import_axolotl(THEIRS, "axolotl.yaml").unwrap();
        let run = Run::parse(&imported.yaml, "run.yaml", Path::new("/r"), &[]).unwrap();
        let files: Vec<_> = run
            .data
            .train
            .iter()
            .map(|s| s.path.display().to_string())
            .collect();
        assert_eq!(files, ["/r/a.jsonl", "/r/b c.jsonl"]);
        assert_eq!(run.data.fields.messages, "conversations");
        assert_eq!((run.train.seq, run.train.accumulate), (4096, 8));
        assert_eq!(run.data.eval_split, 0.05);
        assert_eq!(run.checkpoint.every_steps, 200);
        assert_eq!(run.optimizer.moments, lowtide_workload::Moments::Int8);
        let names: Vec<&str> = imported.dropped.iter().map(|d| d.0.as_str()).collect();
        let want = [
            "datasets[0].roles_to_train",
            "eval_steps: 0.1",
            "gradient_checkpointing: true",
            "wandb_project: mine",
        ];
        assert_eq!(names, want);
        for (what, why) in &imported.dropped {
            assert!(
                imported.yaml.contains(&format!("#   {what}: {why}")),
                "{}",
                imported.yaml
            );
        }
    }

    #[test]
    fn another_layout_is_no_part_of_the_data() {
        let text = "base_model: m\ndatasets:\n- {path: a.jsonl, type: chat_template}\n\
                    - {path: b.jsonl, type: alpaca, field_messages: x}\n- {path: c.jsonl, type: sharegpt}\n";
        let imported = import_axolotl(text, "a.yaml").unwrap();
        let run = Run::parse(&imported.yaml, "run.yaml", Path::new("/r"), &[]).unwrap();
        let files: Vec<_> = run.data.train.iter().map(|s| s.path.clone()).collect();
        assert_eq!(files, [Path::new("/r/a.jsonl"), Path::new("/r/c.jsonl")]);
        assert_eq!(run.data.fields.messages, "messages");
        assert_eq!(imported.sets.len(), 1);
        assert!(
            imported.sets[0].0.contains("b.jsonl"),
            "{:?}",
            imported.sets
        );
        assert!(
            imported
                .yaml
                .contains("#   datasets[1] (b.jsonl): its records are alpaca"),
            "{}",
            imported.yaml
        );
    }

    #[test]
    fn files_of_other_trainers_are_refused() {
        for (text, like) in [
            (
                "model_name_or_path: m\npacking: true\n",
                "those of TRL or transformers",
            ),
            (
                "model_name_or_path: m\nfinetuning_type: full\n",
                "those of LLaMA-Factory",
            ),
            ("zero_optimization: {stage: 3}\n", "those of DeepSpeed"),
            ("checkpointer: {}\n", "those of torchtune"),
            ("x: 1\n", "datasets"),
        ] {
            let error = import_axolotl(text, "a.yaml").unwrap_err().to_string();
            assert!(
                error.starts_with("a.yaml: no run file of Axolotl"),
                "{error}"
            );
            assert!(error.ends_with(like), "{error}");
        }
        let imported = import_axolotl("base_model: m\npacking: true\n", "a.yaml").unwrap();
        let why = &imported.dropped[0].1;
        assert!(why.ends_with("here it is data.packing"), "{why}");
    }

    #[test]
    fn what_the_rules_refuse_is_named_and_left_out() {
        let text = "base_model: m\nval_set_size: 0\neval_steps: 50\nsequence_len: 1e9\nnum_epochs: 2\nmax_steps: 7\nadapter: lora\n";
        let imported = import_axolotl(text, "a.yaml").unwrap();
        Run::parse(&imported.yaml, "run.yaml", Path::new("/r"), &[]).unwrap();
        let names: Vec<&str> = imported.dropped.iter().map(|d| d.0.as_str()).collect();
        assert!(names.contains(&"adapter: lora"), "{names:?}");
        assert!(names.contains(&"eval.every_steps: 50"), "{names:?}");
        assert!(
            names.iter().any(|n| n.starts_with("train.seq")),
            "{names:?}"
        );
        // One of the two that exclude each other.
        assert!(
            names
                .iter()
                .any(|n| n.starts_with("train.epochs") || n.starts_with("train.steps")),
            "{names:?}"
        );
    }

    #[test]
    fn whatever_it_is_nothing_panics() {
        for text in [
            "",
            "- a",
            "a",
            "datasets: 3",
            "datasets: [3, {path: {a: b}}]",
            "base_model: [a]",
            "a: \"x\\ny\"",
            "base_model: \"a: #b\"",
        ] {
            if let Ok(imported) = import_axolotl(text, "a\nb.yaml") {
                assert!(
                    tree::parse(&imported.yaml, &tree::in_file(&"x".into())).is_ok(),
                    "{}",
                    imported.yaml
                );
            }
        }
        assert!(import_axolotl("a: [", "a.yaml").is_err());
    }

    /// Every key that is reported is one of ours.
    #[test]
    fn keys_of_the_table_are_keys() {
        for (name, way) in AXOLOTL {
            if let Way::Same(key) | Way::Positive(key) | Way::Words(key, _) = way {
                assert!(KEYS.iter().any(|k| k.name == *key), "{name}: {key}");
            }
        }
    }
}
