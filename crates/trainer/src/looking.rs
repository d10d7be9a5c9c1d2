//! What a run would train on, as the value that `lowtide data` shows.

use std::path::PathBuf;

use lowtide_config::{Length, Run, Warmup};
use lowtide_data::{BatchShape, Packed, Rows, Tokenizer, WINDOW};
use lowtide_report::data::{DataFile, DataReport, DataSet, Sample, Stretch, histogram, holds};

use crate::classes::names_of;
use crate::error::TrainError;
use crate::inputs::{dealing, open_tokenizer, steps_line, weak_evaluation, whole_inputs};
use crate::paths;
use crate::planning::shape_of;

/// Reads all of a run's data, and looks at so many examples of each set. Loads no weights.
///
/// # Errors
/// Files and records that cannot be used.
pub fn data(run: &Run, samples: usize) -> Result<DataReport, TrainError> {
    run.training_ready()?;
    paths::inputs(run)?;
    let tokenizer = open_tokenizer(run, None)?;
    let inputs = whole_inputs(run, &tokenizer)?;
    let train = run.data.train.iter();
    let train: Vec<(PathBuf, f64)> = train.map(|s| (s.path.clone(), s.weight)).collect();
    // Of a split, a part of what is trained on, each of it once.
    let eval: Vec<(PathBuf, f64)> = match run.data.eval.is_empty() {
        true => train.iter().map(|(path, _)| (path.clone(), 1.0)).collect(),
        false => run
            .data
            .eval
            .iter()
            .map(|path| (path.clone(), 1.0))
            .collect(),
    };
    let look = Look {
        run,
        tokenizer: &tokenizer,
        samples,
        labels: names_of(run, &shape_of(run)?)?.unwrap_or_default(),
    };
    let Rows::Whole(rows) = &inputs.train else {
        unreachable!("all of them were asked for");
    };
    let mut sets = vec![look.set("train", rows, &train)?];
    if run.data.streaming {
        sets[0].remarks.push(format!(
            "data.streaming packs rows within windows of {WINDOW} tokens; those counted here are packed of all examples"
        ));
    }
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: run.train.accumulate as usize,
    };
    // An epoch that has no whole batch is the run's error, not that of who looks.
    if let Ok(batches) = inputs.train.batches(shape, dealing(run)) {
        let total = match run.train.length {
            Length::Steps(n) => n,
            Length::Epochs(epochs) => batches.batches_for(epochs)?,
        };
        let n = rows.report().n_rows;
        let line = steps_line(run, n, batches.batches_per_epoch()?, total);
        sets[0]
            .remarks
            .insert(0, line.replacen("train data: ", "", 1));
        if let (Length::Epochs(epochs), Warmup::Steps(warmup)) =
            (run.train.length, run.train.schedule.warmup)
            && warmup > total
        {
            return Err(TrainError::WarmUp {
                warmup,
                epochs,
                steps: total,
            });
        }
    }
    if let Some(packed) = &inputs.eval {
        let mut set = look.set("eval", packed, &eval)?;
        set.remarks.extend(weak_evaluation(run, packed));
        sets.push(set);
    }
    Ok(DataReport {
        seq: u64::from(run.train.seq),
        sets,
    })
}

/// Tokens of the source and of the target of each pair.
fn lengths_of_pairs(packed: &Packed) -> Result<[Vec<u64>; 2], TrainError> {
    let data = packed.data();
    let mut lengths = [Vec::new(), Vec::new()];
    for i in 0..data.len() {
        let example = data.example(i)?;
        let source = example.supervised.iter().position(|&s| s);
        let source = source.unwrap_or(example.tokens.len());
        lengths[0].push(source as u64);
        lengths[1].push((example.tokens.len() - source) as u64);
    }
    Ok(lengths)
}

/// What sets are looked at with.
struct Look<'a> {
    run: &'a Run,
    tokenizer: &'a Tokenizer,
    samples: usize,
    /// Names of the model's classes.
    labels: Vec<String>,
}

