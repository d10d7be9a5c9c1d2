//! The best evaluation: its checkpoint is kept, its model is exported, and waiting for a better one has an end.

use serde_json::Value;

use super::scratch::Scratch;

const RUN: &str = "model: {path: m}\noutput: out\nbudget: {device: 1GiB, host: 256MiB}\n\
    log: {trace: false, tensorboard: false}\n\
    data: {train: d.jsonl, eval: eval.jsonl}\n\
    train: {steps: 12, micro_batch: 2, seq: 128, learning_rate: 1e-2, schedule: constant, warmup_steps: 0}\n\
    eval: {every_steps: 2, batches: 2}\ncheckpoint: {keep: 1}\n";

/// One sentence, learnt so fast that everything else is forgotten.
fn case() -> Scratch {
    let case = Scratch::new("truncation-miscounted");
    case.write("run.yaml", RUN);
    case
}

/// Losses of the evaluations on the way and at the end, by step.
fn losses(case: &Scratch) -> Vec<(u64, f64)> {
    let metrics = case.read("out/metrics.jsonl");
    let lines = metrics
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    lines
        .filter_map(|l| Some((l["step"].as_u64()?, l["eval_loss"].as_f64()?)))
        .collect()
}

fn loss_of_model(case: &Scratch) -> f64 {
    let told = case.run(&["eval", "run.yaml", "--json"]);
    told.fine().json()["eval_loss"].as_f64().expect("a loss")
}

#[test]
fn training_ends_when_nothing_gets_better_and_the_best_is_exported() {
    let case = case();
    let sets = ["eval.patience=2", "checkpoint.keep_best=loss"];
    let ended = case.train(&sets);
    ended.fine();
    let all = losses(&case);
    let best = all[1..]
        .iter()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .expect("evaluations");
    assert_eq!(
        all.iter().map(|l| l.0).collect::<Vec<_>>(),
        [0, 2, 4, 6],
        "{all:?}"
    );
    assert_eq!(best.0, 2, "{all:?}");
    for words in [
        "training ends after step 6: 2 evaluations in a row were not better than that after step 2",
        "the model is that of step 2",
    ] {
        assert!(
            ended.text().contains(words),
            "{words:?} in {}",
            ended.text()
        );
    }
    // Both are there, though one is to be kept, and the last one knows of the best.
    let state: Value =
        serde_json::from_str(&case.read("out/checkpoints/step-00000006/run.json")).expect("JSON");
    assert_eq!(
        (&state["best"]["step"], &state["best"]["waited"]),
        (&2.into(), &2.into())
    );
    assert!(case.at("out/checkpoints/step-00000002/run.json").exists());
    assert_eq!(loss_of_model(&case), best.1);
    // Exported later it is the same one, though the run file does not say by what; what it says holds.
    let step = |set: &[&str]| {
        let args = [&["export", "run.yaml", "x", "--json"], set].concat();
        case.run(&args).fine().json()["step"].as_u64()
    };
    assert_eq!(step(&[]), Some(2));
    assert_eq!(step(&["--set", "checkpoint.keep_best=none"]), Some(6));
    // It is finished; with more patience it goes on where it stopped.
    let kept = format!(
        "best          loss {:.4} after step 2, whose checkpoint is kept",
        best.1
    );
    assert!(ended.text().contains(&kept), "{kept:?} in {}", ended.text());
    let again = case.train(&sets);
    assert!(
        !again.fine().text().contains("resumed from"),
        "{}",
        again.text()
    );
    assert_eq!(losses(&case), all);
    let more = case.train(&["eval.patience=4", "checkpoint.keep_best=loss"]);
    assert!(
        more.fine().text().contains("resumed from"),
        "{}",
        more.text()
    );
    let steps: Vec<u64> = losses(&case).iter().map(|l| l.0).collect();
    assert_eq!(steps, [0, 2, 4, 6, 8, 10], "{}", more.text());
    assert_eq!(loss_of_model(&case), best.1);
}

