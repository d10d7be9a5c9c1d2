//! The ranks of a session: each runs the same plan, on its own memory and its own share of every batch.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lowtide_data::Micro;
use lowtide_device::comm::{Comm, CommError, Party, Threads, way};
use lowtide_device::cuda::{Copies, Gpu, NcclComm};
use lowtide_executor::{ExecError, Runner};
use lowtide_planner::Plan;
use lowtide_tiers::Scratch;

use crate::apart::Remote;
use crate::engine::Engine;
use crate::homes::Reach;
use crate::session::{DiskChoice, SessionOptions};
use crate::step::{Place, supervised};

/// The most ranks that train together, as the key `gpus` has it.
pub const RANKS: usize = 16;

/// The devices of a plan of several ranks, and the way between them.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// A GPU for each rank of this process; none: the CPU device.
    pub gpus: Vec<Gpu>,
    /// For each rank of this process its way to the others.
    pub comms: Vec<Arc<dyn Comm>>,
    /// The ranks behind those, where they are in other processes.
    pub there: Vec<Arc<Remote>>,
    /// How many ranks each host has; 0: all are on one.
    pub of_host: usize,
}

impl Group {
    /// Ranks on the CPU device, threads of this process.
    #[must_use]
    pub fn threads(ranks: u32, limit: Duration) -> Self {
        let comms = Threads::group(ranks as usize, limit).into_iter();
        Self {
            gpus: Vec::new(),
            comms: comms.map(|comm| Arc::new(comm) as Arc<dyn Comm>).collect(),
            there: Vec::new(),
            of_host: 0,
        }
    }

    /// The first rank in this process, on a GPU or on the CPU device, and the others in processes of their own,
    /// `of_host` ranks on each host, one host after the other.
    ///
    /// # Errors
    /// NCCL cannot connect them; one of them has ended.
    pub fn processes(
        party: &Arc<Party>,
        gpu: Option<&Gpu>,
        of_host: usize,
    ) -> Result<Self, CommError> {
        Ok(Self {
            gpus: gpu.cloned().into_iter().collect(),
            comms: vec![way(party, gpu)?],
            there: Remote::all(party),
            of_host,
        })
    }

    /// A rank on each of these GPUs: they copy from each other where each reaches the memory of all others, and NCCL
    /// exchanges where one does not, or where `LOWTIDE_EXCHANGE=nccl` asks for it. By both ways the same bytes
    /// arrive. They wait for each other no longer than `limit`.
    ///
    /// # Errors
    /// NCCL is missing, or cannot connect them within the limit; another value of `LOWTIDE_EXCHANGE`; the driver's.
    pub fn cuda(gpus: Vec<Gpu>, limit: Duration) -> Result<Self, CommError> {
        const WAY: &str = "LOWTIDE_EXCHANGE";
        let asked = std::env::var(WAY).unwrap_or_default();
        if !["", "nccl"].contains(&&*asked) {
            return Err(CommError::Way {
                name: WAY,
                value: asked,
            });
        }
        if asked.is_empty()
            && let Some(comms) = Copies::group(&gpus, limit)?
        {
            return Ok(Self::on_gpus(gpus, comms));
        }
        Self::nccl(gpus, limit)
    }

    /// A rank on each of these GPUs, between which NCCL exchanges. They wait for each other no longer than `limit`.
    ///
    /// # Errors
    /// NCCL is missing, or cannot connect them within the limit.
    pub fn nccl(gpus: Vec<Gpu>, limit: Duration) -> Result<Self, CommError> {
        let comms = NcclComm::group(&gpus, limit)?;
        Ok(Self::on_gpus(gpus, comms))
    }

    fn on_gpus<C: Comm + 'static>(gpus: Vec<Gpu>, comms: Vec<C>) -> Self {
        let comms = comms.into_iter();
        Self {
            gpus,
            comms: comms.map(|comm| Arc::new(comm) as Arc<dyn Comm>).collect(),
            there: Vec::new(),
            of_host: 0,
        }
    }
}

