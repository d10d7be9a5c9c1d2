//! Times and sums over the steps of a run.

use std::time::Instant;

use lowtide_executor::Measured;
use lowtide_planner::Lane;

/// Times and sums of the steps of this process.
pub(crate) struct Tally {
    last: Instant,
    last_measured: Measured,
    // Whether a step was under way at `last`: its update then lies between that and the next loss.
    under_way: bool,
    pub times: Vec<f64>,
    pub losses: Vec<f64>,
    pub tokens: u64,
    pub seconds: f64,
    pub moved: Measured,
}

/// The time between two losses.
pub(crate) struct Lap {
    pub seconds: f64,
    /// Whether it holds a step's whole work.
    pub whole: bool,
    pub ruling_lane: &'static str,
}

impl Tally {
    pub fn new(measured: Measured) -> Self {
        Self {
            last: Instant::now(),
            last_measured: measured,
            under_way: false,
            times: Vec::new(),
            losses: Vec::new(),
            tokens: 0,
            seconds: 0.0,
            moved: Measured::default(),
        }
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

    /// A step's loss is known: the time since the one before, and the lane that was busiest. The
    /// first after a start or a pause has no update in its time, and is not among `times`.
    pub fn lap(&mut self, measured: Measured) -> Lap {
        let (seconds, lanes) = self.advance(measured);
        let whole = std::mem::replace(&mut self.under_way, true);
        if whole {
            self.times.push(seconds);
        }
        Lap {
            seconds,
            whole,
            ruling_lane: ruling(&lanes),
        }
    }

    /// What happened since the last step was no step.
    pub fn pause(&mut self, measured: Measured) {
        self.last = Instant::now();
        self.last_measured = measured;
        self.under_way = false;
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
