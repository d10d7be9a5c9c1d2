//! Output directories as runs leave them, and as others do.
//!
//! One file because all of its tests read directories that are written here by hand.

use std::path::Path;

use lowtide_report::arms::Arms;
use lowtide_report::{Evaluation, ReportError, RunReport, State, page, text};
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
        let mut line = json!({"step": n, "steps": 4, "loss": loss, "grad_norm": 1.5, "learning_rate": learning_rate,
            "tokens": 60, "seconds": seconds, "tokens_per_second": 60.0 / seconds, "predicted_seconds": 0.75,
            "ruling_lane": "gpu", "skipped": n == 3});
        if n == 2 {
            line["spike"] = json!(12.5);
        }
        line
    };
    let lines = [
        json!({"step": 0, "when": "before", "exact_match": 0.0, "right": 0, "prompts": 2}),
        json!({"step": 0, "eval_loss": 3.25}),
        step(1, 3.0),
        step(2, 2.5),
        step(3, 2.0),
        json!({"step": 3, "eval_loss": 2.125, "eval_accuracy": 0.5}),
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
    let f = &run.figures;
    assert_eq!((f.step, f.steps, f.tokens, f.skipped), (3, 4, 180, 1));
    assert_eq!((f.loss_first, f.loss_last), (Some(3.0), Some(2.5)));
    assert_eq!(f.step_seconds, Some(1.0));
    assert_eq!(f.tokens_per_second, Some(180.0 / 3.0));
    assert_eq!(
        run.curves.loss.points(),
        [(1.0, 3.0), (2.0, 2.5), (3.0, 2.0)]
    );
    assert_eq!(run.curves.eval_loss.points(), [(0.0, 3.25), (3.0, 2.125)]);
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
        "tokens/s        60 (each start's first step left out)",
        "a step          1.00 s (median)",
        "predicted       750.0 ms",
        "loss at end     2.5000 (mean of the last steps, at most 10)",
        "eval loss       3.2500 after step 0, 2.1250 after step 3",
        "eval accuracy   50.0% after step 3",
        "skipped steps   1",
        "spikes          1",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}:\n{shown}");
    }
}

/// `log.every_steps` leaves lines out, not tokens and not odd steps.
#[test]
fn steps_without_a_line_count() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    let line = |n: u64, totals: bool| {
        let mut line = json!({"step": n, "steps": 30, "loss": 3.0, "grad_norm": 1.5, "learning_rate": 1e-5,
            "tokens": 60, "seconds": 0.5, "tokens_per_second": 120.0, "predicted_seconds": 0.75, "skipped": false});
        if totals {
            line["tokens_total"] = json!(60 * n - 7);
            line["skipped_total"] = json!(n / 10);
            line["spikes_total"] = json!(n / 5);
        }
        line.to_string()
    };
    let put = |lines: &[String]| {
        std::fs::write(dir.path().join("metrics.jsonl"), lines.join("\n") + "\n").unwrap();
        RunReport::read(dir.path()).unwrap().figures
    };
    let of = |f: &lowtide_report::Figures| (f.step, f.tokens, f.skipped, f.spikes);
    let f = put(&[line(10, true), line(20, true)]);
    assert_eq!(of(&f), (20, 1193, 2, 4));
    assert_eq!((f.loss_first, f.loss_last), (None, Some(3.0)));
    // A run that an earlier version began.
    let f = put(&[line(10, false), line(20, false)]);
    assert_eq!(of(&f), (20, 120, 0, 0));
    assert_eq!(
        of(&put(&[line(10, false), line(20, true)])),
        (20, 1193, 2, 4)
    );
    // It goes on from a checkpoint of before there were totals: they begin again.
    let mut before = [line(5, false), line(6, false)];
    before[0] = before[0].replace("\"skipped\":false", "\"skipped\":true");
    assert!(before[0].contains("true"));
    let mut begun = serde_json::from_str::<serde_json::Value>(&line(7, true)).unwrap();
    begun["skipped_total"] = json!(0);
    let [one, two] = before;
    assert_eq!(of(&put(&[one, two, begun.to_string()])), (7, 413, 1, 1));
    // What the run's account says of losses, where it is of the same step.
    for (steps, last) in [(20, 1.25), (10, 3.0)] {
        let report = json!({"steps": steps, "loss_first": 4.5, "loss_last": 1.25});
        let plan =
            json!({"seconds": 0.0, "rounds_left_out": 0, "ranks": 1, "lanes": [], "tiers": []});
        let account = json!({"format": 1, "processes": [], "report": report, "plan": plan});
        std::fs::write(dir.path().join("report.json"), account.to_string()).unwrap();
        let f = put(&[line(10, true), line(20, true)]);
        assert_eq!((f.loss_first, f.loss_last), (Some(4.5), Some(last)));
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
    // Loss, evaluation and its accuracy, exact match, norm, learning rate, tokens a second.
    assert_eq!(page.matches("<polyline").count(), 7);
    // Where the browser can, it refuses what a page does not have.
    assert!(page.contains("Content-Security-Policy") && page.contains("default-src 'none'"));
}

