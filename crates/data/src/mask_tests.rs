//! Masks of conversations, records and texts.
//!
//! One file because all tests ask one function for the mask of a conversation.

use serde_json::json;

use super::super::{Fields, Format, testing};
use super::*;

fn encoder(tokenizer: &Tokenizer, format: Format) -> Encoder<'_> {
    let schema = Schema {
        format,
        fields: Fields::default(),
    };
    Encoder::new(schema, tokenizer, LossOn::Answers, "").unwrap()
}

/// The supervised stretches of an example, as text.
fn spoken(tokenizer: &Tokenizer, example: &Example) -> Vec<String> {
    let mut stretches: Vec<Vec<i32>> = Vec::new();
    let mut before = false;
    for (&token, &supervised) in example.tokens.iter().zip(&example.supervised) {
        match (before, supervised) {
            (false, true) => stretches.push(vec![token]),
            (true, true) => stretches.last_mut().unwrap().push(token),
            _ => {}
        }
        before = supervised;
    }
    stretches
        .iter()
        .map(|tokens| tokenizer.decode(tokens, true))
        .collect()
}

fn line(case: &testing::Golden) -> String {
    json!({"messages": case.messages, "tools": case.tools}).to_string()
}

#[test]
fn marked_templates_give_the_masks_of_transformers() {
    let mut n = 0;
    for case in testing::golden() {
        let Some(mask) = &case.mask else { continue };
        let tokenizer = testing::with_template(&case.template);
        let example = encoder(&tokenizer, Format::Messages)
            .example(&line(&case))
            .unwrap();
        assert_eq!(
            example.tokens, case.tokens,
            "{} / {}",
            case.template, case.title
        );
        assert_eq!(
            &example.supervised, mask,
            "{} / {}",
            case.template, case.title
        );
        assert!(mask.contains(&true) && mask.contains(&false));
        n += 1;
    }
    assert_eq!(n, 8);
}

/// What each stock template (none has generation markers) makes the assistant say, by hand.
#[test]
fn unmarked_templates_give_every_turn_and_only_the_turns() {
    let call = r#"{"name": "weather", "arguments": {"city": "Köln", "days": 2}}"#;
    let expected = |template: &str, title: &str| -> Vec<String> {
        let end = match template {
            "llama3" => "<|eot_id|>",
            "mistral" => "</s>",
            _ => "<|im_end|>",
        };
        let turns: Vec<String> = match (title, template) {
            ("one", _) => vec!["Hello! How are you?".into()],
            ("system", _) => vec!["2".into()],
            ("turns", _) => [
                "  The thing\n\nin it. \n",
                "Das Ding — 👩‍👩‍👧 dort.",
                "The pleasure is mine",
            ]
            .map(str::to_owned)
            .into(),
            ("thinks", "qwen3") => {
                vec!["Done.".into(), "<think>\nso then\n</think>\n\nYes.".into()]
            }
            ("thinks", _) => vec![
                "<think>\nhm, in the\n</think>\n\nDone.".into(),
                "Yes.".into(),
            ],
            ("tools", _) => {
                let call = match template {
                    "llama3" => {
                        r#"{"name": "weather", "parameters": {"city": "Köln", "days": 2}}"#.into()
                    }
                    "mistral" => format!(
                        "[TOOL_CALLS] [{}, \"id\": \"call12345\"}}]",
                        &call[..call.len() - 1]
                    ),
                    _ => format!("<tool_call>\n{call}\n</tool_call>"),
                };
                vec![call, "It is 12.5 degrees.".into(), "Any time".into()]
            }
            other => panic!("no expectation for {other:?}"),
        };
        let trims = matches!(template, "llama3" | "mistral");
        let leads = if template == "mistral" { " " } else { "" };
        let thinks = "<think>\n\n</think>\n\n";
        let n = turns.len();
        let turn = |(i, turn): (usize, &String)| {
            let mut turn = if trims { turn.trim() } else { turn }.to_owned();
            // Qwen3 puts (empty) thoughts before the last turn and strips its leading newlines.
            if template == "qwen3" && i == n - 1 && !turn.starts_with("<think>") {
                turn = format!("{thinks}{turn}");
            }
            let leads = if turn.starts_with('[') { "" } else { leads };
            format!("{leads}{turn}{end}")
        };
        turns.iter().enumerate().map(turn).collect()
    };
    let mut n = 0;
    for case in testing::golden() {
        let (template, title) = (case.template.as_str(), case.title.as_str());
        if case.mask.is_some() || template == "python" {
            continue;
        }
        let tokenizer = testing::with_template(template);
        let example = encoder(&tokenizer, Format::Messages)
            .example(&line(&case))
            .unwrap();
        assert_eq!(example.tokens, case.tokens, "{template} / {title}");
        let got = spoken(&tokenizer, &example);
        assert_eq!(got, expected(template, title), "{template} / {title}");
        n += 1;
    }
    assert_eq!(n, 20);
}

