use std::fmt::Write as _;

use super::super::{Packed, Packing, PairFields, TooLong, prompts, testing};
use super::*;

fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn load(text: &str, template: Option<&str>) -> Result<Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = template.map_or_else(testing::tokenizer, testing::with_template);
    Dataset::load(
        &[write(&dir, "d.jsonl", text)],
        &LoadOptions::default(),
        &tokenizer,
    )
}

/// More than one chunk, so that order and line numbers must survive the threads.
#[test]
fn records_keep_their_order_across_files_and_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = [String::new(), String::new()];
    for i in 0..3000 {
        writeln!(parts[i / 2000], "{{\"text\": \"{i} it\"}}").unwrap();
    }
    let paths: Vec<PathBuf> = parts
        .iter()
        .enumerate()
        .map(|(i, text)| write(&dir, &format!("{i}.jsonl"), text))
        .collect();
    let tokenizer = testing::tokenizer();
    let data = Dataset::load(&paths, &LoadOptions::default(), &tokenizer).unwrap();
    assert_eq!((data.len(), data.report().n_records), (3000, 3000));
    for i in [0, 1, 1023, 1024, 1999, 2000, 2999] {
        let text = tokenizer.decode(&data.example(i).unwrap().tokens, false);
        assert_eq!(text, format!("{i} it"));
    }
    let again = Dataset::load(&paths, &LoadOptions::default(), &tokenizer).unwrap();
    assert_eq!(again.report(), data.report());
    let reversed: Vec<PathBuf> = paths.into_iter().rev().collect();
    let reversed = Dataset::load(&reversed, &LoadOptions::default(), &tokenizer).unwrap();
    assert_ne!(reversed.report().mask_hash, data.report().mask_hash);
}

#[test]
fn the_first_wrong_record_is_named_by_file_and_line() {
    let mut text = "{\"text\": \"fine\"}\n\n".repeat(900);
    text.push_str("{\"text\": 7}\n{\n");
    let error = load(&text, None).unwrap_err().to_string();
    assert!(
        error.ends_with("d.jsonl:1801: 'text' is a number, expected a string"),
        "{error}"
    );
    let mixed = "{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    let error = load(mixed, None).unwrap_err().to_string();
    let want = "d.jsonl:2: a prompt/completion record in data that began with text records";
    assert!(error.ends_with(want), "{error}");
    for empty in ["", "\n \n"] {
        assert!(matches!(
            load(empty, None),
            Err(DataError::NoRecords { .. })
        ));
    }
}

#[test]
fn unsupervised_records_are_counted_and_only_such_are_refused() {
    let silent = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}\n";
    let answered = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}, \
                    {\"role\": \"assistant\", \"content\": \"yes\"}]}\n";
    for template in ["chatml", "qwen3"] {
        let data = load(&format!("{silent}{answered}{silent}"), Some(template)).unwrap();
        let report = data.report();
        assert_eq!(
            (report.n_records, report.n_unsupervised, data.len()),
            (3, 2, 1)
        );
        assert!(report.n_supervised > 0 && report.n_supervised < report.n_tokens);
        let error = load(&silent.repeat(3), Some(template)).unwrap_err();
        assert!(
            matches!(error, DataError::NothingSupervised { n_records: 3, .. }),
            "{error}"
        );
    }
}

/// A template that marks everything as the assistant's text.
#[test]
fn masks_that_cover_the_prompts_too_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "hello"}]}"#;
    let path = [write(&dir, "d.jsonl", line)];
    let template =
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let tokenizer = testing::tokenizer().with_chat_template(template).unwrap();
    let error = Dataset::load(&path, &LoadOptions::default(), &tokenizer).unwrap_err();
    assert!(
        matches!(error, DataError::EverythingSupervised { n_records: 1, .. }),
        "{error}"
    );
    let options = LoadOptions {
        loss_on: LossOn::Everything,
        ..LoadOptions::default()
    };
    assert!(Dataset::load(&path, &options, &tokenizer).is_ok());
}

