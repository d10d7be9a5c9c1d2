//! Rules between keys. Each refuses a run that would not do what its file says.
//!
//! One file because each rule may name keys of any section.

use lowtide_units::Bytes;

use crate::error::{ConfigError, Place};
use crate::key::KeyDefault;
use crate::keys::{EXCLUSIVE, KEYS};
use crate::low::{Low, Typed};
use crate::run::{Cache, Length, Loop, ModelSource, Run, Warmup};
use crate::value::Value;
use crate::words::{
    Activations, ClipMode, Format, Init, KeepBest, LoopOrder, NonFinite, Reduce, ScheduleShape,
    SpikeAction, Tier, TrainOn,
};

mod single;

/// At most one key of each exclusive group was given.
pub(crate) fn exclusive(low: &Low) -> Result<(), ConfigError> {
    for group in EXCLUSIVE {
        let mut given = group.iter().filter(|key| low.chosen(key));
        if let (Some(key), Some(other)) = (given.next(), given.next()) {
            return conflict(low, key, other, "give one of them");
        }
    }
    Ok(())
}

/// All rules that need values.
pub(crate) fn together(low: &Low, run: &Run) -> Result<(), ConfigError> {
    model(low, run)?;
    schedule(low, run)?;
    clipping(low, run)?;
    optimizer(low, run)?;
    data(low, run)?;
    eval(low, run)?;
    answers(low, run)?;
    tiers(low, run)?;
    drives(low, run)?;
    activations(low, run)?;
    frozen(low, run)?;
    lsp(low, run)?;
    ranks(low, run)?;
    tree(low, run)?;
    best(low, run)?;
    single::check(low, run)?;
    durable(low, run)
}

fn model(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let directory = matches!(run.model.source, ModelSource::Path(_));
    if run.model.init == Init::Pretrained && !directory {
        return needs(low, "model.init", "'model.path', whose weights it reads");
    }
    let labels = &run.model.labels;
    let twice = (1..labels.len()).any(|i| labels[..i].contains(&labels[i]));
    if labels.len() == 1 || twice || labels.iter().any(String::is_empty) {
        return needs(
            low,
            "model.labels",
            "two names or more, no two of them equal",
        );
    }
    Ok(())
}

fn schedule(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let train = &run.train;
    let s = train.schedule;
    if let (Length::Steps(steps), Warmup::Steps(warmup)) = (train.length, s.warmup)
        && warmup > steps
    {
        let why = format!("{warmup} steps of warm-up in {steps} steps");
        return conflict(low, "train.warmup_steps", "train.steps", &why);
    }
    if s.shape == ScheduleShape::Wsd {
        let warmup = match (s.warmup, train.length) {
            (Warmup::Ratio(ratio), _) => Some((ratio, "train.warmup_ratio")),
            (Warmup::Steps(n), Length::Steps(all)) => {
                Some((n as f64 / all as f64, "train.warmup_steps"))
            }
            // How many steps an epoch has is known with the data only.
            (Warmup::Steps(_), Length::Epochs(_)) => None,
        };
        if let Some((ratio, key)) = warmup
            && ratio + s.decay_ratio > 1.0 + 1e-9
        {
            let why = format!(
                "warm-up {ratio} and decay {} are more than all steps",
                s.decay_ratio
            );
            return conflict(low, "train.decay_ratio", key, &why);
        }
    } else {
        idle(
            low,
            "train.decay_ratio",
            "train.schedule",
            "'train.schedule: wsd'",
        )?;
    }
    if s.shape == ScheduleShape::Constant && s.min_lr_ratio > 0.0 {
        let needed = "a 'train.schedule' that falls: linear, cosine or wsd";
        idle(low, "train.min_lr_ratio", "train.schedule", needed)?;
    }
    Ok(())
}

