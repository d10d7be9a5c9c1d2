//! A plan with its memory reserved: submits batches, keeps track of drained and pending state.
//!
//! One file because a session is one state machine, and all of its turns are here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lowtide_device::cuda::{self, Gpu};
use lowtide_device::{Lent, Memory, memory};
use lowtide_executor::{ExecError, Idle, Measured, Mode, Options, Runner, Tiers, Trace};
use lowtide_kernels::update::Hyper;
use lowtide_model::Decoder;
use lowtide_planner::{Clip, PartName, PieceId, Plan, Slot, SlotId, Tensor, Tier, Version};
use lowtide_tiers::{
    Arena, Committed, Disk, DiskConfig, Extent, Fill, MadeDirs, Open, TierError, limits,
};
use lowtide_units::Bytes;

use crate::apart::Remote;
use crate::commit::{About, Mark};
use crate::engine::{ClipRule, Engine, first_clip};
use crate::error::SessionError;
use crate::hold::holds;
use crate::homes::Homes;
use crate::outcome::Outcome;
use crate::ranks::{Group, Rank, Ranks, device_of, disk_of, rank_folder, threads_of};
use crate::requests::Requests;
use crate::step::StepData;
use lowtide_data::Micro;

/// Where a plan's extents go.
#[derive(Debug)]
pub enum DiskChoice {
    /// Nowhere: the plan has none.
    None,
    /// Files in these directories, each with its share of the traffic.
    Directories(Vec<(PathBuf, f64)>),
    /// Files in these directories that outlive a session which does not end well.
    Durable {
        /// Each with its share of the traffic.
        drives: Vec<(PathBuf, f64)>,
        /// Whose files they are.
        run: u128,
        /// Whether there are files, and what of them.
        open: Open,
    },
    /// As `Directories`, in the place of files that an earlier run asked to keep: those stay until
    /// [`Session::publish_disk`].
    Instead(Vec<(PathBuf, f64)>),
    /// A disk that was opened elsewhere (tests).
    Open(Disk),
}

impl DiskChoice {
    /// The directories in which it has files.
    pub(crate) fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        let drives: &[(PathBuf, f64)] = match self {
            Self::None | Self::Open(_) => &[],
            Self::Directories(drives) | Self::Instead(drives) | Self::Durable { drives, .. } => {
                drives
            }
        };
        drives.iter().map(|(dir, _)| dir)
    }
}

/// Settings of a session.
#[derive(Debug)]
pub struct SessionOptions {
    /// Threads of each lane that computes.
    pub threads: usize,
    /// How tasks are driven.
    pub mode: Mode,
    /// Fill dead slots with NaN.
    pub poison: bool,
    /// Report a standstill after this long.
    pub watchdog: Duration,
    /// What is recorded for the trace.
    pub trace: Trace,
    /// The state may be read while steps go on ([`Session::snapshot`]).
    pub snapshots: bool,
    /// Where extents go.
    pub disk: DiskChoice,
    /// The CUDA device that the plan is for; `None`: the CPU device.
    pub gpu: Option<Gpu>,
    /// Of a plan of several ranks in place of `gpu`: their devices, and the way between them. Without one they are
    /// threads on the CPU device.
    pub group: Option<Group>,
    /// Host memory that the process will hold beside its arenas, as far as that is known
    /// ([`Machine::host_reserve`](lowtide_planner::Machine::host_reserve)): held against the limits
    /// together with them.
    pub process: Bytes,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let o = Options::default();
        Self {
            threads: o.threads,
            mode: o.mode,
            poison: o.poison,
            watchdog: o.watchdog,
            trace: Trace::NONE,
            snapshots: false,
            disk: DiskChoice::None,
            gpu: None,
            group: None,
            process: Bytes::ZERO,
        }
    }
}

/// Settings for drives whose directories are there.
fn config_in(drives: &[(PathBuf, f64)], made: &mut MadeDirs) -> Result<DiskConfig, SessionError> {
    for (dir, _) in drives {
        made.make(dir).map_err(SessionError::io(dir))?;
    }
    Ok(DiskConfig::new(drives.to_vec()))
}

