//! Which tokens are supervised under templates of all shapes; where an answer ends; what the export says.

use super::scratch::{Ended, Scratch};

/// The tokens after "The capital", eight of them if nothing stops.
fn continued(scratch: &Scratch) -> Vec<u64> {
    let ended = scratch.run(&[
        "generate",
        "run.yaml",
        "--json",
        "--prompt",
        "The capital",
        "--max-new-tokens",
        "8",
    ]);
    let answer = ended.fine().json();
    let tokens = answer["tokens"].as_array().expect("tokens");
    tokens
        .iter()
        .filter_map(serde_json::Value::as_u64)
        .collect()
}

#[test]
fn decoding_stops_at_every_eos_token_id_of_the_models_files() {
    let scratch = Scratch::new("eos-is-not-end-of-turn");
    let free = continued(&scratch);
    assert_eq!(free.len(), 8, "{free:?}");
    // A token that does not come before.
    let at = (1..8)
        .find(|&i| !free[..i].contains(&free[i]))
        .expect("two tokens");
    for text in [format!("[1023, {}]", free[at]), free[at].to_string()] {
        scratch.write(
            "m/generation_config.json",
            format!("{{\"eos_token_id\": {text}}}"),
        );
        assert_eq!(continued(&scratch), free[..at], "{text}");
    }
    std::fs::remove_file(scratch.at("m/generation_config.json")).expect("removed");
    let config = scratch.read("m/config.json");
    let with = config.replacen('{', &format!("{{\"eos_token_id\": {},", free[at]), 1);
    scratch.write("m/config.json", with);
    assert_eq!(continued(&scratch), free[..at], "config.json");

    scratch.write("m/generation_config.json", "{\"eos_token_id\": \"</s>\"}");
    scratch
        .run(&["generate", "run.yaml", "--prompt", "The capital"])
        .refused(&["generation_config.json", "eos_token_id"]);
    scratch
        .train(&[])
        .refused(&["generation_config.json", "eos_token_id"]);
}

/// How many of the training tokens a run said are supervised.
fn supervised(ended: &Ended) -> u64 {
    let text = ended.fine().text();
    let line = text
        .lines()
        .find(|l| l.contains("supervised"))
        .expect("a count");
    let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
    let at = words
        .iter()
        .position(|w| *w == "supervised")
        .expect("the word");
    words[at - 1].parse().expect("a number")
}

fn supervised_under(scratch: &Scratch, template: &str) -> u64 {
    let (template, out) = (
        format!("data.chat_template={template}"),
        format!("output=out-{template}"),
    );
    supervised(&scratch.train(&[&template, &out]))
}

#[test]
fn an_end_of_sequence_behind_the_conversation_is_no_end_of_a_turn() {
    let scratch = Scratch::new("mask-eos-at-end");
    assert_eq!(supervised_under(&scratch, "plain.jinja"), 36);
    assert_eq!(supervised_under(&scratch, "endeos.jinja"), 36);
}

#[test]
fn a_header_that_is_always_there_is_not_the_answers() {
    let scratch = Scratch::new("mask-header-always");
    let cond = supervised_under(&scratch, "cond.jinja");
    assert_eq!(supervised_under(&scratch, "always.jinja"), cond);
    assert_eq!(cond, 36);
}

#[test]
fn a_template_whose_turns_cannot_be_told_apart_is_refused_with_advice() {
    let scratch = Scratch::new("template-not-a-prefix");
    let advice = [
        "d.jsonl:1: message 2",
        "data.chat_template",
        "{% generation %}",
    ];
    let r1 = scratch.train(&["data.chat_template=r1.jinja"]);
    r1.refused(&advice);
    r1.refused(&["<think>", "assistant\\nThe capital"]);
    let mistral = scratch.train(&["data.chat_template=mistral.jinja"]);
    mistral.refused(&advice);
    mistral.refused(&["be brief\\nWhat is"]);
    assert!(!scratch.at("out").exists());

    // The advice helps.
    let source = scratch.read("r1.jinja");
    let marked = source.replace(
        "{{ '<|im_start|>assistant\\n' + m['content'].split('</think>')[-1] + '<|im_end|>\\n' }}",
        "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ m['content'].split('</think>')[-1] + '<|im_end|>' }}\
         {% endgeneration %}{{ '\\n' }}",
    );
    assert_ne!(source, marked);
    scratch.write("marked.jinja", marked);
    assert!(supervised_under(&scratch, "marked.jinja") > 0);
}
