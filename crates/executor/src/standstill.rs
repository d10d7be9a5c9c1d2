//! Who waits for whom, told when a run stands still.

use lowtide_planner::Lane;
use lowtide_planner::plan::LANES;

use crate::bind::Engine;
use crate::shared::{LaneState, Shared, lock};

impl<E: Engine> Shared<E> {
    /// Who waits for whom, starting from the lane that has waited for the others' sake longest.
    pub fn chain(&self) -> String {
        let states: Vec<LaneState> = self.states.iter().map(|s| lock(s).clone()).collect();
        let start = (0..LANES).find(|&l| matches!(states[l], LaneState::Waiting { .. }));
        let running = || {
            (0..LANES)
                .filter_map(|l| match &states[l] {
                    LaneState::Running { part, task } => Some(format!(
                        "{} runs {}",
                        Lane::ALL[l],
                        self.label(*part, *task)
                    )),
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
        let mut seen = [false; LANES];
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
                        Lane::ALL[lane],
                        Lane::ALL[*other],
                        self.progress.count(*other)
                    ));
                    lane = *other;
                }
                LaneState::Running { part, task } => {
                    text.push_str(&format!(
                        "{} is still running {}",
                        Lane::ALL[lane],
                        self.label(*part, *task)
                    ));
                    return text;
                }
                LaneState::Idle => {
                    text.push_str(&format!("{} has nothing more to do", Lane::ALL[lane]));
                    return text;
                }
            }
        }
    }
}
