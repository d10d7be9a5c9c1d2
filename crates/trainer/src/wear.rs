//! How much a run writes to its drives, held against what it may.

use lowtide_config::Run;
use lowtide_planner::plan::Version;
use lowtide_planner::{Plan, Slot, Tensor, Tier};
use lowtide_units::Bytes;

use crate::TrainError;

/// A run would write more than it may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "budget.disk_writes: {allowed} allowed; {written} are written, the {steps} steps to come would write {needed} \
     ({step} each)"
)]
pub struct TooMuch {
    /// Bytes that the run may write in all.
    pub allowed: Bytes,
    /// Bytes written by its processes before this one.
    pub written: Bytes,
    /// Bytes that this start and the steps to come write.
    pub needed: Bytes,
    /// Steps to come.
    pub steps: u64,
    /// Bytes that a step writes.
    pub step: Bytes,
}

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
