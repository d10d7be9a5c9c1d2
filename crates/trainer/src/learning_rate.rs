//! The learning rate of each step, as a function of the step alone: nothing to save or restore.

use serde::{Deserialize, Serialize};

/// How the rate goes on after the warmup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Stays at the peak; the least ratio is not used.
    Constant,
    /// Falls in a straight line to the least rate.
    Linear,
    /// Falls along half a cosine to the least rate.
    Cosine,
    // The field's name of it.
    #[expect(clippy::enum_variant_names)]
    /// Stays at the peak, then falls in a straight line over the last `decay_steps` steps.
    WarmupStableDecay {
        /// Steps of the fall, at the end of the run.
        decay_steps: u64,
    },
}

/// A learning-rate schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningRate {
    /// The highest rate.
    pub peak: f64,
    /// Steps of the linear rise to it.
    pub warmup_steps: u64,
    /// The least rate as a share of the peak, reached at the end of the decay.
    pub min_ratio: f64,
    /// What follows the warmup.
    pub decay: Decay,
}

impl LearningRate {
    /// The rate of step `step` of `total`; `step` counts the updates already made, from 0.
    ///
    /// The first step of a warmup of w steps has `peak / w` (not 0, which would waste it) and its
    /// last has `peak`. From step w on the values are those of transformers' schedulers: `peak` at
    /// w, falling towards `peak · min_ratio` at `total`, a step later than the last one made. Past
    /// `total` the rate stays where it is at `total`. A warmup longer than the run is cut short.
    ///
    /// # Panics
    /// When the rate is no number: an update by it would leave nothing of the weights.
    #[must_use]
    pub fn lr(&self, step: u64, total: u64) -> f64 {
        let rate = self.of(step, total);
        assert!(
            rate.is_finite(),
            "{self:?} has rate {rate} at step {step} of {total}"
        );
        rate
    }

    fn of(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * ((step + 1) as f64 / self.warmup_steps as f64);
        }
        let min = self.peak * self.min_ratio;
        // Share of the fall still to go: exactly 1 at its beginning and 0 at its end.
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Linear => between(min, self.peak, to_go(step, self.warmup_steps, total)),
            Decay::Cosine => {
                let done = 1.0 - to_go(step, self.warmup_steps, total);
                let share = match done {
                    1.0 => 0.0, // cos(π) + 1 is 0 in f64 too, but no libm promises it
                    _ => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
                };
                between(min, self.peak, share)
            }
            Decay::WarmupStableDecay { decay_steps } => {
                let from = total.saturating_sub(decay_steps).max(self.warmup_steps);
                between(min, self.peak, to_go(step, from, total))
            }
        }
    }
}

/// 1 up to `from`, 0 at `total` and after, a straight line between.
fn to_go(step: u64, from: u64, total: u64) -> f64 {
    if step >= total {
        0.0
    } else if step <= from {
        1.0
    } else {
        (total - step) as f64 / (total - from) as f64
    }
}

