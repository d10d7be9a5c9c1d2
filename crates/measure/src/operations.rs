//! Times of a model's operations, each at its own shape.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lowtide_data::Micro;
use lowtide_device::cuda::{self, Event};
use lowtide_device::{Memory, Queue, memory};
use lowtide_model::{Arg, Call, Decoder, Decoding, Live, Phase, Training, store_inputs};
use lowtide_units::{Bytes, Seconds};
use lowtide_workload::{Access, Op, OpId, Operand, Unit, UnitKind, What, Workload};

use crate::error::MeasureError;
use crate::timing::{device_arena, timed};

/// Bytes between the places at which consecutive operations find their operands.
const PLACE: u64 = 64 << 20;

/// How long the operations of a step are repeated, in seconds.
const SUSTAINED: f64 = 2.0;

/// Keys of a training step's operations in order; of many blocks as many as take about `seconds`.
fn order_of_a_step<'a>(
    w: &'a Workload,
    times: &BTreeMap<String, Seconds>,
    seconds: f64,
) -> Vec<&'a str> {
    let keys = |ops: &'a [Op]| ops.iter().map(|op| op.key.as_str());
    let mut units: Vec<&Unit> = Vec::new();
    let mut sum = 0.0;
    for unit in &w.units {
        if unit.kind == UnitKind::Block && sum > seconds {
            continue;
        }
        let both = unit.forward.iter().chain(&unit.backward);
        sum += both.map(|op| times[&op.key].0).sum::<f64>();
        units.push(unit);
    }
    let forward = units.iter().flat_map(|u| keys(&u.forward));
    let backward = units.iter().rev().flat_map(|u| keys(&u.backward));
    forward.chain(backward).collect()
}

/// Times every distinct operation of a decoder at its own shape. None, where one of them alone takes more than `room`
/// of the device: no plan may hold it there, so the planner refuses without times, and nothing is allocated for them.
pub(crate) fn operations(
    q: &Queue,
    decoder: &Decoder,
    sample: Option<&Micro>,
    seconds: f64,
    room: Option<Bytes>,
) -> Result<BTreeMap<String, Seconds>, MeasureError> {
    let w = decoder.workload();
    let largest = distinct(w).iter().map(Each::bytes).max().unwrap_or(0);
    if room.is_some_and(|room| largest > room.0) {
        return Ok(BTreeMap::new());
    }
    if let Some(how) = decoder.steps() {
        return steps(q, decoder, how, seconds);
    }
    let made;
    let sample = match sample {
        Some(sample) => sample,
        None => {
            made = crate::random_micro(decoder.shape(), w.batch, 0);
            &made
        }
    };
    let mut bench = Bench::new(q, decoder, sample, None)?;
    let mut times = bench.alone(seconds)?;
    if let Some(stream) = q.cuda() {
        bench.in_order(stream, &mut times)?;
    }
    Ok(times)
}

/// Times of a step of decoding that has a row for each answer. On a GPU steps of every other number of rows are run
/// once, so that their kernels are loaded and their products' algorithms chosen.
fn steps(
    q: &Queue,
    decoder: &Decoder,
    how: Decoding,
    seconds: f64,
) -> Result<BTreeMap<String, Seconds>, MeasureError> {
    let one = how.answers() as usize;
    if q.cuda().is_some() {
        let sizes = (0..).map(|i| 1usize << i);
        for rows in sizes.take_while(|&rows| rows <= how.rows as usize) {
            let answers = rows.min(one);
            let live = Live { rows, answers };
            let mut bench = Bench::new(q, decoder, &step(how, rows), Some(live))?;
            (0..bench.all.len()).for_each(|at| bench.run(at, 0));
        }
    }
    let live = Live {
        rows: one,
        answers: one,
    };
    Bench::new(q, decoder, &step(how, one), Some(live))?.alone(seconds)
}

/// Rows at the ends of their places, as far as there are places.
fn step(how: Decoding, rows: usize) -> Micro {
    let (places, keys) = (how.places as usize, how.keys as usize);
    let position = |i: usize| keys - 1 - (i / places).min(keys - 1);
    Micro {
        tokens: vec![0; rows],
        labels: vec![0; rows],
        positions: (0..rows).map(|i| position(i) as i32).collect(),
        doc_start: (0..rows).map(|i| (i % places) as i32).collect(),
    }
}

/// An operation, the first of its shape.
struct Each<'a> {
    unit: usize,
    phase: Phase,
    /// Its place among the operations of the phase.
    at: OpId,
    op: &'a Op,
    /// Bytes of its operands.
    sizes: Vec<u64>,
}

impl Each<'_> {
    /// Bytes of all operands and of the scratch.
    fn bytes(&self) -> u64 {
        self.sizes.iter().sum::<u64>() + self.op.workspace.0
    }
}

