//! One tiny run through every command that computes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{answer, lowtide, root};
use tempfile::TempDir;

/// A run file on the quickstart's data with the reference machine's rates, so that nothing is
/// probed; weights are random.
fn run_file(dir: &TempDir) -> String {
    let quickstart = root()
        .join("examples/quickstart")
        .canonicalize()
        .expect("it is there");
    let machine = crate::cases::scratch::example_rates();
    let text = format!(
        "model: {{ config: {q}/make/config.json, tokenizer: {q}/base }}
output: out
data: {{ train: {q}/train.jsonl, eval: {q}/eval.jsonl }}
train: {{ steps: 3, micro_batch: 2, seq: 64, learning_rate: 1e-3 }}
eval: {{ batches: 1, generate: {{ exact_match: true, max_new_tokens: 2, max_examples: 2 }} }}
budget: {{ device: 8MiB, host: 16MiB, disk: 64MiB }}
plan: {{ machine: {m}, optimizer: disk, weights: host }}
log: {{ trace: false }}
",
        q = quickstart.display(),
        m = machine.display(),
    );
    let path = dir.path().join("run.yaml");
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn what_is_trained_is_evaluated_and_speaks() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = run_file(&dir);
    let run = file.as_str();
    let (code, report) = answer(&["train", run]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(
        (&report["steps"], &report["stopped"]),
        (&3.into(), &false.into()),
        "{report}"
    );
    let model = report["output"].as_str().expect("a path");
    assert!(
        Path::new(model).join("model.safetensors").exists(),
        "{model}"
    );
    for lane in ["h2d", "d2h", "disk_read", "disk_write"] {
        assert!(
            report["moved_bytes"][lane].as_u64() > Some(0),
            "{lane}: {report}"
        );
    }
    // The run's own model is the default, and its loss the one that training ended with.
    let (code, eval) = answer(&["eval", run]);
    assert_eq!(
        (code, &eval["eval_loss"], &eval["eval_accuracy"]),
        (0, &report["eval_loss_last"], &report["eval_accuracy_last"]),
        "{eval}"
    );
    let share = |of: &str| report[of].as_f64().filter(|x| (0.0..=1.0).contains(x));
    assert!(share("eval_accuracy_first").is_some() && share("eval_accuracy_last") > Some(0.0));
    assert_eq!(
        (&eval["prompts"], &eval["exact_match"]),
        (&2.into(), &report["exact_match_after"])
    );
    // With a KV cache, of one prompt more than there are.
    let (code, cached) = answer(&["eval", run, "--cached", "3"]);
    assert_eq!(code, 0, "{cached}");
    assert_eq!(
        (&cached["prompts"], &cached["cached"]),
        (&2.into(), &3.into())
    );
    assert_eq!(cached["eval_loss"], eval["eval_loss"]);
    let answers = cached["answers"].as_array().expect("a list");
    assert!(answers.iter().all(|a| a["answer"].is_string()));
    let (code, text) = answer(&[
        "generate",
        run,
        "--message",
        "Who?",
        "--max-new-tokens",
        "3",
    ]);
    assert_eq!(code, 0, "{text}");
    assert!(text["tokens"].as_array().expect("a list").len() <= 3 && text["text"].is_string());
    assert_eq!(text["model"], model);
    let (_, again) = answer(&[
        "generate",
        run,
        "--prompt",
        "The",
        "--model",
        model,
        "--temperature",
        "1",
        "--seed",
        "7",
    ]);
    let (_, same) = answer(&[
        "generate",
        run,
        "--prompt",
        "The",
        "--temperature",
        "1",
        "--seed",
        "7",
    ]);
    assert_eq!(again["tokens"], same["tokens"]);
    assert_eq!(same["cache"], true);
    let new = ["--prompt", "The", "--max-new-tokens", "4"];
    let (code, whole) = answer(&[&["generate", run, "--no-cache"], &new[..]].concat());
    assert_eq!((code, &whole["cache"]), (0, &false.into()), "{whole}");
    assert!(whole["tokens"].as_array().expect("a list").len() <= 4);
    // A cache that does not fit is refused, with what would.
    let small = ["--set", "budget.device=4KiB"];
    let (code, refused) = answer(&[&["generate", run], &new[..], &small].concat());
    assert_eq!(code, 2, "{refused}");
    let error = refused["error"].as_str().expect("an error");
    assert!(error.contains("does not fit in device"), "{error}");
    let sizes = [
        "--prompt-tokens",
        "5",
        "--new-tokens",
        "4",
        "--answers",
        "2",
    ];
    let (code, timed) = answer(&[&["bench", "generate", run], &sizes[..]].concat());
    assert_eq!((code, &timed["answers"]), (0, &2.into()), "{timed}");
    assert!(timed["tokens_per_second"].as_f64() > Some(0.0), "{timed}");
}

#[test]
fn verify_finds_a_planted_fault() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = run_file(&dir);
    let (code, report) = answer(&["verify", &file, "--steps", "2", "--blocks", "1"]);
    assert_eq!((code, &report["equal"]), (0, &true.into()), "{report}");
    assert_ne!(report["plan_hash"], report["resident_hash"]);
    assert!(report["compared_bytes"].as_u64() > Some(0));
    let (code, report) = answer(&["verify", &file, "--steps", "2", "--plant-fault"]);
    assert_eq!((code, &report["equal"]), (1, &false.into()), "{report}");
    assert!(report["first_difference"].is_string());
}

