//! Lanes of a run measured while others run: each does what it does in a run, on the same memory,
//! threads, streams and drives, alone first and then in sets.
//!
//! Every party repeats its own unit of work on a thread of its own; a rate counts the units that
//! ended while all parties of the set were running.
//!
//! One file because all lanes share one memory, and each part of it is cut and used here; what a party does unit by
//! unit is in `contention/`.

mod parties;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lowtide_device::cuda::{self, Gpu};
use lowtide_device::{Dst, Memory, Queue, memory};
use lowtide_executor::ExecError;
use lowtide_kernels::matmul::{self, Dims};
use lowtide_kernels::update::{self, Hyper, Operands, Segment, Types};
use lowtide_planner::{Lane, Together};
use lowtide_tiers::{ALIGN, Arena, Block, Disk, DiskConfig, Fill, HostMemory, Kind, Scratch};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, Optimizer, Param, Role};
use rayon::prelude::*;

use crate::error::MeasureError;
use parties::{Party, Repeat, Transfers, Work};

/// What lanes are measured on.
#[derive(Clone, Debug)]
pub struct LanesConfig {
    /// Threads of the gpu lane (CPU device) and of the host lane, each.
    pub threads: usize,
    /// Threads of other ranks of this host, whose cores the host lane leaves to them.
    pub threads_before: usize,
    /// The GPU; `None`: the CPU device.
    pub gpu: Option<Gpu>,
    /// Directories of the drives with their shares of the traffic; none: no disk lanes.
    pub drives: Vec<(PathBuf, f64)>,
    /// Parameters that the host lane updates, 2^26 of them at most at a time.
    pub parameters: u64,
    /// The optimizer whose updates the host lane makes.
    pub optimizer: Optimizer,
    /// Bytes of one copy between host and device.
    pub copy: Bytes,
    /// Bytes on the drives that reads and writes go round in.
    pub disk: Bytes,
}

impl LanesConfig {
    /// What a probe measures. On a machine with a GPU, enough memory (where there is that much) that neither caches
    /// nor a near NUMA node hide what a run would meet; on the CPU device a little.
    #[must_use]
    pub fn for_probe(
        threads: usize,
        gpu: Option<Gpu>,
        drives: Vec<(PathBuf, f64)>,
        optimizer: Optimizer,
    ) -> Self {
        let (parameters, copy) = match gpu {
            Some(_) => (1 << 29, Bytes::MIB * 64),
            None => (1 << 22, Bytes::MIB * 4),
        };
        let spare = HostMemory::available().0 / 4;
        Self {
            threads,
            threads_before: 0,
            gpu,
            drives,
            parameters: parameters
                .min(spare / bytes_of(optimizer, 1 << 10) * (1 << 10))
                .next_multiple_of(256),
            optimizer,
            copy,
            disk: Bytes::GIB,
        }
    }
}

/// Most parameters of one update: about a piece of a large block, so that a rate has many of them.
const WINDOW: u64 = 1 << 26;
/// Storage of what the host lane updates.
const TYPES: Dtype = Dtype::Bf16;

/// Bytes of host memory that so many parameters take: weights, gradients, state, an update's scratch.
fn bytes_of(optimizer: Optimizer, parameters: u64) -> u64 {
    let own = optimizer.state_bytes(TYPES, parameters, &[Param::sample(parameters)]);
    let scratch = optimizer.scratch_bytes(&[Param::sample(parameters)]);
    2 * TYPES.size() * parameters + own + scratch
}

/// Copies between two looks at the clock on a GPU: their launches then cost nothing beside them.
const COPIES: u64 = 4;

/// Rates of lanes when nothing else runs: parameters, flops or bytes a second.
pub type Alone = Vec<(Lane, f64)>;

