//! The device that a run computes on: opened here, or known only by a machine's rates.

use lowtide_config as config;
use lowtide_config::Run;
use lowtide_device::Make;
use lowtide_device::cuda::{CudaError, Gpu, Pace};
use lowtide_kernels::attention::{self, Attn, Engine};
use lowtide_planner::Machine;
use lowtide_workload::{Batch, Dtype, Mask, ModelShape};

use crate::error::TrainError;
use crate::launch::{self, Others};
use lowtide_session::Group;

/// What a workload is described for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Which make of device.
    pub make: Make,
    /// Who computes attention there.
    pub attention: Engine,
}

impl Target {
    /// Whether it is a GPU.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        self.make == Make::Cuda
    }
}

/// A run's device.
#[derive(Clone, Debug)]
pub struct Device {
    /// The GPU; `None`: the CPU device.
    pub gpu: Option<Gpu>,
    /// Of several: all of them, and the way between them.
    pub group: Option<Group>,
    /// What a workload on it is described for.
    pub target: Target,
    /// One line for people: what was chosen and why.
    pub note: String,
}

impl Device {
    /// The CPU device.
    #[must_use]
    pub fn cpu() -> Self {
        Self {
            gpu: None,
            group: None,
            target: Target::default(),
            note: "device: the processor's cores".to_owned(),
        }
    }

    /// So many ranks on the CPU device.
    fn cpu_of(ranks: u32) -> Self {
        let mut device = Self::cpu();
        if ranks > 1 {
            device.note = format!("{}, shared by {ranks} ranks", device.note);
        }
        device
    }
}

/// Opens the device that a run asks for, and probes who can compute its attention there.
///
/// `auto` takes the processor where no GPU can be used, and says why; what can be missing on a
/// machine that has a GPU (a library, say) is an error there too, because a run that silently takes
/// a hundred times as long helps nobody.
///
/// # Errors
/// A GPU that was asked for, or is there, and cannot be used.
pub fn open(run: &Run, shape: &ModelShape) -> Result<Device, TrainError> {
    open_with(run, shape, None)
}

/// As [`open`], where the other ranks are processes of their own.
pub(crate) fn open_with(
    run: &Run,
    shape: &ModelShape,
    others: Option<&Others>,
) -> Result<Device, TrainError> {
    if let Some(others) = others {
        let mut device = of_rank(run, shape, others.gpu())?;
        let group = others.group();
        if device.gpu.is_some() {
            device.note = connected(&device.note, run.gpus, &group);
        }
        device.note += ", each a process of its own";
        if run.hosts > 1 {
            device.note += &format!(", {} on each of {} hosts", run.gpus_of_host(), run.hosts);
        }
        launch::same_attention(&device, &group)?;
        device.group = Some(group);
        return Ok(device);
    }
    let gpu = match run.device {
        config::Device::Cpu => return cpu(run),
        config::Device::Cuda => Gpu::open(0)?,
        config::Device::Auto => match Gpu::open(0) {
            Ok(gpu) => gpu,
            Err(e @ (CudaError::NoDevice(_) | CudaError::TooOld { .. })) => {
                let mut device = cpu(run)?;
                device.note = format!("{} ({e})", device.note);
                return Ok(device);
            }
            Err(e) => return Err(e.into()),
        },
    };
    let mut device = on_gpu(run, shape, &gpu);
    if run.gpus > 1 {
        let group = group(&gpu, run.gpus)?;
        device.note = connected(&device.note, run.gpus, &group);
        device.group = Some(group);
    }
    Ok(device)
}

/// The device of one rank, on its GPU or on the CPU device, without its way to others.
pub(crate) fn of_rank(
    run: &Run,
    shape: &ModelShape,
    gpu: Option<&Gpu>,
) -> Result<Device, TrainError> {
    match gpu {
        None => cpu(run),
        Some(gpu) => Ok(on_gpu(run, shape, gpu)),
    }
}

