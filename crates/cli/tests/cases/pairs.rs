//! Encoders with a decoder: they learn, their exports are the models that were trained, the same bits come from
//! everywhere, and what they have not is refused.

use serde_json::{Value, json};

use super::scratch::{Scratch, copy_over, number};

/// Words of three letters of four, backward: as much as can be learned in a moment.
fn short_words(scratch: &Scratch) {
    let letter = |i: usize| ["a", "b", "c", "d"][i % 4];
    let line = |i: usize| {
        let word = [letter(i), letter(i / 4), letter(i / 16)];
        let back = [word[2], word[1], word[0]];
        format!(
            "{}\n",
            json!({"source": word.concat(), "target": back.concat()})
        )
    };
    scratch.write("train.jsonl", (0..64).map(line).collect::<String>());
    scratch.write(
        "eval.jsonl",
        (0..64).step_by(3).map(line).collect::<String>(),
    );
}

const SHORT: [&str; 7] = [
    "train.epochs=80",
    "train.seq=16",
    "train.target=16",
    "train.micro_batch=4",
    "eval.every_steps=100",
    "eval.generate.every_steps=100",
    "checkpoint.keep_best=none",
];

#[test]
fn t5() {
    let scratch = Scratch::example("reverse");
    short_words(&scratch);
    scratch.train(&SHORT).fine();
    let report: Value = serde_json::from_str(&scratch.read("out/finished.json")).expect("JSON");
    let mut eval = vec!["eval", "run.yaml", "--model", "out/model", "--json"];
    let mut verify = vec!["verify", "run.yaml", "--json", "--steps", "2"];
    for set in &SHORT {
        eval.extend(["--set", set]);
        verify.extend(["--set", set]);
    }
    let loaded = scratch.run(&eval).fine().json();
    assert!(number(&loaded, "exact_match") > 0.9, "{loaded}");
    let report = &report["report"];
    let (run, model) = (
        number(report, "eval_loss_last"),
        number(&loaded, "eval_loss"),
    );
    assert!((run - model).abs() < 1e-6 * run, "{run} {model}");
    let answers = loaded["answers"].as_array().expect("answers");
    let first = &answers[0];
    assert_eq!(
        (&first["prompt"], &first["reference"]),
        (&json!("aaa"), &json!("aaa"))
    );
    assert_eq!(scratch.run(&verify).fine().json()["equal"], true);
    let fault = scratch.run(&[&verify[..], &["--plant-fault"]].concat());
    assert_ne!(fault.code, Some(0), "{}", fault.text());

    // Else transformers does not know what its answers begin with.
    let config = scratch.read("out/model/generation_config.json");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["decoder_start_token_id"], 0, "{config}");

    // The first checkpoints of T5 leave it to who reads them.
    let stripped = "model.path=stripped";
    copy_over(&scratch.at("out/model"), &scratch.at("stripped"));
    for name in ["config.json", "generation_config.json"] {
        let name = format!("stripped/{name}");
        let mut config: Value = serde_json::from_str(&scratch.read(&name)).expect("JSON");
        config
            .as_object_mut()
            .expect("an object")
            .remove("decoder_start_token_id");
        scratch.write(&name, config.to_string());
    }
    let again = [
        stripped,
        "model.config=",
        "model.tokenizer=",
        "output=again",
        "train.steps=1",
        "eval.generate.max_examples=2",
    ];
    scratch.train(&[&SHORT[1..], &again].concat()).fine();
    for name in ["config.json", "generation_config.json"] {
        let config = scratch.read(&format!("again/model/{name}"));
        let config: Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(config["decoder_start_token_id"], 0, "{config}");
    }

    let generate = [
        "generate",
        "run.yaml",
        "--model",
        "out/model",
        "--json",
        "--prompt",
        "abc",
    ];
    let said = scratch.run(&generate).fine().json();
    assert_eq!(
        (&said["text"], &said["cache"]),
        (&json!("cba"), &json!(false))
    );
    let data = scratch.run(&["data", "run.yaml", "--samples", "1"]);
    let shown = data.fine().out.clone();
    // A row has room of its own for each.
    let held = [
        "sources held whole: all at train.seq 4",
        "targets held whole: all at train.target 4",
        "warning: an epoch has 4 rows: 0.5 steps of 8 rows; 8 epochs are 4 steps, which are few",
    ];
    assert!(held.iter().all(|held| shown.contains(held)), "{shown}");
    assert!(
        shown.contains("aaa</s>") && shown.contains(" → "),
        "{shown}"
    );
}

#[test]
fn what_two_stacks_have_not_is_refused() {
    let scratch = Scratch::example("reverse");
    short_words(&scratch);
    scratch.write("bad.jsonl", "{\"source\": \"abc\"}\n");
    for (set, words) in [
        ("data.train=bad.jsonl", &["bad.jsonl:1:", "'target'"][..]),
        (
            "data.format=chat",
            &["data.format", "a source and a target"],
        ),
        ("data.train_on=all", &["data.train_on"]),
        ("data.separator=x", &["data.separator"]),
        (
            "data.fields.prompt=question",
            &["data.fields.prompt", "a source and a target"],
        ),
        ("data.streaming=true", &["data.streaming"]),
        ("eval.generate.cached=2", &["eval.generate.cached"]),
        ("train.target=0", &["train.target"]),
        ("train.freeze=[shared]", &["train.freeze"]),
        ("gpus=2", &["gpus"]),
    ] {
        scratch.train(&[set]).refused(words);
    }
    let config = scratch.read("config.json");
    let start = "\"decoder_start_token_id\": ";
    scratch.write(
        "config.json",
        config.replace(&format!("{start}0"), &format!("{start}19")),
    );
    scratch
        .train(&[])
        .refused(&["config.json", "decoder_start_token_id is 19", "0 to 18"]);
    // The other way round.
    let decoder = [
        "model.config=",
        "model.path=m",
        "model.tokenizer=",
        "train.target=0",
        "train.seq=64",
        "data.format=seq2seq",
    ];
    scratch
        .train(&decoder)
        .refused(&["data.format", "has no encoder"]);
    assert!(!scratch.at("out").exists(), "nothing was begun");
}
