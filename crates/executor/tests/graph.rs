//! Plans of workloads whose units are no chain are run, on the CPU device, and compared with the workload done as it is
//! written, without a plan.
//!
//! What an operation computes is a mixture of what it reads, in f32, that depends on the order of its operands, on the
//! operation and on the order in which sums add up. So equal bits say that every operation got what its
//! operands name, and that each gradient added up in the stated order.

#[path = "../../planner/src/testing/workloads.rs"]
#[allow(dead_code, reason = "the planner's tests use the rest")]
mod workloads;

use std::collections::HashMap;
use std::sync::Arc;

use lowtide_device::{Memory, Queue, memory};
use lowtide_executor::{
    Bound, Engine, EngineError, Mode, Options, Record, Runner, TaskCall, Tiers,
};
use lowtide_planner::{
    Ahead, Budgets, Choice, Clip, LoopOrder, Machine, PartName, Plan, Processor, Saved, Source,
    Tensor, Tier, UpdateRate, Updates, Work, build, check,
};
use lowtide_tiers::{Arena, Fill};
use lowtide_units::{BytesPerSecond, FlopsPerSecond, Seconds, ids};
use lowtide_workload::{Access, Dtype, LocalId, Op, Optimizer, ParamId, UnitKind, What, Workload};

/// The number `i` of what operation `name` makes of what it reads, as its operand `k`.
fn mixed(name: &str, k: usize, i: usize, read: &[&[f32]]) -> f32 {
    let salt = name.bytes().fold(k as u32 + 1, |h, b| {
        h.wrapping_mul(31).wrapping_add(u32::from(b)) % 1009
    });
    let mut sum = salt as f32 / 1009.0;
    for (j, from) in read.iter().enumerate() {
        let share = 0.3 + 0.17 * j as f32;
        sum += share * from[(i + j * salt as usize) % from.len()];
    }
    // In bounds, whatever is read.
    sum / (1.0 + sum.abs())
}

/// Fills or adds to what an operation writes.
fn compute(op: &Op, read: &[&[f32]], written: Vec<(usize, &mut [f32], bool)>) {
    for (k, to, adds) in written {
        for (i, to) in to.iter_mut().enumerate() {
            let made = mixed(&op.name, k, i, read);
            *to = if adds { *to + made } else { made };
        }
    }
}

/// A micro-batch's inputs.
fn inputs(m: u32, len: usize) -> Vec<f32> {
    let one = |i: usize| ((i as u32 * 7 + m * 13) % 29) as f32 / 29.0;
    (0..len).map(one).collect()
}

fn first_weight(param: u32, i: usize) -> f32 {
    ((param as usize * 31 + i * 7) % 101) as f32 / 101.0 - 0.5
}

const RATE: f32 = 0.25;

/// An engine of [`mixed`] operations and updates by the gradient alone.
struct Mixer(Arc<Workload>);

impl Engine for Mixer {
    type Step = ();

    fn run(&self, _: &Queue, call: TaskCall<'_>, (): &()) -> Result<(), EngineError> {
        match call.work {
            Work::Compute {
                unit, phase, op, ..
            } => {
                let op = &phase.ops(&self.0.units[unit as usize])[op];
                let (mut read, mut written) = (Vec::new(), Vec::new());
                for (k, (o, arg)) in op.operands.iter().zip(call.args).enumerate() {
                    match arg {
                        Bound::Read(from) => read.push(from.read::<f32>()),
                        Bound::Write(to) if o.what == What::Loss => {
                            to.write::<f64>().copy_from_slice(&[1.0, 1.0]);
                        }
                        Bound::Write(to) => written.push((k, to.write::<f32>(), false)),
                        Bound::Update(to) => written.push((k, to.write::<f32>(), true)),
                    }
                }
                compute(op, &read, written);
            }
            // Rounded in place.
            Work::Finish { .. } => {
                let mut args = call.args.into_iter().skip(1);
                args.next()
                    .expect("norm parts")
                    .dst()
                    .write::<f64>()
                    .fill(0.0);
            }
            Work::Norm => {
                let [_, clip, _] = call.take();
                clip.dst().write::<f64>().fill(1.0);
            }
            Work::Load { micro_batch } => {
                let m = micro_batch + call.shift;
                let [to] = call.take();
                let to = to.dst().write::<f32>();
                let made = inputs(m, to.len());
                to.copy_from_slice(&made);
            }
            Work::Update { .. } => {
                let mut args = call.args.into_iter();
                let weight = args.next().expect("a weight").dst().write::<f32>();
                let gradient = args.nth(1).expect("a gradient").src().read::<f32>();
                for (w, g) in weight.iter_mut().zip(gradient) {
                    *w -= RATE * g;
                }
            }
            Work::Losses => {}
            other => panic!("{other:?} is not the engine's"),
        }
        Ok(())
    }

    fn record(&self, _: TaskCall<'_>, (): &()) -> Result<Record, EngineError> {
        unreachable!("nothing is durable")
    }
}