/// Values of a picture's first curve, read back from the places of its points and of its axes' ticks.
fn curve(page: &str, title: &str) -> Vec<[f64; 2]> {
    let svg = page.split(&format!(">{title}</text>")).nth(1).unwrap();
    let svg = svg.split("</svg>").next().unwrap();
    // From a line of the axis to the number beside it.
    let axis = |class: &str, name: &str| {
        let ticks = svg
            .lines()
            .filter(|l| l.contains(class) && l.contains("<text"));
        let ticks = ticks.filter_map(|l| {
            let at = l.split(&format!("{name}=\"")).nth(1)?.split('"').next()?;
            let value = l.split("</text>").next()?.rsplit('>').next()?;
            Some((at.parse().ok()?, value.parse().ok()?))
        });
        let all: Vec<(f64, f64)> = ticks.collect();
        let (a, b) = (all[0], *all.last().unwrap());
        move |at: f64| a.1 + (at - a.0) / (b.0 - a.0) * (b.1 - a.1)
    };
    let (x, y) = (axis("class=\"axis\"", " x1"), axis("class=\"grid\"", " y1"));
    let points = svg.split("class=\"curve\" points=\"").nth(1).unwrap();
    let points = points.split('"').next().unwrap().split(' ');
    let place = |p: &str| {
        p.split(',')
            .map(|n| n.parse().unwrap())
            .collect::<Vec<f64>>()
    };
    points.map(|p| [x(place(p)[0]), y(place(p)[1])]).collect()
}

#[test]
fn curves_lie_where_the_metrics_are() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    let page = page::html(&[RunReport::read(dir.path()).unwrap()]);
    let near = |got: Vec<[f64; 2]>, want: &[[f64; 2]], by: f64| {
        let close =
            |a: &[f64; 2], b: &[f64; 2]| (a[0] - b[0]).abs() < 0.02 && (a[1] - b[1]).abs() < by;
        let all = got.len() == want.len() && got.iter().zip(want).all(|(a, b)| close(a, b));
        assert!(all, "{got:?} {want:?}");
    };
    near(
        curve(&page, "loss of a step"),
        &[[1.0, 3.0], [2.0, 2.5], [3.0, 2.0]],
        0.01,
    );
    near(
        curve(&page, "loss on the evaluation data"),
        &[[0.0, 3.25], [3.0, 2.125]],
        0.01,
    );
    near(
        curve(&page, "tokens a second"),
        &[[1.0, 120.0], [2.0, 60.0], [3.0, 40.0]],
        0.5,
    );
}

/// A step of a plan, as a run writes it.
fn account() -> serde_json::Value {
    let task =
        json!({"start": 0.0, "end": 0.25, "kind": "forward", "name": "block <script>", "tasks": 1});
    json!({"format": 1,
        "processes": [{"after_step": 0, "version": "0.0.0", "device": "device: <script>"},
            {"after_step": 2, "version": "0.0.1", "device": "device: another"}],
        "report": {"steps": 3, "stopped": true, "lanes": {"gpu": {"predicted_seconds": 0.5, "measured_seconds": 0.625}},
            "gpu_waits": [{"cause": "<script>", "predicted_seconds": 0.0, "measured_seconds": 0.125}],
            "part": {"after_step": 2, "steps": 1}},
        "plan": {"seconds": 0.75, "rounds_left_out": 3, "ranks": 1, "lanes": [{"name": "gpu", "boxes": [task]}],
            "tiers": [{"name": "device", "planned_bytes": 1000, "budget_bytes": 2000, "contents": ["weights", "<script>"],
                "kept": [400, 100], "moving": [[0.0, [0, 10]], [0.5, [200, 0]]]}]}})
}