impl Group {
    /// How many of so many ranks are on the first one's host.
    #[must_use]
    pub fn near(&self, ranks: usize) -> usize {
        match self.of_host {
            0 => ranks,
            of_host => of_host.min(ranks),
        }
    }
}

/// How many of its host's threads a rank has where each host has `of_host` ranks, and how many those before it on the
/// same host have.
pub(crate) fn threads_of(of_the_host: usize, rank: usize, of_host: usize) -> (usize, usize) {
    let threads = (of_the_host / of_host).max(1);
    (threads, threads_before(threads, rank, of_host))
}

/// How many threads the ranks before this one on the same host have, each as many as it.
pub(crate) fn threads_before(threads: usize, rank: usize, of_host: usize) -> usize {
    rank % of_host * threads
}

/// What rank `rank` of a session has: its device, and its way to the others.
pub(crate) fn device_of(
    plan: &Plan,
    options: &SessionOptions,
    group: &Group,
    rank: usize,
) -> (Option<Gpu>, Option<Arc<dyn Comm>>) {
    match plan.ranks {
        1 => (options.gpu.clone(), None),
        _ => {
            let comm = Arc::clone(&group.comms[rank]);
            (group.gpus.get(rank).cloned(), Some(comm))
        }
    }
}

/// The folder of a drive's directory in which one of several ranks has its extents.
#[must_use]
pub fn rank_folder(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("rank-{rank}"))
}

/// Every folder of these drives in which a run of whatever number of ranks has extents, but for those of `ranks`.
pub(crate) fn folders_of_others(dirs: &[PathBuf], ranks: Range<usize>) -> Vec<PathBuf> {
    let others = (0..RANKS).filter(|rank| !ranks.contains(rank));
    let of = |dir: &PathBuf| {
        let of_ranks = others.clone().map(|rank| rank_folder(dir, rank));
        std::iter::once(dir.clone())
            .chain(of_ranks)
            .collect::<Vec<_>>()
    };
    dirs.iter().flat_map(of).collect()
}

/// Removes the state files that killed runs have left in these folders and nobody asked to keep. What somebody has now
/// stays; what cannot be removed does no harm.
pub(crate) fn sweep(folders: &[PathBuf]) {
    for folder in folders {
        let _ = Scratch::sweep(folder);
    }
}

/// Where a rank's extents go: of several each has folders of its own, in those given.
pub(crate) fn disk_of(choice: &DiskChoice, rank: usize) -> DiskChoice {
    let own = |drives: &[(PathBuf, f64)]| {
        let own = |(dir, share): &(PathBuf, f64)| (rank_folder(dir, rank), *share);
        drives.iter().map(own).collect()
    };
    match choice {
        DiskChoice::Directories(drives) => DiskChoice::Directories(own(drives)),
        DiskChoice::Instead(drives) => DiskChoice::Instead(own(drives)),
        DiskChoice::None => DiskChoice::None,
        DiskChoice::Durable { drives, run, open } => DiskChoice::Durable {
            drives: own(drives),
            run: *run,
            open: *open,
        },
        DiskChoice::Open(_) => panic!("a disk of one rank for several"),
    }
}

/// One rank at work.
pub(crate) struct Rank {
    pub runner: Runner<Engine>,
    pub engine: Arc<Engine>,
}

/// All ranks of a session.
pub(crate) struct Ranks {
    /// Those of this process, from the first on.
    pub here: Vec<Rank>,
    /// Those behind them.
    pub there: Vec<Arc<Remote>>,
    /// How many of all are on the first one's host.
    pub near: usize,
    /// Gradients add up in a tree: micro-batches go to ranks one by one.
    pub in_a_tree: bool,
}

impl Ranks {
    /// The one that tells how a step went: all know the same.
    pub fn first(&self) -> &Rank {
        &self.here[0]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.here.len() + self.there.len()
    }

