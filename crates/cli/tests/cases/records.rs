//! Data files: formats, marks in records, truncation, broken lines, keys that must do what they say.

use serde_json::Value;

use crate::cases::scratch::{Ended, Scratch};

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

/// A field of each step's line in the metrics.
fn column(case: &Scratch, output: &str, field: &str) -> Vec<f64> {
    let text = case.read(&format!("{output}/metrics.jsonl"));
    let lines = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    lines.filter_map(|l| l.get(field)?.as_f64()).collect()
}

/// A run file whose every row is one example, so that a step's tokens say which examples it had.
const EACH_A_ROW: &str = "
model: {path: m}
device: cpu
budget: {device: 1GiB, host: 256MiB}
log: {trace: false, tensorboard: false}
train: {steps: 10, micro_batch: 1, seq: 64, schedule: constant, warmup_steps: 0}
data: {train: d.jsonl, packing: false, shuffle: false}
";

/// Five examples, each longer than the one before.
fn lengths(case: &Scratch) {
    let lines: String = (1..=5)
        .map(|n| format!("{{\"text\": \"{}\"}}\n", "the ".repeat(3 * n)))
        .collect();
    case.write("d.jsonl", lines);
    case.write("run.yaml", EACH_A_ROW);
}

#[test]
fn unshuffled_data_is_dealt_out_in_the_order_of_the_file() {
    let case = Scratch::bare();
    lengths(&case);
    case.train(&[]).fine();
    let tokens = column(&case, "out", "tokens");
    assert_eq!(tokens.len(), 10);
    assert!(tokens[..5].windows(2).all(|w| w[0] < w[1]), "{tokens:?}");
    assert_eq!(tokens[..5], tokens[5..], "each epoch");
    let loss = column(&case, "out", "loss");

    // A run that was stopped in the middle of an epoch goes on in the same order, to the same bits.
    case.train(&["output=half", "train.steps=3"]).fine();
    case.train(&["output=half"]).fine();
    assert_eq!(column(&case, "half", "tokens"), tokens);
    assert_eq!(column(&case, "half", "loss"), loss);

    case.train(&["output=shuffled", "data.shuffle=true"]).fine();
    let shuffled = column(&case, "shuffled", "tokens");
    assert_ne!(shuffled, tokens);
    let sorted = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part
    };
    assert_eq!(sorted(&shuffled[..5]), tokens[..5]);
    case.train(&["output=shuffled", "data.shuffle=false", "train.steps=20"])
        .refused(&["data.shuffle", "true there, false here"]);

    // Packed: two rows, the first examples in the first.
    let packed = [
        "output=packed",
        "data.packing=true",
        "train.seq=32",
        "train.steps=2",
    ];
    case.train(&packed).fine();
    let packed = column(&case, "packed", "tokens");
    let head: Vec<f64> = (1..5).map(|n| tokens[..n].iter().sum()).collect();
    assert!(head.contains(&packed[0]), "{packed:?} of {tokens:?}");
}

#[test]
fn the_rest_of_an_epoch_is_filled_kept_or_dropped() {
    let case = Scratch::bare();
    lengths(&case);
    let epochs = ["train.steps=", "train.epochs=2", "train.micro_batch=2"];
    let mut got = Vec::new();
    for rest in ["fill", "keep", "drop"] {
        let output = format!("output={rest}");
        let last = format!("train.last_batch={rest}");
        case.train(&[epochs[0], epochs[1], epochs[2], &output, &last])
            .fine();
        got.push(column(&case, rest, "tokens"));
    }
    case.train(&["output=each", "train.steps=5"]).fine();
    let each = column(&case, "each", "tokens");
    let &[a, b, c, d, e] = &each[..] else {
        panic!("{each:?}");
    };
    assert_eq!(got[0], [a + b, c + d, e + a, b + c, d + e]);
    assert_eq!(got[1], [a + b, c + d, e, a + b, c + d, e]);
    assert_eq!(got[2], [a + b, c + d, a + b, c + d]);
    case.train(&[
        "train.micro_batch=8",
        "train.last_batch=drop",
        "output=none",
    ])
    .refused(&["5 rows", "8", "train.last_batch"]);
}

