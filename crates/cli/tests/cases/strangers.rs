//! Untrusted model directories: hostile, damaged, or of another format.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cases::scratch::Scratch;

/// The refusal of a start that must have ended soon.
#[track_caller]
fn refused_soon(scratch: &Scratch, words: &[&str]) {
    let began = Instant::now();
    scratch.train(&[]).refused(words);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "took {took:?}");
    assert!(!scratch.at("out").exists(), "nothing was begun");
}

#[test]
fn infinity_in_config() {
    let scratch = Scratch::new("infinity-in-config");
    let help = "Python's json writes NaN and Infinity";
    let words = [
        "m/config.json: line 1, column 49",
        "Infinity",
        "is not JSON",
    ];
    refused_soon(&scratch, &[words[0], words[1], words[2], help]);
    let good = fs::read(Scratch::bare().at("m/config.json")).unwrap();
    scratch.write("m/config.json", good);
    for (name, text) in [
        (
            "m/tokenizer_config.json",
            "{\"a\": 1,\n\"model_max_length\": -Infinity}",
        ),
        ("m/tokenizer.json", "{\"a\": 1,\n\"model_max_length\": NaN}"),
        (
            "m/generation_config.json",
            "{\"a\": 1,\n\"temperature\": NaN}",
        ),
        (
            "m/special_tokens_map.json",
            "{\"a\": 1,\n\"pad_token\": NaN}",
        ),
    ] {
        let kept = fs::read(scratch.at(name)).ok();
        scratch.write(name, text);
        refused_soon(&scratch, &[name, "line 2, column", "is not JSON"]);
        match kept {
            Some(bytes) => scratch.write(name, bytes),
            None => fs::remove_file(scratch.at(name)).unwrap(),
        }
    }
    scratch.train(&[]).fine();
}

#[test]
fn lfs_pointer() {
    let scratch = Scratch::new("lfs-pointer");
    let pointer = scratch.read("ptr");
    let page = "<!DOCTYPE html>\n<html><body>404</body></html>";
    for name in [
        "m/model.safetensors",
        "m/tokenizer.json",
        "m/config.json",
        "m/tokenizer_config.json",
        "m/generation_config.json",
        "m/chat_template.jinja",
    ] {
        let kept = fs::read(scratch.at(name)).ok();
        for (text, words) in [
            (pointer.as_str(), ["a Git LFS pointer", "git lfs pull"]),
            (page, ["an HTML or XML page", "fetch the file again"]),
        ] {
            scratch.write(name, text);
            refused_soon(&scratch, &[name, words[0], words[1]]);
        }
        match kept {
            Some(bytes) => scratch.write(name, bytes),
            None => fs::remove_file(scratch.at(name)).unwrap(),
        }
    }
    scratch.train(&[]).fine();
}

#[test]
fn stale_dtype_key() {
    let scratch = Scratch::new("stale-dtype-key");
    scratch.train(&[]).fine();
    let config: Value = serde_json::from_str(&scratch.read("out/model/config.json")).unwrap();
    assert_eq!(config["dtype"], "bfloat16");
    assert_eq!(config["torch_dtype"], "bfloat16");
}

/// What is no regular file is refused wherever a file is read, and nothing waits for it.
#[test]
fn pipes_devices_and_directories_in_place_of_files() {
    let scratch = Scratch::new("lfs-pointer");
    let places = [
        "m/config.json",
        "m/model.safetensors",
        "m/tokenizer.json",
        "m/tokenizer_config.json",
        "m/generation_config.json",
        "m/chat_template.jinja",
        "d.jsonl",
        "run.yaml",
    ];
    let make = |at: &PathBuf, kind: &str| match kind {
        "pipe" => assert!(Command::new("mkfifo").arg(at).status().unwrap().success()),
        "device" => symlink("/dev/zero", at).unwrap(),
        "directory" => fs::create_dir(at).unwrap(),
        _ => symlink("nowhere", at).unwrap(),
    };
    for name in places {
        let at = scratch.at(name);
        let kept = fs::read(&at).ok();
        for kind in ["pipe", "device", "directory", "dangling"] {
            let _ = fs::remove_file(&at);
            make(&at, kind);
            let word = match kind {
                "pipe" => "a named pipe",
                "device" => "a device, not a file",
                "directory" => "a directory, not a file",
                _ => "a symbolic link to nowhere, which is not there",
            };
            refused_soon(&scratch, &[name, word]);
            if kind == "directory" {
                fs::remove_dir(&at).unwrap();
            }
        }
        let _ = fs::remove_file(&at);
        if let Some(bytes) = kept {
            fs::write(&at, bytes).unwrap();
        }
    }
    // Files that the run file names.
    for key in ["plan.machine", "data.chat_template", "model.tokenizer"] {
        let ended = scratch.train(&[&format!("{key}=/dev/zero")]);
        ended.refused(&[key, "/dev/zero: a device, not a "]);
    }
    scratch.train(&[]).fine();
}

