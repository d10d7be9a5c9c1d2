//! Masks derived from renderings, against those of the same template with `{% generation %}`: every
//! shape in `testdata/chat/shapes.txt` times every conversation below.
//!
//! One file because a list of conversations is most of it, and every test goes through that list.

use rayon::prelude::*;
use serde_json::{Value, json};

use super::super::{Fields, Format, testing};
use super::*;

const OPEN: &str = "{% generation %}";
const CLOSE: &str = "{% endgeneration %}";

struct Shape {
    name: String,
    tokens: Vec<String>,
    source: String,
}

fn shapes() -> Vec<Shape> {
    let text = std::fs::read_to_string(testing::testdata().join("shapes.txt")).unwrap();
    let sections = text.split("\n=== ").skip(1);
    let shape = |section: &str| {
        let (name, rest) = section.split_once('\n').unwrap();
        let (tokens, source) = rest.split_once('\n').unwrap();
        Shape {
            name: name.to_owned(),
            tokens: tokens.split(' ').map(str::to_owned).collect(),
            source: source.trim_end_matches('\n').to_owned(),
        }
    };
    sections.map(shape).collect()
}

/// The tokenizer of the golden cases with a shape's tokens and template.
fn tokenizer(shape: &Shape, source: &str) -> Tokenizer {
    let from = testing::testdata().join("tokenizer/tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(from).unwrap()).unwrap();
    let added = file["added_tokens"].as_array_mut().unwrap();
    for token in shape.tokens.iter().filter(|t| *t != "-") {
        if !added.iter().any(|t| t["content"] == **token) {
            let id = 340 + added.len();
            added.push(
                json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}),
            );
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let named = |i: usize| Some(&shape.tokens[i]).filter(|t| *t != "-");
    let config = json!({"bos_token": named(0), "eos_token": named(1)});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let tokenizer = tokenizer.with_now(1_721_995_200).unwrap();
    tokenizer.with_chat_template(source).unwrap()
}

/// A conversation in which `s`, `u`, `a`, `t` begin a message's role.
fn talk(turns: &[(&str, &str)]) -> Value {
    let role = |r: &str| match r {
        "s" => "system",
        "u" => "user",
        "a" => "assistant",
        _ => "tool",
    };
    turns
        .iter()
        .map(|(r, content)| json!({"role": role(r), "content": content}))
        .collect()
}

fn conversations() -> Vec<(&'static str, Value, Option<Value>)> {
    let plain = |name, turns: &[(&str, &str)]| (name, talk(turns), None);
    let mut all = vec![
        plain("one", &[("u", "in the"), ("a", "the thing")]),
        plain(
            "system",
            &[("s", "be brief"), ("u", "in the"), ("a", "the thing")],
        ),
        plain(
            "three",
            &[
                ("u", "one"),
                ("a", "two"),
                ("u", "three"),
                ("a", "four, and"),
                ("u", "five"),
                ("a", "six"),
            ],
        ),
        plain(
            "system, two",
            &[
                ("s", "be brief"),
                ("u", "one"),
                ("a", "two"),
                ("u", "three"),
                ("a", "four"),
            ],
        ),
        plain(
            "a user is last",
            &[
                ("u", "one"),
                ("a", "two"),
                ("u", "three and more"),
                ("a", "4"),
                ("u", "five, the last"),
            ],
        ),
        plain(
            "a system prompt, and a user is last",
            &[("s", "sys"), ("u", "one"), ("a", "two"), ("u", "three")],
        ),
        plain(
            "empty answer",
            &[("u", "one"), ("a", ""), ("u", "three"), ("a", "four")],
        ),
        plain(
            "empty last answer",
            &[("u", "one"), ("a", "two"), ("u", "three"), ("a", "")],
        ),
        plain(
            "empty question",
            &[("u", ""), ("a", "two"), ("u", ""), ("a", "four")],
        ),
        plain(
            "equal contents",
            &[("u", "yes"), ("a", "yes"), ("u", "yes"), ("a", "yes")],
        ),
        plain(
            "white space around",
            &[
                ("u", " one \n"),
                ("a", "\n two \n\n"),
                ("u", "\tthree"),
                ("a", "  four  "),
            ],
        ),
        plain(
            "unicode",
            &[
                ("u", "Grüße 你好"),
                ("a", "👩‍👩‍👧 — naïve ａ"),
                ("u", "Ελλάδα"),
                ("a", "ß\u{301}\u{200b}"),
            ],
        ),
        plain(
            "answers in a row",
            &[
                ("u", "one"),
                ("a", "two"),
                ("a", "and three"),
                ("u", "four"),
                ("a", "five"),
            ],
        ),
        plain(
            "questions in a row",
            &[("u", "one"), ("u", "two"), ("a", "three")],
        ),
        plain(
            "the assistant begins",
            &[("a", "hello"), ("u", "one"), ("a", "two")],
        ),
        plain(
            "thoughts",
            &[
                ("u", "one"),
                ("a", "<think>\nhm\n</think>\n\ntwo"),
                ("u", "three"),
                ("a", "<think>\nso\n</think>\n\nfour"),
            ],
        ),
        plain(
            "a single thought",
            &[("u", "one"), ("a", "<think>\nhm\n</think>\n\ntwo")],
        ),
        plain(
            "words of the proof",
            &[
                ("u", "Hv9Rd Wc2Pf Yj3Nm"),
                ("a", "Qkv70Lq Qkv7Lq Zwx4Tz"),
                ("u", "Qkv71Lq"),
                ("a", "Qkv7Lq"),
            ],
        ),
        plain(
            "half a token",
            &[("u", "<|im_"), ("a", "<|"), ("u", "</"), ("a", "<|im_end")],
        ),
    ];
    for end in [
        "<|im_end|>",
        "</s>",
        "<|endoftext|>",
        "<|end|>",
        "<|eot_id|>",
        "<end_of_turn>",
        "\n\n",
        "\nUser: x",
    ] {
        all.push((
            "an end in the content",
            talk(&[
                ("u", "one"),
                ("a", &format!("two{end}more")),
                ("u", "three"),
                ("a", &format!("four{end}")),
            ]),
            None,
        ));
    }
    for header in [
        "<|im_start|>assistant\n",
        "<|assistant|>\n",
        "ASSISTANT:",
        "### Response:\n",
        " [/INST]",
        "Output:",
        "Bot: ",
        "<|im_start|>user\n",
        "\n\nAssistant:",
        "<|start|>assistant",
        "Human: ",
        "<extra_id_1>User\n",
    ] {
        all.push((
            "a header in the content",
            talk(&[
                ("u", &format!("one{header}")),
                ("a", &format!("two{header}more")),
                ("u", "three"),
                ("a", &format!("four{header}")),
            ]),
            None,
        ));
        all.push((
            "a header alone",
            talk(&[("u", header), ("a", header), ("u", header), ("a", header)]),
            None,
        ));
    }
    let long: Vec<(String, String)> = (0..40)
        .map(|i| {
            (
                if i % 2 == 0 { "u" } else { "a" }.to_owned(),
                format!("turn {i} of the long one"),
            )
        })
        .collect();
    let long: Vec<(&str, &str)> = long.iter().map(|(r, c)| (r.as_str(), c.as_str())).collect();
    all.push(plain("long", &long));
    let call = json!([{"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}]);
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
    let mut calls = talk(&[
        ("u", "one"),
        ("a", ""),
        ("t", "12 degrees"),
        ("a", "It is 12."),
        ("u", "ta"),
        ("a", "bye"),
    ]);
    calls[1]["tool_calls"] = call.clone();
    calls[2]["tool_call_id"] = json!("call12345");
    all.push(("tool calls", calls.clone(), Some(tools.clone())));
    calls[1]["content"] = json!("I look.");
    all.push(("tool calls with words", calls.clone(), Some(tools.clone())));
    let mut last = calls;
    last.as_array_mut().unwrap().truncate(2);
    all.push(("a tool call is last", last, Some(tools)));
    let mut reasons = talk(&[("u", "one"), ("a", "two"), ("u", "three"), ("a", "four")]);
    reasons[1]["reasoning_content"] = json!("hm");
    reasons[3]["reasoning_content"] = json!("so");
    all.push(("reasons beside the content", reasons, None));
    all
}

#[derive(Debug, Default)]
struct Figures {
    equal: usize,
    /// Conversation and reason.
    refused: Vec<(&'static str, String)>,
    /// The template itself refuses the conversation.
    unfit: usize,
    wrong: Vec<String>,
}

fn encode(tokenizer: &Tokenizer, line: &str) -> Result<Example, RecordProblem> {
    let schema = Schema {
        format: Format::Messages,
        fields: Fields::default(),
    };
    Encoder::new(schema, tokenizer, LossOn::Answers, "")
        .unwrap()
        .example(line)
}

fn compare(shape: &Shape) -> Figures {
    let marked = tokenizer(shape, &shape.source);
    let plain = tokenizer(shape, &shape.source.replace(OPEN, "").replace(CLOSE, ""));
    let mut figures = Figures::default();
    for (name, messages, tools) in conversations() {
        let line = json!({"messages": messages, "tools": tools}).to_string();
        let at = format!("{} / {name} / {line}", shape.name);
        let (want, got) = (encode(&marked, &line), encode(&plain, &line));
        match (want, got) {
            (Err(RecordProblem::Render { .. }), Err(RecordProblem::Render { .. })) => {
                figures.unfit += 1
            }
            (Ok(want), Ok(got)) if want == got => figures.equal += 1,
            (Ok(want), Ok(got)) => {
                let show = |e: &Example| {
                    let mut text = String::new();
                    for (&t, &s) in e.tokens.iter().zip(&e.supervised) {
                        let t = plain.token_text(t);
                        text += &if s { format!("[{t}]") } else { t };
                    }
                    text
                };
                figures.wrong.push(format!(
                    "{at}\n  want {}\n  got  {}",
                    show(&want),
                    show(&got)
                ));
            }
            (
                Ok(_),
                Err(e @ (RecordProblem::NotAPrefix { .. } | RecordProblem::TurnEnd { .. })),
            ) => figures.refused.push((name, e.to_string())),
            (want, got) => figures
                .wrong
                .push(format!("{at}\n  want {want:?}\n  got  {got:?}")),
        }
    }
    let excess = plain.chat_template().expect("given").excess();
    if excess > 0 {
        figures.wrong.push(format!(
            "{}: its renderings take {excess} units more than the conversations account for",
            shape.name
        ));
    }
    figures
}

/// Why a conversation is refused under a shape; nothing else may be.
fn may_be_refused(shape: &str, conversation: &str) -> bool {
    match (shape, conversation) {
        // The prompt opens a thought that these turns do not have.
        ("deepseek r1", _) => true,
        ("qwen3, thoughts opened by the prompt", name) => name != "a single thought",
        // A system prompt of its own ends as an answer does, and nothing ends with an answer.
        ("qwen2, header always", _) => true,
        ("counts its messages", _) => true,
        // The system prompt of its own ends as a turn does, and the last turn ends otherwise.
        ("another end in the last turn, a system prompt of its own", _) => true,
        // A question is rendered otherwise once another follows.
        ("the last question says not to think", name) => !matches!(
            name,
            "one" | "system" | "a single thought" | "questions in a row"
        ),
        // The system prompt moves into the last question.
        ("mistral v3", name) => name.contains("system"),
        // They render nothing without a message, or not as they begin a conversation.
        (_, "the assistant begins") => true,
        // Each beginning of a conversation ends with the end of sequence.
        ("end of sequence at every end, prompt ignored", _) => true,
        // A last turn is rendered otherwise than one that another answer follows.
        (_, "answers in a row") => true,
        (name, "tool calls" | "tool calls with words") => {
            name.starts_with("chatml, prompt only") || name.starts_with("phi 3, the same")
        }
        _ => false,
    }
}

#[test]
#[allow(clippy::print_stdout)]
fn derived_masks_are_those_of_the_marked_twins() {
    let shapes = shapes();
    let n = conversations().len();
    let all: Vec<Figures> = shapes.par_iter().map(compare).collect();
    let (mut equal, mut refused, mut unfit, mut wrong) = (0, 0, 0, Vec::new());
    for (shape, figures) in shapes.iter().zip(all) {
        println!(
            "{}: {} equal, {} refused, {} unfit, {} wrong",
            shape.name,
            figures.equal,
            figures.refused.len(),
            figures.unfit,
            figures.wrong.len()
        );
        for (name, reason) in &figures.refused {
            println!("  {name}: {reason}");
            if !may_be_refused(&shape.name, name) {
                wrong.push(format!("{} / {name} is refused: {reason}", shape.name));
            }
        }
        equal += figures.equal;
        refused += figures.refused.len();
        unfit += figures.unfit;
        wrong.extend(figures.wrong);
    }
    println!(
        "{} templates x {n} conversations: {equal} equal, {refused} refused, {unfit} refused by the template, {} wrong",
        shapes.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // In docs/robustness.md too.
    assert_eq!(
        (shapes.len(), n, equal, refused, unfit),
        (101, 56, 5206, 427, 23)
    );
}

/// Answers that have the end written out which the template writes behind them are those without, and so is what
/// an answer is compared with.
#[test]
fn an_end_that_an_answer_has_written_out_is_not_doubled() {
    let compared = |shape: &Shape| {
        let mut compared = 0;
        for source in [
            shape.source.clone(),
            shape.source.replace(OPEN, "").replace(CLOSE, ""),
        ] {
            let tokenizer = tokenizer(shape, &source);
            let turns = Turns::new(tokenizer.chat_template().unwrap(), &tokenizer);
            let (Some(end), Some(last)) = (turns.end_of(false), turns.end_of(true)) else {
                continue;
            };
            let line = |first: &str, second: &str| {
                let turns = [("u", "one"), ("a", first), ("u", "three"), ("a", second)];
                json!({"messages": talk(&turns)}).to_string()
            };
            let plain = line("two", "four");
            let written = line(&format!("two{end} \n"), &format!("four{last}{last}"));
            let Ok(want) = encode(&tokenizer, &plain) else {
                continue;
            };
            assert_eq!(
                encode(&tokenizer, &written).as_ref(),
                Ok(&want),
                "{}: {written}",
                shape.name
            );
            let schema = Schema {
                format: Format::Messages,
                fields: Fields::default(),
            };
            let encoder = Encoder::new(schema, &tokenizer, LossOn::Answers, "").unwrap();
            assert_eq!(encoder.encode(&written).unwrap().1.n_had_end, 1);
            assert_eq!(encoder.encode(&plain).unwrap().1.n_had_end, 0);
            assert_eq!(
                encoder.prompt(&written).unwrap(),
                encoder.prompt(&plain).unwrap()
            );
            // One in the middle of an answer is the answer's.
            let inside = line(&format!("two{end}more"), "four");
            assert_eq!(encoder.encode(&inside).map_or(0, |e| e.1.n_had_end), 0);
            compared += 1;
        }
        compared
    };
    let n: usize = shapes().par_iter().map(compared).sum();
    assert!(n > 120, "{n}");
}

/// A template that ends answers from the second one on: what stands behind that end is not supervised, and decoding
/// stops there.
#[test]
fn an_end_that_only_later_turns_have_is_an_end() {
    let shapes = shapes();
    let chatml = shapes
        .iter()
        .find(|s| s.name.contains("once at the end"))
        .unwrap();
    for (end, before) in [("<|endoftext|>", 2), ("<|im_end|>", 3)] {
        let source = format!(
            "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}{{% if m.role == 'assistant' and \
             loop.index0 >= {before} %}}{end}{{% endif %}}{{{{ '\n' }}}}{{% endfor %}}{{% if add_generation_prompt \
             %}}<|im_start|>assistant\n{{% endif %}}"
        );
        let tokenizer = tokenizer(chatml, &source);
        let stops = crate::end_of_turn(&tokenizer).unwrap().unwrap().tokens;
        assert!(stops.iter().any(|(_, text)| text == end), "{stops:?}");
        let six = conversations().swap_remove(2).1;
        let example = encode(&tokenizer, &json!({ "messages": six }).to_string()).unwrap();
        let said = |supervised: bool| {
            let tokens = example.tokens.iter().zip(&example.supervised);
            let of = tokens.filter(|(_, s)| **s == supervised).map(|(t, _)| *t);
            tokenizer.decode(&of.collect::<Vec<_>>(), true)
        };
        for (answer, question) in [("four, and", "five"), ("six", "")] {
            assert!(
                said(true).contains(&format!("{answer}{end}")),
                "{:?}",
                said(true)
            );
            assert!(
                !said(true).contains(&format!("{end}\n")),
                "{:?}",
                said(true)
            );
            assert!(said(false).contains(question));
        }
    }
}

/// What one rendering shows of the turns of a conversation is what the proof of each turn says, or nothing.
#[test]
#[allow(clippy::print_stdout)]
fn turns_that_are_found_together_are_those_found_alone() {
    let of_shape = |shape: &Shape| {
        let plain = tokenizer(shape, &shape.source.replace(OPEN, "").replace(CLOSE, ""));
        let turns = Turns::new(plain.chat_template().unwrap(), &plain);
        let (mut found, mut alone, mut wrong) = (0, 0, Vec::new());
        for (name, messages, tools) in conversations() {
            let all = turns.both_ways(messages.as_array().unwrap(), tools.as_ref());
            for (aligned, proven) in all {
                match (aligned, proven) {
                    (None, _) => alone += 1,
                    (Some(a), Ok(b)) if a == b => found += 1,
                    // The rest of the conversation is refused: held against the first turns, it is not used.
                    (Some(_), Err(_)) if may_be_refused(&shape.name, name) => alone += 1,
                    (a, b) => wrong.push(format!("{} / {name}: {a:?} and {b:?}", shape.name)),
                }
            }
        }
        (found, alone, wrong)
    };
    let all: Vec<_> = shapes().par_iter().map(of_shape).collect();
    let wrong: Vec<String> = all.iter().flat_map(|a| a.2.clone()).collect();
    let (found, alone) = all.iter().fold((0, 0), |n, a| (n.0 + a.0, n.1 + a.1));
    println!("{found} turns found together, {alone} left to their own proof");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 4000, "{found} of {}", found + alone);
}

/// A conversation of so many messages, one of which may be marked not to be trained on.
fn chat(n: usize, marked: Option<usize>) -> String {
    let role = |i| if i % 2 == 0 { "user" } else { "assistant" };
    let message = |i| json!({"role": role(i), "content": format!("turn {i} of it, which says \"{}\"", i * 7)});
    let mut messages: Vec<Value> = (0..n).map(message).collect();
    if let Some(i) = marked {
        messages[i]["weight"] = json!(0);
    }
    json!({ "messages": messages }).to_string()
}

#[test]
fn long_conversations_have_the_masks_of_their_twins() {
    let wrong = |shape: &Shape| {
        let marked = tokenizer(shape, &shape.source);
        let plain = tokenizer(shape, &shape.source.replace(OPEN, "").replace(CLOSE, ""));
        let mut wrong = Vec::new();
        // Longer than what is proven turn by turn, and shorter, with and without a mark.
        for mark in [None, Some(51)] {
            let short = mark.map(|_| 5);
            let as_short = encode(&plain, &chat(40, short)).is_ok();
            let line = chat(120, mark);
            match (encode(&marked, &line), encode(&plain, &line)) {
                (Ok(want), Ok(got)) if want == got && as_short => {}
                (Ok(_), Err(_)) if !as_short => {}
                (want, got) => wrong.push(format!(
                    "{}, {mark:?}: {:?} and {:?}",
                    shape.name,
                    want.map(|e| e.supervised.len()),
                    got.map(|e| e.supervised.len())
                )),
            }
        }
        wrong
    };
    let wrong: Vec<String> = shapes().par_iter().flat_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Ten thousand messages take no longer than a few renderings of them; where each turn takes its own, that is refused.
#[test]
fn very_long_conversations_end_soon() {
    let shapes = shapes();
    let chatml = shapes
        .iter()
        .find(|s| s.name.starts_with("chatml"))
        .unwrap();
    let plain = chatml.source.replace(OPEN, "").replace(CLOSE, "");
    for (source, mark) in [
        (&plain, None),
        (&plain, Some(77)),
        (&chatml.source, Some(77)),
    ] {
        let tokenizer = tokenizer(chatml, source);
        let time = |n: usize| {
            let begun = std::time::Instant::now();
            encode(&tokenizer, &chat(n, mark)).unwrap();
            begun.elapsed().as_secs_f64()
        };
        let (one, ten) = (time(1_000), time(10_000));
        assert!(ten < 40.0 * one.max(0.02), "{one} s, {ten} s");
    }
    // The same with words around each content that depend on it.
    let source = plain.replace("{{ m.content }}", "{{ m.content ~ (m.content | length) }}");
    assert_ne!(source, plain);
    let hard = tokenizer(chatml, &source);
    match encode(&hard, &chat(10_000, None)) {
        Err(RecordProblem::TooManyTurns {
            turns, messages, ..
        }) => {
            assert!(turns > 4000 && messages == 10_000);
        }
        other => panic!("{:?}", other.map(|e| e.tokens.len())),
    }
}