/// What ended by one `eval.min_delta` goes on by another; why it ended is said of the one that was counted with.
#[test]
fn a_run_that_ended_goes_on_when_less_is_enough() {
    let case = case();
    let sets = |delta| ["train.steps=8", "eval.patience=2", delta];
    let ended = case.train(&sets("eval.min_delta=100"));
    let words = "were not better by more than 100 (eval.patience, eval.min_delta)";
    assert!(
        ended.fine().text().contains("training ends after step 6"),
        "{}",
        ended.text()
    );
    assert!(ended.text().contains(words), "{}", ended.text());
    let again = case.train(&sets("eval.min_delta=100"));
    assert!(
        !again.fine().text().contains("resumed from"),
        "{}",
        again.text()
    );
    assert!(again.text().contains(words), "{}", again.text());
    let more = case.train(&sets("eval.min_delta=0"));
    assert!(
        more.fine().text().contains("resumed from"),
        "{}",
        more.text()
    );
    assert_eq!(
        losses(&case).last().map(|l| l.0),
        Some(8),
        "{}",
        more.text()
    );
}

#[test]
fn without_it_the_last_model_is_exported() {
    let case = case();
    case.train(&["train.steps=4"]).fine();
    let all = losses(&case);
    assert_eq!(all.last().map(|l| l.0), Some(4));
    assert_eq!(Some(loss_of_model(&case)), all.last().map(|l| l.1));
    assert!(!case.at("out/checkpoints/step-00000002").exists());
}

/// The evaluation with which a run ended counts when it is made longer, whether it was made then or broken off.
#[test]
fn the_last_evaluation_of_a_shorter_run_is_compared() {
    let change = "checkpoint.change=train.steps";
    let keep = "checkpoint.keep_best=loss";
    let (short, long) = ("train.steps=2", "train.steps=4");
    for broken_off in [false, true] {
        let case = case();
        case.train(&[short, keep]).fine();
        let first = losses(&case);
        assert_eq!(first.iter().map(|l| l.0).collect::<Vec<_>>(), [0, 2]);
        if broken_off {
            let metrics = case.read("out/metrics.jsonl");
            let kept: Vec<&str> = metrics
                .lines()
                .filter(|l| !l.contains("eval_loss") || l.contains("\"step\":0"))
                .collect();
            case.write("out/metrics.jsonl", kept.join("\n") + "\n");
        }
        let more = case.train(&[long, keep, change]);
        more.fine();
        let all = losses(&case);
        assert_eq!(all[..2], first, "{}", more.text());
        assert!(all[2].1 > all[1].1, "step 2 is the better one: {all:?}");
        assert!(
            more.text().contains("the model is that of step 2"),
            "{}",
            more.text()
        );
        assert!(case.at("out/checkpoints/step-00000002/run.json").exists());
        assert_eq!(loss_of_model(&case), all[1].1);
    }
}

/// What `run.json` of a checkpoint says of the best evaluation.
fn best_at(case: &Scratch, step: u64) -> Value {
    let text = case.read(&format!("out/checkpoints/step-{step:08}/run.json"));
    serde_json::from_str::<Value>(&text).expect("JSON")["best"].clone()
}

const KEEP: &str = "checkpoint.keep_best=loss";
const CHANGE: &str = "checkpoint.change=train.steps";

/// Values of two measures, or of two sets of data, say nothing of each other.
#[test]
fn the_best_is_looked_for_anew_by_another_measure_or_on_other_data() {
    let case = case();
    case.train(&["train.steps=2", KEEP]).fine();
    let more = case.train(&["train.steps=4", KEEP, CHANGE]);
    assert!(!more.fine().text().contains("anew"), "{}", more.text());
    let of_loss = best_at(&case, 4)["of"].clone();
    assert!(of_loss.as_str().expect("a text").starts_with("loss "));
    let all = losses(&case);
    // Nothing is left to do but to choose by another measure, of which the last checkpoint knows nothing.
    let by = "checkpoint.keep_best=accuracy";
    let other = case.train(&["train.steps=4", by]);
    let words = "the best evaluation so far, after step 2, is of another measure";
    assert!(other.fine().text().contains(words), "{}", other.text());
    assert_eq!(losses(&case), all, "no evaluation is made twice");
    assert_eq!(loss_of_model(&case), all[2].1, "of the last step");
    // The same measure on other data: the evaluation is another too.
    let data = "data.eval=d.jsonl";
    let other = case.train(&["train.steps=4", KEEP, data]);
    assert!(other.fine().text().contains(words), "{}", other.text());
    let now = losses(&case);
    assert_eq!((now.len(), now[3].0), (all.len() + 1, 4), "{now:?}");
    assert_ne!(now[3].1, all[2].1);
    let report = case.run(&["eval", "run.yaml", "--json", "--set", data]);
    assert_eq!(report.fine().json()["eval_loss"], now[3].1);
    let again = case.train(&["train.steps=4", KEEP, data]);
    let text = again.fine().text();
    assert!(text.contains("nothing to do"), "{text}");
}

