//! `lowtide check`, and the card of an exported model.

use std::fs;

use super::scratch::Scratch;

#[test]
fn what_is_not_as_it_was_written_is_found() {
    let case = Scratch::new("truncation-miscounted");
    case.train(&[]).fine();
    let all = case.run(&["check", "out", "--json"]);
    let told = all.fine().json();
    assert_eq!(told["whole"], true, "{told}");
    assert_eq!(
        told["checked"].as_array().map(Vec::len),
        Some(2),
        "a checkpoint and a model: {told}"
    );
    // One bit of a weight, and of the state.
    for (file, dir, words) in [
        (
            "out/model/model.safetensors",
            "out/model",
            "model.safetensors: another length, or other bytes",
        ),
        (
            "out/checkpoints/step-00000001/state.safetensors",
            "out/checkpoints/step-00000001",
            "the checksum of",
        ),
    ] {
        let whole = fs::read(case.at(file)).expect("readable");
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(case.at(file), bytes).expect("written");
        for dir in [dir, "out"] {
            let told = case.run(&["check", dir]);
            assert_eq!(told.code, Some(2), "{}", told.text());
            assert!(told.out.contains(words), "{words:?} in {}", told.text());
        }
        fs::write(case.at(file), whole).expect("written");
        case.run(&["check", dir]).fine();
    }
    case.run(&["check", "m"]).refused(&[
        "m: no checkpoint, model or output of lowtide",
        "checkpoints/step-N",
    ]);
    case.run(&["check", "nowhere"]).refused(&[
        "nowhere: no such file or directory",
        "the output directory of a run",
    ]);
}

#[test]
fn a_model_has_a_card_of_its_run() {
    let case = Scratch::new("truncation-miscounted");
    case.train(&["data.train=[d.jsonl, {path: d.jsonl, weight: 2}]"])
        .fine();
    let card = case.read("out/model/README.md");
    for words in [
        "base model | m |",
        "trained on | d.jsonl (weight 2) |",
        "| steps | 1 |",
        "2 x 1 rows of 128",
        "adamw",
    ] {
        assert!(card.contains(words), "{words:?} in {card}");
    }
    assert!(!card.contains(&*case.path().to_string_lossy()), "{card}");
}
