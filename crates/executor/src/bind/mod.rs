//! From a task's arguments to bytes: the one place where views of a plan's memory are made without a borrow.

pub mod held;
pub mod idle;

use lowtide_device::comm::{Collective, Comm, Pattern, Stretch};
use lowtide_device::{Dst, Memory, Place, Queue, Src};
use lowtide_planner::{Arg, Lane, Plan, Slot, Task, Tier, Use, Work};
use lowtide_tiers::{Disk, Extent, Kind, Request, Ticket};
use lowtide_workload::{Param, Workload};

use crate::error::{EngineError, ExecError};

/// The memory and disk that a plan's slots lie in, each exactly as large as planned.
#[derive(Debug)]
pub struct Tiers {
    /// The device arena: its bytes lie on the GPU, or in host memory of their own on the CPU device.
    pub device: Memory,
    /// The host arena. It never shares a byte with the device arena.
    pub host: Memory,
    /// Disk, where the plan uses one.
    pub disk: Option<Disk>,
}

impl Tiers {
    /// A tier that is memory.
    fn memory(&self, tier: Tier) -> &Memory {
        match tier {
            Tier::Device => &self.device,
            Tier::Host => &self.host,
            Tier::Disk => unreachable!("extents are read and written by transfers only"),
        }
    }
}

/// One argument with its bytes.
#[derive(Debug)]
pub enum Bound<'a> {
    /// It is read.
    Read(Src<'a>),
    /// It is overwritten.
    Write(Dst<'a>),
    /// It is read and written.
    Update(Dst<'a>),
}

impl<'a> Bound<'a> {
    /// Whose memory it lies in.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Read(from) => from.place(),
            Self::Write(to) | Self::Update(to) => to.place(),
        }
    }

    /// What is read.
    ///
    /// # Panics
    /// When it is written: a mistake in the plan.
    #[must_use]
    pub fn src(&self) -> Src<'a> {
        match self {
            Self::Read(from) => *from,
            other => panic!("{other:?} is only read"),
        }
    }

    /// What is written.
    ///
    /// # Panics
    /// When it is only read: a mistake in the plan.
    #[must_use]
    pub fn dst(self) -> Dst<'a> {
        match self {
            Self::Write(to) | Self::Update(to) => to,
            Self::Read(from) => panic!("{from:?} is written"),
        }
    }
}

/// A task with its bytes.
#[derive(Debug)]
pub struct TaskCall<'a> {
    /// What to do.
    pub work: Work,
    /// On which lane (an update may be the gpu's or the host's).
    pub lane: Lane,
    /// On which bytes, in plan order.
    pub args: Vec<Bound<'a>>,
    /// Micro-batches that the task runs later than it says.
    pub shift: u32,
}

impl<'a> TaskCall<'a> {
    /// All arguments.
    ///
    /// # Panics
    /// When there are not as many: a mistake in the plan.
    #[must_use]
    pub fn take<const N: usize>(self) -> [Bound<'a>; N] {
        let n = self.args.len();
        self.args
            .try_into()
            .unwrap_or_else(|_| panic!("{n} arguments of {:?}, not {N}", self.work))
    }
}

/// Whoever can do the work that is not a transfer.
pub trait Engine: Send + Sync + 'static {
    /// What one submitted part needs to know: inputs, learning rate, where results go.
    type Step: Send + Sync + 'static;

    /// Does one task. On a CPU queue everything it writes is written when this returns; on a CUDA
    /// queue everything is in the stream.
    ///
    /// # Errors
    /// What makes it impossible; the run stops.
    fn run(&self, queue: &Queue, call: TaskCall<'_>, step: &Self::Step) -> Result<(), EngineError>;

    /// What the journal is to say of a commit, beside which version is whole. `call` has the commit's
    /// arguments in memory (the clip factor). Everything before it is done.
    ///
    /// # Errors
    /// What makes it impossible; the run stops.
    fn record(&self, call: TaskCall<'_>, step: &Self::Step) -> Result<Record, EngineError>;
}

/// What a journal keeps of a commit; see [`lowtide_tiers::Disk::commit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What holds for many commits.
    pub about: Vec<u8>,
    /// What holds for this one.
    pub record: Vec<u8>,
}

