//! Measures this machine: what `lowtide probe` stores and what a run plans with.
//!
//! Rates are measured as the run will use them: the same kernels, the same threads, the same
//! directories. With a workload, every distinct operation is timed at its own shape.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lowtide_device::{Memory, Queue, memory};
use lowtide_kernels::adamw::{self, Hyper, Segment};
use lowtide_kernels::matmul::{self, Dims};
use lowtide_model::{Arg, Call, Decoder, Phase};
use lowtide_planner::{DiskRates, Machine, Shared, Source};
use lowtide_tiers::{Arena, Fill, ProbeConfig, TierError};
use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::{Dtype, What};

use crate::data::Micro;

/// What to measure.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Threads that compute.
    pub threads: usize,
    /// Directories of the drives; none: the disk is not measured.
    pub directories: Vec<PathBuf>,
    /// Seconds spent on each figure, about.
    pub seconds: f64,
    /// Day of measurement.
    pub date: String,
}

/// The lower quartile of the time of `work`, repeated for about `seconds`, at least five times:
/// what it takes when nothing else disturbs it much.
fn quartile(seconds: f64, mut work: impl FnMut()) -> f64 {
    work();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < seconds && times.len() < 1000) {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

/// Measures the CPU device, host memory and the drives; and, given a decoder, its operations on
/// `sample`: packed documents make attention cheaper, and unsupervised rows the loss.
///
/// # Errors
/// When memory or a directory cannot be had.
pub fn probe(
    options: &ProbeOptions,
    decoder: Option<&Decoder>,
    sample: Option<&Micro>,
) -> Result<Machine, TierError> {
    let q = Queue::new("probe", options.threads);
    let (matmul_bf16, matmul_f32) = (
        product(&q, Dtype::Bf16, options.seconds)?,
        product(&q, Dtype::F32, options.seconds)?,
    );
    let copy = copy_rate(options.seconds)?;
    let adamw = adamw_rate(&q, options.seconds)?;
    let install = quartile(options.seconds.min(0.05), || q.run(|| ()));
    let wake = wake_time();
    let disk = match options.directories.as_slice() {
        [] => None,
        dirs => Some(disk_rates(dirs, options.seconds)?),
    };
    let cores = options.threads as f64;
    let one = 1.0 / cores;
    let mut machine = Machine {
        name: "this machine, CPU device".to_owned(),
        date: options.date.clone(),
        source: Source::Measured,
        note: format!("lowtide probe, {} threads", options.threads),
        matmul_bf16,
        matmul_f32,
        device_memory: BytesPerSecond(2.0 * copy),
        op_overhead: Seconds(install),
        h2d: BytesPerSecond(copy),
        d2h: BytesPerSecond(copy),
        copy_overhead: Seconds(wake),
        host_adamw: adamw,
        device_adamw: adamw,
        host_overhead: Seconds(wake + install),
        disk,
        // On the CPU device every lane computes on the same cores.
        shared: vec![Shared {
            name: "cores".to_owned(),
            share: BTreeMap::from([
                ("gpu".to_owned(), 1.0),
                ("host".to_owned(), 1.0),
                ("h2d".to_owned(), one),
                ("d2h".to_owned(), one),
                ("disk".to_owned(), 0.2 * one),
            ]),
        }],
        ops: BTreeMap::new(),
    };
    if let Some(decoder) = decoder {
        machine.ops = operations(&q, decoder, sample, options.seconds.min(0.03))?;
    }
    Ok(machine)
}

fn product(q: &Queue, dtype: Dtype, seconds: f64) -> Result<FlopsPerSecond, TierError> {
    let d = Dims {
        rows: 256,
        inner: 512,
        cols: 512,
    };
    let size = dtype.size();
    let ws = matmul::workspace(d, dtype, q.make()).max(1) as u64;
    let (x, w, y) = (256 * 512 * size, 512 * 512 * size, 256 * 512 * size);
    let arena = Memory::new(Arena::new(Bytes(x + w + y + ws + 4096), Fill::Zero)?);
    let s = quartile(seconds, || {
        matmul::forward(
            q,
            arena.view(x + w, y),
            arena.view(0, x),
            arena.view(x, w),
            None,
            None,
            d,
            dtype,
            arena.view((x + w + y).next_multiple_of(256), ws),
        );
    });
    Ok(FlopsPerSecond(2.0 * 256.0 * 512.0 * 512.0 / s))
}

fn copy_rate(seconds: f64) -> Result<f64, TierError> {
    let bytes = 32u64 << 20;
    let arena = Memory::new(Arena::new(Bytes(2 * bytes), Fill::Zero)?);
    let s = quartile(seconds, || {
        memory::copy(&arena.view(bytes, bytes), &arena.view(0, bytes))
    });
    Ok(bytes as f64 / s)
}

fn adamw_rate(q: &Queue, seconds: f64) -> Result<f64, TierError> {
    let n = 1u64 << 21;
    let arena = Memory::new(Arena::new(Bytes(14 * n), Fill::Zero)?);
    let segments = [Segment {
        offset: 0,
        elements: n as usize,
        decay: true,
    }];
    let hyper = Hyper {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step: 1,
        grad_scale: 1.0,
    };
    let s = quartile(seconds, || {
        adamw::step(
            q,
            arena.view(0, 2 * n),
            Some(arena.view(2 * n, 2 * n)),
            arena.view(4 * n, 4 * n),
            arena.view(8 * n, 4 * n),
            arena.view(12 * n, 2 * n),
            Dtype::Bf16,
            Dtype::Bf16,
            &segments,
            &hyper,
        );
    });
    Ok(n as f64 / s)
}

/// Half of the time that a signal to another thread and its answer take.
fn wake_time() -> f64 {
    const ROUNDS: u32 = 200;
    let turn = (Mutex::new(0u32), Condvar::new());
    let play = |parity: u32| {
        let mut n = turn.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *n < 2 * ROUNDS {
            if *n % 2 == parity {
                *n += 1;
                turn.1.notify_all();
            } else {
                let limit = Duration::from_millis(100);
                n = turn
                    .1
                    .wait_timeout(n, limit)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
        turn.1.notify_all();
    };
    let start = Instant::now();
    std::thread::scope(|s| {
        s.spawn(|| play(1));
        play(0);
    });
    start.elapsed().as_secs_f64() / f64::from(2 * ROUNDS)
}

fn disk_rates(dirs: &[PathBuf], seconds: f64) -> Result<DiskRates, TierError> {
    let (mut read, mut write, mut mixed) = (0.0, 0.0, 0.0);
    for dir in dirs {
        std::fs::create_dir_all(dir).map_err(|e| TierError::File {
            action: "creating",
            path: dir.clone(),
            os: (&e).into(),
        })?;
        let config = ProbeConfig {
            time: Duration::from_secs_f64(seconds.max(0.1)),
            ..ProbeConfig::default()
        };
        let rates = lowtide_tiers::probe(dir, &config)?;
        // Striping by measured rate makes them add up.
        read += rates.read.0;
        write += rates.write.0;
        mixed += rates.mixed.0;
    }
    Ok(DiskRates {
        read: BytesPerSecond(read),
        write: BytesPerSecond(write),
        mixed: BytesPerSecond(mixed),
        latency: Seconds(2e-4),
    })
}

/// Times every distinct operation of a decoder at its own shape, on zeros but for the inputs.
fn operations(
    q: &Queue,
    decoder: &Decoder,
    sample: Option<&Micro>,
    seconds: f64,
) -> Result<BTreeMap<String, Seconds>, TierError> {
    let w = decoder.workload();
    let mut times = BTreeMap::new();
    for (u, unit) in w.units.iter().enumerate() {
        for phase in [
            Phase::Forward,
            Phase::Backward,
            Phase::Evaluate,
            Phase::Infer,
        ] {
            for (i, op) in phase.ops(unit).iter().enumerate() {
                if times.contains_key(&op.key) {
                    continue;
                }
                let sizes: Vec<u64> = op
                    .operands
                    .iter()
                    .map(|o| match o.what {
                        What::Local(t) => unit.tensors[t as usize].bytes.0,
                        What::Weight(p) => w.params[p as usize].elements * w.precision.size(),
                        What::Gradient(p) => w.params[p as usize].elements * 4,
                        What::Inputs => w.batch.input_bytes().0,
                        What::Loss => 16,
                    })
                    .collect();
                let total: u64 = sizes.iter().map(|s| s.next_multiple_of(256)).sum();
                let ws = op.workspace.0;
                let arena = Memory::new(Arena::new(Bytes(total + ws + 256), Fill::Zero)?);
                let mut at = 0;
                let args: Vec<Arg<'_>> = sizes
                    .iter()
                    .zip(&op.operands)
                    .map(|(&s, operand)| {
                        let view = arena.view(at, s);
                        at += s.next_multiple_of(256);
                        if let (What::Inputs, Some(sample)) = (operand.what, sample) {
                            sample.store(&view);
                        }
                        Arg { view, fresh: true }
                    })
                    .collect();
                let call = Call {
                    unit: u,
                    phase,
                    op: i,
                    args: &args,
                    workspace: arena.view(at, ws),
                    loss_scale: 1.0,
                };
                let s = quartile(seconds, || decoder.run(q, &call));
                times.insert(op.key.clone(), Seconds(s));
            }
        }
    }
    Ok(times)
}
