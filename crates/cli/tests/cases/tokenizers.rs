//! Hostile `tokenizer.json` files: each is refused within bounds of time and memory, or tokenises.

#![allow(clippy::print_stdout, reason = "tells what was measured")]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cases::scratch::{Scratch, example_rates};

/// A file's text, and a word of its refusal: nothing where it may be accepted too.
type Case = (String, String, &'static str);

fn base(scratch: &Scratch) -> Value {
    serde_json::from_str(&scratch.read("m/tokenizer.json")).unwrap()
}

/// A model of few tokens.
fn small(kind: &str, vocab: Value) -> Value {
    match kind {
        "BPE" => json!({"type": "BPE", "vocab": vocab, "merges": [], "dropout": null}),
        "Unigram" => json!({"type": "Unigram", "vocab": vocab, "unk_id": 0}),
        "WordPiece" => json!({"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
        _ => json!({"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}),
    }
}

/// Files with one part replaced: model, normalizer, pre_tokenizer, post_processor, decoder.
fn parts() -> Vec<(&'static str, Value, &'static str)> {
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let replace =
        |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
    let a = json!({"String": "a"});
    let steps = |step: Value, n: usize| json!({"type": "Sequence", "normalizers": vec![step; n]});
    let mut all = vec![
        ("model", small("BPE", json!({})), "empty"),
        ("model", small("Unigram", json!([])), ""),
        (
            "model",
            json!({"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7}),
            "",
        ),
        (
            "model",
            json!({"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": null}),
            "",
        ),
        (
            "model",
            json!({"type": "Unigram", "vocab": [["", -1.0], ["a", -2.0]], "unk_id": 0}),
            "",
        ),
        (
            "model",
            json!({"type": "Unigram", "vocab": [["a", 1e308], ["b", -1e308]], "unk_id": 0, "byte_fallback": true}),
            "",
        ),
        (
            "model",
            json!({"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0, "alpha": 0.1, "nbest_size": 64}),
            "",
        ),
        ("model", small("WordPiece", json!({"a": 0})), ""),
        ("model", small("WordPiece", json!({})), ""),
        (
            "model",
            json!({"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]",
            "continuing_subword_prefix": "#".repeat(100_000), "max_input_chars_per_word": u64::MAX}),
            "",
        ),
        ("model", small("WordLevel", json!({"a": 0})), ""),
        ("model", small("BPE", json!({"a": -1})), ""),
        ("model", small("BPE", json!({"a": 1.5})), ""),
        ("model", small("BPE", json!({"a": 1u64 << 40})), ""),
        ("model", small("BPE", json!({"a": u32::MAX})), ""),
        (
            "model",
            small("BPE", json!({"a": 0, "b": 0, "c": 2_000_000_000})),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "nowhere"]]}),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c d"]}),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"],
            "continuing_subword_prefix": "a very long prefix"}),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"\u{e9}": 0, "b": 1, "\u{e9}b": 2}, "merges": ["\u{e9} b"],
            "continuing_subword_prefix": "x"}),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "nowhere"}),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 7.0}),
            "",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}),
            "dropout",
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "w".repeat(1 << 20)}),
            "",
        ),
        ("model", json!({"type": "Magic"}), ""),
        ("model", json!(null), ""),
        ("model", json!([1, 2]), ""),
        // Regular expressions that search for ever, or that are compiled for ever.
        ("pre_tokenizer", split("(a+)+$"), ""),
        ("pre_tokenizer", split("(x+x+)+y"), ""),
        ("pre_tokenizer", split("(.*)*\\x02"), ""),
        ("pre_tokenizer", split("([a-z]|[a-y]|.)+\\x02"), ""),
        ("pre_tokenizer", split("(?:a?){2000}a{2000}"), ""),
        (
            "pre_tokenizer",
            split("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
            "",
        ),
        ("pre_tokenizer", split("(?<n>a\\g<n>?b?)+\\x02"), ""),
        ("pre_tokenizer", split("(?=(a+))\\1+\\x02"), ""),
        ("pre_tokenizer", split(&"(".repeat(50_000)), ""),
        (
            "pre_tokenizer",
            split(&format!("{}a{}", "(".repeat(50_000), ")".repeat(50_000))),
            "",
        ),
        ("pre_tokenizer", split(&"(?:a|".repeat(3000)), ""),
        ("pre_tokenizer", split(""), ""),
        ("pre_tokenizer", split("["), ""),
        ("pre_tokenizer", split("a**"), ""),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": true}),
            "",
        ),
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
            "",
        ),
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": u64::MAX}),
            "",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "", "prepend_scheme": "always"}),
            "",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "ab", "prepend_scheme": "never"}),
            "",
        ),
        (
            "pre_tokenizer",
            json!({"type": "CharDelimiterSplit", "delimiter": ""}),
            "",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "ByteLevel",
            "add_prefix_space": true, "trim_offsets": true, "use_regex": true}); 200]}),
            "",
        ),
        // Texts that grow.
        (
            "normalizer",
            steps(replace(a.clone(), "aaaaaaaaaa"), 40),
            "lengthen",
        ),
        (
            "normalizer",
            steps(replace(json!({"Regex": "."}), "\u{1f642}\u{1f642}"), 30),
            "lengthen",
        ),
        (
            "normalizer",
            steps(replace(json!({"String": "Q"}), "QQQQQQQQ"), 30),
            "lengthen",
        ),
        (
            "normalizer",
            steps(
                replace(json!({"Regex": "\u{30af}"}), "\u{30af}\u{30af}\u{30af}"),
                40,
            ),
            "lengthen",
        ),
        ("normalizer", replace(json!({"String": ""}), "x"), ""),
        ("normalizer", replace(json!({"Regex": ""}), "x"), ""),
        ("normalizer", replace(json!({"Regex": "(a+)+$"}), "x"), ""),
        ("normalizer", replace(a, &"x".repeat(1000)), "lengthen"),
        (
            "normalizer",
            steps(
                json!({"type": "Prepend", "prepend": "x".repeat(100_000)}),
                30,
            ),
            "lengthen",
        ),
        // The one that is ended by its time, 5 s of a processor.
        (
            "normalizer",
            steps(json!({"type": "NFKD"}), 5000),
            "longer than",
        ),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "",
        ),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            "",
        ),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "EAAAAAECAwQFBgcICQoLDA0ODxAAAA=="}),
            "",
        ),
        // Ids that are in no vocabulary.
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [4_000_000_000u32],
            "tokens": ["<s>"]}}}),
            "post_processor",
        ),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
            "pair": [], "special_tokens": {}}),
            "",
        ),
        (
            "post_processor",
            json!({"type": "BertProcessing", "sep": ["x", u32::MAX], "cls": ["y", 77_777]}),
            "",
        ),
        (
            "decoder",
            json!({"type": "Strip", "content": "a", "start": u64::MAX, "stop": u64::MAX}),
            "",
        ),
        (
            "decoder",
            json!({"type": "Strip", "content": " ", "start": 3, "stop": 300}),
            "",
        ),
        (
            "decoder",
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "x".repeat(1000)}),
            "lengthen",
        ),
        ("decoder", json!({"type": "BPEDecoder", "suffix": ""}), ""),
        (
            "decoder",
            json!({"type": "WordPiece", "prefix": "", "cleanup": true}),
            "",
        ),
        (
            "decoder",
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
            "",
        ),
        (
            "truncation",
            json!({"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 99}),
            "",
        ),
        (
            "padding",
            json!({"strategy": {"Fixed": 1u64 << 40}, "direction": "Left", "pad_to_multiple_of": 0,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}),
            "",
        ),
    ];
    let token = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": true, "rstrip": true,
            "normalized": true, "special": true})
    };
    for tokens in [
        json!([token(0, "")]),
        json!([token(0, " "), token(1, "\n"), token(2, "a")]),
        json!([token(4_294_967_295, "<x>")]),
        json!([token(5, "<x>"), token(5, "<y>"), token(5, "<x>")]),
        json!([token(1, &"y".repeat(1 << 20))]),
        Value::Array((0..30_000).map(|i| token(i, &format!("<{i}>"))).collect()),
    ] {
        all.push(("added_tokens", tokens, ""));
    }
    all
}