fn chat(template: &str, messages: serde_json::Value) -> Result<Vec<String>, RecordProblem> {
    let tokenizer = testing::tokenizer().with_chat_template(template).unwrap();
    let line = json!({"messages": messages}).to_string();
    let example = encoder(&tokenizer, Format::Messages).example(&line)?;
    Ok(spoken(&tokenizer, &example))
}

fn two_turns() -> serde_json::Value {
    json!([
        {"role": "user", "content": "u1"}, {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "u2"}, {"role": "assistant", "content": "a2"},
    ])
}

#[test]
fn a_template_whose_beginnings_are_no_prefix_is_refused() {
    // The number of messages stands at the top.
    let counts = "{{ messages | length }}{% for m in messages %}{{ m.content }}</s>{% endfor %}";
    let problem = chat(counts, two_turns()).unwrap_err();
    assert_eq!(
        problem,
        RecordProblem::NotAPrefix {
            message: 1,
            parts_at: 0,
            alone: "1u1</s>".into(),
            whole: "4u1</s>a1</s>u2</s>a2</s>".into(),
        }
    );
    // Like DeepSeek-R1's: the generation prompt opens a thought that the turn does not have.
    let thinks = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}\
                  {% if add_generation_prompt %}<s>assistant: <think>{% endif %}";
    let problem = chat(thinks, two_turns()).unwrap_err();
    assert!(
        matches!(problem, RecordProblem::NotAPrefix { message: 1, .. }),
        "{problem}"
    );
}

#[test]
fn a_last_turn_that_is_marked_ends_where_its_frame_ends() {
    // What ends with the turn is no prefix of what goes on.
    let last = "{% for m in messages %}<s>{% if loop.last and m.role == 'assistant' %}!{% endif %}\
                {{ m.content }}END{% endfor %}{% if add_generation_prompt %}<s>{% endif %}";
    assert_eq!(chat(last, two_turns()).unwrap(), ["a1END", "!a2END"]);
    let ends = last.replace("END", "</s>");
    assert_eq!(chat(&ends, two_turns()).unwrap(), ["a1</s>", "!a2</s>"]);
    let mut forged = two_turns();
    forged[1]["content"] = "a1</s>more".into();
    assert_eq!(chat(&ends, forged).unwrap(), ["a1</s>more</s>", "!a2</s>"]);
}

#[test]
fn what_no_rendering_tells_is_refused_with_the_renderings() {
    let refused = |template: &str, words: &[&str]| {
        let problem = chat(template, two_turns()).unwrap_err();
        assert!(
            matches!(problem, RecordProblem::TurnEnd { message: 1, .. }),
            "{problem}"
        );
        for word in words {
            assert!(problem.to_string().contains(word), "{word} in {problem}");
        }
    };
    // The end of a last turn and the next header begin with the same text.
    refused(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if messages[-1].role == 'assistant' %}[end]{% endif %}",
        &["[end]", "[user] "],
    );
    // Contents come out changed.
    refused(
        "{% for m in messages %}<s>{{ m.content | upper }}</s>{% endfor %}",
        &["as it is, once"],
    );
    // Each answer is said twice.
    refused(
        "{% for m in messages %}<s>{{ m.content }}{{ m.content }}</s>{% endfor %}",
        &["as it is, once"],
    );
}

