//! `lowtide data`: what a run would train on.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::scratch::{Ended, Scratch};

fn told(case: &Scratch, sets: &[&str]) -> Value {
    let mut args = vec!["data", "run.yaml", "--json"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let ended = case.run(&args);
    ended.fine().json()["data"]["sets"].clone()
}

/// What is trained on, cut and left out is counted as training counts it; nothing of the run is written.
#[test]
fn counts_are_those_of_training() {
    let case = Scratch::new("truncation-miscounted");
    let sets = told(&case, &[]);
    assert!(!case.at("out").exists());
    let train = &sets[0];
    for (key, want) in [
        ("records", 4),
        ("examples", 4),
        ("truncated", 4),
        ("answers_cut", 4),
        ("rows", 4),
    ] {
        assert_eq!(train[key], want, "{key}: {train}");
    }
    // The same numbers as in training's own line.
    let trained = case.train(&[]);
    let line = format!(
        "train data: 4 examples, {} tokens, {} supervised, 4 rows of 128",
        train["tokens"], train["supervised"]
    );
    trained.fine();
    assert!(trained.text().contains(&line), "{line}: {}", trained.text());
    let most = train["holds"][2]["seq"].as_u64().expect("a length");
    assert_eq!(train["holds"][2]["percent"], 100);
    let lost = train["tokens_lost"].as_u64();
    assert_eq!(lost, Some(4 * (most - 128)), "{train}");
    // The whole sample is there, in stretches: first the prompt, then the answer, then what is cut off.
    let sample = &train["samples"][0];
    let stretches = sample["stretches"].as_array().expect("a list");
    let kinds: Vec<_> = stretches
        .iter()
        .map(|s| (s["supervised"] == true, s["cut"] == true))
        .collect();
    assert_eq!(
        kinds,
        [(false, false), (true, false), (true, true), (false, true)]
    );
    let tokens: u64 = stretches.iter().filter_map(|s| s["tokens"].as_u64()).sum();
    assert_eq!(Some(tokens), sample["tokens"].as_u64());
    assert!(
        stretches[0]["text"]
            .as_str()
            .expect("text")
            .contains("Q Q Q")
    );
    assert!(
        stretches[2]["text"]
            .as_str()
            .expect("text")
            .contains("Africa")
    );
    let whole = told(&case, &[&format!("train.seq={most}")]);
    for key in ["truncated", "answers_cut", "tokens_lost"] {
        assert_eq!(whole[0][key], 0, "{key}");
    }
    let less = told(&case, &[&format!("train.seq={}", most - 1)]);
    assert_eq!(less[0]["truncated"], 4);
}

/// People see the same, and as a page.
#[test]
fn people_see_it_and_a_page_has_it() {
    let case = Scratch::new("truncation-miscounted");
    let weights = "data.train=[d.jsonl, {path: d.jsonl, weight: 0.5}]";
    let args = [
        "data",
        "run.yaml",
        "--html",
        "page.html",
        "--samples",
        "1",
        "--set",
        weights,
    ];
    let ended = case.run(&args);
    for words in [
        "d.jsonl: 4 examples",
        "d.jsonl: 2 examples, weight 0.5",
        "cut: the end of 6 examples",
        "⟦the country is in Africa",
        "⟩⟨\n⟩",
        "page: ",
    ] {
        assert!(
            ended.fine().out.contains(words),
            "{words:?} in {}",
            ended.out
        );
    }
    let page = case.read("page.html");
    assert!(page.contains("<span class=\"on\">the country"), "{page}");
    assert!(!page.contains("<script"));
    // A page that was there before is replaced, and no other file.
    case.run(&args).fine();
    fs::write(case.at("page.html"), "mine").expect("written");
    case.run(&args).refused(&["page.html"]);
    assert_eq!(case.read("page.html"), "mine");
}

/// Data in which nothing, or everything, would be trained on are refused as training refuses them.
#[test]
fn masks_that_are_all_one_are_refused() {
    let case = Scratch::new("truncation-miscounted");
    let refused = |sets: &[&str], words: &[&str]| {
        let mut args = vec!["data", "run.yaml"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        case.run(&args).refused(words);
    };
    let user = r#"{"messages": [{"role": "user", "content": "hi"}]}"#;
    case.write("none.jsonl", user);
    refused(&["data.train=none.jsonl"], &["none.jsonl", "is supervised"]);
    refused(
        &["train.seq=16"],
        &["is supervised", "4 records lost theirs"],
    );
    let all = "{% for m in messages %}{% generation %}{{ m['role'] + m['content'] }}{% endgeneration %}{% endfor %}";
    case.write("all.jinja", all);
    refused(
        &["data.chat_template=all.jinja"],
        &["all", "are supervised, prompts too"],
    );
    refused(
        &["data.train=nowhere.jsonl"],
        &["nowhere.jsonl", "data.train"],
    );
}

/// Tokens that are kept between runs train to the same bits as those in memory; so do those that take their place.
#[test]
fn kept_tokens_train_to_the_same_bits() {
    let case = Scratch::bare();
    let run = "{model: {path: m}, device: cpu, budget: {device: 1GiB, host: 512MiB}, train: {seq: 64}, log: {trace: false}}";
    case.write("run.yaml", run);
    let train = |output: &str, cache: &str| {
        let sets = [
            "data.train=train.jsonl",
            "data.eval=eval.jsonl",
            "train.steps=3",
            &format!("output={output}"),
            &format!("data.cache={cache}"),
        ];
        case.train(&sets).fine().text()
    };
    let weights =
        |output: &str| fs::read(case.at(output).join("model/model.safetensors")).expect("a model");
    let files = || {
        let all = fs::read_dir(case.at("kept")).expect("a folder");
        all.map(|e| e.expect("readable").path()).collect::<Vec<_>>()
    };
    let plain = train("plain", "none");
    assert!(!plain.contains("tokens are"), "{plain}");
    let made = train("made", "kept");
    assert_eq!(made.matches("tokens are kept in").count(), 2, "{made}");
    let found = train("found", "kept");
    assert_eq!(
        found.matches("tokens are those kept in").count(),
        2,
        "{found}"
    );
    for file in files() {
        let mut bytes = fs::read(&file).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).expect("written");
    }
    let mended = train("mended", "kept");
    assert_eq!(
        mended.matches("are damaged and made anew").count(),
        2,
        "{mended}"
    );
    for output in ["made", "found", "mended"] {
        assert!(weights(output) == weights("plain"), "{output}");
    }
    assert_eq!(files().len(), 2);
}

/// A stream trains to the same bits whether its tokens are made or found, and goes on where it was.
#[test]
fn a_stream_trains_to_the_same_bits_and_goes_on() {
    let case = Scratch::bare();
    let run = "{model: {path: m}, device: cpu, budget: {device: 1GiB, host: 512MiB}, train: {seq: 64, schedule: constant, warmup_steps: 0}, \
               log: {trace: false}, data: {streaming: true, cache: kept, train: train.jsonl}}";
    case.write("run.yaml", run);
    let weights =
        |output: &str| fs::read(case.at(output).join("model/model.safetensors")).expect("a model");
    case.train(&["train.steps=9", "output=made"]).fine();
    case.train(&["train.steps=9", "output=found"]).fine();
    assert!(weights("made") == weights("found"));
    case.train(&["train.steps=4", "output=two"]).fine();
    let rest = case.train(&["train.steps=9", "output=two"]);
    assert!(
        rest.fine().text().contains("resumed from"),
        "{}",
        rest.text()
    );
    assert!(weights("two") == weights("made"));
    // All at once it is the same data, in another order or not, and the run goes on with neither.
    case.train(&["train.steps=12", "output=two", "data.streaming=false"])
        .refused(&["data.streaming"]);
    // What would need all of the examples is refused.
    for (set, key) in [
        ("data.eval_split=0.1", "data.eval_split"),
        ("data.max_examples=3", "data.max_examples"),
        ("data.train=[{path: train.jsonl, weight: 2}]", "data.train"),
        ("data.cache=none", "data.cache"),
    ] {
        case.train(&[set, "output=none"])
            .refused(&[key, "data.streaming"]);
        assert!(!case.at("none").exists());
    }
    // What is left out is reported whether tokens are made or found, and so is where they went.
    case.write("bad.jsonl", format!("{}{{}}\n", case.read("train.jsonl")));
    for kept in ["tokens are kept in", "tokens are those kept in"] {
        let output = format!("output=skip{}", kept.len());
        let sets = [
            "data.train=bad.jsonl",
            "data.on_error=skip",
            "train.steps=2",
            &output,
        ];
        let text = case.train(&sets).fine().text();
        assert!(text.contains(kept), "{kept}: {text}");
        assert_eq!(text.matches("1 records left out").count(), 1, "{text}");
    }
    // Of epochs the steps are counted when all is read.
    let epoch = case.train(&["train.epochs=1", "output=epoch", "train.micro_batch=8"]);
    epoch.fine();
}

/// Evaluation rows that are damaged while a run goes on end it, and the steps before are saved.
#[test]
fn an_evaluation_that_cannot_be_read_loses_no_step() {
    let case = Scratch::bare();
    let run = "{model: {path: m}, device: cpu, budget: {device: 1GiB, host: 512MiB}, log: {trace: false}, output: out, \
               train: {seq: 64, steps: 5000, schedule: constant, warmup_steps: 0}, eval: {every_steps: 5, batches: 1}, \
               data: {cache: kept, train: train.jsonl, eval: eval.jsonl}, checkpoint: {every_steps: 1000000}}";
    case.write("run.yaml", run);
    let mut command = case.command(&["train", "run.yaml"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().expect("the binary starts");
    let begun = || {
        fs::read_to_string(case.at("out/metrics.jsonl")).is_ok_and(|text| text.lines().count() > 3)
    };
    let end = Instant::now() + Duration::from_secs(60);
    while !begun() && Instant::now() < end {
        sleep(Duration::from_millis(20));
    }
    let files = fs::read_dir(case.at("kept")).expect("a folder");
    let files = files.map(|e| e.expect("readable").path());
    let eval = files.min_by_key(|path| fs::metadata(path).expect("a file").len());
    let eval = eval.expect("two files");
    let len = fs::metadata(&eval).expect("a file").len();
    let out = fs::File::options().write(true).open(&eval).expect("ours");
    out.write_all_at(&vec![0xff; len as usize], 0)
        .expect("written");
    let ended = Ended::of(&child.wait_with_output().expect("it ends"));
    ended.refused(&["tokens kept on disk", ".tokens", "data.cache"]);
    let saved = fs::read_dir(case.at("out/checkpoints")).expect("a folder");
    assert!(saved.count() > 0, "{}", ended.text());
}
