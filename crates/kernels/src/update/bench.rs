//! How fast the host updates, against how fast it copies memory: both in one run, on the same
//! threads, in huge pages where the system gives them.

mod copies;

use std::time::Instant;

use lowtide_device::Queue;
use lowtide_units::{Bytes, BytesPerSecond};
use lowtide_workload::{Dtype, Moments, Optimizer, Param};
use rayon::prelude::*;

use copies::{Copies, Memory, memcpy_chunk, non_temporal_chunk};

use super::{CHUNK, How, Hyper, Path, Segment, Types, Views, dispatch, split};

/// Samples of which the median is reported.
const SAMPLES: usize = 5;
/// Runs of which the best is a sample.
const RUNS: usize = 3;

/// What [`bench()`] measured. All rates count bytes read plus bytes written.
#[derive(Clone, Debug)]
pub struct BenchReport {
    /// Threads that copied and updated.
    pub threads: usize,
    /// Parameters updated by a step.
    pub parameters: usize,
    /// By which optimizer.
    pub optimizer: Optimizer,
    /// The C library's `memcpy`, in chunks of 1 MiB over the threads.
    pub memcpy: BytesPerSecond,
    /// A copy with non-temporal stores, likewise; `None` where the processor has none.
    pub non_temporal_copy: Option<BytesPerSecond>,
    /// One entry for each path of this processor, the fastest kind first.
    pub paths: Vec<PathRate>,
}

/// The rate of one path.
#[derive(Clone, Copy, Debug)]
pub struct PathRate {
    /// Which version of the loop: vector instructions or portable code.
    pub path: Path,
    /// Parameters updated in a second.
    pub parameters_per_second: f64,
    /// Memory traffic, [`Optimizer::moved_each`] bytes a parameter.
    pub bytes_per_second: BytesPerSecond,
    /// `bytes_per_second` over [`BenchReport::bound`]. Can exceed 1: five streams with prefetch
    /// keep more lines in flight than a copy's one, which shows most on few threads.
    pub share_of_bound: f64,
}

impl BenchReport {
    /// The rate of the fastest path.
    ///
    /// # Panics
    /// Never on a report of [`bench()`]: the portable path always runs.
    #[must_use]
    pub fn fastest(&self) -> &PathRate {
        let by_rate = |a: &&PathRate, b: &&PathRate| {
            a.parameters_per_second.total_cmp(&b.parameters_per_second)
        };
        let fastest = self.paths.iter().max_by(by_rate);
        fastest.expect("the portable path always runs")
    }

    /// The better of the two copies: the rate that the update is held against.
    #[must_use]
    pub fn bound(&self) -> BytesPerSecond {
        BytesPerSecond(
            self.memcpy
                .0
                .max(self.non_temporal_copy.map_or(0.0, |rate| rate.0)),
        )
    }
}

/// Measures an optimizer (bf16 weights with remainders, bf16 gradients) and two memory
/// copies.
///
/// Each figure is the median of five samples, a sample the best of three runs; samples of all
/// figures alternate, so that a disturbance hits all of them. Takes up to 28 bytes a parameter of memory,
/// released on return. For a rate of memory, not of caches, ask for 2^26 parameters or more.
///
/// # Panics
/// When `threads` or `parameters` is 0, or threads cannot be started. Ends the process when there
/// is too little memory, as every allocation does.
#[must_use]
pub fn bench(threads: usize, parameters: usize, optimizer: Optimizer) -> BenchReport {
    assert!(
        threads > 0 && parameters > 0,
        "a bench of {parameters} parameters, {threads} threads"
    );
    let q = Queue::new("bench", threads);
    let mut state = State::new(&q, parameters, optimizer);
    let mut copies = Copies::new(&q, 7 * parameters);
    let paths: Vec<Path> = Path::ALL.into_iter().filter(|p| p.is_available()).collect();
    let mut memcpy = Vec::new();
    let mut non_temporal = Vec::new();
    let mut updates = vec![Vec::new(); paths.len()];
    for _ in 0..SAMPLES {
        memcpy.push(best(copies.traffic(), || copies.run(&q, memcpy_chunk)));
        if let Some(copy) = non_temporal_chunk() {
            non_temporal.push(best(copies.traffic(), || copies.run(&q, copy)));
        }
        for (&path, rates) in paths.iter().zip(&mut updates) {
            // The baseline of x86-64 has no FMA: one is a library call. A part shows its rate.
            let slow = path == Path::Portable && paths.len() > 1;
            let part = if slow {
                parameters.div_ceil(16)
            } else {
                parameters
            };
            let traffic = Bytes((optimizer.moved_each() * part as f64) as u64);
            rates.push(best(traffic, || state.step(&q, path, part)));
        }
    }
    let memcpy = median(memcpy).expect("samples were taken");
    let mut report = BenchReport {
        threads,
        parameters,
        optimizer,
        memcpy,
        non_temporal_copy: median(non_temporal),
        paths: Vec::new(),
    };
    let bound = report.bound();
    for (&path, rates) in paths.iter().zip(updates) {
        let bytes_per_second = median(rates).expect("samples were taken");
        report.paths.push(PathRate {
            path,
            parameters_per_second: bytes_per_second.0 / optimizer.moved_each(),
            bytes_per_second,
            share_of_bound: bytes_per_second.0 / bound.0,
        });
    }
    report
}