/// The lanes of a run without a plan: each can do its own work again and again.
///
/// On the CPU device there is a gpu lane (a product of matrices); on a GPU there is none, as its
/// kernels use memory of their own.
pub struct Lanes {
    /// Dropped before the memory that it moves bytes of.
    disk: Option<Disk>,
    /// Dropped after the files in them.
    _scratch: Vec<Scratch>,
    config: LanesConfig,
    /// Optimizer state, which the host lane updates.
    state: Mutex<Memory>,
    /// Both ends of the copies up, and of those down.
    copies: [Mutex<Ends>; 2],
    /// What the gpu lane of the CPU device multiplies.
    product: Option<Mutex<Memory>>,
    /// Blocks that are read, and blocks that are written.
    blocks: [Mutex<Vec<Block>>; 2],
    queues: Vec<(Lane, Queue)>,
    block: u64,
}

/// Memory at both ends of a link.
struct Ends {
    host: Memory,
    device: Memory,
}

/// A lane's own memory. A panic leaves numbers there that are as good as any.
fn lock<T>(memory: &Mutex<T>) -> MutexGuard<'_, T> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads or the stream of each lane that is no drive's.
fn queues(config: &LanesConfig) -> Result<Vec<(Lane, Queue)>, MeasureError> {
    let (gpu, n) = (config.gpu.as_ref(), config.threads);
    let stream = |gpu| cuda::Queue::new(gpu).map(Queue::Cuda);
    let started = |lane: Lane, n, queue: io::Result<Queue>| {
        queue
            .map(|queue| (lane, queue))
            .map_err(|e| ExecError::Threads {
                lane: lane.name().to_owned(),
                threads: n,
                why: e.to_string(),
            })
    };
    let host_queue = Queue::spread(Lane::HOST.name(), n, config.threads_before, gpu.is_some());
    let mut queues = vec![started(Lane::HOST, n, host_queue)?];
    for lane in [Lane::H2D, Lane::D2H] {
        queues.push(match gpu {
            Some(gpu) => (lane, stream(gpu)?),
            None => started(lane, 1, Queue::start(lane.name(), 1))?,
        });
    }
    if gpu.is_none() {
        queues.push(started(Lane::GPU, n, Queue::start("gpu", n))?);
    }
    Ok(queues)
}

impl Lanes {
    /// Reserves memory (pinned beside a GPU) and the drives' space, and writes all of it once.
    ///
    /// # Errors
    /// What cannot be had.
    pub fn new(config: LanesConfig) -> Result<Self, MeasureError> {
        let gpu = config.gpu.as_ref();
        let scratch = config.drives.iter().map(|(dir, _)| Scratch::new(dir));
        let scratch: Vec<Scratch> = scratch.collect::<Result<_, _>>()?;
        let paths = scratch.iter().map(|s| s.path().to_owned());
        let shares = config.drives.iter().map(|d| d.1);
        let mut disk = DiskConfig::new(paths.zip(shares));
        // Twice the depth, so that the arbiter always has a next one.
        let in_hand = if config.drives.is_empty() {
            0
        } else {
            2 * disk.depth as u64
        };
        // Where the drives have little room, smaller ones.
        let room = config.disk.0 / (4 * config.drives.len().max(1) as u64) / ALIGN * ALIGN;
        disk.block = Bytes(disk.block.0.min(room.max(ALIGN)));
        let block = disk.block.0;
        let copies = COPIES * config.copy.0;
        let state = bytes_of(config.optimizer, config.parameters);
        let state = (state + 128).next_multiple_of(block);
        let host = |bytes: u64| -> Result<Memory, MeasureError> {
            let arena = Arena::new(Bytes(bytes), Fill::Zero)?;
            Ok(match gpu {
                Some(gpu) => Memory::pinned(arena, gpu)?,
                None => Memory::new(arena),
            })
        };
        let device = |bytes: u64| -> Result<Memory, MeasureError> {
            Ok(match gpu {
                Some(gpu) => Memory::cuda(gpu, Bytes(bytes))?,
                None => Memory::new(Arena::new(Bytes(bytes), Fill::Zero)?),
            })
        };
        let ends = || -> Result<Mutex<Ends>, MeasureError> {
            let (host, device) = (host(copies)?, device(copies)?);
            Ok(Mutex::new(Ends { host, device }))
        };
        let blocks = Block::new(Bytes(2 * in_hand * block), Fill::Zero)?;
        let disk = if config.drives.is_empty() {
            None
        } else {
            let bytes = Bytes(config.disk.0 / (2 * block) * 2 * block).max(Bytes(4 * block));
            disk.stripe = disk.block;
            Some(Disk::open(&disk.fit(bytes)?, Some(&blocks.arena()))?)
        };
        let (read, written) = blocks.split_at((in_hand * block) as usize);
        let cut = |half: Block| Mutex::new(half.cut(block as usize));
        let blocks = [cut(read), cut(written)];
        let (state, copies) = (Mutex::new(host(state)?), [ends()?, ends()?]);
        let product = match gpu {
            Some(_) => None,
            None => Some(Mutex::new(device(PRODUCT)?)),
        };
        let queues = queues(&config)?;
        let lanes = Self {
            disk,
            _scratch: scratch,
            config,
            state,
            copies,
            product,
            blocks,
            queues,
            block,
        };
        lanes.fill()?;
        Ok(lanes)
    }