/// Padding in a kept rest adds nothing: loss and norm are those of a batch that has the row alone.
#[test]
fn a_kept_rest_has_the_gradient_of_its_own_rows() {
    let case = Scratch::bare();
    lengths(&case);
    let one = case
        .read("d.jsonl")
        .lines()
        .next()
        .expect("a line")
        .to_owned();
    case.write("d.jsonl", one);
    let sets = ["precision=f32", "train.steps=2", "train.last_batch=keep"];
    let run = |output: &str, more: &[&str]| {
        let output = format!("output={output}");
        case.train(&[&sets[..], more, &[&output]].concat()).fine();
    };
    run("alone", &[]);
    run("padded", &["train.micro_batch=3", "train.accumulate=2"]);
    for field in ["loss", "grad_norm"] {
        let (alone, padded) = (
            column(&case, "alone", field),
            column(&case, "padded", field),
        );
        assert_eq!(alone.len(), 2);
        for (x, y) in alone.iter().zip(&padded) {
            assert!(
                (x - y).abs() <= 1e-6 * x.abs(),
                "{field}: {alone:?} {padded:?}"
            );
        }
    }
}

/// The end of a sequence that a completion has written out is not put there again.
#[test]
fn doubled_bos_eos() {
    let case = Scratch::new("doubled-bos-eos");
    let with = case.train(&[]);
    with.fine();
    assert!(
        with.text()
            .contains("2 records have the end of a sequence written out")
    );
    case.write("e.jsonl", case.read("d.jsonl").replace("<|im_end|>", ""));
    let without = case.train(&["data.train=e.jsonl", "output=out2"]);
    without.fine();
    assert_eq!(
        (count(&with, "supervised"), count(&without, "supervised")),
        (8, 8)
    );
    assert_eq!(count(&with, "tokens"), count(&without, "tokens"));
    assert_eq!(column(&case, "out", "loss"), column(&case, "out2", "loss"));
}

/// The one example there is cannot be kept for evaluation.
#[test]
fn eval_split_of_one() {
    let case = Scratch::new("eval-split-of-one");
    case.train(&[])
        .refused(&["d.jsonl", "data.eval_split: 0.1", "only one", "data.eval"]);
    case.run(&["eval", "run.yaml"])
        .refused(&["data.eval_split"]);
    case.write("d.jsonl", case.read("d.jsonl").repeat(2));
    case.train(&[]).fine();
}

/// How many answers lose their end, and which length would hold them.
#[test]
fn truncation_miscounted() {
    let case = Scratch::new("truncation-miscounted");
    let longer = case.read("m/config.json").replace(
        "\"max_position_embeddings\": 256",
        "\"max_position_embeddings\": 512",
    );
    case.write("m/config.json", longer);
    let cut = case.train(&[]);
    cut.fine();
    let text = cut.text();
    assert!(
        text.contains("4 of 4 records are longer than 128 tokens, 1020 tokens cut off"),
        "{text}"
    );
    let warning = text.lines().find(|l| l.contains("warning: train data:"));
    let warning = warning.unwrap_or_else(|| panic!("no warning: {text}"));
    assert!(
        warning.contains("4 of 4 records (100.0 %) lose the end of their answer"),
        "{warning}"
    );
    // Each row is full, and its first tokens are the prompt's.
    assert!(count(&cut, "supervised") < 4 * 127, "{text}");
    let words: Vec<&str> = warning.split(' ').collect();
    let at = words
        .iter()
        .position(|w| *w == "train.seq")
        .expect("a length");
    let seq = format!("train.seq={}", words[at + 1]);
    let whole = case.train(&[&seq, "output=out2"]);
    whole.fine();
    assert!(!whole.text().contains("cut off") && !whole.text().contains("warning: train"));
    // All that was cut off but the line end behind each turn, which is the frame's.
    assert!(warning.contains(", 1016 supervised tokens"), "{warning}");
    assert_eq!(
        count(&whole, "supervised"),
        count(&cut, "supervised") + 1016
    );
}

