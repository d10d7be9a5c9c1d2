//! Answers of a shape with random weights, timed.

use std::time::Instant;

use lowtide_config::Run;
use lowtide_data::Micro;
use lowtide_executor::Trace;
use lowtide_planner::Tier;
use lowtide_report::bench::GenerateReport;

use super::fill;
use crate::error::TrainError;
use crate::generate::{Places, Sampling, generate as continue_all, steps};
use crate::open::{disk_of, open_on, plan_decoding};
use crate::report::{Observer, Phase};
use crate::stops::Stops;
use crate::wear;

/// Fills a model with random numbers and makes so many answers at once, of random prompts and so many tokens
/// whatever they are: once to warm up, once timed.
///
/// # Errors
/// As for training a run; more tokens than the model has positions.
pub fn generate(
    run: &Run,
    answers: u32,
    (prompt_tokens, new_tokens): (u32, u32),
    observer: &mut dyn Observer,
) -> Result<GenerateReport, TrainError> {
    let begin = Instant::now();
    let mut run = run.clone();
    run.train.seq = prompt_tokens.saturating_add(new_tokens);
    let run = &run;
    observer.phase(Some(Phase::Planning));
    let planned = plan_decoding(run, steps(answers, run.train.seq))?;
    observer.device(&planned.device.note, planned.device.gpu.is_some());
    let plan = &planned.plan;
    wear::check(run, plan, (0, wear::fill(plan), 0))?;
    observer.phase(Some(Phase::Weights));
    let mut session = open_on(run, &planned, Trace::NONE, disk_of(run, plan))?;
    fill(&mut session)?;
    observer.phase(None);
    let start_seconds = begin.elapsed().as_secs_f64();
    observer.note(&format!("ready after {start_seconds:.1} s"));

    let w = planned.decoder.workload();
    let vocab = planned.decoder.shape().vocab;
    let prompt = |seed: u32| Micro::random(1, prompt_tokens, vocab, u64::from(seed)).tokens;
    let prompts: Vec<Vec<i32>> = (0..answers).map(prompt).collect();
    let greedy = Sampling {
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        max_new_tokens: new_tokens as usize,
    };
    let places = Places::of(session.decoder(), 0);
    let mut timed = || {
        let begin = Instant::now();
        let (made, passes) = continue_all(
            &mut session,
            places,
            &prompts,
            &Stops::of([]),
            &greedy,
            |_| (),
        )?;
        assert!(made.iter().all(|a| a.len() == new_tokens as usize));
        Ok::<_, TrainError>((begin.elapsed().as_secs_f64(), passes))
    };
    timed()?;
    let (seconds, passes) = timed()?;
    Ok(GenerateReport {
        model: plan.model.clone(),
        machine: planned.machine.name.clone(),
        device: planned.device.note.clone(),
        parameters: w.parameters(),
        answers,
        prompt_tokens,
        new_tokens,
        seconds,
        prompt_seconds: passes.prompt_seconds,
        tokens_per_second: passes.tokens_per_second(),
        predicted_step_seconds: plan.prediction.step_seconds.0,
        planned_device_bytes: plan.tier(Tier::Device).planned_bytes.0
            + planned.machine.device_reserve.0,
        planned_host_bytes: planned.resident.planned(plan, &planned.machine).0,
        planned_disk_bytes: plan.tier(Tier::Disk).planned_bytes.0,
        start_seconds,
        plan_hash: format!("{:016x}", plan.hash()),
    })
}
