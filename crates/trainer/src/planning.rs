//! What a checked run says to the planner: the model's shape, its workload, budgets, pins, a machine's rates.
//!
//! One file because each of these reads the run's keys, and every command reads all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_config as config;
use lowtide_config::{ModelSource, Run};
use lowtide_device::cuda::{CudaError, Gpu, process_memory};
use lowtide_measure::Drive;
use lowtide_model::{Decoder, ModelError, Options, Rate, RateGroup, check_rates};
use lowtide_planner::{
    Activations, Budgets, Clip, LoopOrder, Machine, Pieces, Pins, Plan, Processor, Tier,
};
use lowtide_report::memory::Memory;
use lowtide_tiers::{HostLimit, HostMemory, process};
use lowtide_units::Bytes;
use lowtide_workload::{Batch, ModelShape, Objective};

use crate::beside::PlannedAnswers;
use crate::checkpoint::background::StagingPlan;
use crate::classes;
use crate::device::{Device, Target};
use crate::error::{Asked, TrainError};
use crate::launch::least_of_others;
use crate::paths;
use crate::resident::Resident;
use crate::shown::memory;
use crate::threads::check_threads;
use lowtide_session::{ClipRule, SpikeAction, SpikeRule};

/// A run with a plan.
#[derive(Debug)]
pub struct Planned {
    /// The device that it runs on.
    pub device: Device,
    /// The model at the run's batch.
    pub decoder: Arc<Decoder>,
    /// The plan that the session is opened with.
    pub plan: Arc<Plan>,
    /// The rates it was made with: as each rank has them.
    pub machine: Machine,
    /// The machine as it was measured, or as its file has it.
    pub whole: Machine,
    /// Clipping.
    pub clip: ClipRule,
    /// Host memory of the process.
    pub resident: Resident,
    /// The plan of answers with a cache, whose memory is held beside that of the steps.
    pub answers: Option<PlannedAnswers>,
    /// Host memory that checkpoints pass through while steps go on; `None`: a run stops for them.
    pub staging: Option<StagingPlan>,
    /// What all of these may reserve.
    pub budgets: Budgets,
}

impl Planned {
    /// The same with answers beside the steps.
    #[must_use]
    pub fn beside(self, answers: Option<PlannedAnswers>) -> Self {
        let more = answers.as_ref().map_or(Bytes::ZERO, |answers| {
            answers.host_bytes(self.device.gpu.is_some())
        });
        let resident = Resident {
            beside: self.resident.beside + more,
            ..self.resident
        };
        Self {
            resident,
            answers,
            ..self
        }
    }

    /// The same with checkpoints that are written while steps go on.
    #[must_use]
    pub fn staged(self, staging: StagingPlan) -> Self {
        let resident = Resident {
            beside: self.resident.beside + staging.bytes(),
            ..self.resident
        };
        Self {
            resident,
            staging: Some(staging),
            ..self
        }
    }

    /// Bytes that steps and answers reserve of a tier, on each rank.
    #[must_use]
    pub fn reserved(&self, tier: Tier) -> Bytes {
        self.plan.tier(tier).planned_bytes + self.beside_the_steps(tier)[0]
    }

    /// Bytes of a tier that answers take, and that checkpoints pass through.
    fn beside_the_steps(&self, tier: Tier) -> [Bytes; 2] {
        let answers = self.answers.as_ref().map(|answers| answers.bytes(tier));
        let staging = self.staging.filter(|_| tier == Tier::Host);
        let staging = staging.map(|staging| staging.bytes());
        [answers, staging].map(|n| n.unwrap_or(Bytes::ZERO))
    }

    /// Host memory of the process, of all ranks of this host, which is more than the plan's.
    #[must_use]
    pub fn of_process(&self) -> String {
        let Resident { beside, start, .. } = self.resident;
        let most = self.resident.planned(&self.plan, &self.machine);
        match most > start {
            true => format!(
                "host memory of the process: {most} at most, {beside} of it beside the plan (program, libraries, data, \
                 batches)"
            ),
            false => format!(
                "host memory of the process: {most} at most, which it has held to read data and to plan"
            ),
        }
    }

