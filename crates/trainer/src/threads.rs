//! How many threads compute on the host, and where they are.

use std::sync::mpsc;

use lowtide_config::Run;
use lowtide_tiers::numa;

use crate::error::TrainError;

/// Threads of a run's lanes that compute on the host: the run's own number, or [`usual_threads`].
#[must_use]
pub fn threads_of(run: &Run) -> usize {
    run.threads.map_or_else(usual_threads, |n| n as usize)
}

/// All cores. Beside a GPU too: what submits to its streams and serves I/O takes little of them, and
/// updates give way to it.
#[must_use]
pub fn usual_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Pools of a run that each have as many threads as the run says: the host's and the device's lane, and
/// one that fills weights and reads data. A stream of data has one more.
const POOLS: usize = 3;

/// Tries whether the system lets as many threads start as a run asks for, where that is more than there
/// are cores. They end at once.
///
/// # Errors
/// [`TrainError::Threads`].
pub fn check_threads(run: &Run) -> Result<(), TrainError> {
    let asked = threads_of(run);
    if asked <= usual_threads() {
        return Ok(());
    }
    // Each waits until the last was started.
    let mut waiting = Vec::new();
    let pools = POOLS + usize::from(run.data.streaming);
    for _ in 0..pools * asked {
        let (open, closed) = mpsc::channel::<()>();
        let started = std::thread::Builder::new().spawn(move || {
            let _ = closed.recv();
        });
        match started {
            Ok(thread) => waiting.push((open, thread)),
            Err(e) => {
                return Err(TrainError::Threads {
                    asked,
                    started: waiting.len() / pools,
                    why: e.to_string(),
                });
            }
        }
    }
    // Gone before the run's own threads start.
    for (open, thread) in waiting {
        drop(open);
        let _ = thread.join();
    }
    Ok(())
}

/// One line for people: how many threads update, and where they and their memory are.
#[must_use]
pub fn host_note(run: &Run, gpu: bool) -> String {
    let threads = threads_of(run);
    let why = match run.threads {
        Some(_) => "as the run says",
        None => "all cores",
    };
    let way = if gpu {
        ", which give way to submission and I/O"
    } else {
        ""
    };
    let memory = match numa::nodes().len() {
        0 | 1 => "one NUMA node".to_owned(),
        n => format!("spread over {n} NUMA nodes, memory on them in turn"),
    };
    format!("host: {threads} threads ({why}){way}; {memory}")
}
