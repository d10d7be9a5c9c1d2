//! What a run reports about its data.

use lowtide_config::{LastBatch, Length, Run};
use lowtide_data::{Dataset, Packed, Remarks, Rows};

/// Fewer steps than these are few for a run of epochs.
const FEW: u64 = 10;

/// Examples that are few to say how good a model is.
const FEW_EXAMPLES: u64 = 10;

/// What is said of evaluation data that say little: those that are trained on, and a split of a few examples.
pub(crate) fn weak_evaluation(run: &Run, eval: &Packed) -> Vec<String> {
    let train: Vec<_> = (run.data.train.iter())
        .filter_map(|s| std::fs::canonicalize(&s.path).ok())
        .collect();
    let is_trained_on = |path: &&std::path::PathBuf| {
        std::fs::canonicalize(path).is_ok_and(|path| train.contains(&path))
    };
    let both = run.data.eval.iter().filter(is_trained_on);
    let mut said: Vec<String> = both
        .map(|path| {
            format!(
                "warning: {} is trained on, too: its loss says how well it is remembered, not how good the model is",
                path.display()
            )
        })
        .collect();
    let n = eval.data().len() as u64;
    if run.data.eval.is_empty() && n < FEW_EXAMPLES {
        let examples = if n == 1 { "example" } else { "examples" };
        said.push(format!(
            "warning: data.eval_split keeps {n} {examples}, of which a loss says little"
        ));
    }
    said
}

/// What an epoch of so many rows is in steps, and the whole run. A row holds several examples, so steps are fewer than
/// examples let expect. With [`LastBatch::Fill`] an epoch may end within a step.
pub(crate) fn steps_line(run: &Run, rows: u64, an_epoch: u64, total: u64) -> String {
    let some = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let batch = u64::from(run.train.micro_batch) * u64::from(run.train.accumulate);
    let part = rows as f64 / batch as f64;
    let steps = match run.train.last_batch {
        LastBatch::Fill if !rows.is_multiple_of(batch) => format!("{part:.1} steps"),
        _ => some(an_epoch, "step"),
    };
    let epoch = format!(
        "an epoch has {}: {steps} of {}",
        some(rows, "row"),
        some(batch, "row")
    );
    match run.train.length {
        Length::Steps(n) => {
            let epochs = match run.train.last_batch {
                LastBatch::Fill => n as f64 / part,
                _ => n as f64 / an_epoch.max(1) as f64,
            };
            format!(
                "train data: {epoch}; {} are {epochs:.1} epochs",
                some(n, "step")
            )
        }
        Length::Epochs(epochs) => {
            let line = format!(
                "train data: {epoch}; {epochs} epochs are {}",
                some(total, "step")
            );
            match total < FEW {
                true => format!(
                    "warning: {line}, which are few: a row holds several examples; a smaller train.micro_batch or \
                     train.accumulate makes more"
                ),
                false => line,
            }
        }
    }
}

/// A line about a data set, with its name in front; a warning stays one.
pub(super) fn of_set(name: &str, told: &str) -> String {
    match told.strip_prefix("warning: ") {
        Some(told) => format!("warning: {name} data: {told}"),
        None => format!("{name} data: {told}"),
    }
}

pub(super) fn hash_of(name: &str, packed: &Packed) -> String {
    format!(
        "{name} data: masks {:016x}",
        packed.data().report().mask_hash
    )
}

/// What was noticed while a data set was read, before it was split or cut.
pub(super) fn remark(name: &str, data: &Dataset, notes: &mut Vec<String>) {
    notes.extend(sentences(
        name,
        data.report().n_unsupervised,
        data.remarks(),
    ));
}

fn sentences(name: &str, n_unsupervised: u64, remarks: &Remarks) -> Vec<String> {
    let none = (n_unsupervised > 0).then(|| {
        format!("{name} data: {n_unsupervised} records left out, nothing in them is supervised")
    });
    let others = remarks.sentences().into_iter();
    none.into_iter()
        .chain(others.map(|sentence| of_set(name, &sentence)))
        .collect()
}

/// What is to be reported of the records that a stream has read, each thing once: when all of them are read, or at
/// once.
pub(crate) fn news_of(train: &Rows, at_once: bool) -> Vec<String> {
    let Rows::Stream(stream) = train else {
        return Vec::new();
    };
    let Some(news) = stream.news(at_once) else {
        return Vec::new();
    };
    let mut notes: Vec<String> = news.kept.iter().map(|told| of_set("train", told)).collect();
    let noticed = sentences("train", news.n_unsupervised, &news.remarks);
    if !news.all && !noticed.is_empty() {
        notes.push("train data: of the records that were read so far:".to_owned());
    }
    notes.extend(noticed);
    notes
}

pub(super) fn describe(name: &str, packed: &Packed, notes: &mut Vec<String>) {
    let (n_examples, seq) = (packed.data().len() as u64, packed.seq());
    let r = packed.report();
    if packed.target() > 0 {
        return of_pairs(name, packed, notes);
    }
    notes.push(format!(
        "{name} data: {} examples, {} tokens, {} supervised, {} rows of {seq} ({:.0}% filled)",
        n_examples - r.n_cut,
        r.n_tokens,
        r.n_supervised,
        r.n_rows,
        100.0 * r.fill(seq),
    ));
    if r.n_truncated > 0 {
        notes.push(format!(
            "{name} data: {} of {n_examples} records are longer than {seq} tokens, {} tokens cut off",
            r.n_truncated, r.n_tokens_lost,
        ));
    }
    if r.n_answers_cut > 0 {
        let left_out = match r.n_cut {
            0 => String::new(),
            n => format!("; {n} have nothing of it left and are left out"),
        };
        let enough = if r.seq_for_99 > seq {
            format!(
                "train.seq {} would hold 99 % of the records whole, {} all of them",
                r.seq_for_99, r.seq_for_all
            )
        } else {
            format!("train.seq {} would hold all of them", r.seq_for_all)
        };
        notes.push(format!(
            "warning: {name} data: {} of {n_examples} records ({:.1} %) lose the end of their answer and with it their \
             end of turn, {} supervised tokens{left_out}; {enough}",
            r.n_answers_cut,
            100.0 * r.n_answers_cut as f64 / n_examples as f64,
            r.n_labels_lost,
        ));
    }
}

/// The same of rows of pairs.
fn of_pairs(name: &str, packed: &Packed, notes: &mut Vec<String>) {
    let (n, seq, target) = (packed.data().len() as u64, packed.seq(), packed.target());
    let r = packed.report();
    notes.push(format!(
        "{name} data: {} pairs, {} tokens, {} of them targets', {} rows of {seq} and {target} ({:.0}% filled)",
        n - r.n_cut,
        r.n_tokens,
        r.n_supervised,
        r.n_rows,
        100.0 * r.fill(seq + target),
    ));
    if r.n_truncated > 0 {
        notes.push(format!(
            "{name} data: {} of {n} records have a source longer than {seq} tokens or a target longer than {target}: \
             {} tokens cut off; train.seq {} and train.target {} would hold all of them",
            r.n_truncated, r.n_tokens_lost, r.seq_for_all, r.target_for_all,
        ));
    }
    if r.n_answers_cut > 0 {
        notes.push(format!(
            "warning: {name} data: {} of {n} targets ({:.1} %) lose what is before their end, {} tokens; train.target \
             {} would hold all of them",
            r.n_answers_cut,
            100.0 * r.n_answers_cut as f64 / n as f64,
            r.n_labels_lost,
            r.target_for_all,
        ));
    }
}
