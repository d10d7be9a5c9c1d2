//! Chooses: from a workload, a machine and three budgets to the plan with the least simulated step
//! time that fits.
//!
//! For each way of ordering the loops, cutting the pieces and placing gradients and block inputs
//! there is a *least* plan (everything offloaded, every block recomputed). Those that fit are the
//! starting points. From the fastest few, bytes that are left are spent where the simulator says
//! that they save time: fetching further ahead, keeping saved tensors, keeping weights and
//! optimizer state on the device, updating there. Nothing here looks at a clock or draws a random
//! number: equal inputs give an equal plan.

use std::cell::RefCell;

use lowtide_units::{Bytes, Seconds};
use lowtide_workload::{UnitKind, Workload};
use serde::{Deserialize, Serialize};

use crate::build::{assemble, build};
use crate::check::{Fault, check};
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Pieces, Processor};
use crate::draft::{Draft, draft, persistent_bytes};
use crate::fast::FastMap;
use crate::layout::{Layout, layout};
use crate::machine::Machine;
use crate::plan::{PartName, Plan, Tier};
use crate::simulate::{busy, steady_seconds};

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
    /// Weights and optimizer state in two versions on disk, committed by each update.
    pub durable: bool,
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

struct Search<'a> {
    r: Request<'a>,
    n_blocks: usize,
    disk: bool,
    seen: &'a Seen,
}

/// What is known of choices that were looked at: the same ones come up again and again.
#[derive(Default)]
struct Seen {
    sizes: RefCell<FastMap<Choice, Size>>,
    seconds: RefCell<FastMap<Choice, f64>>,
    /// The newest draft that fits; likely to be timed next.
    newest: RefCell<Option<(Choice, Draft, Layout)>>,
}

/// What a draft says before its edges are made.
#[derive(Clone, Copy)]
struct Size {
    need: [u64; 3],
    /// Seconds of the busiest lane: no step is shorter.
    bound: f64,
}

/// One candidate and how long its step takes.
#[derive(Clone)]
struct Candidate {
    choice: Choice,
    seconds: f64,
}

/// How many starting points are improved.
const IMPROVED: usize = 3;

/// Plans a request.
///
/// # Errors
/// [`PlanError::Refused`] when no plan fits the budgets, with what would.
pub fn plan(r: &Request<'_>) -> Result<Plan, PlanError> {
    let seen = Seen::default();
    let search = Search {
        r: *r,
        n_blocks: r
            .workload
            .units
            .iter()
            .filter(|u| u.kind == UnitKind::Block)
            .count(),
        disk: r.budgets.disk.0 > 0,
        seen: &seen,
    };
    let candidates = search.fastest(search.starting_points(r.budgets));
    if candidates.is_empty() {
        return Err(PlanError::Refused(Box::new(search.refusal())));
    }
    let best = search
        .improve_all(candidates)
        .into_iter()
        .min_by(|a, b| a.seconds.total_cmp(&b.seconds))
        .expect("not empty");
    let plan = build(r.workload, &best.choice, r.clip, r.budgets, r.machine);
    check(&plan, r.clip).map_err(PlanError::Wrong)?;
    Ok(plan)
}

fn fits(need: &[u64; 3], budgets: &Budgets) -> bool {
    Tier::ALL
        .iter()
        .all(|&t| need[t as usize] <= budgets.of(t).0)
}

impl Clone for Seen {
    fn clone(&self) -> Self {
        let (sizes, seconds) = (self.sizes.clone(), self.seconds.clone());
        Self {
            sizes,
            seconds,
            newest: RefCell::default(),
        }
    }
}

