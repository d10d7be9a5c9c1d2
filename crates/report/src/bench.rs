//! What the benches found (`lowtide bench`): the host's updates, the links, a drive, steps of a model and its answers,
//! each as a value and as text.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::people::{bytes, seconds};
use crate::step::{LaneCompared, WaitCompared, compared, lane};
use crate::table::{Column, Table};

/// Updates on the host, alone and while other lanes run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostReport {
    /// By which optimizer.
    pub optimizer: String,
    /// Threads that the updates ran on.
    pub threads: usize,
    /// Parameters whose state was in memory.
    pub parameters: u64,
    /// Parameters updated in a second, alone: mean of three turns, on the memory and threads of a run's
    /// host lane.
    pub parameters_per_second: f64,
    /// The same as memory traffic, as many bytes a parameter as an update moves.
    pub bytes_per_second: f64,
    /// Updates and copies of memory, alternating.
    pub bound: CopyBound,
    /// Bytes of the arena that weights, state and gradients lay in.
    pub arena_bytes: u64,
    /// How many of them lie on huge pages, where the system tells.
    pub huge_bytes: Option<u64>,
    /// How the drives are driven, one line each.
    pub disk: Option<String>,
    /// Updates while other lanes run, one entry a set of lanes.
    pub beside: Vec<Beside>,
}

/// The update against copies of memory on the same threads: all cores. Medians of samples that were
/// taken alternately, so that what disturbs the machine meets both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CopyBound {
    /// Threads that updated and copied.
    pub cores: usize,
    /// Parameters updated in a second.
    pub parameters_per_second: f64,
    /// The same as memory traffic.
    pub bytes_per_second: f64,
    /// The better of `memcpy` and a copy with non-temporal stores: bytes read and written a second.
    pub copy_bytes_per_second: f64,
    /// `bytes_per_second` over `copy_bytes_per_second`.
    pub share_of_copy: f64,
}

/// Lanes that ran at once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Beside {
    /// How many times as long each takes, as alone, by lane.
    pub slow_down: BTreeMap<String, f64>,
}

/// Copies of one size between pinned host memory and a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LinkRow {
    /// Bytes of one copy.
    pub bytes: u64,
    /// Host to device, bytes a second.
    pub h2d: f64,
    /// Device to host, bytes a second.
    pub d2h: f64,
    /// Both at once, bytes of both.
    pub both: f64,
    /// `h2d` over the best `h2d` of all sizes.
    pub h2d_share: f64,
    /// `d2h` over the best `d2h`.
    pub d2h_share: f64,
    /// `both` over the best `h2d` and the best `d2h` together.
    pub both_share: f64,
}

/// What the links of a GPU give, by size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinksReport {
    /// Name of the GPU.
    pub device: String,
    /// From the smallest copies to the largest.
    pub rows: Vec<LinkRow>,
}

/// How much of a drive's rate the disk lane reaches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskReport {
    /// Directory that was measured.
    #[serde(serialize_with = "lowtide_files::shown::path")]
    pub dir: PathBuf,
    /// What performed the operations, as the disk describes it.
    pub how: String,
    /// Bytes of the file that was read and written.
    pub bytes: u64,
    /// Bytes of one operation.
    pub block: u64,
    /// Operations in flight at once.
    pub depth: usize,
    /// A row for each mix of reads and writes.
    pub rows: Vec<DiskRow>,
}

/// One mix of reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DiskRow {
    /// Blocks read for so many written.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// Bytes a second of both kinds through the disk lane.
    pub lane: f64,
    /// The same by plain threads with O_DIRECT, the best number of them.
    pub bound: f64,
    /// `lane` over `bound`.
    pub share_of_bound: f64,
    /// How many plain threads gave the bound.
    pub bound_threads: usize,
}

/// What a bench of steps found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Name of the built-in shape.
    pub model: String,
    /// What it ran on.
    pub machine: String,
    /// Who computed attention, and why.
    pub device: String,
    /// Parameters of the shape, frozen ones included.
    pub parameters: u64,
    /// Ranks. Lanes, waits, moved bytes and what is held of a device are the first one's.
    pub gpus: u32,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// Median time of a step.
    pub step_seconds: f64,
    /// Fastest and slowest step.
    pub step_seconds_range: [f64; 2],
    /// Of the median step.
    pub tokens_per_second: f64,
    /// 6·N + 6·L·C·T operations a token over the median step's time; what is recomputed does not
    /// count.
    pub model_tflops: f64,
    /// Rate of large bf16 matrix products on all GPUs, measured on the first at the start of this run.
    pub matmul_tflops: f64,
    /// `model_tflops` over `matmul_tflops`.
    pub share_of_matmul: f64,
    /// Predicted time of a step.
    pub predicted_step_seconds: f64,
    /// Predicted and measured busy seconds of a step, by name of the lane.
    pub lanes: BTreeMap<String, LaneCompared>,
    /// What the gpu lane waited for, the longest first.
    pub gpu_waits: Vec<WaitCompared>,
    /// Share of a step in which the gpu lane does nothing; known where a trace is recorded.
    pub gpu_gap_share: Option<f64>,
    /// Bytes that the driver says this process holds on the device. All of it is allocated before
    /// the first step, so this is the peak.
    pub device_bytes: Option<u64>,
    /// Planned on the device: arena and what is held beside it.
    pub planned_device_bytes: u64,
    /// Peak resident memory of the process.
    pub host_peak_bytes: Option<u64>,
    /// Planned on the host: arena and what the process holds beside it, or what it held before.
    pub planned_host_bytes: u64,
    /// Bytes moved in a step, by lane.
    pub moved_bytes_per_step: BTreeMap<String, u64>,
    /// Blocks that recompute something.
    pub recomputed_blocks: usize,
    /// Loss of the first and of the last step.
    pub losses: [f64; 2],
    /// Seconds to measure, plan, reserve and fill before the first step.
    pub start_seconds: f64,
    /// Hash of the plan.
    pub plan_hash: String,
    /// What checkpoints cost such steps, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointsReport>,
}

