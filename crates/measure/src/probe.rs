//! Measures this machine: what `lowtide probe` stores and what a run plans with.
//!
//! Rates are measured as the run will use them: the same kernels, the same threads, the same
//! directories. With a workload, every distinct operation is timed at its own shape.
//!
//! One file because a machine is measured in one pass, on memory that its measurements share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lowtide_device::cuda::{self, CudaError, Gpu, NoDirect};
use lowtide_device::{Memory, Queue, memory};
use lowtide_kernels::gradient;
use lowtide_kernels::matmul::{self, Dims};
use lowtide_kernels::update::{self, Hyper, Operands, Segment, Types};
use lowtide_model::Decoder;
use lowtide_planner::{
    DirectRates, DiskRates, Lane, Machine, Shared, Source, Together, UpdateRate, Updates,
};
use lowtide_tiers::{Arena, Fill, MadeDirs, ProbeConfig, TierError, process};
use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::{Dtype, Optimizer, Param};

use crate::contention::{Alone, Lanes, LanesConfig};
use crate::error::MeasureError;
use crate::later;
use crate::operations::operations;
use crate::timing::{device_arena, quartile, timed};
use lowtide_data::Micro;

/// How a probe measures, and on what.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Threads that compute.
    pub threads: usize,
    /// The drives; none: the disk is not measured.
    pub drives: Vec<Drive>,
    /// Seconds spent on each figure, about.
    pub seconds: f64,
    /// The optimizer whose updates are measured: the run's.
    pub optimizer: Optimizer,
    /// The day, as `YYYY-MM-DD`, which the machine file bears.
    pub date: String,
    /// The GPU; `None`: the CPU device.
    pub gpu: Option<Gpu>,
    /// Whether it is measured what drives and GPU exchange past the host. Otherwise cuFile is not even opened.
    pub direct: bool,
    /// Bytes of the device that a run may take: operations that need more are not measured. `None`: no run.
    pub room: Option<Bytes>,
}

/// A drive to measure, by a directory on it.
#[derive(Clone, Debug)]
pub struct Drive {
    /// A directory on it.
    pub dir: PathBuf,
    /// The most bytes to write there: a run's probe takes no more of a drive than the run may. `None`:
    /// as many as good figures take.
    pub most: Option<Bytes>,
}

/// Seconds a figure from which on a probe is thorough; with less it is a run's start.
const THOROUGH: f64 = 0.3;

/// Measures the device, host memory and the drives; and of each decoder that is given its operations on
/// `sample`: packed documents make attention cheaper, and unsupervised rows the loss.
///
/// On a GPU, measuring a decoder's operations also loads every kernel and makes every choice that
/// the run will use, so that what the process holds beside its arena is known afterwards.
///
/// # Errors
/// When memory or a directory cannot be had, or the GPU fails.
pub fn probe(
    options: &ProbeOptions,
    decoders: [Option<&Decoder>; 2],
    sample: Option<&Micro>,
) -> Result<Machine, MeasureError> {
    // They go again where nothing stays in them; a run makes its own.
    let mut made = MadeDirs::default();
    for Drive { dir, .. } in &options.drives {
        made.make(dir).map_err(|e| TierError::File {
            action: "creating",
            path: dir.clone(),
            os: (&e).into(),
        })?;
    }
    let disk = || match options.drives.as_slice() {
        [] => Ok(None),
        drives => disk_rates(drives, options.seconds).map(Some),
    };
    let mut rates = disk()?;
    let (q, machine, together) = match &options.gpu {
        None => {
            let host = Queue::new("probe", options.threads);
            let machine = cpu(options, &host)?;
            (host, machine, together(options)?.1)
        }
        Some(gpu) => {
            let (alone, together) = together(options)?;
            let host = alone.iter().find(|(lane, _)| *lane == Lane::HOST);
            let host = host.expect("there is a host lane").1;
            let machine = gpu_rates(options, host, gpu)?;
            (Queue::Cuda(cuda::Queue::new(gpu)?), machine, together)
        }
    };
    // Half a minute later: a drive's rate changes by a tenth from one moment to the next, and more
    // where it is shared.
    if options.seconds >= THOROUGH {
        rates = rates.zip(disk()?).map(|(a, b)| a.mean(&b));
    }
    let mut machine = Machine {
        disk: rates,
        together,
        ..machine
    };
    if let (Some(gpu), Some(disk)) = (&options.gpu, &mut machine.disk) {
        let found = match options.direct {
            true => direct_rates(gpu, &options.drives, options.seconds).map_err(|e| short(&e)),
            false => Err("plan.direct is never".to_owned()),
        };
        match found {
            Ok(direct) => disk.direct = Some(direct),
            Err(why) => machine.note += &format!("; drives and GPU through the host: {why}"),
        }
    }
    if let Some(disk) = &machine.disk {
        disk.settle(&mut machine.together);
    }
    for decoder in decoders.into_iter().flatten() {
        let times = operations(&q, decoder, sample, options.seconds.min(0.03), options.room)?;
        machine.ops.extend(times);
    }
    if let Some(gpu) = &options.gpu {
        gpu.set_tuning(false);
        gpu.synchronize()?;
        machine.device_reserve = reserve(gpu)?;
    }
    machine.host_reserve = process::rss_bytes().unwrap_or_default() + later();
    Ok(machine)
}

