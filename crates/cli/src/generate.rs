//! `lowtide generate`: a look at what a model says.

use std::fs;
use std::path::Path;

use lowtide_config::{ModelSource, Run};
use lowtide_data::RecordProblem;
use lowtide_data::{Tokenizer, generation_prompt};
use lowtide_session::Session;
use lowtide_trainer::TrainError;
use lowtide_trainer::generate::{Decoding, Places, Sampling, generate as continue_text};
use lowtide_trainer::inputs::open_tokenizer;
use lowtide_trainer::open::{load_weights, open_session, plan_decoding, plan_run};
use lowtide_trainer::pairs::start_of;
use lowtide_trainer::paths;
use lowtide_trainer::planning::{Planned, shape_of};
use lowtide_trainer::report::Phase;
use lowtide_trainer::stops::stops_of;
use serde_json::json;

use crate::Answer;
use crate::args::GenerateArgs;
use crate::error::CliError;
use crate::out::{Out, complain, quoted};
use crate::progress::Waiting;

/// Which model a run would use, for people.
pub fn name(run: &Run) -> String {
    match &run.model.source {
        ModelSource::Path(dir) => dir.display().to_string(),
        ModelSource::Shape(name) => format!("{name}, random weights"),
        ModelSource::Config(path) => format!("{}, random weights", path.display()),
    }
}

/// Says that it is not the run's own model that answers, where it has checkpoints and has made none.
fn note_unfinished(run: &Run, file: &Path) {
    let made = run.output.join("model").exists();
    let mut checkpoints = fs::read_dir(run.output.join("checkpoints"));
    if !made && checkpoints.as_mut().is_ok_and(|dir| dir.next().is_some()) {
        complain(&format!(
            "note: the run is not finished, so {} answers; `lowtide export {} DIR` makes a model of its newest \
             checkpoint",
            name(run),
            quoted(file)
        ));
    }
}

/// Continues a text or answers a message. Long because it is one after the other.
pub fn generate(args: &GenerateArgs, out: Out) -> Answer {
    let mut run = args.run.args().load_with_model(args.model.as_deref())?;
    if args.model.is_none() {
        note_unfinished(&run, &args.run.file);
    }
    // One row is all there is; no result depends on it.
    (run.train.micro_batch, run.train.accumulate) = (1, 1);
    run.gpus = 1;
    let usage = |what: String, help| CliError::Usage { what, help };
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        let what = format!("--temperature {}: must be 0 or more", args.temperature);
        return Err(usage(what, "0 is greedy, 1 samples as the model says"));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        let what = format!("--top-p {}: must be above 0 and at most 1", args.top_p);
        return Err(usage(what, "1 leaves every token in"));
    }
    if args.message.is_none() && args.prompt.is_none() {
        let what = format!("{}: nothing to answer or to continue", run.file);
        return Err(usage(
            what,
            "--message TEXT answers a user's message by the model's chat template; --prompt TEXT continues a text",
        ));
    }
    paths::reading(&run)?;
    lowtide_trainer::classes::answers(&run)?;
    let tokenizer = open_tokenizer(&run, None)?;
    let mut stops = stops_of(&run, &tokenizer)?;
    let shape = shape_of(&run)?;
    let apart = shape.stacks.is_some();
    if args.message.is_some() && !apart {
        stops = stops.with_turns(&tokenizer);
    }
    let tokens = match apart {
        true => source(args, &tokenizer)?,
        false => tokens(args, &run, &tokenizer)?,
    };
    if tokens.is_empty() {
        return Err(usage(
            "there is nothing to continue".to_owned(),
            "give a longer --prompt",
        ));
    }
    if tokens.len() + usize::from(!apart) > run.train.seq as usize {
        let what = format!("{} tokens of {} leave no room", tokens.len(), run.train.seq);
        return Err(usage(what, "raise it with --set train.seq=N"));
    }
    let max_new_tokens = args
        .max_new_tokens
        .unwrap_or(run.eval.generate.max_new_tokens);
    // Of two stacks no keys are kept yet.
    let cache = !args.no_cache && !apart;
    let mut session = match cache {
        true => ready_to_decode(&run, steps(&run, tokens.len(), max_new_tokens))?,
        false => ready(&run)?,
    };
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        max_new_tokens: max_new_tokens as usize,
    };
    let waiting = Waiting::begin("decoding");
    let places = Places::of(session.decoder(), start_of(&run, &shape)?);
    let (all, passes) = continue_text(&mut session, places, &[tokens], &stops, &sampling, |_| ())?;
    drop(waiting);
    let new = all.into_iter().next().unwrap_or_default();
    let text = tokenizer.decode(&new, false);
    // What a model says may have tabs, which are no harm.
    out.as_it_is(&text);
    let answer = json!({
        "text": text,
        "tokens": new,
        "model": name(&run),
        "cache": cache,
        "prompt_tokens": passes.prompt_tokens,
        "prompt_seconds": passes.prompt_seconds,
        "tokens_per_second": passes.tokens_per_second(),
    });
    Ok((answer, 0))
}

/// Steps of one answer, to a prompt of so many tokens.
fn steps(run: &Run, prompt: usize, max_new_tokens: u32) -> Decoding {
    let prompt = u32::try_from(prompt).expect("shorter than a sequence");
    let keys = prompt.saturating_add(max_new_tokens).min(run.train.seq);
    lowtide_trainer::generate::steps(1, keys)
}

/// A session of a run that makes no steps, with its weights.
pub fn ready(run: &Run) -> Result<Session, CliError> {
    ready_by(run, plan_run)
}

/// A session that makes answers with keys and values that are kept.
pub fn ready_to_decode(run: &Run, how: Decoding) -> Result<Session, CliError> {
    ready_by(run, |run| plan_decoding(run, how))
}

fn ready_by(
    run: &Run,
    plan: impl FnOnce(&Run) -> Result<Planned, TrainError>,
) -> Result<Session, CliError> {
    let waiting = Waiting::begin(if run.plan.machine.is_some() {
        "planning"
    } else {
        "measuring this machine and planning"
    });
    let planned = plan(run)?;
    drop(waiting);
    let _waiting = Waiting::begin(Phase::Weights.name());
    let mut session = open_session(run, &planned)?;
    load_weights(run, &mut session)?;
    Ok(session)
}

/// The tokens that an encoder reads: of a text as it is, whoever says it.
fn source(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<Vec<i32>, CliError> {
    let text = args.message.as_deref().or(args.prompt.as_deref());
    let tokens = tokenizer.encode_alone(text.unwrap_or_default());
    tokens.map_err(|e| CliError::Usage {
        what: e.to_string(),
        help: "give another --prompt",
    })
}

/// The tokens to continue.
fn tokens(args: &GenerateArgs, run: &Run, tokenizer: &Tokenizer) -> Result<Vec<i32>, CliError> {
    let failed = |e: RecordProblem| CliError::Usage {
        what: e.to_string(),
        help: "--prompt TEXT continues a text without a chat template",
    };
    let Some(message) = &args.message else {
        let mut tokens = tokenizer.prefix().to_vec();
        let text = args.prompt.as_deref().unwrap_or_default();
        tokens.extend(tokenizer.encode(text).map_err(failed)?);
        return Ok(tokens);
    };
    let mut messages = Vec::new();
    if let Some(system) = &run.data.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": message }));
    let text = match generation_prompt(tokenizer, &messages, None) {
        Some(text) => text.map_err(failed)?,
        None => {
            let path = tokenizer.path().to_owned();
            return Err(lowtide_data::DataError::NoChatTemplate { path }.into());
        }
    };
    tokenizer.encode(&text).map_err(failed)
}