    /// Usual numbers in the optimizer state (zeros and subnormal ones take other times), and bytes on
    /// the drives: space that was only reserved reads as zeros without touching them.
    fn fill(&self) -> Result<(), MeasureError> {
        let n = self.config.parameters;
        let mut state = lock(&self.state);
        let [weight, gradient, own, clip, _] = self.places();
        memory::store(state.part(clip.0, clip.1), &[1.0f64, 0.0, 1.0]);
        // Weights of 1/32, gradients of 1/128, remainders of 0, a first moment of 1e-3, a second of 1e-6.
        let mut parts = vec![(weight, 0x3d00_3d00u32), (gradient, 0x3c00_3c00)];
        let mut moment = 1e-3f32;
        let param = [Param::sample(self.window())];
        for array in self.config.optimizer.layout(TYPES, n, &param) {
            let word = match array.spec.role {
                Role::REMAINDER => 0,
                _ => std::mem::replace(&mut moment, 1e-6).to_bits(),
            };
            parts.push(((own.0 + array.start, array.bytes), word));
        }
        for ((at, bytes), word) in parts {
            let numbers = state.part(at, bytes).write::<u32>();
            // By the threads that update: one alone would take seconds, most of them for new pages.
            self.queue(Lane::HOST).run(|| {
                let chunks = numbers.par_chunks_mut(1 << 20);
                chunks.for_each(|chunk| chunk.fill(word));
            });
        }
        drop(state);
        if let Some(disk) = &self.disk {
            let mut writer = self.transfers(Kind::Write);
            (writer.first, writer.blocks) = (0, disk.bytes().0 / self.block);
            for _ in 0..writer.blocks {
                writer.unit()?;
            }
            writer.drain()?;
        }
        Ok(())
    }

    /// The lanes that there are.
    #[must_use]
    pub fn all(&self) -> Vec<Lane> {
        let there = |lane: &Lane| match *lane {
            Lane::DISK_READ | Lane::DISK_WRITE => self.disk.is_some(),
            lane => self.queues.iter().any(|q| q.0 == lane),
        };
        Lane::ALL.into_iter().filter(there).collect()
    }

    /// Sets of lanes that slow each other down: pairs, and what runs at once while updates do. A GPU's kernels are in
    /// none, because they use memory of their own; the CPU device's are.
    #[must_use]
    pub fn sets(&self) -> Vec<Vec<Lane>> {
        use Lane as L;
        let mut sets = vec![
            vec![L::H2D, L::D2H],
            vec![L::HOST, L::H2D],
            vec![L::HOST, L::D2H],
            vec![L::HOST, L::H2D, L::D2H],
        ];
        if self.config.gpu.is_none() {
            sets.extend([
                vec![L::GPU, L::HOST],
                vec![L::GPU, L::H2D],
                vec![L::GPU, L::D2H],
                vec![L::GPU, L::HOST, L::H2D, L::D2H],
            ]);
        }
        if self.disk.is_some() {
            let (r, w) = (L::DISK_READ, L::DISK_WRITE);
            sets.extend([
                vec![r, w],
                vec![L::HOST, r],
                vec![L::HOST, w],
                vec![L::HOST, r, w],
                vec![L::H2D, L::D2H, r, w],
                vec![L::HOST, L::H2D, L::D2H, r, w],
            ]);
            if self.config.gpu.is_none() {
                sets.extend([
                    vec![L::GPU, r],
                    vec![L::GPU, w],
                    vec![L::GPU, r, w],
                    vec![L::GPU, L::HOST, r, w],
                ]);
            }
        }
        sets
    }