#[test]
fn a_signal_stops_a_run_with_a_checkpoint() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = run_file(&dir);
    let long = [
        "train",
        &file,
        "--set",
        "train.steps=1000000",
        "--set",
        "eval.generate.exact_match=false",
    ];
    // Without --json standard output tells the first step of a run.
    let mut child = lowtide(&long)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let first = lines.find(|l| l.as_ref().is_ok_and(|l| l.starts_with("step 1/")));
    assert!(first.is_some(), "no step was told");
    let signal = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(signal.expect("kill is there").success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let code = child.wait().expect("it ends").code();
    assert_eq!(code, Some(128 + 15), "{rest:#?}");
    assert!(rest.iter().any(|l| l.starts_with("stopped")), "{rest:#?}");
    let saved = std::fs::read_dir(dir.path().join("out/checkpoints"))
        .expect("a checkpoint")
        .count();
    assert_eq!(saved, 1);
}

/// The slice alone would need no disk: it takes the choices of the run's plan for the whole model.
#[test]
fn verify_shows_the_tiers_of_the_runs_own_plan() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = run_file(&dir);
    let sets = [
        "plan.optimizer=auto",
        "plan.weights=auto",
        "train.seq=128",
        "budget.device=10MiB",
        "budget.host=4MiB",
    ];
    let with = |args: &[&'static str]| {
        let mut all = vec![args[0], &*file];
        all.extend(&args[1..]);
        sets.iter().for_each(|set| all.extend(["--set", set]));
        answer(&all)
    };
    let (code, plan) = with(&["plan"]);
    assert_eq!(code, 0, "{plan}");
    let planned = |tier: &str| plan["tiers"][tier]["planned_bytes"].as_u64();
    assert!(planned("disk") > Some(0), "{plan}");
    for blocks in ["1", "2"] {
        let (code, report) = with(&["verify", "--steps", "2", "--blocks", blocks]);
        assert_eq!((code, &report["equal"]), (0, &true.into()), "{report}");
        assert_eq!(report["sent_away"], false, "{report}");
        let exercised = report["exercised"].to_string();
        assert!(
            exercised.contains("optimizer state on the disk"),
            "{exercised}"
        );
        for lane in ["disk_read", "disk_write", "h2d", "d2h"] {
            assert!(
                report["moved_bytes"][lane].as_u64() > Some(0),
                "{lane}: {report}"
            );
        }
        let left_out = report["not_exercised"].to_string();
        assert!(
            !left_out.contains("weights on") && !left_out.contains("state on"),
            "{left_out}"
        );
    }
}