fn cases(scratch: &Scratch) -> Vec<Case> {
    let good = base(scratch);
    let mut all: Vec<Case> = Vec::new();
    for (part, value, word) in parts() {
        let mut file = good.clone();
        if part == "model" {
            // Other models do not have these.
            file["added_tokens"] = json!([]);
        }
        let short: String = value.to_string().chars().take(100).collect();
        file[part] = value;
        all.push((format!("{part}: {short}"), file.to_string(), word));
    }
    let mut file = good.clone();
    file["model"] = small("BPE", json!({}));
    let name = "added tokens and no vocabulary".to_owned();
    all.push((name, file.to_string(), "the vocabulary is empty"));
    let nest =
        |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let sequence = "{\"type\":\"Sequence\",\"normalizers\":[";
    for (name, text) in [
        ("deep", nest("[", "]", 200_000)),
        (
            "deep model",
            format!("{{\"model\": {}}}", nest("{\"a\":", "}", 100_000)),
        ),
        (
            "deep normalizer",
            good.to_string().replacen(
                "\"normalizer\":null",
                &format!("\"normalizer\":{}", nest(sequence, "]}", 60)),
                1,
            ),
        ),
        (
            "number",
            good.to_string()
                .replacen("\"version\":\"1.0\"", "\"version\":1e999", 1),
        ),
        (
            "version",
            good.to_string()
                .replacen("\"version\":\"1.0\"", "\"version\":\"99\"", 1),
        ),
        ("nothing in it", "{}".to_owned()),
        ("text", "hello".to_owned()),
        ("null", "null".to_owned()),
        ("cut", good.to_string()[..20_000].to_owned()),
    ] {
        all.push((name.to_owned(), text, ""));
    }
    all
}