fn clipping(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let mode = run.train.clip.mode;
    if mode == ClipMode::None {
        let needed = "'train.clip.mode' exact or previous";
        idle(low, "train.clip.norm", "train.clip.mode", needed)?;
    }
    if run.train.on_nonfinite == NonFinite::Skip && mode != ClipMode::Exact {
        // Only the exact mode has changed no weight by the time the whole gradient is known.
        return needs(
            low,
            "train.on_nonfinite",
            "'train.clip.mode: exact' to skip a step",
        );
    }
    spikes(low, run)
}

/// Spikes are seen before an update only where all updates wait for the norm.
fn spikes(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let Some(spike) = run.train.spike else {
        for key in ["train.spike.window", "train.spike.action"] {
            idle(
                low,
                key,
                "train.spike.factor",
                "'train.spike.factor' above 0",
            )?;
        }
        return Ok(());
    };
    if spike.action != SpikeAction::Warn && run.train.clip.mode != ClipMode::Exact {
        let needed = "'train.clip.mode: exact' to keep a spike from the weights";
        return needs(low, "train.spike.action", needed);
    }
    if run.checkpoint.durable {
        let why =
            "a durable run does not note the norms of its last steps; save checkpoints instead";
        return conflict(low, "train.spike.factor", "checkpoint.durable", why);
    }
    Ok(())
}

/// Settings that the optimizer does not read.
fn optimizer(low: &Low, run: &Run) -> Result<(), ConfigError> {
    for key in KEYS.iter().filter(|k| k.default == KeyDefault::ByOptimizer) {
        let readers = key.by_optimizer();
        if readers.iter().all(|r| r.0 != run.optimizer.name) {
            let names: Vec<&str> = readers.iter().map(|r| r.0.name()).collect();
            let needed = format!("'optimizer.name' {}, which reads it", names.join(" or "));
            idle(low, key.name, "optimizer.name", &needed)?;
        }
    }
    let optimizer = &run.optimizer;
    let own = optimizer.groups.iter().any(|g| g.learning_rate.is_some());
    if own && run.train.learning_rate == 0.0 {
        let needed = "'train.learning_rate' above 0, whose schedule it follows";
        return needs(low, "optimizer.groups", needed);
    }
    let about = optimizer.name.about();
    if !about.moments.contains(&optimizer.moments) {
        let stored: Vec<&str> = about.moments.iter().map(|m| m.name()).collect();
        let why = format!(
            "{} stores its moments in {} only; leave 'optimizer.moments' out",
            about.title,
            stored.join(" or ")
        );
        return conflict(low, "optimizer.moments", "optimizer.name", &why);
    }
    Ok(())
}

fn data(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let data = &run.data;
    if data.eval_split > 0.0 && data.train.is_empty() {
        return needs(
            low,
            "data.eval_split",
            "'data.train', of which it is a share",
        );
    }
    let split = data.eval_split;
    if split > 0.5 && (split < 1.0 || split.fract() != 0.0) {
        return needs(
            low,
            "data.eval_split",
            "a share up to 0.5, or a whole number of examples",
        );
    }
    if data.streaming {
        // How many examples there are is not known when the first ones are dealt out.
        let whole = [
            ("data.eval_split", data.eval_split > 0.0),
            ("data.max_examples", data.max_examples.is_some()),
            ("data.train", data.train.iter().any(|s| s.weight != 1.0)),
            ("data.cache", data.cache == Cache::None),
            ("eval.every_epochs", run.eval.every_epochs.is_some()),
            (
                "checkpoint.every_epochs",
                run.checkpoint.every_epochs.is_some(),
            ),
        ];
        if let Some((key, _)) = whole.iter().find(|(_, set)| *set) {
            let why = match *key {
                "data.train" => "weights are of all examples of a file",
                "data.cache" => "a stream's tokens go to a file of the cache",
                "eval.every_epochs" | "checkpoint.every_epochs" => {
                    "how long an epoch is, is known with all examples"
                }
                _ => "which examples these are is known with all of them",
            };
            return conflict(low, key, "data.streaming", why);
        }
    }
    if data.format == Format::Text {
        if data.train_on == TrainOn::Assistant {
            idle(
                low,
                "data.train_on",
                "data.format",
                "'data.format' chat, completion or auto",
            )?;
        }
        idle(
            low,
            "data.chat_template",
            "data.format",
            "'data.format' chat, completion or auto",
        )?;
    }
    if ![Format::Auto, Format::Chat, Format::Alpaca].contains(&data.format) {
        idle(
            low,
            "data.system",
            "data.format",
            "'data.format' chat, alpaca or auto",
        )?;
    }
    Ok(())
}

