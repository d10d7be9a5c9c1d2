//! Times of the steps of this process.

use std::time::Instant;

use lowtide_executor::Measured;
use lowtide_planner::Lane;

/// Times and sums of the steps of this process.
pub(crate) struct Tally {
    last: Instant,
    last_measured: Measured,
    // Whether a step was under way at `last`: its update then lies between that and the next loss.
    under_way: bool,
    // Seconds of the update that was drained before a pause; they belong to the next lap.
    drained: f64,
    pub times: Vec<f64>,
    pub steps: u64,
    pub tokens: u64,
    pub seconds: f64,
    pub moved: Measured,
    // How many times, steps and what was moved before the plan that runs.
    by_others: (usize, u64, Measured),
    // Whether the next lap is of two plans.
    changed: bool,
}

/// The time between two losses.
pub(crate) struct Lap {
    pub seconds: f64,
    /// Whether it holds a step's whole work.
    pub whole: bool,
    pub ruling_lane: &'static str,
    /// What the lanes did in that time.
    pub lanes: Measured,
}

impl Tally {
    pub fn new(measured: Measured) -> Self {
        Self {
            last: Instant::now(),
            last_measured: measured,
            under_way: false,
            drained: 0.0,
            times: Vec::new(),
            steps: 0,
            tokens: 0,
            seconds: 0.0,
            moved: Measured::default(),
            by_others: (0, 0, Measured::default()),
            changed: false,
        }
    }

    /// From here on another plan runs. The next lap has the last update of the one before in its time.
    pub fn replanned(&mut self) {
        self.by_others = (self.times.len(), self.steps, self.moved);
        self.changed = true;
    }

    /// Times of steps, their number and what was moved by the plan that runs: what its prediction is held against.
    pub fn of_plan(&self) -> (&[f64], u64, Measured) {
        let (times, steps, moved) = &self.by_others;
        (
            &self.times[*times..],
            self.steps - steps,
            self.moved.since(moved),
        )
    }

    fn advance(&mut self, measured: Measured) -> (f64, Measured) {
        let seconds = self.last.elapsed().as_secs_f64();
        let lanes = measured.since(&self.last_measured);
        self.moved = self.moved.plus(&lanes);
        self.seconds += seconds;
        self.last = Instant::now();
        self.last_measured = measured;
        (seconds, lanes)
    }

    /// Takes a step whose loss is known: the time since the step before, and the lane that was busiest. The first
    /// step after a start has no update in its time and is not among `times`.
    pub fn lap(&mut self, measured: Measured) -> Lap {
        let (seconds, lanes) = self.advance(measured);
        let seconds = seconds + std::mem::take(&mut self.drained);
        let whole = std::mem::replace(&mut self.under_way, true);
        if whole {
            self.times.push(seconds);
        }
        if std::mem::take(&mut self.changed) {
            self.by_others = (self.times.len(), self.steps + 1, self.moved);
        }
        Lap {
            seconds,
            whole,
            ruling_lane: ruling(&lanes),
            lanes,
        }
    }

    /// The update under way is done, ahead of a pause.
    pub fn drain(&mut self, measured: Measured) {
        self.drained = self.advance(measured).0;
    }

    /// What happened since the drain was no step.
    pub fn pause(&mut self, measured: Measured) {
        self.last = Instant::now();
        self.last_measured = measured;
    }

    /// The last updates are done.
    pub fn end(&mut self, measured: Measured) {
        self.advance(measured);
    }
}

/// The lane with the most seconds inside tasks.
fn ruling(m: &Measured) -> &'static str {
    Lane::ALL
        .iter()
        .max_by(|a, b| {
            m.lane(**a)
                .busy_seconds
                .total_cmp(&m.lane(**b).busy_seconds)
        })
        .map_or("gpu", |l| l.kind.name())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pause_is_not_counted_and_the_update_before_it_is() {
        let none = Measured::default;
        let wait = |ms| std::thread::sleep(Duration::from_millis(ms));
        let mut tally = Tally::new(none());
        assert!(!tally.lap(none()).whole, "no update is in the first");
        wait(20);
        tally.drain(none());
        wait(300);
        tally.pause(none());
        wait(20);
        let lap = tally.lap(none());
        assert!(lap.whole && lap.seconds >= 0.04, "{}", lap.seconds);
        assert!(lap.seconds < 0.3 && tally.seconds < 0.3, "{}", lap.seconds);
        assert_eq!(tally.times, [lap.seconds]);
        // The drained update counts once.
        assert!(tally.lap(none()).seconds < 0.02);
    }

    /// A plan is held against its own steps: not those before, nor the one whose time has an update by the plan before.
    #[test]
    fn a_lap_of_two_plans_is_of_none() {
        let mut tally = Tally::new(Measured::default());
        let mut measured = Measured::default();
        let mut lap = |tally: &mut Tally, seconds: f64| {
            measured.lanes[Lane::GPU].busy_seconds += seconds;
            tally.lap(measured);
            tally.steps += 1;
            measured
        };
        lap(&mut tally, 1.0);
        let before = lap(&mut tally, 2.0);
        tally.drain(before);
        tally.replanned();
        tally.pause(before);
        assert_eq!(tally.of_plan().1, 0);
        lap(&mut tally, 4.0);
        assert_eq!((tally.of_plan().0.len(), tally.of_plan().1), (0, 0));
        lap(&mut tally, 8.0);
        lap(&mut tally, 8.0);
        let (times, steps, moved) = tally.of_plan();
        assert_eq!((times, steps), (&tally.times[2..], 2));
        assert_eq!(moved.lane(Lane::GPU).busy_seconds, 16.0);
    }
}
