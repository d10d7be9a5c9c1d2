//! What one part of the machine gives, against its bound: the host's updates, the links, a drive.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lowtide_device::cuda::{self, Gpu};
use lowtide_device::{Dst, Memory};
use lowtide_kernels::update;
use lowtide_planner::{Lane, Together};
use lowtide_report::bench::{
    Beside, CopyBound, DiskReport, DiskRow, HostReport, LinkRow, LinksReport,
};
use lowtide_tiers::{Arena, Fill, HostMemory, Mix, ProbeConfig, shares};
use lowtide_units::Bytes;
use lowtide_workload::Optimizer;

use crate::contention::{Lanes, LanesConfig};
use crate::error::MeasureError;

/// How to measure the host's updates.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Threads that update, as in a run.
    pub threads: usize,
    /// Parameters; `None`: 2^28, or what fits half of free memory.
    pub parameters: Option<u64>,
    /// The GPU whose copies run at the same time; `None`: the CPU device's.
    pub gpu: Option<Gpu>,
    /// A directory on each drive whose transfers run at the same time.
    pub directories: Vec<PathBuf>,
    /// How long each figure is measured.
    pub seconds: f64,
}

/// The update against copies of memory on so many threads.
fn bound(cores: usize, parameters: u64) -> CopyBound {
    let report = update::bench(cores, parameters as usize, Optimizer::default());
    let best = report.fastest();
    CopyBound {
        cores,
        parameters_per_second: best.parameters_per_second,
        bytes_per_second: best.bytes_per_second.0,
        copy_bytes_per_second: report.bound().0,
        share_of_copy: best.share_of_bound,
    }
}

/// Lanes that ran at once, by how many times as long each takes.
fn beside(t: &Together) -> Beside {
    let slow = |(lane, speed): (&String, &f64)| (lane.clone(), 1.0 / speed.max(1e-6));
    Beside {
        slow_down: t.speed.iter().map(slow).collect(),
    }
}

/// Measures updates on the host: alone, against a copy of memory, and while the other lanes run.
///
/// # Errors
/// When memory or a directory cannot be had, or the GPU fails.
pub fn host(options: &HostOptions) -> Result<HostReport, MeasureError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // The state takes 14 bytes a parameter, what is copied for the bound as many. One after the other.
    let fits = HostMemory::available().0 / 2 / 28;
    let parameters = options.parameters.unwrap_or((1 << 28).min(fits)).max(256) / 256 * 256;
    let (asked, have) = (
        Bytes(parameters.saturating_mul(28)),
        HostMemory::available(),
    );
    if asked > have {
        return Err(MeasureError::Parameters {
            asked,
            have,
            what: "this machine's free memory".to_owned(),
        });
    }
    for dir in &options.directories {
        std::fs::create_dir_all(dir).map_err(MeasureError::io(dir))?;
    }
    let drives = options.directories.iter().map(|d| (d.clone(), 1.0));
    let bound = bound(cores, parameters);
    let lanes = Lanes::new(LanesConfig {
        parameters,
        ..LanesConfig::for_probe(
            options.threads,
            options.gpu.clone(),
            drives.collect(),
            Optimizer::default(),
        )
    })?;
    let sets: Vec<Vec<Lane>> = lanes
        .sets()
        .into_iter()
        .filter(|set| set.contains(&Lane::HOST))
        .collect();
    let (alone, together) = lanes.speeds(&sets, options.seconds, 3)?;
    let rate = alone
        .iter()
        .find(|a| a.0 == Lane::HOST)
        .expect("there is a host lane")
        .1;
    let (state_bytes, huge_bytes) = lanes.state_pages();
    Ok(HostReport {
        optimizer: Optimizer::default().title(),
        threads: options.threads,
        parameters,
        parameters_per_second: rate,
        bytes_per_second: rate * Optimizer::default().moved_each(),
        bound,
        arena_bytes: state_bytes.0,
        huge_bytes: huge_bytes.map(|b| b.0),
        disk: lanes.describe_disk().map(str::to_owned),
        beside: together.iter().map(beside).collect(),
    })
}

/// Sizes of copies: 64 KiB to 1 GiB.
const SIZES: [u64; 8] = [
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
    256 << 20,
    1 << 30,
];

