//! `lowtide train`: the run with a live view, and what came of it.
//!
//! One file because what is shown while a run goes and what is said at its end are read together.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lowtide_config::Run;
use lowtide_planner::Tier;
use lowtide_planner::explain::{explain, explain_choices, lane_of};
use lowtide_planner::traffic::explain_cores;
use lowtide_trainer::error::{CommError, ExecError, MeetError};
use lowtide_trainer::{
    Evaluation, Met, Observer, Phase, Planned, Replan, StepLine, TrainError, When, follow,
};
use serde_json::{Value, json};

use crate::Answer;
use crate::args::TrainArgs;
use crate::launch;
use crate::out::{Out, complain, duration, seconds};
use crate::plan::{drives, rates_line};
use crate::progress::{self, Pace, Waiting, terminal};
use crate::signals::{Signal, Watch};
use crate::view::{self, Seen, View};

/// Trains a run. Signals ask it to save and to stop.
pub fn train(args: &TrainArgs, out: Out, watch: &Watch) -> Answer {
    let Some(launch) = launch::found()? else {
        return lead(args, &args.run.load()?, None, out, watch);
    };
    let run = args.run.load_for((launch.world.size, launch.hosts));
    let met = launch.meet(run.as_ref().map_err(ToString::to_string));
    let (run, met) = match (run, met) {
        // An error here is shown before its consequences, but not before what came first.
        (Err(own), Err(TrainError::Meet(MeetError::Refused(why))))
            if !why.contains(&own.to_string()) =>
        {
            return Err(TrainError::Meet(MeetError::Refused(why)).into());
        }
        (run, met) => (run?, met?),
    };
    // Set once: a process is one rank.
    let _ = watch.others.set(met.farewell());
    match launch.world.rank {
        0 => lead(args, &run, Some(&met), out, watch),
        rank => {
            let ended = match follow(&run, &met, &watch.requests) {
                // What is saved is rank 0's to say.
                Err(e) => Some(ended_by(&e, "").or_else(|| ended_too(&e, watch)).ok_or(e)?),
                Ok(signal) => signal.map(|signal| Signal::of_another(Some(signal))),
            };
            Ok(answer_of(rank, ended))
        }
    }
}

/// What a rank's process answers that has nothing else to say.
fn answer_of(rank: usize, signal: Option<Signal>) -> (Value, u8) {
    let stopped = signal.is_some();
    let answer = json!({ "rank": rank, "stopped": stopped, "signal": signal.map(Signal::name) });
    (answer, signal.map_or(0, Signal::code))
}

/// Why ranks cannot continue, where that is the error.
fn between_ranks(e: &TrainError) -> Option<&CommError> {
    match e {
        TrainError::Exec(ExecError::Ranks { source, .. }) => Some(source),
        _ => None,
    }
}

/// The signal that has ended another rank's process at once, where that is all that is wrong. Says so, and what becomes
/// of the run.
fn ended_by(e: &TrainError, kept: &str) -> Option<Signal> {
    let CommError::Signalled { rank, signal, name } = between_ranks(e)? else {
        return None;
    };
    complain(&format!(
        "the process of rank {rank} was ended by {name}{kept}"
    ));
    Some(Signal::of_another(Some(*signal)))
}

/// The signal that came to this process, where another one has ended and could not say by which.
fn ended_too(e: &TrainError, watch: &Watch) -> Option<Signal> {
    match between_ranks(e)? {
        CommError::Gone { .. } | CommError::Stopped { .. } => watch.stopped_by(),
        _ => None,
    }
}

