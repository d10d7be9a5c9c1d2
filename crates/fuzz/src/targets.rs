//! The targets.

mod config;
mod data;
mod machine;
mod manifest;
mod run_file;
mod state_file;
mod template;
mod tokenizer;
mod weights;

use std::sync::OnceLock;

use lowtide_data::Tokenizer;
use lowtide_model::Options;
use lowtide_workload::{Batch, Dtype, Optimizer};

/// How a file's bytes are laid out: what a mutation has to keep for the file to mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON value.
    Json,
    /// One JSON value a line.
    Lines,
    /// Eight bytes of length, one JSON value of as many bytes, then others.
    Header,
    /// Words and lines.
    Text,
    /// Nothing but bytes.
    Bytes,
}

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and the folder of its seeds.
    pub name: &'static str,
    /// What a file of it is made of, so that mutations keep it readable.
    pub form: Form,
    /// Most bytes that are read; longer inputs are refused here, so that one takes milliseconds.
    pub longest: usize,
    read: fn(&[u8]) -> Result<(), String>,
}

impl Target {
    /// Reads one file as the commands do.
    ///
    /// # Errors
    /// The message that a user would see; it is never empty.
    pub fn read(&self, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > self.longest {
            return Err("longer than this target reads".to_owned());
        }
        let read = (self.read)(bytes);
        assert!(read != Err(String::new()), "an error without a text");
        read
    }

    /// The target of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|t| t.name == name)
    }
}

const fn target(
    name: &'static str,
    form: Form,
    longest: usize,
    read: fn(&[u8]) -> Result<(), String>,
) -> Target {
    Target {
        name,
        form,
        longest,
        read,
    }
}

/// The targets, one for each kind of file.
pub const TARGETS: [Target; 9] = [
    target("config", Form::Json, 8 << 10, config::read),
    target("tokenizer", Form::Json, 16 << 10, tokenizer::read),
    target("template", Form::Text, 8 << 10, template::read),
    target("run", Form::Text, 16 << 10, run_file::read),
    target("data", Form::Lines, 16 << 10, data::read),
    target("manifest", Form::Json, 16 << 10, manifest::read),
    target("weights", Form::Header, 64 << 10, weights::read),
    target("state", Form::Bytes, 1 << 10, state_file::read),
    target("machine", Form::Json, 16 << 10, machine::read),
];

/// An error as the user reads it.
fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A batch that a test can afford.
const BATCH: Batch = Batch {
    target: 0,
    micro_batch: 2,
    seq: 64,
    accumulate: 2,
};

fn options(batch: Batch) -> Options {
    let cpu = lowtide_trainer::inside::Target::default();
    Options {
        precision: Dtype::Bf16,
        gradient: Dtype::Bf16,
        optimizer: Optimizer::default(),
        frozen: Vec::new(),
        lsp: None,
        batch,
        logits_chunk: 0,
        rows_chunk: 0,
        make: cpu.make,
        attention: cpu.attention,
    }
}

/// A small tokenizer of bytes and a few merges.
const TOKENIZER: &[u8] = include_bytes!("../../data/testdata/chat/tokenizer/tokenizer.json");
/// What stands beside it.
const TOKENIZER_CONFIG: &[u8] =
    include_bytes!("../../data/testdata/chat/tokenizer/tokenizer_config.json");

/// Opens that tokenizer.
fn small_tokenizer() -> Tokenizer {
    let dir = crate::scratch::folder("tokenizer");
    crate::scratch::write(&dir.join("tokenizer.json"), TOKENIZER);
    crate::scratch::write(&dir.join("tokenizer_config.json"), TOKENIZER_CONFIG);
    Tokenizer::open(&dir).expect("the small tokenizer can be opened")
}

/// The same with a chat template, opened once.
fn chat_tokenizer() -> &'static Tokenizer {
    static OPENED: OnceLock<Tokenizer> = OnceLock::new();
    OPENED.get_or_init(|| {
        let template = include_str!("../../data/testdata/chat/chatml.jinja");
        let with = small_tokenizer().with_chat_template(template);
        with.expect("the template can be read")
    })
}

/// Conversations of all shapes: what people write in JSONL.
const CHATS: [&str; 4] = [
    r#"{"messages":[{"role":"user","content":"What is 1 + 1?\n"},{"role":"assistant","content":"It is 2."}]}"#,
    r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":" c "},{"role":"assistant","content":"<think>\nso\n</think>\n\nd\u00e9"}]}"#,
    r#"{"messages":[{"role":"user","content":"add"},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"add","arguments":{"a":1,"b":[1.5,null,true]}}}]},{"role":"tool","name":"add","tool_call_id":"1","content":"{\"sum\": 2}"},{"role":"assistant","content":"2"}],"tools":[{"type":"function","function":{"name":"add","description":"Adds.","parameters":{"type":"object","properties":{"a":{"type":"number"}},"required":["a"]}}}]}"#,
    r#"{"messages":[{"role":"assistant","content":"x","weight":0},{"role":"assistant","content":"y"}]}"#,
];
