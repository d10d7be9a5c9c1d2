//! What ranks exchange with each other, and copy over their links: how fast, with all of them at once.
//!
//! On GPUs collectives are also timed while the GPUs multiply, as they do in a step: a collective is a kernel too, and
//! shares multiprocessors and memory with what runs there. The slower time counts.

use std::sync::Arc;
use std::time::Instant;

use lowtide_device::comm::{Collective, Comm, CommError, Pattern, Stretch, exchange_now};
use lowtide_device::cuda::{self, Gpu};
use lowtide_device::{Memory, Queue};
use lowtide_kernels::matmul::{self, Dims};
use lowtide_planner::{Lane, NetRates, RankLinks, Together};
use lowtide_tiers::{Arena, Fill, HostMemory};
use lowtide_units::{Bytes, BytesPerSecond, Seconds};
use lowtide_workload::{Dtype, Optimizer};
use serde::{Deserialize, Serialize};

use crate::contention::{Lanes, LanesConfig};
use crate::error::MeasureError;
use crate::timing::device_arena;

/// Bytes of a large collective, on a GPU and on the CPU device.
const LARGE: [u64; 2] = [128 << 20, 4 << 20];
/// Bytes of the smallest collective.
const SMALL: u64 = 4096;
/// Collectives that are timed of each pattern.
const ROUNDS: u32 = 6;
/// Seconds of each set of copies and updates.
const SET_SECONDS: f64 = 0.12;
/// Parameters that all ranks together update there at most.
const PARAMETERS: u64 = 1 << 27;
/// What all ranks do at once: each alone, then in sets.
const SETS: [&[Lane]; 7] = [
    &[Lane::H2D],
    &[Lane::D2H],
    &[Lane::HOST],
    &[Lane::H2D, Lane::D2H],
    &[Lane::HOST, Lane::H2D],
    &[Lane::HOST, Lane::D2H],
    &[Lane::HOST, Lane::H2D, Lane::D2H],
];

/// What a rank does on the host beside its GPU.
#[derive(Clone, Copy, Debug)]
pub struct RankWork {
    /// Threads of all ranks of the host together.
    pub threads: usize,
    /// Ranks of the host.
    pub ranks: u32,
    /// Whose updates they make.
    pub optimizer: Optimizer,
}

/// Seconds that collectives took, and what was done at once, of the slowest of some ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetTimes {
    /// Of a large all-gather, of a large all-to-all and of a small all-gather.
    pub seconds: [f64; 3],
    /// Bytes of a large one.
    pub bytes: u64,
    /// Rates of the lanes of each set, with all ranks doing the same; none on the CPU device, whose links are its
    /// memory.
    pub rates: Vec<Vec<f64>>,
}

impl NetTimes {
    /// Measures both patterns of collectives, large and small ones, and on GPUs copies and updates of all ranks at
    /// once; for the ranks of this process: those of others do the same at once. On GPUs it also makes all connections
    /// that a run will use, so that what they hold of the devices is known afterwards.
    ///
    /// # Errors
    /// No memory; ranks that cannot reach each other.
    pub fn of(gpus: &[Gpu], comms: &[Arc<dyn Comm>], work: RankWork) -> Result<Self, MeasureError> {
        times(gpus, comms, work)
    }

    /// The slower of both, one by one.
    #[must_use]
    pub fn max(mut self, other: &Self) -> Self {
        for (a, b) in self.seconds.iter_mut().zip(other.seconds) {
            *a = a.max(b);
        }
        let (own, others) = (
            self.rates.iter_mut().flatten(),
            other.rates.iter().flatten(),
        );
        for (a, b) in own.zip(others) {
            *a = a.min(*b);
        }
        self
    }

    /// What `ranks` ranks exchange.
    #[must_use]
    pub fn net(&self, ranks: u32) -> NetRates {
        let others = self.bytes as f64 * f64::from(ranks - 1) / f64::from(ranks);
        let [gather, scatter, small] = self.seconds;
        NetRates {
            hosts: 1,
            ranks,
            rate: BytesPerSecond(others / gather.max(scatter).max(1e-9)),
            latency: Seconds(small),
        }
    }

