//! What an exported model needs in addition to its weights to be used as it was trained: the run's tokenizer, its
//! chat template, and where an answer ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use lowtide_files::{LIST, SMALL};
use serde_json::{Map, Value, json};

use crate::error::TrainError;
use crate::stops::{Stops, eos_values, json_object};
use lowtide_data::Tokenizer;

/// Names of files that make a directory a tokenizer's, beside `tokenizer.json`.
const FILES: [&str; 16] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "tekken.json",
];
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// A folder of named templates.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// Makes the model in `dir`, a directory that is being written, one of `tokenizer` and `stops`.
///
/// The tokenizer's files take the place of those that came with the weights. A template that the run
/// was given becomes `chat_template.jinja`, and no other is left. `generation_config.json` keeps what it
/// says and gets every stop. The tokenizer's `eos_token` becomes the end of turn where the model's maker
/// named no such end and the template does not write `eos_token` by itself (it would write another text).
///
/// # Errors
/// A file that cannot be read or written, or is not what it must be.
pub(super) fn write(tokenizer: &Tokenizer, stops: &Stops, dir: &Path) -> Result<(), TrainError> {
    copy(tokenizer.path(), dir)?;
    if let Some(template) = tokenizer.given_template() {
        set_template(template, dir)?;
    }
    let knew = generation_config(stops, dir)?;
    if let Some((id, text)) = stops.end_of_turn()
        && !knew.contains(id)
        && tokenizer.eos_text() != Some(text)
        && !tokenizer.templates_mention("eos_token")
    {
        set_eos_token(text, dir)?;
    }
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(TrainError::io(dir))
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(TrainError::io(path))
}

fn put_json(path: &Path, object: &Map<String, Value>) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(object).expect("plain values");
    put(path, (text + "\n").as_bytes())
}

/// Copies the files of the tokenizer at `file` and removes those of another that came with the weights.
fn copy(file: &Path, dir: &Path) -> Result<(), TrainError> {
    let from = file.parent().unwrap_or(Path::new("."));
    for name in FILES {
        if !from.join(name).is_file() {
            remove(&dir.join(name))?;
        }
    }
    copy_file(file, &dir.join("tokenizer.json"))?;
    for entry in fs::read_dir(from).map_err(TrainError::io(from))? {
        let entry = entry.map_err(TrainError::io(from))?;
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str().filter(|n| belongs(n)) else {
            continue;
        };
        if path.is_file() {
            copy_file(&path, &dir.join(name))?;
        }
    }
    let more = from.join(MORE_TEMPLATES);
    if more.is_dir() {
        let to = dir.join(MORE_TEMPLATES);
        fs::create_dir_all(&to).map_err(TrainError::io(&to))?;
        for entry in fs::read_dir(&more).map_err(TrainError::io(&more))? {
            let path = entry.map_err(TrainError::io(&more))?.path();
            if path.is_file() && path.extension().is_some_and(|e| e == "jinja") {
                copy_file(
                    &path,
                    &to.join(path.file_name().expect("an entry has a name")),
                )?;
            }
        }
    }
    Ok(())
}

/// Bytes of the files of the tokenizer at `path`, a `tokenizer.json` or its directory: an export has them.
pub(super) fn bytes(path: &Path) -> u64 {
    let (dir, file) = match path.is_dir() {
        true => (path, path.join("tokenizer.json")),
        false => (path.parent().unwrap_or(Path::new(".")), path.to_owned()),
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let beside = entries.filter(|e| e.file_name().to_str().is_some_and(belongs));
    let all = beside.map(|e| e.path()).chain([file]);
    all.filter_map(|f| fs::metadata(f).ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.len())
        .sum()
}

/// Whether a file of a tokenizer's directory is the tokenizer's, by its name. Some have their own code.
fn belongs(name: &str) -> bool {
    FILES.contains(&name)
        || name.ends_with(".tiktoken")
        || (name.starts_with("tokenization_") && name.ends_with(".py"))
}

/// Copies what is in a file, not its permissions: models are often read-only, and some of their files are
/// changed here.
fn copy_file(from: &Path, to: &Path) -> Result<(), TrainError> {
    remove(to)?;
    let mut source = File::open(from).map_err(TrainError::io(from))?;
    let mut copy = || {
        let mut file = File::create_new(to)?;
        io::copy(&mut source, &mut file)?;
        file.sync_all()
    };
    copy().map_err(TrainError::io(to))
}

fn remove(path: &Path) -> Result<(), TrainError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(TrainError::io(path)(e)),
        _ => Ok(()),
    }
}