impl Search<'_> {
    /// What a choice needs, to the byte, and the bound of its step.
    fn size(&self, choice: &Choice) -> Size {
        if let Some(&size) = self.seen.sizes.borrow().get(choice) {
            return size;
        }
        let Request {
            workload: w,
            clip,
            machine,
            ..
        } = self.r;
        let d = draft(w, choice, clip);
        let l = layout(&d.slots, PartName::ALL.len());
        let bound = busy(&d.parts[PartName::Steady as usize], &d.pieces, w, machine)
            .busiest
            .0;
        let size = Size {
            need: l.totals,
            bound,
        };
        self.seen.sizes.borrow_mut().insert(choice.clone(), size);
        if fits(&size.need, &self.r.budgets) {
            *self.seen.newest.borrow_mut() = Some((choice.clone(), d, l));
        }
        size
    }

    /// Whether a choice fits the budgets of the request.
    fn holds(&self, choice: &Choice) -> bool {
        let Request {
            workload,
            clip,
            budgets,
            ..
        } = &self.r;
        let known = self.seen.sizes.borrow().get(choice).copied();
        match known {
            Some(size) => fits(&size.need, budgets),
            // What stays is known without a draft, and most of what does not fit fails by it.
            None => {
                fits(&persistent_bytes(workload, choice, *clip), budgets)
                    && fits(&self.size(choice).need, budgets)
            }
        }
    }

    /// Simulated time of a step.
    fn seconds(&self, choice: &Choice) -> f64 {
        if let Some(&seconds) = self.seen.seconds.borrow().get(choice) {
            return seconds;
        }
        let Request {
            workload: w,
            clip,
            machine,
            ..
        } = self.r;
        let bound = self.size(choice).bound;
        let newest = self.seen.newest.borrow_mut().take_if(|(c, ..)| c == choice);
        let (d, l) = newest.map_or_else(
            || {
                let d = draft(w, choice, clip);
                let l = layout(&d.slots, PartName::ALL.len());
                (d, l)
            },
            |(_, d, l)| (d, l),
        );
        let plan = assemble(w, choice, clip, d, l, &[PartName::First, PartName::Steady]);
        let seconds = steady_seconds(&plan, w, machine, Seconds(bound)).0;
        self.seen
            .seconds
            .borrow_mut()
            .insert(choice.clone(), seconds);
        seconds
    }

    /// The fastest few, fastest first; of equals the first. Those whose bound is above the time
    /// of enough others are not simulated.
    fn fastest(&self, choices: Vec<Choice>) -> Vec<Candidate> {
        let mut order: Vec<(f64, usize)> = choices
            .iter()
            .enumerate()
            .map(|(i, c)| (self.size(c).bound, i))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut best: Vec<(f64, usize)> = Vec::new();
        for (bound, i) in order {
            if best
                .get(IMPROVED - 1)
                .is_some_and(|&(seconds, _)| seconds < bound)
            {
                break;
            }
            best.push((self.seconds(&choices[i]), i));
            best.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        }
        best.truncate(IMPROVED);
        best.into_iter()
            .map(|(seconds, i)| Candidate {
                choice: choices[i].clone(),
                seconds,
            })
            .collect()
    }

    fn least(&self, order: LoopOrder, pieces: Pieces, gradients: Tier, inputs: Tier) -> Choice {
        let w = self.r.workload;
        let pins = &self.r.pins;
        let n = w.units.len();
        let durable = pins.durable.then_some(Tier::Disk);
        let optimizer = pins.optimizer.or(durable).unwrap_or(Tier::Host);
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
            durable: false,
        };
        if pins.durable {
            choice.make_durable();
        }
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

    fn starting_points(&self, budgets: Budgets) -> Vec<Choice> {
        let mut found = Vec::new();
        for way in self.ways(self.disk) {
            let mut fitted = self.fit(way.clone(), &budgets);
            if fitted.is_none() && self.r.pins.prefetch.is_none() {
                fitted = self.fit(Choice { prefetch: 0, ..way }, &budgets);
            }
            found.extend(fitted);
        }
        found.extend(self.residents().into_iter().filter(|c| self.holds(c)));
        found
    }

    /// Everything on the device but saved tensors, which are recomputed: where the device is large
    /// and the host is not, no plan with state on the host fits to start from.
    fn residents(&self) -> Vec<Choice> {
        let pins = &self.r.pins;
        let device = |pin: Option<Tier>| pin.is_none_or(|t| t == Tier::Device);
        let allowed = device(pins.weights)
            && device(pins.optimizer)
            && device(pins.gradients)
            && device(pins.inputs)
            && !pins.durable
            && pins.update != Some(Processor::Host);
        if !allowed {
            return Vec::new();
        }
        let ways = self.ways(false).into_iter();
        let mut ways: Vec<Choice> = ways
            .filter(|c| c.gradients == Tier::Device && c.inputs == Tier::Device)
            .collect();
        for c in &mut ways {
            c.weights.fill(Tier::Device);
            c.optimizer.fill(Tier::Device);
            c.update.fill(Processor::Device);
        }
        ways
    }

    /// Whether optimizer state and weights may go from host to disk.
    fn movable(&self) -> (bool, bool) {
        let pins = &self.r.pins;
        (
            self.disk && pins.optimizer.is_none(),
            self.disk && pins.weights.is_none(),
        )
    }

    /// With all that may move on disk.
    fn spilled(&self, mut choice: Choice) -> Choice {
        let (states, weights) = self.movable();
        let mut moved = false;
        if states {
            self.spill(&mut choice, u64::MAX, false, &mut moved);
        }
        if weights {
            self.spill(&mut choice, u64::MAX, true, &mut moved);
        }
        choice
    }

    /// Moves state, then weights, from host to disk until the host's budget holds.
    fn fit(&self, mut choice: Choice, budgets: &Budgets) -> Option<Choice> {
        let (states, weights) = self.movable();
        let last = self.spilled(choice.clone());
        let stays = persistent_bytes(self.r.workload, &last, self.r.clip);
        if stays[0] > budgets.device.0 || stays[1] > budgets.host.0 {
            return None;
        }
        for _ in 0..12 {
            let need = self.size(&choice).need;
            if fits(&need, budgets) {
                return Some(choice);
            }
            if need[0] > budgets.device.0 || need[2] > budgets.disk.0 {
                return None;
            }
            let mut excess = need[1].saturating_sub(budgets.host.0);
            let mut moved = false;
            if states {
                excess = self.spill(&mut choice, excess, false, &mut moved);
            }
            if weights && excess > 0 {
                self.spill(&mut choice, excess, true, &mut moved);
            }
            if !moved {
                return None;
            }
        }
        // What is read from disk needs room on the host too, so the last steps may be short.
        fits(&self.size(&last).need, budgets).then_some(last)
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

    /// Takes the change if it fits and is not slower.
    fn try_change(&self, best: &mut Candidate, change: impl Fn(&mut Choice)) -> bool {
        let mut choice = best.choice.clone();
        change(&mut choice);
        let limit = best.seconds * 0.9999;
        if choice == best.choice || !self.holds(&choice) || self.size(&choice).bound >= limit {
            return false;
        }
        let seconds = self.seconds(&choice);
        if seconds < limit {
            *best = Candidate { choice, seconds };
            return true;
        }
        false
    }

    /// The largest count (up to `max`) at which the change fits, then the best of it, its half and
    /// its quarter.
    fn try_count(&self, best: &mut Candidate, max: usize, change: impl Fn(&mut Choice, usize)) {
        let need = |n: usize| {
            let mut choice = best.choice.clone();
            change(&mut choice, n);
            self.holds(&choice)
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

    /// Improves each on a thread of its own; what one learns the others do not see.
    fn improve_all(&self, starts: Vec<Candidate>) -> Vec<Candidate> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = starts
                .into_iter()
                .map(|start| {
                    let seen = self.seen.clone();
                    let (r, n_blocks, disk) = (self.r, self.n_blocks, self.disk);
                    scope.spawn(move || {
                        Search {
                            r,
                            n_blocks,
                            disk,
                            seen: &seen,
                        }
                        .improve(start)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| {
                    t.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
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
            let (w, n_blocks) = (self.r.workload, self.n_blocks);
            let mut light = best.clone();
            self.try_count(best, n_blocks, |c, n| c.keep_last_blocks(w, n));
            // Bytes saved on every block before all bytes of some.
            self.try_count(&mut light, n_blocks, |c, n| c.keep_blocks(w, 0, n));
            let (_, lightly) = light.choice.kept_blocks(w);
            self.try_count(&mut light, lightly, |c, n| {
                c.keep_blocks(w, n, lightly - n);
            });
            if light.seconds < best.seconds {
                *best = light;
            }
        }
    }

    fn improve_residents(&self, best: &mut Candidate) {
        let n = self.r.workload.units.len();
        let pins = self.r.pins;
        if pins.weights.is_none() {
            self.try_count(best, n, |c, k| c.weights[n - k..].fill(Tier::Device));
        }
        if pins.optimizer.is_none()
            && !pins.durable
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
                    let choice = Choice {
                        prefetch,
                        ..way.clone()
                    };
                    // With a free host nothing would go to disk by itself.
                    let spilled = search.spilled(choice.clone());
                    for choice in search.fit(choice, &limits).into_iter().chain([spilled]) {
                        let need = self.size(&choice).need;
                        let cost = excess(&need, &allowed);
                        if fits(&need, &limits) && best.as_ref().is_none_or(|(c, _)| cost < *c) {
                            best = Some((cost, need));
                        }
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
