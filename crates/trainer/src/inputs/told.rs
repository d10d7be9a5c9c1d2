//! What people are told of a run's data.

use lowtide_data::{Dataset, Packed};

/// What is told of a data set.
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
    let n_unsupervised = data.report().n_unsupervised;
    if n_unsupervised > 0 {
        notes.push(format!(
            "{name} data: {n_unsupervised} records left out, nothing in them is supervised"
        ));
    }
    for sentence in data.remarks().sentences() {
        notes.push(format!("{name} data: {sentence}"));
    }
}

pub(super) fn describe(name: &str, packed: &Packed, notes: &mut Vec<String>) {
    let (n_examples, seq) = (packed.data().len() as u64, packed.seq());
    let r = packed.report();
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
