//! A run's page: written while the run goes on, when it is stopped, and at its end.

use serde_json::{Value, json};

use crate::cases::signals::{Going, NO_ANSWERS, case, metrics, stepped, train};

#[test]
fn a_run_has_its_page_from_the_first_step_on() {
    let scratch = case();
    let sets = [NO_ANSWERS, "train.schedule=constant", "train.steps=1000000"];
    let run = Going::start(train(&scratch, &sets));
    stepped(&run, &scratch, 2);
    let page = scratch.read("out/report.html");
    assert!(page.contains("<i>not finished</i>") && page.ends_with("</html>\n"));
    assert!(page.contains("A step as planned: "));
    run.ends_by("INT", 130);
    let steps = |metrics: &[Value]| metrics.last().and_then(|l| l["step"].as_u64());
    let stopped = steps(&metrics(&scratch, "loss")).expect("steps were made");
    let page = scratch.read("out/report.html");
    assert!(page.contains("<i>not finished: stopped</i>"));

    let last = format!("train.steps={}", stopped + 3);
    let sets = [
        NO_ANSWERS,
        "train.schedule=constant",
        &last,
        "checkpoint.change=[train.steps]",
    ];
    let ended = scratch.train(&[&sets[..], &["checkpoint.every_steps=2"]].concat());
    assert!(
        ended.fine().text().contains("out/report.html"),
        "{}",
        ended.text()
    );
    let page = scratch.read("out/report.html");
    assert!(page.contains("<i>finished</i>"));
    assert!(page.contains(&format!("another process goes on after step {stopped}<")));
    // It is the page that the command draws, and its figures are those of the metrics, of both processes.
    let shown = scratch.run(&["report", "out", "--html", "page.html", "--json"]);
    let shown = &shown.fine().json()["runs"][0];
    assert_eq!(scratch.read("page.html"), page);
    let all = metrics(&scratch, "loss");
    assert_eq!(steps(&all), Some(stopped + 3));
    let recorded = all.iter().map(|l| json!([l["step"].as_f64(), l["loss"]]));
    let recorded: Vec<Value> = recorded.collect();
    let drawn = shown["curves"]["loss"].as_array().expect("points");
    assert!(
        all.len() > 1000 || *drawn == recorded,
        "{drawn:?} {recorded:?}"
    );
    let tokens: u64 = all.iter().filter_map(|l| l["tokens"].as_u64()).sum();
    assert_eq!(shown["figures"]["tokens"], tokens);
    let evaluations = metrics(&scratch, "eval_loss");
    let last = evaluations.last().expect("one after training");
    let told = &shown["figures"]["evaluation_last"];
    assert_eq!(told["eval_loss"], last["eval_loss"]);
    let account: Value = serde_json::from_str(&scratch.read("out/report.json")).expect("JSON");
    assert_eq!(account["report"]["lanes"], shown["report"]["lanes"]);
    assert_eq!(shown["processes"].as_array().map(Vec::len), Some(2));
    for tier in shown["plan"]["tiers"].as_array().expect("tiers") {
        let name = tier["name"].as_str().expect("a name");
        let memory = &shown["plan"]["memory"][name];
        let of = |key: &str| memory[key].as_u64().unwrap_or(0);
        let beside = of("answers") + of("checkpoints");
        assert_eq!(
            tier["planned_bytes"].as_u64(),
            Some(of("planned_bytes") - beside)
        );
        let parts = ["weights", "optimizer", "gradients", "transient"].map(of);
        assert_eq!(parts.iter().sum::<u64>() + beside, of("planned_bytes"));
        assert_eq!(
            shown["report"]["planned_bytes"][name],
            memory["planned_bytes"]
        );
    }

    // What is no file is refused before the run begins.
    std::fs::remove_file(scratch.at("out/report.html")).expect("there");
    std::fs::create_dir(scratch.at("out/report.html")).expect("made");
    scratch
        .train(&sets)
        .refused(&["report.html", "is not a plain file"]);
}