/// What checkpoints cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointsReport {
    /// A checkpoint each so many steps.
    pub every: u64,
    /// Bytes of one.
    pub bytes: u64,
    /// Host memory that it passes through while steps go on; `None`: the steps stop for it.
    pub staging_bytes: Option<u64>,
    /// Mean time of a step without.
    pub step_seconds: f64,
    /// Mean time of a step with them, the first of which begins ahead of the first step that is timed.
    pub with_step_seconds: f64,
    /// How much longer that is, as a share of the first.
    pub slowdown: f64,
    /// Seconds of all of these steps in which they waited for a checkpoint.
    pub wait_seconds: f64,
    /// Checkpoints that were begun.
    pub checkpoints: u64,
    /// Seconds until one was on the drive, the median.
    pub write_seconds: f64,
    /// Seconds behind the last step until the last one was on the drive.
    pub left_over_seconds: f64,
}

/// What a bench of answers found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerateReport {
    /// Name of the shape.
    pub model: String,
    /// What it ran on.
    pub machine: String,
    /// The device, and why it was chosen.
    pub device: String,
    /// Parameters of the shape.
    pub parameters: u64,
    /// Answers made at once.
    pub answers: u32,
    /// Tokens of each prompt.
    pub prompt_tokens: u32,
    /// Tokens of each answer.
    pub new_tokens: u32,
    /// From the prompts to the last token.
    pub seconds: f64,
    /// Until all of the prompts were read, with the first tokens of the answers.
    pub prompt_seconds: f64,
    /// Tokens of all answers a second, behind the prompts.
    pub tokens_per_second: Option<f64>,
    /// Predicted time of a step with one token of each answer.
    pub predicted_step_seconds: f64,
    /// Planned on the device: weights, keys and values, what comes and goes, and what is held beside.
    pub planned_device_bytes: u64,
    /// Planned on the host.
    pub planned_host_bytes: u64,
    /// Planned on the drives.
    pub planned_disk_bytes: u64,
    /// Seconds to measure, plan, reserve and fill.
    pub start_seconds: f64,
    /// Hash of the plan.
    pub plan_hash: String,
}

fn gb(x: f64) -> String {
    format!("{:.2}", x / 1e9)
}

impl HostReport {
    /// Its figures as lines of text.
    #[must_use]
    pub fn text(&self) -> String {
        let r = self;
        let moved = r.bound.bytes_per_second / r.bound.parameters_per_second;
        let mut text = format!(
            "{} in turn with copies of memory, {} cores, {} M parameters: {:.3} G parameters/s, {} GB/s at {moved:.0} bytes each\n\
             {:.1}% of the better copy ({} GB/s)\n\
             a run's host lane, {} threads, alone: {:.3} G parameters/s, {} GB/s\n\
             memory {}, {} of it on huge pages",
            r.optimizer,
            r.bound.cores,
            r.parameters / 1_000_000,
            r.bound.parameters_per_second / 1e9,
            gb(r.bound.bytes_per_second),
            100.0 * r.bound.share_of_copy,
            gb(r.bound.copy_bytes_per_second),
            r.threads,
            r.parameters_per_second / 1e9,
            gb(r.bytes_per_second),
            bytes(r.arena_bytes),
            r.huge_bytes.map_or("an unknown amount".to_owned(), bytes),
        );
        if let Some(how) = &r.disk {
            text += &format!("\n{how}");
        }
        text += "\ntimes as long as alone, while these run at once:";
        for beside in &r.beside {
            let lanes = beside
                .slow_down
                .iter()
                .map(|(lane, x)| format!("{lane} {x:.2}"));
            text += &format!("\n  {}", lanes.collect::<Vec<_>>().join(", "));
        }
        text
    }
}