    /// Each rank's share of a batch's micro-batches, in order (in a tree each one of so many as there are ranks), with
    /// the supervised tokens of the whole batch.
    pub fn cut(&self, mut inputs: Vec<Micro>) -> Vec<(Vec<Micro>, usize)> {
        let (ranks, whole) = (self.count(), supervised(&inputs));
        assert!(
            inputs.len().is_multiple_of(ranks),
            "{} micro-batches for {ranks} ranks",
            inputs.len()
        );
        if self.in_a_tree {
            let mut shares: Vec<_> = (0..ranks).map(|_| (Vec::new(), whole)).collect();
            for (m, micro) in inputs.into_iter().enumerate() {
                shares[m % ranks].0.push(micro);
            }
            return shares;
        }
        let each = inputs.len() / ranks;
        let cut = |_| {
            let rest = inputs.split_off(each);
            (std::mem::replace(&mut inputs, rest), whole)
        };
        (0..ranks).map(cut).collect()
    }

    /// Where the micro-batches of a rank are in a batch that [`Self::cut`] has cut, `each` a rank.
    pub fn place(&self, step: u64, rank: usize, each: usize) -> Place {
        let (first, stride) = match self.in_a_tree {
            true => (rank, self.count()),
            false => (rank * each, 1),
        };
        Place {
            step,
            first: first as u64,
            stride: stride as u64,
        }
    }

    /// Lets every rank do the same at once, each by its number: each may wait for the others. The error of the rank that
    /// failed first.
    pub fn each(
        &mut self,
        here: impl Fn(usize, &mut Runner<Engine>) -> Result<(), ExecError> + Sync,
        there: impl Fn(usize, &Remote) -> Result<(), ExecError> + Sync,
    ) -> Result<(), ExecError> {
        if let ([only], []) = (&mut self.here[..], &self.there[..]) {
            return here(0, &mut only.runner);
        }
        let (work, there) = (&here, &there);
        let (ends, others) = std::thread::scope(|scope| {
            let mut ranks = self.here.iter_mut().enumerate();
            let (_, first) = ranks.next().expect("a rank of this process");
            let mine: Vec<_> = ranks
                .map(|(i, rank)| scope.spawn(move || work(i, &mut rank.runner)))
                .collect();
            let others: Vec<_> = self
                .there
                .iter()
                .map(|remote| scope.spawn(move || there(remote.rank(), remote)))
                .collect();
            let first = work(0, &mut first.runner);
            let join = |end: std::thread::Result<_>| {
                end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let mine = mine.into_iter().map(|rank| join(rank.join()));
            let ends: Vec<_> = std::iter::once(first).chain(mine).collect();
            let others: Vec<_> = others.into_iter().map(|rank| join(rank.join())).collect();
            (ends, others)
        });
        let others: Vec<ExecError> = others.into_iter().filter_map(Result::err).collect();
        let Some(first_error) = ends.into_iter().find_map(Result::err) else {
            // Of another process, where this one has not heard of it yet.
            return others.into_iter().next().map_or(Ok(()), Err);
        };
        let there = || others.iter().find(|error| by_itself(error)).cloned();
        Err(match self.cause().or_else(there).unwrap_or(first_error) {
            ExecError::Stuck { seconds, chain } => ExecError::Stuck {
                seconds,
                chain: self.behind().unwrap_or(chain),
            },
            error => error,
        })
    }

    /// The error of the rank that failed by itself, the first in time: what others say later may come of it.
    fn cause(&self) -> Option<ExecError> {
        let errors = self.here.iter().filter_map(|rank| rank.runner.error());
        let own = errors.filter(|(_, error)| by_itself(error));
        own.min_by_key(|&(at, _)| at).map(|(_, error)| error)
    }

    /// Who waits for whom on the rank that all others wait for, where one has made fewer collectives: on GPUs the others'
    /// lanes show only that a collective does not end.
    fn behind(&self) -> Option<String> {
        let made = |rank: &&Rank| rank.runner.exchanged();
        let last = self.here.iter().min_by_key(made)?;
        let alone = self.here.iter().filter(|r| made(r) == made(&last)).count() == 1;
        alone.then(|| last.runner.chain())
    }

    /// Whether one has failed: then what the others have may come of bytes that never came.
    pub fn stopped(&self) -> bool {
        self.here.iter().any(|rank| rank.runner.stopped())
    }

    /// Looks after the lanes of all, see [`Runner::watch`]. Whether one has failed, or all are idle.
    pub fn watch(&mut self) -> bool {
        for rank in &mut self.here {
            rank.runner.watch();
        }
        self.stopped() || self.here.iter().all(|rank| rank.runner.idle())
    }

    /// The memory of all.
    ///
    /// # Panics
    /// When something still runs.
    pub fn idle_tiers(&mut self) -> Vec<Reach<'_>> {
        let here = self.here.iter_mut();
        let here = here.map(|rank| Reach::Here(rank.runner.idle_tiers()));
        let there = self.there.iter().map(|remote| Reach::There(remote));
        here.chain(there).collect()
    }
}