/// Measures copies each way and both at once, on streams of their own.
///
/// # Errors
/// When memory cannot be had, or the GPU fails.
pub fn links(gpu: &Gpu, seconds: f64) -> Result<LinksReport, MeasureError> {
    let most = SIZES[SIZES.len() - 1];
    let mut host = Memory::pinned(Arena::new(Bytes(2 * most), Fill::Zero)?, gpu)?;
    let mut device = Memory::cuda(gpu, Bytes(2 * most))?;
    let (up, down) = (cuda::Queue::new(gpu)?, cuda::Queue::new(gpu)?);
    // Seconds of so many copies, one way or both. Each starts where the one before ended.
    let mut time = |bytes: u64, n: u64, ways: (bool, bool)| -> Result<f64, MeasureError> {
        let half = (most / bytes) as usize;
        let (mut host, mut device) = (
            host.all().chunks(bytes as usize),
            device.all().chunks(bytes as usize),
        );
        let (back, here) = (host.split_off(half), device.split_off(half));
        let mut jobs: Vec<(&cuda::Queue, cuda::Pairs<'_>)> = Vec::new();
        if ways.0 {
            let pairs = device.into_iter().zip(host.into_iter().map(Dst::into_src));
            jobs.push((&up, pairs.collect()));
        }
        if ways.1 {
            let pairs = back.into_iter().zip(here.into_iter().map(Dst::into_src));
            jobs.push((&down, pairs.collect()));
        }
        let begin = Instant::now();
        cuda::copy_rounds(&mut jobs, n)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let mut rate = |bytes: u64, ways: (bool, bool)| -> Result<f64, MeasureError> {
        let (few, sides) = (4, f64::from(u8::from(ways.0) + u8::from(ways.1)));
        let once = (time(bytes, few, ways)?.min(time(bytes, few, ways)?)) / few as f64;
        let n = (seconds / 3.0 / once).clamp(4.0, 20_000.0) as u64;
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            best = best.min(time(bytes, n, ways)?);
        }
        Ok(sides * (n * bytes) as f64 / best)
    };
    let mut rows = Vec::new();
    for bytes in SIZES {
        rows.push(LinkRow {
            bytes,
            h2d: rate(bytes, (true, false))?,
            d2h: rate(bytes, (false, true))?,
            both: rate(bytes, (true, true))?,
            h2d_share: 0.0,
            d2h_share: 0.0,
            both_share: 0.0,
        });
    }
    Ok(LinksReport {
        device: gpu.name().to_owned(),
        rows: with_shares(rows),
    })
}

fn with_shares(mut rows: Vec<LinkRow>) -> Vec<LinkRow> {
    let best = |of: fn(&LinkRow) -> f64| rows.iter().map(of).fold(0.0, f64::max);
    let (h2d, d2h) = (best(|r| r.h2d), best(|r| r.d2h));
    for r in &mut rows {
        r.h2d_share = r.h2d / h2d;
        r.d2h_share = r.d2h / d2h;
        r.both_share = r.both / (h2d + d2h);
    }
    rows
}

/// Reads; writes; as many of each, as in an update whose 12 bytes a parameter all come from the drive; and an update
/// whose weights are in memory, which reads 10 bytes and writes 12.
const MIXES: [Mix; 4] = [Mix::READS, Mix::WRITES, Mix::new(12, 12), Mix::new(10, 12)];

/// The smallest file that [`disk`] measures on.
#[must_use]
pub fn least_file() -> Bytes {
    ProbeConfig::default().least()
}

/// Measures a directory's drive through the disk lane, at its depth and size of transfers, against
/// plain threads on the same file of `size` bytes, [`least_file`] or more.
///
/// # Errors
/// When the directory cannot be used.
pub fn disk(dir: &Path, size: Bytes, seconds: f64) -> Result<DiskReport, MeasureError> {
    std::fs::create_dir_all(dir).map_err(MeasureError::io(dir))?;
    let config = ProbeConfig {
        bytes: size,
        time: Duration::from_secs_f64(seconds),
        ..ProbeConfig::default()
    };
    let (rows, how) = shares(dir, &config, &MIXES)?;
    Ok(DiskReport {
        dir: dir.to_owned(),
        how,
        bytes: size.0,
        block: config.block.0,
        depth: config.depth,
        rows: rows
            .iter()
            .map(|s| DiskRow {
                reads: s.mix.reads,
                writes: s.mix.writes,
                lane: s.lane.0,
                bound: s.bound.0,
                share_of_bound: s.lane.0 / s.bound.0,
                bound_threads: s.threads,
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_best_of_their_column() {
        let row = |bytes, h2d, d2h, both| LinkRow {
            bytes,
            h2d,
            d2h,
            both,
            h2d_share: 0.0,
            d2h_share: 0.0,
            both_share: 0.0,
        };
        let rows = with_shares(vec![row(1, 2.0, 8.0, 9.0), row(2, 4.0, 6.0, 6.0)]);
        let shares: Vec<[f64; 3]> = rows
            .iter()
            .map(|r| [r.h2d_share, r.d2h_share, r.both_share])
            .collect();
        assert_eq!(shares, [[0.5, 1.0, 0.75], [1.0, 0.75, 0.5]]);
    }

    #[test]
    fn the_host_is_measured_alone_and_beside_others() {
        let options = HostOptions {
            threads: 2,
            parameters: Some(1 << 18),
            gpu: None,
            directories: Vec::new(),
            seconds: 0.01,
        };
        let r = host(&options).unwrap();
        assert_eq!((r.threads, r.parameters), (2, 1 << 18));
        assert!(r.parameters_per_second > 1e6 && r.bound.share_of_copy > 0.0);
        assert!((r.bytes_per_second / r.parameters_per_second - 26.0).abs() < 1e-9);
        assert!(r.huge_bytes.is_none_or(|huge| huge <= r.arena_bytes));
        assert!(!r.beside.is_empty());
        for beside in &r.beside {
            assert!(beside.slow_down.contains_key("host"));
            assert!(beside.slow_down.values().all(|&x| x >= 1.0), "{beside:?}");
        }
    }
}
