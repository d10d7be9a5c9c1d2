//! Chooses: from a workload, a machine and three budgets to the plan with the least simulated step
//! time that fits.
//!
//! For each way of ordering the loops, cutting the pieces and placing gradients and block inputs
//! there is a *least* plan (everything offloaded, every block recomputed). Those that fit are the
//! starting points. From the fastest few, bytes that are left are spent where the simulator says
//! that they save time: fetching further ahead, keeping saved tensors, keeping weights and
//! optimizer state on the device, updating there. Nothing here looks at a clock or draws a random
//! number: equal inputs give an equal plan.

use lowtide_units::Bytes;
use lowtide_workload::{Dtype, UnitKind, Workload};
use serde::{Deserialize, Serialize};

use crate::check::{Fault, check, overlaps, sequences};
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Pieces, Processor};
use crate::draft::draft;
use crate::edges::edges;
use crate::layout::layout;
use crate::machine::Machine;
use crate::plan::{PartName, Plan, Prediction, Seam, Task, Tensor, Tier, TierUse};
use crate::simulate::{predict, simulate};

/// Knobs that the user holds fast; `None` is the planner's to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Loop order.
    pub order: Option<LoopOrder>,
    /// Home of every unit's weights.
    pub weights: Option<Tier>,
    /// Home of every unit's optimizer state.
    pub optimizer: Option<Tier>,
    /// Home of waiting gradients and accumulators.
    pub gradients: Option<Tier>,
    /// Home of block inputs.
    pub inputs: Option<Tier>,
    /// How many blocks recompute.
    pub recompute: Option<u32>,
    /// Windows fetched ahead.
    pub prefetch: Option<u8>,
    /// Cut of the parameters.
    pub pieces: Option<Pieces>,
    /// Where updates run.
    pub update: Option<Processor>,
}

/// What to plan.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// One step in numbers.
    pub workload: &'a Workload,
    /// What the machine can do.
    pub machine: &'a Machine,
    /// What the user allows.
    pub budgets: Budgets,
    /// Clipping (in the numerics key, so not chosen here).
    pub clip: Clip,
    /// Knobs held fast.
    pub pins: Pins,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "does not fit: needs at least device {}, host {}, disk {}; allowed are device {}, host {}, disk {}",
    needed.device, needed.host, needed.disk, allowed.device, allowed.host, allowed.disk
)]
pub struct Refusal {
    /// What the least plan needs that comes closest to the budgets.
    pub needed: Budgets,
    /// What was allowed.
    pub allowed: Budgets,
    /// The budgets nearest to the allowed ones that do fit.
    pub nearest: Budgets,
}

/// Why planning failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing fits.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The planner made a plan that its checker refuses: our bug.
    #[error("the plan is wrong: {0}")]
    Wrong(Fault),
}

