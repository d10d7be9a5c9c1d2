//! What came of a run.

use std::path::PathBuf;

use lowtide_planner::Tier;
use lowtide_report::outcome::{Part, TrainReport};
use lowtide_tiers::process;

use super::{Fit, Saves};
use crate::launch::held_by_others;
use crate::output::METRICS;
use crate::planning::Planned;
use crate::report::{compare, median, moved_bytes};
use crate::tally::Tally;

/// What the end of a run adds to its report.
#[derive(Default)]
pub(super) struct Ends {
    /// Updates that were made before this process.
    pub(super) after_step: u64,
    pub(super) eval_loss_last: Option<f64>,
    pub(super) eval_accuracy_last: Option<f64>,
    pub(super) exact_match_after: Option<f64>,
    pub(super) output: Option<PathBuf>,
    pub(super) trace: Option<PathBuf>,
    pub(super) stopped: bool,
}

impl Fit<'_> {
    pub(super) fn report(&self, planned: &Planned, tally: &Tally, ends: &Ends) -> TrainReport {
        let &Tally {
            steps,
            tokens,
            seconds,
            ref moved,
            ..
        } = tally;
        let (times, by_plan, moved_by_plan) = tally.of_plan();
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        let totals = &self.state.totals;
        let prediction = &planned.plan.prediction;
        let (lanes, gpu_waits) = compare(planned, &moved_by_plan, by_plan.max(1) as f64);
        let moved_bytes = moved_bytes(|lane| moved.lane(lane).bytes);
        let memory = planned.memory();
        let tiers = [memory.device, memory.host, memory.disk];
        let tiers = Tier::ALL.iter().zip(tiers);
        let planned_bytes = tiers
            .map(|(tier, held)| (tier.name().to_owned(), held.planned_bytes))
            .collect();
        TrainReport {
            steps: self.state.step,
            tokens: self.state.tokens,
            loss_first: self.state.loss_first,
            loss_last: totals.mean_loss(),
            loss_last_steps: totals.last_losses.len() as u64,
            eval_loss_first: totals.eval_loss_first.map(f64::from_bits),
            eval_step_first: totals.eval_step_first,
            eval_loss_last: ends.eval_loss_last,
            eval_accuracy_first: totals.eval_accuracy_first.map(f64::from_bits),
            eval_accuracy_last: ends.eval_accuracy_last,
            best: self.best_kept(),
            exact_match_before: self.state.exact_match_before,
            exact_match_after: ends.exact_match_after,
            seconds: totals.seconds,
            timed_tokens: totals.timed_tokens,
            tokens_per_second: (totals.timed_tokens > 0 && totals.seconds > 0.0)
                .then(|| totals.timed_tokens as f64 / totals.seconds),
            skipped: totals.odd.skipped,
            spikes: totals.odd.spikes,
            part: Part {
                after_step: ends.after_step,
                steps,
                tokens,
                seconds,
            },
            step_seconds: median(&times),
            predicted_step_seconds: prediction.step_seconds.0,
            lanes,
            gpu_waits,
            moved_bytes,
            background: self.beside(),
            disk_written: totals.disk_written,
            learning_seconds: self.learning_seconds,
            parameter_bytes: planned.decoder.workload().parameters()
                * planned.plan.precision.size(),
            planned_bytes,
            planned_rss_bytes: planned.resident.planned(&planned.plan, &planned.machine).0,
            start_rss_bytes: planned.resident.start.0,
            // The process may have made another run before this one.
            peak_rss_bytes: process::peak_rss_bytes()
                .filter(|_| self.saves == Saves::All)
                .map(|b| {
                    let others = held_by_others(&planned.device);
                    others.iter().fold(b.0, |sum, held| sum + held.most.0)
                }),
            stopped: ends.stopped,
            unsaved: self.unsaved.clone(),
            compared: self.saves == Saves::Nothing,
            nothing_to_do: false,
            output: ends.output.clone(),
            checkpoint: self.last_checkpoint.clone(),
            metrics: self.output.folder().at(METRICS),
            trace: ends.trace.clone(),
            page: None,
        }
    }
}