/// Lanes alone, and their speeds while others run. Where a probe has little time (a run's start), so
/// has this.
fn together(options: &ProbeOptions) -> Result<(Alone, Vec<Together>), MeasureError> {
    let drives = options.drives.iter().map(|d| (d.dir.clone(), 1.0));
    let gpu = options.gpu.clone();
    let mut config =
        LanesConfig::for_probe(options.threads, gpu, drives.collect(), options.optimizer);
    let thorough = options.seconds >= THOROUGH;
    let (seconds, rounds) = match (thorough, &options.gpu) {
        (true, _) => (0.2, 3),
        (false, Some(_)) => (0.1, 1),
        (false, None) => (0.02, 1),
    };
    if !thorough {
        config.disk = Bytes::MIB * 256;
        config.parameters = config.parameters.min(1 << 27);
        if options.gpu.is_none() {
            config.parameters = config.parameters.min(1 << 20);
            config.disk = Bytes::MIB * 64;
        }
    }
    // The drives have equal shares here.
    if let Some(least) = options.drives.iter().filter_map(|d| d.most).min() {
        config.disk = config.disk.min(least * options.drives.len() as u64);
    }
    let lanes = Lanes::new(config)?;
    lanes.speeds(&lanes.sets(), seconds, rounds)
}

/// What this process holds on a GPU now, while no arena is allocated, and a little for streams.
fn reserve(gpu: &Gpu) -> Result<Bytes, MeasureError> {
    let held = match cuda::process_memory(gpu.bus()) {
        Some(m) => m.process.unwrap_or(m.used),
        None => {
            let (free, total) = gpu.memory()?;
            total.saturating_sub(free)
        }
    };
    Ok(held + Bytes::MIB * 48)
}

fn cpu(options: &ProbeOptions, q: &Queue) -> Result<Machine, MeasureError> {
    let (matmul_bf16, matmul_f32) = (
        product(q, 256, Dtype::Bf16, options.seconds)?,
        product(q, 256, Dtype::F32, options.seconds)?,
    );
    let copy = copy_rate(options.seconds)?;
    let updates = update_rate(q, 1 << 21, options.optimizer, options.seconds)?;
    let install = quartile(options.seconds.min(0.05), || q.run(|| ()));
    let wake = wake_time();
    let cores = options.threads as f64;
    let one = 1.0 / cores;
    Ok(Machine {
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
        net: None,
        links: None,
        network: None,
        updates: Updates::of(UpdateRate {
            optimizer: options.optimizer,
            host: updates,
            device: updates,
        }),
        host_overhead: Seconds(wake + install),
        disk: None,
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
        together: Vec::new(),
        device_reserve: Bytes(0),
        host_reserve: Bytes(0),
        cuda: false,
        ops: BTreeMap::new(),
    })
}