#[test]
fn what_a_run_tells_beside_its_metrics_is_drawn_and_no_markup() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    let put = |value: &serde_json::Value| {
        std::fs::write(dir.path().join("report.json"), value.to_string()).unwrap();
        RunReport::read(dir.path())
    };
    let run = put(&account()).unwrap();
    let shown = text::compare(std::slice::from_ref(&run));
    for line in [
        "state           not finished: stopped",
        "started         2 times",
        "device          another",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}:\n{shown}");
    }
    let page = page::html(&[run]);
    for words in [
        "block &lt;script&gt;: 0.0 µs to 250.0 ms",
        "device: 700 B at most, 1000 B reserved, budget 2.0 KiB",
        "<td class=\"n\">500.0 ms</td><td class=\"n\">625.0 ms</td>",
        "of the process that began after step 2",
        "3 rounds of micro-batches are left out",
        "another process goes on after step 2",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert!(!page.contains("<script"));
    // The step that was made since is not in the account: the run goes on.
    let mut stale = account();
    stale["report"]["steps"] = json!(2);
    let shown = text::compare(&[put(&stale).unwrap()]);
    assert!(shown.contains("state           not finished\n"));
    // What another version writes, and what none does.
    for (pointer, value) in [
        ("/format", json!(2)),
        ("/plan/lanes/0/boxes", json!("many")),
        ("/plan/tiers/0/kept/0", json!(-1)),
        ("/processes", json!({})),
    ] {
        let mut wrong = account();
        *wrong.pointer_mut(pointer).unwrap() = value;
        let e = put(&wrong).unwrap_err();
        let named = matches!(&e, ReportError::Unlike { path, .. } if path.ends_with("report.json"));
        assert!(named, "{pointer}: {e}");
    }
}

/// A run of so many steps is read in bounded memory, its page stays small, and its figures are those of all steps.
#[test]
fn many_steps_make_a_small_page_with_the_figures_of_all() {
    use std::fmt::Write;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    let n = 200_000u64;
    let mut lines = String::new();
    for i in 1..=n {
        let loss = if i == 123_456 { 55.5 } else { 2.0 };
        writeln!(
            lines,
            "{{\"step\":{i},\"steps\":{n},\"loss\":{loss},\"grad_norm\":1.0,\"learning_rate\":1e-5,\"tokens\":10,\"seconds\":0.5,\"tokens_per_second\":20.0}}"
        )
        .unwrap();
    }
    std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
    let run = RunReport::read(dir.path()).unwrap();
    let f = &run.figures;
    assert_eq!((f.step, f.tokens), (n, 10 * n));
    assert_eq!((f.loss_last, f.step_seconds), (Some(2.0), Some(0.5)));
    assert!(run.curves.loss.points().contains(&(123_456.0, 55.5)));
    let json = serde_json::to_string(&run).unwrap();
    let bytes = [page::html(&[run]).len(), json.len()];
    assert!(bytes.iter().all(|&n| n < 400_000), "{bytes:?}");
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
    assert!(page.contains(
        "<tr class=\"differs\"><td>train.learning_rate</td><td>0.00001</td><td>0.00003</td>"
    ));
    assert_eq!(page.matches("<polyline").count(), 14);
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
    // Nobody says that it has made a step.
    let run = read().unwrap();
    assert!(run.figures.step == 0 && run.figures.loss_last.is_none() && run.curves.loss.is_empty());
    assert!(page::html(&[run]).contains("not finished"));
    std::fs::write(dir.path().join("run.json"), "[1, 2").unwrap();
    assert!(matches!(read(), Err(ReportError::File(_))));
}