    /// All that is reserved, as the table that people are shown.
    #[must_use]
    pub fn memory(&self) -> Memory {
        memory(&self.plan, &self.budgets, |tier| {
            self.beside_the_steps(tier)
        })
    }
}

/// The shape with as many classes as the run names.
fn with_classes(run: &Run, shape: ModelShape) -> Result<ModelShape, TrainError> {
    match (shape.objective, run.model.labels.len() as u32) {
        (_, 0) => Ok(shape),
        (Objective::NextToken, _) => {
            let why = "the model predicts the next token: it has no classes";
            Err(classes::other("model.labels", why))
        }
        (Objective::Classes(_), n) => Ok(ModelShape {
            objective: Objective::Classes(n),
            ..shape
        }),
    }
}

/// The shape a run names.
///
/// # Errors
/// An unknown name, or a `config.json` that cannot be read or is not supported.
pub fn shape_of(run: &Run) -> Result<ModelShape, TrainError> {
    paths::model(run)?;
    let shape = match &run.model.source {
        ModelSource::Path(dir) => lowtide_model::load_shape_for(dir, run.train.seq)?,
        ModelSource::Shape(name) => ModelShape::builtin(name)
            .ok_or_else(|| TrainError::UnknownShape { name: name.clone() })?,
        ModelSource::Config(path) => lowtide_model::load_config_for(path, run.train.seq)?,
    };
    let shape = with_classes(run, shape)?;
    // Where positions are a table; elsewhere when the model is used at this length.
    if shape.rope.is_none() {
        check_length(run, &shape)?;
    }
    Ok(shape)
}

/// Whether the model has positions for the run's sequences.
pub(crate) fn check_length(run: &Run, shape: &ModelShape) -> Result<(), TrainError> {
    if run.train.seq > shape.max_positions {
        return Err(TrainError::TooLong {
            seq: run.train.seq,
            positions: shape.max_positions,
            config: match &run.model.source {
                ModelSource::Path(dir) => Some(dir.join("config.json")),
                ModelSource::Config(path) => Some(path.clone()),
                ModelSource::Shape(_) => None,
            },
            key: lowtide_model::positions_key(shape),
        });
    }
    Ok(())
}

/// The decoder of a run, at its batch (of all ranks), for a device: one rank's.
///
/// # Errors
/// As [`shape_of`].
pub fn decoder_of(run: &Run, batch: Batch, target: Target) -> Result<Arc<Decoder>, TrainError> {
    let shape = shape_of(run)?;
    check_length(run, &shape)?;
    let options = options_of(run, &shape, batch, target)?;
    let decoder = Decoder::new(&shape, &options)?
        .of_ranks(run.gpus)
        .in_a_tree(run.train.leaves);
    Ok(Arc::new(numbers_of(run, decoder)))
}

/// A decoder with what of a run decides its numbers and nothing of its workload.
pub(crate) fn numbers_of(run: &Run, decoder: Decoder) -> Decoder {
    decoder
        .smoothing(run.train.label_smoothing as f32)
        .neftune(run.train.neftune_alpha, run.seed)
        .rates(&rates_of(run))
}

/// Tensors that are updated with settings of their own.
fn rates_of(run: &Run) -> Vec<RateGroup> {
    let share = |rate: f64| rate / run.train.learning_rate;
    let groups = run.optimizer.groups.iter();
    let of = |g: &config::Group| RateGroup {
        names: g.names.clone(),
        rate: Rate {
            share: g.learning_rate.map_or(1.0, share),
            weight_decay: g.weight_decay,
        },
    };
    groups.map(of).collect()
}

