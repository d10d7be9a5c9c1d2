//! Calls and their answers, as bytes: a head in JSON, and what is large behind it.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use lowtide_data::Micro;
use lowtide_device::comm::{Calls, receive, send};
use lowtide_executor::{EngineError, ExecError};
use lowtide_kernels::update::Hyper;
use lowtide_planner::{Clip, PartName, Plan, SlotId};
use lowtide_tiers::Open;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::commit::Mark;
use crate::engine::ClipRule;
use crate::session::DiskChoice;
use crate::spikes::{SpikeAction, SpikeRule};
use crate::step::{Place, StepData};

/// Longest head: a plan of a large model has some tens of megabytes.
const HEAD: usize = 1 << 30;
/// Longest of what is behind it.
const BODY: usize = u32::MAX as usize;

/// What the first rank asks of another one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call {
    /// To reserve what the plan asks for.
    Open(Box<Opening>),
    /// To queue a part of a step, whose inputs are behind the head.
    Submit(Part),
    /// To answer when all is done.
    Wait,
    /// For bytes of a slot.
    Load { slot: SlotId, at: u64, bytes: u64 },
    /// To put those behind the head into a slot.
    Store { slot: SlotId, at: u64 },
    /// To set the words of the clip factor, each as its bits.
    Clip([u64; 3]),
    /// To set the norms that the next step is judged by, each as its bits.
    Norms(Vec<u64>),
    /// For what its journal says: [`Said`](crate::resume::Said) of each commit.
    Commits,
    /// For whether the version of this commit is whole; if not, why.
    Proves(u64),
    /// To go on behind this commit.
    GoBackTo(u64),
    /// To let new state files take their names.
    Publish,
    /// To let state files go.
    Discard,
    /// To give back what was reserved.
    Close,
    /// For what is known outside of a session.
    Ask(Value),
    /// To end the process's part: after the answer it reads no further call. With the signal that ended the run before
    /// its last step, if one did.
    End(Option<i32>),
}

/// What a rank is opened with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opening {
    pub plan: Plan,
    clip: (Clip, u32, bool),
    /// Of spikes the factor's bits, the window and the action.
    spikes: Option<(u64, usize, SpikeAction)>,
    pub threads: usize,
    pub poison: bool,
    pub watchdog_ms: u64,
    /// How many ranks each host has.
    pub of_host: usize,
    disk: Disk,
}

#[derive(Debug, Serialize, Deserialize)]
enum Disk {
    None,
    Directories(Vec<(PathBuf, f64)>),
    Instead(Vec<(PathBuf, f64)>),
    Durable {
        drives: Vec<(PathBuf, f64)>,
        /// The run's number in hexadecimal digits: JSON's numbers are shorter.
        run: String,
        open: Found,
    },
}

/// As [`Open`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Found {
    Create,
    Replace,
    Existing,
}

impl Opening {
    pub fn new(
        plan: Plan,
        clip: ClipRule,
        (threads, poison, watchdog_ms, of_host): (usize, bool, u64, usize),
        disk: &DiskChoice,
    ) -> Self {
        let disk = match disk {
            DiskChoice::None => Disk::None,
            DiskChoice::Directories(drives) => Disk::Directories(drives.clone()),
            DiskChoice::Instead(drives) => Disk::Instead(drives.clone()),
            DiskChoice::Durable { drives, run, open } => Disk::Durable {
                drives: drives.clone(),
                run: format!("{run:x}"),
                open: match open {
                    Open::Create => Found::Create,
                    Open::Replace => Found::Replace,
                    Open::Existing => Found::Existing,
                },
            },
            DiskChoice::Open(_) => panic!("a disk of one rank for several"),
        };
        Self {
            plan,
            clip: (clip.mode, clip.max_norm.to_bits(), clip.skip_nonfinite),
            spikes: clip
                .spikes
                .map(|rule| (rule.factor.to_bits(), rule.window, rule.action)),
            threads,
            poison,
            watchdog_ms,
            of_host,
            disk,
        }
    }

    pub fn clip(&self) -> ClipRule {
        let (mode, max_norm, skip_nonfinite) = self.clip;
        ClipRule {
            mode,
            max_norm: f32::from_bits(max_norm),
            skip_nonfinite,
            spikes: self.spikes.map(|(factor, window, action)| SpikeRule {
                factor: f64::from_bits(factor),
                window,
                action,
            }),
        }
    }

    pub fn disk(&self) -> DiskChoice {
        match &self.disk {
            Disk::None => DiskChoice::None,
            Disk::Directories(drives) => DiskChoice::Directories(drives.clone()),
            Disk::Instead(drives) => DiskChoice::Instead(drives.clone()),
            Disk::Durable { drives, run, open } => DiskChoice::Durable {
                drives: drives.clone(),
                // Of no run where it is no number: then no file is found to be this run's.
                run: u128::from_str_radix(run, 16).unwrap_or(0),
                open: match open {
                    Found::Create => Open::Create,
                    Found::Replace => Open::Replace,
                    Found::Existing => Open::Existing,
                },
            },
        }
    }
}

