//! `lowtide bench`: how fast this machine is at what a run does.

use lowtide_config::Run;
use lowtide_measure::bench::{
    DiskReport, HostOptions, HostReport, LinksReport, disk, host, least_file, links,
};
use lowtide_planner::explain::{explain, explain_choices, lane_of};
use lowtide_planner::plan::LaneKind;
use lowtide_planner::{Machine, Plan};
use lowtide_trainer::error::CudaError;
use lowtide_trainer::{
    Bytes, CheckpointsReport, GenerateReport, Gpu, Observer, Phase, Probe, StepOptions, StepReport,
    TrainError, Workload, device,
};
use serde_json::json;

use crate::Answer;
use crate::args::{
    Bench, BenchArgs, BenchDiskArgs, BenchGenerateArgs, BenchHostArgs, BenchLinksArgs,
    BenchStepArgs, PlanArgs, directories,
};
use crate::error::CliError;
use crate::out::{Out, bytes, seconds};
use crate::plan::{compare, compare_waits, drives, rates_line, run_of};
use crate::progress::Waiting;

/// Runs one bench.
pub fn bench(args: &BenchArgs, out: Out) -> Answer {
    match &args.what {
        Bench::Step(args) => bench_step(args, out),
        Bench::Generate(args) => bench_generate(args, out),
        Bench::Host(args) => bench_host(args, out),
        Bench::Links(args) => bench_links(args, out),
        Bench::Disk(args) => bench_disk(args, out),
    }
}

fn bench_host(args: &BenchHostArgs, out: Out) -> Answer {
    let device = device(Some(&args.device), None, None)?;
    out.text(&device.note);
    let threads = args
        .threads
        .map_or_else(Probe::usual_threads, |n| n as usize);
    let report = host(&HostOptions {
        threads,
        parameters: args.parameters,
        gpu: device.gpu.clone(),
        directories: directories("--disk", &args.disk)?,
        seconds: figure_seconds(args.seconds)?,
    })?;
    out.text(&host_table(&report));
    Ok((json!(report), 0))
}

fn bench_links(args: &BenchLinksArgs, out: Out) -> Answer {
    let gpu = Gpu::open(0).map_err(|e| match e {
        CudaError::NoDevice(_) => CliError::Usage {
            what: format!("links are between the host and a GPU: {e}"),
            help: "install NVIDIA's driver (nvidia-smi should list the GPU)",
        },
        e => TrainError::from(e).into(),
    })?;
    let report = links(&gpu, figure_seconds(args.seconds)?)?;
    out.text(&links_table(&report));
    Ok((json!(report), 0))
}

fn bench_disk(args: &BenchDiskArgs, out: Out) -> Answer {
    let size: Bytes = args.size.parse().map_err(|e| CliError::Usage {
        what: format!("--size {}: {e}", args.size),
        help: "a size such as 4GiB",
    })?;
    if size < least_file() {
        return Err(CliError::Usage {
            what: format!("--size {}: at least {}", args.size, least_file()),
            help: "more than the drive's own cache, such as 4GiB",
        });
    }
    let report = disk(&args.dir, size, figure_seconds(args.seconds)?)?;
    out.text(&disk_table(&report));
    Ok((json!(report), 0))
}

fn figure_seconds(seconds: f64) -> Result<f64, CliError> {
    if (0.001..=3600.0).contains(&seconds) {
        return Ok(seconds);
    }
    Err(CliError::Usage {
        what: format!("--seconds {seconds}"),
        help: "from 0.001 to 3600",
    })
}

fn gb(x: f64) -> String {
    format!("{:.2}", x / 1e9)
}