fn eval(low: &Low, run: &Run) -> Result<(), ConfigError> {
    if run.eval.generate.exact_match && run.data.eval.is_empty() && run.data.has_eval() {
        return needs(
            low,
            "eval.generate.exact_match",
            "'data.eval', whose prompts are answered ('data.eval_split' keeps rows apart, not prompts)",
        );
    }
    if run.data.has_eval() {
        return Ok(());
    }
    let needed = "evaluation data: 'data.eval' or 'data.eval_split'";
    if run.eval.every_steps > 0 {
        return needs(low, "eval.every_steps", needed);
    }
    if run.eval.every_epochs.is_some() {
        return needs(low, "eval.every_epochs", needed);
    }
    if run.eval.generate.exact_match {
        return needs(low, "eval.generate.exact_match", needed);
    }
    Ok(())
}

/// How answers are compared, and when, where none are asked for.
fn answers(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let asked = "'eval.generate.exact_match: true'";
    let governor = "eval.generate.exact_match";
    if run.eval.generate.exact_match {
        return cache_of_answers(low, run);
    }
    for key in [
        "eval.generate.extract",
        "eval.generate.every_steps",
        "eval.generate.cached",
    ] {
        idle(low, key, governor, asked)?;
    }
    Ok(())
}

/// What answers with a KV cache do not do.
fn cache_of_answers(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let key = "eval.generate.cached";
    if run.eval.generate.cached.is_none() {
        return Ok(());
    }
    if run.gpus > 1 {
        let why = "answers with a KV cache are made on one GPU; leave it at 0";
        return conflict(low, key, "gpus", why);
    }
    if run.lsp.is_some() {
        let why = "answers with a KV cache need whole weights, which lsp makes where they are used; leave it at 0";
        return conflict(low, key, "strategy.name", why);
    }
    Ok(())
}

/// Which evaluation is the best shows only where there are some on the way.
fn best(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let (by, patience) = (run.checkpoint.keep_best, run.eval.patience);
    if patience == 0 {
        let needed = "'eval.patience' above 0, which counts by it";
        idle(low, "eval.min_delta", "eval.patience", needed)?;
    }
    let key = match (by, patience) {
        (KeepBest::None, 0) => return Ok(()),
        (KeepBest::None, _) => "eval.patience",
        _ => "checkpoint.keep_best",
    };
    if by == KeepBest::ExactMatch {
        if run.eval.generate.every_steps == 0 || !run.eval.generate.exact_match {
            let needed = "answers on the way: 'eval.generate.exact_match' and 'eval.generate.every_steps' above 0";
            return needs(low, key, needed);
        }
    } else if run.eval.every_steps == 0 && run.eval.every_epochs.is_none() {
        return needs(
            low,
            key,
            "evaluations on the way: 'eval.every_steps' above 0, or 'eval.every_epochs'",
        );
    }
    if run.checkpoint.durable {
        let why =
            "a durable run does not note which evaluation was the best; save checkpoints instead";
        return conflict(low, key, "checkpoint.durable", why);
    }
    Ok(())
}

/// A knob pinned to a memory of which the budget has none.
fn tiers(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let none = Some(Bytes::ZERO);
    let empty = [
        ("disk", run.budget.disk.is_empty()),
        ("host", run.budget.host == none),
        ("device", run.budget.device == none),
    ];
    for key in [
        "plan.weights",
        "plan.optimizer",
        "plan.gradients",
        "plan.inputs",
        "plan.offload",
    ] {
        let Some(Value::Word(tier)) = low.typed(key).map(|t| &t.value) else {
            continue;
        };
        if empty.contains(&(*tier, true)) {
            return needs(
                low,
                key,
                &format!("a 'budget.{tier}' above 0 to be pinned to {tier}"),
            );
        }
    }
    Ok(())
}

