//! What the tests of this folder share: the golden chat cases and the tokenizer they were made
//! with (`testdata/chat/golden.py`), and files shared with other checkouts.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value as Json;

use super::Tokenizer;

/// The day the golden file shows, 2024-07-26 12:00 UTC.
const GOLDEN_NOW: i64 = 1_721_995_200;

pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/chat")
}

/// A small byte-level BPE with ChatML, Llama and Mistral special tokens; no chat template.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::open(&testdata().join("tokenizer"))
        .unwrap()
        .with_now(GOLDEN_NOW)
        .unwrap()
}

/// The same with one of the golden templates.
pub fn with_template(name: &str) -> Tokenizer {
    let source = std::fs::read_to_string(testdata().join(format!("{name}.jinja"))).unwrap();
    tokenizer().with_chat_template(&source).unwrap()
}

/// One conversation rendered by transformers.
pub struct Golden {
    pub template: String,
    pub title: String,
    pub messages: Vec<Json>,
    pub tools: Option<Json>,
    pub text: String,
    pub prompt: String,
    pub tokens: Vec<i32>,
    pub mask: Option<Vec<bool>>,
}

pub fn golden() -> Vec<Golden> {
    let text = std::fs::read_to_string(testdata().join("golden.json")).unwrap();
    let cases: Vec<Json> = serde_json::from_str(&text).unwrap();
    let string = |case: &Json, key: &str| case[key].as_str().unwrap().to_owned();
    let numbers = |list: &Json| -> Option<Vec<i32>> {
        Some(
            list.as_array()?
                .iter()
                .map(|n| n.as_i64().unwrap() as i32)
                .collect(),
        )
    };
    cases
        .iter()
        .map(|case| Golden {
            template: string(case, "template"),
            title: string(case, "title"),
            messages: case["messages"].as_array().unwrap().clone(),
            tools: case.get("tools").cloned(),
            text: string(case, "text"),
            prompt: string(case, "prompt"),
            tokens: numbers(&case["tokens"]).unwrap(),
            mask: numbers(&case["mask"]).map(|mask| mask.iter().map(|&m| m == 1).collect()),
        })
        .collect()
}

/// A file of the folder beside the checkout, if it is there; says so if it is not.
#[allow(clippy::print_stderr)]
pub fn shared(file: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(file);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// JSON-like noise: pieces of records in any order, which random bytes would seldom be.
pub fn noise() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(":"),
        Just(","),
        Just("\""),
        Just("\"messages\""),
        Just("\"role\""),
        Just("\"content\""),
        Just("\"user\""),
        Just("\"text\""),
        Just("\"prompt\""),
        Just("\"completion\""),
        Just("null"),
        Just("1e999"),
        Just("\\ud800"),
        Just("\\u0000"),
        Just("\u{feff}"),
        Just("\r"),
        Just(" "),
        Just("\n"),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}
