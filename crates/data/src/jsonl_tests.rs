use std::io::Write;

use proptest::prelude::*;

use super::*;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn lines(bytes: &[u8]) -> Vec<(u64, Result<String, String>)> {
    let file = file(bytes);
    let lines = Lines::open(file.path(), 64).unwrap();
    lines
        .map(|line| line.unwrap())
        .map(|line| (line.number, line.text.map_err(|e| e.to_string())))
        .collect()
}

fn schema(format: Format) -> Schema {
    Schema {
        format,
        fields: Fields::default(),
    }
}

#[test]
fn lines_keep_their_numbers_across_blanks_and_any_line_end() {
    let got = lines(b"\xef\xbb\xbf{\"a\":1}\r\n\r\n  \t\n{\"b\":2}\n\n{\"c\":3}");
    let got: Vec<_> = got
        .iter()
        .map(|(n, s)| (*n, s.as_ref().unwrap().trim()))
        .collect();
    assert_eq!(got, [(1, "{\"a\":1}"), (4, "{\"b\":2}"), (6, "{\"c\":3}")]);
    assert!(lines(b"").is_empty());
    assert!(lines(b"\n\n").is_empty());
}

#[test]
fn a_line_at_the_bound_is_read_and_one_above_it_is_not() {
    let mut bytes = vec![b'x'; 64];
    bytes.push(b'\n');
    assert_eq!(lines(&bytes)[0].1.as_ref().unwrap().len(), 64);
    bytes.insert(0, b'\n');
    bytes.insert(1, b'x');
    let too_long = || Err("line is longer than 64 bytes".to_owned());
    assert_eq!(lines(&bytes), [(2, too_long())]);
    // What comes behind it keeps its number, however the file is read in pieces.
    let huge = [&vec![b'y'; 1 << 20][..], b"\n{}\n", &[b'z'; 65]].concat();
    assert_eq!(
        lines(&huge),
        [(1, too_long()), (2, Ok("{}".to_owned())), (3, too_long())]
    );
}

#[test]
fn what_is_no_regular_file_is_refused() {
    for (path, want) in [
        ("/dev/zero", "a device, not a file"),
        ("/tmp", "a directory, not a file"),
    ] {
        let error = Lines::open(Path::new(path), 64).unwrap_err().to_string();
        assert!(error.ends_with(want), "{error}");
    }
}

#[test]
fn bad_bytes_name_file_and_line() {
    let got = lines(b"{}\nab\xffcd\n{}");
    assert_eq!(got[1], (2, Err("not UTF-8 after 2 bytes".to_owned())));
    assert_eq!(got[2], (3, Ok("{}".to_owned())));
    let error = Lines::open(Path::new("/no/such.jsonl"), 1).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
}

#[test]
fn formats_are_told_by_their_fields() {
    let detect = |line| Schema::detect(line, &Fields::default()).map(|s| s.format);
    assert_eq!(detect(r#"{"messages": [], "id": 3}"#), Ok(Format::Messages));
    assert_eq!(
        detect(r#"{"prompt": "a", "completion": "b"}"#),
        Ok(Format::PromptCompletion)
    );
    assert_eq!(detect(r#"{"text": "a"}"#), Ok(Format::Text));
    let error = detect(r#"{"text": "a", "messages": []}"#)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "fits several formats: messages, text");
    let error = detect(r#"{"question": "a", "prompt": "b"}"#)
        .unwrap_err()
        .to_string();
    let want = "no known format has the fields question, prompt; \
                looked for messages, prompt + completion, text";
    assert_eq!(error, want);
    assert!(
        detect("{}")
            .unwrap_err()
            .to_string()
            .contains("has the fields none")
    );
}

#[test]
fn other_names_are_mapped() {
    let fields = Fields {
        prompt: "question".into(),
        completion: "answer".into(),
        ..Fields::default()
    };
    let line = r#"{"question": "1+1?", "answer": "2"}"#;
    let schema = Schema::detect(line, &fields).unwrap();
    let want = Record::PromptCompletion {
        prompt: "1+1?".into(),
        completion: "2".into(),
    };
    assert_eq!(schema.parse(line), Ok(want));
}

#[test]
fn each_problem_is_named() {
    use Format::{Messages, PromptCompletion, Text};
    for (format, line, want) in [
        (Text, "[1]", "a list where an object is expected"),
        (Text, "nil", "not JSON: expected ident at line 1 column 2"),
        (
            Text,
            r#"{"text": 3}"#,
            "'text' is a number, expected a string",
        ),
        (Text, r#"{"text": ""}"#, "'text' is empty"),
        (
            Text,
            r#"{"txt": "x", "id": 1}"#,
            "no field 'text' (fields: txt, id)",
        ),
        (
            Text,
            r#"{"messages": []}"#,
            "a messages record in data that began with text records",
        ),
        (
            PromptCompletion,
            r#"{"prompt": "x"}"#,
            "no field 'completion' (fields: prompt)",
        ),
        (
            PromptCompletion,
            r#"{"prompt": "x", "completion": ""}"#,
            "'completion' is empty",
        ),
        (
            Messages,
            r#"{"messages": "hi"}"#,
            "'messages' is a string, expected a list",
        ),
        (Messages, r#"{"messages": []}"#, "'messages' is empty"),
        (
            Messages,
            r#"{"messages": [7]}"#,
            "'messages[0]' is a number, expected an object",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}"#,
            "no field 'messages[1].role' (fields: content)",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "human", "content": "a"}]}"#,
            "'messages[0].role' is 'human', expected system, user, assistant or tool",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "user", "content": null}]}"#,
            "'messages[0].content' is null, expected a string",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "user"}]}"#,
            "no field 'messages[0].content' (fields: role)",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "user", "content": "a"}], "tools": {}}"#,
            "'tools' is an object, expected a list",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "user", "content": "x"}], "tools": "[{"}"#,
            "'tools' is a string that is not JSON: EOF while parsing an object at line 1 column 2",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "user", "content": "x"}], "tools": [{}, "3"]}"#,
            "'tools[1]' is a number, expected an object",
        ),
        (
            Messages,
            r#"{"messages": [{"from": "human", "value": "x"}]}"#,
            "no field 'messages[0].role': it looks like a ShareGPT record ('messages' with from and value), \
             which is not supported yet",
        ),
        (
            PromptCompletion,
            r#"{"question": "a", "answer": "b"}"#,
            "no field 'prompt': it looks like a prompt and completion called 'question' and 'answer'",
        ),
        (
            Text,
            r#"{"text": "éé", "n": NaN}"#,
            "'NaN' at column 21: JSON has no such number",
        ),
        (
            Text,
            r#"{"n": [1, -Infinity], "text": "a"}"#,
            "'-Infinity' at column 11: JSON has no such number",
        ),
        (
            Text,
            r#"{"text": "NaN", "n": Infinity}"#,
            "'Infinity' at column 22: JSON has no such number",
        ),
    ] {
        let problem = schema(format).parse(line).unwrap_err();
        assert_eq!(problem.to_string(), want, "{line}");
    }
}

