use std::fs;

use serde_json::json;

use super::*;
use crate::plain::TextBy;
use crate::testing::with_template;
use crate::{Dataset, Fields};

fn records(
    name: &str,
    bytes: &[u8],
    options: &LoadOptions,
) -> Vec<(String, Result<Value, String>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let source = Source::open(&path, options)
        .map_err(|e| e.to_string())
        .unwrap();
    source
        .map(|line| line.unwrap())
        .map(|line| {
            let text = line.text.map(|text| serde_json::from_str(&text).unwrap());
            (line.place.to_string(), text.map_err(|e| e.to_string()))
        })
        .collect()
}

fn fine(name: &str, bytes: &str, options: &LoadOptions) -> Vec<Value> {
    let all = records(name, bytes.as_bytes(), options);
    all.into_iter().map(|r| r.1.unwrap()).collect()
}

#[test]
fn a_file_is_what_it_begins_with_and_is_called() {
    let dir = tempfile::tempdir().unwrap();
    for (name, head, make) in [
        ("a.jsonl", "{}", Make::Json),
        ("a", "x", Make::Json),
        ("a.csv", "prompt,completion\n", Make::Csv),
        ("A.TSV", "a\tb\n", Make::Csv),
        ("a.txt", "Once upon a time", Make::Plain),
        ("a.md", "# Title", Make::Plain),
        ("a.jsonl", "PAR1\x15\x04", Make::Parquet),
        ("a.parquet", "", Make::Parquet),
        // Records under another name are records, as they always were.
        ("a.txt", "\u{feff} {\"text\": 1}", Make::Json),
        ("a.csv", "[\n {\"text\": 1}]", Make::Json),
        // What only begins like them is a text.
        ("a.md", "[a link](there)", Make::Plain),
        ("a.txt", "{x | x > 0}", Make::Plain),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, head).unwrap();
        assert_eq!(Make::of(&path), make, "{name}: {head}");
    }
    for (name, bytes, what) in [
        ("a.txt", &b"\xff\xfeh\0"[..], "UTF-16"),
        ("a.txt", b"{\0\"\0t\0\"\0", "UTF-16"),
        ("a.txt", b"\0{\0\"\0t\0\"", "UTF-16"),
        ("a.csv", b"<!DOCTYPE html><html>", "web page"),
        ("a.csv", b"\x1f\x8b\x08", "compressed"),
        (
            "a.txt",
            b"version https://git-lfs.github.com/spec/v1\noid",
            "LFS",
        ),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = Source::open(&path, &LoadOptions::default()).err().unwrap();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn tables_are_read_as_they_are_written() {
    let options = LoadOptions::default();
    let want = [
        json!({"prompt": "a, \"b\"", "completion": "two\nlines", "n": "1"}),
        json!({"prompt": "é", "completion": "", "n": "2"}),
    ];
    let comma = "\u{feff}prompt,completion,n\r\n\"a, \"\"b\"\"\",\"two\nlines\",1\r\n\r\né,,2\r\n";
    assert_eq!(fine("a.csv", comma, &options), want);
    let places: Vec<String> = records("a.csv", comma.as_bytes(), &options)
        .into_iter()
        .map(|r| r.0)
        .collect();
    assert_eq!(places, [":2", ":5"]);
    let tabs = comma.replace("prompt,completion,n", "prompt\tcompletion\tn");
    let tabs = tabs
        .replace("\",\"", "\"\t\"")
        .replace("\",1", "\"\t1")
        .replace("é,,2", "é\t\t2");
    assert_eq!(fine("a.tsv", &tabs, &options), want);
    let semicolons = "prompt;completion\na,b;c\n";
    assert_eq!(
        fine("a.csv", semicolons, &options),
        [json!({"prompt": "a,b", "completion": "c"})]
    );
    assert!(fine("a.csv", "", &options).is_empty());
    assert!(fine("a.csv", "prompt,completion\n", &options).is_empty());
    // Fields that are lists have JSON.
    let chat = "messages,tools\n\"[{\"\"role\"\": \"\"user\"\"}]\",\n";
    assert_eq!(
        fine("a.csv", chat, &options),
        [json!({"messages": [{"role": "user"}]})]
    );
}

#[test]
fn what_is_wrong_with_a_row_is_reported_and_the_next_is_read() {
    let options = LoadOptions {
        line_bytes_max: 5000,
        ..LoadOptions::default()
    };
    let long = "x".repeat(6000);
    let text = format!("prompt,messages\na\n\"{long}\",[]\nb,[\n\"\"\"\",[]\n\"c,[]\nd,[]\n");
    let got = records("a.csv", text.as_bytes(), &options);
    let wrong = |place: &str, what: &str| (place.to_owned(), Err(what.to_owned()));
    assert_eq!(
        got[0],
        wrong(":2", "a row of 1 cells in a table of 2 columns")
    );
    assert_eq!(got[1], wrong(":3", "line is longer than 5000 bytes"));
    assert!(
        got[2]
            .1
            .as_ref()
            .unwrap_err()
            .starts_with("'messages' is a string that is not JSON")
    );
    assert_eq!(
        got[3],
        (":5".to_owned(), Ok(json!({"prompt": "\"", "messages": []})))
    );
    let open =
        "a quote that is opened in this row, or before, is not closed before the end of the file";
    assert_eq!(got[4..], [wrong(":6", open)]);
    let wide = format!("{}\n", vec!["a"; 5000].join(","));
    let dir = tempfile::tempdir().unwrap();
    for (bytes, want) in [
        (wide.as_bytes(), "more than 4096 columns"),
        (b"a,b,a\n", "two columns are called 'a'"),
        (b"a,\xff\n", "not UTF-8 after 1 bytes"),
    ] {
        let path = dir.path().join("a.csv");
        fs::write(&path, bytes).unwrap();
        let options = LoadOptions::default();
        let error = Source::open(&path, &options).err().unwrap().to_string();
        assert!(error.ends_with(&format!("a.csv:1: {want}")), "{error}");
    }
}

/// Quotes are what says where a row ends: one that is not closed, or closed in the middle of a text, is an error.
#[test]
fn no_quote_is_closed_by_what_is_behind_it() {
    let options = LoadOptions::default();
    let last = |text: &str| records("a.csv", text.as_bytes(), &options).pop().unwrap();
    let open =
        "a quote that is opened in this row, or before, is not closed before the end of the file";
    for text in [
        "text\nfine\n\"this download was cut he",
        "text\nfine\n\"this download was cut he\n",
        "text\nfine\n\"two \"\"quotes",
        "text\nfine\n\"",
        "text,b\nfine,\n5\" pipe,\"x",
    ] {
        assert_eq!(last(text), (":3".into(), Err(open.into())), "{text}");
    }
    for (text, want) in [
        (
            "text,b\n\"a\nb\",5\" pipe",
            json!({"text": "a\nb", "b": "5\" pipe"}),
        ),
        (
            "text,b\n\"a\nb\",5\" pipe\n",
            json!({"text": "a\nb", "b": "5\" pipe"}),
        ),
        ("text,b\nx,\"whole\"", json!({"text": "x", "b": "whole"})),
        (
            "text,b\r\nx,\"who\"\"le\"\r\n",
            json!({"text": "x", "b": "who\"le"}),
        ),
        ("text,b\nx,\"\"", json!({"text": "x", "b": ""})),
    ] {
        assert_eq!(last(text).1, Ok(want), "{text}");
    }
    // The quote in front of 'second' closes the cell of line 2.
    let found = |c: &str| {
        let rest =
            "stands behind the end of a quoted cell, where a comma or the line's end belongs";
        format!("{c} {rest}")
    };
    for (text, place, c) in [
        ("text\n\"never closed\n\"second\"\nthird\n", ":2", "'s'"),
        ("text\n\"a\"é\n", ":2", "'é'"),
        ("text,b\nfine,\n\"a\" ,b\n", ":3", "' '"),
    ] {
        let all = records("a.csv", text.as_bytes(), &options);
        let wrong = all.iter().find(|r| r.1.is_err()).unwrap();
        assert_eq!(*wrong, (place.into(), Err(found(c))), "{text}");
    }
    // What a quote has swallowed is lost to 'skip' too.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.csv");
    let options = LoadOptions {
        on_error: crate::OnError::Skip,
        ..LoadOptions::default()
    };
    for text in [
        "text\nfine\n\"never closed\n\"second\"\nthird\n",
        "text\nfine\n\"cut",
    ] {
        fs::write(&path, text).unwrap();
        let error = Dataset::load(
            std::slice::from_ref(&path),
            &options,
            &with_template("chatml"),
        );
        assert!(error.unwrap_err().to_string().contains("a.csv:3: "));
    }
}

/// The bound is on the record as it is read on, whatever it is made of.
#[test]
fn no_record_is_longer_than_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = |name: &str, bytes: &[u8], max: usize| -> Vec<Result<usize, String>> {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let options = LoadOptions {
            line_bytes_max: max,
            ..LoadOptions::default()
        };
        Source::open(&path, &options)
            .unwrap()
            .map(|line| {
                line.unwrap()
                    .text
                    .map(|t| t.len())
                    .map_err(|e| e.to_string())
            })
            .collect()
    };
    let long = |max: usize| Err(format!("line is longer than {max} bytes"));
    // {"text":"…"} is 11 bytes more than its text.
    for max in [30, 4090, 4096, 4100, 9000] {
        for (more, fits) in [(0, true), (1, false), (200, false)] {
            let text = "x".repeat(max - 11 + more);
            let want = if fits { Ok(max) } else { long(max) };
            let table = format!("text\n{text}\nab\n");
            assert_eq!(
                lengths("a.csv", table.as_bytes(), max),
                [want.clone(), Ok(13)]
            );
        }
    }
    // Names and escapes count.
    let names = format!("text,{}\n", "n".repeat(150));
    assert_eq!(
        lengths("a.csv", format!("{names}a,b\n").as_bytes(), 160),
        [long(160)]
    );
    assert_eq!(
        lengths(
            "a.csv",
            format!("text\n{}\n", "\u{1}".repeat(50)).as_bytes(),
            200
        ),
        [long(200)]
    );
    let controls = [json!({"messages": [{"content": "\u{1}".repeat(50)}]})];
    assert_eq!(
        lengths("a.parquet", &crate::parquet::written(&controls), 200),
        [long(200)]
    );
    assert!(lengths("a.parquet", &crate::parquet::written(&controls), 400)[0].is_ok());
}