/// Trains, of several ranks that a launcher has started as the first.
fn lead(args: &TrainArgs, run: &Run, met: Option<&Met>, out: Out, watch: &Watch) -> Answer {
    match run.optimizer.moments.name() {
        "f32" => out.detail("strategies that change numbers: none"),
        name => out.text(&format!(
            "optimizer.moments is {name}: other numbers than with f32"
        )),
    }
    if args.plain {
        progress::plain();
    }
    // Ranks that a launcher started share its terminal.
    let alone = met.is_none() && !args.plain && !args.events;
    let viewed = alone && out.is_for_people() && view::is_possible();
    let mut show = Show::new(out, watch.clone(), (args.events, viewed));
    show.durable = Some(run.checkpoint.durable);
    let result = match met {
        None => lowtide_trainer::train(run, &mut show, &watch.requests),
        Some(met) => lowtide_trainer::lead(run, met, &mut show, &watch.requests),
    };
    show.end();
    let report = match result {
        // Of a launch all processes end with the code of the signal that ended one at once.
        Err(e) if met.is_some() => match ended_by(&e, &watch.kept.words()) {
            Some(signal) => {
                let (mut answer, code) = answer_of(0, Some(signal));
                answer["saved_step"] = json!(watch.kept.step());
                return Ok((answer, code));
            }
            None => return Err(e.into()),
        },
        result => result?,
    };
    if report.nothing_to_do {
        out.text(&format!("finished at step {}; nothing to do", report.steps));
    }
    let events = run.output.join("tensorboard");
    let events = run.log.tensorboard.then_some(events.as_path());
    out.text(&report.text(events, show.cuda));
    let mut answer = json!(report);
    // Whichever rank was asked first: the others' processes hear of the same one.
    let asked = watch.requests.stopped_by();
    let signal =
        (report.stopped && (asked.is_some() || met.is_some())).then(|| Signal::of_another(asked));
    answer["signal"] = json!(signal.map(Signal::name));
    Ok((answer, signal.map_or(0, Signal::code)))
}

/// A line at least this often, where there is no bar.
const OFTEN: Duration = Duration::from_secs(60);

/// Shows a run while it goes: a view on a terminal, and a bar where it was left; otherwise a line for each twentieth of
/// the run, and at least one a minute.
pub(crate) struct Show {
    out: Out,
    /// What the run does when it is asked to end.
    ending: &'static str,
    /// Whether a program hears of what is finished.
    events: bool,
    /// Whether there is to be a view, and the view.
    viewed: bool,
    view: Option<View>,
    watch: Watch,
    bar: Option<ProgressBar>,
    waiting: Option<Waiting>,
    terminal: bool,
    /// Whether the device is a GPU.
    cuda: bool,
    pace: Pace,
    /// Twentieths of what is going on that have been shown, and when.
    said: u64,
    said_at: Instant,
    stopping: bool,
    /// Lines of steps that the view has shown otherwise: they are printed when it closes.
    past: Vec<String>,
    /// Whether the next start goes on from what is on drives, or from a checkpoint; `None`: it begins anew.
    durable: Option<bool>,
}

impl Show {
    /// Of a run of which nothing is saved, in lines or by a bar.
    pub(crate) fn plain(out: Out, watch: Watch) -> Self {
        Self {
            ending: "stopping behind this step: a comparison begins anew; another signal, from a second after the first, \
                     stops at once",
            ..Self::new(out, watch, (false, false))
        }
    }

    fn new(out: Out, watch: Watch, (events, viewed): (bool, bool)) -> Self {
        Self {
            out,
            ending: "stopping: saving what is not saved; another signal, from a second after the first, stops at \
                     once",
            events,
            viewed,
            view: None,
            watch,
            bar: None,
            waiting: None,
            terminal: terminal(),
            cuda: false,
            pace: Pace::default(),
            said: 0,
            said_at: Instant::now(),
            stopping: false,
            past: Vec::new(),
            durable: None,
        }
    }

    /// Prints above what is drawn.
    fn above(&self, print: impl FnOnce()) {
        match (&self.waiting, &self.bar) {
            (Some(waiting), _) => waiting.above(print),
            (None, Some(bar)) => bar.suspend(print),
            (None, None) => print(),
        }
    }

    fn text(&self, text: &str) {
        if !self.view.as_ref().is_some_and(|view| view.say(text)) {
            self.above(|| self.out.text(text));
        }
    }

    /// The view, while it is open.
    fn view(&self) -> Option<&View> {
        self.view.as_ref().filter(|view| view.is_open())
    }

