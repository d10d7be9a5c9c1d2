//! Whether lanes work at the rates that a plan was made with.

use std::collections::VecDeque;

use lowtide_planner::LaneKind;
use lowtide_planner::slowdown::{AS_RATED, Busy, Slowdown};

/// Steps that a judgement is of.
const WINDOW: usize = 20;
/// A lane is off its rate where the median step has it busy longer or shorter by more than this share.
const OFF: f64 = 0.10;
/// Lanes that are busy for a smaller share of a step are not looked at: no plan could win much by them.
const SMALL: f64 = 0.05;
/// Steps from one judgement that asks for another plan to the next.
pub(crate) const EVERY: u64 = 200;
/// Steps behind an interruption that are not counted: the first has a part of its work before that, and on a GPU the
/// times of a part are read one step later.
const UNSETTLED: u32 = 2;

/// Seconds inside tasks by kind of lane, in the order of [`LaneKind::ALL`].
pub(crate) type Lanes = [f64; LaneKind::ALL.len()];

/// The lanes of the last steps, held against what they should be.
#[derive(Debug)]
pub(crate) struct Drift {
    /// A step's seconds at the rates that the plan was last judged by.
    expected: Lanes,
    /// Those of the last steps, with the time of each.
    steps: VecDeque<(Lanes, f64)>,
    unsettled: u32,
    /// No judgement before this step.
    not_before: u64,
}

/// What a judgement found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Off {
    /// How much longer each lane takes than it should; 1 where that is not much.
    pub slowdown: Slowdown,
    /// Seconds of a step as they should be.
    pub expected: Lanes,
    /// The median of those measured.
    pub measured: Lanes,
}

impl Off {
    /// Seconds of the lanes that are off their rates.
    pub fn busy(&self) -> Busy {
        let off = |l: usize| self.slowdown[l].to_bits() != AS_RATED[l].to_bits();
        std::array::from_fn(|l| off(l).then_some(self.measured[l]))
    }
}

impl Drift {
    pub fn new(expected: Lanes) -> Self {
        Self {
            expected,
            steps: VecDeque::new(),
            unsettled: UNSETTLED,
            not_before: 0,
        }
    }

    /// What runs from here on should be busy for so long.
    pub fn expect(&mut self, expected: Lanes) {
        self.expected = expected;
        self.steps.clear();
        self.interrupted();
    }

    /// Something came between two steps, or took from them: the next ones do not count.
    pub fn interrupted(&mut self) {
        self.unsettled = UNSETTLED;
    }

    /// Takes a step that has just ended. Where lanes are off their rates, these are what the next ones are judged by,
    /// and so much later: what was found is found once, whatever comes of it.
    pub fn step(&mut self, step: u64, lanes: Lanes, seconds: f64) -> Option<Off> {
        if self.unsettled > 0 {
            self.unsettled -= 1;
            return None;
        }
        if self.steps.len() == WINDOW {
            self.steps.pop_front();
        }
        self.steps.push_back((lanes, seconds));
        if self.steps.len() < WINDOW || step < self.not_before {
            return None;
        }
        let off = self.off()?;
        self.not_before = step + EVERY;
        self.expect(off.measured);
        Some(off)
    }