/// An untrusted configuration gives an error that names the key, whatever its numbers: real numbers and token ids of
/// a model's files; dropout, which is reported.
#[test]
fn numbers_that_no_model_has() {
    let scratch = Scratch::new("lfs-pointer");
    let text = scratch.read("m/config.json");
    let good: Value = serde_json::from_str(&text).unwrap();
    let vocab = good["vocab_size"].clone();
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        scratch.write("m/config.json", config.to_string());
    };
    for (key, value) in [
        ("rms_norm_eps", json!(1e300)),
        ("rms_norm_eps", json!(1e-300)),
        ("rope_theta", json!(1e-300)),
        ("rope_theta", json!(1e300)),
        (
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 1e-300}),
        ),
        ("attention_dropout", json!(1.5)),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", vocab.clone()),
        ("eos_token_id", json!([1, 4_294_967_297u64])),
    ] {
        with(key, value.clone());
        let named = if key == "rope_scaling" { "factor" } else { key };
        scratch.train(&[]).refused(&["m/config.json", named]);
        assert!(!scratch.at("out/metrics.jsonl").exists(), "{key} {value}");
    }
    scratch.write("m/config.json", &text);
    let generation = json!({"eos_token_id": [0, vocab]}).to_string();
    scratch.write("m/generation_config.json", generation);
    scratch
        .train(&[])
        .refused(&["m/generation_config.json", "eos_token_id"]);
    fs::remove_file(scratch.at("m/generation_config.json")).unwrap();
    with("attention_dropout", json!(0.1));
    let ended = scratch.train(&["train.steps=1"]);
    let told = ended.fine().text();
    assert!(
        told.contains("asks for dropout (attention_dropout 0.1)"),
        "{told}"
    );
}

