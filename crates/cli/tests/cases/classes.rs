//! Encoders that classify: they learn, their exports are the models that were trained, the same bits come from
//! everywhere, and what only other models have is refused.

use serde_json::{Value, json};

use super::scratch::{Scratch, number};

/// Trains; what is exported evaluates as the run did at its end, and verify finds the same bits.
fn trained(scratch: &Scratch, sets: &[&str]) -> Value {
    scratch.train(sets).fine();
    let report: Value = serde_json::from_str(&scratch.read("out/finished.json")).expect("JSON");
    let mut eval = vec!["eval", "run.yaml", "--model", "out/model", "--json"];
    let mut verify = vec!["verify", "run.yaml", "--json", "--steps", "2"];
    for set in sets {
        eval.extend(["--set", set]);
        verify.extend(["--set", set]);
    }
    let loaded = scratch.run(&eval).fine().json();
    let (run, model) = (
        number(&report["report"], "eval_loss_last"),
        number(&loaded, "eval_loss"),
    );
    assert!((run - model).abs() < 1e-6 * run, "{run} {model}");
    assert_eq!(
        number(&report["report"], "eval_accuracy_last"),
        number(&loaded, "eval_accuracy")
    );
    assert_eq!(scratch.run(&verify).fine().json()["equal"], true);
    loaded
}

/// A third of the example: most of what it learns is learned by then.
#[test]
fn roberta() {
    let scratch = Scratch::example("classify");
    let keys = ["train.epochs=4", "checkpoint.keep_best=none"];
    let evaluated = trained(&scratch, &keys);
    assert!(number(&evaluated, "eval_accuracy") > 0.9, "{evaluated}");
    assert!(number(&evaluated, "eval_f1") > 0.9, "{evaluated}");

    let config: Value = serde_json::from_str(&scratch.read("out/model/config.json")).expect("JSON");
    let names = json!({"0": "negative", "1": "positive"});
    assert_eq!(config["id2label"], names, "{config}");
    assert_eq!(config["label2id"], json!({"negative": 0, "positive": 1}));
    assert_eq!(
        config["architectures"],
        json!(["RobertaForSequenceClassification"])
    );
    // The exported names are enough: the run file need not have them.
    let unnamed = scratch.read("run.yaml").replace("  labels", "  # labels");
    scratch.write("run.yaml", unnamed);
    let again = scratch.run(&["eval", "run.yaml", "--model", "out/model", "--json"]);
    assert_eq!(again.fine().json()["eval_loss"], evaluated["eval_loss"]);

    let generate = ["generate", "run.yaml", "--model", "out/model", "--prompt"];
    let generate = scratch.run(&[&generate[..], &["the film"]].concat());
    generate.refused(&["generate", "the model classifies: it gives no answers"]);
}

/// Two texts of two types, and three classes.
#[test]
fn bert() {
    let scratch = Scratch::example("classify");
    let mut config: Value = serde_json::from_str(&scratch.read("config.json")).expect("JSON");
    config["model_type"] = json!("bert");
    config["type_vocab_size"] = json!(2);
    scratch.write("config.json", config.to_string());
    let mut tokenizer: Value = serde_json::from_str(&scratch.read("tokenizer.json")).expect("JSON");
    tokenizer["post_processor"] =
        json!({"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]});
    scratch.write("tokenizer.json", tokenizer.to_string());
    let words = ["good", "bad", "not good"];
    let lines = (0..90).map(|i| {
        let (a, b) = (words[i % 3], words[i / 3 % 3]);
        let label = if a == b { json!("same") } else { json!(i % 2) };
        format!("{}\n", json!({"text": a, "text_pair": b, "label": label}))
    });
    scratch.write("train.jsonl", lines.collect::<String>());
    let keys = [
        "train.epochs=1",
        "data.eval=train.jsonl",
        "model.labels=[less, more, same]",
        "precision=bf16",
    ];
    let evaluated = trained(&scratch, &keys);
    assert!(number(&evaluated, "eval_f1") > 0.0, "{evaluated}");
}

#[test]
fn what_only_other_models_have_is_refused() {
    let scratch = Scratch::example("classify");
    let record = json!({"text": "the film", "label": "fair"});
    scratch.write("bad.jsonl", format!("{record}\n"));
    for (set, words) in [
        (
            "data.train=bad.jsonl",
            &["bad.jsonl:1:", "\"fair\"", "negative, positive"][..],
        ),
        ("data.format=chat", &["data.format", "the model classifies"]),
        ("data.system=Be brief.", &["data.system"]),
        ("data.train_on=all", &["data.train_on"]),
        ("eval.generate.exact_match=true", &["exact_match"]),
        ("train.seq=2", &["special tokens", "raise train.seq"]),
    ] {
        scratch.train(&[set]).refused(words);
    }
    // The other way round.
    let decoder = [
        "model.config=",
        "model.path=m",
        "model.tokenizer=",
        "train.seq=64",
    ];
    let labels = [&decoder[..], &["data.format=text"]].concat();
    scratch
        .train(&labels)
        .refused(&["model.labels", "predicts the next token"]);
    let format = [
        &decoder[..],
        &["model.labels=", "data.format=classification"],
    ]
    .concat();
    scratch
        .train(&format)
        .refused(&["data.format", "it has no classes"]);
    assert!(!scratch.at("out").exists(), "nothing was begun");
}
