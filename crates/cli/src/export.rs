//! `lowtide export`: the model of a run's checkpoint as a Hugging Face directory.

use lowtide_trainer::{Bytes, Export, FileDtype, Phase, TrainError};
use serde_json::json;

use crate::Answer;
use crate::args::{self, ExportArgs};
use crate::error::CliError;
use crate::out::{Out, bytes};
use crate::progress::Waiting;

/// Writes the model, and says what was written.
pub fn export(args: &ExportArgs, out: Out) -> Answer {
    let size: Bytes = args.shard_size.parse().map_err(|e| usage(args, &e))?;
    if size.0 == 0 {
        return Err(usage(args, &"no file has no bytes"));
    }
    let run = args.run.args().load_with_data_in_cache()?;
    let what = Export {
        to: &args.dir,
        checkpoint: args.checkpoint.as_deref(),
        dtype: args.dtype.map(|dtype| match dtype {
            args::FileDtype::F32 => FileDtype::F32,
            args::FileDtype::Bf16 => FileDtype::Bf16,
            args::FileDtype::F16 => FileDtype::F16,
        }),
        shard_bytes: Some(size.0),
    };
    let waiting = Waiting::begin(Phase::Exporting.name());
    let made =
        lowtide_trainer::export(&run, &what, |done, of| waiting.at(done, of)).map_err(other)?;
    drop(waiting);
    made.notes.iter().for_each(|note| out.text(note));
    out.text(&format!(
        "{}: the model after step {} ({}), {} in {} of {}",
        made.path.display(),
        made.step,
        made.checkpoint.display(),
        bytes(made.bytes),
        match made.files {
            1 => "one file".to_owned(),
            n => format!("{n} files"),
        },
        made.dtype.name()
    ));
    let answer = json!({
        "model": made.path.to_string_lossy(),
        "checkpoint": made.checkpoint.to_string_lossy(),
        "step": made.step,
        "dtype": made.dtype.name(),
        "files": made.files,
        "bytes": made.bytes,
    });
    Ok((answer, 0))
}

/// A broken checkpoint is not exported; the error names a whole one, if there is one.
fn other(e: TrainError) -> CliError {
    let TrainError::Broken { path, what, whole } = e else {
        return e.into();
    };
    let whole = whole.map_or(String::new(), |whole| {
        format!("; {} is whole", whole.display())
    });
    CliError::Usage {
        what: format!("{}: a broken checkpoint: {what}{whole}", path.display()),
        help: "--checkpoint DIR exports another one; what is broken was changed after it was saved",
    }
}

fn usage(args: &ExportArgs, why: &dyn std::fmt::Display) -> CliError {
    CliError::Usage {
        what: format!("--shard-size {}: {why}", args.shard_size),
        help: "give a size such as 5GB or 500MiB",
    }
}