/// What beside its shape decides the work of a run's model, of each rank; `batch` is that of all.
///
/// # Errors
/// Patterns of names that do not suit the shape; several GPUs for a model of two stacks.
pub fn options_of(
    run: &Run,
    shape: &ModelShape,
    batch: Batch,
    target: Target,
) -> Result<Options, TrainError> {
    if shape.stacks.is_some() && run.gpus > 1 {
        let what = "trained on several GPUs (gpus)";
        return Err(ModelError::StacksLack { what }.into());
    }
    if shape.stacks.is_some() && run.train.neftune_alpha > 0.0 {
        let what = "trained with noise on its embeddings (train.neftune_alpha)";
        return Err(ModelError::StacksLack { what }.into());
    }
    let frozen = lowtide_model::frozen(shape, &run.train.freeze, &run.train.unfreeze)?;
    check_rates(shape, &rates_of(run), &frozen)?;
    Ok(Options {
        frozen,
        lsp: run.lsp,
        precision: run.precision,
        gradient: run.train.gradient,
        optimizer: run.optimizer.what(),
        batch: Batch {
            accumulate: (batch.accumulate / run.gpus).max(1),
            ..batch
        },
        logits_chunk: run.train.logits_chunk,
        rows_chunk: run.train.rows_chunk,
        make: target.make,
        attention: target.attention,
    })
}

/// A run's clipping.
#[must_use]
pub fn clip_of(run: &Run) -> ClipRule {
    ClipRule {
        mode: match run.train.clip.mode {
            config::ClipMode::Exact => Clip::Exact,
            config::ClipMode::Previous => Clip::Previous,
            config::ClipMode::None => Clip::None,
        },
        max_norm: run.train.clip.norm as f32,
        skip_nonfinite: run.train.on_nonfinite == config::NonFinite::Skip,
        spikes: run.train.spike.map(|spike| SpikeRule {
            factor: spike.factor,
            window: spike.window as usize,
            action: match spike.action {
                config::SpikeAction::Warn => SpikeAction::Warn,
                config::SpikeAction::Skip => SpikeAction::Skip,
                config::SpikeAction::Stop => SpikeAction::Stop,
            },
        }),
    }
}

/// Bytes of the tokens of a batch with labels, positions and where documents begin.
pub(crate) fn batch_bytes(batch: Batch) -> Bytes {
    let rows = u64::from(batch.micro_batch).saturating_mul(u64::from(batch.accumulate));
    let tokens = u64::from(batch.seq) + u64::from(batch.target);
    Bytes(rows.saturating_mul(tokens).saturating_mul(16))
}

/// Holds a run's budgets against what the machine has at all, free or not: a plan for more would be
/// made and could not be kept.
///
/// # Errors
/// [`TrainError::Budget`] with what was asked for and what there is; [`TrainError::Threads`].
pub fn check_budgets(run: &Run, device: &Device) -> Result<(), TrainError> {
    check_threads(run)?;
    let host = HostMemory::now();
    let (on_device, on_host) = (run.budget.device, run.budget.host);
    let open = Bytes::ZERO;
    let (of, asked) = match (device.gpu.is_none(), on_device, on_host) {
        (true, Some(_), None) => (Asked::Device, on_device),
        // The CPU device's arenas are host memory too.
        (true, Some(d), Some(h)) => {
            let d = d.0.saturating_mul(u64::from(run.gpus_of_host()));
            (Asked::DeviceAndHost, Some(Bytes(d.saturating_add(h.0))))
        }
        _ => (Asked::Host, on_host),
    };
    // One batch in flight and one prepared.
    let tokens = Bytes(2_u64.saturating_mul(batch_bytes(run.batch()).0));
    for (of, asked) in [(Asked::Batch, tokens), (of, asked.unwrap_or(open))] {
        if asked > host.total {
            let what = match host.limit {
                HostLimit::Machine => "the machine".to_owned(),
                group => format!("the machine or this process's {group}"),
            };
            let have = host.total;
            return Err(TrainError::Budget {
                of,
                asked,
                have,
                what,
            });
        }
    }
    // Directories of one file system share it.
    let mut systems: BTreeMap<u64, u64> = BTreeMap::new();
    for disk in &run.budget.disk {
        let there = disk.dir.ancestors().find(|dir| dir.exists());
        let Some((have, system)) = there.and_then(|dir| process::disk_total(dir).ok()) else {
            continue;
        };
        let asked = systems.entry(system).or_default();
        *asked = asked.saturating_add(disk.size.0);
        if *asked > have.0 {
            return Err(TrainError::Budget {
                of: Asked::Disk,
                asked: Bytes(*asked),
                have,
                what: format!("the file system of {}", disk.dir.display()),
            });
        }
    }
    Ok(())
}