    /// How I/O is done, one line a drive.
    #[must_use]
    pub fn describe_disk(&self) -> Option<&str> {
        self.disk.as_ref().map(Disk::describe)
    }

    /// Bytes of the optimizer state, and how many of them lie on huge pages where the system says.
    #[must_use]
    pub fn state_pages(&self) -> (Bytes, Option<Bytes>) {
        let state = lock(&self.state);
        (state.bytes(), state.arena().huge_bytes())
    }

    /// Rates of these lanes while all of them run, for about `seconds`: parameters a second of the
    /// host lane, flops of the gpu lane, bytes of the others.
    ///
    /// # Errors
    /// When a lane fails.
    pub fn rates(&self, lanes: &[Lane], seconds: f64) -> Result<Vec<f64>, MeasureError> {
        let mut parties: Vec<Party<'_>> = lanes.iter().map(|&l| self.party(l)).collect();
        let (barrier, stop) = (Barrier::new(parties.len() + 1), AtomicBool::new(false));
        // Parties that have units enough for a rate; all of them once the set may end.
        let ready = AtomicUsize::new(0);
        let n = parties.len();
        let (barrier, stop, ready) = (&barrier, &stop, &ready);
        let run = |party: &mut Party<'_>| -> Result<Vec<Instant>, MeasureError> {
            let warm = party.work.warm();
            barrier.wait();
            let mut ends = vec![Instant::now()];
            let go = || -> Result<(), MeasureError> {
                warm?;
                while !stop.load(Ordering::Relaxed) {
                    party.work.unit()?;
                    ends.push(Instant::now());
                    if ends.len() == 4 {
                        ready.fetch_add(1, Ordering::Relaxed);
                    }
                }
                party.work.drain()
            };
            let done = go();
            if done.is_err() {
                // Nobody waits for a party that has failed.
                stop.store(true, Ordering::Relaxed);
            }
            done.map(|()| ends)
        };
        let run = &run;
        let (ends, end) = std::thread::scope(|scope| {
            let threads: Vec<_> = parties
                .iter_mut()
                .map(|party| scope.spawn(move || run(party)))
                .collect();
            barrier.wait();
            let begin = Instant::now();
            while !stop.load(Ordering::Relaxed)
                && (begin.elapsed().as_secs_f64() < seconds || ready.load(Ordering::Relaxed) < n)
            {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            stop.store(true, Ordering::Relaxed);
            let end = Instant::now();
            let ends: Vec<_> = threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
                .collect();
            (ends, end)
        });
        let mut rates = Vec::new();
        // One that failed has stopped the others, maybe before their first unit.
        let ends = ends.into_iter().collect::<Result<Vec<_>, _>>()?;
        for (party, ends) in parties.iter().zip(ends) {
            // What ended after the others began to stop had the machine more to itself.
            let k = ends.iter().filter(|&&t| t <= end).count().max(2) - 1;
            let span = (ends[k] - ends[0]).as_secs_f64();
            rates.push(party.amount * k as f64 / span.max(1e-9));
        }
        Ok(rates)
    }

