//! Places that cannot be written, and what stands in the way of what is written.

use std::fs;

use super::lost::with_small_disk;
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