#[test]
fn an_evaluation_is_the_best_only_once_its_checkpoint_is_there() {
    for background in [true, false] {
        let case = case();
        let background = format!("checkpoint.background={background}");
        // On other data, which it says nothing of.
        case.train(&["train.steps=1", "data.eval=d.jsonl"]).fine();
        // It cannot be saved, and is better than all that come.
        case.write("out/checkpoints/step-00000002", "a file");
        let first = case.at("out/checkpoints/step-00000001");
        let first = format!("checkpoint.resume={}", first.display());
        let ended = case.train(&["train.steps=6", KEEP, CHANGE, &background, &first]);
        ended.fine();
        let text = ended.text();
        assert!(text.contains("of step 2 was not saved"), "{text}");
        // The one after it is the best of those that are there, of which the last checkpoint knows.
        assert_eq!(best_at(&case, 6)["step"], 4, "{text}");
        let kept = losses(&case).into_iter().filter(|l| l.0 >= 4);
        let best = kept.map(|l| l.1).min_by(f64::total_cmp);
        assert_eq!(Some(loss_of_model(&case)), best);
    }
}

#[test]
fn a_last_save_that_fails_or_a_best_that_is_damaged_costs_no_model() {
    let case = case();
    case.train(&["train.steps=2", KEEP]).fine();
    let last = case.at("out/checkpoints/step-00000004");
    std::fs::write(&last, "a file").expect("written");
    let sets = ["train.steps=4", KEEP, CHANGE];
    let first = case.at("out/checkpoints/step-00000002");
    let first = format!("checkpoint.resume={}", first.display());
    let failed = case.train(&[&sets[..], &[&first]].concat());
    failed.refused(&["of step 4 was not saved"]);
    let text = failed.text();
    assert!(text.contains("the model of step 2 was written"), "{text}");
    let best = losses(&case)[1].1;
    assert_eq!(loss_of_model(&case), best);
    std::fs::remove_file(&last).expect("there");
    case.train(&sets).fine();
    // The best is damaged, and the run has its end still to come.
    let state = case.at("out/checkpoints/step-00000002/state.safetensors");
    let mut bytes = std::fs::read(&state).expect("there");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&state, bytes).expect("written");
    std::fs::remove_file(case.at("out/finished.json")).expect("there");
    let ended = case.train(&sets);
    let text = ended.fine().text();
    assert!(text.contains("best evaluation is damaged"), "{text}");
    let lost = "after step 2, whose checkpoint is gone or damaged";
    assert!(text.contains(lost), "{text}");
    assert_eq!(loss_of_model(&case), losses(&case)[2].1);
}

