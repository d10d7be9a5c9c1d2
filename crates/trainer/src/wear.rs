//! How much a run writes to its drives, held against what it may.

use lowtide_config::{Resume, Run};
use lowtide_planner::plan::Version;
use lowtide_planner::simulate::activations_written;
use lowtide_planner::{Machine, Pins, Plan, Slot, Tensor, Tier};
use lowtide_units::Bytes;
use serde::Serialize;

use crate::error::{TooMuch, TrainError};
use crate::metrics::last_written;
use crate::output::mark::Writes;
use crate::output::{METRICS, Output};

/// What steps of a plan do to the drives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Wear {
    /// Bytes that a step writes.
    pub step_bytes: Bytes,
    /// Of these, what saved tensors and block inputs take.
    pub activation_bytes: Bytes,
    /// Bytes that a year of such steps writes.
    pub year_bytes: Bytes,
    /// Days of such steps until what the drives are rated for is written, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rated_days: Option<f64>,
}

const DAY: f64 = 86_400.0;

impl Wear {
    /// Of a plan whose steps write anything, on a machine.
    #[must_use]
    pub fn of(plan: &Plan, machine: &Machine) -> Option<Self> {
        let step_bytes = plan.prediction.disk_bytes_written;
        let steps_a_day = DAY / plan.prediction.step_seconds.0;
        let daily = step_bytes.0 as f64 * steps_a_day;
        let rated = machine.disk.and_then(|d| d.rated_writes);
        let hosts = machine
            .net
            .filter(|_| plan.ranks > 1)
            .map_or(1, |net| net.hosts);
        let hosts = f64::from(hosts.max(1));
        (step_bytes > Bytes::ZERO).then(|| Self {
            step_bytes,
            activation_bytes: activations_written(plan),
            year_bytes: Bytes((daily * 365.0) as u64),
            // Rated is what one host's drives take, written what those of all hosts get.
            rated_days: rated.map(|rated| rated.0 as f64 / (daily / hosts)),
        })
    }
}

/// Plans a run so that what it writes to its drives stays within its budget: what it may still write is divided
/// evenly among the steps `ahead`. `written` bytes were written before, and `filled` says what a plan's start writes.
/// Where every plan writes more, returns one that does, and [`check`] then names the budget as the reason.
///
/// # Errors
/// Those of planning.
pub fn within<T, E>(
    run: &Run,
    mut pins: Pins,
    (written, ahead): (u64, u64),
    filled: impl Fn(&Plan) -> Bytes,
    make: impl Fn(Pins) -> Result<T, E>,
    plan: impl Fn(&T) -> &Plan,
) -> Result<T, E> {
    let Some(allowed) = run.budget.disk_writes.filter(|_| ahead > 0) else {
        return make(pins);
    };
    let make = |pins: Pins| {
        make(pins).or_else(|_| {
            make(Pins {
                writes: None,
                ..pins
            })
        })
    };
    let left = allowed.0.saturating_sub(written);
    pins.writes = Some(Bytes(left / ahead));
    let mut made = make(pins)?;
    // What a start writes is known when there is a plan; with less to write it may be another one.
    for _ in 0..2 {
        let start = filled(plan(&made)).0;
        let step = plan(&made).prediction.disk_bytes_written.0;
        let share = Some(Bytes(left.saturating_sub(start) / ahead));
        if step.saturating_mul(ahead).saturating_add(start) <= left || share == pins.writes {
            break;
        }
        pins.writes = share;
        made = make(pins)?;
    }
    Ok(made)
}

/// Bytes that filling the drives at a start writes: weights and optimizer state that stay on them; of durable ones
/// only the current version.
#[must_use]
pub fn fill(plan: &Plan) -> Bytes {
    let next = |s: &Slot| matches!(s.version, Some((Version::Next, _)));
    let filled = |s: &&Slot| {
        let state = matches!(
            s.tensor,
            Tensor::Weight(_) | Tensor::Shard(_) | Tensor::State(_)
        );
        s.tier == Tier::Disk && s.persistent && state && !next(s)
    };
    let of_rank: u64 = plan.slots.iter().filter(filled).map(|s| s.bytes).sum();
    Bytes(of_rank * u64::from(plan.ranks))
}

/// Bytes that earlier processes of the run may have written, by the output's metrics; for one that was killed, plus
/// what it may have written after its last line. A run that begins anew counts from 0.
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

/// Refuses a run that would write more in all than it may: `written` bytes by earlier processes, those of this start,
/// and those of `ahead` steps.
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
