use super::*;
use crate::jsonl::{Fields, Format, Record, Schema};
use crate::mask::{Encoder, LossOn};
use crate::{testing, tokenizer::Tokenizer};

fn encoder<'a>(tokenizer: &'a Tokenizer, line: &str) -> Encoder<'a> {
    let schema = Schema::detect(line, &Fields::default()).unwrap();
    Encoder::new(schema, tokenizer, LossOn::Answers, "").unwrap()
}

/// Records of other makes give the tokens and masks of the same conversation in our words.
#[test]
fn the_same_conversation_in_other_words_has_the_same_mask() {
    let ours = json!({"messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye\nnow"},
        {"role": "assistant", "content": "Bye."},
    ]});
    let turns = |from: [&str; 2]| {
        let [asks, says] = from;
        json!([
            {"from": asks, "value": "Hi"},
            {"from": says, "value": "Hello!"},
            {"from": asks, "value": "Bye\nnow"},
            {"from": says, "value": "Bye."},
        ])
    };
    let mut with_system = turns(["human", "gpt"]);
    let first = json!({"from": "system", "value": "Be kind."});
    with_system.as_array_mut().unwrap().insert(0, first);
    let mut parts = ours.clone();
    for message in parts["messages"].as_array_mut().unwrap() {
        let text = message["content"].as_str().unwrap().to_owned();
        let (a, b) = text.split_at(1);
        message["content"] = json!([{"type": "text", "text": a}, {"type": "text", "text": b}]);
    }
    let mut developer = ours.clone();
    developer["messages"][0]["role"] = json!("developer");
    for template in ["chatml", "qwen25"] {
        let tokenizer = testing::with_template(template);
        let want = ours.to_string();
        let want = encoder(&tokenizer, &want).example(&want).unwrap();
        assert!(want.supervised.iter().any(|&s| s));
        for other in [
            json!({"conversations": with_system}),
            json!({"conversations": turns(["human", "gpt"]), "system": "Be kind."}),
            json!({"conversations": turns(["user", "assistant"]), "system": "Be kind."}),
            json!({"messages": turns(["Human", "ChatGPT"]), "system": "Be kind.", "tools": "[]"}),
            json!({"conversations": ours["messages"]}),
            json!({"messages": ours["messages"].as_array().unwrap()[1..], "system": "Be kind."}),
            json!({"messages": ours["messages"], "system": "Be brief."}),
            parts.clone(),
            developer.clone(),
        ] {
            let line = other.to_string();
            let got = encoder(&tokenizer, &line).example(&line).unwrap();
            assert_eq!(got, want, "{template} {line}");
        }
    }
}

/// Two turns more than an instruction, but the same words: Alpaca is a conversation where there is a template, and
/// Alpaca's prompt where there is none.
#[test]
fn an_instruction_is_a_conversation_or_a_prompt() {
    let one = json!({"instruction": "Add.", "input": "1 and 2", "output": "3", "system": ""});
    let bare = json!({"instruction": "Say hi.", "input": " ", "output": "Hi", "history": []});
    let tokenizer = testing::with_template("chatml");
    for (record, asked, answer) in [(&one, "Add.\n1 and 2", "3"), (&bare, "Say hi.", "Hi")] {
        let ours = json!({"messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]});
        let [got, want] = [record, &ours].map(|r| {
            let line = r.to_string();
            let encoder = encoder(&tokenizer, &line);
            assert_eq!(encoder.format(), Format::Messages);
            (
                encoder.example(&line).unwrap(),
                encoder.prompt(&line).unwrap(),
            )
        });
        assert_eq!(got, want);
    }
    // A system prompt of the run stands where the record brings none.
    let line = one.to_string();
    let with = encoder(&tokenizer, &line).with_system(Some("Be brief.".to_owned()));
    let text = tokenizer.decode(&with.prompt(&line).unwrap().0, true);
    assert!(text.contains("Be brief."), "{text}");
    let plain = testing::tokenizer();
    if plain.chat_template().is_some() {
        return;
    }
    let line = one.to_string();
    let encoder = encoder(&plain, &line);
    assert_eq!(encoder.format(), Format::PromptCompletion);
    let (prompt, reference) = encoder.prompt(&line).unwrap();
    let text = plain.decode(&prompt, true);
    assert!(
        text.ends_with("### Input:\n1 and 2\n\n### Response:\n"),
        "{text}"
    );
    assert!(
        text.contains("Below is an instruction that describes a task, paired with"),
        "{text}"
    );
    assert_eq!(reference, "3");
}

/// Calls of functions and what they give back, as ShareGPT's data have them.
#[test]
fn calls_of_functions_are_tool_calls() {
    let line = json!({"conversations": [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": "{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}"},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains.", "weight": 0},
    ]});
    let schema = Schema::detect(&line.to_string(), &Fields::default()).unwrap();
    let Ok(Record::Messages {
        messages, marks, ..
    }) = schema.parse(&line.to_string())
    else {
        panic!("a conversation")
    };
    let call = json!({"name": "weather", "arguments": {"city": "Oslo"}});
    let want = [
        json!({"role": "user", "content": "Weather?"}),
        json!({"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}),
        json!({"role": "tool", "content": "rain"}),
        json!({"role": "assistant", "content": "It rains."}),
    ];
    assert_eq!(messages, want);
    assert_eq!(marks, [None, None, None, Some(false)]);
}

#[test]
fn what_is_no_message_is_reported_with_its_place() {
    let problem = |message: Value| {
        let mut message = message;
        make_plain(&mut message, "messages[1]")
            .unwrap_err()
            .to_string()
    };
    for (message, want) in [
        (json!(3), "'messages[1]' is a number, expected an object"),
        (
            json!({"from": 1, "value": "x"}),
            "'messages[1].from' is a number, expected a string",
        ),
        (
            json!({"from": "nobody", "value": "x"}),
            "'messages[1].from' is 'nobody', expected system, developer, user, assistant or tool",
        ),
        (
            json!({"from": "function_call", "value": "weather()"}),
            "'messages[1].value' is a string that is not JSON: expected value at line 1 column 1",
        ),
        (
            json!({"from": "function_call", "value": {"arguments": {}}}),
            "no field 'messages[1].value.name' (fields: arguments)",
        ),
        (
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            "'messages[1].content[0]' is a part of type 'image_url', and only text is read",
        ),
        (
            json!({"role": "user", "content": [{"type": "text"}]}),
            "no field 'messages[1].content[0].text' (fields: type)",
        ),
        (
            json!({"role": "user", "content": [{"type": "text", "text": 1}]}),
            "'messages[1].content[0].text' is a number, expected a string",
        ),
        (
            json!({"role": "user", "content": [1]}),
            "'messages[1].content[0]' is a number, expected an object or a string",
        ),
        (
            json!({"value": "x"}),
            "no field 'messages[1].role' (fields: value)",
        ),
    ] {
        assert_eq!(problem(message.clone()), want, "{message}");
    }
    let system = r#"{"messages": [{"role": "user", "content": "x"}], "system": 3}"#;
    let schema = Schema::detect(system, &Fields::default()).unwrap();
    assert_eq!(
        schema.parse(system).unwrap_err().to_string(),
        "'system' is a number, expected a string"
    );
    let history = r#"{"instruction": "a", "output": "b", "history": [["c", "d"]]}"#;
    let schema = Schema::detect(history, &Fields::default()).unwrap();
    assert_eq!(
        schema.parse(history).unwrap_err().to_string(),
        "'history' of an Alpaca record is not read"
    );
}
