//! `lowtide generate`: a look at what a model says.

use std::fs;
use std::path::Path;

use lowtide_config::{ModelSource, Run};
use lowtide_session::Session;
use lowtide_trainer::{Answering, Names, Phase, Planned, Prompt, Sampling, TrainError, load_model};
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

/// Says which model answers: that it is not the run's own where the run has made none.
fn note_model(run: &Run, file: &Path, named: bool) {
    let name = name(run);
    if named || run.output.join("model").exists() {
        return complain(&format!("model: {name}"));
    }
    let mut checkpoints = fs::read_dir(run.output.join("checkpoints"));
    match checkpoints.as_mut().is_ok_and(|dir| dir.next().is_some()) {
        true => complain(&format!(
            "note: the run is not finished, so {name} answers; `lowtide export {} DIR` makes a model of its newest \
             checkpoint",
            quoted(file)
        )),
        false => complain(&format!(
            "model: {name}, which the run begins with: it has made none of its own yet"
        )),
    }
}

/// Continues a text or answers a message. Long because it is one after the other.
pub fn generate(args: &GenerateArgs, out: Out) -> Answer {
    let mut run = args
        .run
        .args()
        .load_with_model(args.model.as_deref(), Names::Model)?;
    note_model(&run, &args.run.file, args.model.is_some());
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
    let prompt = match (&args.message, &args.prompt) {
        (Some(message), _) => Prompt::Message(message),
        (None, text) => Prompt::Text(text.as_deref().unwrap_or_default()),
    };
    let asked = Answering::open(&run, prompt)?.map_err(|bad| {
        let help = match bad.stacks {
            true => "give another --prompt",
            false => "--prompt TEXT continues a text without a chat template",
        };
        usage(bad.problem.to_string(), help)
    })?;
    let apart = asked.has_stacks();
    let prompt_tokens = asked.tokens.len();
    if prompt_tokens == 0 {
        return Err(usage(
            "there is nothing to continue".to_owned(),
            "give a longer --prompt",
        ));
    }
    if prompt_tokens + usize::from(!apart) > run.train.seq as usize {
        let what = format!("{prompt_tokens} tokens of {} leave no room", run.train.seq);
        return Err(usage(what, "raise it with --set train.seq=N"));
    }
    let max_new_tokens = args
        .max_new_tokens
        .unwrap_or(run.eval.generate.max_new_tokens);
    // Of two stacks no keys are kept yet.
    let cache = !args.no_cache && !apart;
    let mut session = ready(&run, || asked.plan(cache.then_some(max_new_tokens)))?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        max_new_tokens: max_new_tokens as usize,
    };
    let waiting = Waiting::begin("decoding");
    let (new, text, passes) = asked.answer(&mut session, &sampling)?;
    drop(waiting);
    // What a model says may have tabs, which are no harm.
    out.as_it_is(&text);
    let cut = new.len() >= max_new_tokens as usize;
    if cut {
        complain(&format!(
            "note: cut after {max_new_tokens} tokens; --max-new-tokens takes more"
        ));
    }
    let answer = json!({
        "text": text,
        "tokens": new,
        "cut": cut,
        "model": name(&run),
        "cache": cache,
        "prompt_tokens": passes.prompt_tokens,
        "prompt_seconds": passes.prompt_seconds,
        "tokens_per_second": passes.tokens_per_second(),
    });
    Ok((answer, 0))
}

/// A session of a run that makes no steps, by this plan, with its weights.
pub fn ready(
    run: &Run,
    plan: impl FnOnce() -> Result<Planned, TrainError>,
) -> Result<Session, CliError> {
    let waiting = Waiting::begin(if run.plan.machine.is_some() {
        "planning"
    } else {
        "measuring this machine and planning"
    });
    let planned = plan()?;
    drop(waiting);
    let _waiting = Waiting::begin(Phase::Weights.name());
    Ok(load_model(run, &planned)?)
}
