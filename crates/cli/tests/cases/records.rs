//! Data files: formats, marks in records, truncation, broken lines, keys that must do what they say.

use crate::scratch::{Ended, Scratch};

/// The note of the training data, cut into words: `N supervised` and the like can be looked up.
#[track_caller]
fn count(ended: &Ended, what: &str) -> u64 {
    let text = ended.text();
    let line = text
        .lines()
        .find(|l| l.contains("train data:") && l.contains(" examples, "))
        .unwrap_or_else(|| panic!("no note of the training data in {text}"));
    let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
    let at = words.iter().position(|w| *w == what);
    let at = at.unwrap_or_else(|| panic!("no {what:?} in {line}"));
    words[at - 1].replace('_', "").parse().expect("a number")
}

/// A turn marked with `weight: 0`, or as other trainers mark it, is context.
#[test]
fn message_weight_zero() {
    let case = Scratch::new("message-weight-zero");
    let template = "data.chat_template=plain.jinja";
    let marked = case.train(&[template]);
    marked.fine();
    assert!(
        marked
            .text()
            .contains("2 messages of the assistant are marked not to be trained on")
    );
    let lines = case.read("d.jsonl");
    case.write("unmarked.jsonl", lines.replace(", \"weight\": 0", ""));
    let set = ["data.train=unmarked.jsonl", "output=out2"];
    let unmarked = case.train(&[template, set[0], set[1]]);
    unmarked.fine();
    assert_eq!(count(&marked, "tokens"), count(&unmarked, "tokens"));
    // "yes" and its end of turn.
    let own = count(&marked, "supervised");
    assert!(own * 3 < count(&unmarked, "supervised"), "{own}");

    for (i, mark) in [
        "train\": false",
        "loss_mask\": 0",
        "trainable\": false",
        "training\": 0.0",
    ]
    .iter()
    .enumerate()
    {
        case.write("other.jsonl", lines.replace("weight\": 0", mark));
        let other = case.train(&[template, "data.train=other.jsonl", &format!("output=o{i}")]);
        other.fine();
        assert_eq!(count(&other, "supervised"), own, "{mark}");
    }
    case.write("half.jsonl", lines.replace("weight\": 0", "weight\": 0.5"));
    case.train(&[template, "data.train=half.jsonl"]).refused(&[
        "half.jsonl:1",
        "messages[1].weight",
        "0.5",
        "0 or 1",
    ]);
    let all = lines.replace("\"yes\"", "\"yes\", \"train\": 0");
    case.write("none.jsonl", format!("{all}\n{lines}"));
    let some = case.train(&[template, "data.train=none.jsonl", "output=out3"]);
    some.fine();
    assert!(
        some.text()
            .contains("2 records left out, nothing in them is supervised")
    );
}
