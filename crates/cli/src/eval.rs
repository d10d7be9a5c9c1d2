//! `lowtide eval`: how good a model is on the run's evaluation data.

use lowtide_config::Run;
use lowtide_trainer::TrainError;
use lowtide_trainer::answers::{Extract, Question, answer_all, questions, right};
use lowtide_trainer::fit::{Evaluation, evaluate};
use lowtide_trainer::generate::{Places, Plain, steps};
use lowtide_trainer::hub;
use lowtide_trainer::inputs::{load_inputs, open_tokenizer};
use lowtide_trainer::pairs::{self, start_of};
use lowtide_trainer::paths;
use lowtide_trainer::report::Phase;
use lowtide_trainer::stops::stops_of;
use serde_json::json;

use crate::Answer;
use crate::args::EvalArgs;
use crate::error::CliError;
use crate::generate::{ready, ready_to_decode};
use crate::out::Out;
use crate::progress::Waiting;

/// Loss and, if the run asks for it, exact match. Long because it is one after the other.
pub fn eval(args: &EvalArgs, out: Out) -> Answer {
    let run = hub::data(args.run.load_with_model(args.model.as_deref())?)?;
    run.training_ready().map_err(TrainError::from)?;
    paths::inputs(&run)?;
    let waiting = Waiting::begin(Phase::Data.name());
    let tokenizer = open_tokenizer(&run, None)?;
    let mut stops = stops_of(&run, &tokenizer)?;
    let inputs = load_inputs(&run, &tokenizer)?;
    if inputs.is_chat() {
        stops = stops.with_turns(&tokenizer);
    }
    if args.cached.is_some() && pairs::has(&run)? {
        return Err(CliError::Usage {
            what: "--cached: answers of a model with an encoder and a decoder have no KV cache yet"
                .to_owned(),
            help: "leave it out",
        });
    }
    let Some(data) = inputs.eval else {
        return Err(CliError::Usage {
            what: format!("{}: no evaluation data", run.file),
            help: "give data.eval or data.eval_split",
        });
    };
    let extract = Extract::of(&run);
    let questions = questions(&run, &tokenizer, &extract)?;
    cached_suits(args, &run, &questions)?;
    let cached = args.cached.or(run.eval.generate.cached);
    drop(waiting);
    inputs.notes.iter().for_each(|note| out.text(note));
    inputs.details.iter().for_each(|detail| out.detail(detail));
    out.text(&format!("model: {}", crate::generate::name(&run)));
    let mut session = ready(&run)?;
    let waiting = Waiting::begin(Phase::Evaluating.name());
    let Evaluation {
        loss: eval_loss,
        accuracy,
        f1,
    } = evaluate(&mut session, &data, &run)?;
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
    if !questions.is_empty() {
        let most = run.eval.generate.max_new_tokens as usize;
        if let Some(answers) = cached {
            drop(session);
            session = ready_to_decode(
                &run,
                steps(
                    answers.min(questions.len() as u32),
                    longest(&run, &questions),
                ),
            )?;
        }
        let waiting = Waiting::begin("answering prompts");
        let of = questions.len() as u64;
        let start = start_of(&run, session.decoder().shape())?;
        let places = Places::of(session.decoder(), start);
        let mut plain = Plain::new(&mut session, |done| waiting.at(done as u64, of));
        let made = answer_all(
            &mut plain, places, &tokenizer, &stops, &questions, &extract, most,
        )?;
        drop(waiting);
        answers = made.expect("nobody asks it to end");
        let (n, right) = (answers.len(), right(&answers));
        let share = 100.0 * right as f64 / n as f64;
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

/// Refuses a cache for answers that are not made, or by several GPUs.
fn cached_suits(args: &EvalArgs, run: &Run, questions: &[Question]) -> Result<(), CliError> {
    if args.cached.is_none() || (run.gpus == 1 && !questions.is_empty()) {
        return Ok(());
    }
    Err(CliError::Usage {
        what: match run.gpus > 1 {
            true => "--cached: answers with a KV cache are made on one GPU".to_owned(),
            false => "--cached: this run answers no prompts".to_owned(),
        },
        help: "leave it out; eval.generate.exact_match says that prompts of data.eval are answered",
    })
}

/// Tokens of the longest prompt that leaves room for an answer, with the longest answer.
fn longest(run: &Run, questions: &[Question]) -> u32 {
    let lengths = questions.iter().map(|q| q.prompt.tokens.len() as u32);
    let prompt = lengths.filter(|&n| n < run.train.seq).max().unwrap_or(1);
    let keys = prompt.saturating_add(run.eval.generate.max_new_tokens);
    keys.min(run.train.seq)
}