/// The workload as it is written: each batch forward, then backward from the last unit down, of each unit all
/// micro-batches. Tensors by name: of an output and its gradient the one that puts it out.
struct Plain<'w> {
    w: &'w Workload,
    weights: Vec<Vec<f32>>,
    gradients: Vec<Option<Vec<f32>>>,
    locals: HashMap<(u32, LocalId, u32), Vec<f32>>,
}

impl Plain<'_> {
    fn name(&self, unit: u32, i: LocalId) -> (u32, LocalId) {
        let u = &self.w.units[unit as usize];
        for input in &u.inputs {
            let from = &self.w.units[input.unit as usize];
            if input.tensor == i {
                return (input.unit, from.output.expect("an output"));
            }
            if input.gradient == i {
                return (input.unit, from.d_output.expect("its gradient"));
            }
        }
        (unit, i)
    }

    fn op(&mut self, unit: u32, op: &Op, m: u32) {
        let u = &self.w.units[unit as usize];
        let planes = inputs(m, self.w.batch.input_bytes().0 as usize / 4);
        let mut read: Vec<Vec<f32>> = Vec::new();
        for o in op.operands.iter().filter(|o| o.access == Access::Read) {
            read.push(match o.what {
                What::Local(i) => {
                    let (from, i) = self.name(unit, i);
                    self.locals[&(from, i, m)].clone()
                }
                What::Weight(p) => self.weights[p.0 as usize].clone(),
                What::Inputs => planes.clone(),
                other => panic!("{other:?} is not read"),
            });
        }
        let read: Vec<&[f32]> = read.iter().map(Vec::as_slice).collect();
        for (k, o) in op.operands.iter().enumerate() {
            let (bytes, place) = match (o.access, o.what) {
                (Access::Read, _) | (_, What::Loss) => continue,
                (_, What::Local(i)) => {
                    let (of, there) = self.name(unit, i);
                    let place = self.locals.entry((of, there, m)).or_default();
                    (u.tensors[i].bytes.0 as usize, place)
                }
                (_, What::Gradient(p)) => {
                    let elements = self.w.params[p].elements as usize;
                    let place = self.gradients[p.0 as usize].get_or_insert_default();
                    (elements * 4, place)
                }
                (_, other) => panic!("{other:?} is not written"),
            };
            // The first share of a parameter's gradient overwrites it.
            let adds = o.access == Access::Accumulate && !place.is_empty();
            place.resize(bytes / 4, 0.0);
            compute(op, &read, vec![(k, place, adds)]);
        }
    }

    fn batch(&mut self) {
        let w = self.w;
        self.gradients = vec![None; w.params.len()];
        self.locals.clear();
        let units = || (0..).zip(&w.units);
        for (u, unit) in units() {
            for m in 0..w.batch.accumulate {
                unit.forward.iter().for_each(|op| self.op(u, op, m));
            }
        }
        for (u, unit) in units().collect::<Vec<_>>().into_iter().rev() {
            for m in 0..w.batch.accumulate {
                unit.backward.iter().for_each(|op| self.op(u, op, m));
            }
        }
        for (weight, gradient) in self.weights.iter_mut().zip(&self.gradients) {
            let gradient = gradient.as_ref().expect("every parameter has a gradient");
            for (w, g) in weight.iter_mut().zip(gradient) {
                *w -= RATE * g;
            }
        }
    }
}

/// The weights of every parameter behind so many batches, as bits.
type Weights = Vec<Vec<u32>>;

fn bits(all: &[f32]) -> Vec<u32> {
    all.iter().map(|x| x.to_bits()).collect()
}

const BATCHES: usize = 3;

fn plainly(w: &Workload) -> Weights {
    let weights = w.params.pairs().map(|(p, param)| {
        let all = 0..param.elements as usize;
        all.map(|i| first_weight(p.0, i)).collect()
    });
    let mut plain = Plain {
        w,
        weights: weights.collect(),
        gradients: Vec::new(),
        locals: HashMap::new(),
    };
    (0..BATCHES).for_each(|_| plain.batch());
    plain.weights.iter().map(|w| bits(w)).collect()
}

fn machine() -> Machine {
    Machine {
        name: "test".into(),
        date: "2026-11-27".into(),
        source: Source::Measured,
        note: String::new(),
        matmul_bf16: FlopsPerSecond(1e11),
        matmul_f32: FlopsPerSecond(1e11),
        device_memory: BytesPerSecond(1e10),
        op_overhead: Seconds(2e-6),
        h2d: BytesPerSecond(1e10),
        d2h: BytesPerSecond(1e10),
        copy_overhead: Seconds(2e-6),
        net: None,
        links: None,
        network: None,
        updates: Updates::of(UpdateRate {
            optimizer: Optimizer::default(),
            host: 1e9,
            device: 1e10,
        }),
        host_overhead: Seconds(2e-6),
        disk: None,
        shared: Vec::new(),
        together: Vec::new(),
        device_reserve: lowtide_units::Bytes(0),
        host_reserve: lowtide_units::Bytes(0),
        cuda: false,
        ops: Default::default(),
    }
}