/// The bytes of a task's arguments in memory, in plan order; extents are left to the transfers.
///
/// The one place where views of a plan's memory are made without a borrow.
///
/// # Safety
/// The plan has passed `lowtide_planner::check`, the arguments are those of a task all of whose edges are complete (on
/// a stream: come before it), and the views are dropped before the task counts as complete.
///
/// # Panics
/// When the task writes bytes that another of its arguments has: the plan did not pass the checker.
unsafe fn bind<'a>(plan: &Plan, tiers: &'a Tiers, args: &[Arg], shift: u32) -> Vec<Bound<'a>> {
    let place = |a: &Arg| {
        let slot = &plan.slots[plan.shifted(a.slot, shift)];
        let from = slot.offset + a.offset;
        (slot.tier, from, from + a.bytes)
    };
    let in_memory = |a: &&Arg| place(a).0 != Tier::Disk;
    for (i, a) in args.iter().enumerate().filter(|(_, a)| in_memory(a)) {
        let (tier, from, to) = place(a);
        for b in args[..i].iter() {
            let (other, start, end) = place(b);
            let reads = a.access == Use::Read && b.access == Use::Read;
            let apart = reads || tier != other || to <= start || end <= from;
            assert!(
                apart,
                "a task has bytes {from}..{to} and {start}..{end} of the {tier} and writes one"
            );
        }
    }
    let bound = |a: &Arg| {
        let (tier, from, to) = place(a);
        let memory = tiers.memory(tier);
        // SAFETY: `lowtide_planner::check` has proved of the plan that every two uses of the same bytes
        // by two tasks, one of them a write, are ordered by lane order and edges (rule 3), and the lane
        // runs a task only when what its edges name is complete: on a stream, in the stream's order.
        // Within the task nothing that is written overlaps anything (asserted above). So these bytes
        // have no other user as long as the task runs, and the view is dropped before it is complete.
        unsafe {
            match a.access {
                Use::Read => Bound::Read(memory.src(from, to - from)),
                Use::Write => Bound::Write(memory.dst(from, to - from)),
                Use::Update => Bound::Update(memory.dst(from, to - from)),
            }
        }
    };
    args.iter().filter(in_memory).map(bound).collect()
}

/// Fills a slot with poison when the last task that uses it has run. On a stream, in its order.
pub(crate) fn poison(tiers: &Tiers, slot: &Slot, queue: &Queue) {
    let memory = tiers.memory(slot.tier);
    // SAFETY: every user of the slot has run, and the next holder of any of its bytes waits for all of
    // them, so also for the task that is not complete before this returns or is in its stream.
    unsafe {
        let slot = memory.dst(slot.offset, slot.bytes);
        match queue.cuda() {
            // A stream reaches both memories; the host only its own.
            Some(q) => q.fill_later(slot, 0xff),
            None => lowtide_device::memory::poison(slot),
        }
    }
}

/// What a task needs beside its arguments.
pub(crate) struct Surroundings<'a, E: Engine> {
    pub plan: &'a Plan,
    pub tiers: &'a Tiers,
    pub engine: &'a E,
    pub queue: &'a Queue,
    pub step: &'a E::Step,
    pub workload: &'a Workload,
    /// The way to the other ranks.
    pub comm: Option<&'a dyn Comm>,
    /// An odd number of commits came before this part.
    pub flipped: bool,
    /// Micro-batches that the part runs later than it says.
    pub shift: u32,
}

/// Does one task that is no disk transfer. `label` names it in errors. A panic is an error too.
pub(crate) fn run_task<E: Engine>(
    around: &Surroundings<'_, E>,
    task: &Task,
    label: impl Fn() -> String,
) -> Result<(), ExecError> {
    let run = std::panic::AssertUnwindSafe(|| run_bound(around, task, &label));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "unknown".to_owned());
        Err(ExecError::Panic {
            task: label(),
            message,
        })
    })
}