/// Every operation of a workload, one of each shape.
fn distinct(w: &Workload) -> Vec<Each<'_>> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for (u, unit) in w.units.iter().enumerate() {
        for phase in [
            Phase::Forward,
            Phase::Backward,
            Phase::Evaluate,
            Phase::Infer,
        ] {
            for (at, op) in phase.ops(unit).pairs() {
                if seen.insert(op.key.as_str()) {
                    let bytes = |o: &Operand| match o.what {
                        What::Local(t) => unit.tensors[t].bytes.0,
                        What::Weight(p) => w.params[p].elements * w.precision.size(),
                        What::Gradient(p) => w.params[p].elements * 4,
                        What::Cache => unit.cache.0,
                        What::Inputs => w.batch.input_bytes().0,
                        What::Loss => 16,
                    };
                    all.push(Each {
                        unit: u,
                        phase,
                        at,
                        op,
                        sizes: op.operands.iter().map(bytes).collect(),
                    });
                }
            }
        }
    }
    all
}

/// Whether an operation only reads an operand.
fn reads(o: &Operand) -> bool {
    o.access == Access::Read
}

/// Operations and the memory that they compute in.
///
/// What is read lies apart from what is written. Otherwise operations would soon read each other's meaningless
/// results, and a product of NaNs takes less power and so less time.
struct Bench<'a> {
    q: &'a Queue,
    decoder: &'a Decoder,
    all: Vec<Each<'a>>,
    arena: Memory,
    /// Where what is written begins.
    written: u64,
    inputs: (u64, u64),
    /// Where the routing of experts is, which names rows: any numbers would be none.
    routing: (u64, u64),
    /// Places at which an operation's operands may begin.
    places: u64,
    /// How much of a step of decoding is run.
    live: Option<Live>,
}