/// The plan's homes of weights, with each parameter's place in bytes.
fn homes(plan: &Plan) -> Vec<(Tier, ParamId, u64)> {
    let mut all = Vec::new();
    for (p, piece) in plan.pieces.pairs() {
        for (_, slot) in plan.homes(Tensor::Weight(p)) {
            let places =
                ids(&piece.params).map(|i| (slot.tier, i, slot.offset + piece.offset_of(i) * 4));
            all.extend(places);
        }
    }
    all
}

/// Runs the batches by a plan of these choices.
fn planned(w: &Arc<Workload>, choice: &Choice, mode: Mode) -> Weights {
    let plan = build(w, choice, Clip::Exact, Budgets::UNLIMITED, &machine());
    check::check(&plan, w, Clip::Exact).unwrap_or_else(|fault| panic!("{fault}\n{choice:?}"));
    let plan = Arc::new(plan);
    let arena = |tier| {
        let arena = Arena::new(plan.tier(tier).planned_bytes, Fill::Poison);
        Memory::new(arena.expect("room"))
    };
    let mut tiers = Tiers {
        device: arena(Tier::Device),
        host: arena(Tier::Host),
        disk: None,
    };
    let len = |p: ParamId| w.params[p].elements;
    for (tier, p, offset) in homes(&plan) {
        let memory = match tier {
            Tier::Device => &mut tiers.device,
            _ => &mut tiers.host,
        };
        let values: Vec<f32> = (0..len(p) as usize).map(|i| first_weight(p.0, i)).collect();
        memory::store(memory.part(offset, len(p) * 4), &values);
    }
    let options = Options {
        mode,
        poison: true,
        threads: 1,
        ..Options::default()
    };
    let engine = Arc::new(Mixer(Arc::clone(w)));
    let made = Runner::new(Arc::clone(&plan), Arc::clone(w), engine, tiers, options);
    let mut runner = made.expect("a runner of the CPU device");
    let mut submit = |part| runner.submit(part, Arc::new(())).expect("it runs");
    submit(PartName::First);
    (1..BATCHES).for_each(|_| submit(PartName::Steady));
    submit(PartName::Drain);
    runner.wait().expect("it ends");
    let mut weights: Weights = vec![Vec::new(); w.params.len()];
    let idle = runner.idle_tiers();
    for (tier, p, offset) in homes(&plan) {
        let lender = match tier {
            Tier::Device => &idle.device,
            _ => &idle.host,
        };
        let mut values = vec![0.0f32; len(p) as usize];
        memory::load(lender.lend(offset, len(p) * 4).src(), &mut values);
        let found = &mut weights[p.0 as usize];
        assert!(found.is_empty() || *found == bits(&values), "homes differ");
        *found = bits(&values);
    }
    weights
}

/// Everything on the host that may be there, in ways that differ by `k`.
fn choice(w: &Workload, k: usize) -> Choice {
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.order = [LoopOrder::LayerMajor, LoopOrder::BatchMajor][k % 2];
    if k < 2 {
        return c;
    }
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Host; n];
    c.update = vec![[Processor::Host, Processor::Device][k / 2 % 2]; n];
    c.gradients = vec![[Tier::Host, Tier::Device][k / 4 % 2]; n];
    (c.inputs, c.carry) = (Tier::Host, Tier::Host);
    let ways = [Saved::Recompute, Saved::Host, Saved::Keep];
    c.saved.iter_mut().for_each(|s| s.fill(ways[k % 3]));
    c.ahead = [Ahead::NONE, Ahead::UNLIMITED][k / 3 % 2];
    if k.is_multiple_of(2) && w.batch.accumulate > 2 {
        c.round = 1 + k as u32 / 4 % 2;
    }
    c
}

#[test]
fn a_plan_of_stacks_gives_the_bits_of_the_workload() {
    for (accumulate, tied) in [(1, true), (3, false), (5, true)] {
        let mut w = workloads::stacks(accumulate, tied);
        (w.precision, w.gradient) = (Dtype::F32, Dtype::F32);
        let embeddings = w.units.iter().filter(|u| u.kind == UnitKind::Embedding);
        assert_eq!(embeddings.count(), 3);
        let w = Arc::new(w);
        let want = plainly(&w);
        // Of the longest batch all ways, of the others some.
        for k in (0..12).step_by(if accumulate == 5 { 1 } else { 5 }) {
            let mode = match k % 4 {
                3 => Mode::Threads,
                _ => Mode::Shuffled(k as u64),
            };
            let c = choice(&w, k);
            let found = planned(&w, &c, mode);
            for ((p, param), (found, want)) in w.params.pairs().zip(found.iter().zip(&want)) {
                assert_eq!(
                    found, want,
                    "{p} {} of plan {k}, M {accumulate}",
                    param.name
                );
            }
        }
    }
}