#[test]
fn a_message_keeps_its_further_keys() {
    let line = r#"{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"b": 1, "a": 2}]}], "tools": [{"n": "f"}]}"#;
    let Ok(Record::Messages {
        messages, tools, ..
    }) = schema(Format::Messages).parse(line)
    else {
        panic!("not read");
    };
    assert_eq!(
        messages[0].to_string(),
        line[14..]
            .split("], \"tools\"")
            .next()
            .unwrap()
            .replace(": ", ":")
            .replace(", ", ",")
    );
    assert_eq!(tools.unwrap()[0]["n"], "f");
}

/// JSON-like noise: pieces of records in any order, which random bytes would seldom be.
fn noise() -> impl Strategy<Value = String> {
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

proptest! {
    #[test]
    fn no_line_panics(line in prop_oneof![noise(), ".*"]) {
        for format in Format::ALL {
            let _ = schema(format).parse(&line);
        }
        let _ = Schema::detect(&line, &Fields::default());
    }

    #[test]
    fn no_file_panics_and_line_numbers_rise(
        bytes in prop_oneof![
            noise().prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..300),
        ]
    ) {
        let n_lines = bytes.split(|&b| b == b'\n').count() as u64;
        let lines = lines(&bytes);
        prop_assert!(lines.windows(2).all(|w| w[0].0 < w[1].0));
        prop_assert!(lines.last().is_none_or(|l| l.0 <= n_lines));
    }

    /// Whatever strings a record holds, they come back as they were.
    #[test]
    fn records_come_back_whole(prompt in ".+", completion in ".+") {
        let line = serde_json::json!({"prompt": prompt, "completion": completion}).to_string();
        let got = schema(Format::PromptCompletion).parse(&line);
        prop_assert_eq!(got, Ok(Record::PromptCompletion { prompt, completion }));
    }
}

#[test]
fn nesting_beyond_reason_is_an_error() {
    let deep = format!(
        "{{\"text\": {}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let problem = schema(Format::Text).parse(&deep).unwrap_err();
    assert!(problem.to_string().contains("recursion limit"), "{problem}");
}

/// A list of tools, the same as a string, as Arrow holds it, and as a list of strings.
#[test]
fn tools_in_a_string_are_read_like_the_list() {
    let tools =
        serde_json::json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let read = |tools: Value| {
        let line = serde_json::json!({
            "messages": [{"role": "user", "content": "x"}], "tools": tools
        });
        match schema(Format::Messages).parse(&line.to_string()).unwrap() {
            Record::Messages { tools, .. } => tools,
            other => panic!("{other:?}"),
        }
    };
    let want = Some(tools.clone());
    assert_eq!(read(tools.clone()), want);
    assert_eq!(read(Value::String(tools.to_string())), want);
    assert_eq!(read(serde_json::json!([tools[0].to_string()])), want);
    for none in [
        Value::Null,
        "[]".into(),
        "".into(),
        "null".into(),
        serde_json::json!([]),
    ] {
        assert_eq!(read(none.clone()), None, "{none}");
    }
}
