//! Sums over the steps of a run.

use serde::{Deserialize, Serialize};

/// How many of the last steps' losses a run remembers, for their mean.
const LAST: usize = 10;

/// Sums over a whole run, whichever process made its steps: saved with its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Seconds of the steps, evaluations and checkpoints not counted.
    pub seconds: f64,
    /// Real tokens that these seconds are for. A process that dies takes its times with it.
    pub timed_tokens: u64,
    /// Bytes written to the drives of `budget.disk`: steps, evaluations, and what each start filled them with.
    pub disk_written: u64,
    /// Bits of the loss of the first evaluation on the run's evaluation data, if one was made.
    pub eval_loss_first: Option<u64>,
    /// After which step it was made; 0, but where the data changed or came later.
    #[serde(skip_serializing_if = "is_zero")]
    pub eval_step_first: u64,
    /// Hash of its data and settings. States of earlier versions do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_data_first: Option<String>,
    /// Hash of the prompts that were answered before training. States of earlier versions do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers_first: Option<String>,
    /// Bits of the share of its tokens whose label was the most likely one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_accuracy_first: Option<u64>,
    /// The last steps, the newest last: which, and the bits of its loss.
    pub last_losses: Vec<(u64, u64)>,
    /// Steps whose update was left out, and steps whose norm was a spike, updated or not.
    #[serde(skip_serializing_if = "Odd::none")]
    pub odd: Odd,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Steps that were not as others are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Odd {
    /// Whose update was left out.
    pub skipped: u64,
    /// Whose norm was far above those before.
    pub spikes: u64,
    /// The last one that was counted.
    last: u64,
}

impl Odd {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn none(&self) -> bool {
        *self == Self::default()
    }

    /// What became of a step is known. One that is counted already is left out.
    pub fn count(&mut self, step: u64, skipped: bool, spike: bool) {
        if (skipped || spike) && step > self.last {
            self.skipped += u64::from(skipped);
            self.spikes += u64::from(spike);
            self.last = step;
        }
    }
}

impl Totals {
    /// Takes the loss of a step. It is ignored if that step or a later one is known already, and if it is no number,
    /// because its step was skipped.
    pub fn loss(&mut self, step: u64, bits: u64) {
        let known = self.last_losses.last().is_some_and(|last| last.0 >= step);
        if known || !f64::from_bits(bits).is_finite() {
            return;
        }
        self.last_losses.push((step, bits));
        let extra = self.last_losses.len().saturating_sub(LAST);
        self.last_losses.drain(..extra);
    }

    /// Mean loss of the last steps, up to ten; `None` before the first.
    #[must_use]
    pub fn mean_loss(&self) -> Option<f64> {
        let losses = self.last_losses.iter().map(|l| f64::from_bits(l.1));
        let n = self.last_losses.len();
        (n > 0).then(|| losses.sum::<f64>() / n as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_of_the_last_ten_losses_each_counted_once() {
        let mut totals = Totals::default();
        assert_eq!(totals.mean_loss(), None);
        for step in 1..=12u64 {
            totals.loss(step, (step as f64).to_bits());
        }
        // As after a resume, when the journal repeats steps that are known.
        totals.loss(11, 99f64.to_bits());
        totals.loss(12, 99f64.to_bits());
        assert_eq!(totals.mean_loss(), Some(7.5));
        // A journal repeats a step that was left out.
        for (step, skipped, spike) in [
            (3, true, false),
            (5, true, true),
            (5, true, false),
            (6, false, false),
            (7, false, true),
        ] {
            totals.odd.count(step, skipped, spike);
        }
        assert_eq!((totals.odd.skipped, totals.odd.spikes), (2, 2));
        let text = serde_json::to_string(&totals).unwrap();
        assert_eq!(serde_json::from_str::<Totals>(&text).unwrap(), totals);
        // A state of before there were totals.
        assert_eq!(
            serde_json::from_str::<Totals>("{}").unwrap(),
            Totals::default()
        );
    }
}