/// Tools as a JSON string are those of the list.
#[test]
fn tools_as_json_string() {
    let case = Scratch::new("tools-as-json-string");
    // A template that shows the tools, so that they are in the tokens.
    let source = "{{ tools | tojson if tools }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + \
                  m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
                  {{ '<|im_start|>assistant\n' }}{% endif %}";
    case.write("t.jinja", source);
    let template = "data.chat_template=t.jinja";
    let string = case.train(&[template]);
    string.fine();
    let record: Value = serde_json::from_str(case.read("d.jsonl").lines().next().expect("a line"))
        .expect("a record");
    let mut list = record.clone();
    list["tools"] =
        serde_json::from_str(record["tools"].as_str().expect("a string")).expect("JSON");
    case.write("list.jsonl", format!("{list}\n").repeat(2));
    let list = case.train(&[template, "data.train=list.jsonl", "output=out2"]);
    list.fine();
    assert_eq!(column(&case, "out", "loss"), column(&case, "out2", "loss"));
    assert_eq!(count(&string, "tokens"), count(&list, "tokens"));
}

/// Files and records of other formats: what they are, and what to do.
#[test]
fn other_formats_are_named_with_a_way_out() {
    let case = Scratch::bare();
    case.write("run.yaml", EACH_A_ROW);
    let one_a_line = "one JSON object a line";
    for (name, text, words) in [
        (
            "p.json",
            "{\n \"text\": \"a\"\n}\n",
            &["over several lines", one_a_line][..],
        ),
        ("t.data", "text,label\na,1\n", &["CSV", one_a_line, "t.csv"]),
        (
            "c.csv",
            "text,label\na\n",
            &["c.csv:2", "1 cells in a table of 2 columns", "quotes"],
        ),
        (
            "m.csv",
            "messages\n\"[{'role': 'user'}]\"\n",
            &[
                "m.csv:2",
                "'messages' is a string that is not JSON",
                "json.dumps",
            ],
        ),
        (
            "r.json",
            "[{\"text\": \"a\"}, {\"body\": 1}]",
            &["r.json:1, element [1]", "no field 'text'"],
        ),
        (
            "t.parquet",
            "PAR1",
            &[
                "t.parquet",
                "this Parquet file cannot be read: it ends too early",
                "JSONL",
            ],
        ),
        ("g.jsonl", "\u{1f}\u{8b}", &["g.jsonl:1"]),
        (
            "q.jsonl",
            "{\"question\": \"a\", \"answer\": \"b\"}",
            &[
                "q.jsonl:1",
                "question, answer",
                "data.fields.prompt=question",
                "data.fields.completion=answer",
            ],
        ),
        (
            "u.jsonl",
            "{\"body\": \"a\"}",
            &["u.jsonl:1", "body", "data.fields.text"],
        ),
        (
            "n.jsonl",
            "{\"text\": \"a\"}\n{\"text\": \"b\", \"score\": NaN}",
            &["n.jsonl:2", "'NaN' at column 24", "JSON has no such number"],
        ),
    ] {
        case.write(name, text);
        let train = format!("data.train={name}");
        case.train(&[&train]).refused(words);
    }
    // The ways out lead somewhere.
    case.train(&[
        "data.train=q.jsonl",
        "train.steps=1",
        "data.fields.prompt=question",
        "data.fields.completion=answer",
    ])
    .fine();
    case.write("t.csv", "text,label\na,1\n\"b, c\",2\n");
    case.write("t.txt", "one\n\ntwo\n");
    let table = case.train(&["data.train=t.csv", "train.steps=1", "output=o1"]);
    assert!(table.fine().out.contains("2 examples"), "{}", table.out);
    let text = ["data.train=[{path: t.txt, weight: 2}]", "data.text_by=line"];
    let text = case.train(&[&text[..], &["train.steps=1", "output=o2"]].concat());
    for words in [
        "4 examples",
        "t.txt with weight 2: 4 examples an epoch of 2",
    ] {
        assert!(text.fine().out.contains(words), "{}", text.out);
    }
    case.train(&["data.train=t.txt", "data.max_line=6"])
        .refused(&[
            "t.txt:1: a text of more than 6 bytes",
            "data.text_by=paragraph",
        ]);
    case.train(&["data.train=m"])
        .refused(&["a directory, not a file"]);
}