/// Leaves `template` as the only one.
fn set_template(template: &str, dir: &Path) -> Result<(), TrainError> {
    put(&dir.join(CHAT_TEMPLATE), template.as_bytes())?;
    remove(&dir.join("chat_template.json"))?;
    let more = dir.join(MORE_TEMPLATES);
    if more.is_dir() {
        fs::remove_dir_all(&more).map_err(TrainError::io(&more))?;
    }
    let path = dir.join("tokenizer_config.json");
    if let Some(mut config) = json_object(&path, LIST)?
        && config.remove("chat_template").is_some()
    {
        put_json(&path, &config)?;
    }
    Ok(())
}

/// Has `generation_config.json` name every stop; returns those it named before, or that `config.json`
/// does where there was no such file.
fn generation_config(stops: &Stops, dir: &Path) -> Result<Stops, TrainError> {
    let (path, config_path) = (dir.join("generation_config.json"), dir.join("config.json"));
    let existing = json_object(&path, SMALL)?;
    let config = json_object(&config_path, SMALL)?.unwrap_or_default();
    let mut listed = match &existing {
        Some(object) => eos_values(object, &path)?,
        None => eos_values(&config, &config_path)?,
    };
    let knew = Stops::of(listed.iter().filter_map(|&id| i32::try_from(id).ok()));
    let missing: Vec<i64> = stops
        .ids()
        .filter(|&id| !knew.contains(id))
        .map(i64::from)
        .collect();
    if stops.ids().next().is_none() || (existing.is_some() && missing.is_empty()) {
        return Ok(knew);
    }
    // Without a file of its own a model generates by its configuration; the new file takes that over.
    let mut object = existing.unwrap_or_else(|| {
        let keys = ["bos_token_id", "pad_token_id", START].iter();
        keys.filter_map(|&key| Some((key.to_owned(), config.get(key)?.clone())))
            .collect()
    });
    listed.extend(missing);
    let value = match &listed[..] {
        [one] => json!(one),
        all => json!(all),
    };
    object.insert("eos_token_id".to_owned(), value);
    put_json(&path, &object)?;
    Ok(knew)
}

/// Has `generation_config.json` and `config.json` say which token decoding starts with where they do not: a model of
/// T5's first authors leaves that to who reads it, and transformers does not decode without.
pub(super) fn say_start(start: i32, dir: &Path) -> Result<(), TrainError> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let Some(mut object) = json_object(&path, SMALL)? else {
            continue;
        };
        let said = object.entry(START).or_insert(Value::Null);
        if said.is_null() {
            *said = json!(start);
            put_json(&path, &object)?;
        }
    }
    Ok(())
}

/// Where a configuration says which token decoding starts with.
const START: &str = "decoder_start_token_id";

fn set_eos_token(text: &str, dir: &Path) -> Result<(), TrainError> {
    for (name, needed) in [
        ("tokenizer_config.json", true),
        ("special_tokens_map.json", false),
    ] {
        let path = dir.join(name);
        let Some(mut object) = json_object(&path, LIST)?.or_else(|| needed.then(Map::new)) else {
            continue;
        };
        object.insert("eos_token".to_owned(), json!(text));
        put_json(&path, &object)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "tokenizer_files_tests.rs"]
mod tests;
