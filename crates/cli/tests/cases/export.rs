//! `lowtide export`: the model of a checkpoint, in every type, in shards that their index finds, whole or not at all.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::scratch::Scratch;

const RUN: &str = r"
model:
  path: m
budget: {device: 200MiB, host: 1GiB}
data:
  train: train.jsonl
train:
  steps: 1
  micro_batch: 2
  seq: 64
  learning_rate: 0.01
output: out
";

/// Every tensor of a model's directory by the files that its index names, or of its one file: type, bytes, and the
/// file.
fn tensors(case: &Scratch, dir: &str) -> BTreeMap<String, (String, Vec<u8>, String)> {
    let index = case.at(&format!("{dir}/model.safetensors.index.json"));
    let files: Vec<String> = match fs::read(index) {
        Ok(text) => {
            let index: Value = serde_json::from_slice(&text).expect("JSON");
            let map = index["weight_map"].as_object().expect("a map");
            let mut files: Vec<String> = map
                .values()
                .map(|f| f.as_str().expect("a name").to_owned())
                .collect();
            files.dedup();
            files
        }
        Err(_) => vec!["model.safetensors".to_owned()],
    };
    let mut all = BTreeMap::new();
    for file in files {
        let bytes = fs::read(case.at(&format!("{dir}/{file}"))).expect("a file of the index");
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..data]).expect("a header");
        for (name, at) in header.as_object().expect("an object") {
            if name == "__metadata__" {
                continue;
            }
            let offset = |i: usize| at["data_offsets"][i].as_u64().expect("a number") as usize;
            let part = bytes[data + offset(0)..data + offset(1)].to_vec();
            let dtype = at["dtype"].as_str().expect("a type").to_owned();
            let twice = all.insert(name.clone(), (dtype, part, file.clone()));
            assert!(twice.is_none(), "{name} is stored twice");
        }
    }
    all
}

/// Names in a folder that a killed or refused export could have left.
fn left(case: &Scratch, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(case.at(dir)).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|n| n.starts_with('.')).collect()
}

#[test]
fn a_checkpoint_is_exported_in_every_type_and_in_shards() {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    case.train(&[]).fine();
    let export = |args: &[&str]| case.run(&[&["export", "run.yaml"], args].concat());

    // As the run itself exports it.
    let told = export(&["ex/plain", "--json"]);
    let told = told.fine().json();
    assert_eq!(
        (&told["step"], &told["dtype"], &told["files"]),
        (&1.into(), &"bf16".into(), &1.into())
    );
    for file in ["model.safetensors", "config.json", "tokenizer_config.json"] {
        assert!(
            case.read_bytes(&format!("ex/plain/{file}"))
                == case.read_bytes(&format!("out/model/{file}"))
        );
    }

    // f32 is the master weights: rounded, half away from zero, they are what the device reads.
    let told = export(&[
        "ex/f32",
        "--dtype",
        "f32",
        "--shard-size",
        "300KB",
        "--json",
    ]);
    let told = told.fine().json();
    assert!(told["files"].as_u64() > Some(5), "{told}");
    let (plain, full) = (tensors(&case, "ex/plain"), tensors(&case, "ex/f32"));
    assert!(plain.keys().eq(full.keys()));
    let mut below = 0;
    for (name, (dtype, bytes, _)) in &full {
        assert_eq!(dtype, "F32", "{name}");
        let weights = plain[name].1.as_chunks::<2>().0;
        for (master, weight) in bytes.as_chunks::<4>().0.iter().zip(weights) {
            let bits = u32::from_le_bytes(*master);
            assert_eq!(
                (bits + 0x8000) >> 16,
                u32::from(u16::from_le_bytes(*weight))
            );
            below += usize::from(bits & 0xffff != 0);
        }
    }
    assert!(
        below > 100_000,
        "{below} masters that are not their weights"
    );

    export(&["ex/f16", "--dtype", "f16", "--shard-size", "300KB"]).fine();
    let half = tensors(&case, "ex/f16");
    assert!(half.values().all(|(dtype, ..)| dtype == "F16"));
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, bytes, file) in half.values() {
        *files.entry(file).or_default() += bytes.len();
    }
    assert!(
        files.len() > 5 && files.values().all(|n| *n <= 300_000),
        "{files:?}"
    );
    let config: Value = serde_json::from_str(&case.read("ex/f16/config.json")).expect("JSON");
    let named = [&config["dtype"], &config["torch_dtype"]];
    assert!(named.iter().any(|n| **n == "float16"), "{config}");
    assert!(
        named.iter().all(|n| n.is_null() || **n == "float16"),
        "{config}"
    );
    case.run(&["check", "ex/f16"]).fine();

    // One that was written is replaced as a whole; what lowtide has not written is not.
    export(&["ex/f16", "--checkpoint", "out/checkpoints/step-00000001"]).fine();
    assert_eq!(tensors(&case, "ex/f16"), plain);
    for (args, words) in [
        (
            &["ex"][..],
            &["ex: something is there", "not there yet"][..],
        ),
        (&["out/model"], &["out/model: the run keeps"]),
        (&["out/checkpoints/x"], &["the run keeps"]),
        (&["m"], &["model.path"]),
        (&["x", "--shard-size", "0"], &["--shard-size 0"]),
        (&["x", "--shard-size", "5XB"], &["--shard-size 5XB", "5GB"]),
        (
            &["x", "--checkpoint", "out"],
            &["out: no checkpoint", "step-N"],
        ),
        (&["x", "--checkpoint", "gone"], &["gone: no checkpoint"]),
        (
            &["x", "--set", "output=other"],
            &["other/checkpoints: no checkpoint", "--checkpoint DIR"],
        ),
        (
            &["x", "--set", "optimizer.moments=bf16"],
            &["state of another model"],
        ),
    ] {
        export(args).refused(words);
    }
    let state = case.at("out/checkpoints/step-00000001/state.safetensors");
    let mut bytes = fs::read(&state).expect("readable");
    let first = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[first] ^= 4;
    fs::write(&state, bytes).expect("written");
    export(&["x"]).refused(&["a broken checkpoint", "the checksum of", "--checkpoint DIR"]);
    assert!(!case.at("x").exists());
    assert!(left(&case, "ex").is_empty(), "{:?}", left(&case, "ex"));
}

#[test]
fn a_weight_beyond_f16_is_named_and_nothing_is_left() {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    // 99,840 in bf16, in the last row of the embedding.
    let (name, file) = ("model.embed_tokens.weight", "m/model.safetensors");
    let (_, embedding, _) = &tensors(&case, "m")[name];
    let mut bytes = case.read_bytes(file);
    let mut windows = bytes.windows(embedding.len());
    let end = windows.position(|w| w == embedding).expect("it is there") + embedding.len();
    bytes[end - 2..end].copy_from_slice(&0x47c3_u16.to_le_bytes());
    case.write(file, bytes);
    case.train(&["train.learning_rate=0"]).fine();
    let refused = case.run(&["export", "run.yaml", "ex/f16", "--dtype", "f16"]);
    refused.refused(&[
        "tensor 'model.embed_tokens.weight' has 9.984e4 at [",
        "f16 ends at 65504",
        "bf16 or f32",
    ]);
    assert!(!case.at("ex/f16").exists() && left(&case, "ex").is_empty());
    case.run(&["export", "run.yaml", "ex/f32", "--dtype", "f32"])
        .fine();
}