    /// What copies of `ranks` ranks of a host take from each other; none on the CPU device.
    #[must_use]
    pub fn links(&self, ranks: u32) -> Option<RankLinks> {
        let alone = |lane: Lane| {
            let at = SETS.iter().position(|set| *set == [lane]);
            at.and_then(|at| self.rates.get(at)).map(|rates| rates[0])
        };
        let sets = SETS
            .iter()
            .zip(&self.rates)
            .filter(|(set, _)| set.len() > 1);
        let together = sets.map(|(set, rates)| {
            let speed = |(&lane, rate): (&Lane, &f64)| {
                let alone = alone(lane).unwrap_or(*rate);
                (lane, (rate / alone).min(1.0))
            };
            Together::of(set.iter().zip(rates).map(speed))
        });
        Some(RankLinks {
            ranks,
            h2d: BytesPerSecond(alone(Lane::H2D)?),
            d2h: BytesPerSecond(alone(Lane::D2H)?),
            together: together.collect(),
        })
    }
}

fn times(gpus: &[Gpu], comms: &[Arc<dyn Comm>], work: RankWork) -> Result<NetTimes, MeasureError> {
    // What can fail on one rank alone comes before the first collective of any here. Ranks of other processes may be in
    // theirs, and would wait for ever.
    let ready = (comms.iter().enumerate()).map(|(i, comm)| {
        let before = comm.world().rank % work.ranks as usize;
        reserve(gpus.get(i), work, before)
    });
    let ready = match ready.collect::<Result<Vec<_>, MeasureError>>() {
        Ok(ready) => ready,
        Err(e) => {
            comms.iter().for_each(|comm| comm.stop(&e.to_string()));
            return Err(e);
        }
    };
    let all: Vec<Result<NetTimes, MeasureError>> = std::thread::scope(|scope| {
        let rank = |(comm, mut party): (&Arc<dyn Comm>, Party)| {
            let comm = Arc::clone(comm);
            scope.spawn(move || {
                let _guard = StopsOnPanic(&*comm);
                let found = party.times(&*comm);
                if let Err(e) = &found {
                    comm.stop(&e.to_string());
                }
                found
            })
        };
        let ranks: Vec<_> = comms.iter().zip(ready).map(rank).collect();
        let ends = ranks.into_iter().map(|r| r.join());
        ends.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    // An error that is only the consequence of another rank's failure gives way to that rank's own.
    let consequence = |e: &MeasureError| matches!(e, MeasureError::Ranks(e) if e.is_consequence());
    let (mut slowest, mut failed) = (None::<NetTimes>, None);
    for found in all {
        match found {
            Ok(times) => {
                slowest = Some(slowest.map_or_else(|| times.clone(), |slowest| slowest.max(&times)))
            }
            Err(e) if failed.as_ref().is_none_or(consequence) => failed = Some(e),
            Err(_) => {}
        }
    }
    match failed {
        Some(e) => Err(e),
        None => Ok(slowest.expect("a process has ranks")),
    }
}

/// Stops a rank's exchanges when its thread panics, so that nobody waits for it.
struct StopsOnPanic<'a>(&'a dyn Comm);

impl Drop for StopsOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop("measuring panicked");
        }
    }
}

/// What a rank needs to take part.
struct Party {
    bytes: u64,
    /// Twice `bytes`: what is sent and what is received.
    memory: Memory,
    queue: Queue,
    /// On a GPU.
    gpu: Option<OnGpu>,
}

/// What a rank on a GPU needs beside it.
struct OnGpu {
    lanes: Lanes,
    product: Product,
}

/// What a rank needs to take part, of which `before` others of its host come first.
fn reserve(gpu: Option<&Gpu>, work: RankWork, before: usize) -> Result<Party, MeasureError> {
    let bytes = LARGE[usize::from(gpu.is_none())];
    Ok(match gpu {
        Some(gpu) => Party {
            bytes,
            memory: Memory::cuda(gpu, Bytes(2 * bytes))?,
            queue: Queue::Cuda(cuda::Queue::first(gpu)?),
            gpu: Some(OnGpu {
                lanes: lanes_of(gpu, work, before)?,
                product: Product::new(gpu)?,
            }),
        },
        None => Party {
            bytes,
            memory: Memory::new(Arena::new(Bytes(2 * bytes), Fill::Zero)?),
            queue: Queue::new("net", 1),
            gpu: None,
        },
    })
}

