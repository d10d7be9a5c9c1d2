//! When a run stands still: which lane waits for which, as text.

use lowtide_planner::{Lane, PerLane};

use crate::bind::Engine;
use crate::shared::{LaneState, Shared, lock};

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
