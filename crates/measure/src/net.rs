//! What ranks exchange with each other: how fast, with all of them at once.

use std::sync::Arc;
use std::time::Instant;

use lowtide_device::comm::{Collective, Comm, CommError, Pattern, Stretch, exchange_now};
use lowtide_device::cuda::{self, Gpu};
use lowtide_device::{Memory, Queue};
use lowtide_planner::NetRates;
use lowtide_tiers::{Arena, Fill};
use lowtide_units::{Bytes, BytesPerSecond, Seconds};

use crate::error::MeasureError;

/// Bytes of a large collective, on a GPU and on the CPU device.
const LARGE: [u64; 2] = [128 << 20, 4 << 20];
/// Bytes of the smallest collective.
const SMALL: u64 = 4096;
/// Collectives that are timed of each pattern.
const ROUNDS: u32 = 6;

/// Measures both patterns of collectives, large and small ones. Of a group on GPUs it also makes all connections that a
/// run will use, so that what they hold of the devices is known afterwards.
///
/// # Errors
/// No memory; ranks that cannot reach each other.
pub fn net_rates(gpus: &[Gpu], comms: &[Arc<dyn Comm>]) -> Result<NetRates, MeasureError> {
    let ranks = comms[0].world().size as u32;
    Ok(NetTimes::of(gpus, comms)?.rates(ranks))
}

/// Seconds that collectives took, of the slowest of some ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetTimes {
    /// Of a large all-gather, of a large all-to-all and of a small all-gather.
    pub seconds: [f64; 3],
    /// Bytes of a large one.
    pub bytes: u64,
}

impl NetTimes {
    /// The slower of both, one by one.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        let mut seconds = self.seconds;
        for (a, b) in seconds.iter_mut().zip(other.seconds) {
            *a = a.max(b);
        }
        Self { seconds, ..self }
    }

    /// The rates of `ranks` ranks.
    #[must_use]
    pub fn rates(&self, ranks: u32) -> NetRates {
        let others = self.bytes as f64 * f64::from(ranks - 1) / f64::from(ranks);
        let [gather, scatter, small] = self.seconds;
        NetRates {
            hosts: 1,
            ranks,
            rate: BytesPerSecond(others / gather.max(scatter).max(1e-9)),
            latency: Seconds(small),
        }
    }

    /// Measures as [`net_rates`], for the ranks of this process: those of others do the same at once.
    ///
    /// # Errors
    /// As [`net_rates`].
    pub fn of(gpus: &[Gpu], comms: &[Arc<dyn Comm>]) -> Result<Self, MeasureError> {
        times(gpus, comms)
    }
}

fn times(gpus: &[Gpu], comms: &[Arc<dyn Comm>]) -> Result<NetTimes, MeasureError> {
    // What can fail on one rank alone comes before the first collective of any.
    let ready = (0..comms.len()).map(|rank| reserve(gpus.get(rank)));
    let ready = ready.collect::<Result<Vec<_>, MeasureError>>()?;
    let bytes = LARGE[usize::from(gpus.is_empty())];
    let all: Vec<Result<[f64; 3], MeasureError>> = std::thread::scope(|scope| {
        let rank = |(comm, (memory, queue)): (&Arc<dyn Comm>, (Memory, Queue))| {
            let comm = Arc::clone(comm);
            scope.spawn(move || {
                let found = of_rank(bytes, memory, &queue, &*comm);
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
    let (mut slowest, mut failed) = ([0.0f64; 3], None);
    for found in all {
        match found {
            Ok(seconds) => (0..3).for_each(|i| slowest[i] = slowest[i].max(seconds[i])),
            Err(e) if failed.as_ref().is_none_or(consequence) => failed = Some(e),
            Err(_) => {}
        }
    }
    if let Some(e) = failed {
        return Err(e);
    }
    Ok(NetTimes {
        seconds: slowest,
        bytes,
    })
}

/// What a rank needs to take part.
fn reserve(gpu: Option<&Gpu>) -> Result<(Memory, Queue), MeasureError> {
    let bytes = LARGE[usize::from(gpu.is_none())];
    let memory = match gpu {
        Some(gpu) => Memory::cuda(gpu, Bytes(2 * bytes))?,
        None => Memory::new(Arena::new(Bytes(2 * bytes), Fill::Zero)?),
    };
    let queue = match gpu {
        Some(gpu) => Queue::Cuda(cuda::Queue::new(gpu)?),
        None => Queue::new("net", 1),
    };
    Ok((memory, queue))
}

/// Seconds of a large all-gather, of a large all-to-all and of a small all-gather.
fn of_rank(
    bytes: u64,
    mut memory: Memory,
    queue: &Queue,
    comm: &dyn Comm,
) -> Result<[f64; 3], MeasureError> {
    let ranks = comm.world().size as u64;
    let mut time = |pattern: Pattern, whole: u64| -> Result<f64, CommError> {
        let share = (whole / ranks) as usize;
        let stretches = [Stretch {
            whole: 0,
            part: 0,
            bytes: share,
        }];
        let collective = Collective {
            pattern,
            name: "a measurement",
            stretches: &stretches,
        };
        let from = match pattern {
            Pattern::AllGather => share as u64,
            Pattern::AllToAll => whole,
        };
        let mut begin = Instant::now();
        for round in 0..=ROUNDS {
            let [a, b] = memory.parts([(0, from), (bytes, whole)]);
            exchange_now(comm, queue, collective, a.into_src(), b)?;
            // The first one connects.
            if round == 0 {
                begin = Instant::now();
            }
        }
        Ok(begin.elapsed().as_secs_f64() / f64::from(ROUNDS))
    };
    Ok([
        time(Pattern::AllGather, bytes)?,
        time(Pattern::AllToAll, bytes)?,
        time(Pattern::AllGather, SMALL)?,
    ])
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
        let rates = net_rates(&[], &comms).expect("measured");
        assert_eq!(rates.ranks, 2);
        assert!(rates.rate.0 > 1e6 && rates.latency.0 > 0.0, "{rates:?}");
        // A rank that is gone ends it.
        comms[1].stop("unplugged");
        let error = net_rates(&[], &comms).expect_err("stopped").to_string();
        assert!(
            error.contains("rank 1") && error.contains("unplugged"),
            "{error}"
        );
    }
}