#[test]
fn without_an_assistant_nothing_is_supervised() {
    let template = std::fs::read_to_string(testing::testdata().join("chatml.jinja")).unwrap();
    for template in [
        template.as_str(),
        "{% for m in messages %}{{ m.content }}{% endfor %}",
    ] {
        let got = chat(template, json!([{"role": "user", "content": "hello"}])).unwrap();
        assert!(got.is_empty(), "{got:?}");
    }
}

#[test]
fn completions_are_supervised_with_their_end_and_prompts_are_not() {
    let tokenizer = testing::tokenizer();
    let line = json!({"prompt": "What is", "completion": " in it? 你"}).to_string();
    let encoder = encoder(&tokenizer, Format::PromptCompletion);
    let example = encoder.example(&line).unwrap();
    assert_eq!(
        tokenizer.decode(&example.tokens, true),
        "<s>What is in it? 你</s>"
    );
    assert_eq!(spoken(&tokenizer, &example), [" in it? 你</s>"]);
    let (prompt, reference) = encoder.prompt(&line).unwrap();
    assert_eq!(prompt, &example.tokens[..prompt.len()]);
    assert_eq!(
        example.supervised.iter().position(|&s| s),
        Some(prompt.len())
    );
    assert_eq!(reference, " in it? 你");
}

/// "the" is one token; cut in the middle, the prompt must keep its own tokens.
#[test]
fn a_border_inside_a_token_keeps_the_tokens_of_the_prompt() {
    let tokenizer = testing::tokenizer();
    assert_eq!(tokenizer.encode(" the").unwrap().len(), 1);
    let encoder = encoder(&tokenizer, Format::PromptCompletion);
    let line = json!({"prompt": "in t", "completion": "he"}).to_string();
    let example = encoder.example(&line).unwrap();
    let (prompt, _) = encoder.prompt(&line).unwrap();
    assert_eq!(prompt, &example.tokens[..prompt.len()]);
    assert_eq!(spoken(&tokenizer, &example), ["he</s>"]);
}

#[test]
fn a_separator_belongs_to_the_prompt() {
    let tokenizer = testing::tokenizer();
    let schema = Schema {
        format: Format::PromptCompletion,
        fields: Fields::default(),
    };
    let encoder = Encoder::new(schema, &tokenizer, LossOn::Answers, "\n=> ").unwrap();
    let line = json!({"prompt": "1+1", "completion": "2"}).to_string();
    let example = encoder.example(&line).unwrap();
    assert_eq!(spoken(&tokenizer, &example), ["2</s>"]);
    assert_eq!(
        tokenizer.decode(&encoder.prompt(&line).unwrap().0, true),
        "<s>1+1\n=> "
    );
}