#[test]
fn hostile_tokenizers_are_refused_or_tokenise() {
    let scratch = Scratch::new("lfs-pointer");
    let all = cases(&scratch);
    assert!(all.len() >= 60, "{}", all.len());
    let (mut refused, mut slowest, mut wrong) = (0, Duration::ZERO, Vec::new());
    let rates = format!("plan.machine={}", example_rates().display());
    for (name, text, word) in &all {
        scratch.write("m/tokenizer.json", text);
        let began = Instant::now();
        // Memory of the whole command and of what it starts: 8 GiB of addresses.
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 8388608; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_lowtide"))
            .args([
                "generate",
                "run.yaml",
                "--prompt",
                "a b c",
                "--max-new-tokens",
                "1",
                "--set",
                &rates,
            ])
            .env("LOWTIDE_CACHE", scratch.cache())
            .current_dir(scratch.path())
            .output()
            .unwrap();
        let took = began.elapsed();
        slowest = slowest.max(took);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let bug = err.contains("bug in lowtide") || err.contains("panicked");
        let code = output.status.code();
        refused += u32::from(code == Some(2));
        let named = code != Some(2) || err.contains("token") || err.contains("nothing to continue");
        let says = word.is_empty() || (code == Some(2) && err.contains(word));
        let ended = matches!(code, Some(0 | 2)) && took < Duration::from_secs(100);
        if bug || !named || !says || !ended {
            let signal = output.status.signal();
            wrong.push(format!(
                "{name}: {code:?} {signal:?} in {took:?}, {word:?}: {err}"
            ));
        }
    }
    println!(
        "{} tokenizers, {refused} refused, slowest {slowest:?}",
        all.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused >= 40, "{refused}");
}