/// The best rate of several runs.
fn best(traffic: Bytes, mut run: impl FnMut()) -> BytesPerSecond {
    let seconds = (0..RUNS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    BytesPerSecond(traffic.0 as f64 / seconds.fold(f64::INFINITY, f64::min))
}

/// The middle sample; `None` without samples.
fn median(mut samples: Vec<BytesPerSecond>) -> Option<BytesPerSecond> {
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    samples.get(samples.len() / 2).copied()
}

/// Weights, state and gradients of one long segment.
struct State {
    /// Weights, state, gradients, scratch.
    arrays: [Memory; 4],
    optimizer: Optimizer,
    /// Numbers that the arrays have room for, a multiple of 128.
    room: usize,
    steps: u64,
}

impl State {
    /// Usual sizes: weights below 1, gradients around 0.01, moments of a few steps with them.
    /// Written by the threads of `q`, so that pages lie near them.
    fn new(q: &Queue, parameters: usize, optimizer: Optimizer) -> Self {
        let room = parameters.next_multiple_of(Moments::BLOCK as usize);
        let param = [Param::sample(room as u64)];
        let state = optimizer.state_bytes(Dtype::Bf16, room as u64, &param) as usize;
        let scratch = optimizer.scratch_bytes(&param) as usize;
        let mut arrays = [2 * room, state, 2 * room, scratch.max(1)].map(Memory::new);
        let [w, state, grad, _] = arrays.each_mut().map(Memory::dst);
        let (rem, own) = state.split_at(2 * room);
        let own = own.write::<u8>();
        let (w, rem) = (w.write::<u16>(), rem.write::<i16>());
        let grad = grad.write::<u16>();
        q.run(|| {
            own.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0));
            let weights = w[..parameters].par_chunks_mut(CHUNK);
            let remainders = rem[..parameters].par_chunks_mut(CHUNK);
            let gradients = grad[..parameters].par_chunks_mut(CHUNK);
            let chunks = weights.zip(remainders).zip(gradients).enumerate();
            chunks.for_each(|(chunk, ((w, rem), grad))| {
                for i in 0..w.len() {
                    let at = chunk * CHUNK + i;
                    let hash = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                    let x = hash as f32 / (1 << 24) as f32 - 0.499;
                    (w[i], rem[i]) = split(x);
                    grad[i] = split(0.02 * x).0;
                }
            });
        });
        let mut state = Self {
            arrays,
            optimizer,
            room,
            steps: 0,
        };
        // From zero to what the gradients make of them.
        (0..3).for_each(|_| state.step(q, Path::best(), parameters));
        state
    }

    /// One step over the first `parameters`.
    fn step(&mut self, q: &Queue, path: Path, parameters: usize) {
        self.steps += 1;
        let [w, state, grad, scratch] = &mut self.arrays;
        let types = Types {
            optimizer: self.optimizer,
            precision: Dtype::Bf16,
            gradient: Dtype::Bf16,
        };
        let hyper = Hyper {
            lr: 1e-5,
            weight_decay: 0.01,
            ..Hyper::usual(self.optimizer.name, self.steps)
        };
        let cols = match self.optimizer.is_shaped() {
            true => Param::sample(self.room as u64).cols as usize,
            false => 1,
        };
        let segment = Segment {
            offset: 0,
            // Whole rows.
            elements: parameters / cols * cols,
            decay: true,
            updated: true,
            param: 0,
            start: 0,
            cols,
        };
        let views = Views {
            weight: w.dst(),
            state: state.dst(),
            gradient: grad.src(),
            scratch: Some(scratch.dst()),
        };
        let room = self.room as u64;
        dispatch(q, types, room, views, &[segment], &hyper, How::Path(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_bench_reports_every_path() {
        for optimizer in Optimizer::all() {
            reports_every_path(&bench(2, 100_003, optimizer));
        }
    }

    fn reports_every_path(report: &BenchReport) {
        let available = Path::ALL.into_iter().filter(|p| p.is_available()).count();
        assert_eq!(report.paths.len(), available);
        let bound = report.bound().0;
        assert!(bound >= report.memcpy.0 && bound.is_finite() && bound > 0.0);
        for rate in &report.paths {
            assert!(rate.parameters_per_second > 0.0, "{rate:?}");
            assert!((rate.share_of_bound * bound / rate.bytes_per_second.0 - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn the_bench_computes_usual_numbers() {
        let q = Queue::new("test", 2);
        let n = CHUNK + 5;
        let of_numbers = |o: &Optimizer| o.moments == Moments::F32 && !o.is_shaped();
        for optimizer in Optimizer::all().filter(of_numbers) {
            let mut state = State::new(&q, n, optimizer);
            (0..100).for_each(|_| state.step(&q, Path::best(), n));
            for array in &optimizer.layout(Dtype::Bf16, state.room as u64, &[])[1..] {
                let moment = state.arrays[1].dst().part(array.start as usize, 4 * n);
                assert!(
                    moment
                        .into_src()
                        .read::<f32>()
                        .iter()
                        .all(|x| x.is_normal()),
                    "subnormal numbers would be timed"
                );
            }
        }
    }

    #[test]
    fn the_median_is_the_middle_sample() {
        let rates = [3.0, 9.0, 1.0, 7.0, 5.0].map(BytesPerSecond).to_vec();
        assert_eq!(median(rates).map(|rate| rate.0), Some(5.0));
        assert!(median(Vec::new()).is_none());
    }
}