/// The disk that a plan of `need` bytes there is to have; `None` where it has none, or one is given.
pub(crate) fn config_of(
    choice: &DiskChoice,
    need: Bytes,
    made: &mut MadeDirs,
) -> Result<Option<DiskConfig>, SessionError> {
    let config = match choice {
        DiskChoice::Directories(drives) if need.0 > 0 => config_in(drives, made)?,
        DiskChoice::Instead(drives) if need.0 > 0 => DiskConfig {
            open: Open::Replace,
            ..config_in(drives, made)?
        },
        DiskChoice::Durable { drives, run, open } => DiskConfig {
            keep: true,
            run: *run,
            open: *open,
            ..config_in(drives, made)?
        },
        _ => return Ok(None),
    };
    Ok(Some(config.fit(need)?))
}

/// Whether each task is waited for before the next is begun, so that a device's error names its own
/// (`LOWTIDE_SYNC=1`). Asked in every process of a run: a launcher gives all of them the same environment.
pub(crate) fn synchronous() -> bool {
    std::env::var_os("LOWTIDE_SYNC").is_some_and(|v| v == "1")
}

/// The device's memory and the host's, as large as planned.
fn reserve(plan: &Plan, gpu: Option<&Gpu>, poison: bool) -> Result<(Memory, Memory), SessionError> {
    let fill = if poison { Fill::Poison } else { Fill::Zero };
    let arena = |tier| Arena::new(plan.tier(tier).planned_bytes, fill);
    Ok(match gpu {
        None => (
            Memory::new(arena(Tier::Device)?),
            Memory::new(arena(Tier::Host)?),
        ),
        Some(gpu) => {
            // The device first: a machine short of it says so before host memory is touched.
            let mut device = Memory::cuda(gpu, plan.tier(Tier::Device).planned_bytes)?;
            if poison {
                memory::poison(device.all());
            }
            (device, Memory::pinned(arena(Tier::Host)?, gpu)?)
        }
    })
}

/// One rank's memory and disk, before anything runs.
fn tiers_of(
    plan: &Plan,
    options: &Options,
    disk: DiskChoice,
    config: Option<DiskConfig>,
) -> Result<Tiers, SessionError> {
    let (mut device, host) = reserve(plan, options.gpu.as_ref(), options.poison)?;
    // On the CPU device its memory is like the host's to a drive.
    let past_host = options.gpu.is_some() && plan.reaches_device();
    if let Some(config) = config.as_ref().filter(|_| past_host) {
        cuda::try_direct(&mut device, config.drives.iter().map(|drive| &*drive.dir))?;
    }
    let disk = match (disk, config) {
        (DiskChoice::Open(disk), _) => Some(disk),
        (_, Some(config)) => Some(Disk::open(&config, Some(host.arena()))?),
        _ => None,
    };
    if let Some(disk) = &disk
        && plan.choice.durable
    {
        disk.set_versions(durable_extents(plan))?;
    }
    if let Some(disk) = disk.as_ref().filter(|_| past_host) {
        cuda::reach_direct(&device, disk)?;
    }
    let mut tiers = Tiers { device, host, disk };
    // The clip factor has a value before the first norm.
    let idle = Idle::new(&mut tiers);
    for (_, slot) in plan.homes(Tensor::Clip) {
        memory::store(clip_words(&idle, slot).dst(), &first_clip());
    }
    drop(idle);
    Ok(tiers)
}