impl LinksReport {
    /// For people: a row a size.
    #[must_use]
    pub fn text(&self) -> String {
        let r = self;
        let mut table = Table::new([
            Column::right("size").wide(10).behind(0),
            Column::right("h2d").wide(9),
            Column::right("").wide(6),
            Column::right("d2h").wide(9),
            Column::right("").wide(6),
            Column::right("both").wide(9),
            Column::right("").wide(6),
        ]);
        for row in &r.rows {
            let each = [
                (row.h2d, row.h2d_share),
                (row.d2h, row.d2h_share),
                (row.both, row.both_share),
            ];
            let each = each.map(|(rate, share)| [gb(rate), format!("{:.0}%", 100.0 * share)]);
            table.row(
                [bytes(row.bytes)]
                    .into_iter()
                    .chain(each.into_iter().flatten()),
            );
        }
        format!(
            "{}, pinned memory; GB/s and share of the best size (both: of the two best one-way rates)\n{}",
            r.device,
            table.text()
        )
    }
}

impl DiskReport {
    /// For people: a row a mix.
    #[must_use]
    pub fn text(&self) -> String {
        let r = self;
        let mut table = Table::new([
            Column::left("").wide(24),
            Column::right("lane").wide(11),
            Column::right("bound").wide(11),
            Column::right("share").wide(8),
        ]);
        for row in &r.rows {
            let name = match (row.reads, row.writes) {
                (_, 0) => "reads".to_owned(),
                (0, _) => "writes".to_owned(),
                (r, w) => format!("{r} read : {w} written"),
            };
            let rate = |x| format!("{} GB/s", gb(x));
            let share = format!("{:.1}%", 100.0 * row.share_of_bound);
            table.row([name, rate(row.lane), rate(row.bound), share]);
        }
        format!(
            "{}\nfile of {}, blocks of {}, {} in flight; the bound is plain threads on the same file\n{}",
            r.how,
            bytes(r.bytes),
            bytes(r.block),
            r.depth,
            table.text()
        )
    }
}

impl GenerateReport {
    /// Its figures as lines of text.
    #[must_use]
    pub fn text(&self) -> String {
        let r = self;
        let rate = match r.tokens_per_second {
            Some(rate) => format!(", then {rate:.1} tokens/s"),
            None => String::new(),
        };
        format!(
            "{} on {}: {} of {} tokens each, behind prompts of {}: {}\n\
             prompts {}{rate} (a step predicted {})\n\
             device {} planned, host {} planned, disk {} planned",
            r.model,
            r.machine,
            match r.answers {
                1 => "an answer".to_owned(),
                n => format!("{n} answers at once"),
            },
            r.new_tokens,
            r.prompt_tokens,
            seconds(r.seconds),
            seconds(r.prompt_seconds),
            seconds(r.predicted_step_seconds),
            bytes(r.planned_device_bytes),
            bytes(r.planned_host_bytes),
            bytes(r.planned_disk_bytes),
        )
    }
}

impl StepReport {
    /// For people; `gpu`: it ran on one.
    #[must_use]
    pub fn text(&self, gpu: bool) -> String {
        let r = self;
        // What a device holds is known where its driver tells.
        let size = |n: Option<u64>| n.map_or(String::new(), |n| format!("{} of ", bytes(n)));
        let mut text = format!(
            "{} on {}{}: {:.0} tokens/s, {} a step of {} tokens ({} to {}), predicted {}\n\
             {:.1} model TFLOP/s, {:.1}% of a large matrix product's {:.1}\n\
             device {}{} planned, host {}{} planned\n{}",
            r.model,
            match r.gpus {
                1 => String::new(),
                n => format!("{n} x "),
            },
            r.machine,
            r.tokens_per_second,
            seconds(r.step_seconds),
            r.tokens_per_step,
            seconds(r.step_seconds_range[0]),
            seconds(r.step_seconds_range[1]),
            seconds(r.predicted_step_seconds),
            r.model_tflops,
            100.0 * r.share_of_matmul,
            r.matmul_tflops,
            size(r.device_bytes),
            bytes(r.planned_device_bytes),
            size(r.host_peak_bytes),
            bytes(r.planned_host_bytes),
            compared(&r.lanes, &r.gpu_waits, r.step_seconds, gpu).text(),
        );
        if let Some(gap) = r.gpu_gap_share {
            text += &format!("\n{} idle {:.2}% of a step", lane("gpu", gpu), 100.0 * gap);
        }
        if let Some(cost) = &r.checkpoints {
            text += &format!("\n{}", checkpoints(cost));
        }
        text
    }
}

fn checkpoints(r: &CheckpointsReport) -> String {
    let how = match r.staging_bytes {
        Some(n) => format!(
            "written while steps go on, through {} of host memory",
            bytes(n)
        ),
        None => "for which the steps stop".to_owned(),
    };
    format!(
        "checkpoints of {} each {} steps, {how}: {} a step with them, {} without, {:+.2}%\n\
         steps waited {} for {} checkpoints, of which one took {} (median); the last one took {} behind the last step",
        bytes(r.bytes),
        r.every,
        seconds(r.with_step_seconds),
        seconds(r.step_seconds),
        100.0 * r.slowdown,
        seconds(r.wait_seconds),
        r.checkpoints,
        seconds(r.write_seconds),
        seconds(r.left_over_seconds),
    )
}
