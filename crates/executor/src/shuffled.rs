//! Shuffled lanes: every interleaving that the edges allow, one for each seed, on one thread.

use std::collections::VecDeque;
use std::sync::Arc;

use lowtide_device::Queue;
use lowtide_planner::plan::LANES;

use crate::bind::Engine;
use crate::error::ExecError;
use crate::runner::{LaneState, Shared, Submission, lock};

/// A task of a submitted part.
type Waiting<E> = (Arc<Submission<<E as Engine>::Step>>, u32);

pub(crate) struct Shuffle<E: Engine> {
    shared: Arc<Shared<E>>,
    queue: Queue,
    state: u64,
    /// Each lane's tasks that have not run.
    lanes: [VecDeque<Waiting<E>>; LANES],
}

impl<E: Engine> Shuffle<E> {
    pub fn new(shared: Arc<Shared<E>>, seed: u64) -> Self {
        let queue = Queue::new("shuffled", shared.options.threads);
        Self {
            shared,
            queue,
            state: seed,
            lanes: Default::default(),
        }
    }

    pub fn push(&mut self, s: Arc<Submission<E::Step>>) {
        for (l, lane) in self.shared.tables[s.part as usize].lanes.iter().enumerate() {
            self.lanes[l].extend(lane.iter().map(|&t| (Arc::clone(&s), t)));
        }
    }

    /// SplitMix64.
    fn draw(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// What each lane waits for, for the report that none goes on.
    fn note_states(&self) {
        let shared = &self.shared;
        for (lane, state) in self.lanes.iter().zip(&shared.states) {
            *lock(state) = lane.front().map_or(LaneState::Idle, |&(ref s, task)| {
                let needs = shared.needs(s, task, shared.seam(s));
                needs
                    .into_iter()
                    .find(|&(lane, count)| shared.progress.count(lane) < count)
                    .map_or(LaneState::Idle, |(lane, count)| LaneState::Waiting {
                        part: s.part,
                        task,
                        lane,
                        count,
                    })
            });
        }
    }

    /// Runs ready tasks in random order until every lane has completed `goal` tasks. Each draw
    /// first picks a lane to favour for a while, so that lanes also run far apart.
    pub fn run_until(&mut self, goal: &[u64; LANES]) {
        let shared = Arc::clone(&self.shared);
        let mut favour = (0, 0);
        while (0..LANES).any(|l| shared.progress.count(l) < goal[l]) && !shared.progress.failed() {
            let ready: Vec<usize> = (0..LANES)
                .filter(|&l| {
                    self.lanes[l].front().is_some_and(|(s, t)| {
                        shared
                            .needs(s, *t, shared.seam(s))
                            .iter()
                            .all(|&(lane, count)| shared.progress.count(lane) >= count)
                    })
                })
                .collect();
            if ready.is_empty() {
                self.note_states();
                let chain = shared.chain();
                shared.fail(ExecError::Stuck { seconds: 0, chain });
                return;
            }
            if favour.1 == 0 || !ready.contains(&favour.0) {
                favour = (ready[self.draw(ready.len())], self.draw(12));
            } else {
                favour.1 -= 1;
            }
            let (s, task) = self.lanes[favour.0].pop_front().expect("it is ready");
            let queue = shared.streams.as_ref().and_then(|s| s.queue(favour.0));
            if let Err(error) = shared.run(queue.unwrap_or(&self.queue), &s, task) {
                shared.fail(error);
            }
        }
    }
}
