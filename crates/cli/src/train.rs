//! `lowtide train`: the run with a progress bar, and what came of it.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use lowtide_planner::explain::explain;
use lowtide_planner::{Machine, Plan};
use lowtide_trainer::fit;
use lowtide_trainer::report::{Observer, StepLine, TrainReport};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Answer;
use crate::args::RunArgs;
use crate::error::CliError;
use crate::out::{Out, bytes, complain, seconds};
use crate::plan::{compare, moved, rates_line};

/// Exit code when a second signal ends the process at once, as shells count it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Trains a run.
pub fn train(args: &RunArgs, out: Out) -> Answer {
    let run = args.load()?;
    out.text(&match run.optimizer.moments.name() {
        "f32" => {
            "strategies that change numbers: none (where a tensor lives never does)".to_owned()
        }
        name => {
            format!("strategies that change numbers: optimizer.moments {name}, in place of f32")
        }
    });
    let stop = stop_on_signals()?;
    let mut show = Show::new(out, Arc::clone(&stop));
    let result = fit::train(&run, &mut show, &stop);
    show.clear();
    let report = result?;
    let events = run.output.join("tensorboard");
    let events = run.log.tensorboard.then_some(events.as_path());
    out.text(&summary(&report, events));
    Ok((json!(report), 0))
}

/// The first signal asks the run to save and stop, a second one ends the process.
fn stop_on_signals() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first looks at what the second has not set yet.
        let at_once = Arc::clone(&stop);
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED, at_once)
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|source| CliError::Write {
                path: "signal handler".into(),
                source,
            })?;
    }
    Ok(stop)
}

/// Shows a run while it goes: a bar on a terminal, otherwise a line for each twentieth of the run.
struct Show {
    out: Out,
    stop: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    terminal: bool,
    /// Twentieths of what is going on that have been told.
    told: u64,
    stopping: bool,
}

impl Show {
    fn new(out: Out, stop: Arc<AtomicBool>) -> Self {
        let terminal = !ProgressBar::new(1).is_hidden();
        Self {
            out,
            stop,
            bar: None,
            terminal,
            told: 0,
            stopping: false,
        }
    }

    /// Prints above the bar.
    fn text(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.out.text(text)),
            None => self.out.text(text),
        }
    }

    fn clear(&mut self) {
        self.told = 0;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Advances to `at` of `of`; without a terminal tells it when another twentieth is done.
    fn advance(&mut self, what: &'static str, at: u64, of: u64, about: String) {
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| {
                let style = "{prefix} {bar:8} {pos}/{len} {eta} {wide_msg}";
                let style = ProgressStyle::with_template(style).expect("a constant template");
                ProgressBar::new(of).with_style(style).with_prefix(what)
            });
            bar.set_position(at);
            bar.set_message(about);
        } else {
            let twentieth = (20 * at).checked_div(of).unwrap_or(20);
            if twentieth > self.told || (self.told == 0 && at == 1) {
                self.told = twentieth;
                self.out
                    .text(format!("{what} {at}/{of} {about}").trim_end());
            }
        }
        if at >= of {
            self.clear();
        }
    }
}

impl Observer for Show {
    fn note(&mut self, text: &str) {
        self.text(text);
    }

    fn planned(&mut self, plan: &Plan, machine: &Machine) {
        self.text(&rates_line(machine));
        self.text(explain(plan).trim_end());
    }

    fn step(&mut self, line: &StepLine) {
        let mut about = format!(
            "loss {:.4}, norm {:.3}{}",
            line.loss,
            line.grad_norm,
            if line.skipped { " (left out)" } else { "" },
        );
        if line.share_of_bound.is_finite() {
            let _ = write!(
                about,
                ", {:.0} tokens/s, {:.0}% of bound, {}",
                line.tokens_per_second,
                100.0 * line.share_of_bound,
                line.ruling_lane,
            );
        }
        if self.stop.load(Ordering::Relaxed) && !std::mem::replace(&mut self.stopping, true) {
            self.clear();
            complain("stopping: saving a checkpoint; a second signal stops at once");
        }
        self.advance("step", line.step, line.steps, about);
    }

    fn evaluated(&mut self, step: u64, loss: f64) {
        self.text(&format!("after step {step}: evaluation loss {loss:.4}"));
    }

    fn answering(&mut self, done: usize, of: usize) {
        // Elsewhere the line with the result is enough.
        if self.terminal {
            self.advance("answering", done as u64, of as u64, String::new());
        }
    }

    fn answered(&mut self, when: &str, share: f64, prompts: usize) {
        self.clear();
        self.text(&format!(
            "exact match {when}: {:.1}% of {prompts} prompts",
            100.0 * share
        ));
    }

    fn saved(&mut self, path: &Path) {
        self.text(&format!("checkpoint {}", path.display()));
    }
}

/// What came of a run, for people.
fn summary(r: &TrainReport, events: Option<&Path>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<14}{value}\n");
    if r.stopped {
        line(
            "stopped",
            format!(
                "after step {}; the same command goes on from there",
                r.steps
            ),
        );
    }
    line(
        "steps",
        format!("{}, {} tokens in {}", r.steps, r.tokens, seconds(r.seconds)),
    );
    // Not a number where nothing was left to train.
    let loss = |x: Option<f64>| match x {
        Some(x) if !x.is_nan() => format!("{x:.4}"),
        _ => "-".to_owned(),
    };
    line(
        "loss",
        format!(
            "{} -> {}",
            loss(Some(r.loss_first)),
            loss(Some(r.loss_last))
        ),
    );
    if r.eval_loss_first.is_some() || r.eval_loss_last.is_some() {
        line(
            "eval loss",
            format!("{} -> {}", loss(r.eval_loss_first), loss(r.eval_loss_last)),
        );
    }
    let share = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{:.1}%", 100.0 * x));
    if r.exact_match_before.is_some() || r.exact_match_after.is_some() {
        let (before, after) = (share(r.exact_match_before), share(r.exact_match_after));
        line("exact match", format!("{before} -> {after}"));
    }
    line(
        "a step",
        format!(
            "{} measured, {} predicted; {:.0} tokens/s",
            seconds(r.step_seconds),
            seconds(r.predicted_step_seconds),
            r.tokens_per_second
        ),
    );
    for row in compare(&r.lanes).lines() {
        line("", row.to_owned());
    }
    line("moved", moved(&r.moved_bytes));
    line(
        "host memory",
        format!(
            "{} planned with the process, {} resident at most",
            bytes(r.planned_rss_bytes),
            r.peak_rss_bytes.map_or("-".to_owned(), bytes)
        ),
    );
    let mut path = |name: &str, path: Option<&Path>| {
        if let Some(path) = path {
            line(name, path.display().to_string());
        }
    };
    path("model", r.output.as_deref());
    path("checkpoint", r.checkpoint.as_deref());
    path("metrics", Some(&r.metrics));
    path("tensorboard", events);
    path("trace", r.trace.as_deref());
    text.truncate(text.trim_end().len());
    text
}
