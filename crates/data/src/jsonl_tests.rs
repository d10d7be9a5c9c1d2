use proptest::prelude::*;

use super::*;
use crate::testing::noise;

fn schema(format: Format) -> Schema {
    Schema {
        format,
        fields: Fields::default(),
    }
}

#[test]
fn formats_are_recognised_by_their_fields() {
    let detect = |line| Schema::detect(line, &Fields::default()).map(|s| s.format);
    assert_eq!(detect(r#"{"messages": [], "id": 3}"#), Ok(Format::Messages));
    assert_eq!(
        detect(r#"{"prompt": "a", "completion": "b"}"#),
        Ok(Format::PromptCompletion)
    );
    assert_eq!(detect(r#"{"text": "a"}"#), Ok(Format::Text));
    assert_eq!(detect(r#"{"conversations": []}"#), Ok(Format::Messages));
    assert_eq!(
        detect(r#"{"instruction": "a", "output": "b"}"#),
        Ok(Format::Alpaca)
    );
    // As Stanford's file has them.
    let own = r#"{"instruction": "a", "input": "", "output": "b", "text": "Below is a b"}"#;
    assert_eq!(detect(own), Ok(Format::Alpaca));
    // As TRL has conversations of which a part is given.
    let parts = r#"{"prompt": [], "completion": []}"#;
    assert_eq!(detect(parts), Ok(Format::Messages));
    let named =
        |line| Schema::named(Format::PromptCompletion, Some(line), &Fields::default()).format;
    assert_eq!(named(parts), Format::Messages);
    assert_eq!(
        named(r#"{"prompt": [], "completion": "b"}"#),
        Format::PromptCompletion
    );
    let both = r#"{"instruction": "a", "output": "b", "messages": []}"#;
    assert!(
        detect(both)
            .unwrap_err()
            .to_string()
            .contains("several formats")
    );
    let named = Fields {
        prompt: "instruction".to_owned(),
        completion: "output".to_owned(),
        ..Fields::default()
    };
    let format = Schema::detect(r#"{"instruction": "a", "output": "b"}"#, &named).map(|s| s.format);
    assert_eq!(format, Ok(Format::PromptCompletion));
    let error = detect(r#"{"text": "a", "messages": []}"#)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "fits several formats: messages, text");
    let error = detect(r#"{"question": "a", "prompt": "b"}"#)
        .unwrap_err()
        .to_string();
    let want = "no known format has the fields question, prompt; \
                looked for messages, prompt + completion, text, instruction + output";
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
        (
            Text,
            "nil",
            "not JSON: expected true, false or null at column 2",
        ),
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
            "'messages[0].role' is 'human', expected system, developer, user, assistant or tool",
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
            r#"{"messages": [{"from": "someone", "value": "x"}]}"#,
            "'messages[0].from' is 'someone', expected system, developer, user, assistant or tool",
        ),
        (
            PromptCompletion,
            r#"{"question": "a", "answer": "b"}"#,
            "no field 'prompt': it looks like a prompt and completion called 'question' and 'answer'",
        ),
        (
            Text,
            r#"{"instruction": "a", "output": "b"}"#,
            "an Alpaca record in data that began with text records",
        ),
        (
            PromptCompletion,
            r#"{"prompt": [], "completion": []}"#,
            "a messages record in data that began with prompt/completion records",
        ),
        (
            Messages,
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": []}"#,
            "'completion' is empty",
        ),
        (
            Messages,
            r#"{"prompt": [{"role": "user"}], "completion": []}"#,
            "no field 'prompt[0].content' (fields: role)",
        ),
        (
            Text,
            "{\n  \"text\": \"a\", \"n\": NaN}",
            "'NaN' at column 21: JSON has no such number",
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

proptest! {
    #[test]
    fn no_line_panics(line in prop_oneof![noise(), ".*"]) {
        for format in Format::ALL {
            let _ = schema(format).parse(&line);
        }
        let _ = Schema::detect(&line, &Fields::default());
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