/// A run learns the same from the same conversations in lines and in an array, in our words and in ShareGPT's.
#[test]
fn records_of_other_trainers_are_read() {
    let case = Scratch::new("tools-as-json-string");
    let turns = |names: [&str; 4]| {
        let [role, text, asks, says] = names;
        let each = (0..4).map(|i| {
            serde_json::json!([{role: asks, text: format!("What is {i}?")}, {role: says, text: format!("{i}.")}])
        });
        each.collect::<Vec<Value>>()
    };
    let ours = turns(["role", "content", "user", "assistant"]);
    let ours: String = ours
        .iter()
        .map(|m| format!("{{\"messages\": {m}}}\n"))
        .collect();
    case.write("ours.jsonl", ours);
    let theirs = turns(["from", "value", "human", "gpt"]);
    let theirs: Vec<String> = theirs
        .iter()
        .map(|m| format!("{{\"conversations\": {m}}}"))
        .collect();
    case.write("theirs.json", format!("[\n  {}\n]\n", theirs.join(",\n  ")));
    let alpaca =
        (0..4).map(|i| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"{i}.\"}}\n"));
    case.write("alpaca.jsonl", alpaca.collect::<String>());
    for (i, name) in ["ours.jsonl", "theirs.json", "alpaca.jsonl"]
        .into_iter()
        .enumerate()
    {
        let ended = case.train(&[&format!("data.train={name}"), &format!("output=out{i}")]);
        ended.fine();
        assert_eq!(
            column(&case, &format!("out{i}"), "loss"),
            column(&case, "out0", "loss"),
            "{name}"
        );
    }
}

/// One bad record among many ends the run, or is left out and counted.
#[test]
fn bad_records_stop_the_run_or_are_skipped() {
    let case = Scratch::bare();
    lengths(&case);
    let good = case.read("d.jsonl");
    let long = format!("{{\"text\": \"{}\"}}\n", "x".repeat(2000));
    case.write(
        "d.jsonl",
        format!("{{\"text\": 1}}\n{good}{{broken\n{long}"),
    );
    let sets = ["train.steps=5", "data.max_line=1KiB"];
    case.train(&sets)
        .refused(&["d.jsonl:1: 'text' is a number", "data.on_error=skip"]);
    let skip = [&sets[..], &["data.on_error=skip"]].concat();
    let skipped = case.train(&skip);
    skipped.fine();
    let text = skipped.text();
    for words in [
        "3 records left out",
        "d.jsonl:1: ",
        "d.jsonl:7: not JSON",
        "d.jsonl:8: line is longer than 1024",
    ] {
        assert!(text.contains(words), "{words:?} in {text}");
    }
    case.write("clean.jsonl", good);
    case.train(&["train.steps=5", "data.train=clean.jsonl", "output=clean"])
        .fine();
    assert_eq!(column(&case, "out", "loss"), column(&case, "clean", "loss"));
    // The same records are left out where answers are decoded.
    let prompts = "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": 3}\n";
    case.write("p.jsonl", prompts);
    case.train(&[
        "data.train=p.jsonl",
        "data.eval=p.jsonl",
        "train.steps=1",
        "output=p",
        "data.on_error=skip",
        "eval.generate.exact_match=true",
        "eval.generate.max_new_tokens=2",
    ])
    .fine();
}

/// A note of records left out has names of strangers' files, in which may be what a terminal obeys.
#[test]
fn notes_print_nothing_that_a_terminal_obeys() {
    let case = Scratch::bare();
    lengths(&case);
    let name = "d\u{1b}[2J.jsonl";
    case.write(name, format!("{{\"text\": 1}}\n{}", case.read("d.jsonl")));
    let train = format!("data.train=[{}]", Value::from(name));
    let skipped = case.train(&[&train, "data.on_error=skip", "train.steps=1"]);
    let text = skipped.fine().text();
    assert!(text.contains("1 records left out"), "{text}");
    assert!(text.contains("d\\u{1b}[2J.jsonl:1: "), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}
