//! Texts with a class, as transformers' tokenizers make tokens of them (`testdata/pairs/golden.py`).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::batches::{BatchShape, EvalBatches};
use super::super::dataset::{Dataset, LoadOptions};
use super::super::jsonl::{ClassFields, Fields, Format};
use super::super::packing::{NO_LABEL, Packed, Packing, SECOND_TEXT, TooLong};
use super::*;
use crate::error::DataError;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/pairs")
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&folder().join(name)).unwrap()
}

fn classes(tokens_max: usize) -> Classes {
    Classes {
        names: ["bad", "good", "7"].map(str::to_owned).into(),
        tokens_max,
    }
}

#[test]
fn tokens_types_and_cuts_are_those_of_transformers() {
    let text = std::fs::read_to_string(folder().join("golden.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let numbers = |list: &Value| -> Vec<i32> {
        let all = list.as_array().unwrap().iter();
        all.map(|n| n.as_i64().unwrap() as i32).collect()
    };
    let mut n_cut = 0;
    for case in &cases {
        let tokenizer = tokenizer(case["tokenizer"].as_str().unwrap());
        let classes = classes(case["longest"].as_u64().unwrap() as usize);
        let pairs = Pairs::new(&classes, &tokenizer);
        let (text, pair) = (case["text"].as_str().unwrap(), case["pair"].as_str());
        let (example, cut) = pairs.example(text, pair, &json!(1)).unwrap();
        assert_eq!(example.tokens, numbers(&case["tokens"]), "{case}");
        let types = example.supervised.iter().map(|&t| i32::from(t));
        assert_eq!(types.collect::<Vec<_>>(), numbers(&case["types"]), "{case}");
        assert_eq!(example.class, Some(1));
        n_cut += u64::from(cut);
    }
    assert!(cases.len() > 50 && n_cut > 10 && n_cut < 50, "{n_cut}");
}

#[test]
fn classes_have_names_and_numbers() {
    let (tokenizer, classes) = (tokenizer("bert"), classes(16));
    let pairs = Pairs::new(&classes, &tokenizer);
    let class = |label: Value| Some(pairs.example("a", None, &label).ok()?.0.class.unwrap());
    for (label, want) in [
        (json!("good"), Some(1)),
        (json!(0), Some(0)),
        (json!("2"), Some(2)),
        // A name comes before a number.
        (json!("7"), Some(2)),
        (json!(3), None),
        (json!(-1), None),
        (json!("Good"), None),
        (json!("9999999999999999999999"), None),
    ] {
        assert_eq!(class(label.clone()), want, "{label}");
    }
    let text = pairs
        .example("a", None, &json!("fair"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        "the class \"fair\" is none of the model's: bad, good, 7; or their numbers from 0 on"
    );
    let empty = pairs.example("  ", None, &json!(1)).unwrap_err();
    assert!(matches!(empty, RecordProblem::NoTokens), "{empty}");
}

#[test]
fn a_post_processor_that_leaves_texts_out_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read(folder().join("bert/tokenizer.json")).unwrap();
    let mut file: Value = serde_json::from_slice(&text).unwrap();
    file["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {}});
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let (tokenizer, classes) = (Tokenizer::open(dir.path()).unwrap(), classes(16));
    let pairs = Pairs::new(&classes, &tokenizer);
    assert!(pairs.example("a film", None, &json!(1)).is_ok());
    let e = pairs
        .example("a film", Some("a book"), &json!(1))
        .unwrap_err();
    assert!(matches!(e, RecordProblem::NoTokens), "{e}");
}

/// From a file to a row: documents side by side, each with its class at its first token, whatever is kept where.
#[test]
fn records_become_rows_with_a_class_a_document() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let lines = [
        json!({"s1": "a film", "s2": "the book", "label": "good"}),
        json!({"s1": "very bad", "label": 0}),
        json!({"s1": "the film was not good", "s2": "", "label": "1"}),
    ];
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, lines.concat()).unwrap();
    let options = LoadOptions {
        format: Some(Format::Classes),
        fields: Fields {
            text: "s1".into(),
            class: Some(ClassFields {
                text_pair: "s2".into(),
                label: "label".into(),
            }),
            ..Fields::default()
        },
        classes: Some(classes(12)),
        ..LoadOptions::default()
    };
    let tokenizer = tokenizer("bert");
    let data = Dataset::load(std::slice::from_ref(&path), &options, &tokenizer).unwrap();
    assert_eq!((data.len(), data.report().n_supervised), (3, 3));
    let tokens: Vec<usize> = (0..3).map(|i| data.tokens_of(i)).collect();
    assert_eq!(tokens, [7, 4, 7]);
    let cache = super::super::dataset::Cache {
        folder: dir.path().join("cache"),
        required: true,
        bytes_min: 0,
    };
    for _ in 0..2 {
        let load = Dataset::load_kept(std::slice::from_ref(&path), &options, &tokenizer, &cache);
        let (kept, _) = load.unwrap();
        assert_eq!(kept.report(), data.report());
        assert_eq!(kept.example(0).unwrap(), data.example(0).unwrap());
    }
    let packed = Packed::new(data, 12, Packing::InOrder, TooLong::Truncate).unwrap();
    let shape = BatchShape {
        micro_batch: 2,
        accumulate: 1,
    };
    let batch = EvalBatches::new(packed.into(), shape)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!((batch.supervised_tokens, batch.real_tokens), (3, 18));
    let micro = &batch.micro[0];
    let (no, second) = (NO_LABEL, SECOND_TEXT);
    let first = [1, no, no, no, second, second, second, 0, no, no, no, no];
    assert_eq!(micro.labels[..12], first);
    assert_eq!(micro.positions[..12], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 0]);
    assert_eq!(micro.doc_start[..12], [0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 11]);
    assert_eq!(micro.labels[12..14], [1, no]);

    // A record that lacks the class names the field.
    std::fs::write(&path, "{\"s1\": \"a\", \"text\": \"b\"}\n").unwrap();
    let e = Dataset::load(&[path], &options, &tokenizer).unwrap_err();
    assert!(
        matches!(e, DataError::Record { .. }) && e.to_string().contains("'label'"),
        "{e}"
    );
}