/// What a rank copies and updates: its part of the parameters, by its part of the threads, on cores of their own as in
/// a run, and no more memory than all ranks together may take.
fn lanes_of(gpu: &Gpu, work: RankWork, before: usize) -> Result<Lanes, MeasureError> {
    let (ranks, threads) = (u64::from(work.ranks), work.threads / work.ranks as usize);
    let threads = threads.max(1);
    let usual = LanesConfig::for_probe(threads, Some(gpu.clone()), Vec::new(), work.optimizer);
    let parameters = usual.parameters.min(PARAMETERS) / ranks;
    // Both links have several copies of memory at either end.
    let spare = HostMemory::available().0 / 4 / (16 * ranks);
    Lanes::new(LanesConfig {
        parameters: parameters.next_multiple_of(256),
        copy: usual.copy.min(Bytes(spare.max(1 << 20))),
        threads_before: before * threads,
        ..usual
    })
}

/// A product of square matrices that a GPU computes again and again, as the gpu lane of a step would.
struct Product {
    queue: Queue,
    arena: Memory,
    dims: Dims,
    /// Bytes of a matrix, and of the workspace.
    matrix: u64,
    workspace: u64,
    /// Of one product.
    seconds: f64,
}

impl Product {
    /// Rows and columns: a product of about 0.2 ms on an H100, of several blocks of threads a multiprocessor.
    const SIZE: usize = 4096;
    const DTYPE: Dtype = Dtype::Bf16;

    fn new(gpu: &Gpu) -> Result<Self, MeasureError> {
        let queue = Queue::Cuda(cuda::Queue::new(gpu)?);
        let n = Self::SIZE;
        let dims = Dims {
            rows: n,
            inner: n,
            cols: n,
        };
        let workspace = matmul::workspace(dims, Self::DTYPE, queue.make()).max(1) as u64;
        let matrix = (n * n) as u64 * Self::DTYPE.size();
        let mut made = Self {
            arena: device_arena(&queue, Bytes(3 * matrix + workspace))?,
            queue,
            dims,
            matrix,
            workspace,
            seconds: 0.0,
        };
        // The first one loads the kernel.
        made.launch(1);
        made.finish()?;
        let begin = Instant::now();
        made.launch(10);
        made.finish()?;
        made.seconds = begin.elapsed().as_secs_f64() / 10.0;
        Ok(made)
    }

    /// Gives the GPU so many; they run when it returns.
    fn launch(&mut self, times: u32) {
        let (m, ws) = (self.matrix, self.workspace);
        let [x, w, mut y, mut scratch] =
            (self.arena).parts([(0, m), (m, m), (2 * m, m), (3 * m, ws)]);
        let (x, w) = (x.into_src(), w.into_src());
        for _ in 0..times {
            let o = matmul::Forward::product(y.again(), x, w);
            matmul::forward(&self.queue, o, self.dims, Self::DTYPE, scratch.again());
        }
    }

    /// Waits for all that were launched.
    fn finish(&self) -> Result<(), MeasureError> {
        Ok(self.queue.cuda().expect("made on a GPU").synchronize()?)
    }
}

impl Party {
    /// Takes part in what all ranks measure at once.
    fn times(&mut self, comm: &dyn Comm) -> Result<NetTimes, MeasureError> {
        let seconds = [
            self.collective(comm, Pattern::AllGather, self.bytes)?,
            self.collective(comm, Pattern::AllToAll, self.bytes)?,
            self.collective(comm, Pattern::AllGather, SMALL)?,
        ];
        Ok(NetTimes {
            seconds,
            bytes: self.bytes,
            rates: self.at_once(comm)?,
        })
    }

    /// Makes one collective of `whole` bytes and waits for it.
    fn exchange(&mut self, comm: &dyn Comm, pattern: Pattern, whole: u64) -> Result<(), CommError> {
        let share = whole / comm.world().size as u64;
        let stretches = [Stretch {
            whole: 0,
            part: 0,
            bytes: share as usize,
        }];
        let collective = Collective {
            pattern,
            name: "a measurement",
            stretches: &stretches,
        };
        let from = match pattern {
            Pattern::AllGather => share,
            Pattern::AllToAll => whole,
        };
        let [a, b] = self.memory.parts([(0, from), (self.bytes, whole)]);
        exchange_now(comm, &self.queue, collective, a.into_src(), b)
    }