fn run_bound<E: Engine>(
    around: &Surroundings<'_, E>,
    task: &Task,
    label: impl Fn() -> String,
) -> Result<(), ExecError> {
    let Surroundings {
        plan,
        tiers,
        engine,
        queue,
        step,
        workload,
        comm,
        flipped,
        shift,
    } = *around;
    let call = TaskCall {
        work: task.work,
        lane: task.lane,
        // SAFETY: a runner runs checked plans alone, and a lane its task when what the edges name is complete; the
        // engine has the views by value and gives them up before it returns.
        args: unsafe { bind(plan, tiers, &task.args, shift) },
        shift,
    };
    match task.work {
        Work::Copy => {
            let [from, to] = call.take();
            // SAFETY: the bytes are the task's until it is complete, which it is when the stream has
            // come past the copy (`bind`); the tiers outlive the streams (`Runner`'s drop).
            unsafe { queue.transfer(to.dst(), from.src()) };
            Ok(())
        }
        Work::AllToAll { .. } | Work::AllGather { .. } => {
            let (name, stretches) = (label(), stretches(plan, workload, task));
            let collective = Collective {
                pattern: match task.work {
                    Work::AllToAll { .. } => Pattern::AllToAll,
                    _ => Pattern::AllGather,
                },
                name: name.split_once(": ").map_or(&*name, |(_, name)| name),
                stretches: &stretches,
            };
            let comm = comm.expect("a plan of several ranks has a way to them");
            let [from, to] = call.take();
            // SAFETY: as of a copy.
            unsafe { comm.exchange(queue, collective, from.src(), to.dst()) }.map_err(|source| {
                ExecError::Ranks {
                    task: label(),
                    source,
                }
            })
        }
        Work::Read | Work::Write => unreachable!("disk lanes submit their transfers themselves"),
        Work::Commit => {
            let said = engine.record(call, step);
            let Record { about, record } = said.map_err(|source| ExecError::Engine {
                task: label(),
                source,
            })?;
            let disk = tiers.disk.as_ref().expect("a plan with extents has a disk");
            disk.commit(u32::from(!flipped), &about, &record)
                .map_err(|source| ExecError::Disk {
                    task: label(),
                    source,
                })
        }
        _ => engine
            .run(queue, call, step)
            .map_err(|source| ExecError::Engine {
                task: label(),
                source,
            }),
    }
}

/// Which bytes each rank has a share of in a collective.
fn stretches(plan: &Plan, w: &Workload, task: &Task) -> Vec<Stretch> {
    let (piece, size) = match task.work {
        Work::AllToAll { piece } => (piece, 4),
        Work::AllGather { piece: Some(piece) } => (piece, plan.precision.size()),
        _ => {
            return vec![Stretch {
                whole: 0,
                part: 0,
                bytes: task.args[0].bytes as usize,
            }];
        }
    };
    let ranks = u64::from(plan.ranks);
    let piece = &plan.pieces[piece];
    let params = piece.of(w).iter().zip(&piece.offsets);
    let of = |(param, offset): (&Param, &u64)| Stretch {
        whole: (offset * size) as usize,
        part: (offset / ranks * size) as usize,
        bytes: (w.padded(param) / ranks * size) as usize,
    };
    params.map(of).collect()
}

/// What a read or a write moves: which way, and where on disk; then its argument in memory.
pub(crate) fn extent_of<'a>(
    plan: &Plan,
    task: &'a Task,
    (flipped, shift): (bool, u32),
) -> (Kind, Extent, &'a Arg) {
    let (kind, disk_arg, memory_arg) = if task.work == Work::Read {
        (Kind::Read, &task.args[0], &task.args[1])
    } else {
        (Kind::Write, &task.args[1], &task.args[0])
    };
    let extent = Extent {
        offset: plan.offset(plan.shifted(disk_arg.slot, shift), flipped) + disk_arg.offset,
        bytes: disk_arg.bytes,
    };
    (kind, extent, memory_arg)
}

/// Gives a read or a write to the disk; `deadline` orders requests; `flipped`: an odd number of commits
/// came before its part; `shift`: micro-batches that the part runs later than it says.
pub(crate) fn submit_transfer(
    plan: &Plan,
    tiers: &Tiers,
    task: &Task,
    deadline: u64,
    (flipped, shift): (bool, u32),
) -> Ticket {
    let (kind, extent, memory_arg) = extent_of(plan, task, (flipped, shift));
    let slot = &plan.slots[plan.shifted(memory_arg.slot, shift)];
    let disk = tiers.disk.as_ref().expect("a plan with extents has a disk");
    let (memory, from) = (tiers.memory(slot.tier), slot.offset + memory_arg.offset);
    if let Some(device) = memory.on_cuda() {
        // SAFETY: as below: the checker proves the same of every tier's bytes, and the lane waits for the stream's
        // work on them before it submits, as later work on a stream waits for the lane.
        return unsafe { disk.submit_device(kind, extent, device.address() + from, deadline) };
    }
    let memory = memory
        .arena()
        .range(from, memory_arg.bytes)
        .expect("the checker proved that slots lie inside");
    let request = Request {
        kind,
        extent,
        memory,
        deadline,
    };
    // SAFETY: as in `bind`: the task's bytes have no other user until it is complete, which it is not
    // before the ticket is done. Of two transfers of one lane in flight none reads into memory that the
    // other has: see `disk_lane::ahead`.
    unsafe { disk.submit(request) }
}