impl<'a> Bench<'a> {
    fn new(
        q: &'a Queue,
        decoder: &'a Decoder,
        sample: &Micro,
        live: Option<Live>,
    ) -> Result<Self, MeasureError> {
        let w = decoder.workload();
        let all = distinct(w);
        let most = |only_read: bool| {
            let bytes = |each: &Each<'_>| -> u64 {
                let operands = each.op.operands.iter().zip(&each.sizes);
                let of = operands.filter(|(o, _)| reads(o) == only_read);
                of.map(|(_, s)| s.next_multiple_of(256)).sum()
            };
            let scratch = |op: &Op| if only_read { 0 } else { op.workspace.0 };
            let each = all.iter().map(|each| bytes(each) + scratch(each.op));
            each.max().unwrap_or(0)
        };
        // On a GPU operations that follow each other find their operands elsewhere, as in a step, so that its cache
        // does not serve one from the other.
        let places = if q.cuda().is_some() { 8 } else { 1 };
        let zone = |bytes: u64| (bytes + 256 + (places - 1) * PLACE).next_multiple_of(256);
        let (read, written) = (zone(most(true)), zone(most(false)));
        let inputs = (read + written, w.batch.input_bytes().0);
        let even = decoder.even_routing(live).unwrap_or_default();
        let routing = (
            (inputs.0 + inputs.1).next_multiple_of(256),
            4 * even.len() as u64,
        );
        let mut arena = device_arena(q, Bytes(routing.0 + routing.1))?;
        let stored = live.map_or(inputs.1, |live| 16 * live.rows as u64);
        store_inputs(sample.planes(), arena.part(inputs.0, stored));
        if !even.is_empty() {
            memory::store(arena.part(routing.0, routing.1), &even);
        }
        Ok(Self {
            q,
            decoder,
            all,
            arena,
            written: read,
            inputs,
            routing,
            places,
            live,
        })
    }

    /// Runs an operation with its operands at one of the places.
    fn run(&mut self, at: usize, place: u64) {
        let each = &self.all[at];
        let from = place % self.places * PLACE;
        let (mut from, mut to) = (from, self.written + from);
        let routing = self.decoder.routing(each.unit).map(What::Local);
        let mut ranges = vec![self.inputs, self.routing];
        for (&size, operand) in each.sizes.iter().zip(&each.op.operands) {
            let next = if reads(operand) { &mut from } else { &mut to };
            ranges.push((*next, size));
            *next += size.next_multiple_of(256);
        }
        ranges.push((to, each.op.workspace.0));
        let mut parts = self.arena.cut(&ranges).into_iter();
        let mut next = || parts.next().expect("a part for each operand");
        let (tokens, routes) = (next().into_src(), next().into_src());
        let arg = |operand: &Operand| match (operand.what, next()) {
            (What::Inputs, _) => Arg::Read(tokens),
            (What::Cache, part) => Arg::Add(part),
            (what, _) if reads(operand) && Some(what) == routing => Arg::Read(routes),
            (_, part) if reads(operand) => Arg::Read(part.into_src()),
            // A share of a gradient: whether it adds is part of the operation.
            (What::Local(_), part) if operand.access == Access::Accumulate => Arg::Add(part),
            (_, part) => Arg::Write(part),
        };
        let args = each.op.operands.iter().map(arg).collect();
        let call = Call {
            unit: each.unit,
            phase: each.phase,
            op: each.at,
            args,
            workspace: next(),
            loss_scale: 1.0,
            live: self.live,
            // With the noise of training, where there is any.
            training: Some(Training {
                step: 1,
                micro_batch: 0,
            }),
        };
        self.decoder.run(self.q, call);
    }

    /// The time of each operation, again and again by itself.
    fn alone(&mut self, seconds: f64) -> Result<BTreeMap<String, Seconds>, MeasureError> {
        let q = self.q;
        let mut times = BTreeMap::new();
        for at in 0..self.all.len() {
            let s = timed(q, seconds, || self.run(at, 0))?;
            times.insert(self.all[at].op.key.clone(), Seconds(s));
        }
        Ok(times)
    }

    /// A chip that works without a pause gets warm and slow: the operations of a step in a step's order, for long
    /// enough, each timed where it stands.
    fn in_order(
        &mut self,
        stream: &cuda::Queue,
        times: &mut BTreeMap<String, Seconds>,
    ) -> Result<(), MeasureError> {
        let decoder = self.decoder;
        let keys = self.all.iter().map(|each| each.op.key.as_str());
        let index: BTreeMap<&str, usize> = keys.zip(0..).collect();
        let order = order_of_a_step(decoder.workload(), times, 1.0);
        let events: Vec<Event> = (0..=order.len())
            .map(|_| Event::new(stream.gpu()))
            .collect::<Result<_, _>>()?;
        let mut sums: BTreeMap<&str, (f64, u32)> = BTreeMap::new();
        let begin = Instant::now();
        let mut passes = 0;
        while passes < 3 || begin.elapsed().as_secs_f64() < SUSTAINED {
            stream.record(&events[0])?;
            for (n, key) in order.iter().enumerate() {
                self.run(index[key], n as u64);
                stream.record(&events[n + 1])?;
            }
            stream.synchronize()?;
            passes += 1;
            if passes > 1 {
                for (n, key) in order.iter().enumerate() {
                    let sum = sums.entry(key).or_default();
                    sum.0 += events[n + 1].seconds_since(&events[n])?;
                    sum.1 += 1;
                }
            }
        }
        for (key, (sum, n)) in sums {
            times.insert(key.to_owned(), Seconds(sum / f64::from(n)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lowtide_device::Make;
    use lowtide_kernels::attention::Engine;
    use lowtide_model::Options;
    use lowtide_workload::{Batch, Dtype, ModelShape, Optimizer};

    use super::*;

    /// Shares of gradients are added or written, rows are of sources or of targets.
    #[test]
    fn every_operation_of_two_stacks_is_timed() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden/t5");
        let shape = lowtide_model::load_shape(&golden).expect("a supported config.json");
        let batch = Batch {
            target: 8,
            micro_batch: 1,
            seq: 16,
            accumulate: 1,
        };
        let decoder = Decoder::new(&shape, &options(batch)).expect("sizes go together");
        let q = Queue::new("test", 1);
        let times_in = |room| operations(&q, &decoder, None, 0.0, room).expect("times");
        let times = times_in(None);
        let kinds = ["relative.", "share."].map(|of| times.keys().any(|key| key.starts_with(of)));
        assert_eq!(kinds, [true; 2], "{:?}", times.keys());
        assert!(times.values().all(|time| time.0 > 0.0));
        // None where one alone has no room.
        let largest = distinct(decoder.workload()).iter().map(Each::bytes).max();
        let largest = largest.expect("there are operations");
        assert_eq!(times_in(Some(Bytes(largest))).len(), times.len());
        assert!(times_in(Some(Bytes(largest - 1))).is_empty());
    }

    fn options(batch: Batch) -> Options {
        Options {
            precision: Dtype::F32,
            gradient: Dtype::F32,
            optimizer: Optimizer::default(),
            frozen: Vec::new(),
            lsp: None,
            batch,
            logits_chunk: 0,
            rows_chunk: 0,
            make: Make::Cpu,
            attention: Engine::Own,
        }
    }

    /// What an operation reads may be any numbers, but not the rows that experts get.
    #[test]
    fn experts_are_timed_with_rows_that_there_are() {
        let shape = ModelShape {
            vocab: 50,
            hidden: 32,
            intermediate: 16,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            ..ModelShape::builtin("mixtral-8x7b").expect("a built-in shape")
        };
        let batch = Batch {
            target: 0,
            micro_batch: 1,
            seq: 16,
            accumulate: 1,
        };
        let decoder = Decoder::new(&shape, &options(batch)).expect("sizes go together");
        let (q, sample) = (Queue::new("test", 1), Micro::random(1, 16, shape.vocab, 0));
        let mut bench = Bench::new(&q, &decoder, &sample, None).expect("memory");
        // Large numbers, and no index of anything.
        let numbers = vec![0x7070_7070_i32; bench.written as usize / 4];
        memory::store(bench.arena.part(0, 4 * numbers.len() as u64), &numbers);
        let grouped = bench
            .all
            .iter()
            .filter(|e| e.op.key.starts_with("grouped."));
        assert_eq!(grouped.count(), 6);
        for at in 0..bench.all.len() {
            bench.run(at, 0);
        }
        let routing = bench.arena.part(bench.routing.0, bench.routing.1);
        let mut rows = vec![0; bench.routing.1 as usize / 4];
        memory::load(routing.into_src(), &mut rows);
        assert_eq!(Some(rows), decoder.even_routing(None));
    }
}