#[test]
fn a_text_is_a_file_its_paragraphs_or_its_lines() {
    let text = "\u{feff}\n\nfirst\r\n  second\n \n\nthird\n\n";
    for (by, want) in [
        (TextBy::File, vec![(":3", "first\n  second\n \n\nthird")]),
        (
            TextBy::Paragraph,
            vec![(":3", "first\n  second"), (":7", "third")],
        ),
        (
            TextBy::Line,
            vec![(":3", "first"), (":4", "  second"), (":7", "third")],
        ),
    ] {
        let options = LoadOptions {
            text_by: by,
            fields: Fields {
                text: "body".into(),
                ..Fields::default()
            },
            ..LoadOptions::default()
        };
        let want: Vec<_> = want
            .into_iter()
            .map(|(place, text)| (place.to_owned(), Ok(json!({"body": text}))))
            .collect();
        assert_eq!(records("a.txt", text.as_bytes(), &options), want, "{by:?}");
    }
    let options = LoadOptions {
        line_bytes_max: 6,
        ..LoadOptions::default()
    };
    let one = |bytes: &[u8]| records("a.txt", bytes, &options).remove(0).1;
    assert_eq!(one(b"abc\ndef"), Err("a text of more than 6 bytes".into()));
    assert_eq!(one(b"abc\nde\n"), Ok(json!({"text": "abc\nde"})));
    assert_eq!(one(b"ab\xff"), Err("not UTF-8 after 2 bytes".into()));
    assert!(records("a.txt", b" \n \n", &options).is_empty());
}