impl Look<'_> {
    fn set(
        &self,
        name: &str,
        packed: &Packed,
        files: &[(PathBuf, f64)],
    ) -> Result<DataSet, TrainError> {
        let (data, cut) = (packed.data(), packed.report());
        let (read, remarks) = (data.report(), data.remarks());
        let lengths: Vec<u64> = (0..data.len()).map(|i| data.tokens_of(i) as u64).collect();
        // A row has room of its own for the sources of pairs, and for their targets.
        let [own, targets] = match packed.target() {
            0 => [lengths.clone(), Vec::new()],
            _ => lengths_of_pairs(packed)?,
        };
        let counts = data.by_file(files.len());
        let files = files.iter().zip(counts);
        let files: Vec<DataFile> = files
            .map(|((path, weight), examples)| DataFile {
                path: path.display().to_string(),
                weight: *weight,
                examples,
            })
            .collect();
        // Spread over the set, which may be in an order.
        let n = self.samples.min(data.len());
        let samples = (0..n).map(|k| k * data.len() / n);
        let samples = samples.map(|i| self.sample(packed, i, &files));
        let samples = samples.collect::<Result<_, _>>()?;
        Ok(DataSet {
            name: name.to_owned(),
            files,
            format: read.format.to_string(),
            records: read.n_records + remarks.n_left_out,
            unusable: remarks.n_left_out,
            unsupervised: read.n_unsupervised,
            examples: data.len() as u64,
            // As training counts them: without what is cut off, and without the first token of a row.
            tokens: cut.n_tokens,
            supervised: cut.n_supervised,
            truncated: cut.n_truncated,
            answers_cut: cut.n_answers_cut,
            cut_away: cut.n_cut,
            tokens_lost: cut.n_tokens_lost,
            supervised_lost: cut.n_labels_lost,
            rows: cut.n_rows,
            fill: cut.fill(packed.seq() + packed.target()),
            holds: holds(&own),
            holds_targets: holds(&targets),
            lengths: histogram(&lengths),
            mask_hash: format!("{:016x}", read.mask_hash),
            remarks: remarks.sentences(),
            samples,
        })
    }

    /// An example's tokens in stretches of one kind. The first token is never trained on: nothing is before it.
    fn sample(&self, packed: &Packed, i: usize, files: &[DataFile]) -> Result<Sample, TrainError> {
        let data = packed.data();
        let example = data.example(i)?;
        let end = match packed.cuts() {
            true => self.run.train.seq as usize,
            false => usize::MAX,
        };
        // Of a pair the first tokens of source and target are kept, and the last one of each.
        let split = example.supervised.iter().position(|&s| s).unwrap_or(0);
        let pair = [
            (0..split, packed.seq()),
            (split..example.tokens.len(), packed.target()),
        ];
        let out = |t: usize| match packed.target() {
            0 => t >= end,
            _ => pair.iter().any(|(own, most)| {
                own.contains(&t)
                    && own.len() > *most
                    && t + 1 >= own.start + most
                    && t + 1 < own.end
            }),
        };
        // Of a class the tokens are no labels, whatever their type is.
        let learned = |t: usize| t > 0 && example.class.is_none() && example.supervised[t];
        let kind = |t: usize| (learned(t), out(t));
        let (mut stretches, mut from) = (Vec::new(), 0);
        for t in 1..=example.tokens.len() {
            if t == example.tokens.len() || kind(t) != kind(from) {
                let (supervised, cut) = kind(from);
                let tokens = &example.tokens[from..t];
                stretches.push(Stretch {
                    // Behind another, it is not the beginning of a text.
                    text: match from {
                        0 => self.tokenizer.decode(tokens, true),
                        _ => self.tokenizer.part_text(tokens),
                    },
                    tokens: tokens.len() as u64,
                    supervised,
                    cut,
                });
                from = t;
                if packed.target() > 0 && t == split {
                    stretches.push(aside(" → ", false));
                }
            }
        }
        if let Some(class) = example.class {
            stretches.push(aside(&format!(" → {}", self.labels[class as usize]), true));
        }
        let labels = u64::from(example.class.is_some());
        Ok(Sample {
            example: i as u64,
            path: files[data.file_of(i)].path.clone(),
            tokens: example.tokens.len() as u64,
            supervised: labels + (0..example.tokens.len()).filter(|&t| kind(t).0).count() as u64,
            stretches,
        })
    }
}

/// A text that is no tokens of an example.
fn aside(text: &str, supervised: bool) -> Stretch {
    Stretch {
        text: text.to_owned(),
        tokens: 0,
        supervised,
        cut: false,
    }
}