#[test]
fn files_that_no_run_writes_are_refused_and_their_texts_harmless() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "run.json",
        "machine.json",
        "finished.json",
        "report.json",
        ".lowtide",
    ] {
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

/// The first of these programs in `PATH`.
fn browser() -> Option<std::path::PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    let mut all = std::env::split_paths(&path).flat_map(|dir| names.map(|n| dir.join(n)));
    all.find(|p| p.is_file())
}

/// A browser reads the page as it is meant: every element closed, every figure there, nothing run.
#[test]
#[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
fn a_browser_draws_the_page() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no chromium, chromium-browser or google-chrome in PATH");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    std::fs::write(dir.path().join("report.json"), account().to_string()).unwrap();
    let page = page::html(&[RunReport::read(dir.path()).unwrap()]);
    let file = dir.path().join("page.html");
    std::fs::write(&file, &page).unwrap();
    let picture = dir.path().join("picture.png");
    let look = |what: String| {
        let done = std::process::Command::new(&browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
            ])
            .arg(format!(
                "--user-data-dir={}",
                dir.path().join("profile").display()
            ))
            .arg("--window-size=1280,2400")
            .arg(what)
            .arg(format!("file://{}", file.display()))
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let dom = look("--dump-dom".to_owned());
    for tag in [
        "<polyline",
        "<rect",
        "<polygon",
        "<circle",
        "<svg",
        "<div",
        "<table",
        "<tr",
        "<pre",
    ] {
        // What is not closed where it should be is closed, moved or doubled by a browser.
        assert_eq!(dom.matches(tag).count(), page.matches(tag).count(), "{tag}");
    }
    assert!(
        dom.contains("<b>2.5000</b>") && dom.contains("<b>3 of 4</b>") && !dom.contains("<script")
    );
    look(format!("--screenshot={}", picture.display()));
    let png = std::fs::read(&picture).unwrap();
    let size = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((size(16), size(20)), (1280, 2400));
    assert!(png.len() > 30_000, "{} bytes: blank?", png.len());
}

/// An arm of four steps that takes so many seconds each, with evaluations before the first and after each second one.
fn write_arm(dir: &Path, step: f64, learning: Option<f64>, evaluations: [f64; 3]) {
    std::fs::create_dir_all(dir).unwrap();
    let put = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let disk = [json!({"dir": dir.join("disk")})];
    put(
        "run.json",
        json!({"output": dir, "budget": {"disk": disk}}).to_string(),
    );
    let mut report = json!({"compared": true, "steps": 4, "stopped": false});
    if let Some(s) = learning {
        report["learning_seconds"] = json!(s);
    }
    let account = json!({"format": 1, "processes": [], "report": report,
        "plan": {"seconds": 0.0, "rounds_left_out": 0, "ranks": 1, "lanes": [], "tiers": []}});
    put("report.json", account.to_string());
    let mut lines = vec![json!({"step": 0, "eval_loss": evaluations[0]})];
    for n in 1..=4u64 {
        lines.push(json!({"step": n, "steps": 4, "loss": 1.0 / n as f64, "grad_norm": 1.0, "learning_rate": 0.1,
            "tokens": 6, "seconds": step, "tokens_per_second": 6.0 / step, "skipped": false}));
        if n % 2 == 0 {
            lines.push(json!({"step": n, "eval_loss": evaluations[n as usize / 2]}));
        }
    }
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    put("metrics.jsonl", lines.join("\n") + "\n");
}