/// One rank of a plan, with what the plan asks for.
pub(crate) fn open_rank(
    decoder: &Arc<Decoder>,
    plan: &Arc<Plan>,
    clip: ClipRule,
    rank: usize,
    options: Options,
    (disk, config): (DiskChoice, Option<DiskConfig>),
) -> Result<Rank, SessionError> {
    let tiers = tiers_of(plan, &options, disk, config)?;
    let workload = Arc::new(decoder.workload().clone());
    let (decoder, same) = (Arc::clone(decoder), Arc::clone(plan));
    let engine = Arc::new(Engine::new(decoder, same, clip, rank as u32));
    let runner = Runner::new(
        Arc::clone(plan),
        workload,
        Arc::clone(&engine),
        tiers,
        options,
    )?;
    Ok(Rank { runner, engine })
}

/// The extents of either version of everything durable.
fn durable_extents(plan: &Plan) -> [Vec<Extent>; 2] {
    let current = plan.slots.pairs();
    let current = current.filter(|(_, s)| matches!(s.version, Some((Version::Current, _))));
    let mut current: Vec<(SlotId, u64)> = current.map(|(i, s)| (i, s.bytes)).collect();
    // An order that the layout alone decides.
    current.sort_unstable_by_key(|&(slot, _)| plan.offset(slot, false));
    [false, true].map(|flipped| {
        let each = current.iter().map(|&(slot, bytes)| Extent {
            offset: plan.offset(slot, flipped),
            bytes,
        });
        each.collect()
    })
}

/// The words of a home of the clip factor, on the host or where updates on the device read it.
fn clip_words<'a>(tiers: &'a Idle<'_>, slot: &Slot) -> Lent<'a> {
    let memory = match slot.tier {
        Tier::Device => &tiers.device,
        Tier::Host | Tier::Disk => &tiers.host,
    };
    memory.lend(slot.offset, 24)
}

/// Sets the words of a home of the clip factor.
pub(crate) fn set_clip(tiers: &Idle<'_>, slot: &Slot, words: &[f64; 3]) {
    memory::store(clip_words(tiers, slot).dst(), words);
}

/// Reserved memory, and a runner on it.
pub struct Session {
    ranks: Ranks,
    decoder: Arc<Decoder>,
    clip: ClipRule,
    /// With exact clipping: settings of the batch whose gradients wait for their update, and which
    /// step of a run it is.
    pending: Option<(Hyper, Option<u64>)>,
    /// A norm of an earlier step is known (`previous`).
    has_norm: bool,
    /// Nothing runs beside the caller: a wait has to run the tasks.
    shuffled: bool,
    /// Last: empty when the state files are closed.
    _made: MadeDirs,
}

impl Session {
    /// Reserves everything the plan asks for, to the byte, before anything runs. Long because that is one order.
    ///
    /// # Errors
    /// What cannot be had.
    pub fn open(
        decoder: Arc<Decoder>,
        plan: Arc<Plan>,
        clip: ClipRule,
        options: SessionOptions,
    ) -> Result<Self, SessionError> {
        let ranks = plan.ranks as usize;
        let group = match options.group.clone() {
            _ if ranks == 1 => Group::default(),
            Some(group) => group,
            None => Group::threads(plan.ranks, options.watchdog / 2),
        };
        let mut made = MadeDirs::default();
        let mut disks: Vec<DiskChoice> = (0..ranks)
            .filter(|_| ranks > 1)
            .map(|rank| disk_of(&options.disk, rank))
            .collect();
        let shuffled = options.mode != Mode::Threads;
        let (here, near) = (ranks - group.there.len(), group.near(ranks));
        let mut all = Vec::new();
        for rank in 0..here {
            let (gpu, comm) = device_of(&plan, &options, &group, rank);
            let (threads, threads_before) = threads_of(options.threads, rank, near);
            let options = Options {
                mode: options.mode.of_rank(rank),
                gpu,
                comm,
                synchronous: synchronous(),
                threads,
                threads_before,
                poison: options.poison,
                watchdog: options.watchdog,
                trace: options.trace,
                holds: holds(&plan, options.mode, options.snapshots),
                pace: None,
            };
            all.push(options);
        }
        let need = plan.tier(Tier::Disk).planned_bytes;
        let mut arenas = plan.tier(Tier::Host).planned_bytes;
        if all[0].gpu.is_none() {
            arenas += plan.tier(Tier::Device).planned_bytes;
        }
        if ranks == 1 {
            disks.push(options.disk);
        }
        let mut configs = Vec::new();
        for disk in &disks[..near] {
            configs.push(config_of(disk, need, &mut made)?);
        }
        // Those of all ranks of this host: their folders share drives.
        let on_disk: Vec<&DiskConfig> = configs[..near].iter().flatten().collect();
        limits::check(arenas * near as u64, options.process, &on_disk)?;
        let there = disks.split_off(here).into_iter().zip(&group.there);
        let (mut opened, how) = (Vec::new(), all[0].clone());
        std::thread::scope(|scope| {
            let (plan, how) = (&plan, &how);
            let there: Vec<_> = there
                .map(|(disk, remote)| {
                    scope.spawn(move || remote.open(plan, clip, (how, near), &disk))
                })
                .collect();
            let mine = all.into_iter().zip(disks.into_iter().zip(configs));
            for (rank, (options, disk)) in mine.enumerate() {
                opened.push(open_rank(&decoder, plan, clip, rank, options, disk)?);
            }
            for other in there {
                let end = other.join();
                end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok::<(), SessionError>(())
        })?;
        Ok(Self {
            ranks: Ranks {
                here: opened,
                there: group.there,
                near,
                in_a_tree: decoder.workload().leaves > 1,
            },
            decoder,
            clip,
            pending: None,
            has_norm: false,
            shuffled,
            _made: made,
        })
    }

    /// The plan that every rank runs.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        self.ranks.first().runner.plan()
    }