/// Whether it tells of more than another rank's end.
fn by_itself(error: &ExecError) -> bool {
    match error {
        ExecError::Ranks { source, .. } => !source.is_consequence(),
        ExecError::Stopped => false,
        _ => true,
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // What is under way on one may wait for another one that is dropped after it: all stop before one is.
        if self.count() > 1 {
            self.here.iter().for_each(|rank| rank.runner.stop());
        }
        self.there.iter().for_each(|remote| remote.close());
    }
}

#[cfg(test)]
mod tests {
    use lowtide_tiers::{DirLock, Disk, DiskConfig, state_path};
    use lowtide_units::Bytes;

    use super::*;

    #[test]
    fn ranks_of_a_host_share_its_threads_and_no_others() {
        let of = |ranks: usize, of_host| -> Vec<_> {
            let each = (0..ranks).map(|rank| threads_of(32, rank, of_host));
            each.collect()
        };
        assert_eq!(of(2, 2), [(16, 0), (16, 16)]);
        assert_eq!(of(3, 1), [(32, 0); 3]);
        // Eight hosts of two.
        assert_eq!(of(16, 2), [(16, 0), (16, 16)].repeat(8));
        // More ranks than threads.
        assert_eq!(threads_of(1, 3, 4), (1, 3));
    }

    /// A state file in `dir`, as a process that was killed leaves it: nobody has it.
    fn left(dir: &Path) -> PathBuf {
        std::fs::create_dir_all(dir).expect("made");
        let own = tempfile::tempdir().expect("a folder");
        let config = DiskConfig::new([(own.path().to_owned(), 1.0)]);
        let config = config.fit(Bytes(lowtide_tiers::ALIGN)).expect("small");
        let disk = Disk::open(&config, None).expect("opened");
        disk.publish().expect("its name");
        let path = state_path(dir);
        std::fs::copy(state_path(own.path()), &path).expect("copied");
        path
    }

    #[test]
    fn state_files_of_killed_ranks_go_and_those_of_the_hosts_ranks_stay() {
        let drives = tempfile::tempdir().expect("a folder");
        let drives = ["a", "b"].map(|name| drives.path().join(name));
        let all = |drive: &PathBuf| {
            let ranks = [0, 2, 3, 5, RANKS - 1].map(|rank| left(&rank_folder(drive, rank)));
            (left(drive), ranks)
        };
        let all = drives.each_ref().map(all);
        // Of four ranks on two hosts, those of the second one.
        let folders = folders_of_others(&drives, 2..4);
        let somebody = DirLock::take(&rank_folder(&drives[1], 5)).expect("free");
        sweep(&folders);
        for (i, (alone, [first, own, other, more, last])) in all.iter().enumerate() {
            let gone = [alone, first, last].map(|path| path.exists());
            assert_eq!(gone, [false; 3], "{i}");
            assert!(own.exists() && other.exists(), "{i}");
            assert_eq!(more.exists(), i == 1, "who has its folder");
        }
        drop(somebody);
        // What is none of a run's stays.
        let note = rank_folder(&drives[0], 0).join("note");
        std::fs::write(&note, "mine").expect("written");
        sweep(&folders);
        assert!(note.exists() && !all[1].1[3].exists());
    }
}