#[test]
fn texts_are_supervised_whole() {
    let tokenizer = testing::tokenizer();
    let example = encoder(&tokenizer, Format::Text)
        .example(r#"{"text": "in the"}"#)
        .unwrap();
    assert_eq!(spoken(&tokenizer, &example), ["in the</s>"]);
    assert_eq!(example.tokens[0], tokenizer.prefix()[0]);
    assert!(!example.supervised[0]);
}

#[test]
fn everything_means_everything() {
    let tokenizer = testing::with_template("qwen25");
    let schema = Schema {
        format: Format::Messages,
        fields: Fields::default(),
    };
    let encoder = Encoder::new(schema, &tokenizer, LossOn::Everything, "").unwrap();
    let line = json!({"messages": two_turns()}).to_string();
    assert!(
        encoder
            .example(&line)
            .unwrap()
            .supervised
            .iter()
            .all(|&s| s)
    );
}

#[test]
fn chat_prompts_end_where_the_answer_begins() {
    for case in testing::golden() {
        let tokenizer = testing::with_template(&case.template);
        let (tokens, reference) = encoder(&tokenizer, Format::Messages)
            .prompt(&line(&case))
            .unwrap();
        assert_eq!(tokenizer.decode(&tokens, true), case.prompt);
        let answer = case
            .messages
            .iter()
            .rfind(|m| m["role"] == "assistant")
            .unwrap();
        assert_eq!(reference, answer["content"].as_str().unwrap());
    }
    let tokenizer = testing::with_template("chatml");
    let line = r#"{"messages": [{"role": "user", "content": "x"}]}"#;
    let problem = encoder(&tokenizer, Format::Messages)
        .prompt(line)
        .unwrap_err();
    assert_eq!(problem, RecordProblem::NoReference);
    let problem = encoder(&tokenizer, Format::Text)
        .prompt(r#"{"text": "x"}"#)
        .unwrap_err();
    assert_eq!(problem, RecordProblem::NoPrompt { format: "text" });
}

#[test]
fn what_the_data_needs_is_asked_for_first() {
    let tokenizer = testing::tokenizer();
    let schema = Schema {
        format: Format::Messages,
        fields: Fields::default(),
    };
    let error = Encoder::new(schema, &tokenizer, LossOn::Answers, "").unwrap_err();
    assert!(matches!(error, DataError::NoChatTemplate { .. }), "{error}");
}

#[test]
fn a_token_is_supervised_where_it_overlaps() {
    let tokens = [0..2, 2..2, 2..5, 4..5, 5..8, 8..8, 9..12];
    let mask = |spans: &[Range<usize>]| overlapping(tokens.iter(), spans);
    assert_eq!(
        mask(std::slice::from_ref(&(2..5))),
        [false, true, true, true, false, false, false]
    );
    assert_eq!(
        mask(&[1..2, 8..9]),
        [true, false, false, false, false, true, false]
    );
    assert_eq!(
        mask(&[0..1, 4..20]),
        [true, false, true, true, true, true, true]
    );
    assert_eq!(mask(&[]), [false; 7]);
}

/// A conversation of three answers, the marks of which a test sets.
fn three(marks: [Option<bool>; 3]) -> serde_json::Value {
    let mut messages = vec![json!({"role": "system", "content": "be kind"})];
    for (i, mark) in marks.into_iter().enumerate() {
        messages.push(json!({"role": "user", "content": format!("question {i}")}));
        let mut answer = json!({"role": "assistant", "content": format!("answer {i}")});
        if let Some(mark) = mark {
            answer["weight"] = json!(u8::from(mark));
        }
        messages.push(answer);
    }
    json!({ "messages": messages })
}

/// Marked turns leave the loss, under templates with and without generation blocks, and nothing else
/// changes: the tokens are those of the unmarked conversation, the other turns those of its mask.
#[test]
fn turns_marked_against_training_are_not_trained_on() {
    let twin = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}\
                {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}\
                {% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}\
                {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let marked = testing::tokenizer().with_chat_template(twin).unwrap();
    let plain = twin
        .replace("{% generation %}", "")
        .replace("{% endgeneration %}", "");
    let plain = testing::tokenizer().with_chat_template(&plain).unwrap();
    for tokenizer in [&marked, &plain] {
        let encode = |marks, loss_on| {
            let schema = Schema {
                format: Format::Messages,
                fields: Fields::default(),
            };
            let encoder = Encoder::new(schema, tokenizer, loss_on, "").unwrap();
            encoder.encode(&three(marks).to_string()).unwrap()
        };
        let unmarked = encode([None; 3], LossOn::Answers).0;
        assert_eq!(spoken(tokenizer, &unmarked).len(), 3);
        for bits in 0..8 {
            let marks = [0, 1, 2].map(|i| Some(bits >> i & 1 == 1));
            let (example, remarks) = encode(marks, LossOn::Answers);
            assert_eq!(example.tokens, unmarked.tokens);
            let want: Vec<String> = (0..3)
                .filter(|&i| marks[i] == Some(true))
                .map(|i| format!("answer {i}<|im_end|>"))
                .collect();
            assert_eq!(spoken(tokenizer, &example), want, "{marks:?}");
            assert_eq!(remarks.n_marked_against, 3 - want.len() as u64);

            let (all, _) = encode(marks, LossOn::Everything);
            for (t, &supervised) in all.supervised.iter().enumerate() {
                let against = unmarked.supervised[t] && !example.supervised[t];
                assert_eq!(supervised, !against, "{marks:?}, token {t}");
            }
        }
    }
}

/// TRL's prompt and completion as lists of messages are one conversation of which the prompt is given: tokens and mask
/// are those of the conversation in one list whose answers in the prompt are marked against training.
#[test]
fn a_conversation_in_two_parts_is_one_whose_prompt_is_given() {
    for template in ["qwen25", "llama3", "marked"] {
        let tokenizer = match template {
            "marked" => {
                let source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}\
                    {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}\
                    {% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}";
                testing::tokenizer().with_chat_template(source).unwrap()
            }
            name => testing::with_template(name),
        };
        let encoder = encoder(&tokenizer, Format::Messages);
        for n_prompt in [2, 3, 4, 6] {
            let mut whole = three([None; 3]);
            let list = whole["messages"].as_array_mut().unwrap();
            let (prompt, completion) = list.split_at(n_prompt);
            let parts = json!({"prompt": prompt, "completion": completion});
            for message in &mut list[..n_prompt] {
                if message["role"] == "assistant" {
                    message["weight"] = json!(0);
                }
            }
            let (got, remarks) = encoder.encode(&parts.to_string()).unwrap();
            assert_eq!(
                got,
                encoder.example(&whole.to_string()).unwrap(),
                "{template}, {n_prompt}"
            );
            assert!(got.supervised.contains(&true));
            assert!(remarks.sentences().is_empty(), "{:?}", remarks.sentences());
            assert_eq!(
                encoder.prompt(&parts.to_string()),
                encoder.prompt(&whole.to_string())
            );
        }
    }
    let tokenizer = testing::with_template("qwen25");
    let schema = Schema {
        format: Format::Messages,
        fields: Fields::default(),
    };
    let system = Some("be brief".to_owned());
    let encoder = Encoder::new(schema, &tokenizer, LossOn::Answers, "")
        .unwrap()
        .with_system(system);
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    let line = json!({
        "prompt": [said("user", "a"), said("assistant", "b"), said("user", "c")],
        "completion": [said("assistant", "d")],
    });
    let example = encoder.example(&line.to_string()).unwrap();
    assert_eq!(spoken(&tokenizer, &example), ["d<|im_end|>"]);
}

/// Calls of tools, and tools, that a template leaves out are counted; those that it writes are not.
#[test]
fn what_a_template_does_not_write_of_tools_is_counted() {
    let call = json!([{"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}]);
    let line = json!({
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": "", "tool_calls": call},
            {"role": "tool", "content": "fine"},
            {"role": "assistant", "content": "It is fine."},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    });
    let of = |template: &str| {
        let source =
            std::fs::read_to_string(testing::testdata().join(format!("{template}.jinja"))).unwrap();
        let tokenizer = testing::tokenizer().with_chat_template(&source).unwrap();
        let (_, remarks) = encoder(&tokenizer, Format::Messages)
            .encode(&line.to_string())
            .unwrap();
        (
            remarks.n_calls_unwritten,
            remarks.n_tools_unwritten,
            remarks.sentences().join("\n"),
        )
    };
    let (calls, tools, said) = of("chatml");
    assert_eq!((calls, tools), (1, 1), "{said}");
    assert!(said.contains("warning: 1 messages call tools"), "{said}");
    assert!(said.contains("warning: 1 records have `tools`"), "{said}");
    assert_eq!(of("qwen25"), (0, 0, String::new()));
}

/// The separator behind a turn is within its block, and is not there while the turn is the last.
#[test]
fn a_block_may_reach_to_the_next_message() {
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' }}{% generation %}\
                    {{ m.content }}{% if not loop.last %}{{ '<|im_end|>' }}{% endif %}{% endgeneration %}\
                    {% else %}{{ '<|im_start|>' + m.role + m.content }}{% if not loop.last %}{{ '<|im_end|>' }}\
                    {% endif %}{% endif %}{% endfor %}";
    let tokenizer = testing::tokenizer().with_chat_template(template).unwrap();
    let encoder = encoder(&tokenizer, Format::Messages);
    for bits in 1..8u8 {
        let marks = [0, 1, 2].map(|i| Some(bits >> i & 1 == 1));
        let example = encoder.example(&three(marks).to_string()).unwrap();
        let want: Vec<String> = (0..3)
            .filter(|&i| marks[i] == Some(true))
            .map(|i| format!("answer {i}{}", if i < 2 { "<|im_end|>" } else { "" }))
            .collect();
        assert_eq!(spoken(&tokenizer, &example), want, "{marks:?}");
    }
}

/// A template that drops all answers' thoughts but the last one's has blocks that no prefix finds; one
/// block a turn tells them apart, two for one turn do not.
#[test]
fn blocks_that_cannot_be_distinguished_are_refused() {
    let template = |before: &str, inside: &str| {
        format!(
            "{{% for m in messages %}}{{{{ m.role }}}}:{{% if m.role == 'assistant' %}}\
             {{% if loop.last %}}{before}{{% endif %}}{{% generation %}}{{% if loop.last %}}{inside}{{% endif %}}\
             {{{{ m.content }}}}{{% endgeneration %}}{{% else %}}{{{{ m.content }}}}{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}assistant:{{% endif %}}"
        )
    };
    let line = three([Some(false), None, Some(false)]).to_string();
    let one = testing::tokenizer()
        .with_chat_template(&template("", "<think>"))
        .unwrap();
    let example = encoder(&one, Format::Messages).example(&line).unwrap();
    assert_eq!(spoken(&one, &example), ["answer 1"]);
    let two = template("{% generation %}<think>{% endgeneration %}|", "");
    let two = testing::tokenizer().with_chat_template(&two).unwrap();
    let problem = encoder(&two, Format::Messages).example(&line).unwrap_err();
    let want = RecordProblem::BlocksOfTurn {
        message: 4,
        blocks: 4,
        turns: 3,
    };
    assert_eq!(problem, want);
}

#[test]
fn marks_on_others_are_refused_or_remarked_on() {
    let tokenizer = testing::with_template("chatml");
    let line = json!({"messages": [
        {"role": "user", "content": "hi", "train": true, "mood": "good"},
        {"role": "assistant", "content": "yes", "mood": "calm"},
    ]});
    let chat = encoder(&tokenizer, Format::Messages);
    let (_, remarks) = chat.encode(&line.to_string()).unwrap();
    let sentences = remarks.sentences().join("\n");
    assert!(
        sentences.contains("1 messages that are not the assistant's"),
        "{sentences}"
    );
    assert!(
        sentences.ends_with("neither the chat template nor lowtide: 'mood' (2)"),
        "{sentences}"
    );

    let against = line.to_string().replace("true", "false");
    assert!(
        chat.example(&against).is_ok(),
        "a question is not trained on anyway"
    );
    let all = Encoder::new(chat.schema().clone(), &tokenizer, LossOn::Everything, "").unwrap();
    let problem = all.example(&against).unwrap_err().to_string();
    assert!(
        problem.starts_with("message 0 (user) is marked"),
        "{problem}"
    );
}

/// A tokenizer of SentencePiece's kind: a space in front of every text, or of the first.
fn spaced(scheme: &str) -> Tokenizer {
    let (normalizer, pre_tokenizer) = match scheme {
        "prepend" => (
            json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]}),
            json!(null),
        ),
        scheme => (
            json!(null),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true}),
        ),
    };
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let mut vocab = serde_json::Map::new();
    for piece in ["<s>", "</s>", "▁R", "▁"] {
        vocab.insert(piece.into(), json!(vocab.len()));
    }
    for c in ('a'..='z').chain('A'..='Z').chain(":.?0\n".chars()) {
        vocab.insert(c.into(), json!(vocab.len()));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["▁", "R"]]},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = r#"{"bos_token": "<s>", "eos_token": "</s>"}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::open(dir.path()).unwrap()
}