/// The same records in lines, in a table, in Parquet and in an array give the same tokens and masks.
#[test]
fn every_make_of_file_gives_the_same_masks() {
    let tokenizer = with_template("chatml");
    let list: Vec<Value> = (0..40)
        .map(|i| {
            let answer = format!("Answer \"{i}\", and\nmore {}", "words ".repeat(i % 7));
            json!({"messages": [
                {"role": "user", "content": format!("Question {i}?")},
                {"role": "assistant", "content": answer},
            ]})
        })
        .collect();
    let lines: String = list.iter().map(|r| format!("{r}\n")).collect();
    let quoted = |r: &Value| format!("\"{}\"\n", r["messages"].to_string().replace('"', "\"\""));
    let table = format!("messages\n{}", list.iter().map(quoted).collect::<String>());
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        *Dataset::load(&[path], &LoadOptions::default(), &tokenizer)
            .unwrap()
            .report()
    };
    let want = load("a.jsonl", lines.as_bytes());
    assert!(want.n_supervised > 0 && want.n_supervised < want.n_tokens);
    assert_eq!(
        load("a.json", Value::from(list.clone()).to_string().as_bytes()),
        want
    );
    assert_eq!(load("a.csv", table.as_bytes()), want);
    assert_eq!(load("a.parquet", &crate::parquet::written(&list)), want);
    let other = lines.replace("Question 7", "Question 8");
    assert_ne!(load("b.jsonl", other.as_bytes()).mask_hash, want.mask_hash);
}