    /// Seconds of one collective of `whole` bytes: alone, or beside products where they slow it down.
    fn collective(
        &mut self,
        comm: &dyn Comm,
        pattern: Pattern,
        whole: u64,
    ) -> Result<f64, MeasureError> {
        // The first one connects.
        self.exchange(comm, pattern, whole)?;
        let begin = Instant::now();
        for _ in 0..ROUNDS {
            self.exchange(comm, pattern, whole)?;
        }
        let alone = begin.elapsed().as_secs_f64() / f64::from(ROUNDS);
        let Some(seconds) = self.gpu.as_ref().map(|gpu| gpu.product.seconds) else {
            return Ok(alone);
        };
        // Three times as long as the collective alone, so that it ends under them if it takes up to that.
        let products = (3.0 * alone / seconds.max(1e-6)).ceil().clamp(3.0, 1000.0) as u32;
        let mut busy = 0.0;
        for _ in 0..ROUNDS {
            // All ranks begin together.
            self.exchange(comm, Pattern::AllGather, SMALL)?;
            self.gpu
                .as_mut()
                .expect("seen above")
                .product
                .launch(products);
            let begin = Instant::now();
            self.exchange(comm, pattern, whole)?;
            busy += begin.elapsed().as_secs_f64() / f64::from(ROUNDS);
            self.gpu.as_ref().expect("seen above").product.finish()?;
        }
        Ok(alone.max(busy))
    }

    /// Rates of each set, while all ranks do the same; nothing on the CPU device.
    fn at_once(&mut self, comm: &dyn Comm) -> Result<Vec<Vec<f64>>, MeasureError> {
        let mut rates = Vec::new();
        if self.gpu.is_some() {
            for set in SETS {
                // All ranks begin together.
                self.exchange(comm, Pattern::AllGather, SMALL)?;
                let gpu = self.gpu.as_ref().expect("seen above");
                rates.push(gpu.lanes.rates(set, SET_SECONDS)?);
            }
        }
        Ok(rates)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lowtide_device::comm::Threads;

    use super::*;

    #[test]
    fn threads_exchange_bytes_at_some_rate() {
        let comms = Threads::group(2, Duration::from_secs(20)).into_iter();
        let comms: Vec<Arc<dyn Comm>> = comms.map(|c| Arc::new(c) as _).collect();
        let work = RankWork {
            threads: 2,
            ranks: 2,
            optimizer: Optimizer::default(),
        };
        let times = NetTimes::of(&[], &comms, work).expect("measured");
        assert_eq!(times.links(2), None);
        let rates = times.net(2);
        assert_eq!(rates.ranks, 2);
        assert!(rates.rate.0 > 1e6 && rates.latency.0 > 0.0, "{rates:?}");
        // A rank that is gone ends it.
        comms[1].stop("unplugged");
        let error = NetTimes::of(&[], &comms, work).expect_err("stopped");
        let error = error.to_string();
        assert!(
            error.contains("rank 1") && error.contains("unplugged"),
            "{error}"
        );
    }

    /// Of two ranks the slower counts; speeds are shares of what each lane has while all ranks use it alone.
    #[test]
    fn the_slower_rank_counts() {
        let rank = |h2d: f64, both: f64| NetTimes {
            seconds: [1.0, 2.0, both / 1e10],
            bytes: 1 << 20,
            rates: SETS
                .map(|set| match set {
                    [Lane::H2D] => vec![h2d],
                    [_] => vec![40e9],
                    set => vec![both; set.len()],
                })
                .to_vec(),
        };
        let all = rank(50e9, 20e9).max(&rank(40e9, 30e9));
        assert_eq!(all.seconds, [1.0, 2.0, 3.0]);
        let links = all.links(2).expect("on GPUs");
        assert_eq!((links.h2d.0, links.d2h.0, links.ranks), (40e9, 40e9, 2));
        assert_eq!(links.together.len(), 4);
        let speeds = links.together.iter().flat_map(|set| set.speed.values());
        assert!(speeds.into_iter().all(|&speed| speed == 0.5), "{links:?}");
    }
}