    /// The model, at the session's batch.
    #[must_use]
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Queues one batch; returns while it runs. With exact clipping its update runs under the next
    /// batch's forward, or in [`Session::drain`].
    ///
    /// # Errors
    /// What stopped the run.
    pub fn submit(&mut self, inputs: Vec<Micro>, hyper: Hyper) -> Result<Arc<StepData>, ExecError> {
        self.submit_marked(inputs, hyper, None)
    }

    /// As [`Session::submit`], of a run: what the journal of a durable plan is to say when the
    /// batch's update is made.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn submit_marked(
        &mut self,
        inputs: Vec<Micro>,
        hyper: Hyper,
        mark: Option<Mark>,
    ) -> Result<Arc<StepData>, ExecError> {
        let own = (hyper, mark.as_ref().map(|m| m.step));
        let (part, update) = match self.clip.mode {
            Clip::Exact => match self.pending.replace(own) {
                None => (PartName::First, None),
                Some(before) => (PartName::Steady, Some(before)),
            },
            Clip::Previous if !self.has_norm => (PartName::First, Some(own)),
            Clip::Previous | Clip::None => (PartName::Steady, Some(own)),
        };
        self.has_norm = true;
        let commits = update.and_then(|u| u.1);
        let shares = self.ranks.cut(inputs).into_iter();
        let of = |(rank, share): (usize, (Vec<Micro>, usize))| {
            let place = self.ranks.place(hyper.step, rank, share.0.len());
            let data = StepData::marked(share, update.map(|u| u.0), mark.clone(), commits);
            data.at(place)
        };
        let data = shares.enumerate().map(of).collect();
        self.submit_all(part, data)
    }

    /// Gives each rank its part; what the first one's gives.
    fn submit_all(
        &mut self,
        part: PartName,
        data: Vec<Arc<StepData>>,
    ) -> Result<Arc<StepData>, ExecError> {
        let here =
            |rank: usize, runner: &mut Runner<Engine>| runner.submit(part, Arc::clone(&data[rank]));
        let there = |rank: usize, remote: &Remote| remote.submit(part, &data[rank]);
        self.ranks.each(here, there)?;
        Ok(Arc::clone(&data[0]))
    }

    /// Whether gradients wait for their update.
    pub(crate) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    pub(crate) fn first_runner(&mut self) -> &mut Runner<Engine> {
        &mut self.ranks.here[0].runner
    }

    /// Blocks until every rank has done everything.
    pub(crate) fn wait(&mut self) -> Result<(), ExecError> {
        self.ranks
            .each(|_, runner| runner.wait(), |_, remote| remote.wait())
    }

    /// Waits for a submitted batch's loss and norm.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn outcome(&mut self, data: &StepData) -> Result<Outcome, ExecError> {
        if self.shuffled {
            self.wait()?;
        }
        loop {
            if let Some(outcome) = data.outcome(Duration::from_millis(100)) {
                if outcome.nonfinite.is_some() || self.ranks.stopped() {
                    // The run stops over it; say so with the executor's own error.
                    self.wait()?;
                }
                return Ok(outcome);
            }
            if self.ranks.watch() {
                self.wait()?;
            }
        }
    }

    /// Completes every update. Afterwards every home holds the state after the last batch.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn drain(&mut self) -> Result<(), ExecError> {
        if let Some((hyper, step)) = self.pending.take() {
            let none = || (Vec::new(), 0);
            let of = |_| StepData::marked(none(), Some(hyper), None, step);
            let data = (0..self.ranks.count()).map(of).collect();
            self.submit_all(PartName::Drain, data)?;
        }
        self.wait()
    }

    /// Goes on with another plan on the memory that is reserved. Drains first. From here on steps have the bits that
    /// they would have had: what outlives a step lies where it lay.
    ///
    /// # Errors
    /// What stopped the run; the device's, when it has no more streams: then the plan before runs on, and this has not
    /// [stopped](Session::stopped).
    ///
    /// # Panics
    /// Where the plan is none that [`replaces`](lowtide_planner::check::replaces) this one, there are several ranks, or
    /// a [snapshot](Session::snapshot) is read.
    pub fn replace(&mut self, plan: Arc<Plan>) -> Result<(), ExecError> {
        assert_eq!(self.ranks.count(), 1, "all ranks run one plan");
        self.drain()?;
        // The engine knows the plan's pieces alone, which are the same.
        self.first_runner().replace(plan)
    }

    /// Whether something has failed, and no more steps run.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.ranks.stopped()
    }

    /// Loss of one batch without gradients. Drains first.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn evaluate(&mut self, inputs: Vec<Micro>) -> Result<Outcome, ExecError> {
        let shares = self.ranks.cut(inputs).into_iter();
        let of = |share| StepData::marked(share, None, None, None);
        self.forward(PartName::Evaluate, shares.map(of).collect())
    }

    /// As [`Session::evaluate`], broken off as soon as anything is asked: then there is no outcome.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn evaluate_until(
        &mut self,
        inputs: Vec<Micro>,
        requests: &Requests,
    ) -> Result<Option<Outcome>, ExecError> {
        let shares = self.ranks.cut(inputs);
        self.forward_until(PartName::Evaluate, shares, requests)
    }

    /// Logits of one micro-batch at each row's marked position. Drains first.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn infer(&mut self, inputs: Micro) -> Result<Outcome, ExecError> {
        let all = self.alike(&inputs).into_iter();
        let of = |inputs| StepData::marked(inputs, None, None, None);
        self.forward(PartName::Infer, all.map(of).collect())
    }

    /// As [`Session::infer`], broken off as soon as anything is asked: then there is no outcome.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn infer_until(
        &mut self,
        inputs: Micro,
        requests: &Requests,
    ) -> Result<Option<Outcome>, ExecError> {
        let all = self.alike(&inputs);
        self.forward_until(PartName::Infer, all, requests)
    }

    /// The same micro-batch for every rank: each has a share of the weights that it takes.
    fn alike(&self, inputs: &Micro) -> Vec<(Vec<Micro>, usize)> {
        let ranks = 0..self.ranks.count();
        ranks.map(|_| (vec![inputs.clone()], 0)).collect()
    }

    fn forward_until(
        &mut self,
        part: PartName,
        inputs: Vec<(Vec<Micro>, usize)>,
        requests: &Requests,
    ) -> Result<Option<Outcome>, ExecError> {
        let of = |inputs| StepData::until(inputs, requests);
        let data: Vec<_> = inputs.into_iter().map(of).collect();
        let outcome = self.forward(part, data.clone())?;
        let broken = data.iter().any(|data| data.is_broken_off());
        Ok((!broken).then_some(outcome))
    }

    fn forward(&mut self, part: PartName, data: Vec<Arc<StepData>>) -> Result<Outcome, ExecError> {
        self.drain()?;
        let first = self.submit_all(part, data)?;
        self.wait()?;
        let outcome = first.peek();
        Ok(match part {
            PartName::Evaluate => outcome.evaluated(),
            _ => outcome,
        })
    }

    /// Access to weights and state; drain first.
    ///
    /// # Errors
    /// When there is no memory for staging.
    ///
    /// # Panics
    /// When something still runs.
    pub fn homes(&mut self) -> Result<Homes<'_>, TierError> {
        let plan = Arc::clone(self.plan());
        let flipped = self.ranks.first().runner.flipped();
        let tiers = self.ranks.idle_tiers();
        Homes::new(plan, self.decoder.workload(), tiers, flipped)
    }

    /// Goes on from what is committed on the disk that it was opened with, after all of it was read
    /// and found to be what was committed: nothing ran yet. Several ranks go on from the newest step that all have
    /// committed; what is returned is of the first one.
    ///
    /// # Errors
    /// Those of [`Disk::prove`], and the disk's where copies of weights are read from it.
    ///
    /// # Panics
    /// Where the plan is not durable.
    pub fn resume(&mut self) -> Result<Committed, TierError> {
        let found = self.ranks.resume()?;
        self.homes()?.refresh_copies()?;
        Ok(found)
    }

    /// Sets what the journal says of the run as a whole, with every commit; of several ranks that of the first one.
    pub fn set_about(&self, about: About) {
        self.ranks.first().engine.set_about(about);
    }

    /// New state files take their names, and the place of those that an earlier run asked to keep.
    ///
    /// # Errors
    /// The system's.
    pub fn publish_disk(&self) -> Result<(), TierError> {
        let mut there = self.ranks.there.iter();
        there.try_for_each(|remote| remote.publish())?;
        self.disks().try_for_each(Disk::publish)
    }

    /// The state file of each drive, of every rank of this host. Another host may have files of the same names, which
    /// are other files.
    #[must_use]
    pub fn disk_paths(&self) -> Vec<PathBuf> {
        let paths = self.disks().flat_map(Disk::paths);
        let mut all: Vec<PathBuf> = paths.map(Path::to_owned).collect();
        let first = self.disks().next().into_iter().flat_map(Disk::paths);
        // Those of ranks in other processes are named as the first one's.
        let near = self.ranks.near;
        let there = self.ranks.there.iter().filter(|r| r.rank() < near);
        for (path, remote) in first.flat_map(|p| there.clone().map(move |r| (p, r))) {
            let dir = path.parent().and_then(Path::parent);
            if let (Some(dir), Some(name)) = (dir, path.file_name()) {
                all.push(rank_folder(dir, remote.rank()).join(name));
            }
        }
        all
    }

    /// The disk of each rank of this process that has one.
    fn disks(&self) -> impl Iterator<Item = &Disk> {
        let ranks = self.ranks.here.iter();
        ranks.filter_map(|rank| rank.runner.disk())
    }

    /// The state files need not outlive the session: what they hold is saved elsewhere. Their names are gone when this
    /// returns, the first rank's before any other: a start that finds another rank's alone takes its place, one that
    /// found the first's alone would have to ask for the others.
    pub fn discard_disk(&self) {
        self.disks().for_each(Disk::discard);
        let there = self.ranks.there.iter();
        there.for_each(|remote| remote.discard());
    }

    /// The rounded gradient of a piece that waits for its update, as bytes; exact clipping, after
    /// a batch and before the next, gradients on device or host. Of several ranks the first one's share.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn waiting_gradient(&mut self, piece: PieceId) -> Result<Option<Vec<u8>>, ExecError> {
        self.wait()?;
        let plan = Arc::clone(self.plan());
        let tiers = self.ranks.here[0].runner.idle_tiers();
        let found = plan.homes(Tensor::Gradient(piece)).next();
        Ok(found.and_then(|(_, slot)| {
            let memory = match slot.tier {
                Tier::Device => &tiers.device,
                Tier::Host => &tiers.host,
                Tier::Disk => return None,
            };
            let bytes = plan.own(piece) * plan.gradient.size();
            let mut out = vec![0u8; bytes as usize];
            memory::load(memory.lend(slot.offset, bytes).src(), &mut out);
            Some(out)
        }))
    }

    /// The norm of the last batch and the factor it gives, to save with a checkpoint.
    ///
    /// # Panics
    /// When something still runs.
    #[must_use]
    pub fn clip_words(&mut self) -> [f64; 3] {
        let mut words = first_clip();
        let plan = Arc::clone(self.plan());
        let tiers = self.ranks.here[0].runner.idle_tiers();
        for (_, slot) in plan.homes(Tensor::Clip) {
            memory::load(clip_words(&tiers, slot).src(), &mut words);
        }
        words
    }

    /// Restores what [`Session::clip_words`] gave; `previous` then goes on as if unbroken. Where the next update reads
    /// it, the factor is by the rule of this run, which may be another one than that of the checkpoint.
    ///
    /// # Errors
    /// Of a rank in another process: that it is gone.
    pub fn restore_clip(&mut self, words: [f64; 3]) -> Result<(), ExecError> {
        let words = match self.clip.mode {
            Clip::Exact => words,
            // What was left out is no reason to leave out the next.
            Clip::Previous | Clip::None => [self.clip.factor(words[1]), words[1], 1.0],
        };
        let plan = Arc::clone(self.plan());
        for rank in &mut self.ranks.here {
            let tiers = rank.runner.idle_tiers();
            for (_, slot) in plan.homes(Tensor::Clip) {
                set_clip(&tiers, slot, &words);
            }
        }
        self.has_norm = true;
        let mut there = self.ranks.there.iter();
        there.try_for_each(|remote| remote.clip(words))
    }

    /// The norms that the next step is judged by where spikes are looked for, as bits, to save with a checkpoint: all
    /// ranks have the same.
    #[must_use]
    pub fn last_norms(&self) -> Vec<u64> {
        self.ranks.first().engine.last_norms()
    }

    /// Restores what [`Session::last_norms`] gave.
    ///
    /// # Errors
    /// Of a rank in another process: that it is gone.
    pub fn restore_norms(&mut self, bits: &[u64]) -> Result<(), ExecError> {
        let here = self.ranks.here.iter();
        here.for_each(|rank| rank.engine.restore_norms(bits));
        let mut there = self.ranks.there.iter();
        there.try_for_each(|remote| remote.norms(bits))
    }

    /// Sums of what the lanes did so far; of several ranks the first one's, which all run the same tasks.
    #[must_use]
    pub fn measured(&self) -> Measured {
        self.ranks.first().runner.measured()
    }

    /// Bytes reserved in each tier: device, host, disk; by each rank.
    #[must_use]
    pub fn reserved(&self) -> [u64; 3] {
        let [device, host] = self.ranks.first().runner.reserved();
        let disk = self.disks().next().map_or(0, |d| d.bytes().0);
        [device.0, host.0, disk]
    }

    /// One line a drive: how I/O is done there.
    #[must_use]
    pub fn describe_disk(&self) -> Option<String> {
        self.disks().next().map(|d| d.describe().to_owned())
    }

    /// Writes the recorded events for Perfetto; of several ranks the first one's.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_trace(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        self.ranks.first().runner.write_trace(out)
    }
}