/// `low` at 0 and `high` at 1, both exact.
fn between(low: f64, high: f64, share: f64) -> f64 {
    low * (1.0 - share) + high * share
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEAK: f64 = 3e-4;

    #[track_caller]
    fn check(decay: Decay, warmup_steps: u64, min_ratio: f64, total: u64, want: &[(u64, f64)]) {
        let schedule = LearningRate {
            peak: PEAK,
            warmup_steps,
            min_ratio,
            decay,
        };
        for &(step, ratio) in want {
            let (got, want) = (schedule.lr(step, total), PEAK * ratio);
            let near = (got - want).abs() <= 1e-15 * PEAK;
            assert!(near, "{decay:?} step {step}: {got:e}, want {want:e}");
        }
    }

    /// Whatever the lengths of the parts are, one of them nothing or longer than the run.
    #[test]
    fn every_rate_is_between_none_and_the_peak() {
        for total in 0..7 {
            for warmup_steps in 0..9 {
                let decays = (0..9).map(|decay_steps| Decay::WarmupStableDecay { decay_steps });
                for decay in [Decay::Constant, Decay::Linear, Decay::Cosine]
                    .into_iter()
                    .chain(decays)
                {
                    let schedule = LearningRate {
                        peak: PEAK,
                        warmup_steps,
                        min_ratio: 0.0,
                        decay,
                    };
                    for step in 0..9 {
                        let rate = schedule.lr(step, total);
                        assert!(
                            (0.0..=PEAK).contains(&rate),
                            "{schedule:?} {step} of {total}: {rate}"
                        );
                    }
                }
            }
        }
        // A decay of no steps is none.
        check(
            Decay::WarmupStableDecay { decay_steps: 0 },
            1,
            0.0,
            4,
            &[(1, 1.0), (3, 1.0)],
        );
    }

    #[test]
    fn schedules_follow_their_tables() {
        let warmup = [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0)];
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            check(decay, 4, 0.1, 12, &warmup);
        }
        check(
            Decay::Constant,
            4,
            0.1,
            12,
            &[(5, 1.0), (12, 1.0), (99, 1.0)],
        );
        check(
            Decay::Linear,
            4,
            0.1,
            12,
            &[(6, 0.775), (8, 0.55), (11, 0.2125), (12, 0.1)],
        );
        let (c6, c11) = (0.853_553_390_593_273_8, 0.038_060_233_744_356_63);
        let cosine = |share: f64| 0.1 + 0.9 * share;
        check(
            Decay::Cosine,
            4,
            0.1,
            12,
            &[
                (6, cosine(c6)),
                (8, 0.55),
                (11, cosine(c11)),
                (12, 0.1),
                (40, 0.1),
            ],
        );
        let wsd = Decay::WarmupStableDecay { decay_steps: 4 };
        let table = [
            (0, 0.5),
            (1, 1.0),
            (2, 1.0),
            (8, 1.0),
            (9, 0.775),
            (10, 0.55),
            (11, 0.325),
            (12, 0.1),
        ];
        check(wsd, 2, 0.1, 12, &table);
    }

    #[test]
    fn the_ends_are_exact() {
        for min_ratio in [0.0, 0.1, 1.0 / 3.0, 1.0] {
            for decay in [
                Decay::Linear,
                Decay::Cosine,
                Decay::WarmupStableDecay { decay_steps: 7 },
            ] {
                for warmup_steps in [0, 1, 13] {
                    let s = LearningRate {
                        peak: PEAK,
                        warmup_steps,
                        min_ratio,
                        decay,
                    };
                    assert_eq!(s.lr(warmup_steps, 100).to_bits(), PEAK.to_bits());
                    assert_eq!(s.lr(100, 100).to_bits(), (PEAK * min_ratio).to_bits());
                    if warmup_steps > 0 {
                        assert_eq!(s.lr(warmup_steps - 1, 100).to_bits(), PEAK.to_bits());
                    }
                }
            }
        }
    }

    /// Values of transformers' `get_cosine_schedule_with_warmup(warmup 10, training 100)`.
    #[test]
    fn cosine_after_the_warmup_is_that_of_transformers() {
        let want = [
            (10, 1.0),
            (25, 0.933_012_701_892_219_3),
            (55, 0.5),
            (99, 0.000_304_586_490_452_119),
        ];
        check(Decay::Cosine, 10, 0.0, 100, &want);
    }

    #[test]
    fn odd_lengths_do_not_divide_by_zero() {
        for (warmup, total) in [(0, 0), (0, 1), (5, 5), (9, 3), (1, 1)] {
            let decay = Decay::WarmupStableDecay { decay_steps: 99 };
            for decay in [Decay::Linear, Decay::Cosine, decay] {
                let s = LearningRate {
                    peak: 1.0,
                    warmup_steps: warmup,
                    min_ratio: 0.5,
                    decay,
                };
                assert!((0..12).all(|step| (0.0..=1.0).contains(&s.lr(step, total))));
            }
        }
    }

    #[test]
    fn the_rate_never_rises_after_the_warmup() {
        for decay in [
            Decay::Linear,
            Decay::Cosine,
            Decay::WarmupStableDecay { decay_steps: 30 },
        ] {
            let s = LearningRate {
                peak: 1.0,
                warmup_steps: 10,
                min_ratio: 0.0,
                decay,
            };
            let rates: Vec<f64> = (10..=100).map(|step| s.lr(step, 100)).collect();
            assert!(rates.windows(2).all(|w| w[1] <= w[0]), "{decay:?}");
        }
    }
}
