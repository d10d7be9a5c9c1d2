//! What to do about a path that a key names, or a name on the Hugging Face Hub.

use lowtide_trainer::error::{HubProblem, PathProblem};

use super::RELATIVE;

/// What to do about a name on the Hugging Face Hub.
fn hub_advice(key: &str, name: &str, why: &HubProblem) -> Vec<String> {
    let data = key.starts_with("data.");
    // Behind a colon stands a part of a data set.
    let (name, part) = name.split_once(':').unwrap_or((name, ""));
    let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
    let mut get = format!("hf download {id} --revision {revision}");
    if data {
        get.push_str(" --repo-type dataset");
    }
    match why {
        HubProblem::NoCache => vec!["set HF_HOME to the directory of the cache".to_owned()],
        HubProblem::Offline { .. } => vec![
            format!("unset HF_HUB_OFFLINE, or get it where there is a network: {get}"),
            RELATIVE.to_owned(),
        ],
        HubProblem::NoProgram { .. } => vec![
            format!(
                "pip install huggingface_hub brings hf; or get it elsewhere: {get} --local-dir DIR, then --set \
                 {key}=DIR{}",
                if data { "/FILE" } else { "" }
            ),
            RELATIVE.to_owned(),
        ],
        HubProblem::Failed { .. } => vec![
            "what the program said is above; what is behind a licence needs hf auth login first".to_owned(),
            match data {
                true => format!("try it alone: {get}; HF_HUB_OFFLINE=1 takes what the cache has"),
                false => format!("try it alone: {get}"),
            },
            RELATIVE.to_owned(),
        ],
        HubProblem::NoPart { .. } => vec![
            format!("name a part of it: --set {key}={name}:FOLDER/SPLIT, or a file: {name}:FILE.jsonl"),
            format!("look at what it has: https://huggingface.co/datasets/{id}/tree/{revision}; or get it: {get}"),
            RELATIVE.to_owned(),
        ],
        HubProblem::Readme { .. } => vec![
            format!("name a file of it: --set {key}={name}:FILE.jsonl"),
            format!("look at what it says: https://huggingface.co/datasets/{id}/blob/{revision}/README.md"),
        ],
        HubProblem::Ending { .. } => vec![
            format!("get it and make JSONL of it: {get} --local-dir DIR, then --set {key}=DIR/FILE.jsonl"),
            format!("or name another file of it: --set {key}={name}:FILE.jsonl"),
        ],
        HubProblem::Many { .. } => vec![
            format!("get it and join files to fewer: {get} --local-dir DIR, then --set {key}=DIR/FILE"),
        ],
        HubProblem::Several { parts } => vec![format!(
            "name one: --set {key}={name}:{}",
            parts.first().map_or(part, String::as_str)
        )],
        HubProblem::Lacks { .. } => vec![
            "either the Hub was not reached, or the repository has no such file: lowtide reads what transformers' \
             save_pretrained writes (config.json, tokenizer.json, safetensors)"
                .to_owned(),
            format!("try it alone: {get}; or give a directory: --set {key}=DIR"),
        ],
    }
}

/// How a plan is had without a model that is not there.
fn without_model(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let shapes = lowtide_config::shape_names().into_iter();
    match shapes.filter(|shape| last.starts_with(shape)).max_by_key(|shape| shape.len()) {
        Some(shape) => format!(
            "lowtide plan and bench step need no files of it: --set model.shape={shape}; --machine FILE plans for \
             another machine"
        ),
        None => "lowtide plan and bench step need its config.json alone: --set model.config=FILE; --machine FILE plans \
                 for another machine"
            .to_owned(),
    }
}

/// What to do about a path that a key names.
pub fn advice(key: &str, problem: &PathProblem) -> Vec<String> {
    match (key, problem) {
        (_, PathProblem::Hub { name, why }) => {
            let mut all = hub_advice(key, name, why);
            // What cannot be had here.
            let away = matches!(
                why,
                HubProblem::NoCache
                    | HubProblem::Offline { .. }
                    | HubProblem::NoProgram { .. }
                    | HubProblem::Failed { .. }
            );
            all.extend((key == "model.path" && away).then(|| without_model(name)));
            all
        }
        ("model.path", PathProblem::Missing) => vec![
            RELATIVE.to_owned(),
            "or give a name on the Hugging Face Hub, ORG/NAME or ORG/NAME@REVISION".to_owned(),
        ],
        (
            _,
            PathProblem::Kind {
                found: "a named pipe" | "a device" | "a socket",
                needed: "a file",
            },
        ) => vec!["write it to a file first: it is read more than once".to_owned()],
        ("model.path", PathProblem::Kind { .. }) => vec![
            "give the directory of a Hugging Face model: config.json, safetensors, tokenizer"
                .to_owned(),
        ],
        ("output" | "budget.disk", _) => vec![format!("give another directory: --set {key}=DIR")],
        ("checkpoint.resume", PathProblem::Kind { .. }) => vec![
            "give the directory of a checkpoint, such as OUTPUT/checkpoints/step-00000100"
                .to_owned(),
        ],
        (_, PathProblem::Kind { .. }) => vec![format!("give another path: --set {key}=PATH")],
        _ => vec![RELATIVE.to_owned()],
    }
}