/// A note on so many GPUs, and what moves bytes between them.
fn connected(note: &str, gpus: u32, group: &Group) -> String {
    format!("{note}; {gpus} of them, {}", group.comms[0].by())
}

/// A run's device on this GPU alone.
fn on_gpu(run: &Run, shape: &ModelShape, gpu: &Gpu) -> Device {
    let (engine, why) = engine_of(run, shape, |a| attention::supports(gpu, a, run.precision));
    let note = format!(
        "device: {} (compute capability {}.{}, driver for CUDA {}.{}); attention: {why}",
        gpu.name(),
        gpu.capability().0,
        gpu.capability().1,
        gpu.driver().0,
        gpu.driver().1,
    );
    let note = match gpu.pace() {
        None => note,
        Some(pace) => format!("{note}; links slowed down by {}: {pace}", CudaError::PACE),
    };
    Device {
        gpu: Some(gpu.clone()),
        group: None,
        target: Target {
            make: Make::Cuda,
            attention: engine,
        },
        note,
    }
}

/// The CPU device of a run. It has no link that could be slowed down.
fn cpu(run: &Run) -> Result<Device, TrainError> {
    match Pace::asked()? {
        None => Ok(Device::cpu_of(run.gpus_of_host())),
        Some(_) => Err(CudaError::NoLink.into()),
    }
}

/// The first so many GPUs, which must be alike, and the way between them.
fn group(first: &Gpu, gpus: u32) -> Result<Group, TrainError> {
    let all = (0..gpus).map(Gpu::open).collect::<Result<Vec<_>, _>>()?;
    match all.iter().find(|gpu| gpu.name() != first.name()) {
        None => Group::cuda(all, launch::patience()?).map_err(launch::unconnected),
        Some(other) => Err(TrainError::Unlike {
            first: first.name().to_owned(),
            ordinal: other.ordinal(),
            other: other.name().to_owned(),
        }),
    }
}

/// What a plan for another machine is described for: nothing of that machine can be asked.
#[must_use]
pub fn target_of(run: &Run, shape: &ModelShape, machine: &Machine) -> Target {
    if !machine.cuda {
        return Target::default();
    }
    let likely = |a: &Attn| match a.head_dim {
        64 | 96 | 128 => Ok(()),
        d => Err(format!("head dimension {d}")),
    };
    Target {
        make: Make::Cuda,
        attention: engine_of(run, shape, likely).0,
    }
}

/// Who computes a run's attention on a GPU, and why.
fn engine_of(
    run: &Run,
    shape: &ModelShape,
    supports: impl Fn(&Attn) -> Result<(), String>,
) -> (Engine, String) {
    let own = |why: &str| (Engine::Own, format!("own kernels ({why})"));
    if run.precision == Dtype::F32 {
        return own("precision is f32");
    }
    if run.data.packing {
        return own("rows hold several documents: data.packing");
    }
    if shape.stacks.is_some() {
        return own("scores have relative positions");
    }
    if shape.all_windows() {
        return own("every layer has a window");
    }
    let Batch {
        micro_batch, seq, ..
    } = run.batch();
    let a = Attn {
        batch: micro_batch as usize,
        seq: seq as usize,
        heads: shape.heads as usize,
        kv_heads: shape.kv_heads as usize,
        head_dim: shape.head_dim as usize,
        scale: match shape.scales.attention {
            Some(factor) => factor as f32,
            None => 1.0 / (shape.head_dim as f32).sqrt(),
        },
        cap: shape.scales.attention_cap.map(|cap| cap as f32),
        mask: Mask::Causal,
        engine: Engine::Cudnn,
    };
    match supports(&a) {
        Ok(()) if shape.window.is_some() => {
            let note = "cuDNN, in layers with a window own kernels";
            (Engine::Cudnn, note.to_owned())
        }
        Ok(()) => (Engine::Cudnn, "cuDNN".to_owned()),
        Err(why) => own(&format!("cuDNN: {why}")),
    }
}