fn host_table(r: &HostReport) -> String {
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

fn links_table(r: &LinksReport) -> String {
    let mut text = format!(
        "{}, pinned memory; GB/s and share of the best size (both: of the two best one-way rates)\n\
         {:>10} {:>8} {:>5} {:>8} {:>5} {:>8} {:>5}",
        r.device, "size", "h2d", "", "d2h", "", "both", ""
    );
    for row in &r.rows {
        text += &format!("\n{:>10}", bytes(row.bytes));
        for (rate, share) in [
            (row.h2d, row.h2d_share),
            (row.d2h, row.d2h_share),
            (row.both, row.both_share),
        ] {
            text += &format!(" {:>8} {:>4.0}%", gb(rate), 100.0 * share);
        }
    }
    text
}

fn disk_table(r: &DiskReport) -> String {
    let mut text = format!(
        "{}\nfile of {}, blocks of {}, {} in flight; the bound is plain threads on the same file\n\
         {:<24} {:>10} {:>10} {:>7}",
        r.how,
        bytes(r.bytes),
        bytes(r.block),
        r.depth,
        "",
        "lane",
        "bound",
        "share"
    );
    for row in &r.rows {
        let name = match (row.reads, row.writes) {
            (_, 0) => "reads".to_owned(),
            (0, _) => "writes".to_owned(),
            (r, w) => format!("{r} read : {w} written"),
        };
        text += &format!(
            "\n{name:<24} {:>5} GB/s {:>5} GB/s {:>6.1}%",
            gb(row.lane),
            gb(row.bound),
            100.0 * row.share_of_bound
        );
    }
    text
}

/// The run of a bench of a model, and what shows how it goes.
fn prepared(args: &PlanArgs, out: Out) -> Result<(Run, Show), CliError> {
    let mut run = run_of(args)?;
    if let Some(machine) = &args.machine {
        run.plan.machine = Some(machine.clone());
    }
    let show = Show {
        out,
        cuda: false,
        waiting: None,
    };
    Ok((run, show))
}

fn bench_step(args: &BenchStepArgs, out: Out) -> Answer {
    let (run, mut show) = prepared(&args.plan, out)?;
    let every = args.checkpoint_every;
    let options = StepOptions {
        warm_up: args.warm_up,
        trace: args.trace.as_deref(),
        checkpoints: args.checkpoints.as_deref().map(|dir| (dir, every)),
    };
    let report = lowtide_trainer::bench_step(&run, args.steps, options, &mut show)?;
    out.text(&table(&report, show.cuda));
    Ok((json!(report), 0))
}

fn bench_generate(args: &BenchGenerateArgs, out: Out) -> Answer {
    let (run, mut show) = prepared(&args.plan, out)?;
    let p = &args.plan;
    let unused = [
        (run.gpus > 1).then_some("gpus"),
        p.micro_batch.map(|_| "--micro-batch"),
        p.seq.map(|_| "--seq"),
        p.accumulate.map(|_| "--accumulate"),
        p.clip.map(|_| "--clip"),
        p.curve.map(|_| "--curve"),
        p.svg.as_ref().map(|_| "--svg"),
        p.html.as_ref().map(|_| "--html"),
        p.brief.then_some("--brief"),
    ];
    if let Some(name) = unused.into_iter().flatten().next() {
        return Err(CliError::Usage {
            what: format!(
                "{name}: answers are made on one GPU and have no batch, and nothing is drawn"
            ),
            help: "leave it out; --answers, --prompt-tokens and --new-tokens say what is made",
        });
    }
    let (prompt, new) = (args.prompt_tokens, args.new_tokens);
    let report = lowtide_trainer::bench_generate(&run, args.answers, (prompt, new), &mut show)?;
    out.text(&answers_table(&report));
    Ok((json!(report), 0))
}

fn answers_table(r: &GenerateReport) -> String {
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

struct Show {
    out: Out,
    cuda: bool,
    waiting: Option<Waiting>,
}

impl Observer for Show {
    fn note(&mut self, text: &str) {
        self.out.text(text);
    }

    fn planned(&mut self, plan: &Plan, w: &Workload, machine: &Machine) {
        self.waiting = None;
        self.out.text(&rates_line(machine));
        self.out.text(explain(plan, w, self.cuda).trim_end());
        for line in drives(plan, machine) {
            self.out.text(&line);
        }
        self.out.text(explain_choices(plan).trim_end());
    }

    fn device(&mut self, note: &str, gpu: bool) {
        self.cuda = gpu;
        self.note(note);
    }

    fn detail(&mut self, text: &str) {
        self.out.detail(text);
    }

    fn phase(&mut self, phase: Option<Phase>) {
        self.waiting = None;
        self.waiting = phase.map(|p| Waiting::begin(p.name()));
    }
}

fn table(r: &StepReport, cuda: bool) -> String {
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
        compare(&r.lanes, cuda),
    );
    text += &format!("\n{}", compare_waits(&r.gpu_waits, r.step_seconds, cuda));
    if let Some(gap) = r.gpu_gap_share {
        text += &format!(
            "\n{} idle {:.2}% of a step",
            lane_of(LaneKind::Gpu, cuda),
            100.0 * gap
        );
    }
    if let Some(cost) = &r.checkpoints {
        text += &format!("\n{}", checkpoints(cost));
    }
    text
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