/// What is free of a GPU, with what this process holds there already, which counts against its budget; and all of it.
pub(crate) fn free_of(gpu: &Gpu) -> Result<(Bytes, Bytes), CudaError> {
    let (free, total) = gpu.memory()?;
    let mine = process_memory(gpu.bus()).and_then(|m| m.process);
    Ok((Bytes(free.0 + mine.unwrap_or_default().0), total))
}

/// A run's budgets, of each rank: the host and the drives are shared evenly. What it leaves open is what is free now,
/// less a reserve for everything that is not in an arena.
///
/// # Errors
/// As [`check_budgets`], and when a GPU has less memory free than the run's budget.
pub fn budgets_of(run: &Run, device: &Device) -> Result<Budgets, TrainError> {
    check_budgets(run, device)?;
    if let Some(gpu) = &device.gpu {
        // A GPU's context, libraries and their kernels take most of a gigabyte of the host too.
        let free = HostMemory::available().saturating_sub(Bytes::GIB);
        let others = device.group.iter().flat_map(|group| &group.gpus);
        let mut least: Option<(Bytes, Bytes)> = None;
        for gpu in std::iter::once(gpu).chain(others) {
            let memory = free_of(gpu)?;
            least = Some(least.map_or(memory, |least| least.min(memory)));
        }
        let (free_device, total) = match least_of_others(device)? {
            Some(there) => there.min(least.expect("one GPU at least")),
            None => least.expect("one GPU at least"),
        };
        if let Some(need) = run.budget.device.filter(|&need| need > free_device) {
            return Err(CudaError::Memory {
                need,
                free: free_device,
                total,
            }
            .into());
        }
        return Ok(of_rank(
            run,
            Budgets {
                device: run
                    .budget
                    .device
                    .unwrap_or(free_device.saturating_sub(Bytes::MIB * 256)),
                host: run.budget.host.unwrap_or(free),
                disk: run.budget.disk_total(),
            },
        ));
    }
    Ok(cpu_budgets_of(run))
}

/// As [`budgets_of`] for the CPU device, and for plans of other machines.
#[must_use]
pub fn cpu_budgets_of(run: &Run) -> Budgets {
    let free = HostMemory::available().saturating_sub(Bytes::MIB * 512);
    let half = Bytes(free.0 / 2);
    let ranks = u64::from(run.gpus_of_host());
    let budgets = Budgets {
        // The CPU device's arena is host memory too: each gets half where neither is given.
        device: run.budget.device.unwrap_or(match run.budget.host {
            Some(host) => Bytes(free.saturating_sub(host).0 / ranks),
            None => Bytes(half.0 / ranks),
        }),
        host: run.budget.host.unwrap_or(match run.budget.device {
            Some(device) => free.saturating_sub(device * ranks),
            None => half,
        }),
        disk: run.budget.disk_total(),
    };
    of_rank(run, budgets)
}

/// A rank's part of what ranks of one host share.
fn of_rank(run: &Run, whole: Budgets) -> Budgets {
    let part = |whole: Bytes| Bytes(whole.0 / u64::from(run.gpus_of_host()));
    Budgets {
        host: part(whole.host),
        disk: part(whole.disk),
        ..whole
    }
}

