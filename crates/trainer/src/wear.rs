//! How much a run writes to its drives, held against what it may.

use lowtide_config::{Resume, Run};
use lowtide_planner::plan::Version;
use lowtide_planner::{Plan, Slot, Tensor, Tier};
use lowtide_units::Bytes;

use crate::error::{TooMuch, TrainError};
use crate::metrics::last_written;
use crate::output::mark::Writes;
use crate::output::{METRICS, Output};

/// Bytes that filling the drives at a start writes: weights and optimizer state that stay on them, of durable ones the
/// version that is current.
#[must_use]
pub fn fill(plan: &Plan) -> Bytes {
    let next = |s: &Slot| matches!(s.version, Some((Version::Next, _)));
    let filled = |s: &&Slot| {
        let state = matches!(s.tensor, Tensor::Weight(_) | Tensor::State(_));
        s.tier == Tier::Disk && s.persistent && state && !next(s)
    };
    Bytes(plan.slots.iter().filter(filled).map(|s| s.bytes).sum())
}

/// Bytes that the processes before this one may have written, as the output tells: the metrics, and of one that
/// was killed what it may have written behind its last line. A run that begins anew counts from 0.
///
/// # Errors
/// Files.
pub(crate) fn told(run: &Run, output: &Output) -> Result<u64, TrainError> {
    if run.checkpoint.resume == Resume::Never {
        return Ok(0);
    }
    let told = last_written(output.folder(), METRICS)?;
    let killed = output.kept().writes.unwrap_or_default();
    Ok(told.max(killed.begun).saturating_add(killed.untold))
}

/// For the output's mark: what this process may have written to the drives if it is killed, when `begun` bytes are
/// written now. Two steps are in the lanes when a line is written.
pub(crate) fn untold(run: &Run, plan: &Plan, begun: u64) -> Option<Writes> {
    let step = plan.prediction.disk_bytes_written.0;
    let untold = step.saturating_mul(run.log.every_steps + 2);
    (fill(plan).0 + step > 0).then_some(Writes { begun, untold })
}

/// Refuses a run that would write more in all than it may: `written` by the processes before this one, this start,
/// and `ahead` steps.
///
/// # Errors
/// [`TrainError::DiskWrites`].
pub fn check(
    run: &Run,
    plan: &Plan,
    (written, start, ahead): (u64, Bytes, u64),
) -> Result<(), TrainError> {
    let Some(allowed) = run.budget.disk_writes else {
        return Ok(());
    };
    let step = plan.prediction.disk_bytes_written;
    let needed = step.0.saturating_mul(ahead).saturating_add(start.0);
    if written.saturating_add(needed) <= allowed.0 {
        return Ok(());
    }
    Err(TrainError::DiskWrites(Box::new(TooMuch {
        allowed,
        written: Bytes(written),
        needed: Bytes(needed),
        steps: ahead,
        step,
    })))
}