/// Worked out by hand: the lowest loss of both is the other's last one, .75, in the middle of the first one's after
/// steps 2 and 4.
#[test]
fn arms_are_held_against_each_other_at_the_lowest_loss_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = ["exact", "lsp", "flat"].map(|name| dir.path().join(name));
    write_arm(&dirs[0], 1.0, None, [2.0, 1.0, 0.5]);
    write_arm(&dirs[1], 0.25, Some(0.5), [2.0, 1.25, 0.75]);
    write_arm(&dirs[2], 0.5, None, [2.0, 2.5, 2.25]);
    let arms = Arms::read(&dirs).unwrap();
    assert!(arms.runs.iter().all(|r| r.state == State::Finished));
    let tie = arms.ties[0].as_ref().unwrap();
    assert_eq!(tie.arms, ["exact", "lsp"]);
    assert_eq!((tie.loss, tie.lowest), (0.75, [0.5, 0.75]));
    assert_eq!((tie.steps, tie.seconds), ([3.0, 4.0], [3.0, 1.5]));
    assert_eq!(
        (tie.times_the_steps, tie.times_the_seconds),
        (4.0 / 3.0, 0.5)
    );
    // It never fell.
    assert_eq!(arms.ties[1], None);
    let points = |i: usize| {
        arms.arms[i]
            .points
            .iter()
            .map(|p| (p.step, p.seconds, p.loss))
    };
    let mean = f64::midpoint(1.0 / 3.0, 0.25);
    assert!(points(1).eq([(0, 0.5, None), (2, 1.0, Some(0.75)), (4, 1.5, Some(mean))]));
    let text = arms.text();
    for words in [
        "after step  exact loss  exact eval  exact time  lsp loss",
        "4           0.2917      0.5000      4.00 s      0.2917    0.7500    1.50 s",
        "learned in 500.0 ms",
        "lsp: a step takes 250.0 ms, exact's 1.00 s: ahead while it needs less than 4.00 times the steps",
        "evaluation loss 0.7500, the lowest that both reached: exact after 3 steps and 3.00 s, lsp after 4 and 1.50 s, \
         1.33 times the steps and 0.50 times the time: lsp is ahead; the lowest of exact is 0.5000",
        "exact and flat: one of them had no less loss than at its begin",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    // Each has its own drive in its own output.
    assert!(!text.contains("budget.disk"), "{text}");
    let html = arms.html();
    assert!(
        html.starts_with(page::BEGIN)
            && html.contains("<desc>exact 2 at 0, 0.5 at 4; lsp 2 at 0.5, 0.75 at 1.5")
    );
    assert!(html.contains("lsp is ahead") && html.contains("loss of steps by time"));
    let json = serde_json::to_value(&arms).unwrap();
    assert_eq!(json["ties"][0]["times_the_steps"], 4.0 / 3.0);

    // Without evaluations the loss of steps counts.
    let metrics = dirs[0].join("metrics.jsonl");
    let steps = std::fs::read_to_string(&metrics).unwrap();
    let steps: Vec<&str> = steps.lines().filter(|l| !l.contains("eval_loss")).collect();
    std::fs::write(&metrics, steps.join("\n") + "\n").unwrap();
    let arms = Arms::read(&dirs).unwrap();
    let tie = arms.ties[0].as_ref().unwrap();
    // Of the other one there are points at its evaluations only.
    assert!(!tie.evaluated && tie.loss == mean);
    std::fs::remove_file(&metrics).unwrap();
    let error = Arms::read(&dirs).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl: no such file"), "{error}");
}

