//! `lowtide bench`: how fast this machine is at what a run does.

use lowtide_planner::explain::explain;
use lowtide_planner::{Machine, Plan};
use lowtide_trainer::bench::{StepReport, step};
use lowtide_trainer::fit::Observer;
use serde_json::json;

use crate::Answer;
use crate::args::{Bench, BenchArgs, BenchStepArgs};
use crate::out::{Out, bytes, seconds};
use crate::plan::{compare, rates_line, run_of};

/// Runs one bench.
pub fn bench(args: &BenchArgs, out: Out) -> Answer {
    match &args.what {
        Bench::Step(args) => bench_step(args, out),
    }
}

fn bench_step(args: &BenchStepArgs, out: Out) -> Answer {
    let mut run = run_of(&args.plan)?;
    if let Some(machine) = &args.plan.machine {
        run.plan.machine = Some(machine.clone());
    }
    let report = step(&run, args.steps, args.trace.as_deref(), &mut Show { out })?;
    out.text(&table(&report));
    Ok((json!(report), 0))
}

struct Show {
    out: Out,
}

impl Observer for Show {
    fn note(&mut self, text: &str) {
        self.out.text(text);
    }

    fn planned(&mut self, plan: &Plan, machine: &Machine) {
        self.out.text(&rates_line(machine));
        self.out.text(explain(plan).trim_end());
    }
}

fn table(r: &StepReport) -> String {
    let size = |n: Option<u64>| n.map_or("not told".to_owned(), bytes);
    let mut text = format!(
        "{} on {}: {:.0} tokens/s, {} a step of {} tokens ({} to {}), predicted {}\n\
         {:.1} model TFLOP/s, {:.1}% of a large matrix product's {:.1}\n\
         device {} of {} planned, host {} of {} planned\n{}",
        r.model,
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
        compare(&r.lanes),
    );
    if let Some(gap) = r.gpu_gap_share {
        text += &format!("\ngpu idle {:.2}% of a step", 100.0 * gap);
    }
    text
}
