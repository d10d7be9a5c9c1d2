//! The keys of data: what is trained on, and how it is read.

use std::ops::Bound::Included;

use crate::key::KeyDefault::{Unset, Value};
use crate::key::{Key, Kind};
use crate::words::{Format, OnError, TextBy, TrainOn};

/// Those keys, in the order of the reference.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "data.train",
        doc: "Files to train on: JSONL, one example a line, a JSON array of examples, CSV (`.csv`, `.tsv`), Parquet, or plain \
              text (`.txt`, `.md`). Or a data set's name on the Hub, `org/name`, `org/name:split` or `org/name:configuration/split` \
              (`openai/gsm8k:main/train`), where no such path exists: its files are taken from Hugging Face's cache, or fetched \
              there by `hf`. The weight of a file is how often an epoch has each of its examples: 2 is twice, 0.5 is \
              one half of them, the same in each epoch, drawn from the seed.",
        kind: Kind::Sources,
        default: Unset("none; training needs it, planning does not"),
        elsewhere: &[
            "datasets",
            "dataset",
            "train_file",
            "dataset_path",
            "train_data",
            "dataset_name",
            "data_files",
            "dataset_dir",
            "train_dataset",
            "data_path",
            "dataset_mixer",
            "interleave_probs",
            "mix_strategy",
        ],
    },
    Key {
        name: "data.eval",
        doc: "Files to evaluate on, of the same makes, or a data set on the Hub: its split `test`, unless one is named.",
        kind: Kind::Paths,
        default: Unset("none"),
        elsewhere: &[
            "validation_file",
            "test_datasets",
            "eval_dataset",
            "eval_file",
            "val_data",
            "dataset_val",
            "test_file",
            "validation_dataset",
        ],
    },
    Key {
        name: "data.eval_split",
        doc: "Share of the training examples kept for evaluation instead, up to 0.5; a whole number from 1 on: that many of them.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1e9),
        },
        default: Value("0"),
        elsewhere: &[
            "val_set_size",
            "validation_split_percentage",
            "val_size",
            "test_size",
            "validation_size",
        ],
    },
    Key {
        name: "data.format",
        doc: "How an example is laid out.",
        kind: Kind::word(Format::WORDS),
        default: Value("auto"),
        elsewhere: &["type", "dataset_format"],
    },
    Key {
        name: "data.fields.messages",
        doc: "Field with the list of messages.",
        kind: Kind::Text,
        default: Value("messages"),
        elsewhere: &["field_messages", "conversation_column"],
    },
    Key {
        name: "data.fields.prompt",
        doc: "Field with the prompt.",
        kind: Kind::Text,
        default: Value("prompt"),
        elsewhere: &["field_instruction", "prompt_column"],
    },
    Key {
        name: "data.fields.completion",
        doc: "Field with the completion.",
        kind: Kind::Text,
        default: Value("completion"),
        elsewhere: &["field_output", "response_column"],
    },
    Key {
        name: "data.fields.text",
        doc: "Field with plain text.",
        kind: Kind::Text,
        default: Value("text"),
        elsewhere: &["dataset_text_field", "text_column", "field"],
    },
    Key {
        name: "data.fields.text_pair",
        doc: "Field with a second text, of data for a model that classifies; a record may be without.",
        kind: Kind::Text,
        default: Value("text_pair"),
        elsewhere: &["text_pair_column", "sentence2_key"],
    },
    Key {
        name: "data.fields.label",
        doc: "Field with the class, its name or its number from 0 on.",
        kind: Kind::Text,
        default: Value("label"),
        elsewhere: &["label_column", "label_column_name"],
    },
    Key {
        name: "data.fields.source",
        doc: "Field with the source, of data for a model with an encoder and a decoder.",
        kind: Kind::Text,
        default: Value("source"),
        elsewhere: &["source_column"],
    },
    Key {
        name: "data.fields.target",
        doc: "Field with the target: what that model learns to say.",
        kind: Kind::Text,
        default: Value("target"),
        elsewhere: &["target_column", "summary_column"],
    },
    Key {
        name: "data.packing",
        doc: "Fill each sequence with several examples.",
        kind: Kind::Flag,
        default: Value("true"),
        elsewhere: &["sample_packing", "packed", "neat_packing"],
    },
    Key {
        name: "data.train_on",
        doc: "Which tokens carry loss.",
        kind: Kind::word(TrainOn::WORDS),
        default: Value("assistant"),
        elsewhere: &[
            "train_on_inputs",
            "completion_only_loss",
            "assistant_only_loss",
            "train_on_input",
            "train_on_prompt",
        ],
    },
    Key {
        name: "data.shuffle",
        doc: "Draw the examples in another order each epoch, from the seed. `false`: each epoch in the order of \
              the files; packing then fills a sequence with examples that follow each other, which leaves more \
              of it empty.",
        kind: Kind::Flag,
        default: Value("true"),
        elsewhere: &[
            "shuffle_dataset",
            "shuffle_merged_datasets",
            "disable_shuffling",
        ],
    },
    Key {
        name: "data.max_examples",
        doc: "An epoch has only so many training examples, the first ones; of files with weights the first ones of each, by \
              their shares.",
        kind: Kind::Count {
            min: 1,
            max: u64::MAX,
        },
        default: Unset("all"),
        elsewhere: &["max_train_samples", "max_samples"],
    },
    Key {
        name: "data.on_error",
        doc: "What becomes of a record that cannot be used.",
        kind: Kind::word(OnError::WORDS),
        default: Value("stop"),
        elsewhere: &["on_bad_lines", "skip_bad_records"],
    },
    Key {
        name: "data.text_by",
        doc: "What of a plain text is an example.",
        kind: Kind::word(TextBy::WORDS),
        default: Value("file"),
        elsewhere: &["sample_by"],
    },
    Key {
        name: "data.max_line",
        doc: "Longest record of a data file. A longer one is a record that cannot be used.",
        kind: Kind::Size,
        default: Value("16MiB"),
        elsewhere: &["max_line_length"],
    },
    Key {
        name: "data.cache",
        doc: "Where the tokens of data files are kept between runs, under a hash of the files' bytes, the tokenizer, the \
              template and these keys. Tokens that are kept take no memory: data may be larger than it. A path is a \
              folder.",
        kind: Kind::WordOrPath {
            words: &[
                (
                    "auto",
                    "of files of 16 MiB and more, in `$LOWTIDE_CACHE/data`, else `$XDG_CACHE_HOME/lowtide/data`, else \
                     `~/.cache/lowtide/data`; what cannot be kept there is held in memory, but with `data.streaming` \
                     there must be room for all tokens, 4 bytes each",
                ),
                ("none", "nowhere, they are held in memory"),
            ],
        },
        default: Value("auto"),
        elsewhere: &[
            "dataset_prepared_path",
            "cache_dir",
            "dataset_cache_dir",
            "tokenized_path",
        ],
    },
    Key {
        name: "data.streaming",
        doc: "Begin to train while the files are still tokenised. Examples are then packed and shuffled within windows of 8 Mi \
              tokens; the first epoch has these in the order of the files, later ones in an order of their own. `false`: all \
              files are tokenised first, and packed and shuffled as a whole. With `train.epochs` the number of steps is known when all \
              are.",
        kind: Kind::Flag,
        default: Value("false"),
        elsewhere: &["streaming", "pretraining_dataset"],
    },
    Key {
        name: "data.system",
        doc: "System prompt for conversations that bring none, and in Alpaca's prompt. Records of other layouts have no place \
              for it, and are refused.",
        kind: Kind::Text,
        default: Unset("none"),
        elsewhere: &[
            "system_prompt",
            "default_system_message",
            "default_system",
            "new_system_prompt",
        ],
    },
    Key {
        name: "data.separator",
        doc: "Text between prompt and completion, a part of the prompt; \"\\n\" for a new line.",
        kind: Kind::Text,
        default: Unset("nothing"),
        elsewhere: &["prompt_separator"],
    },
    Key {
        name: "data.chat_template",
        doc: "File with a Jinja chat template.",
        kind: Kind::Path,
        default: Unset("the tokenizer's"),
        elsewhere: &["chat_template_path", "chat_template_jinja"],
    },
];
