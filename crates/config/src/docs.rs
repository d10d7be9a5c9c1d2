//! The list of keys as a JSON Schema and as a page of documentation.

use std::fmt::Write;
use std::ops::Bound;

use lowtide_units::Bytes;
use serde_json::{Map, Value as Json, json};

use crate::key::{AUTO, DECAY, GROUPS, Key, Kind, RATE, WEIGHT};
use crate::keys::{KEYS, SECTIONS};
use crate::low::default;
use crate::value::{Value, join};
use crate::words::Words;

/// The JSON Schema (draft 2020-12) of a run file, for editors. It holds what one key allows; rules
/// between keys are checked by [`Run`](crate::Run) alone.
#[must_use]
pub fn schema() -> Json {
    let mut root = section("");
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("lowtide run");
    root["description"] = json!("A training run of lowtide.");
    root
}

/// An object with the keys and sections directly inside `name`.
fn section(name: &str) -> Json {
    let inside = |whole: &str| {
        let (parent, last) = whole.rsplit_once('.').unwrap_or(("", whole));
        (parent == name && !whole.is_empty()).then(|| last.to_owned())
    };
    let mut properties = Map::new();
    for (whole, about) in SECTIONS {
        if let Some(last) = inside(whole) {
            let mut sub = section(whole);
            sub["description"] = json!(about);
            properties.insert(last, sub);
        }
    }
    for key in KEYS {
        if let Some(last) = inside(key.name) {
            properties.insert(last, property(key));
        }
    }
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn property(key: &Key) -> Json {
    let mut schema = typed(&key.kind);
    let doc = key.doc.to_owned() + &of_optimizers(key, "");
    schema["description"] = match default(key) {
        Some(_) => json!(doc),
        None => json!(format!("{doc} Default: {}.", key.default_words(""))),
    };
    if let Some(value) = default(key) {
        schema["default"] = as_json(&value);
    }
    schema
}

fn typed(kind: &Kind) -> Json {
    let auto = json!({ "const": AUTO });
    let mut schema = match kind {
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Count { min, max } => count(*min, *max),
        Kind::Number { low, high } => number(*low, *high),
        Kind::Text | Kind::Path => json!({ "type": "string" }),
        Kind::Pattern => json!({ "type": "string", "format": "regex" }),
        Kind::Words { .. } => {
            let word = json!({ "enum": kind.words() });
            json!({ "anyOf": [word.clone(), { "type": "array", "items": word }] })
        }
        Kind::Paths | Kind::Texts => json!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" } },
        ]}),
        Kind::Sources => {
            let source = json!({
                "type": "object",
                "additionalProperties": false,
                "required": ["path"],
                "properties": {
                    "path": { "type": "string" },
                    "weight": number(WEIGHT.0, WEIGHT.1),
                },
            });
            let one = json!({ "type": "string" });
            json!({ "anyOf": [
                one.clone(),
                source.clone(),
                { "type": "array", "items": { "anyOf": [one, source] } },
            ]})
        }
        Kind::Rates => groups(),
        Kind::Size => json!({ "anyOf": sizes() }),
        Kind::Disks => {
            let disk = json!({
                "type": "object",
                "additionalProperties": false,
                "required": ["dir", "size"],
                "properties": {
                    "dir": { "type": "string", "description": "Directory, made if absent." },
                    "size": { "anyOf": sizes() },
                },
            });
            let mut any = sizes();
            any.extend([json!({ "type": "array", "items": disk.clone() }), disk]);
            json!({ "anyOf": any })
        }
        Kind::Word { words, aliases, .. } => {
            let all = words.iter().chain(*aliases).map(|w| json!(w.0));
            json!({ "enum": all.collect::<Vec<_>>() })
        }
        Kind::Pin { .. } | Kind::Shape => json!({ "enum": kind.words() }),
        Kind::PinCount { words: [], max } => json!({ "anyOf": [auto, count(0, *max)] }),
        Kind::PinCount { max, .. } => {
            json!({ "anyOf": [{ "enum": kind.words() }, count(0, *max)] })
        }
        Kind::PinGroups { .. } => {
            let groups = json!({ "type": "string", "pattern": format!("^{GROUPS}[1-9][0-9_]*$") });
            json!({ "anyOf": [{ "enum": kind.words() }, groups] })
        }
        Kind::WordOrPath { .. } => {
            json!({ "anyOf": [{ "enum": kind.words() }, { "type": "string" }] })
        }
    };
    if let Kind::Shape = kind {
        schema["type"] = json!("string");
    }
    schema
}

