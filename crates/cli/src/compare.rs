//! `lowtide compare`: a run in two ways or more, some steps of each, and what each took to the same loss.

use lowtide_config::{Length, Run};
use lowtide_report::arms::Arms;
use lowtide_report::page;
use lowtide_trainer::Comparison;
use serde_json::json;

use crate::Answer;
use crate::args::{CompareArgs, texts};
use crate::error::CliError;
use crate::out::{Out, place};
use crate::signals::{Signal, Watch};
use crate::train::Show;

/// Steps of an arm, where none are given and the run has as many.
const STEPS: u64 = 100;
/// What no arm has, so that keys which go with it do not refuse one: nothing is saved or answered.
const WITHOUT: [&str; 4] = [
    "checkpoint.durable=false",
    "checkpoint.keep_best=none",
    "eval.generate.exact_match=false",
    "eval.patience=0",
];

/// Trains each arm, and shows them side by side.
pub fn compare(args: &CompareArgs, out: Out, watch: &Watch) -> Answer {
    let to = args.html.as_ref();
    let to = to.map(|file| place("--html", file, |head| head.starts_with(page::BEGIN)));
    let to = to.transpose()?;
    let runs = runs(args)?;
    let steps = args.steps.unwrap_or(match runs[0].1.train.length {
        Length::Steps(n) => n.min(STEPS),
        Length::Epochs(_) => STEPS,
    });
    let comparison = Comparison::of(runs, steps)?;
    let names: Vec<String> = comparison.arms().map(|(name, _)| name.to_owned()).collect();
    for (i, name) in names.iter().enumerate() {
        out.text(&format!(
            "arm {name}, {} of {}, {steps} steps",
            i + 1,
            names.len()
        ));
        let mut show = Show::plain(out, watch.clone());
        let report = comparison.train(i, &mut show, &watch.requests);
        show.end();
        if report?.stopped {
            out.text(&format!(
                "stopped in arm {name}; the same command begins anew"
            ));
            let signal = watch.stopped_by();
            let answer =
                json!({ "stopped": true, "arm": name, "signal": signal.map(Signal::name) });
            return Ok((answer, signal.map_or(0, Signal::code)));
        }
    }
    let dirs: Vec<_> = comparison
        .arms()
        .map(|(_, run)| run.output.clone())
        .collect();
    let arms = Arms::read(&dirs)?;
    out.text(&arms.text());
    if let Some(to) = to {
        to.write(&arms.html())?;
        out.text(&format!("page: {}", to.path().display()));
    }
    let mut answer = json!(arms);
    answer["steps"] = json!(steps);
    Ok((answer, 0))
}

/// Each arm's name and its run.
fn runs(args: &CompareArgs) -> Result<Vec<(String, Run)>, CliError> {
    let with = |keys: &[String]| {
        let without = WITHOUT.map(str::to_owned);
        args.run.load_with(&[&without[..], keys].concat())
    };
    let own = with(&[])?;
    let given = given(args)?;
    if !given.is_empty() {
        let mut runs = vec![("run".to_owned(), own)];
        for (name, keys) in given {
            let run = with(&keys)?;
            runs.push((name, run));
        }
        return Ok(runs);
    }
    // Of a run in subspaces the keys say nothing of exact training, and are no error of it.
    let (exact, lsp) = match own.lsp {
        Some(_) => (
            Run {
                lsp: None,
                ..own.clone()
            },
            own,
        ),
        None => (own, with(&["strategy.name=lsp".to_owned()])?),
    };
    Ok(vec![("exact".to_owned(), exact), ("lsp".to_owned(), lsp)])
}

/// The arms that are given by name, each with its keys, in the order of their names' first time.
fn given(args: &CompareArgs) -> Result<Vec<(String, Vec<String>)>, CliError> {
    let mut arms: Vec<(String, Vec<String>)> = Vec::new();
    for text in texts("--arm", &args.arms)? {
        let wrong = |why: &str, help| {
            let what = format!("--arm {text}: {why}");
            Err(CliError::Usage { what, help })
        };
        let Some((name, key)) = text.split_once(':') else {
            return wrong(
                "no name before a key",
                "give NAME:KEY=VALUE, such as fast:train.learning_rate=2e-5",
            );
        };
        let of_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if name.is_empty() || name == "run" || name.len() > 64 || !name.chars().all(of_name) {
            return wrong(
                "not a name of an arm",
                "letters, digits, - and _, 64 at most; 'run' is the run as it is",
            );
        }
        match arms.iter_mut().find(|(known, _)| known == name) {
            Some((_, keys)) => keys.push(key.to_owned()),
            None => arms.push((name.to_owned(), vec![key.to_owned()])),
        }
    }
    Ok(arms)
}
