//! Writes the batches that a run will train and evaluate on, so that another program can train on the same
//! tokens in the same order (`reference/finetune.py` does).
//!
//! `cargo run --release -p lowtide-trainer --example batches -- RUN.yaml FOLDER [KEY=VALUE...]`
//!
//! `FOLDER/train.npy` and `FOLDER/eval.npy` are numpy arrays of i32 with the axes batch, micro-batch, kind, row,
//! place; the kinds are tokens, labels (of the next token, -100 without loss), positions in the document, and the
//! index in the row at which the place's document begins.

#![allow(clippy::print_stdout, reason = "tells what it wrote")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use lowtide_config::{Length, Run};
use lowtide_data::{Batch, BatchShape, EvalBatches};
use lowtide_trainer::inside::{Inputs, dealing, load_inputs, open_tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [run, folder, sets @ ..] = &args[..] else {
        return Err("usage: batches RUN.yaml FOLDER [KEY=VALUE...]".into());
    };
    let (run, folder) = (Run::load(Path::new(run), sets)?, Path::new(folder));
    fs::create_dir_all(folder)?;
    let tokenizer = open_tokenizer(&run, None)?;
    let Inputs { train, eval, .. } = load_inputs(&run, &tokenizer)?;
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: run.train.accumulate as usize,
    };
    let mut batches = train.batches(shape, dealing(&run))?;
    let steps = match run.train.length {
        Length::Steps(n) => n,
        Length::Epochs(epochs) => batches.batches_for(epochs)?,
    };
    let all = (0..steps).map(|_| batches.next_batch());
    let all: Vec<Batch> = all.collect::<Result<_, _>>()?;
    write(&folder.join("train.npy"), &all, shape, train.seq())?;
    if let Some(eval) = eval {
        let seq = eval.seq();
        let all: Vec<Batch> = EvalBatches::new(eval, shape)?.collect::<Result<_, _>>()?;
        write(&folder.join("eval.npy"), &all, shape, seq)?;
    }
    Ok(())
}

/// A `.npy` file, version 1.0: magic, length of the header, header padded to 64 bytes, numbers.
fn write(
    path: &Path,
    batches: &[Batch],
    shape: BatchShape,
    seq: usize,
) -> Result<(), Box<dyn Error>> {
    let axes = [batches.len(), shape.accumulate, 4, shape.micro_batch, seq];
    let axes = axes.map(|n| n.to_string()).join(", ");
    let header = format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({axes}), }}");
    let width = (header.len() + 11).next_multiple_of(64) - 11;
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&u16::try_from(width + 1)?.to_le_bytes())?;
    writeln!(out, "{header:width$}")?;
    for micro in batches.iter().flat_map(|b| &b.micro) {
        for kind in [
            &micro.tokens,
            &micro.labels,
            &micro.positions,
            &micro.doc_start,
        ] {
            for number in kind {
                out.write_all(&number.to_le_bytes())?;
            }
        }
    }
    out.flush()?;
    println!("{}: ({axes})", path.display());
    Ok(())
}
