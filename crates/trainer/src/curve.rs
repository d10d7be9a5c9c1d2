//! The recompute–offload–keep curve: what a step costs by what becomes of saved tensors, over device memory or
//! over the size of a micro-batch. Every point is a whole plan, drafted, simulated and checked.

use std::sync::Arc;

use lowtide_model::Decoder;
use lowtide_planner::{Activations, Pins, Plan, Tier};
use lowtide_report::sweep::{Along, Point, STRATEGIES, Strategy, Sweep};
use lowtide_units::Bytes;
use lowtide_workload::Batch;

use crate::TrainError;
use crate::basis::Basis;
use crate::planning::{decoder_of, pins_of};
use crate::wear;

/// Shares of the run's device budget that a curve looks at, in eighths.
const EIGHTHS: [u64; 7] = [2, 3, 4, 6, 8, 12, 16];

/// Micro-batches that a curve looks at: these multiples, in quarters, of the run's.
const QUARTERS: [u32; 5] = [1, 2, 4, 8, 16];

/// Plans every point of a curve of the run that `basis` is of, whose own plan is `own`. What a run of `ahead` steps (0:
/// nobody knows) writes to its drives stays within its budget, or the point does not fit. After each point, `told` is
/// called with the number of points done and of all. Long because points that need no search stand beside the others.
///
/// # Errors
/// [`TrainError`] where a plan is wrong; one that does not fit is no error, nor is a batch beyond a limit of the model.
pub fn curve(
    basis: &Basis<'_>,
    along: Along,
    (own, ahead): (&Plan, u64),
    mut told: impl FnMut(usize, usize),
) -> Result<Sweep, TrainError> {
    let batch = basis.run.batch();
    let places = places(basis, along);
    let (mut points, mut refused, mut searched) = (Vec::new(), Vec::new(), 0);
    let all = STRATEGIES.len() * places.len();
    let mut decoders = vec![(batch.micro_batch, Arc::clone(&basis.decoder))];
    for activations in STRATEGIES {
        // Of device memory the most first: a plan that fits in less is the plan of less too, and where none fits none
        // fits in less.
        let mut larger: Option<Option<Point>> = None;
        for &(device, micro_batch) in places.iter().rev() {
            let reserve = basis.machine.device_reserve.0;
            let fits = |point: &Point| point.device.saturating_add(reserve) <= device.0;
            match larger.as_ref().filter(|_| along == Along::Device) {
                Some(None) => {
                    refused.push((activations, device.0, micro_batch));
                    told(points.len() + refused.len(), all);
                    continue;
                }
                Some(Some(point)) if fits(point) => {
                    points.push(Point {
                        allowed: device.0,
                        ..point.clone()
                    });
                    told(points.len() + refused.len(), all);
                    continue;
                }
                _ => {}
            }
            let Some(decoder) = decoder_at(basis, micro_batch, &mut decoders) else {
                refused.push((activations, device.0, micro_batch));
                told(points.len() + refused.len(), all);
                continue;
            };
            let mut pins = pins_of(basis.run);
            (pins.activations, pins.recompute) = (of(activations), None);
            let mut place = Basis {
                decoder: Arc::clone(&decoder),
                ..basis.clone()
            };
            place.budgets.device = device;
            searched += 1;
            match place.plan_within(pins, ahead) {
                Ok(plan) => {
                    let point = point(&plan, &decoder, activations, device);
                    larger = Some(Some(point.clone()));
                    points.push(point);
                }
                Err(TrainError::Refused(_) | TrainError::DiskWrites(_)) => {
                    larger = Some(None);
                    refused.push((activations, device.0, micro_batch));
                }
                Err(other) => return Err(other),
            }
            told(points.len() + refused.len(), all);
        }
    }
    // Along the axis.
    let strategy = |a: Strategy| STRATEGIES.iter().position(|s| *s == a);
    points.sort_by_key(|p| (strategy(p.activations), p.allowed, p.micro_batch));
    refused.sort_by_key(|r| (strategy(r.0), r.1, r.2));
    let pins = pins_of(basis.run);
    Ok(Sweep {
        along,
        model: own.model.clone(),
        machine: basis.machine.name.clone(),
        seq: batch.seq,
        points,
        refused,
        searched,
        own: point(
            own,
            &basis.decoder,
            name_of(pins.activations),
            basis.budgets.device,
        ),
    })
}

