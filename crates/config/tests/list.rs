//! The list of keys against itself and against what is generated from it.

use std::collections::BTreeSet;

use lowtide_config::{KEYS, KeyDefault, Kind, SECTIONS, reference_markdown, schema};
use lowtide_workload::OptimizerName;
use serde_json::Value;

/// Every key, frozen: a run file of today is one of tomorrow. A change here is a change for users
/// and belongs into the changelog.
const FROZEN: &str = "
model.path model.shape model.config model.init model.tokenizer model.labels
precision device gpus seed output threads
budget.device budget.host budget.disk budget.disk_writes
data.train data.eval data.eval_split data.format data.fields.messages data.fields.prompt
data.fields.completion data.fields.text data.fields.text_pair data.fields.label data.fields.source data.fields.target
data.packing data.train_on data.shuffle data.max_examples
data.on_error data.text_by data.max_line data.cache data.streaming data.system data.separator data.chat_template
train.steps train.epochs train.micro_batch train.seq train.target train.accumulate train.reduce train.leaves
train.last_batch train.learning_rate train.schedule train.warmup_steps train.warmup_ratio train.decay_ratio train.min_lr_ratio
train.clip.mode train.clip.norm train.gradient train.on_nonfinite train.spike.factor train.spike.window train.spike.action
train.label_smoothing train.neftune_alpha train.logits_chunk train.rows_chunk
train.freeze train.unfreeze
optimizer.name optimizer.beta1 optimizer.beta2 optimizer.eps
optimizer.clip_threshold optimizer.decay_rate optimizer.weight_decay
optimizer.groups optimizer.moments optimizer.update
strategy.name strategy.lsp.compression strategy.lsp.projector
plan.loop plan.weights plan.optimizer plan.gradients plan.inputs plan.recompute
plan.activations plan.offload plan.direct plan.min_gain plan.prefetch plan.pieces plan.adaptive plan.machine
eval.every_steps eval.every_epochs eval.batches eval.patience eval.min_delta eval.generate.exact_match eval.generate.max_new_tokens
eval.generate.max_examples eval.generate.extract eval.generate.every_steps eval.generate.cached
checkpoint.every_steps checkpoint.every_epochs checkpoint.every_minutes checkpoint.background checkpoint.keep checkpoint.on_error checkpoint.keep_best checkpoint.resume checkpoint.durable
checkpoint.change
log.every_steps log.report log.tensorboard log.trace
";

fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.')
        .try_fold(schema, |s, part| s.get("properties")?.get(part))
}

#[test]
fn the_keys_are_the_frozen_ones() {
    let names: Vec<_> = KEYS.iter().map(|k| k.name).collect();
    assert_eq!(names, FROZEN.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        names.iter().collect::<BTreeSet<_>>().len(),
        names.len(),
        "a name twice"
    );
}

#[test]
fn each_key_has_a_section_a_doc_line_a_default_and_a_schema() {
    let schema = schema();
    let page = reference_markdown();
    for key in KEYS {
        let (section, last) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        assert!(
            SECTIONS.iter().any(|s| s.0 == section),
            "{}: no section",
            key.name
        );
        assert!(
            key.doc.ends_with('.') && key.doc.len() > 10,
            "{}: {}",
            key.name,
            key.doc
        );
        let property = property(&schema, key.name).expect(key.name);
        let described = property["description"].as_str().unwrap();
        assert!(described.starts_with(key.doc), "{}", key.name);
        let typed = ["type", "enum", "anyOf"]
            .iter()
            .any(|t| property.get(t).is_some());
        assert!(typed, "{}: {property}", key.name);
        match key.default {
            KeyDefault::Value(text) => {
                assert!(property.get("default").is_some(), "{}", key.name);
                assert!(page.contains(&format!("| `{text}` |")), "{}", key.name);
            }
            KeyDefault::ByOptimizer => {
                let said = property.get("default").is_some() || described.contains("Default: ");
                assert!(said, "{}", key.name);
                for name in OptimizerName::ALL {
                    let Some(setting) = name.setting(last) else {
                        continue;
                    };
                    let default = format!("`{}`", setting.default);
                    assert!(page.contains(&default), "{}", key.name);
                }
            }
            KeyDefault::Unset(words) => {
                assert!(
                    described.ends_with(&format!("Default: {words}.")),
                    "{}",
                    key.name
                );
                assert!(page.contains(&format!("| {words} |")), "{}", key.name);
            }
        }
        let row = page
            .lines()
            .filter(|l| l.starts_with(&format!("| `{last}` |")));
        assert!(
            row.clone().any(|l| l.contains(key.doc)),
            "{}: not in the reference",
            key.name
        );
        for elsewhere in key.elsewhere {
            let others = KEYS.iter().filter(|k| k.elsewhere.contains(elsewhere));
            assert_eq!(others.count(), 1, "{elsewhere} points to two keys");
        }
    }
}

/// Whether `value` is one that a property of ours allows; knows just the words `schema` uses.
fn allows(schema: &Value, value: &Value) -> bool {
    if let Some(any) = schema.get("anyOf") {
        return any.as_array().unwrap().iter().any(|s| allows(s, value));
    }
    if let Some(words) = schema.get("enum") {
        return words.as_array().unwrap().contains(value);
    }
    if let Some(word) = schema.get("const") {
        return word == value;
    }
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    let n = value.as_f64();
    let within = n.is_none_or(|n| {
        limit("minimum").is_none_or(|x| n >= x)
            && limit("maximum").is_none_or(|x| n <= x)
            && limit("exclusiveMinimum").is_none_or(|x| n > x)
            && limit("exclusiveMaximum").is_none_or(|x| n < x)
    });
    match schema["type"].as_str().unwrap() {
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() && within,
        "number" => value.is_number() && within,
        "string" => value.is_string(),
        _ => false,
    }
}

#[test]
fn defaults_are_allowed_by_their_own_schema() {
    let schema = schema();
    for key in KEYS {
        let property = property(&schema, key.name).unwrap();
        if let Some(default) = property.get("default") {
            assert!(
                allows(property, default),
                "{}: {default} against {property}",
                key.name
            );
        }
    }
}

#[test]
fn the_schema_is_closed_and_of_its_draft() {
    fn walk(schema: &Value, at: &str) {
        if schema.get("properties").is_some() {
            assert_eq!(schema["additionalProperties"], false, "{at}");
            assert!(at.is_empty() || schema["description"].is_string(), "{at}");
            for (name, sub) in schema["properties"].as_object().unwrap() {
                walk(sub, &format!("{at}.{name}"));
            }
        }
    }
    let schema = schema();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    walk(&schema, "");
    for (name, about) in SECTIONS.iter().filter(|s| !s.0.is_empty()) {
        assert_eq!(property(&schema, name).unwrap()["description"], *about);
    }
}

#[test]
fn the_reference_has_whole_tables() {
    let page = reference_markdown();
    let rows = page.lines().filter(|l| l.starts_with("| `")).count();
    assert_eq!(rows, KEYS.len());
    for line in page.lines().filter(|l| l.starts_with('|')) {
        assert_eq!(line.matches('|').count(), 5, "{line}");
    }
}

#[test]
fn what_is_allowed_is_never_empty() {
    for key in KEYS {
        assert!(!key.kind.allowed().is_empty(), "{}", key.name);
        if let Kind::Count { max, .. } = key.kind {
            let wide = ["seed", "data.max_examples", "eval.generate.max_examples"];
            assert!(
                max <= u64::from(u32::MAX) || wide.contains(&key.name),
                "{}",
                key.name
            );
        }
    }
}