#[test]
fn the_view_shows_each_token_with_its_mask() {
    let data = load(r#"{"prompt": "is it", "completion": " the thing"}"#, None).unwrap();
    let view = data.view(0, &testing::tokenizer()).unwrap();
    let text = |supervised| -> String {
        view.iter()
            .filter(|(_, s)| *s == supervised)
            .map(|(t, _)| t.as_str())
            .collect()
    };
    assert_eq!(
        (text(false).as_str(), text(true).as_str()),
        ("<s>is it", " the thing</s>")
    );
}

#[test]
fn the_hash_sees_a_moved_mask_border() {
    let a = load(r#"{"prompt": "is it", "completion": " the thing"}"#, None).unwrap();
    let b = load(r#"{"prompt": "is it the", "completion": " thing"}"#, None).unwrap();
    assert_eq!(a.example(0).unwrap().tokens, b.example(0).unwrap().tokens);
    assert_ne!(a.report().mask_hash, b.report().mask_hash);
}

/// GSM8K under its own field names, with GPT-2's tokens.
#[test]
fn gsm8k_reads_packs_and_prompts() {
    let (Some(file), Some(gpt2)) = (
        testing::shared("gsm8k/test.jsonl"),
        testing::shared("tokenizers/gpt2"),
    ) else {
        return;
    };
    let tokenizer = Tokenizer::open(&gpt2).unwrap();
    let fields = Fields {
        prompt: "question".into(),
        completion: "answer".into(),
        ..Fields::default()
    };
    let options = LoadOptions {
        fields,
        separator: "\n".into(),
        ..LoadOptions::default()
    };
    let data = Dataset::load(std::slice::from_ref(&file), &options, &tokenizer).unwrap();
    assert_eq!((data.report().n_records, data.len()), (1319, 1319));
    let prompts = prompts(&file, &options, &tokenizer).unwrap();
    let source = std::fs::read_to_string(&file).unwrap();
    for (i, line) in source.lines().enumerate() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let (question, answer) = (
            record["question"].as_str().unwrap(),
            record["answer"].as_str().unwrap(),
        );
        let example = data.example(i).unwrap();
        let text = format!("{question}\n{answer}<|endoftext|>");
        assert_eq!(tokenizer.decode(&example.tokens, true), text);
        let n = prompts[i].tokens.len();
        assert_eq!(prompts[i].tokens, example.tokens[..n]);
        assert!(
            example.supervised[..n].iter().all(|s| !s)
                && example.supervised[n..].iter().all(|s| *s)
        );
        assert_eq!(
            (prompts[i].reference.as_str(), prompts[i].place),
            (answer, crate::Place::Line(i as u64 + 1))
        );
    }
    let n_supervised = data.report().n_supervised;
    let packed = Packed::new(data, 1024, Packing::BestFit, TooLong::Truncate).unwrap();
    assert_eq!(packed.report().n_supervised, n_supervised);
    // Best fit leaves 2 rows of 204 more than the tokens need.
    assert!(
        packed.report().fill(1024) > 0.98,
        "fill {}",
        packed.report().fill(1024)
    );
}

/// Records that cannot be used, of every kind, among good ones: left out, counted, the first ones named.
#[test]
fn bad_records_are_left_out_when_asked_to() {
    let good = "{\"text\": \"fine\"}\n";
    let bad = [
        "{\"text\": 7}\n",
        "{\n",
        "{\"text\": NaN}\n",
        "nonsense\n",
        "{\"txt\": \"x\"}\n",
    ];
    let mut bytes = bad[0].as_bytes().to_vec();
    for line in bad {
        bytes.extend(good.as_bytes());
        bytes.extend(line.as_bytes());
    }
    bytes.extend(b"\xff\n");
    bytes.extend([b' '; 200]);
    bytes.extend(good.repeat(1500).as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let tokenizer = testing::tokenizer();
    let mut options = LoadOptions {
        line_bytes_max: 100,
        on_error: OnError::Skip,
        ..LoadOptions::default()
    };
    let data = Dataset::load(std::slice::from_ref(&path), &options, &tokenizer).unwrap();
    assert_eq!(data.len(), 5 + 1499);
    let remarks = data.remarks();
    assert_eq!((remarks.n_left_out, remarks.places.len()), (8, 3));
    assert!(
        remarks.places[0].contains("d.jsonl:1: 'text' is a number"),
        "{}",
        remarks.places[0]
    );
    assert!(
        remarks.places[1].contains("d.jsonl:3: 'text' is a number"),
        "{}",
        remarks.places[1]
    );
    let said = remarks.sentences().join("");
    assert!(
        said.contains("8 records left out") && said.ends_with("and 5 more"),
        "{said}"
    );

    options.on_error = OnError::Stop;
    let error = Dataset::load(std::slice::from_ref(&path), &options, &tokenizer).unwrap_err();
    assert!(
        error.to_string().contains("d.jsonl:1: 'text' is a number"),
        "{error}"
    );
    options.on_error = OnError::Skip;
    let all_bad = write(&dir, "bad.jsonl", &bad.concat());
    let error = Dataset::load(&[all_bad], &options, &tokenizer).unwrap_err();
    assert!(
        matches!(error, DataError::AllSkipped { n: 5, .. }),
        "{error}"
    );
}

/// All files of a run have one layout: another one is named, and no file is left out as if its records were broken.
#[test]
fn a_file_of_another_layout_ends_the_load_whatever_becomes_of_records() {
    let dir = tempfile::tempdir().unwrap();
    let pair = "{\"prompt\": \"hello\", \"completion\": \"world\"}\n";
    let text = "{\"text\": \"hello world\"}\n";
    let pairs = write(&dir, "a.jsonl", &pair.repeat(2));
    let texts = write(&dir, "b.jsonl", &text.repeat(2));
    let mixed = write(&dir, "c.jsonl", &format!("{pair}{text}"));
    let tokenizer = testing::tokenizer();
    let load = |paths: &[&PathBuf], on_error, system: Option<&str>| {
        let options = LoadOptions {
            on_error,
            system: system.map(str::to_owned),
            ..LoadOptions::default()
        };
        let paths: Vec<PathBuf> = paths.iter().map(|p| (*p).clone()).collect();
        Dataset::load(&paths, &options, &tokenizer)
    };
    for on_error in [OnError::Stop, OnError::Skip] {
        let error = load(&[&pairs, &texts], on_error, None).unwrap_err();
        assert!(error.to_string().contains("b.jsonl:1: "), "{error}");
    }
    assert!(load(&[&pairs, &mixed], OnError::Stop, None).is_err());
    let data = load(&[&pairs, &mixed], OnError::Skip, None).unwrap();
    assert_eq!((data.len(), data.remarks().n_left_out), (3, 1));
    // What is of no known layout, too, and where the model decides the layout: also the first file, and behind a line
    // that is none.
    let sources = "{\"source\": \"hello\", \"target\": \"world\"}\n";
    let source = write(&dir, "d.jsonl", sources);
    let one_lacks = write(
        &dir,
        "e.jsonl",
        &format!("{{\"source\": \"hello\"}}\n{sources}"),
    );
    let broken = write(&dir, "f.jsonl", &format!("{{\n{}", text.repeat(2)));
    let error = load(&[&texts, &source], OnError::Skip, None).unwrap_err();
    assert!(error.to_string().contains("d.jsonl:1: no field"), "{error}");
    let load_pairs = |paths: [&PathBuf; 2]| {
        let options = LoadOptions {
            on_error: OnError::Skip,
            format: Some(Format::Pair),
            fields: Fields {
                pair: Some(PairFields {
                    source: "source".to_owned(),
                    target: "target".to_owned(),
                }),
                ..Fields::default()
            },
            ..LoadOptions::default()
        };
        Dataset::load(&paths.map(PathBuf::clone), &options, &tokenizer)
    };
    for (paths, place) in [
        ([&source, &texts], "b.jsonl:1: "),
        ([&texts, &source], "b.jsonl:1: "),
        ([&source, &broken], "f.jsonl:2: "),
    ] {
        let error = load_pairs(paths).unwrap_err();
        assert!(error.to_string().contains(place), "{error}");
    }
    let data = load_pairs([&source, &one_lacks]).unwrap();
    assert_eq!((data.len(), data.remarks().n_left_out), (2, 1));
    // One that has the fields shows that the layout is the same, also where it cannot be used.
    let no_use = "{\"source\": \"hello\"}\n{\"source\": \"hello\", \"target\": 3}\n";
    let no_use = write(&dir, "g.jsonl", no_use);
    let data = load_pairs([&source, &no_use]).unwrap();
    assert_eq!((data.len(), data.remarks().n_left_out), (1, 2));
    // A system prompt has no place in either.
    for file in [&pairs, &texts] {
        let error = load(&[file], OnError::Skip, Some("Be brief.")).unwrap_err();
        assert!(error.to_string().contains("data.system"), "{error}");
    }
}

#[test]
fn files_of_other_formats_are_named() {
    for (text, want) in [
        (
            "{\n  \"text\": \"a\"\n}\n",
            "a JSON object over several lines",
        ),
        ("question,answer\n1,2\n", "a table (CSV)"),
    ] {
        for on_error in [OnError::Stop, OnError::Skip] {
            let dir = tempfile::tempdir().unwrap();
            let options = LoadOptions {
                on_error,
                ..LoadOptions::default()
            };
            let path = write(&dir, "d.json", text);
            let error = Dataset::load(&[path], &options, &testing::tokenizer()).unwrap_err();
            let error = error.to_string();
            let want = format!(
                "d.json: {want}; data files are JSONL (one JSON object a line), JSON arrays of objects, CSV, Parquet and \
                 plain text, tables and texts by the endings .csv, .tsv, .txt and .md"
            );
            assert!(error.ends_with(&want), "{error}");
        }
    }
    // Behind good records a broken one is a broken record.
    let error = load("{\"text\": \"a\"}\n[1]\n", None)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("d.jsonl:2: a list where an object is expected"),
        "{error}"
    );
}

#[test]
fn a_file_in_which_everything_is_supervised_is_found_among_others() {
    let dir = tempfile::tempdir().unwrap();
    let line = |name: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"name\": \"{name}\", \"content\": \"hello\"}}]}}\n"
        )
    };
    let good = write(&dir, "a.jsonl", &line("Ann"));
    let full = write(&dir, "b.jsonl", &line("").repeat(2));
    let template = "{% for m in messages %}{{ m.name }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let tokenizer = testing::tokenizer().with_chat_template(template).unwrap();
    let load = |paths: &[PathBuf], loss_on| {
        let options = LoadOptions {
            loss_on,
            ..LoadOptions::default()
        };
        Dataset::load(paths, &options, &tokenizer)
    };
    for paths in [[good.clone(), full.clone()], [full.clone(), good.clone()]] {
        match load(&paths, LossOn::Answers).unwrap_err() {
            DataError::EverythingSupervised {
                path, n_records, ..
            } => assert_eq!((path, n_records), (full.clone(), 2)),
            other => panic!("{other}"),
        }
        load(&paths, LossOn::Everything).unwrap();
    }
}