    /// Each lane alone, and the speeds of each set: means of `rounds` turns, so that a disturbance hits all of them.
    /// Means and not the best, because what else the machine runs will run during training, too.
    ///
    /// # Errors
    /// When a lane fails.
    pub fn speeds(
        &self,
        sets: &[Vec<Lane>],
        seconds: f64,
        rounds: usize,
    ) -> Result<(Alone, Vec<Together>), MeasureError> {
        let lanes = self.all();
        let mut alone = vec![0.0f64; lanes.len()];
        let mut sums: Vec<Vec<f64>> = sets.iter().map(|s| vec![0.0; s.len()]).collect();
        for _ in 0..rounds.max(1) {
            for (mean, &lane) in alone.iter_mut().zip(&lanes) {
                *mean += self.rates(&[lane], seconds)?[0] / rounds.max(1) as f64;
            }
            for (set, sums) in sets.iter().zip(&mut sums) {
                for (sum, rate) in sums.iter_mut().zip(self.rates(set, seconds)?) {
                    *sum += rate / rounds.max(1) as f64;
                }
            }
        }
        let alone: Alone = lanes.into_iter().zip(alone).collect();
        let of = |lane: Lane| {
            alone
                .iter()
                .find(|a| a.0 == lane)
                .expect("a lane of ours")
                .1
        };
        let together = sets
            .iter()
            .zip(sums)
            .map(|(set, rates)| {
                let speed = |(&lane, rate): (&Lane, f64)| (lane, (rate / of(lane)).min(1.0));
                Together::of(set.iter().zip(rates).map(speed))
            })
            .collect();
        Ok((alone, together))
    }

    fn party(&self, lane: Lane) -> Party<'_> {
        let copies = COPIES * self.config.copy.0;
        match lane {
            Lane::DISK_READ => self.transfers(Kind::Read).party(),
            Lane::DISK_WRITE => self.transfers(Kind::Write).party(),
            Lane::GPU => Party {
                amount: 2.0 * (SIDE * SIDE * SIDE) as f64,
                work: Box::new(Repeat(move || {
                    self.product();
                    Ok(())
                })),
            },
            Lane::HOST => {
                let mut step = 0;
                Party {
                    amount: self.window() as f64,
                    work: Box::new(Repeat(move || {
                        step += 1;
                        self.update(step);
                        Ok(())
                    })),
                }
            }
            _ => Party {
                amount: copies as f64,
                work: Box::new(Repeat(move || self.copies(lane))),
            },
        }
    }

    fn queue(&self, lane: Lane) -> &Queue {
        let queue = self.queues.iter().find(|q| q.0 == lane);
        &queue.expect("a lane of this device").1
    }

    fn copies(&self, lane: Lane) -> Result<(), MeasureError> {
        let q = self.queue(lane);
        let bytes = self.config.copy.usize();
        let mut ends = lock(&self.copies[usize::from(lane == Lane::D2H)]);
        let Ends { host, device } = &mut *ends;
        let (to, from) = match lane {
            Lane::H2D => (device, host),
            _ => (host, device),
        };
        let (to, from) = (to.all().chunks(bytes), from.all().chunks(bytes));
        let pairs = to.into_iter().zip(from.into_iter().map(Dst::into_src));
        Ok(q.copy_all(pairs.collect())?)
    }

    /// Parameters that the host lane updates at a time.
    fn window(&self) -> u64 {
        self.config.parameters.min(WINDOW)
    }

    /// Where weights, gradients, optimizer state, the words of clipping and scratch lie: first byte and bytes.
    fn places(&self) -> [(u64, u64); 5] {
        let n = self.config.parameters;
        let numbers = TYPES.size() * n;
        let (optimizer, param) = (self.config.optimizer, [Param::sample(n)]);
        let own = optimizer.state_bytes(TYPES, n, &param);
        let end = 2 * numbers + own;
        let scratch = (end + 24).next_multiple_of(64);
        [
            (0, numbers),
            (numbers, numbers),
            (2 * numbers, own),
            (end, 24),
            (scratch, optimizer.scratch_bytes(&param)),
        ]
    }

    /// One step of the optimizer over the next window, on the host lane's threads, as the engine calls it.
    fn update(&self, step: u64) {
        let n = self.config.parameters;
        let window = self.window();
        let segment = Segment {
            offset: (step % (n / window) * window) as usize,
            elements: window as usize,
            decay: true,
            updated: true,
            param: 0,
            start: 0,
            cols: Param::sample(window).cols as usize,
        };
        let mut memory = lock(&self.state);
        let [weight, gradient, state, clip, scratch] = memory.parts(self.places());
        let types = Types {
            optimizer: self.config.optimizer,
            precision: TYPES,
            gradient: TYPES,
        };
        let hyper = Hyper::usual(types.optimizer.name, step);
        let operands = Operands {
            weight,
            state,
            gradient: gradient.into_src(),
            clip: clip.into_src(),
            parts: None,
            scratch: Some(scratch),
        };
        update::step(
            self.queue(Lane::HOST),
            types,
            n,
            operands,
            &[segment],
            &hyper,
        );
    }

    /// One product on the gpu lane's threads.
    fn product(&self) {
        let q = self.queue(Lane::GPU);
        let d = Dims {
            rows: SIDE as usize,
            inner: SIDE as usize,
            cols: SIDE as usize,
        };
        let bytes = 2 * SIDE * SIDE;
        let ws = matmul::workspace(d, Dtype::Bf16, q.make()).max(1) as u64;
        assert!(
            3 * bytes + ws <= PRODUCT,
            "a product needs {ws} bytes of scratch"
        );
        let product = self.product.as_ref();
        let mut memory = lock(product.expect("a gpu lane of the CPU device"));
        let [y, x, w, ws] = memory.parts([
            (0, bytes),
            (bytes, bytes),
            (2 * bytes, bytes),
            (3 * bytes, ws),
        ]);
        let (x, w) = (x.into_src(), w.into_src());
        let o = matmul::Forward::product(y, x, w);
        matmul::forward(q, o, d, Dtype::Bf16, ws);
    }

    fn transfers(&self, kind: Kind) -> Transfers<'_> {
        let disk = self.disk.as_ref().expect("a lane of a disk that is there");
        let blocks = disk.bytes().0 / self.block / 2;
        let way = u64::from(kind == Kind::Write);
        let spare = &self.blocks[usize::from(kind == Kind::Write)];
        Transfers::new(disk, kind, spare, (way * blocks, blocks, self.block))
    }
}

