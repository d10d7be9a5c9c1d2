//! Frozen parameters in whole runs: they stay, the rest learns, and settings that do not go together are refused.

use serde_json::Value;

use super::scratch::Scratch;

const RUN: &str = r"
model:
  path: m
budget: {device: 200MiB, host: 1GiB}
data:
  train: train.jsonl
train:
  steps: 3
  micro_batch: 2
  seq: 64
  learning_rate: 0.01
  freeze: [model.embed_tokens, model.layers.0, '*.mlp.down_proj']
  unfreeze: ['model.layers.3']
checkpoint: {every_steps: 1}
output: out
";

/// Bytes of each tensor of a safetensors file.
fn tensors(scratch: &Scratch, file: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(scratch.at(file)).expect("a file");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let names = names.as_object().expect("an object").iter();
    let tensors = names.filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, at)| {
            let offset = |i: usize| at["data_offsets"][i].as_u64().expect("a number") as usize;
            let range = 8 + header + offset(0)..8 + header + offset(1);
            (name.clone(), bytes[range].to_vec())
        })
        .collect()
}

fn is_frozen(name: &str) -> bool {
    let named = ["model.embed_tokens", "model.layers.0."];
    let off = named.iter().any(|n| name.starts_with(n)) || name.ends_with("mlp.down_proj.weight");
    off && !name.starts_with("model.layers.3.")
}

#[test]
fn frozen_tensors_stay_and_all_others_learn() {
    let scratch = Scratch::bare();
    scratch.write("run.yaml", RUN);
    let ended = scratch.train(&[]);
    let text = ended.fine().text();
    let before = tensors(&scratch, "m/model.safetensors");
    let after = tensors(&scratch, "out/model/model.safetensors");
    assert_eq!(before.len(), after.len(), "{text}");
    let mut stayed = 0;
    for ((name, x), (other, y)) in before.iter().zip(&after) {
        assert_eq!(name, other);
        assert_eq!(x == y, is_frozen(name), "{name}");
        stayed += usize::from(x == y);
    }
    assert!(stayed > 8, "{stayed}");

    // A checkpoint has no state of what is frozen, and a run goes on from it with the same bits.
    let state = "out/checkpoints/step-00000002";
    let saved = tensors(&scratch, &format!("{state}/state.safetensors"));
    let of = |param: &str| saved.iter().filter(|(n, _)| n.starts_with(param)).count();
    assert_eq!(of("embedding.tokens."), 1);
    assert_eq!(of("blocks.1.down."), 1);
    assert_eq!(of("blocks.1.o."), 4);
    let resume = format!("checkpoint.resume={state}");
    scratch.train(&[&resume, "output=again"]).fine();
    let again = tensors(&scratch, "again/model/model.safetensors");
    assert!(again == after);

    // Another set of frozen tensors is another run; other words for the same are not.
    let other = scratch.train(&[&resume, "output=other", "train.freeze=model.embed_tokens"]);
    other.refused(&["train.freeze"]);
    let same = "train.freeze=[model.embed_tokens.weight, 'model.layers.0*', '*down_proj.weight']";
    scratch.train(&[&resume, "output=same", same]).fine();
}

#[test]
fn a_plan_tells_of_frozen_parameters_and_verify_holds() {
    let scratch = Scratch::bare();
    scratch.write("run.yaml", RUN);
    let all = scratch.run(&[
        "plan",
        "run.yaml",
        "--json",
        "--set",
        "train.freeze=",
        "--set",
        "train.unfreeze=",
    ]);
    let some = scratch.run(&["plan", "run.yaml", "--json"]);
    let (all, some) = (all.fine().json(), some.fine().json());
    let number = |answer: &Value, key: &str| answer[key].as_u64().expect("a number");
    assert_eq!(
        number(&all, "trained_parameters"),
        number(&all, "parameters")
    );
    assert_eq!(number(&some, "parameters"), number(&all, "parameters"));
    let left = number(&some, "trained_parameters");
    // The table, a block of 4 and two more matrices of the MLP.
    assert_eq!(
        number(&some, "parameters") - left,
        1024 * 128 + 184_576 + 2 * 352 * 128
    );
    let text = scratch.run(&["plan", "run.yaml"]).fine().text();
    assert!(text.contains("frozen: 0.4 M of 0.9 M parameters"), "{text}");
    for sets in [
        &[][..],
        &["train.freeze=*", "train.unfreeze=model.layers.3"],
    ] {
        let mut args = vec!["verify", "run.yaml", "--json", "--blocks", "2"];
        for set in sets {
            args.extend(["--set", set]);
        }
        let verified = scratch.run(&args);
        assert_eq!(verified.fine().json()["equal"], true, "{sets:?}");
    }
}

#[test]
fn what_cannot_be_frozen_is_refused() {
    let scratch = Scratch::bare();
    scratch.write("run.yaml", RUN);
    for (sets, words) in [
        (
            &["train.freeze=model.layer.0"][..],
            &[
                "`model.layer.0` names no tensor",
                "model.layers.0.input_layernorm.weight",
                "train.freeze",
            ][..],
        ),
        (
            &["train.freeze=lm_head"],
            &["`lm_head` names no tensor", "tied"],
        ),
        (
            &["train.freeze='*q_proj*'"],
            &["q_proj.weight is frozen and", "k_proj.weight is not"],
        ),
        (
            &["train.freeze=*", "train.unfreeze="],
            &["nothing to train"],
        ),
        (&["train.freeze="], &["train.unfreeze", "train.freeze"]),
        (
            &["checkpoint.durable=true", "budget.disk=1GiB"],
            &["train.freeze", "checkpoint.durable", "not supported"],
        ),
        (&["train.freeze=[a, [b]]"], &["train.freeze[1]"]),
    ] {
        scratch.train(sets).refused(words);
        assert!(!scratch.at("out").exists(), "{sets:?}");
    }
}