/// The tokens as they are in the vocabulary.
fn pieces(tokenizer: &Tokenizer, tokens: &[i32]) -> String {
    let texts = tokens.iter().map(|&t| tokenizer.piece(t).unwrap());
    texts.collect::<Vec<_>>().join(" ")
}

#[test]
fn no_space_appears_at_the_border_of_prompt_and_completion() {
    for scheme in ["prepend", "always", "first"] {
        let tokenizer = spaced(scheme);
        let encoder = encoder(&tokenizer, Format::PromptCompletion);
        for (prompt, completion, want) in [
            // A token of the whole would reach over the border.
            ("A: ", "Rabat", "<s> ▁ A : ▁ R a b a t </s>"),
            ("A:", " Rabat", "<s> ▁ A : ▁R a b a t </s>"),
            ("A:", "Rabat", "<s> ▁ A : R a b a t </s>"),
        ] {
            let line = json!({"prompt": prompt, "completion": completion}).to_string();
            let example = encoder.example(&line).unwrap();
            assert_eq!(
                pieces(&tokenizer, &example.tokens),
                want,
                "{scheme}: {line}"
            );
        }
    }
}

/// What the file has written out is not put there again, and the mask is as without it.
#[test]
fn beginnings_and_ends_that_are_there_are_not_doubled() {
    let tokenizer = spaced("always");
    for (format, with, without) in [
        (
            Format::PromptCompletion,
            json!({"prompt": "<s>Q:", "completion": "Rabat</s>"}),
            json!({"prompt": "Q:", "completion": "Rabat"}),
        ),
        // Nothing can be said behind the end, so white space there is left out.
        (
            Format::PromptCompletion,
            json!({"prompt": "<s>Q:", "completion": "Rabat</s> \n"}),
            json!({"prompt": "Q:", "completion": "Rabat"}),
        ),
        // Nor a second time.
        (
            Format::PromptCompletion,
            json!({"prompt": "<s>Q:", "completion": "Rabat</s></s>\n"}),
            json!({"prompt": "Q:", "completion": "Rabat"}),
        ),
        (
            Format::Text,
            json!({"text": "<s>Rabat</s></s>"}),
            json!({"text": "Rabat"}),
        ),
        (
            Format::Text,
            json!({"text": "<s>Rabat</s>\n"}),
            json!({"text": "Rabat"}),
        ),
        (
            Format::Text,
            json!({"text": "<s>Rabat</s>"}),
            json!({"text": "Rabat"}),
        ),
    ] {
        let encoder = encoder(&tokenizer, format);
        let (with, remarks) = encoder.encode(&with.to_string()).unwrap();
        let (without, none) = encoder.encode(&without.to_string()).unwrap();
        assert_eq!((remarks.n_had_begin, remarks.n_had_end), (1, 1));
        assert_eq!(none, Remarks::default());
        assert_eq!(with.supervised, without.supervised);
        assert_eq!(
            pieces(&tokenizer, &with.tokens),
            pieces(&tokenizer, &without.tokens)
        );
    }
    let encoder = encoder(&tokenizer, Format::PromptCompletion);
    for completion in ["Rabat</s>", "Rabat</s>\n", "Rabat</s></s> </s>"] {
        let line = json!({"prompt": "<s>Q:", "completion": completion}).to_string();
        let (tokens, reference) = encoder.prompt(&line).unwrap();
        assert_eq!(pieces(&tokenizer, &tokens), "<s> ▁ Q :");
        assert_eq!(
            reference, "Rabat",
            "an answer's text has no end of sequence"
        );
    }
    // All that is said is the end.
    let line = json!({"prompt": "Q</s>", "completion": "</s>"}).to_string();
    let example = encoder.example(&line).unwrap();
    assert!(example.supervised.ends_with(&[false, true]));
    // An end in the prompt is none of the completion, and one in the middle is none of the text.
    for (prompt, completion) in [("Q</s>", "\n"), ("Q:", "Rabat</s> and Fes")] {
        let line = json!({"prompt": prompt, "completion": completion}).to_string();
        let (example, remarks) = encoder.encode(&line).unwrap();
        assert_eq!(remarks.n_had_end, 0, "{line}");
        assert_eq!(example.tokens.last().copied(), tokenizer.eos(), "{line}");
        assert_eq!(
            example
                .tokens
                .iter()
                .filter(|&&t| Some(t) == tokenizer.eos())
                .count(),
            2
        );
    }
}
