//! The model card: what an exported model was made of and how.

use std::fmt::Write;
use std::path::Path;

use lowtide_config::Run;

use crate::checkpoint::RunState;
use crate::hub;

/// The card's file.
pub(super) const CARD: &str = "README.md";

/// A text without a meaning in Markdown's tables or in HTML, on one line.
fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '|' | '<' | '>' | '`' | '[' | ']' | '*' => format!("\\{c}"),
        c if c.is_control() => " ".to_owned(),
        c => c.to_string(),
    };
    text.chars().take(300).map(shown).collect()
}

/// The last part of a path: where files lie on somebody's machine is nobody's business.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    plain(&name.to_string_lossy())
}

/// The card of a model that is `state`'s after its last step, or of an earlier one, `best`. `evaluation`: how good it
/// was on the evaluation data, where that was measured.
pub(super) fn card(
    run: &Run,
    state: &RunState,
    best: Option<u64>,
    parameters: u64,
    evaluation: Option<String>,
) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    if let Some(base) = &run.model.path_typed {
        let base = hub::name_of(run).unwrap_or_else(|| name(Path::new(base)));
        rows.push(("base model", base));
    }
    rows.push(("parameters", parameters.to_string()));
    for source in &run.data.train {
        let weight = match source.weight {
            1.0 => String::new(),
            weight => format!(" (weight {weight})"),
        };
        rows.push(("trained on", name(&source.path) + &weight));
    }
    let train = &run.train;
    rows.push(("steps", best.unwrap_or(state.step).to_string()));
    if best.is_none() {
        rows.push(("tokens", state.tokens.to_string()));
    }
    let (b, t, m) = (train.micro_batch, train.seq, train.accumulate);
    let of = match train.target {
        0 => t.to_string(),
        target => format!("{t} and {target}"),
    };
    rows.push(("tokens a step", format!("{b} x {m} rows of {of}")));
    rows.push((
        "learning rate",
        format!("{:e}, {}", train.learning_rate, train.schedule.shape),
    ));
    rows.push(("optimizer", run.optimizer.name.name().to_owned()));
    for group in &run.optimizer.groups {
        let rate = group.learning_rate.map(|r| format!("learning rate {r:e}"));
        let decay = group.weight_decay.map(|d| format!("weight decay {d}"));
        let own: Vec<String> = rate.into_iter().chain(decay).collect();
        let what = format!("{}: {}", group.names.join(", "), own.join(", "));
        rows.push(("of some tensors", plain(&what)));
    }
    rows.push(("precision", run.precision.name().to_owned()));
    rows.push(("seed", run.seed.to_string()));
    if let (None, Some(loss)) = (best, state.totals.mean_loss()) {
        rows.push(("training loss, last steps", format!("{loss:.4}")));
    }
    rows.extend(evaluation.map(|e| ("evaluation", e)));
    if !train.freeze.is_empty() {
        rows.push(("not trained", plain(&train.freeze.join(", "))));
    }
    let version = env!("CARGO_PKG_VERSION");
    let task = match train.target {
        0 => "text-generation",
        _ => "text2text-generation",
    };
    let mut card = format!(
        "---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- lowtide\n---\n\n\
         A model of which all parameters were fine-tuned with lowtide {version}.\n\n| | |\n|---|---|\n"
    );
    for (what, value) in rows {
        let _ = writeln!(card, "| {what} | {value} |");
    }
    card
}
