//! Which cores are near which memory, where a machine has several such nodes. On one node nothing is done: neither
//! threads nor pages have anywhere better to be.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// By NUMA node, the cores that this process may use; nodes without any are left out. One entry,
/// or none where the system does not say: nothing to choose.
pub fn nodes() -> &'static [Vec<usize>] {
    static NODES: OnceLock<Vec<Vec<usize>>> = OnceLock::new();
    NODES.get_or_init(|| {
        let allowed = sched_getaffinity(None).ok();
        let may = |cpu: usize| allowed.is_none_or(|set| cpu < CpuSet::MAX_CPU && set.is_set(cpu));
        under(Path::new("/sys/devices/system/node"), may)
    })
}

fn under(dir: &Path, may: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
    let mut nodes = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("node"));
        if let Some(Ok(number)) = number.map(str::parse::<u32>)
            && let Ok(list) = fs::read_to_string(entry.path().join("cpulist"))
        {
            nodes.push((number, cpus(&list)));
        }
    }
    nodes.sort();
    let mine = nodes.into_iter().map(|(_, mut cpus)| {
        cpus.retain(|&cpu| may(cpu));
        cpus
    });
    mine.filter(|cpus| !cpus.is_empty()).collect()
}

/// `0-3,8,10-11`.
fn cpus(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// The core of thread `i` of several that share all nodes' work: nodes alternate, so that every node's memory is used
/// by the same number of threads. `None` on one node.
#[must_use]
pub fn core_of(i: usize) -> Option<usize> {
    turn(nodes(), i)
}

fn turn(nodes: &[Vec<usize>], i: usize) -> Option<usize> {
    if nodes.len() < 2 {
        return None;
    }
    let node = &nodes[i % nodes.len()];
    Some(node[i / nodes.len() % node.len()])
}

/// Keeps the calling thread on these cores. Where the system refuses, it stays where it may be.
pub fn stay_on(cores: &[usize]) {
    let mut set = CpuSet::new();
    for &cpu in cores.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    let _ = sched_setaffinity(None, &set);
}

/// From now on the calling thread gives way to threads of the usual priority: one that wakes gets its
/// core at once. So updates may take every core, and those that submit to a GPU and serve I/O still run
/// when they must. Where the system refuses, nothing changes.
pub fn give_way() {
    use rustix::process::{getpriority_process, setpriority_process};
    // Without a process's number Linux means the calling thread, not its process.
    let now = getpriority_process(None).unwrap_or(0);
    let _ = setpriority_process(None, now.max(NICE));
}

/// A tenth of the usual weight.
const NICE: i32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_in_order_with_the_cores_that_are_ours() {
        let dir = tempfile::tempdir().unwrap();
        for (node, list) in [("node1", "4-5,7\n"), ("node0", "0-3\n"), ("node2", "6\n")] {
            fs::create_dir(dir.path().join(node)).unwrap();
            fs::write(dir.path().join(node).join("cpulist"), list).unwrap();
        }
        fs::create_dir(dir.path().join("power")).unwrap();
        let all = under(dir.path(), |_| true);
        assert_eq!(all, [vec![0, 1, 2, 3], vec![4, 5, 7], vec![6]]);
        let some = under(dir.path(), |cpu| cpu % 2 == 1);
        assert_eq!(some, [vec![1, 3], vec![5, 7]]);
        assert_eq!(
            under(&dir.path().join("none"), |_| true),
            Vec::<Vec<usize>>::new()
        );
        // Threads go round the nodes, then round each node's cores.
        let turns: Vec<_> = (0..5).map(|i| turn(&some, i)).collect();
        assert_eq!(turns, [1, 5, 3, 7, 1].map(Some));
        assert_eq!(turn(&all[..1], 3), None);
    }

    #[test]
    fn a_thread_that_gives_way_does_so_alone() {
        let mine = || rustix::process::getpriority_process(None).unwrap();
        let before = mine();
        let its = std::thread::spawn(move || {
            give_way();
            mine()
        });
        assert_eq!(its.join().unwrap(), NICE.max(before));
        assert_eq!(mine(), before);
    }

    #[test]
    fn a_thread_stays_where_it_is_put() {
        let Some(&cpu) = nodes().first().and_then(|n| n.last()) else {
            return; // the system does not say
        };
        std::thread::spawn(move || {
            stay_on(&[cpu]);
            let set = sched_getaffinity(None).unwrap();
            assert!(set.is_set(cpu) && set.count() == 1, "{set:?}");
        })
        .join()
        .unwrap();
    }
}
