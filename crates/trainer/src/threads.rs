//! How many threads compute on the host, and where they are.

use lowtide_config::Run;
use lowtide_tiers::numa;

/// Threads of a run's lanes that compute on the host: the run's own number, or [`usual_threads`].
#[must_use]
pub fn threads_of(run: &Run, gpu: bool) -> usize {
    run.threads
        .map_or_else(|| usual_threads(gpu), |n| n as usize)
}

/// All cores; beside a GPU, from eight cores on, two less: they submit to its streams and serve
/// I/O while updates run, which memory feeds with fewer threads than there are cores.
#[must_use]
pub fn usual_threads(gpu: bool) -> usize {
    leave(
        std::thread::available_parallelism().map_or(1, usize::from),
        gpu,
    )
}

fn leave(cores: usize, gpu: bool) -> usize {
    if gpu && cores >= 8 { cores - 2 } else { cores }
}

/// One line for people: how many threads update, and where they and their memory are.
#[must_use]
pub fn host_note(run: &Run, gpu: bool) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads_of(run, gpu);
    let why = match (run.threads, cores.saturating_sub(threads)) {
        (Some(_), _) => "as the run says".to_owned(),
        (None, 0) => format!("all of {cores} cores"),
        (None, left) => format!("{left} of {cores} cores left for submission and I/O"),
    };
    let memory = match numa::nodes().len() {
        0 | 1 => "one NUMA node".to_owned(),
        n => format!("spread over {n} NUMA nodes, memory on them in turn"),
    };
    format!("host: {threads} threads ({why}); {memory}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_left_beside_a_gpu_where_there_are_enough() {
        assert_eq!([2, 7, 8, 16].map(|c| leave(c, true)), [2, 7, 6, 14]);
        assert_eq!([2, 16].map(|c| leave(c, false)), [2, 16]);
    }
}
