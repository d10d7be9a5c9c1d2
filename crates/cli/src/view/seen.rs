//! What of a run is shown.

use std::time::Duration;

use lowtide_report::text::harmless;

/// Points of the curve that are kept; of more every second one goes.
const POINTS: usize = 2048;
/// Notes that are kept.
const NOTES: usize = 64;

/// What the view shows of a run.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Name of the model.
    pub title: String,
    /// What takes a while and is no step.
    pub doing: Option<String>,
    /// The last step, of how many.
    pub step: u64,
    pub steps: u64,
    /// Of the last step, as the metrics file has it.
    pub loss: f64,
    pub norm: f64,
    pub learning_rate: f64,
    pub tokens_per_second: Option<f64>,
    pub seconds: Option<f64>,
    /// A step's seconds by the plan.
    pub predicted: f64,
    /// Estimated time to the end of the run.
    pub left: Option<Duration>,
    /// Losses by step.
    pub losses: Vec<(f64, f64)>,
    /// How many steps a point stands for.
    pub each: u64,
    /// Each lane's share of the last step inside tasks.
    pub lanes: Vec<(&'static str, f64)>,
    /// Bytes of each tier: planned, and allowed.
    pub tiers: Vec<(&'static str, u64, u64)>,
    /// Steps whose update was left out, and whose norm was a spike.
    pub skipped: u64,
    pub spikes: u64,
    /// What was said, the newest last; nothing that a terminal obeys.
    pub notes: Vec<String>,
}

impl Seen {
    /// A step's loss.
    pub fn add_loss(&mut self, step: u64, loss: f64) {
        self.each = self.each.max(1);
        if !loss.is_finite() || !step.is_multiple_of(self.each) {
            return;
        }
        self.losses.push((step as f64, loss));
        if self.losses.len() > POINTS {
            self.each *= 2;
            let each = self.each;
            self.losses.retain(|p| (p.0 as u64).is_multiple_of(each));
        }
    }

    /// Adds a note; only the newest few are kept.
    pub fn note(&mut self, text: &str) {
        self.notes.extend(text.lines().map(harmless));
        let extra = self.notes.len().saturating_sub(NOTES);
        self.notes.drain(..extra);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_has_a_bounded_curve_and_few_notes() {
        let mut seen = Seen::default();
        for step in 1..=100_000 {
            seen.add_loss(step, step as f64);
            seen.note("a\n\u{1b}[2J");
        }
        assert!((1000..=POINTS).contains(&seen.losses.len()));
        assert_eq!(seen.losses.last(), Some(&(99_968.0, 99_968.0)));
        assert_eq!(seen.notes.len(), NOTES);
        assert!(!seen.notes.concat().contains('\u{1b}'));
        seen.add_loss(100_032, f64::NAN);
        assert!(seen.losses.iter().all(|p| p.1.is_finite()));
    }
}