/// Sides of the matrices of the gpu lane's product on the CPU device.
const SIDE: u64 = 256;
/// Bytes kept for it: three matrices and scratch.
const PRODUCT: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_beside_others_are_not_faster_than_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = LanesConfig {
            threads_before: 0,
            threads: 2,
            gpu: None,
            drives: vec![(dir.path().to_owned(), 1.0)],
            parameters: 1 << 18,
            optimizer: Optimizer::default(),
            copy: Bytes::MIB,
            disk: Bytes::MIB * 32,
        };
        let lanes = Lanes::new(config).unwrap();
        // All but what ranks exchange, which is measured with all of them.
        let own = Lane::ALL.into_iter().filter(|lane| *lane != Lane::NET);
        assert_eq!(lanes.all(), own.collect::<Vec<_>>());
        let sets = lanes.sets();
        let (alone, together) = lanes.speeds(&sets, 0.01, 1).unwrap();
        assert_eq!(together.len(), sets.len());
        for (lane, rate) in &alone {
            assert!(*rate > 1e6 && *rate < 1e14, "{lane}: {rate}");
        }
        for (set, t) in sets.iter().zip(&together) {
            assert_eq!(t.speed.len(), set.len());
            for lane in set {
                let speed = t.get(*lane).unwrap();
                assert!(speed > 0.0 && speed <= 1.0, "{lane} in {t:?}");
            }
        }
        // Two lanes that want all cores cannot both have them. Other tests want them too, and the more
        // they take, the less the two are in each other's way: one quiet moment is enough.
        let pair = [vec![Lane::GPU, Lane::HOST]];
        let mut sums: Vec<f64> = Vec::new();
        while sums.len() < 8 && sums.last().is_none_or(|sum| *sum >= 1.8) {
            let seconds = 0.02 * (1 + sums.len()) as f64;
            let (_, together) = lanes.speeds(&pair, seconds, 2).unwrap();
            sums.push(together[0].speed.values().sum());
        }
        assert!(sums.iter().any(|sum| *sum < 1.8), "{sums:?}");
    }
}