/// Rates of a GPU and its links, with what the host's lane gave (parameters a second).
fn gpu_rates(options: &ProbeOptions, host: f64, gpu: &Gpu) -> Result<Machine, MeasureError> {
    gpu.set_tuning(true);
    let q = Queue::Cuda(cuda::Queue::new(gpu)?);
    let seconds = options.seconds.min(0.2);
    let matmul_bf16 = product(&q, 8192, Dtype::Bf16, seconds)?;
    let matmul_f32 = product(&q, 2048, Dtype::F32, seconds)?;
    let device_memory = {
        let bytes = 1u64 << 29;
        let mut arena = device_arena(&q, Bytes(2 * bytes))?;
        let [mut to, from] = arena.parts([(bytes, bytes), (0, bytes)]);
        let s = timed(&q, seconds, || q.copy(to.again(), from.src()))?;
        BytesPerSecond(2.0 * bytes as f64 / s)
    };
    let device = update_rate(&q, 1 << 27, options.optimizer, seconds)?;
    finish_once(&q)?;
    let links = links(gpu, &q, seconds)?;
    let op_overhead = {
        let mut arena = device_arena(&q, Bytes(512))?;
        let [mut to, from] = arena.parts([(256, 256), (0, 256)]);
        timed(&q, 0.02, || q.copy(to.again(), from.src()))?
    };
    let wake = wake_time();
    // What an update moves through host memory; what passes it in a copy, once.
    let memory = host * options.optimizer.moved_each();
    let share = |rate: f64| rate / memory;
    let both = 1.0 / links.both_over_one.max(1.0);
    Ok(Machine {
        name: gpu.name().to_owned(),
        date: options.date.clone(),
        source: Source::Measured,
        note: format!("lowtide probe, {} threads on the host", options.threads),
        matmul_bf16,
        matmul_f32,
        device_memory,
        op_overhead: Seconds(op_overhead),
        h2d: BytesPerSecond(links.h2d),
        d2h: BytesPerSecond(links.d2h),
        copy_overhead: Seconds(op_overhead.max(5e-6)),
        net: None,
        links: None,
        network: None,
        updates: Updates::of(UpdateRate {
            optimizer: options.optimizer,
            host,
            device,
        }),
        host_overhead: Seconds(wake + 2e-5),
        disk: None,
        shared: vec![
            Shared {
                name: "host memory".to_owned(),
                share: BTreeMap::from([
                    ("host".to_owned(), 1.0),
                    ("h2d".to_owned(), share(links.h2d)),
                    ("d2h".to_owned(), share(links.d2h)),
                    ("disk".to_owned(), share(4e9)),
                ]),
            },
            Shared {
                name: "pcie both ways".to_owned(),
                share: BTreeMap::from([("h2d".to_owned(), both), ("d2h".to_owned(), both)]),
            },
        ],
        together: Vec::new(),
        device_reserve: Bytes(0),
        host_reserve: Bytes(0),
        cuda: true,
        ops: BTreeMap::new(),
    })
}

struct Links {
    h2d: f64,
    d2h: f64,
    /// Both at once, over one way alone.
    both_over_one: f64,
}

