//! Output directories as runs leave them, and as others do.

use std::path::Path;

use lowtide_report::{ReportError, RunReport, State, page, text};
use serde_json::json;

/// A run of three steps with an evaluation and two prompts, stopped in the middle of writing a line.
fn write(dir: &Path, learning_rate: f64) {
    let put = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let run = json!({"file": "run.yaml", "output": dir, "model": {"source": {"path": "/models/small & fine"}},
        "train": {"micro_batch": 2, "seq": 8, "accumulate": 4, "learning_rate": learning_rate}});
    put("run.json", run.to_string());
    put(
        "machine.json",
        json!({"name": "bench", "ops": {"x": 1.0}}).to_string(),
    );
    put(".lowtide", json!({"version": "0.0.0"}).to_string());
    let step = |n: u64, loss: f64| {
        let seconds = 0.5 * n as f64;
        json!({"step": n, "steps": 4, "loss": loss, "grad_norm": 1.5, "learning_rate": learning_rate, "tokens": 60,
            "seconds": seconds, "tokens_per_second": 60.0 / seconds, "predicted_seconds": 0.75,
            "ruling_lane": "gpu", "skipped": n == 3})
    };
    let lines = [
        json!({"step": 0, "when": "before", "exact_match": 0.0, "right": 0, "prompts": 2}),
        json!({"step": 0, "eval_loss": 3.25}),
        step(1, 3.0),
        step(2, 2.5),
        step(3, 2.0),
        json!({"step": 3, "eval_loss": 2.125}),
    ];
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    put("metrics.jsonl", lines.join("\n") + "\n{\"step\": 4, \"lo");
    let answer = |step: u64, when: &str, prompt: &str, answer: &str| {
        json!({"step": step, "when": when, "prompt": prompt, "reference": "blue", "answer": answer,
            "extracted": null, "wanted": "blue", "right": answer == "blue"})
        .to_string()
    };
    let answers = [
        answer(0, "before", "sky <b>?", "</pre><script>"),
        answer(0, "before", "sea?", "grey"),
        answer(3, "during", "sky <b>?", "blue"),
        answer(3, "during", "sea?", "green"),
    ];
    put("answers.jsonl", answers.join("\n") + "\n");
}

#[test]
fn figures_are_those_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    let run = RunReport::read(dir.path()).unwrap();
    assert_eq!(run.state, State::Unfinished);
    assert_eq!(run.model(), "small & fine");
    assert_eq!(run.steps.len(), 3);
    assert_eq!(run.last_loss(), Some(2.5));
    assert_eq!(run.step_seconds(), Some(1.0));
    assert_eq!(run.tokens_per_second(), Some(180.0 / 3.0));
    let losses: Vec<f64> = run.evaluations.iter().map(|e| e.eval_loss).collect();
    assert_eq!(losses, [3.25, 2.125]);
    assert_eq!(run.machine, json!({"name": "bench"}));
    let right: Vec<[bool; 2]> = run
        .answers
        .iter()
        .map(|pair| pair.each_ref().map(|a| a.as_ref().unwrap().right))
        .collect();
    assert_eq!(right, [[false, true], [false, false]]);

    let shown = text::compare(std::slice::from_ref(&run));
    for line in [
        "tokens a step   2 x 4 x 8",
        "steps           3 of 4",
        "tokens/s        60",
        "a step          1.00 s (median)",
        "predicted       750.0 ms",
        "last loss       2.5000",
        "eval loss       3.2500 after step 0, 2.1250 after step 3",
        "skipped steps   1",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}:\n{shown}");
    }
}

#[test]
fn a_page_opens_alone_and_no_text_of_a_run_is_markup() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    let page = page::html(&[RunReport::read(dir.path()).unwrap()]);
    assert!(page.starts_with(page::BEGIN));
    assert!(page.contains("small &amp; fine") && page.contains("sky &lt;b&gt;?"));
    assert!(page.contains("&lt;/pre&gt;&lt;script&gt;"));
    for word in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(word), "{word}");
    }
    // Loss, evaluation, exact match, norm, learning rate, tokens a second.
    assert_eq!(page.matches("<polyline").count(), 6);
    // Every loss of a step is in the picture: as many points as steps.
    let points = page.split("loss of a step</text>").nth(1).unwrap();
    let points = points.split("<polyline points=\"").nth(1).unwrap();
    let points = points.split('"').next().unwrap();
    assert_eq!(points.split(' ').count(), 3);
}