    /// The run is over.
    pub(crate) fn end(&mut self) {
        self.view = None;
        self.tell_past();
        self.clear();
    }

    /// Prints what a view has shown that is closed now.
    fn tell_past(&mut self) {
        for line in std::mem::take(&mut self.past) {
            self.out.text(&line);
        }
    }

    /// Tells a program.
    fn event(&self, event: Value) {
        if self.events {
            self.above(|| self.out.event(&event));
        }
    }

    fn clear(&mut self) {
        self.said = 0;
        self.waiting = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Says once that the run ends, as soon as that is seen.
    fn tell_stopping(&mut self) {
        if self.watch.requests.stopping() && !std::mem::replace(&mut self.stopping, true) {
            self.clear();
            let text = self.ending;
            if !self.view.as_ref().is_some_and(|view| view.say(text)) {
                complain(text);
            }
        }
    }

    /// Advances to `at` of `of`; without a terminal tells it now and then.
    fn advance(&mut self, what: &'static str, at: u64, of: u64, about: String) {
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| {
                let style = "{prefix} {bar:8} {pos}/{len} {wide_msg}";
                let style = ProgressStyle::with_template(style).expect("a constant template");
                ProgressBar::new(of).with_style(style).with_prefix(what)
            });
            bar.set_position(at);
            bar.set_message(about);
        } else {
            let twentieth = (20 * at).checked_div(of).unwrap_or(20);
            let first = self.said == 0 && at == 1;
            if twentieth > self.said || first || self.said_at.elapsed() >= OFTEN {
                (self.said, self.said_at) = (twentieth, Instant::now());
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

    fn device(&mut self, note: &str, gpu: bool) {
        self.cuda = gpu;
        self.note(note);
    }

    fn detail(&mut self, text: &str) {
        if self.out.is_verbose() {
            self.text(text);
        }
    }

    fn phase(&mut self, phase: Option<Phase>) {
        if let Some(view) = self.view() {
            return view.update(|seen| seen.doing = phase.map(|p| p.name().to_owned()));
        }
        // One after the other: the end of the last is shown before the next begins.
        self.waiting = None;
        // A terminal's bar stays while a run evaluates and saves.
        let bar = self.terminal && self.bar.is_some();
        self.waiting = phase.filter(|_| !bar).map(|p| Waiting::begin(p.name()));
    }

    fn planned(&mut self, planned: &Planned) {
        let (plan, machine) = (&planned.plan, &planned.machine);
        let w = planned.decoder.workload();
        self.detail(&rates_line(machine));
        self.text(&planned.memory().table().text());
        self.text(&planned.of_process());
        self.text((explain(plan, w, self.cuda) + &explain_cores(plan, w)).trim_end());
        for line in drives(plan, machine) {
            self.text(&line);
        }
        self.detail(explain_choices(plan).trim_end());
        if self.viewed {
            self.clear();
            let memory = planned.memory();
            let tiers = [memory.device, memory.host, memory.disk];
            let tiers = Tier::ALL.iter().zip(tiers);
            let tiers = tiers.filter(|(_, held)| held.budget_bytes > 0);
            let seen = Seen {
                title: plan.model.clone(),
                tiers: tiers
                    .map(|(t, held)| (t.name(), held.planned_bytes, held.budget_bytes))
                    .collect(),
                ..Seen::default()
            };
            self.view = View::open(seen, self.out);
        }
    }

    fn begins(&mut self, after_step: u64) {
        if let Some(durable) = self.durable {
            self.watch.kept.begin(after_step, durable);
        }
    }

    fn step(&mut self, line: &StepLine) {
        self.waiting = None;
        let mut event = json!(line);
        event["event"] = json!("step");
        self.event(event);
        let mut about = format!(
            "loss {:.4}, norm {:.3}{}{}",
            line.loss,
            line.grad_norm,
            line.spike
                .map_or(String::new(), |x| format!(" ({x:.1} times the median)")),
            if line.skipped { " (left out)" } else { "" },
        );
        if let (Some(rate), Some(took)) = (line.tokens_per_second, line.seconds) {
            let (took, predicted) = (seconds(took), seconds(line.predicted_seconds));
            let _ = write!(
                about,
                ", {rate:.0} tokens/s, {took} (predicted {predicted})"
            );
        }
        let left = self.pace.left(Instant::now(), line.step, line.steps);
        if let Some(view) = self.view() {
            view.update(|seen| shown(seen, line, left, self.cuda));
            // What stays on the terminal: as many lines as a run without a view prints.
            let twentieth = (20 * line.step).checked_div(line.steps).unwrap_or(20);
            if twentieth > self.said || self.past.is_empty() {
                self.said = twentieth;
                self.past
                    .push(format!("step {}/{} {about}", line.step, line.steps));
            }
            return self.tell_stopping();
        }
        if let Some(left) = left {
            let _ = write!(about, ", {} left", duration(left));
        }
        self.tell_past();
        self.tell_stopping();
        self.advance("step", line.step, line.steps, about);
    }

    fn replanned(&mut self, replan: &Replan) {
        self.text(&replan.line());
        self.event(json!(replan));
    }

    fn evaluated(&mut self, step: u64, evaluation: Evaluation) {
        let Evaluation { loss, accuracy, f1 } = evaluation;
        self.text(&format!(
            "after step {step}: evaluation loss {loss:.4}, {}",
            right(accuracy, f1)
        ));
        let mut event = json!({
            "event": "evaluation",
            "step": step,
            "eval_loss": loss,
            "eval_accuracy": accuracy,
        });
        if let Some(f1) = f1 {
            event["eval_f1"] = json!(f1);
        }
        self.event(event);
    }

    fn answering(&mut self, done: usize, of: usize) {
        if let Some(view) = self.view() {
            let doing = (done < of).then(|| format!("answering prompts {done}/{of}"));
            return view.update(|seen| seen.doing = doing);
        }
        // A run's own bar, if it is there, stays as it is.
        if self.bar.is_none() {
            let waiting = &mut self.waiting;
            let waiting = waiting.get_or_insert_with(|| Waiting::begin("answering prompts"));
            waiting.at(done as u64, of as u64);
        }
    }

    fn answered(&mut self, when: When, share: f64, prompts: usize) {
        self.clear();
        self.text(&format!(
            "exact match {}: {:.1}% of {prompts} prompts",
            when.name(),
            100.0 * share
        ));
        self.event(json!({
            "event": "answers", "when": when.name(), "exact_match": share, "prompts": prompts
        }));
    }

    fn saved(&mut self, step: u64, path: &Path) {
        self.watch.kept.saved(step);
        self.text(&format!("checkpoint {}", path.display()));
        self.event(json!({ "event": "checkpoint", "path": path.to_string_lossy() }));
    }
}

/// What the view shows of a step.
fn shown(seen: &mut Seen, line: &StepLine, left: Option<Duration>, cuda: bool) {
    seen.doing = None;
    (seen.step, seen.steps) = (line.step, line.steps);
    (seen.loss, seen.norm, seen.learning_rate) = (line.loss, line.grad_norm, line.learning_rate);
    (seen.tokens_per_second, seen.seconds) = (line.tokens_per_second, line.seconds);
    (seen.predicted, seen.left) = (line.predicted_seconds, left);
    seen.skipped += u64::from(line.skipped);
    seen.spikes += u64::from(line.spike.is_some());
    seen.add_loss(line.step, line.loss);
    let took = line.seconds.unwrap_or(f64::INFINITY);
    let lanes = line.lanes.iter();
    seen.lanes = lanes
        .map(|(kind, busy)| (lane_of(*kind, cuda), busy / took))
        .collect();
}

/// What an evaluation got right: tokens, or documents where there are classes.
pub(crate) fn right(accuracy: f64, f1: Option<f64>) -> String {
    let share = 100.0 * accuracy;
    match f1 {
        None => format!("token accuracy {share:.1}%"),
        Some(f1) => format!("accuracy {share:.1}%, F1 {f1:.3}"),
    }
}