/// A rank's part of a step. Real numbers cross as their bits, so none is rounded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    pub part: PartName,
    loss_scale: u32,
    update: Option<Update>,
    /// Numbers of each plane of each micro-batch.
    planes: Vec<[usize; 4]>,
    /// Which micro-batches of training they are.
    place: Option<Place>,
    /// Of a durable run, as [`StepData`] has them.
    mark: Option<Box<Mark>>,
    commits: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Update {
    /// As [`Hyper`] has them.
    settings: [u32; 8],
    step: u64,
}

impl Update {
    fn of(h: Hyper) -> Self {
        let settings = [
            h.lr,
            h.beta1,
            h.beta2,
            h.eps,
            h.weight_decay,
            h.clip_threshold,
            h.decay_rate,
            h.grad_scale,
        ];
        Self {
            settings: settings.map(f32::to_bits),
            step: h.step,
        }
    }

    fn hyper(&self) -> Hyper {
        let [
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            clip_threshold,
            decay_rate,
            grad_scale,
        ] = self.settings.map(f32::from_bits);
        Hyper {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            clip_threshold,
            decay_rate,
            step: self.step,
            grad_scale,
        }
    }
}

impl Part {
    /// A part's data, with the bytes of its inputs.
    pub fn new(part: PartName, step: &StepData) -> (Self, Vec<u8>) {
        let planes = |m: &Micro| m.planes().map(<[i32]>::len);
        let all = step.inputs.iter().flat_map(Micro::planes).flatten();
        let bytes = all.flat_map(|x| x.to_le_bytes()).collect();
        let part = Self {
            part,
            loss_scale: step.loss_scale.to_bits(),
            update: step.update.map(Update::of),
            planes: step.inputs.iter().map(planes).collect(),
            place: step.place,
            mark: step.mark.clone().map(Box::new),
            commits: step.commits,
        };
        (part, bytes)
    }

    /// The data of the part; `None` where its inputs are not all there.
    pub fn data(&self, bytes: &[u8]) -> Option<StepData> {
        let words = bytes.chunks_exact(4);
        let mut words = words.map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut plane = |n: usize| -> Option<Vec<i32>> {
            let all: Vec<i32> = words.by_ref().take(n).collect();
            (all.len() == n).then_some(all)
        };
        let micro = |&[tokens, labels, positions, doc_start]: &[usize; 4]| {
            Some(Micro {
                tokens: plane(tokens)?,
                labels: plane(labels)?,
                positions: plane(positions)?,
                doc_start: plane(doc_start)?,
            })
        };
        let inputs = self.planes.iter().map(micro).collect::<Option<Vec<_>>>()?;
        let update = self.update.as_ref().map(Update::hyper);
        Some(StepData::received(
            inputs,
            f32::from_bits(self.loss_scale),
            update,
            self.place,
            (self.mark.as_deref().cloned(), self.commits),
        ))
    }
}

/// Why a call was not done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Fault {
    /// A number of the step is not finite.
    NonFinite { task: String, what: String },
    /// A norm far above those before it.
    Spike { task: String, what: String },
    /// A panic: our bug.
    Panic { task: String, message: String },
    /// Lanes that stand still: our bug.
    Stuck { seconds: u64, chain: String },
    /// Something of the rank's own: a drive, memory, its device.
    Own(String),
    /// Another rank's end.
    Consequence(String),
}

impl Fault {
    pub fn of(error: &ExecError) -> Self {
        match error.clone() {
            ExecError::Engine {
                task,
                source: EngineError::NonFinite(what),
            } => Self::NonFinite { task, what },
            ExecError::Engine {
                task,
                source: EngineError::Spike(what),
            } => Self::Spike { task, what },
            ExecError::Panic { task, message } => Self::Panic { task, message },
            ExecError::Stuck { seconds, chain } => Self::Stuck { seconds, chain },
            ExecError::Ranks { source, .. } if source.is_consequence() => {
                Self::Consequence(source.to_string())
            }
            ExecError::Stopped => Self::Consequence(error.to_string()),
            _ => Self::Own(error.to_string()),
        }
    }

    pub fn error(self, rank: usize) -> ExecError {
        match self {
            Self::NonFinite { task, what } => ExecError::Engine {
                task,
                source: EngineError::NonFinite(what),
            },
            Self::Spike { task, what } => ExecError::Engine {
                task,
                source: EngineError::Spike(what),
            },
            Self::Panic { task, message } => ExecError::Panic { task, message },
            Self::Stuck { seconds, chain } => ExecError::Stuck { seconds, chain },
            Self::Own(what) => ExecError::Elsewhere { rank, what },
            Self::Consequence(_) => ExecError::Stopped,
        }
    }
}

/// Writes a head and what is behind it.
pub(super) fn put(line: &mut Calls, head: &impl Serialize, body: &[u8]) -> io::Result<()> {
    let head = serde_json::to_vec(head).map_err(io::Error::other)?;
    send(line, &head)?;
    send(line, body)
}

/// Reads a head and what is behind it; `None` at the line's end.
pub(super) fn get<T: for<'a> Deserialize<'a>>(
    line: &mut Calls,
) -> io::Result<Option<(T, Vec<u8>)>> {
    let Some(head) = receive(line, HEAD)? else {
        return Ok(None);
    };
    let head = serde_json::from_slice(&head).map_err(io::Error::other)?;
    let body = receive(line, BODY)?.ok_or(ErrorKind::UnexpectedEof)?;
    Ok(Some((head, body)))
}