/// Each drive has a directory of its own.
fn drives(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let disks = &run.budget.disk;
    for (i, disk) in disks.iter().enumerate() {
        if let Some(first) = disks[..i].iter().position(|d| d.dir == disk.dir) {
            let why = format!("both are {}", disk.dir.display());
            return Err(ConfigError::Conflict {
                at: place(low, &["budget.disk"]),
                key: format!("budget.disk[{first}].dir"),
                other: format!("budget.disk[{i}].dir"),
                why,
            });
        }
    }
    Ok(())
}

/// One key says which blocks compute again, or the other what may become of any tensor.
fn activations(low: &Low, run: &Run) -> Result<(), ConfigError> {
    if run.plan.recompute.is_some() && run.plan.activations.is_some() {
        let why = "both say what becomes of saved tensors; leave one of them at auto";
        return conflict(low, "plan.activations", "plan.recompute", why);
    }
    if run.plan.offload.is_some() {
        let still = [Activations::Recompute, Activations::Keep];
        let other = match run.plan.activations {
            _ if run.plan.recompute.is_some() => "plan.recompute",
            Some(pinned) if still.contains(&pinned) => "plan.activations",
            _ => return Ok(()),
        };
        let why = "then no saved tensor moves; leave one of them at auto";
        return conflict(low, "plan.offload", other, why);
    }
    Ok(())
}

/// Something is frozen before something of it is not; and a run that was killed finds its journal's state on the
/// drives, which frozen weights are not part of.
fn frozen(low: &Low, run: &Run) -> Result<(), ConfigError> {
    if run.train.freeze.is_empty() {
        return idle(low, "train.unfreeze", "train.freeze", "'train.freeze'");
    }
    if run.checkpoint.durable {
        let why = "a durable run with frozen parameters is not supported; save checkpoints instead";
        return conflict(low, "train.freeze", "checkpoint.durable", why);
    }
    Ok(())
}

/// What training in subspaces does not do, and settings of it where it is not asked for.
fn lsp(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let governor = "strategy.name";
    if run.lsp.is_none() {
        let needed = "'strategy.name: lsp'";
        idle(low, "strategy.lsp.compression", governor, needed)?;
        return idle(low, "strategy.lsp.projector", governor, needed);
    }
    if run.checkpoint.durable {
        let why = "a durable run of lsp is not supported; save checkpoints instead";
        return conflict(low, governor, "checkpoint.durable", why);
    }
    if run
        .optimizer
        .setting("weight_decay")
        .is_some_and(|x| x > 0.0)
    {
        let why = "lsp keeps the base weights as they are, so they cannot decay; leave 'optimizer.weight_decay' at 0";
        return conflict(low, "optimizer.weight_decay", governor, why);
    }
    if !run.optimizer.groups.is_empty() {
        let why =
            "in subspaces cores are trained, which have no names of tensors; leave one of them out";
        return conflict(low, "optimizer.groups", governor, why);
    }
    Ok(())
}

/// What several GPUs can do together.
fn ranks(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let gpus = run.gpus;
    if gpus == 1 {
        return Ok(());
    }
    if !gpus.is_power_of_two() {
        return needs(low, "gpus", "a power of two, so that shares are equal");
    }
    if !run.train.accumulate.is_multiple_of(gpus) {
        let why = format!(
            "{} micro-batches cannot be dealt evenly to {gpus} GPUs; make it a multiple of {gpus}",
            run.train.accumulate
        );
        return conflict(low, "train.accumulate", "gpus", &why);
    }
    if run.optimizer.what().is_shaped() {
        let why = "this optimizer updates whole tensors, of which each GPU has a share";
        return conflict(low, "optimizer.name", "gpus", why);
    }
    if run.lsp.is_some() {
        let why = "lsp on several GPUs is not supported";
        return conflict(low, "strategy.name", "gpus", why);
    }
    if run.plan.adaptive {
        let why =
            "all GPUs run one plan, and would have to change it together, which is not supported";
        return conflict(low, "plan.adaptive", "gpus", why);
    }
    Ok(())
}

