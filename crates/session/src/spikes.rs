//! Steps whose gradient norm is far above those before them.
//!
//! Judged where the norm is made, before its update: every rank makes the same norm of the same parts, so all
//! judge alike, and where a gradient lives does not show. The norms that a step is judged by are saved with the
//! run's state, so that a resumed run judges as one that never stopped.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// When a norm is a spike, and what is done then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpikeRule {
    /// A norm above this many times the median of the norms before it is a spike.
    pub factor: f64,
    /// How many norms before it that median is of, at least 1; until there are as many nothing is a spike.
    pub window: usize,
    /// Whether the step is reported, left out, or ends the run.
    pub action: SpikeAction,
}

/// What is done at a spike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpikeAction {
    /// The outcome says so, and the update is made.
    Warn,
    /// The update is left out. Needs exact clipping: otherwise it may be under way.
    Skip,
    /// The run ends with an error, before the update. Needs exact clipping.
    Stop,
}

/// The norms that the next one is judged by, the newest last.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Norms(VecDeque<f64>);

impl Norms {
    /// Takes the next step's norm; the median before it where it is a spike. A spike counts among the norms of later
    /// ones, so that a change which lasts is none after half a window; what is no number is never a norm.
    pub fn take(&mut self, rule: &SpikeRule, norm: f64) -> Option<f64> {
        if !norm.is_finite() {
            return None;
        }
        let full = self.0.len() >= rule.window;
        let median = full.then(|| self.median());
        self.0.push_back(norm);
        self.keep(rule.window);
        median.filter(|median| norm > rule.factor * median)
    }

    /// The mean of the middle two of an even number.
    fn median(&self) -> f64 {
        let mut sorted: Vec<f64> = self.0.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2])
    }

    fn keep(&mut self, window: usize) {
        let extra = self.0.len().saturating_sub(window);
        self.0.drain(..extra);
    }

    /// Their bits, the newest last.
    pub fn bits(&self) -> Vec<u64> {
        self.0.iter().map(|norm| norm.to_bits()).collect()
    }

    /// Those that [`bits`](Self::bits) gave, as many as the rule asks for.
    pub fn restored(rule: &SpikeRule, bits: &[u64]) -> Self {
        let all = bits.iter().map(|&b| f64::from_bits(b));
        let mut norms = Self(all.filter(|norm| norm.is_finite()).collect());
        norms.keep(rule.window);
        norms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_far_above_the_median_of_a_whole_window() {
        let rule = SpikeRule {
            factor: 3.0,
            window: 4,
            action: SpikeAction::Warn,
        };
        let mut norms = Norms::default();
        // The first four are judged by nothing.
        for norm in [1.0, 100.0, 2.0, 4.0] {
            assert_eq!(norms.take(&rule, norm), None);
        }
        // The median is 3: at three times it is no spike, above it is.
        assert_eq!(norms.clone().take(&rule, 9.0), None);
        assert_eq!(norms.take(&rule, 9.5), Some(3.0));
        assert_eq!(norms.take(&rule, f64::NAN), None);
        // Of 100, 2, 4 and 9.5 it is 6.75, of the spike's own time too.
        assert_eq!(norms.clone().take(&rule, 20.0), None);
        let again = Norms::restored(&rule, &norms.bits());
        assert_eq!(again, norms);
        assert_eq!(norms.take(&rule, 20.5), Some(6.75));
        // What lasts is none: of 2, 4, 9.5 and 20.5, and so on.
        assert_eq!(norms.take(&rule, 20.5), Some(6.75));
        assert_eq!(norms.take(&rule, 20.5), None);
        // A shorter window takes the newest.
        let short = SpikeRule { window: 1, ..rule };
        let mut short_norms = Norms::restored(&short, &norms.bits());
        assert_eq!(short_norms.take(&short, 62.0), Some(20.5));
    }
}