#[test]
fn hostile_configurations_name_the_key() {
    let scratch = Scratch::new("lfs-pointer");
    let text = scratch.read("m/config.json");
    let good: Value = serde_json::from_str(&text).unwrap();
    let huge = json!(1_000_000_000_000_000_000u64);
    for (key, value) in [
        ("num_hidden_layers", huge.clone()),
        ("num_hidden_layers", json!(4_000_000_000u32)),
        ("num_hidden_layers", json!("4")),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(64.0)),
        ("hidden_size", json!(1e2)),
        ("vocab_size", huge),
        ("vocab_size", json!(4_294_967_295u32)),
        ("vocab_size", json!([64])),
        ("intermediate_size", json!(0)),
        ("num_attention_heads", json!(3)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(7)),
        ("head_dim", json!(1_000_000_000)),
        ("rms_norm_eps", json!("1e-5")),
        ("rope_theta", json!(-1)),
        ("rope_scaling", json!("linear")),
        ("tie_word_embeddings", json!("yes")),
        ("model_type", json!(["llama"])),
        ("hidden_act", json!({})),
        ("max_position_embeddings", json!(1e30)),
    ] {
        let mut config = good.clone();
        config[key] = value.clone();
        scratch.write("m/config.json", config.to_string());
        let began = Instant::now();
        let ended = scratch.train(&[]);
        assert_eq!(ended.code, Some(2), "{key} {value}: {}", ended.text());
        let file = ended.err.contains("config.json") || ended.err.contains("tensor");
        assert!(file, "{key} {value}: {}", ended.err);
        let words = key.split('_').next().unwrap_or_default();
        let named =
            ended.err.contains(key) || ended.err.contains("tensor") || ended.err.contains(words);
        assert!(named, "{key} {value}: {}", ended.err);
        assert!(began.elapsed() < Duration::from_secs(20), "{key} {value}");
    }
    // What the model cannot do of what the run asks for: both keys, and the file.
    scratch.write("m/config.json", &text);
    let longest = &good["max_position_embeddings"];
    scratch.train(&["train.seq=4096"]).refused(&[
        "train.seq is 4096",
        "m/config.json",
        &format!("'max_position_embeddings' is {longest}"),
        &format!("train.seq={longest}"),
    ]);
    let mut config = good.clone();
    config["num_attention_heads"] = json!(3);
    scratch.write("m/config.json", config.to_string());
    let ended = scratch.train(&[]);
    ended.refused(&["m/config.json", "correct it in that file"]);
    assert!(!ended.err.contains("download"), "{}", ended.err);
    for (text, word) in [
        (
            text.replacen('{', "{\"hidden_size\": 1, ", 1),
            "key 'hidden_size' is there twice",
        ),
        ("[".repeat(200_000), "recursion limit"),
        ("[1]".to_owned(), "an object"),
        (String::new(), "the file is empty"),
        (
            format!("{}{}", " ".repeat(5 << 20), "{}"),
            "at most 4194304 are read",
        ),
    ] {
        scratch.write("m/config.json", text);
        scratch.train(&[]).refused(&["config.json", word]);
    }
}

/// A tensor of `model.safetensors`: where its bytes begin and end in the file.
fn tensor(bytes: &[u8], name: &str) -> (usize, usize) {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let at = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    (8 + n + at(0), 8 + n + at(1))
}

#[test]
fn nan_in_base_weights() {
    let scratch = Scratch::new("nan-in-base-weights");
    let good = fs::read(scratch.at("m/model.safetensors")).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    for (bits, word) in [(0x7fc0u16, "NaN"), (0x7f80, "inf"), (0xff80, "-inf")] {
        let mut bad = good.clone();
        let (from, _) = tensor(&good, name);
        bad[from + 2..from + 4].copy_from_slice(&bits.to_le_bytes());
        scratch.write("m/model.safetensors", bad);
        let words = ["model.safetensors", name, word, "[0, 1]", "fetch it again"];
        scratch.train(&[]).refused(&words);
        assert!(!scratch.at("out/checkpoints").exists());
        let eval = ["eval", "run.yaml", "--set", "data.eval=d.jsonl", "--json"];
        scratch.run(&eval).refused(&words);
        let generate = ["generate", "run.yaml", "--prompt", "a"];
        scratch.run(&generate).refused(&words);
    }
}

#[test]
fn token_id_beyond_vocab() {
    let scratch = Scratch::new("token-id-beyond-vocab");
    let words = ["id 1030", "rows for the ids up to 1023", "model.tokenizer"];
    refused_soon(&scratch, &words);
    for args in [
        &["generate", "run.yaml", "--prompt", "a"][..],
        &["eval", "run.yaml", "--set", "data.eval=d.jsonl"],
        &["verify", "run.yaml"],
    ] {
        scratch.run(args).refused(&words);
    }
}

/// A tied model's files may hold the head as a copy of the embedding, and no other.
#[test]
fn a_tied_head_of_its_own() {
    let scratch = Scratch::new("lfs-pointer");
    let bytes = fs::read(scratch.at("m/model.safetensors")).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let (from, to) = tensor(&bytes, "model.embed_tokens.weight");
    let tied: Value = serde_json::from_str(&scratch.read("m/config.json")).unwrap();
    assert_eq!(tied["tie_word_embeddings"], true, "the base model is tied");
    let end = (bytes.len() - 8 - n) as u64;
    header["lm_head.weight"] = header["model.embed_tokens.weight"].clone();
    header["lm_head.weight"]["data_offsets"] = json!([end, end + (to - from) as u64]);
    let text = header.to_string();
    let file = |head: &[u8]| {
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(text.as_bytes());
        file.extend_from_slice(&bytes[8 + n..]);
        file.extend_from_slice(head);
        file
    };
    scratch.write("m/model.safetensors", file(&bytes[from..to]));
    scratch.train(&[]).fine();
    fs::remove_dir_all(scratch.at("out")).unwrap();
    let mut other = bytes[from..to].to_vec();
    let last = other.len() - 2;
    other[last] ^= 1;
    scratch.write("m/model.safetensors", file(&other));
    scratch
        .train(&[])
        .refused(&["lm_head.weight", "tie_word_embeddings"]);
}