    fn off(&self) -> Option<Off> {
        // Of steps of which one stood still the median tells nothing of that.
        let median = |of: &dyn Fn(&(Lanes, f64)) -> f64| {
            let mut all: Vec<f64> = self.steps.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            crate::report::median(&all).unwrap_or(0.0)
        };
        let seconds = median(&|s| s.1);
        let mut off = Off {
            slowdown: AS_RATED,
            expected: self.expected,
            measured: self.expected,
        };
        for lane in 0..off.slowdown.len() {
            let (want, is) = (self.expected[lane], median(&|s| s.0[lane]));
            if want <= 0.0 || is <= 0.0 || want.max(is) < SMALL * seconds {
                continue;
            }
            let times = is / want;
            if times.max(1.0 / times) > 1.0 + OFF {
                (off.slowdown[lane], off.measured[lane]) = (times, is);
            }
        }
        (off.slowdown != AS_RATED).then_some(off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Lanes = [0.5, 0.1, 0.2, 0.8, 0.4, 0.0];

    /// Steps from one on whose lanes take so many times as long as planned; at which something was found.
    fn found(drift: &mut Drift, from: u64, steps: u64, times: impl Fn(u64) -> Lanes) -> Vec<u64> {
        let mut all = Vec::new();
        for step in from..from + steps {
            let times = times(step);
            let lanes = std::array::from_fn(|l| PLAN[l] * times[l]);
            if drift.step(step, lanes, 1.0).is_some() {
                all.push(step);
            }
        }
        all
    }

    /// From -1 to 1, another one each step and lane.
    fn noise(step: u64, lane: u64) -> f64 {
        let x = (step * 6 + lane + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((x ^ x >> 29) % 2001) as f64 / 1000.0 - 1.0
    }

    #[test]
    fn noise_is_no_drift() {
        let mut drift = Drift::new(PLAN);
        let of_9 = |step| std::array::from_fn(|l| 1.0 + 0.09 * noise(step, l as u64));
        assert!(found(&mut drift, 1, 1000, of_9).is_empty());
        // Nor are a few steps that stand still, or nine in twenty that are much too slow.
        let stalls = |step| [if step % 20 < 9 { 8.0 } else { 1.05 }; 6];
        assert!(found(&mut Drift::new(PLAN), 1, 1000, stalls).is_empty());
    }

    #[test]
    fn a_lane_that_is_off_for_a_window_is_found_once() {
        for times in [1.15, 0.85] {
            let mut drift = Drift::new(PLAN);
            let slow = |step: u64| {
                let mut all = [1.0; 6];
                all[3] = if step > 100 { times } else { 1.0 };
                all
            };
            let at = found(&mut drift, 1, 100, slow);
            assert!(at.is_empty(), "before it is off: {at:?}");
            let at = found(&mut drift, 101, 2000, slow);
            assert!(at.len() == 1 && (110..=120).contains(&at[0]), "{at:?}");
        }
    }

    #[test]
    fn what_is_found_says_which_lane_and_by_how_much() {
        let mut drift = Drift::new(PLAN);
        let mut off = None;
        for step in 1..=22 {
            let lanes = [0.5, 0.1 * 1.05, 0.2, 0.8 * 1.5, 0.4 * 0.8, 0.3];
            off = off.or(drift.step(step, lanes, 1.0));
        }
        let off = off.expect("two lanes are");
        assert_eq!(off.expected, PLAN);
        for (slowdown, want) in off.slowdown.iter().zip([1.0, 1.0, 1.0, 1.5, 0.8, 1.0]) {
            assert!((slowdown - want).abs() < 1e-12, "{:?}", off.slowdown);
        }
        assert_eq!(off.measured[..3], PLAN[..3]);
    }

    /// A lane that changes its rate all the time does not change the plan all the time.
    #[test]
    fn a_lane_that_comes_and_goes_is_found_at_most_every_so_many_steps() {
        let mut drift = Drift::new(PLAN);
        let flaps = |step: u64| {
            [if (step / 50).is_multiple_of(2) {
                1.0
            } else {
                2.0
            }; 6]
        };
        let at = found(&mut drift, 1, 2000, flaps);
        assert!(!at.is_empty() && at.len() <= 10, "{at:?}");
        assert!(at.windows(2).all(|w| w[1] - w[0] >= EVERY), "{at:?}");
    }

    #[test]
    fn small_lanes_and_steps_behind_an_interruption_do_not_count() {
        let mut drift = Drift::new([0.5, 0.001, 0.0, 0.0, 0.0, 0.0]);
        for step in 1..=1000 {
            assert_eq!(drift.step(step, [0.5, 0.04, 1.0, 0.0, 0.0, 0.0], 1.0), None);
        }
        let mut drift = Drift::new(PLAN);
        for step in 1..=1000_u64 {
            if step.is_multiple_of(3) {
                drift.interrupted();
            }
            let times = if step % 3 == 2 { 1.0 } else { 3.0 };
            let lanes = PLAN.map(|s| s * times);
            assert_eq!(drift.step(step, lanes, 1.0), None, "{step}");
        }
    }
}
