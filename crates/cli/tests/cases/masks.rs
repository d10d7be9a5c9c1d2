//! Which tokens are supervised under templates of all shapes; where an answer ends; what the export says.

use serde_json::{Value, json};

use super::scratch::{Ended, Scratch, copy_over};

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

#[test]
fn errors_of_a_template_name_the_file_it_stands_in() {
    let scratch = Scratch::new("mask-eos-at-end");
    let broken = "{{ bos_token }}\n{% for m in %}{% endfor %}";
    scratch.write("broken.jinja", broken);
    let given = scratch.train(&["data.chat_template=broken.jinja"]);
    given.refused(&[
        "broken.jinja",
        "line 2",
        "syntax error",
        "data.chat_template",
    ]);
    assert!(!given.text().contains("tokenizer.json"), "{}", given.text());
    scratch.write("m/chat_template.jinja", broken);
    scratch
        .train(&[])
        .refused(&["m/chat_template.jinja", "line 2", "syntax error"]);
    std::fs::remove_file(scratch.at("m/chat_template.jinja")).expect("removed");
    let mut config = json_of(&scratch, "m/tokenizer_config.json");
    config["chat_template"] = json!(broken);
    scratch.write("m/tokenizer_config.json", config.to_string());
    scratch
        .train(&[])
        .refused(&["m/tokenizer_config.json", "line 2", "syntax error"]);
    scratch
        .train(&["data.chat_template=none.jinja"])
        .refused(&["none.jinja", "data.chat_template"]);
}

#[test]
fn a_fault_of_the_template_is_not_told_as_one_of_the_record() {
    let scratch = Scratch::new("mask-eos-at-end");
    let skip = "data.on_error=skip";
    let long = "x".repeat(10_000);
    scratch.write(
        "never.jinja",
        format!("{{{{ raise_exception('never {long}') }}}}"),
    );
    let never = scratch.train(&["data.chat_template=never.jinja"]);
    never.refused(&[
        "d.jsonl:1",
        "chat template, line 1",
        "never xxx",
        "every conversation",
    ]);
    assert!(!never.text().contains(skip), "{}", never.text());
    assert!(never.text().len() < 2000, "{}", never.text().len());
    let plain = scratch.read("plain.jinja");
    let refuses = "{% if messages|length > 2 %}{{ raise_exception('two at most') }}{% endif %}";
    scratch.write("two.jinja", format!("{refuses}{plain}"));
    let two = scratch.train(&["data.chat_template=two.jinja"]);
    two.refused(&["d.jsonl:1", "two at most", skip]);
}

/// Each rendering of these templates stays within its own limits, or every record is left out: the load ends all
/// the same.
#[test]
fn templates_that_work_for_nothing_end_the_load() {
    let scratch = Scratch::new("mask-eos-at-end");
    let plain = scratch.read("plain.jinja");
    let line = scratch
        .read("d.jsonl")
        .lines()
        .next()
        .expect("a record")
        .to_owned();
    scratch.write("many.jsonl", format!("{line}\n").repeat(3000));
    let search = "{% set x = range(20000)|list %}{% set y = x|select('in', x)|list %}";
    scratch.write("search.jinja", format!("{search}{plain}"));
    let count = "{% set x = 'a' * 1000000 %}{% set y = x.count('a') %}";
    scratch.write("count.jinja", format!("{count}{plain}"));
    let data = "data.train=many.jsonl";
    let stopped = scratch.train(&["data.chat_template=search.jinja", data]);
    stopped.refused(&[
        "many.jsonl:1",
        "search.jinja, line 1",
        "filter 'select' with test 'in'",
        "64 MiB",
    ]);
    for (name, construct) in [
        ("search.jinja", "filter 'select'"),
        ("count.jinja", "method 'count'"),
    ] {
        let template = format!("data.chat_template={name}");
        let skipped = scratch.train(&[&template, data, "data.on_error=skip"]);
        skipped.refused(&["many.jsonl", name, "1024 MiB", construct]);
        assert!(
            !skipped.text().contains("data.on_error=skip"),
            "{}",
            skipped.text()
        );
    }
}