/// Builds, lays out and predicts the plan of one set of choices. Does not check it.
#[must_use]
pub fn build(
    w: &Workload,
    choice: &Choice,
    clip: Clip,
    budgets: Budgets,
    machine: &Machine,
) -> Plan {
    let d = draft(w, choice, clip);
    let l = layout(&d.slots, PartName::ALL.len());
    let mut tiers: Vec<TierUse> = Tier::ALL
        .iter()
        .map(|&tier| TierUse {
            planned_bytes: Bytes(l.totals[tier as usize]),
            budget_bytes: budgets.of(tier),
            transient: Bytes(l.transient[tier as usize]),
            ..TierUse::default()
        })
        .collect();
    for s in l.slots.iter().filter(|s| s.persistent) {
        let tier = &mut tiers[s.tier as usize];
        match s.tensor {
            Tensor::Weight(_) => tier.weights += Bytes(s.bytes),
            Tensor::State(_) => tier.optimizer += Bytes(s.bytes),
            Tensor::Gradient(_) => tier.gradients += Bytes(s.bytes),
            _ => tier.transient += Bytes(s.bytes),
        }
    }
    let mut parts = d.parts;
    for tasks in &mut parts {
        let sequence: Vec<&Task> = tasks.iter().collect();
        let found = edges(&l.slots, &sequence);
        for (task, after) in tasks.iter_mut().zip(found) {
            task.after = after;
        }
    }
    let mut seams: Vec<Seam> = Vec::new();
    for pair in sequences(clip).iter().flat_map(|s| s.windows(2)) {
        let (from, to) = (pair[0], pair[1]);
        if overlaps(from, to) && !seams.iter().any(|s| s.from == from && s.to == to) {
            seams.push(seam(&l.slots, &parts, from, to));
        }
    }
    let mut plan = Plan {
        model: w.model.clone(),
        unit_names: w.units.iter().map(|u| u.name.clone()).collect(),
        precision: w.precision,
        gradient: w.gradient,
        choice: choice.clone(),
        pieces: d.pieces,
        slots: l.slots,
        parts,
        seams,
        tiers,
        prediction: Prediction::default(),
        accumulate: w.batch.accumulate,
    };
    plan.prediction = predict(&plan, w, machine);
    plan
}

fn seam(slots: &[crate::plan::Slot], parts: &[Vec<Task>], from: PartName, to: PartName) -> Seam {
    let earlier = &parts[from as usize];
    let n = earlier.len() as u32;
    let sequence: Vec<&Task> = earlier.iter().chain(&parts[to as usize]).collect();
    let found = edges(slots, &sequence);
    let mut seam = Vec::new();
    for (i, after) in found.into_iter().enumerate().skip(n as usize) {
        for d in after {
            if d < n {
                seam.push((i as u32 - n, d));
            }
        }
    }
    Seam {
        from,
        to,
        edges: seam,
    }
}

/// The least a request can be asked: bytes of each tier for one set of choices.
fn totals(w: &Workload, choice: &Choice, clip: Clip) -> [u64; 3] {
    let d = draft(w, choice, clip);
    layout(&d.slots, PartName::ALL.len()).totals
}

struct Search<'a> {
    r: Request<'a>,
    n_blocks: usize,
    disk: bool,
}

/// One candidate and what it needs.
#[derive(Clone)]
struct Candidate {
    choice: Choice,
    need: [u64; 3],
    seconds: f64,
}

/// How many starting points are improved.
const IMPROVED: usize = 3;

/// Plans a request.
///
/// # Errors
/// [`PlanError::Refused`] when no plan fits the budgets, with what would.
pub fn plan(r: &Request<'_>) -> Result<Plan, PlanError> {
    let search = Search {
        r: *r,
        n_blocks: r
            .workload
            .units
            .iter()
            .filter(|u| u.kind == UnitKind::Block)
            .count(),
        disk: r.budgets.disk.0 > 0,
    };
    let mut candidates = search.starting_points(r.budgets);
    if candidates.is_empty() {
        return Err(PlanError::Refused(Box::new(search.refusal())));
    }
    candidates.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    candidates.truncate(IMPROVED);
    let best = candidates
        .into_iter()
        .map(|c| search.improve(c))
        .min_by(|a, b| a.seconds.total_cmp(&b.seconds))
        .expect("not empty");
    let plan = build(r.workload, &best.choice, r.clip, r.budgets, r.machine);
    check(&plan, r.clip).map_err(PlanError::Wrong)?;
    Ok(plan)
}

