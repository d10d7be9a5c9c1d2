//! The thread of a lane.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use lowtide_device::Queue;
use lowtide_planner::{Lane, LaneKind, PerLane};

use crate::bind::Engine;
use crate::disk_lane;
use crate::parts::Submission;
use crate::shared::{LaneState, Shared, lock, threads};

/// One lane's thread: takes parts in order, runs its tasks of each in order.
pub(crate) fn work<E: Engine>(
    shared: &Shared<E>,
    lane: Lane,
    receiver: &Receiver<Arc<Submission<E::Step>>>,
) {
    if lane.kind == LaneKind::Disk {
        return disk_lane::work(shared, lane, receiver);
    }
    let n = shared.options.threads;
    let own = match (lane, &shared.streams) {
        (_, Some(streams)) if streams.is_stream(lane) => Ok(None),
        // Beside a GPU updates take every core: what submits to its streams and serves I/O goes first.
        (Lane::HOST, streams) => {
            // Ranks of one host have cores of their own.
            let first = shared.options.threads_before;
            Queue::spread(lane.name(), n, first, streams.is_some()).map(Some)
        }
        (Lane::GPU, _) => Queue::start(lane.name(), n).map(Some),
        _ => Queue::start(lane.name(), 1).map(Some),
    };
    let own = match own {
        Ok(own) => own,
        Err(e) => return shared.fail(threads(lane, n, &e)),
    };
    let queue = own
        .as_ref()
        .or_else(|| shared.streams.as_ref().and_then(|s| s.queue(lane)))
        .expect("a lane has threads or a stream");
    let mut waited = PerLane::default();
    for s in receiver {
        let seam = shared.seam(&s);
        for &task in &shared.tables[s.part].lanes[lane] {
            for (other, count) in shared.needs(&s, task, seam) {
                if waited[other] >= count {
                    continue;
                }
                *lock(&shared.states[lane]) = LaneState::Waiting {
                    part: s.part,
                    task,
                    lane: other,
                    count,
                };
                match shared.await_need(lane, (other, count), &mut waited) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(source) => return shared.fail(shared.lost(other, source)),
                }
            }
            if !shared.pass(&s, task) || shared.failed() {
                return;
            }
            *lock(&shared.states[lane]) = LaneState::Running { part: s.part, task };
            if let Err(error) = shared.run(queue, &s, task) {
                shared.fail(error);
                return;
            }
        }
        *lock(&shared.states[lane]) = LaneState::Idle;
    }
}