/// The quickstart with another end of sequence: answers end where the template ends them.
#[test]
fn answers_end_where_the_template_ends_a_turn() {
    let scratch = Scratch::new("eos-is-not-end-of-turn");
    let data = ["train.jsonl", "eval.jsonl"].map(|name| scratch.at(name).display().to_string());
    let ended = scratch.run(&[
        "train",
        "run.yaml",
        "--json",
        "--set",
        &format!("data.train={}", data[0]),
        "--set",
        &format!("data.eval={}", data[1]),
        "--set",
        "train={steps: 100, micro_batch: 2, accumulate: 2, seq: 256, learning_rate: 6e-4, warmup_steps: 10}",
        "--set",
        "optimizer.beta2=0.95",
        "--set",
        "eval={generate: {exact_match: true, max_new_tokens: 24, max_examples: 20}}",
    ]);
    let text = ended.fine().text();
    assert!(
        text.contains("it ends turns with <|im_end|>, the tokenizer names <|endoftext|>"),
        "{text}"
    );
    let answer = ended.json();
    let share = answer["exact_match_after"].as_f64().expect("a share");
    assert!(share > 0.8, "{answer}");
    // The exported model stops there by itself: by its own files and no template of the run's.
    let config = json_of(&scratch, "out/model/generation_config.json");
    assert_eq!(config["eos_token_id"], json!([0, 2]), "{config}");
    let tokenizer = json_of(&scratch, "out/model/tokenizer_config.json");
    assert_eq!(tokenizer["eos_token"], "<|im_end|>");
}

fn json_of(scratch: &Scratch, name: &str) -> Value {
    serde_json::from_str(&scratch.read(name)).expect("JSON")
}

#[test]
fn the_export_has_the_template_it_was_trained_with() {
    let scratch = Scratch::new("template-not-exported");
    scratch.train(&["data.chat_template=t.jinja"]).fine();
    assert_eq!(
        scratch.read("out/model/chat_template.jinja"),
        scratch.read("t.jinja")
    );
    let config = json_of(&scratch, "out/model/tokenizer_config.json");
    assert!(config.get("chat_template").is_none(), "{config}");
    let before = json_of(&scratch, "m/tokenizer_config.json");
    assert_eq!(config["model_max_length"], before["model_max_length"]);
    // It is what the model is used with from now on.
    let ended = scratch.run(&[
        "train",
        "run.yaml",
        "--set",
        "model.path=out/model",
        "--set",
        "output=again",
    ]);
    assert_eq!(
        supervised(&ended),
        supervised(&scratch.train(&["data.chat_template=t.jinja", "output=third"]))
    );
    assert_eq!(
        scratch.read("again/model/chat_template.jinja"),
        scratch.read("t.jinja")
    );
}

#[test]
fn the_export_has_the_tokenizer_it_was_trained_with() {
    let scratch = Scratch::new("template-not-exported");
    copy_over(&scratch.at("m"), &scratch.at("tok"));
    for name in ["tok/model.safetensors", "tok/config.json"] {
        std::fs::remove_file(scratch.at(name)).expect("removed");
    }
    let config = scratch
        .read("tok/tokenizer_config.json")
        .replace("256", "255");
    scratch.write("tok/tokenizer_config.json", config);
    let template = "other{% for m in messages %}{{ m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}";
    scratch.write("tok/chat_template.jinja", template);
    scratch.write("tok/spiece.model", "pieces");
    scratch.write("m/added_tokens.json", "{\"of the model\": 3}");
    scratch.train(&["model.tokenizer=tok"]).fine();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "spiece.model",
    ] {
        let exported = scratch.read(&format!("out/model/{name}"));
        assert_eq!(exported, scratch.read(&format!("tok/{name}")), "{name}");
    }
    assert!(
        !scratch.at("out/model/added_tokens.json").exists(),
        "the model's tokenizer"
    );
    assert!(scratch.at("m/added_tokens.json").exists());
}
