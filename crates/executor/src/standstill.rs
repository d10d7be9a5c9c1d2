//! When a run stands still: which lane waits for which, as text.

use std::time::{Duration, Instant};

use lowtide_planner::{Lane, PerLane};

use crate::bind::Engine;
use crate::shared::{LaneState, Shared, lock};

/// The most that passes between two looks at lanes that somebody waits for, on a busy machine. What is more is time in
/// which this process was stopped, and its lanes with it.
const LOOK: Duration = Duration::from_secs(2);

/// For how long lanes were seen to complete nothing.
pub(crate) struct Still {
    /// Tasks complete at the last look.
    progress: u64,
    at: Instant,
    lasts: Duration,
}

impl Still {
    /// Lanes that have just got on.
    pub fn new(progress: u64, at: Instant) -> Self {
        Self {
            progress,
            at,
            lasts: Duration::ZERO,
        }
    }

    /// Looks again. For how long nothing was completed.
    pub fn look(&mut self, progress: u64, now: Instant) -> Duration {
        let step = now.saturating_duration_since(self.at).min(LOOK);
        let lasts = match progress == self.progress {
            true => self.lasts + step,
            false => Duration::ZERO,
        };
        *self = Self {
            progress,
            at: now,
            lasts,
        };
        lasts
    }
}

impl<E: Engine> Shared<E> {
    /// Who waits for whom, starting from the lane that has waited for the others' sake longest.
    pub fn chain(&self) -> String {
        let states = PerLane::of(|l| lock(&self.states[l]).clone());
        let start = Lane::ALL.into_iter().find(|&l| {
            matches!(
                states[l],
                LaneState::Waiting { .. } | LaneState::Held { .. }
            )
        });
        let running = || {
            Lane::ALL
                .into_iter()
                .filter_map(|l| match &states[l] {
                    LaneState::Running { part, task } => {
                        Some(format!("{} runs {}", l, self.label(*part, *task)))
                    }
                    _ => None,
                })
                .collect::<Vec<_>>()
                .join("; ")
        };
        let Some(mut lane) = start else {
            let text = running();
            return if text.is_empty() {
                "every lane is idle".to_owned()
            } else {
                text
            };
        };
        let mut text = String::new();
        let mut seen = PerLane::default();
        loop {
            if std::mem::replace(&mut seen[lane], true) {
                text.push_str(", which closes a circle");
                return text;
            }
            match &states[lane] {
                LaneState::Waiting {
                    part,
                    task,
                    lane: other,
                    count,
                } => {
                    let label = self.label(*part, *task);
                    text.push_str(&format!(
                        "{} waits with {label} until {} has completed {count} tasks (it has {}); ",
                        lane,
                        *other,
                        self.progress.count(*other)
                    ));
                    lane = *other;
                }
                LaneState::Held { part, task } => {
                    text.push_str(&format!(
                        "{} waits with {} until what it writes was read for a checkpoint",
                        lane,
                        self.label(*part, *task)
                    ));
                    return text;
                }
                LaneState::Running { part, task } => {
                    text.push_str(&format!(
                        "{} is still running {}",
                        lane,
                        self.label(*part, *task)
                    ));
                    return text;
                }
                LaneState::Idle => {
                    text.push_str(&format!("{} has nothing more to do", lane));
                    return text;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits of a process that was stopped (Ctrl-Z, a debugger, a queue) for an hour.
    #[test]
    fn time_in_which_the_process_was_stopped_is_no_standstill() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut still = Still::new(7, begin);
        assert_eq!(still.look(7, at(200)), Duration::from_millis(200));
        assert_eq!(still.look(7, at(400)), Duration::from_millis(400));
        assert_eq!(still.look(8, at(600)), Duration::ZERO);
        let hour = 3_600_000;
        assert_eq!(still.look(8, at(hour)), LOOK);
        // From there on it is watched as before.
        for i in 1..=1500 {
            let lasts = still.look(8, at(hour + 200 * i));
            assert_eq!(lasts, LOOK + Duration::from_millis(200 * i));
        }
    }
}