/// Figures of other evaluation data stand beside none of these.
#[test]
fn a_run_that_goes_on_with_other_evaluation_data_begins_with_the_first_of_these() {
    let case = case();
    let first = |n: usize| -> String {
        (case.read("d.jsonl").lines().take(n)).fold(String::new(), |all, l| all + l + "\n")
    };
    case.write("other.jsonl", first(2));
    let (other, more) = ("data.eval=other.jsonl", "checkpoint.change=train.steps");
    case.train(&["train.steps=4"]).fine();
    let went_on = case.train(&["train.steps=8", other, more]);
    let all = losses(&case);
    assert_eq!(
        all.iter().map(|l| l.0).collect::<Vec<_>>(),
        [0, 2, 4, 4, 6, 8]
    );
    for words in [
        "the evaluation data, or settings of the evaluation, have changed",
        &format!(
            "eval loss     {:.4} after step 4 (first on this evaluation data), {:.4} after step 8",
            all[3].1, all[5].1
        ),
    ] {
        assert!(
            went_on.fine().text().contains(words),
            "{words:?} in {}",
            went_on.text()
        );
    }
    let report = case.run(&["report", "out"]);
    let words = format!("{:.4} after step 4, {:.4} after step 8", all[3].1, all[5].1);
    assert!(
        report.fine().text().contains(&words),
        "{words:?} in {}",
        report.text()
    );
    // Back to what it had, whose first evaluation is known.
    let back = case.train(&["train.steps=10", more]);
    let last = losses(&case).last().copied().expect("one");
    let words = format!(
        "eval loss     {:.4} before step 1, {:.4} after step 10",
        all[0].1, last.1
    );
    assert!(
        back.fine().text().contains(&words),
        "{words:?} in {}",
        back.text()
    );
}

/// What an evaluation is of that says little of the model; files that are lines or letters of another kind.
#[test]
fn weak_evaluations_and_foreign_lines_are_named() {
    let case = Scratch::new("eval-split-of-one");
    let records = case.read("d.jsonl").repeat(8);
    case.write("d.jsonl", &records);
    let few = "data.eval_split keeps 1 example, of which a loss says little";
    let same = "d.jsonl is trained on, too: its loss says how well it is remembered";
    for (set, words) in [("data.eval_split=0.1", few), ("data.eval=d.jsonl", same)] {
        let data = case.run(&["data", "run.yaml", "--set", set]);
        assert!(data.fine().text().contains(words), "{}", data.text());
        let trained = case.train(&[set, "checkpoint.resume=never"]);
        let warns = |line: &str| line.starts_with("warning: eval data: ") && line.contains(words);
        let text = trained.fine().text();
        assert!(text.lines().any(warns), "{text}");
    }
    // Which of two is meant nobody can say; twice the same is one.
    let twice = |answer: &str| {
        let said = format!(
            "{{\"role\": \"assistant\", \"content\": \"Rabat\", \"content\": \"{answer}\"}}"
        );
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}, {said}]}}\n")
    };
    case.write("d.jsonl", twice("Rabat").repeat(4));
    case.train(&["checkpoint.resume=never"]).fine();
    case.write("d.jsonl", twice("Fes"));
    case.train(&[]).refused(&[
        "d.jsonl:1",
        "key 'content' is there twice, with different values",
    ]);
    case.write("d.jsonl", records.replace('\n', "\r"));
    case.train(&[])
        .refused(&["carriage return alone", "tr '\\r' '\\n'"]);
    let wide: Vec<u8> = records.encode_utf16().flat_map(u16::to_le_bytes).collect();
    case.write("d.jsonl", wide);
    case.train(&[]).refused(&["UTF-16", "iconv -f UTF-16LE"]);
    // A list in a cell of CSV is JSON, too.
    let cell =
        r#"[{"role":"user","content":"x"},{"role":"assistant","content":"Rabat","content":"Fes"}]"#;
    let cell = cell.replace('"', "\"\"");
    case.write("d.csv", format!("messages\n\"{cell}\"\n"));
    case.train(&["data.train=[d.csv]"])
        .refused(&["key 'content' is there twice"]);
}

/// A whole number of `data.eval_split` is one of examples.
#[test]
fn so_many_examples_are_kept_for_evaluation() {
    let case = Scratch::new("eval-split-of-one");
    case.write("d.jsonl", case.read("d.jsonl").repeat(8));
    let data = case.run(&["data", "run.yaml", "--set", "data.eval_split=3", "--json"]);
    let sets = data.fine().json()["data"]["sets"].clone();
    let examples = |i: usize| sets[i]["examples"].as_u64();
    assert_eq!((examples(0), examples(1)), (Some(5), Some(3)), "{sets}");
    let all = case.run(&["data", "run.yaml", "--set", "data.eval_split=8"]);
    all.refused(&["data.eval_split: 8", "8 can be trained on", "keep fewer"]);
}