/// Directories that are something else, and tokenizers of another make.
#[test]
fn directories_of_another_make_are_told_apart() {
    let scratch = Scratch::new("lfs-pointer");
    fs::rename(scratch.at("m/config.json"), scratch.at("config.json")).unwrap();
    refused_soon(&scratch, &["m: no config.json", "save_pretrained"]);
    for (name, word) in [
        ("params.json", "the version for transformers"),
        ("adapter_config.json", "merge_and_unload"),
        ("model.Q4_K_M.gguf", "save_pretrained"),
    ] {
        scratch.write(&format!("m/{name}"), "x");
        refused_soon(&scratch, &["m: no config.json", name, word]);
        fs::remove_file(scratch.at(&format!("m/{name}"))).unwrap();
    }
    fs::rename(scratch.at("config.json"), scratch.at("m/config.json")).unwrap();
    let weights = scratch.at("m/model.safetensors");
    fs::rename(&weights, scratch.at("w")).unwrap();
    scratch.write("m/pytorch_model.bin", "x");
    let words = [
        "neither model.safetensors",
        "pytorch_model.bin",
        "save_pretrained",
    ];
    refused_soon(&scratch, &words);
    scratch.write("m/model.safetensors", b"PK\x03\x04\0\0\0\0data");
    let words = ["model.safetensors: a zip archive", "save_pretrained"];
    refused_soon(&scratch, &words);
    fs::rename(scratch.at("w"), weights).unwrap();
    let tokenizer = fs::read(scratch.at("m/tokenizer.json")).unwrap();
    fs::remove_file(scratch.at("m/tokenizer.json")).unwrap();
    for name in [
        "tokenizer.model",
        "spiece.model",
        "tekken.json",
        "vocab.txt",
    ] {
        scratch.write(&format!("m/{name}"), "x");
        refused_soon(&scratch, &[name, "of another make", "AutoTokenizer"]);
        fs::remove_file(scratch.at(&format!("m/{name}"))).unwrap();
    }
    scratch.write("m/tokenizer.json", tokenizer);
    scratch.train(&[]).fine();
}

/// Where sequences are no longer than the window, it makes no difference.
#[test]
fn a_window_that_sequences_fit_in() {
    let scratch = Scratch::new("lfs-pointer");
    let mut config: Value = serde_json::from_str(&scratch.read("m/config.json")).unwrap();
    config["model_type"] = json!("mistral");
    config["sliding_window"] = json!(128);
    config["max_position_embeddings"] = json!(4096);
    scratch.write("m/config.json", config.to_string());
    scratch.train(&[]).fine();
    let exported: Value = serde_json::from_str(&scratch.read("out/model/config.json")).unwrap();
    assert_eq!(exported["sliding_window"], 128);
    // One token more, and it may slide; one that chats are longer than does.
    scratch.train(&["train.seq=129", "output=longer"]).fine();
    config["sliding_window"] = json!(8);
    scratch.write("m/config.json", config.to_string());
    let loss = |output: &str| {
        let set = format!("output={output}");
        scratch.train(&["train.seq=129", &set]).fine();
        scratch.read(&format!("{output}/metrics.jsonl"))
    };
    let of = |text: String| -> Vec<Value> {
        let lines = text.lines();
        lines
            .map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].clone())
            .collect()
    };
    let with = of(loss("out2"));
    config["sliding_window"] = json!(null);
    scratch.write("m/config.json", config.to_string());
    assert_ne!(with, of(loss("out3")));
}