/// Copies between pinned host memory and the device: each way, and both at once.
fn links(gpu: &Gpu, q: &Queue, seconds: f64) -> Result<Links, MeasureError> {
    let bytes = 1u64 << 28;
    let mut host = Memory::pinned(Arena::new(Bytes(2 * bytes), Fill::Zero)?, gpu)?;
    let mut device = Memory::cuda(gpu, Bytes(2 * bytes))?;
    let ranges = [(0, bytes), (bytes, bytes)];
    let ([h0, h1], [d0, d1]) = (host.parts(ranges), device.parts(ranges));
    let stream = q.cuda().expect("a link has a stream at one end");
    let other = cuda::Queue::new(gpu)?;
    let mut up = [(stream, vec![(d0, h0.into_src())])];
    let mut down = [(&other, vec![(h1, d1.into_src())])];
    let seconds_of = |jobs: &mut [(&cuda::Queue, cuda::Pairs<'_>)]| -> Result<f64, MeasureError> {
        let mut each = |rounds: u64| -> Result<f64, MeasureError> {
            let begin = Instant::now();
            cuda::copy_rounds(jobs, rounds)?;
            Ok(begin.elapsed().as_secs_f64() / rounds as f64)
        };
        each(1)?;
        let rounds = (seconds / 5.0 / each(2)?).clamp(1.0, 200.0) as u64;
        let mut times = [0.0; 5];
        for t in &mut times {
            *t = each(rounds)?;
        }
        times.sort_by(f64::total_cmp);
        Ok(times[2])
    };
    let (up_alone, down_alone) = (seconds_of(&mut up)?, seconds_of(&mut down)?);
    let both = {
        let ([up], [down]) = (up, down);
        seconds_of(&mut [up, down])?
    };
    let (up, down) = (up_alone, down_alone);
    Ok(Links {
        h2d: bytes as f64 / up,
        d2h: bytes as f64 / down,
        both_over_one: 2.0 * up.max(down) / both,
    })
}

/// Loads the kernels that end a gradient.
fn finish_once(q: &Queue) -> Result<(), MeasureError> {
    let n = 1u64 << 20;
    let segments = [gradient::Segment {
        offset: 0,
        elements: n as usize,
    }];
    let chunks = segments[0].norm_chunks() as u64;
    let mut arena = device_arena(q, Bytes(8 * n + 8 * chunks))?;
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let ranges = [(4 * n, n * dtype.size()), (8 * n, 8 * chunks), (0, 4 * n)];
        let [to, parts, sum] = arena.parts(ranges);
        gradient::finish(
            q,
            to,
            parts,
            Some(sum.into_src()),
            &segments,
            n as usize,
            dtype,
        );
    }
    if let Some(stream) = q.cuda() {
        stream.synchronize()?;
    }
    Ok(())
}

/// Rate of a product of three square matrices (on the CPU a smaller one).
fn product(q: &Queue, n: u64, dtype: Dtype, seconds: f64) -> Result<FlopsPerSecond, MeasureError> {
    let d = Dims {
        rows: n as usize,
        inner: n.max(512) as usize,
        cols: n.max(512) as usize,
    };
    let (m, k, n) = (d.rows as u64, d.inner as u64, d.cols as u64);
    let size = dtype.size();
    let ws = matmul::workspace(d, dtype, q.make()).max(1) as u64;
    let (x, w, y) = (m * k * size, n * k * size, m * n * size);
    let scratch = (x + w + y).next_multiple_of(256);
    let mut arena = device_arena(q, Bytes(scratch + ws))?;
    let [x, w, mut y, mut ws] = arena.parts([(0, x), (x, w), (x + w, y), (scratch, ws)]);
    let (x, w) = (x.into_src(), w.into_src());
    let s = timed(q, seconds, || {
        let o = matmul::Forward::product(y.again(), x, w);
        matmul::forward(q, o, d, dtype, ws.again());
    })?;
    Ok(FlopsPerSecond(2.0 * (m * n * k) as f64 / s))
}

fn copy_rate(seconds: f64) -> Result<f64, TierError> {
    let bytes = 32u64 << 20;
    let mut arena = Memory::new(Arena::new(Bytes(2 * bytes), Fill::Zero)?);
    let [mut to, from] = arena.parts([(bytes, bytes), (0, bytes)]);
    let s = quartile(seconds, || memory::copy(to.again(), from.src()));
    Ok(bytes as f64 / s)
}

/// Parameters a second of an optimizer on `n` of them, a multiple of 128.
fn update_rate(q: &Queue, n: u64, optimizer: Optimizer, seconds: f64) -> Result<f64, MeasureError> {
    let types = Types {
        optimizer,
        precision: Dtype::Bf16,
        gradient: Dtype::Bf16,
    };
    let param = [Param::sample(n)];
    let own = optimizer.state_bytes(types.precision, n, &param);
    let extra = optimizer.scratch_bytes(&param);
    let clip = 4 * n + own;
    let scratch = (clip + 24).next_multiple_of(256);
    let mut arena = device_arena(q, Bytes(scratch + extra))?;
    memory::store(arena.part(clip, 24), &[1.0f64, 0.0, 1.0]);
    let [mut weight, gradient, mut state, clip, mut scratch] = arena.parts([
        (0, 2 * n),
        (2 * n, 2 * n),
        (4 * n, own),
        (clip, 24),
        (scratch, extra),
    ]);
    let segments = [Segment {
        offset: 0,
        elements: n as usize,
        decay: true,
        updated: true,
        param: 0,
        start: 0,
        cols: param[0].cols as usize,
    }];
    let hyper = Hyper::usual(optimizer.name, 1);
    let s = timed(q, seconds, || {
        let operands = Operands {
            weight: weight.again(),
            state: state.again(),
            gradient: gradient.src(),
            clip: clip.src(),
            parts: None,
            scratch: Some(scratch.again()),
        };
        update::step(q, types, n, operands, &segments, &hyper);
    })?;
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

fn disk_rates(drives: &[Drive], seconds: f64) -> Result<DiskRates, TierError> {
    let (mut read, mut write, mut mixed) = (0.0, 0.0, 0.0);
    for Drive { dir, most } in drives {
        let rates = lowtide_tiers::probe(dir, &drive_config(*most, seconds))?;
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
        rated_writes: None,
        direct: None,
    })
}

