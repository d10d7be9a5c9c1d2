//! Processes that a launcher has started (`torchrun`, `srun`) as ranks of one run.

use lowtide_trainer::Launch;

use crate::args::Command;
use crate::error::CliError;

/// What the environment says of this process.
pub fn found() -> Result<Option<Launch>, CliError> {
    Ok(Launch::found(|name| std::env::var(name).ok())?)
}

/// Refuses commands that every rank would do for itself, on devices, drives and files that they share.
pub fn suits(command: &Command) -> Result<(), CliError> {
    let name = match command {
        Command::Probe(_) => "probe",
        Command::Verify(_) => "verify",
        Command::Eval(_) => "eval",
        Command::Generate(_) => "generate",
        Command::Bench(_) => "bench",
        Command::Compare(_) => "compare",
        _ => return Ok(()),
    };
    match found()? {
        None => Ok(()),
        Some(launch) => Err(CliError::Usage {
            what: format!(
                "{name} was started as rank {} of {} by a launcher, and does not work so",
                launch.world.rank, launch.world.size
            ),
            help: "start it without torchrun or srun, once; of several GPUs of this machine it takes --gpus",
        }),
    }
}