#[test]
fn a_weight_is_how_often_an_example_is_there() {
    let tokenizer = with_template("chatml");
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| {
            let path = dir.path().join(format!("{name}.txt"));
            let lines: String = (0..10).map(|i| format!("{name} {i}\n")).collect();
            fs::write(&path, lines).unwrap();
            path
        })
        .collect();
    let options = LoadOptions {
        text_by: TextBy::Line,
        ..LoadOptions::default()
    };
    let data = Dataset::load(&paths, &options, &tokenizer).unwrap();
    let random = |seed: u64| move |file: u64| lowtide_random::Philox::new(seed, file);
    let texts = |data: &Dataset| -> Vec<String> {
        let text = |i| tokenizer.decode(&data.example(i).unwrap().tokens, true);
        (0..data.len()).map(text).collect()
    };
    let set = |weights: [f64; 2], seed: u64, memory: u64| {
        let weights = [(&*paths[0], weights[0]), (&*paths[1], weights[1])];
        data.weighted(&weights, lowtide_units::Bytes(memory), random(seed))
    };
    let weighted = set([2.5, 0.3], 1, 1 << 20).unwrap();
    assert_eq!(weighted.by_file(2), [25, 3]);
    let all = texts(&weighted);
    assert_eq!(all[..10], texts(&data)[..10]);
    assert_eq!(all[10..20], all[..10]);
    let mut half = all[20..25].to_vec();
    assert!(half.is_sorted());
    half.dedup();
    assert_eq!(half.len(), 5, "one example twice in a pass");
    assert_eq!(weighted.report().n_tokens, all_tokens(&weighted));
    // The seed alone decides which.
    let again = |seed| texts(&set([2.5, 0.3], seed, 1 << 20).unwrap());
    assert_eq!(again(1), all);
    assert_ne!(again(2), all);
    assert_eq!(texts(&set([1.0, 1.0], 1, 1 << 20).unwrap()), texts(&data));
    // A file that is to be left out is; one of which nothing is left by accident is an error, whichever it is.
    assert_eq!(set([1.0, 0.0], 1, 1 << 20).unwrap().by_file(2), [10, 0]);
    for (weights, memory, want) in [
        (
            [0.01, 1.0],
            1 << 20,
            "a.txt: 'data.train[0].weight: 0.01' leaves none of its 10 examples",
        ),
        (
            [1.0, 0.04],
            1 << 20,
            "b.txt: 'data.train[1].weight: 0.04' leaves none of its 10 examples",
        ),
        (
            [0.0, 0.0],
            1 << 20,
            "a.txt: 'data.train[0].weight: 0' leaves none",
        ),
        (
            [1.0, 1e9],
            u64::MAX,
            "b.txt: 'data.train[1].weight: 1000000000' makes",
        ),
        (
            [1.0, 99.0],
            20_000,
            "b.txt: 'data.train[1].weight: 99' makes 31.2 KiB of",
        ),
    ] {
        let error = set(weights, 1, memory).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn examples_take_no_more_memory_than_there_is() {
    let tokenizer = with_template("chatml");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "a line\n".repeat(30_000)).unwrap();
    let load = |memory: u64| {
        let options = LoadOptions {
            text_by: TextBy::Line,
            memory,
            ..LoadOptions::default()
        };
        Dataset::load(std::slice::from_ref(&path), &options, &tokenizer).map_err(|e| e.to_string())
    };
    let tokens = all_tokens(&load(u64::MAX).unwrap());
    let need = tokens * 5 + 30_000 * 16;
    assert!(load(need).is_ok());
    let error = load(need - 1).unwrap_err();
    assert!(
        error.contains("a.txt:30000: the examples up to here take")
            && error.contains("host memory"),
        "{error}"
    );
}

fn all_tokens(data: &Dataset) -> u64 {
    (0..data.len())
        .map(|i| data.example(i).unwrap().tokens.len() as u64)
        .sum()
}