#[test]
fn metrics_that_are_missing_are_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1e-5);
    let metrics = dir.path().join("metrics.jsonl");
    let said = || {
        let run = RunReport::read(dir.path()).unwrap();
        let shown = text::compare(std::slice::from_ref(&run));
        let missing = run.missing.clone();
        let page = page::html(&[run]);
        for seen in [shown, page] {
            let want = missing.as_deref().unwrap_or("no run says so");
            assert_eq!(seen.contains(want), missing.is_some(), "{seen}");
        }
        missing
    };
    let finished = |steps: u64| {
        let json = serde_json::json!({"format": 1, "report": {"steps": steps}});
        std::fs::write(dir.path().join("finished.json"), json.to_string()).unwrap();
    };
    let whole = std::fs::read_to_string(&metrics).unwrap();
    let last = whole.lines().filter(|l| l.contains("\"loss\"")).count() as u64;
    assert_eq!(said(), None);
    finished(last);
    assert_eq!(said(), None, "{whole}");
    finished(last + 20);
    let want = format!(
        "metrics.jsonl ends at step {last}, of {} that were made",
        last + 20
    );
    assert_eq!(said(), Some(want));
    // Within it: which steps have lines is known of each process.
    let account = |processes: serde_json::Value| {
        let json = json!({"format": 1, "processes": processes, "report": {},
            "plan": {"seconds": 0.0, "rounds_left_out": 0, "ranks": 1, "lanes": [], "tiers": []}});
        std::fs::write(dir.path().join("report.json"), json.to_string()).unwrap();
    };
    let process = |after: u64, every: u64| json!({"after_step": after, "version": "0", "device": "cpu", "every_steps": every});
    let lines = |steps: &[u64]| {
        let line = |n: &u64| {
            let step = json!({"step": n, "steps": 40, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 1});
            format!("{step}\n")
        };
        std::fs::write(&metrics, steps.iter().map(line).collect::<String>()).unwrap();
    };
    finished(24);
    account(json!([process(0, 10), process(20, 1)]));
    lines(&[10, 20, 21, 22, 23, 24]);
    assert_eq!(said(), None);
    lines(&[20, 21, 24]);
    let want = "metrics.jsonl has no lines of 3 steps, from step 10 on";
    assert_eq!(said().as_deref(), Some(want));
    lines(&[10, 20, 21, 23]);
    let want =
        "metrics.jsonl has no line of step 22; metrics.jsonl ends at step 23, of 24 that were made";
    assert_eq!(said().as_deref(), Some(want));
    // The lines at the end, too, are those of who made the steps.
    account(json!([process(0, 10), process(20, 50)]));
    lines(&[10, 20]);
    assert_eq!(said(), None);
    // What an earlier version or another output has made.
    account(json!([{"after_step": 0, "version": "0", "device": "cpu"}, process(20, 1)]));
    lines(&[21, 22, 23, 24]);
    assert_eq!(said(), None);
    std::fs::remove_file(dir.path().join("report.json")).unwrap();
    finished(last + 20);
    std::fs::write(&metrics, "").unwrap();
    let want = format!("metrics.jsonl has no step, of {} that were made", last + 20);
    assert_eq!(said(), Some(want));
    std::fs::remove_file(&metrics).unwrap();
    let want = "metrics.jsonl is not there: nothing is known of single steps";
    assert_eq!(said(), Some(want.to_owned()));
}

#[test]
fn figures_of_other_evaluation_data_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0.001);
    let eval = |step: u64, loss: f64, data: &str| json!({"step": step, "eval_loss": loss, "eval_accuracy": loss / 10.0, "eval_data": data});
    let answers = |when: &str, share: f64, data: &str| json!({"step": 0, "when": when, "exact_match": share, "right": 1, "prompts": 4, "eval_data": data});
    // Data that were there before come back.
    let lines = [
        answers("before", 0.25, "p"),
        eval(0, 3.0, "a"),
        eval(2, 1.0, "b"),
        eval(4, 2.5, "a"),
        eval(6, 2.0, "a"),
        answers("after", 0.75, "q"),
    ];
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    std::fs::write(dir.path().join("metrics.jsonl"), &text).unwrap();
    let run = RunReport::read(dir.path()).unwrap();
    let f = &run.figures;
    let loss = |e: &Option<Evaluation>| e.as_ref().map(|e| (e.step, e.eval_loss));
    assert_eq!(loss(&f.evaluation_first), Some((0, 3.0)));
    assert_eq!(loss(&f.evaluation_last), Some((6, 2.0)));
    assert_eq!(loss(&f.evaluation_best), Some((6, 2.0)));
    assert_eq!((&f.match_before, f.evaluations_of_others), (&None, 2));
    let points = run.curves.eval_loss.points();
    assert_eq!(points, [(0.0, 3.0), (4.0, 2.5), (6.0, 2.0)]);
    let shown = text::compare(&[run]);
    assert!(shown.contains("2 evaluations of other data"), "{shown}");
    std::fs::write(
        dir.path().join("metrics.jsonl"),
        format!("{text}{}\n", eval(8, 0.5, "b")),
    )
    .unwrap();
    let f = RunReport::read(dir.path()).unwrap().figures;
    assert_eq!(loss(&f.evaluation_first), Some((2, 1.0)));
    assert_eq!(f.evaluations_of_others, 4);
}