/// The knobs a run holds fast.
#[must_use]
pub fn pins_of(run: &Run) -> Pins {
    let tier = |t: Option<config::Tier>| {
        t.map(|t| match t {
            config::Tier::Device => Tier::Device,
            config::Tier::Host => Tier::Host,
            config::Tier::Disk => Tier::Disk,
        })
    };
    let p = &run.plan;
    Pins {
        order: p.loop_order.map(|order| match order {
            config::Loop::Order(config::LoopOrder::BatchMajor) => LoopOrder::BatchMajor,
            config::Loop::Order(config::LoopOrder::LayerMajor) | config::Loop::Groups(_) => {
                LoopOrder::LayerMajor
            }
        }),
        round: match p.loop_order {
            Some(config::Loop::Groups(micro_batches)) => micro_batches,
            _ => 0,
        },
        weights: tier(p.weights),
        optimizer: tier(p.optimizer),
        gradients: tier(p.gradients),
        inputs: tier(p.inputs),
        recompute: p.recompute.map(|r| match r {
            config::Recompute::Nothing => 0,
            config::Recompute::All => u32::MAX,
            config::Recompute::Blocks(n) => n,
        }),
        activations: p.activations.map_or(Activations::Auto, |a| match a {
            config::Activations::Recompute => Activations::Recompute,
            config::Activations::Offload => Activations::Offload,
            config::Activations::Keep => Activations::Keep,
        }),
        offload: p.offload.map(|tier| match tier {
            config::Offload::Host => Tier::Host,
            config::Offload::Disk => Tier::Disk,
        }),
        min_gain: p.min_gain,
        writes: None,
        prefetch: p.prefetch.map(|n| n as u8),
        pieces: p.pieces.map(|p| match p {
            config::Pieces::Block => Pieces::Unit,
            config::Pieces::Split => Pieces::Split(1),
        }),
        update: run.optimizer.update.map(|u| match u {
            config::UpdateOn::Host => Processor::Host,
            config::UpdateOn::Device => Processor::Device,
        }),
        durable: run.checkpoint.durable,
        bounce: !direct_of(run),
    }
}

/// Whether a run's bytes may pass the host by between drives and GPU.
pub(crate) fn direct_of(run: &Run) -> bool {
    run.plan.direct != Some(config::Direct::Never)
}

/// A run's drives, to be measured within what the run may take of them.
#[must_use]
pub fn probed(run: &Run) -> Vec<Drive> {
    let drives = run.budget.disk.iter().map(|d| Drive {
        dir: d.dir.clone(),
        most: Some(d.size),
    });
    drives.collect()
}

/// Reads a machine's rates.
///
/// # Errors
/// When the file cannot be read or does not say what it must, or says what no machine can do.
pub fn load_machine(path: &Path) -> Result<Machine, TrainError> {
    let fail = |what: String| TrainError::File {
        path: path.to_owned(),
        what,
    };
    let bytes = lowtide_files::read(path, MACHINE_MAX)?;
    let machine: Machine = lowtide_files::json_from_slice(&bytes)
        .map_err(|e| fail(format!("not a machine file: {e}")))?;
    machine.check().map_err(|e| fail(e.to_string()))?;
    Ok(machine)
}

/// The longest machine file, in bytes: `lowtide probe` writes some ten thousand.
const MACHINE_MAX: u64 = 16 << 20;

/// Directories of a run's drives.
#[must_use]
pub fn directories_of(run: &Run) -> Vec<PathBuf> {
    run.budget.disk.iter().map(|d| d.dir.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file is untrusted: nothing is read without a limit.
    #[test]
    fn a_machine_file_is_a_regular_file_of_some_size() {
        let dir = tempfile::tempdir().expect("a directory");
        let refused = |path: &Path, word: &str| {
            let error = load_machine(path).expect_err("refused").to_string();
            let name = path.display().to_string();
            assert!(error.contains(word) && error.contains(&name), "{error}");
        };
        refused(Path::new("/dev/zero"), "not a file");
        refused(dir.path(), "not a file");
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.expect("mkfifo").success());
        refused(&fifo, "not a file");
        let long = dir.path().join("long.json");
        let file = std::fs::File::create(&long).expect("a file");
        file.set_len(1 << 40).expect("a sparse file");
        refused(&long, "at most");
        refused(&dir.path().join("gone"), "o such file");
    }
}
