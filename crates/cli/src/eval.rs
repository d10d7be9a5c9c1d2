//! `lowtide eval`: how good a model is on the run's evaluation data.

use lowtide_config::Run;
use lowtide_trainer::{Evaluation, Judging, Names, Phase};
use serde_json::json;

use crate::Answer;
use crate::args::EvalArgs;
use crate::error::CliError;
use crate::generate::ready;
use crate::out::Out;
use crate::progress::Waiting;

/// Loss and, if the run asks for it, exact match.
pub fn eval(args: &EvalArgs, out: Out) -> Answer {
    let run = args
        .run
        .load_with_model(args.model.as_deref(), Names::Data)?;
    let waiting = Waiting::begin(Phase::Data.name());
    let of = Judging::open(&run)?;
    suits(args, &run, &of)?;
    let cached = args.cached.or(run.eval.generate.cached);
    drop(waiting);
    of.notes.iter().for_each(|note| out.text(note));
    of.details.iter().for_each(|detail| out.detail(detail));
    out.text(&format!("model: {}", crate::generate::name(&run)));
    let mut session = ready(&run, || of.plan())?;
    let waiting = Waiting::begin(Phase::Evaluating.name());
    let Evaluation {
        loss: eval_loss,
        accuracy,
        f1,
    } = of.evaluate(&mut session)?;
    if !eval_loss.is_finite() {
        return Err(CliError::Usage {
            what: format!("the evaluation loss is {eval_loss}: numbers of the model overflow"),
            help: "its weights are finite, so it was saved after it diverged: take an older checkpoint",
        });
    }
    drop(waiting);
    out.text(&format!(
        "evaluation loss {eval_loss:.4}, {}",
        crate::train::right(accuracy, f1)
    ));
    let mut answers = Vec::new();
    if of.prompts() > 0 {
        if let Some(at_once) = cached {
            drop(session);
            session = ready(&run, || of.plan_answers(at_once))?;
        }
        let waiting = Waiting::begin("answering prompts");
        let all = of.prompts() as u64;
        answers = of.answer(&mut session, |done| waiting.at(done as u64, all))?;
        drop(waiting);
        let n = answers.len();
        let share = 100.0 * right(&answers) as f64 / n as f64;
        out.text(&format!("exact match {share:.1}% of {n} prompts"));
    }
    let n = answers.len();
    let share = (n > 0).then(|| right(&answers) as f64 / n as f64);
    let mut answer = json!({
        "eval_loss": eval_loss,
        "eval_accuracy": accuracy,
        "exact_match": share,
        "right": right(&answers),
        "prompts": n,
        "cached": cached,
        "answers": answers,
    });
    if let Some(f1) = f1 {
        answer["eval_f1"] = json!(f1);
    }
    Ok((answer, 0))
}

/// Refuses a run without evaluation data, and a cache for answers that are not made, or by several GPUs.
fn suits(args: &EvalArgs, run: &Run, of: &Judging<'_>) -> Result<(), CliError> {
    let usage = |what: &str, help| {
        let what = what.to_owned();
        Err(CliError::Usage { what, help })
    };
    if args.cached.is_some() && of.has_stacks() {
        let what =
            "--cached: answers of a model with an encoder and a decoder have no KV cache yet";
        return usage(what, "leave it out");
    }
    if !of.has_data() {
        let what = format!("{}: no evaluation data", run.file);
        return usage(&what, "give data.eval or data.eval_split");
    }
    if args.cached.is_none() || (run.gpus == 1 && of.prompts() > 0) {
        return Ok(());
    }
    let what = match run.gpus > 1 {
        true => "--cached: answers with a KV cache are made on one GPU",
        false => "--cached: this run answers no prompts",
    };
    let help =
        "leave it out; eval.generate.exact_match says that prompts of data.eval are answered";
    usage(what, help)
}

/// How many answers count as right.
fn right(answers: &[lowtide_trainer::Answer]) -> usize {
    answers.iter().filter(|a| a.right).count()
}