/// How each drive is measured. A run's start has less time than a probe, which waits until a drive's first burst is
/// over: a run moves tens of gigabytes without a pause. A shared drive's rate changes by a third from one second to the
/// next.
fn drive_config(most: Option<Bytes>, seconds: f64) -> ProbeConfig {
    let (bytes, seconds) = if seconds < THOROUGH {
        (Bytes::GIB, seconds.max(0.1))
    } else {
        (Bytes::GIB * 4, seconds.max(5.0))
    };
    let config = ProbeConfig {
        bytes,
        time: Duration::from_secs_f64(seconds),
        ..ProbeConfig::default()
    };
    most.map_or(config, |most| config.within(most))
}

/// Rates of all drives when they move bytes from and to the GPU's memory past the host.
fn direct_rates(gpu: &Gpu, drives: &[Drive], seconds: f64) -> Result<DirectRates, NoDirect> {
    let (mut read, mut write, mut mixed) = (0.0, 0.0, 0.0);
    let mut most_memory = Bytes(u64::MAX);
    for Drive { dir, most } in drives {
        let config = drive_config(*most, seconds);
        let (rates, memory) = cuda::direct_rates(gpu, dir, &config)?;
        most_memory = most_memory.min(memory);
        read += rates.read.0;
        write += rates.write.0;
        mixed += rates.mixed.0;
    }
    Ok(DirectRates {
        read: BytesPerSecond(read),
        write: BytesPerSecond(write),
        mixed: BytesPerSecond(mixed),
        latency: Seconds(2e-4),
        most_memory,
    })
}

/// Why, in a line: not every folder that was searched.
fn short(why: &NoDirect) -> String {
    match why {
        NoDirect::Cuda(CudaError::Library { library, .. }) => {
            format!("{} was not found", library.file())
        }
        why => why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_tells_what_lanes_do_to_each_other_and_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let options = ProbeOptions {
            threads: 2,
            drives: vec![Drive {
                dir: dir.path().to_owned(),
                most: None,
            }],
            seconds: 0.02,
            date: "2026-11-21".to_owned(),
            optimizer: Optimizer::default(),
            gpu: None,
            direct: true,
            room: None,
        };
        let machine = probe(&options, [None; 2], None).unwrap();
        assert!(machine.together.len() > 8, "{:?}", machine.together);
        for t in &machine.together {
            assert!(t.speed.len() > 1);
            assert!(t.speed.values().all(|&s| s > 0.0 && s <= 1.0), "{t:?}");
        }
        let text = serde_json::to_string(&machine).unwrap();
        let read: Machine = serde_json::from_str(&text).unwrap();
        assert_eq!(read.together.len(), machine.together.len());
        for (a, b) in read.together.iter().zip(&machine.together) {
            // JSON's numbers may be a last digit off.
            let same = |(a, b): ((&String, &f64), (&String, &f64))| {
                a.0 == b.0 && (a.1 - b.1).abs() < 1e-12
            };
            assert!(a.speed.iter().zip(&b.speed).all(same), "{a:?} {b:?}");
            assert_eq!(a.speed.len(), b.speed.len());
        }
        // A file of before knows no sets.
        let mut old = serde_json::to_value(&machine).unwrap();
        old.as_object_mut().unwrap().remove("together");
        let old: Machine = serde_json::from_value(old).unwrap();
        assert!(old.together.is_empty() && old.shared.len() == machine.shared.len());
    }
}
