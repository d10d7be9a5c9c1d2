//! `lowtide eval`: how good a model is on the run's evaluation data.

use lowtide_trainer::data::prompts;
use lowtide_trainer::fit::evaluate;
use lowtide_trainer::generate::exact_match;
use lowtide_trainer::inputs::{load_inputs, load_options, open_tokenizer};
use lowtide_trainer::report::Phase;
use lowtide_trainer::stops::stops_of;
use serde_json::json;

use crate::Answer;
use crate::args::EvalArgs;
use crate::error::CliError;
use crate::generate::ready;
use crate::out::Out;
use crate::progress::Waiting;

/// Loss and, if the run asks for it, exact match.
pub fn eval(args: &EvalArgs, out: Out) -> Answer {
    let run = args.run.load_with_model(args.model.as_deref())?;
    let waiting = Waiting::begin(Phase::Data.name());
    let tokenizer = open_tokenizer(&run, None)?;
    let stops = stops_of(&run, &tokenizer)?;
    let inputs = load_inputs(&run, &tokenizer)?;
    let Some(data) = inputs.eval else {
        return Err(CliError::Usage {
            what: format!("{}: no evaluation data", run.file),
            help: "give data.eval or data.eval_split",
        });
    };
    drop(waiting);
    out.text(&format!("model: {}", crate::generate::name(&run)));
    let mut session = ready(&run)?;
    let waiting = Waiting::begin(Phase::Evaluating.name());
    let eval_loss = evaluate(&mut session, &data, &run)?;
    drop(waiting);
    out.text(&format!("evaluation loss {eval_loss:.4}"));
    let mut all = Vec::new();
    if run.eval.generate.exact_match {
        for path in &run.data.eval {
            all.extend(prompts(path, &load_options(&run), &tokenizer)?);
        }
        all.truncate(run.eval.generate.max_examples as usize);
    }
    let mut share = None;
    if !all.is_empty() {
        let most = run.eval.generate.max_new_tokens as usize;
        let waiting = Waiting::begin("answering prompts");
        let of = all.len() as u64;
        let told = |done| waiting.at(done as u64, of);
        let right = exact_match(&mut session, &tokenizer, &stops, &all, most, told)?;
        drop(waiting);
        out.text(&format!(
            "exact match {:.1}% of {} prompts",
            100.0 * right,
            all.len()
        ));
        share = Some(right);
    }
    let answer = json!({ "eval_loss": eval_loss, "exact_match": share, "prompts": all.len() });
    Ok((answer, 0))
}