#[test]
fn runs_beside_each_other_tell_what_differs() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (dir, rate) in dirs.iter().zip([1e-5, 3e-5]) {
        write(dir.path(), rate);
    }
    let runs = dirs.each_ref().map(|d| RunReport::read(d.path()).unwrap());
    let shown = text::compare(&runs);
    let last: Vec<&str> = shown.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last, ["train.learning_rate", "0.00001", "0.00003"]);
    assert!(!shown.contains("run.yaml"));
    let page = page::html(&runs);
    assert!(page.contains("<td>train.learning_rate</td><td>0.00001</td><td>0.00003</td>"));
    assert_eq!(page.matches("<polyline").count(), 12);
}

#[test]
fn what_is_no_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let read = || RunReport::read(dir.path());
    assert!(matches!(read(), Err(ReportError::NoRun { .. })));
    write(dir.path(), 1e-5);
    let metrics = dir.path().join("metrics.jsonl");
    let whole = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(
        &metrics,
        whole.replacen("\"eval_loss\":3.25", "\"eval\":3.25", 1),
    )
    .unwrap();
    assert!(matches!(read(), Err(ReportError::Line { line: 2, .. })));
    std::fs::remove_file(&metrics).unwrap();
    // A run that has not made a step yet.
    let run = read().unwrap();
    assert!(run.steps.is_empty() && run.last_loss().is_none());
    assert!(page::html(&[run]).contains("not finished"));
    std::fs::write(dir.path().join("run.json"), "[1, 2").unwrap();
    assert!(matches!(read(), Err(ReportError::File(_))));
}

#[test]
fn files_that_no_run_writes_are_refused_and_their_texts_harmless() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["run.json", "machine.json", "finished.json", ".lowtide"] {
        for value in ["[1]", "5", "null", "\"x\""] {
            write(dir.path(), 1e-5);
            std::fs::write(dir.path().join(name), value).unwrap();
            let e = RunReport::read(dir.path()).unwrap_err();
            assert!(matches!(&e, ReportError::NotWritten { path } if path.ends_with(name)));
        }
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    // What a terminal would obey, what would fill it, and more keys than any run file has.
    let both = ["a", "b"].map(|name| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        write(&dir, 1e-5);
        let mut run: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("run.json")).unwrap()).unwrap();
        run["model"]["source"]["path"] =
            json!(format!("x\u{1b}[31m{name}\u{202e}{}", "y".repeat(100_000)));
        run["\u{1b}]0;t\u{7}"] = json!(name);
        let keys = (0..200_000).map(|n| (format!("{name}{n}"), json!(n)));
        run["more"] = keys.collect::<serde_json::Map<_, _>>().into();
        std::fs::write(dir.join("run.json"), run.to_string()).unwrap();
        let line =
            json!({"step": 3, "when": "after", "exact_match": 1.0, "right": 1, "prompts": 1});
        let losses =
            [1e308, -1e308, 1e307, 0.5].map(|l| json!({"step": 1, "eval_loss": l}).to_string());
        let lines = format!("{line}\n").repeat(10_000) + &losses.join("\n") + "\n";
        std::fs::write(dir.join("metrics.jsonl"), lines).unwrap();
        RunReport::read(&dir).unwrap()
    });
    let began = std::time::Instant::now();
    let shown = text::compare(&both) + &page::html(&both).replace('\u{1b}', "");
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    assert!(!text::compare(&both).contains(['\u{1b}', '\u{7}', '\u{202e}']));
    assert!(shown.contains("\\u{1b}[31ma"));
    assert!(!shown.contains("NaN") && !shown.contains("inf,"));
    let lines = text::compare(&both);
    assert!(lines.lines().all(|l| l.chars().count() < 1000) && lines.lines().count() < 600);
}
