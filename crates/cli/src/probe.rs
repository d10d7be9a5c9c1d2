//! `lowtide probe`: this machine's rates, stored with their date.

use lowtide_config::Run;
use lowtide_trainer::{Bytes, Names, Phase, Probe, device, rates, resolve};
use serde_json::json;

use crate::Answer;
use crate::args::{ProbeArgs, directories, overrides};
use crate::error::CliError;
use crate::out::{Out, place};
use crate::progress::Waiting;

/// Measures and stores.
pub fn probe(args: &ProbeArgs, out: Out) -> Answer {
    // What cannot be written is an error before minutes of measuring, and a file that is there stays until the
    // new one is whole.
    let ours = |head: &str| head.trim_start().starts_with('{') && head.contains("\"matmul_bf16\"");
    let to = place("--out", &args.out, ours)?;
    let run = match &args.file {
        Some(file) => {
            let run = Run::load(file, &overrides(&args.sets)?)?;
            Some(resolve(run, Names::Model)?)
        }
        None => None,
    };
    let rated = args.disk_rated_writes.as_deref().map(str::parse::<Bytes>);
    let rated = rated.transpose().map_err(|e| CliError::Usage {
        what: format!("--disk-rated-writes: {e}"),
        help: "--disk-rated-writes 600TB",
    })?;
    let device = device(args.device.as_deref(), run.as_ref(), args.gpus)?;
    out.text(&device.note);
    let probe = Probe {
        run: run.as_ref(),
        gpus: args.gpus,
        threads: args.threads.map(|n| n as usize),
        disks: directories("--disk", &args.disk)?,
    };
    let mut machine = probe.measure(&device, || Waiting::begin(Phase::Measuring.name()))?;
    if let Some(disk) = &mut machine.disk {
        disk.rated_writes = rated;
    }
    out.text(&rates(&machine).text());
    let text = serde_json::to_string_pretty(&machine).expect("plain values") + "\n";
    to.write(&text)?;
    out.text(&format!(
        "stored in {}; use it as plan.machine",
        args.out.display()
    ));
    let mut answer = json!(machine);
    answer["file"] = json!(args.out.display().to_string());
    Ok((answer, 0))
}