/// A tree of sums has leaves for all GPUs, which micro-batches fill evenly.
fn tree(low: &Low, run: &Run) -> Result<(), ConfigError> {
    let (key, governor) = ("train.leaves", "train.reduce");
    if low.word(governor) != Some(Reduce::Tree) {
        return idle(low, key, governor, "'train.reduce: tree'");
    }
    let leaves = run.train.leaves;
    if !leaves.is_power_of_two() {
        return needs(
            low,
            key,
            "a power of two, so that the sums of a tree pair up",
        );
    }
    if !run.train.accumulate.is_multiple_of(leaves) {
        let why = format!(
            "{} micro-batches do not fill {leaves} leaves evenly; make it a multiple of {leaves}",
            run.train.accumulate
        );
        return conflict(low, "train.accumulate", key, &why);
    }
    if leaves < run.gpus {
        let why = format!(
            "{leaves} leaves are not enough for {} GPUs, which have one at least each",
            run.gpus
        );
        return conflict(low, key, "gpus", &why);
    }
    let sums = leaves / run.gpus;
    if sums > 1 && run.plan.loop_order == Some(Loop::Order(LoopOrder::BatchMajor)) {
        let why = format!(
            "a GPU adds up {} sums of each gradient, which would leave the device before all of them are begun; leave it \
             out, or set 'train.leaves' to {}",
            sums, run.gpus
        );
        return conflict(low, "plan.loop", governor, &why);
    }
    if let Some(Loop::Groups(group)) = run.plan.loop_order
        && !group.is_multiple_of(sums)
    {
        let why = format!(
            "each group adds to all {sums} sums of a gradient; make it a multiple of {sums} micro-batches"
        );
        return conflict(low, "plan.loop", governor, &why);
    }
    Ok(())
}

/// Durable state is on disk.
fn durable(low: &Low, run: &Run) -> Result<(), ConfigError> {
    if !run.checkpoint.durable {
        return Ok(());
    }
    if run.budget.disk.is_empty() {
        return needs(low, "checkpoint.durable", "a 'budget.disk' above 0");
    }
    if let Some(tier @ (Tier::Host | Tier::Device)) = run.plan.optimizer {
        let why = format!(
            "durable optimizer state is on disk, not on the {}",
            tier.word()
        );
        return conflict(low, "checkpoint.durable", "plan.optimizer", &why);
    }
    Ok(())
}

/// Refuses a key that was given and has no effect, unless an override of `governor` is what took
/// the file's key its effect.
fn idle(low: &Low, key: &str, governor: &str, needed: &str) -> Result<(), ConfigError> {
    let excused = low.was_set(governor) && !low.was_set(key);
    if low.typed(key).is_none() || excused {
        return Ok(());
    }
    needs(low, key, needed)
}

fn place(low: &Low, keys: &[&str]) -> Place {
    let given = keys.iter().find_map(|key| low.typed(key));
    given.map_or(
        Place::File {
            file: low.file.clone(),
            line: 1,
            column: 1,
        },
        |Typed { at, .. }| at.clone(),
    )
}

fn conflict(low: &Low, key: &str, other: &str, why: &str) -> Result<(), ConfigError> {
    Err(ConfigError::Conflict {
        at: place(low, &[key, other]),
        key: key.to_owned(),
        other: other.to_owned(),
        why: why.to_owned(),
    })
}

fn needs(low: &Low, key: &str, needs: &str) -> Result<(), ConfigError> {
    Err(ConfigError::Needs {
        at: place(low, &[key]),
        key: key.to_owned(),
        needs: needs.to_owned(),
    })
}
