//! From a task's arguments to bytes.

use lowtide_device::{Memory, Queue, View};
use lowtide_planner::{Arg, Lane, Plan, Task, Tier, Use, Work};
use lowtide_tiers::{Disk, Extent, Kind, Request, Ticket};

use crate::error::{EngineError, ExecError};

/// The memory and disk that a plan's slots lie in, each exactly as large as planned.
#[derive(Debug)]
pub struct Tiers {
    /// Device arena.
    pub device: Memory,
    /// Host arena.
    pub host: Memory,
    /// Disk, where the plan uses one.
    pub disk: Option<Disk>,
}

/// One argument with its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// The bytes.
    pub view: View<'a>,
    /// What the task does with them.
    pub access: Use,
}

/// A task with its bytes.
#[derive(Debug)]
pub struct TaskCall<'a> {
    /// What to do.
    pub work: Work,
    /// On which lane (an update may be the gpu's or the host's).
    pub lane: Lane,
    /// On which bytes, in plan order.
    pub args: &'a [Bound<'a>],
    /// Micro-batches that the task runs later than it says.
    pub shift: u32,
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
    fn run(&self, queue: &Queue, call: &TaskCall<'_>, step: &Self::Step)
    -> Result<(), EngineError>;

    /// What the journal is to say of a commit, beside which version is whole. `call` has the commit's
    /// arguments in memory (the clip factor). Everything before it is done.
    ///
    /// # Errors
    /// What makes it impossible; the run stops.
    fn record(&self, call: &TaskCall<'_>, step: &Self::Step) -> Result<Record, EngineError>;
}

/// What a journal keeps of a commit; see [`lowtide_tiers::Disk::commit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What holds for many commits.
    pub about: Vec<u8>,
    /// What holds for this one.
    pub record: Vec<u8>,
}

/// The bytes of one argument; panics when it is on disk.
pub(crate) fn bind<'a>(plan: &Plan, tiers: &'a Tiers, arg: &Arg, shift: u32) -> Bound<'a> {
    let slot = &plan.slots[plan.shifted(arg.slot, shift) as usize];
    let offset = slot.offset + arg.offset;
    let view = match slot.tier {
        Tier::Device => tiers.device.view(offset, arg.bytes),
        Tier::Host => tiers.host.view(offset, arg.bytes),
        Tier::Disk => unreachable!("disk extents are read and written by transfers only"),
    };
    Bound {
        view,
        access: arg.access,
    }
}

/// What a task needs beside its arguments.
pub(crate) struct Surroundings<'a, E: Engine> {
    pub plan: &'a Plan,
    pub tiers: &'a Tiers,
    pub engine: &'a E,
    pub queue: &'a Queue,
    pub step: &'a E::Step,
    /// An odd number of commits came before this part.
    pub flipped: bool,
    /// Micro-batches that the part runs later than it says.
    pub shift: u32,
}

/// Does one task that is no disk transfer. `label` names it in errors.
pub(crate) fn run_task<E: Engine>(
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
        flipped,
        shift,
    } = *around;
    match task.work {
        Work::Copy => {
            let from = bind(plan, tiers, &task.args[0], shift);
            let to = bind(plan, tiers, &task.args[1], shift);
            queue.copy(&to.view, &from.view);
            Ok(())
        }
        Work::Read | Work::Write => unreachable!("disk lanes submit their transfers themselves"),
        Work::Commit => {
            let in_memory = |a: &&Arg| plan.slots[a.slot as usize].tier != Tier::Disk;
            let args = task.args.iter().filter(in_memory);
            let args: Vec<Bound<'_>> = args.map(|a| bind(plan, tiers, a, shift)).collect();
            let call = TaskCall {
                work: task.work,
                lane: task.lane,
                args: &args,
                shift,
            };
            let said = engine.record(&call, step);
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
        _ => {
            let args: Vec<Bound<'_>> = task
                .args
                .iter()
                .map(|a| bind(plan, tiers, a, shift))
                .collect();
            let call = TaskCall {
                work: task.work,
                lane: task.lane,
                args: &args,
                shift,
            };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                engine.run(queue, &call, step)
            }));
            match done {
                Ok(result) => result.map_err(|source| ExecError::Engine {
                    task: label(),
                    source,
                }),
                Err(panic) => {
                    let message = panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                        .unwrap_or_else(|| "unknown".to_owned());
                    Err(ExecError::Panic {
                        task: label(),
                        message,
                    })
                }
            }
        }
    }
}

/// What a read or a write moves: which way, and where on disk; then its argument in memory.
pub(crate) fn extent_of<'a>(
    plan: &Plan,
    task: &'a Task,
    (flipped, shift): (bool, u32),
) -> (Kind, Extent, &'a Arg) {
    let (kind, disk_arg, host_arg) = if task.work == Work::Read {
        (Kind::Read, &task.args[0], &task.args[1])
    } else {
        (Kind::Write, &task.args[1], &task.args[0])
    };
    let extent = Extent {
        offset: plan.offset(plan.shifted(disk_arg.slot, shift), flipped) + disk_arg.offset,
        bytes: disk_arg.bytes,
    };
    (kind, extent, host_arg)
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
    let (kind, extent, host_arg) = extent_of(plan, task, (flipped, shift));
    let host = &plan.slots[plan.shifted(host_arg.slot, shift) as usize];
    let disk = tiers.disk.as_ref().expect("a plan with extents has a disk");
    let memory = tiers
        .host
        .arena()
        .range(host.offset + host_arg.offset, host_arg.bytes)
        .expect("the checker proved that slots lie inside");
    disk.submit(Request {
        kind,
        extent,
        memory,
        deadline,
    })
}