/// Of `optimizer.groups`.
fn groups() -> Json {
    let names = json!({ "anyOf": [
        { "type": "string" },
        { "type": "array", "items": { "type": "string" }, "minItems": 1 },
    ]});
    let group = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["match"],
        "anyOf": [{ "required": ["learning_rate"] }, { "required": ["weight_decay"] }],
        "properties": {
            "match": names,
            "learning_rate": number(RATE.0, RATE.1),
            "weight_decay": number(DECAY.0, DECAY.1),
        },
    });
    json!({ "anyOf": [group.clone(), { "type": "array", "items": group }] })
}

fn count(min: u64, max: u64) -> Json {
    let mut schema = json!({ "type": "integer", "minimum": min });
    if max < u64::MAX {
        schema["maximum"] = json!(max);
    }
    schema
}

fn number(low: Bound<f64>, high: Bound<f64>) -> Json {
    let mut schema = json!({ "type": "number" });
    match low {
        Bound::Included(x) => schema["minimum"] = json!(x),
        Bound::Excluded(x) => schema["exclusiveMinimum"] = json!(x),
        Bound::Unbounded => {}
    }
    match high {
        Bound::Included(x) => schema["maximum"] = json!(x),
        Bound::Excluded(x) => schema["exclusiveMaximum"] = json!(x),
        Bound::Unbounded => {}
    }
    schema
}

fn sizes() -> Vec<Json> {
    let pattern = r"^\s*[0-9][0-9_]*(\.[0-9_]*)?\s*([bB]|[kKmMgGtT]([iI]?[bB])?)?\s*$";
    vec![
        json!({ "type": "integer", "minimum": 0 }),
        json!({ "type": "string", "pattern": pattern }),
    ]
}

fn as_json(value: &Value) -> Json {
    match value {
        Value::Flag(flag) => json!(flag),
        Value::Count(n) => json!(n),
        Value::Number(n) => json!(n),
        Value::Text(text) => json!(text),
        Value::Texts(list) => json!(list),
        Value::Sources(list) => list.iter().map(|source| json!(source.0)).collect(),
        Value::Size(size) => json!(size.0),
        Value::Disks(disks) => {
            let disk = |(dir, size): &(String, Bytes)| json!({ "dir": dir, "size": size.0 });
            disks.iter().map(disk).collect()
        }
        Value::Groups(groups) => json!(groups),
        Value::Word(word) => json!(word),
        Value::Words(words) => json!(words),
    }
}

/// The reference of all keys as a Markdown page.
#[must_use]
pub fn reference_markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    for (name, about) in SECTIONS {
        let title = if name.is_empty() {
            "Top".to_owned()
        } else {
            format!("`{name}`")
        };
        let _ = write!(page, "\n## {title}\n\n{about}\n\n");
        page += "| key | takes | default | meaning |\n|---|---|---|---|\n";
        for key in KEYS {
            let last = key.name.rsplit('.').next().unwrap_or(key.name);
            if join(name, last) == key.name {
                page += &row(key, last);
            }
        }
    }
    page
}

const INTRODUCTION: &str = "\
# Keys of a run file

A run is one YAML file and any number of `--set key.path=value`, later ones over earlier ones and
all over the file; an empty value takes a key back to its default. Paths in the file are relative
to the file, paths in `--set` to the current directory; `~/` is the home directory. Sizes are
written `24GiB`, `512MiB`, `4TB` or in bytes; numbers may be written `1e-5` or `1_000`. Where a
`--set` gives one of several keys that exclude each other, the file's other one is dropped.

A run file that is written as `@RUN.yaml` on the command line has its paths relative to the current directory instead of
to the file; one whose own name begins with `@` is written `./@RUN.yaml`. `--set @FILE` reads overrides from FILE, one a
line.
";

fn row(key: &Key, last: &str) -> String {
    let default = key.default_words("`");
    let mut meaning = key.doc.to_owned();
    if let Kind::Word { words, .. }
    | Kind::Pin { words }
    | Kind::PinCount { words, .. }
    | Kind::PinGroups { words, .. }
    | Kind::WordOrPath { words } = key.kind
    {
        meaning += &glossary(words);
    }
    meaning += &of_optimizers(key, "`");
    let takes = key.kind.allowed();
    format!("| `{last}` | {takes} | {default} | {meaning} |\n")
}

/// What a setting is to optimizers that have a line of their own for it.
fn of_optimizers(key: &Key, quote: &str) -> String {
    let each = key
        .by_optimizer()
        .into_iter()
        .filter_map(|(name, setting)| {
            let doc = setting.doc?;
            Some(format!(" {quote}{}{quote}: {doc}.", name.name()))
        });
    each.collect()
}

/// The meanings of words, where there is more than one word.
fn glossary(words: Words) -> String {
    if words.len() < 2 {
        return String::new();
    }
    let each = words
        .iter()
        .map(|(word, doc)| format!("`{word}`: {}", doc.trim()));
    format!(" {}.", each.collect::<Vec<_>>().join("; "))
}