impl Basis<'_> {
    /// A plan under pins by which a run of `ahead` steps writes no more to its drives than it may: the best one, if it
    /// does, or the best that is searched for so.
    fn plan_within(&self, pins: Pins, ahead: u64) -> Result<Plan, TrainError> {
        let make = |pins| self.plan_pinned(pins);
        let kept = |plan: Plan| {
            wear::check(self.run, &plan, (0, wear::fill(&plan), ahead))?;
            Ok(plan)
        };
        match make(pins).and_then(kept) {
            Err(TrainError::DiskWrites(_)) => {
                wear::within(self.run, pins, (0, ahead), wear::fill, make, |p| p).and_then(kept)
            }
            other => other,
        }
    }
}

/// The decoder of a micro-batch, one of those that were made or a new one. A batch beyond a limit of the model has
/// none, and does not fit either.
fn decoder_at(
    basis: &Basis<'_>,
    micro_batch: u32,
    made: &mut Vec<(u32, Arc<Decoder>)>,
) -> Option<Arc<Decoder>> {
    if let Some((_, decoder)) = made.iter().find(|(n, _)| *n == micro_batch) {
        return Some(Arc::clone(decoder));
    }
    let other = Batch {
        micro_batch,
        ..basis.run.batch()
    };
    let decoder = decoder_of(basis.run, other, basis.target).ok()?;
    made.push((micro_batch, Arc::clone(&decoder)));
    Some(decoder)
}

/// Device memory and micro-batch of every point along the axis.
fn places(basis: &Basis<'_>, along: Along) -> Vec<(Bytes, u32)> {
    let batch = basis.run.batch();
    match along {
        Along::Device => EIGHTHS
            .map(|n| (Bytes(basis.budgets.device.0 / 8 * n), batch.micro_batch))
            .into(),
        Along::Batch => {
            let quarters = QUARTERS.iter().map(|&n| batch.micro_batch * n / 4);
            let mut sizes: Vec<u32> = quarters.filter(|&n| n > 0).collect();
            sizes.dedup();
            sizes.iter().map(|&n| (basis.budgets.device, n)).collect()
        }
    }
}

/// The planner's name of a strategy.
fn of(strategy: Strategy) -> Activations {
    match strategy {
        Strategy::Auto => Activations::Auto,
        Strategy::Recompute => Activations::Recompute,
        Strategy::Offload => Activations::Offload,
        Strategy::Keep => Activations::Keep,
    }
}

/// The inverse of [`of`].
fn name_of(activations: Activations) -> Strategy {
    match activations {
        Activations::Auto => Strategy::Auto,
        Activations::Recompute => Strategy::Recompute,
        Activations::Offload => Strategy::Offload,
        Activations::Keep => Strategy::Keep,
    }
}

fn point(plan: &Plan, decoder: &Decoder, activations: Strategy, allowed: Bytes) -> Point {
    let batch = decoder.workload().batch;
    // The workload is one rank's.
    let tokens = (batch.tokens() * u64::from(plan.ranks)) as f64;
    let step_seconds = plan.prediction.step_seconds.0;
    let device = plan.tier(Tier::Device);
    Point {
        activations,
        allowed: allowed.0,
        micro_batch: batch.micro_batch,
        device: device.planned_bytes.0,
        host: plan.tier(Tier::Host).planned_bytes.0,
        activation_peak: device.activations.0,
        step_seconds,
        tokens_per_second: tokens / step_seconds,
        disk_written: plan.prediction.disk_bytes_written.0,
        hash: format!("{:016x}", plan.hash()),
    }
}
