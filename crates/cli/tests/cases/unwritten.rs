//! Places that cannot be written, what stands in the way of what is written, and a state that is not worth it.

use std::fs;

use serde_json::Value;

use super::lost::{RUN, files, names, with_small_disk};
use super::scratch::{Scratch, example_rates};

#[test]
fn what_cannot_be_written_is_refused_before_the_first_step() {
    let s = Scratch::new("newest-checkpoint-broken");
    let refused = |sets: &[&str], words: &[&str]| {
        let ended = s.train(sets);
        ended.refused(words);
        assert!(!ended.text().contains("step 1/"), "{}", ended.text());
    };
    refused(
        &["output=/proc/lowtide-x"],
        &["output: /proc/lowtide-x: cannot be made: "],
    );
    let drive = "budget.disk=[{dir: /proc/lowtide-x, size: 32MiB}]";
    refused(&[drive, "plan.optimizer=disk"], &["/proc/lowtide-x"]);
    for name in ["checkpoints", "tensorboard", "model"] {
        fs::create_dir(s.at(name)).unwrap();
        s.write(&format!("{name}/{name}"), "mine");
        let output = format!("output={name}");
        refused(
            &[&output, "log.tensorboard=true"],
            &[&format!("{name}/{name}: ")],
        );
        assert_eq!(s.read(&format!("{name}/{name}")), "mine");
    }
    // File systems that only read, which root is refused too.
    let rates = example_rates();
    let train = format!(
        "$lowtide train run.yaml --set plan.machine={} --set output=",
        rates.display()
    );
    let script = format!("mkdir small/out && mount -o remount,ro small && {train}small/out");
    if let Some(ended) = with_small_disk(&s, "40m", &script) {
        ended.refused(&["small/out", "Read-only file system"]);
        let script = format!(
            "mkdir -p held/checkpoints && mount --bind held/checkpoints held/checkpoints &&
            mount -o remount,ro,bind held/checkpoints && {train}held"
        );
        let ended = with_small_disk(&s, "40m", &script).expect("as above");
        ended.refused(&["held/checkpoints", "Read-only file system"]);
        assert!(!ended.out.contains("step 1/"), "{}", ended.out);
    }
}

#[test]
fn a_file_with_the_name_of_a_checkpoint_is_passed_over_and_named() {
    let s = Scratch::new("newest-checkpoint-broken");
    s.train(&["train.steps=2"]).fine();
    s.write("out/checkpoints/step-00000004", "mine");
    s.write("out/checkpoints/step-00000009", "mine");
    let change = "checkpoint.change=train.steps";
    let ended = s.train(&["train.steps=6", change]);
    for words in [
        "step-00000009 has the name of a checkpoint and is no directory",
        "resumed from",
        "after step 2",
        "the checkpoint of step 4 was not saved",
        "not written ",
        "step-00000006",
    ] {
        assert!(
            ended.fine().text().contains(words),
            "{words:?} in {}",
            ended.text()
        );
    }
    for name in ["step-00000004", "step-00000009"] {
        assert_eq!(s.read(&format!("out/checkpoints/{name}")), "mine");
    }
}

/// Multiplies the numbers of a tensor of the base model, which are bf16, by a power of two.
fn scale(case: &Scratch, tensor: &str, power: i32) {
    let mut bytes = case.read_bytes("m/model.safetensors");
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).expect("a header");
    let at = &header[tensor];
    assert_eq!(at["dtype"], "BF16", "{tensor}");
    let offset = |i: usize| data + at["data_offsets"][i].as_u64().expect("a number") as usize;
    for number in bytes[offset(0)..offset(1)].as_chunks_mut::<2>().0 {
        let bits = u16::from_le_bytes(*number);
        // 0 and what is about to be.
        let exponent = i32::from(bits >> 7 & 0xff);
        let scaled = match exponent > 80 {
            true => bits & 0x807f | ((exponent + power) as u16) << 7,
            false => 0,
        };
        *number = scaled.to_le_bytes();
    }
    case.write("m/model.safetensors", bytes);
}

/// A step can make a state of which no number is left though its own loss is one. Nothing is saved of them, no good
/// checkpoint goes for them, no model is made of them.
#[test]
fn a_state_without_numbers_is_not_saved_and_the_checkpoint_before_stays() {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    // What a layer computes is as before, but the gradient of one of its matrices is 2^80 times as large: its square
    // is beyond f32, which clipping hides.
    for (name, by) in [("up_proj", -80), ("down_proj", 80)] {
        scale(&case, &format!("model.layers.1.mlp.{name}.weight"), by);
    }
    let good = [
        "train.learning_rate=0",
        "train.steps=2",
        "checkpoint.every_steps=1",
        "checkpoint.keep=1",
    ];
    let bad = [
        "train.learning_rate=0",
        "checkpoint.keep=1",
        "train.clip.mode=none",
        "checkpoint.change=[train.steps, train.clip.mode]",
    ];
    case.train(&good).fine();
    let before = files(&case.at("out/checkpoints/step-00000002"));
    let model = files(&case.at("out/model"));
    // At the end, in the background, and stopped for.
    for more in [
        &["train.steps=3"][..],
        &["train.steps=9", "checkpoint.every_steps=1"],
        &[
            "train.steps=9",
            "checkpoint.every_steps=1",
            "checkpoint.background=false",
        ],
    ] {
        let sets = [&bad[..], more].concat();
        let ended = case.train(&sets);
        ended.refused(&["step 3: ", "step-00000002"]);
        if more.len() != 2 {
            ended.refused(&["second_moment is infinite or no number at entry"]);
        }
        assert_eq!(names(&case.at("out/checkpoints")).len(), before.len());
        assert!(files(&case.at("out/checkpoints/step-00000002")) == before);
        assert!(files(&case.at("out/model")) == model);
    }
}
