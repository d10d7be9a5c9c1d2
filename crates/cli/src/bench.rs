//! `lowtide bench`: how fast this machine is at what a run does.

use lowtide_config::Run;
use lowtide_measure::bench::{HostOptions, disk, host, least_file, links};
use lowtide_planner::explain::{explain, explain_choices};
use lowtide_trainer::error::CudaError;
use lowtide_trainer::{
    Bytes, Gpu, Observer, Phase, Planned, Probe, StepOptions, TrainError, device,
};
use serde_json::json;

use crate::Answer;
use crate::args::{
    Bench, BenchArgs, BenchDiskArgs, BenchGenerateArgs, BenchHostArgs, BenchLinksArgs,
    BenchStepArgs, PlanArgs, directories,
};
use crate::error::CliError;
use crate::out::Out;
use crate::plan::{drives, rates_line, run_of};
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
    out.text(&report.text());
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
    out.text(&report.text());
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
    out.text(&report.text());
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
    out.text(&report.text(show.cuda));
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
    out.text(&report.text());
    Ok((json!(report), 0))
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

    fn planned(&mut self, planned: &Planned) {
        let (plan, machine) = (&planned.plan, &planned.machine);
        self.waiting = None;
        self.out.text(&rates_line(machine));
        self.out.text(&planned.memory().table().text());
        let w = planned.decoder.workload();
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