impl Search<'_> {
    fn fits(&self, need: &[u64; 3], budgets: &Budgets) -> bool {
        Tier::ALL
            .iter()
            .all(|&t| need[t as usize] <= budgets.of(t).0)
    }

    fn least(&self, order: LoopOrder, pieces: Pieces, gradients: Tier, inputs: Tier) -> Choice {
        let w = self.r.workload;
        let pins = &self.r.pins;
        let n = w.units.len();
        let optimizer = pins.optimizer.unwrap_or(Tier::Host);
        let update = match (pins.update, optimizer) {
            (_, Tier::Device) => Processor::Device,
            (pinned, _) => pinned.unwrap_or(Processor::Host),
        };
        let mut choice = Choice {
            order,
            pieces,
            weights: vec![pins.weights.unwrap_or(Tier::Host); n],
            optimizer: vec![optimizer; n],
            update: vec![update; n],
            gradients,
            inputs,
            saved: w
                .units
                .iter()
                .map(|u| vec![crate::choice::Saved::Keep; u.saved().len()])
                .collect(),
            prefetch: pins.prefetch.unwrap_or(1),
        };
        let recomputed = pins
            .recompute
            .map_or(self.n_blocks, |r| (r as usize).min(self.n_blocks));
        choice.keep_last_blocks(w, self.n_blocks - recomputed);
        choice
    }

    fn tiers(&self, pinned: Option<Tier>, disk: bool) -> Vec<Tier> {
        match pinned {
            Some(t) => vec![t],
            None if disk => Tier::ALL.to_vec(),
            None => vec![Tier::Device, Tier::Host],
        }
    }

    /// Every way that has to be tried, with as little as possible on device and host.
    fn ways(&self, disk: bool) -> Vec<Choice> {
        let w = self.r.workload;
        let orders = match self.r.pins.order {
            Some(o) => vec![o],
            None if w.batch.accumulate == 1 => vec![LoopOrder::LayerMajor],
            None => vec![LoopOrder::LayerMajor, LoopOrder::BatchMajor],
        };
        let largest = w.params.iter().map(|p| p.elements).max().unwrap_or(1);
        let cuts = self.r.pins.pieces.map_or_else(
            || vec![Pieces::Unit, Pieces::Split((largest / 8).max(1 << 20))],
            |p| vec![p],
        );
        let mut ways = Vec::new();
        for &order in &orders {
            for &pieces in &cuts {
                for &gradients in &self.tiers(self.r.pins.gradients, disk) {
                    for &inputs in &self.tiers(self.r.pins.inputs, disk) {
                        ways.push(self.least(order, pieces, gradients, inputs));
                    }
                }
            }
        }
        // A cut that changes nothing is the same way twice.
        let n_units = crate::draft::cut(w, Pieces::Unit).len();
        ways.retain(|c| {
            c.pieces == Pieces::Unit
                || self.r.pins.pieces.is_some()
                || crate::draft::cut(w, c.pieces).len() != n_units
        });
        ways
    }

    fn starting_points(&self, budgets: Budgets) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        for way in self.ways(self.disk) {
            let mut fitted = self.fit(way.clone(), &budgets);
            if fitted.is_none() && self.r.pins.prefetch.is_none() {
                fitted = self.fit(Choice { prefetch: 0, ..way }, &budgets);
            }
            if let Some(choice) = fitted {
                found.push(self.measure(choice));
            }
        }
        found
    }

    /// Moves state, then weights, from host to disk until the host's budget holds.
    fn fit(&self, mut choice: Choice, budgets: &Budgets) -> Option<Choice> {
        let w = self.r.workload;
        for _ in 0..12 {
            let need = totals(w, &choice, self.r.clip);
            if self.fits(&need, budgets) {
                return Some(choice);
            }
            if need[0] > budgets.device.0 || need[2] > budgets.disk.0 {
                return None;
            }
            let mut excess = need[1].saturating_sub(budgets.host.0);
            let movable = self.disk && budgets.disk.0 > 0;
            let mut moved = false;
            if movable && self.r.pins.optimizer.is_none() {
                excess = self.spill(&mut choice, excess, false, &mut moved);
            }
            if movable && self.r.pins.weights.is_none() && excess > 0 {
                self.spill(&mut choice, excess, true, &mut moved);
            }
            if !moved {
                return None;
            }
        }
        None
    }

    /// Sends units' state (or weights) from host to disk, last unit first: the first ones are
    /// needed first in the next forward. Returns the excess that is left.
    fn spill(&self, choice: &mut Choice, mut excess: u64, weights: bool, moved: &mut bool) -> u64 {
        let w = self.r.workload;
        for (u, unit) in w.units.iter().enumerate().rev() {
            if excess == 0 {
                break;
            }
            let n: u64 = unit
                .params
                .clone()
                .map(|p| w.params[p as usize].padded())
                .sum();
            let (homes, bytes) = if weights {
                (&mut choice.weights, n * w.precision.size())
            } else {
                (
                    &mut choice.optimizer,
                    n * crate::plan::state_bytes_each(w.precision),
                )
            };
            if n > 0 && homes[u] == Tier::Host {
                homes[u] = Tier::Disk;
                *moved = true;
                excess = excess.saturating_sub(bytes);
            }
        }
        excess
    }

    fn measure(&self, choice: Choice) -> Candidate {
        let r = &self.r;
        let plan = build(r.workload, &choice, r.clip, r.budgets, r.machine);
        let need = [0, 1, 2].map(|t: usize| plan.tiers[t].planned_bytes.0);
        Candidate {
            choice,
            need,
            seconds: plan.prediction.step_seconds.0,
        }
    }

    /// Takes the change if it fits and is not slower.
    fn try_change(&self, best: &mut Candidate, change: impl Fn(&mut Choice)) -> bool {
        let mut choice = best.choice.clone();
        change(&mut choice);
        if choice == best.choice {
            return false;
        }
        let c = self.measure(choice);
        if self.fits(&c.need, &self.r.budgets) && c.seconds < best.seconds * 0.9999 {
            *best = c;
            return true;
        }
        false
    }

    /// The largest count (up to `max`) at which the change fits, then the best of it, its half and
    /// its quarter.
    fn try_count(&self, best: &mut Candidate, max: usize, change: impl Fn(&mut Choice, usize)) {
        let w = self.r.workload;
        let need = |n: usize| {
            let mut choice = best.choice.clone();
            change(&mut choice, n);
            self.fits(&totals(w, &choice, self.r.clip), &self.r.budgets)
        };
        let (mut low, mut high) = (0, max);
        if need(max) {
            low = max;
        }
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if need(middle) {
                low = middle
            } else {
                high = middle
            }
        }
        for n in [low, low / 2, low / 4] {
            if n > 0 {
                self.try_change(best, |c| change(c, n));
            }
        }
    }

    fn improve(&self, start: Candidate) -> Candidate {
        // Two orders of spending the same bytes; the simulator says which was wiser.
        let mut keep_first = start.clone();
        self.improve_streams(&mut keep_first);
        self.improve_kept(&mut keep_first);
        self.improve_residents(&mut keep_first);
        let mut residents_first = start;
        self.improve_streams(&mut residents_first);
        self.improve_residents(&mut residents_first);
        self.improve_kept(&mut residents_first);
        if residents_first.seconds < keep_first.seconds {
            residents_first
        } else {
            keep_first
        }
    }

    fn improve_streams(&self, best: &mut Candidate) {
        if self.r.pins.prefetch.is_none() {
            for depth in [1, 2, 3] {
                if best.choice.prefetch < depth && !self.try_change(best, |c| c.prefetch = depth) {
                    break;
                }
            }
        }
    }

    fn improve_kept(&self, best: &mut Candidate) {
        if self.r.pins.recompute.is_none() {
            let w = self.r.workload;
            self.try_count(best, self.n_blocks, |c, n| c.keep_last_blocks(w, n));
        }
    }

    fn improve_residents(&self, best: &mut Candidate) {
        let n = self.r.workload.units.len();
        let pins = self.r.pins;
        if pins.weights.is_none() {
            self.try_count(best, n, |c, k| c.weights[n - k..].fill(Tier::Device));
        }
        if pins.optimizer.is_none()
            && pins.weights.is_none()
            && pins.update != Some(Processor::Host)
        {
            self.try_count(best, n, |c, k| {
                c.weights[n - k..].fill(Tier::Device);
                c.optimizer[n - k..].fill(Tier::Device);
                c.update[n - k..].fill(Processor::Device);
            });
        }
        if pins.update.is_none() {
            self.try_count(best, n, |c, k| {
                for u in n - k..n {
                    c.update[u] = Processor::Device;
                }
            });
        }
    }

    /// What would fit: the ways without limits, each with the change in budgets it asks for.
    fn refusal(&self) -> Refusal {
        let allowed = self.r.budgets;
        let no_disk = Budgets {
            disk: Bytes::ZERO,
            ..Budgets::UNLIMITED
        };
        let mut best: Option<(f64, [u64; 3])> = None;
        // One tier free, the others as allowed; then two; then all.
        let free: [[bool; 3]; 7] = [
            [true, false, false],
            [false, true, false],
            [false, false, true],
            [true, true, false],
            [true, false, true],
            [false, true, true],
            [true, true, true],
        ];
        for mask in free {
            let of = |t: Tier| {
                if mask[t as usize] {
                    Budgets::UNLIMITED.of(t)
                } else {
                    allowed.of(t)
                }
            };
            let limits = Budgets {
                device: of(Tier::Device),
                host: of(Tier::Host),
                disk: of(Tier::Disk),
            };
            let search = Search {
                r: Request {
                    budgets: limits,
                    ..self.r
                },
                disk: limits.disk.0 > 0,
                ..*self
            };
            for way in search.ways(search.disk) {
                for prefetch in [0, way.prefetch] {
                    let prefetch = self.r.pins.prefetch.unwrap_or(prefetch);
                    let Some(choice) = search.fit(
                        Choice {
                            prefetch,
                            ..way.clone()
                        },
                        &limits,
                    ) else {
                        continue;
                    };
                    let need = totals(self.r.workload, &choice, self.r.clip);
                    let cost = excess(&need, &allowed);
                    if best.as_ref().is_none_or(|(c, _)| cost < *c) {
                        best = Some((cost, need));
                    }
                }
            }
            if best.is_some() && mask.iter().filter(|&&m| m).count() == 1 {
                continue;
            }
            if best.is_some() {
                break;
            }
        }
        let _ = no_disk;
        let need = best.map_or([u64::MAX >> 2; 3], |(_, need)| need);
        let budget = |t: usize, have: Bytes| Bytes(need[t].max(have.0));
        Refusal {
            needed: Budgets {
                device: Bytes(need[0]),
                host: Bytes(need[1]),
                disk: Bytes(need[2]),
            },
            allowed,
            nearest: Budgets {
                device: budget(0, allowed.device),
                host: budget(1, allowed.host),
                disk: budget(2, allowed.disk),
            },
        }
    }
}

/// How far a need is above the budgets: the sum of the logarithms of the ratios, so that doubling
/// a small budget weighs as much as doubling a large one.
fn excess(need: &[u64; 3], allowed: &Budgets) -> f64 {
    Tier::ALL
        .iter()
        .map(|&t| {
            let have = allowed.of(t).0.max(1 << 20) as f64;
            (need[t as usize] as f64 / have).max(1.0).ln()
        })
        .sum()
}

/// Time of one steady step of a plan on another machine's rates.
#[must_use]
pub fn step_seconds(plan: &Plan, w: &Workload, machine: &Machine) -> f64 {
    use PartName::{First, Steady};
    let run = simulate(plan, w, machine, &[First, Steady, Steady]);
    run.end(2) - run.end(1)
}

/// The dtype that a workload's complete gradients have, for people.
#[must_use]
pub fn gradient_name(w: &Workload) -> &'static str {
    match w.gradient {
        Dtype::Bf16 => "bf16",
        Dtype::F32 => "f32",
    }
}
