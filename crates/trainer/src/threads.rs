//! How many threads compute on the host, and where they are.

use lowtide_config::Run;
use lowtide_tiers::numa;

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
