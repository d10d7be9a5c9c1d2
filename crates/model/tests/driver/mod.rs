//! Runs a decoder the plain way: every tensor has memory of its own, operations run in order.
//!
//! Memory begins as NaN (all bits set), scratch is NaN before every call, and operands that an
//! operation only reads are compared before and after it.

#![allow(dead_code, reason = "each test file uses its part")]

mod experts;
mod shapes;

use std::collections::{HashMap, HashSet};

use half::bf16;
use lowtide_device::{Dst, Queue};
use lowtide_kernels::head::Counts;
use lowtide_model::{Arg, Call, Decoder, Decoding, Live, Options, Phase, random_init};
use lowtide_units::Id;
use lowtide_workload::{
    Access, Batch, Dtype, Input, LocalId, ModelShape, OpId, Optimizer, ParamId, ParamKind, What,
    Workload,
};
pub use shapes::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Local(usize, LocalId),
    Weight(ParamId),
    Gradient(ParamId),
    Cache(usize),
    Inputs,
    Loss,
}

pub struct Driver {
    pub decoder: Decoder,
    pub shape: ModelShape,
    queue: Queue,
    memory: HashMap<Key, Vec<u64>>,
    touched: HashSet<ParamId>,
    live: Option<Live>,
}

/// A row of a step of decoding.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub token: i32,
    pub position: i32,
    pub place: i32,
}

pub fn options(precision: Dtype, micro_batch: u32, seq: u32) -> Options {
    let batch = Batch {
        target: 0,
        micro_batch,
        seq,
        accumulate: 1,
    };
    Options {
        precision,
        gradient: precision,
        optimizer: Optimizer::default(),
        frozen: Vec::new(),
        lsp: None,
        batch,
        logits_chunk: 5,
        rows_chunk: 0,
        make: lowtide_device::Make::Cpu,
        attention: lowtide_kernels::attention::Engine::Own,
    }
}

/// Tokens, labels, positions and document starts of two rows of packed documents.
pub fn inputs(workload: &Workload, vocab: u32) -> Vec<i32> {
    let (b, t) = (
        workload.batch.micro_batch as usize,
        (workload.batch.seq + workload.batch.target) as usize,
    );
    let mut planes = [const { Vec::new() }; 4];
    for row in 0..b {
        // The first row holds two documents, the others one.
        let second = if row == 0 { t / 2 } else { 0 };
        for i in 0..t {
            let start = if i >= second { second } else { 0 };
            let token = ((row * t + i) * 7 + i * i + 3) % vocab as usize;
            let label = ((row * t + i) * 5 + i * i + 1) % vocab as usize;
            planes[0].push(token as i32);
            planes[1].push(if i % 4 == 1 { -100 } else { label as i32 });
            planes[2].push((i - start) as i32);
            planes[3].push(start as i32);
        }
    }
    planes.concat()
}

impl Driver {
    /// A driver with weights larger than a new model's, so that every gradient is felt.
    pub fn new(shape: &ModelShape, options: &Options, threads: usize) -> Self {
        Self::of(Decoder::new(shape, options).unwrap(), shape, threads)
    }

    /// The same model, to make answers.
    pub fn decoding(shape: &ModelShape, options: &Options, how: Decoding, threads: usize) -> Self {
        let decoder = Decoder::decoding(shape, options, how).unwrap();
        Self::of(decoder, shape, threads)
    }

    fn of(decoder: Decoder, shape: &ModelShape, threads: usize) -> Self {
        let queue = Queue::new("test", threads);
        let (memory, touched) = (HashMap::new(), HashSet::new());
        let mut driver = Self {
            decoder,
            shape: shape.clone(),
            queue,
            memory,
            touched,
            live: None,
        };
        let inputs = inputs(driver.decoder.workload(), shape.vocab);
        driver
            .memory
            .insert(Key::Inputs, words(bytemuck::cast_slice(&inputs)));
        for (id, param) in driver.decoder.workload().params.clone().pairs() {
            let mut values = vec![0.0; param.elements as usize];
            let files = |p, range, out: &mut [f32]| {
                random_init(shape, 5, p, range, out);
                Ok::<(), ()>(())
            };
            let all = 0..param.elements;
            let made = driver.decoder.first_values(5, id, all, &mut values, files);
            made.unwrap();
            for (j, value) in values.iter_mut().enumerate() {
                // Norms and biases (all ones, all zeros) get values of their own.
                let vary = ((id.idx() * 31 + j * 17) % 23) as f32 / 23.0 - 0.5;
                *value = match param.kind {
                    ParamKind::Projector => *value,
                    _ if param.decay => *value * 12.0,
                    _ => *value + 0.6 * vary,
                };
            }
            driver.set_weight(id, &values);
        }
        driver
    }

    pub fn set_weight(&mut self, param: ParamId, values: &[f32]) {
        let bytes = match self.decoder.workload().precision {
            Dtype::F32 => words(bytemuck::cast_slice(values)),
            Dtype::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                words(bytemuck::cast_slice(&rounded))
            }
        };
        self.memory.insert(Key::Weight(param), bytes);
    }

    pub fn weight(&self, param: ParamId) -> Vec<f32> {
        let elements = self.decoder.workload().params[param].elements as usize;
        let bytes: &[u8] = bytemuck::cast_slice(&self.memory[&Key::Weight(param)]);
        match self.decoder.workload().precision {
            Dtype::F32 => bytemuck::cast_slice(&bytes[..4 * elements]).to_vec(),
            Dtype::Bf16 => bytemuck::cast_slice::<u8, bf16>(&bytes[..2 * elements])
                .iter()
                .map(|v| v.to_f32())
                .collect(),
        }
    }

    pub fn gradient(&self, param: ParamId) -> Vec<f32> {
        let elements = self.decoder.workload().params[param].elements as usize;
        let bytes: &[u8] = bytemuck::cast_slice(&self.memory[&Key::Gradient(param)]);
        bytemuck::cast_slice(&bytes[..4 * elements]).to_vec()
    }

    pub fn params(&self) -> impl Iterator<Item = ParamId> + use<> {
        self.decoder.workload().params.ids()
    }

    /// One micro-batch, both directions: sum of losses and their count.
    pub fn step(&mut self, loss_scale: f32) -> [f64; 2] {
        let n = self.decoder.workload().units.len();
        for unit in 0..n {
            self.phase(unit, Phase::Forward, loss_scale);
        }
        for unit in (0..n).rev() {
            self.phase(unit, Phase::Backward, loss_scale);
        }
        self.loss()
    }

    /// The loss alone.
    pub fn evaluate(&mut self) -> [f64; 2] {
        self.up_to_head(Phase::Evaluate);
        let [sum, counts] = self.loss();
        [sum, f64::from(Counts::of(counts).rows)]
    }

    /// Logits, (B, V).
    pub fn infer(&mut self) -> Vec<f32> {
        self.up_to_head(Phase::Infer);
        let head = self.decoder.workload().units.len() - 1;
        let unit = &self.decoder.workload().units[head];
        let logits = unit.logits.expect("the head has logits");
        let bytes: &[u8] = bytemuck::cast_slice(&self.memory[&Key::Local(head, logits)]);
        bytemuck::cast_slice(&bytes[..unit.tensors[logits].bytes.usize()]).to_vec()
    }

    /// Logits of the first rows of a step of decoding, (marked, V).
    pub fn decode(&mut self, rows: &[Row], marked: usize) -> Vec<f32> {
        let planes: [Vec<i32>; 4] = [
            rows.iter().map(|r| r.token).collect(),
            (0..rows.len())
                .map(|i| if i < marked { 0 } else { -100 })
                .collect(),
            rows.iter().map(|r| r.position).collect(),
            rows.iter().map(|r| r.place).collect(),
        ];
        self.live = Some(Live::of(&planes[1]));
        self.forget_locals();
        let mut all = words(bytemuck::cast_slice(&planes.concat()));
        let bytes = self.decoder.workload().batch.input_bytes().usize();
        all.resize(bytes.div_ceil(8), u64::MAX);
        self.memory.insert(Key::Inputs, all);
        let logits = self.infer();
        logits[..marked * self.shape.vocab as usize].to_vec()
    }

    fn up_to_head(&mut self, last: Phase) {
        let n = self.decoder.workload().units.len();
        for unit in 0..n - 1 {
            self.phase(unit, Phase::Forward, 0.0);
        }
        self.phase(n - 1, last, 0.0);
    }

    fn loss(&self) -> [f64; 2] {
        bytemuck::cast_slice::<u64, f64>(&self.memory[&Key::Loss])
            .try_into()
            .unwrap()
    }

    /// Sets the planes of the inputs.
    pub fn set_inputs(&mut self, planes: &[i32]) {
        let bytes = self.decoder.workload().batch.input_bytes().usize();
        assert_eq!(bytes, planes.len() * 4);
        let inputs = words(bytemuck::cast_slice(planes));
        self.memory.insert(Key::Inputs, inputs);
    }

    /// Leaves a label only at the tokens `at`, counted over all rows.
    pub fn mark(&mut self, at: &[usize]) {
        let rows = self.decoder.workload().batch.input_rows() as usize;
        let inputs = self.memory.get_mut(&Key::Inputs).unwrap();
        let labels = &mut bytemuck::cast_slice_mut::<u64, i32>(inputs)[rows..2 * rows];
        labels.fill(-100);
        at.iter().for_each(|&i| labels[i] = 0);
    }

    /// Forgets the gradients: the next step overwrites them.
    pub fn new_batch(&mut self) {
        self.touched.clear();
    }

    /// Poisons everything that forward wrote, so that running it again is seen.
    pub fn forget_locals(&mut self) {
        self.memory.retain(|key, _| !matches!(key, Key::Local(..)));
    }

    fn phase(&mut self, unit: usize, phase: Phase, loss_scale: f32) {
        let all = phase.ops(&self.decoder.workload().units[unit]).ids();
        for op in all {
            self.op(unit, phase, op, loss_scale);
        }
    }

    fn op(&mut self, unit: usize, phase: Phase, op: OpId, loss_scale: f32) {
        let workload = self.decoder.workload();
        let what = phase.ops(&workload.units[unit])[op].clone();
        // Takes the operands' memory out, so that each can be borrowed alone.
        let mut taken: Vec<(Key, usize, Vec<u64>)> = Vec::new();
        for operand in &what.operands {
            let (key, bytes) = resolve(workload, unit, operand.what);
            let memory = self.memory.remove(&key);
            taken.push((
                key,
                bytes,
                memory.unwrap_or_else(|| vec![u64::MAX; bytes.div_ceil(8)]),
            ));
        }
        let before: Vec<Vec<u64>> = taken.iter().map(|t| t.2.clone()).collect();
        let mut scratch = vec![u64::MAX; what.workspace.usize().div_ceil(8)];
        let args: Vec<Arg<'_>> = taken
            .iter_mut()
            .zip(&what.operands)
            .map(|((key, bytes, memory), operand)| {
                let memory = bytemuck::cast_slice_mut::<u64, f64>(memory);
                let bytes = Dst::of(memory).part(0, *bytes);
                match (operand.access, key) {
                    (Access::Read, _) => Arg::Read(bytes.into_src()),
                    (_, Key::Cache(_)) | (Access::Accumulate, Key::Local(..)) => Arg::Add(bytes),
                    (_, Key::Gradient(i)) if !self.touched.insert(*i) => Arg::Add(bytes),
                    _ => Arg::Write(bytes),
                }
            })
            .collect();
        let workspace = Dst::of(bytemuck::cast_slice_mut::<u64, f64>(&mut scratch));
        let call = Call {
            unit,
            phase,
            op,
            args,
            workspace,
            loss_scale,
            live: self.live,
            training: None,
        };
        self.decoder.run(&self.queue, call);
        for ((operand, (key, _, after)), before) in what.operands.iter().zip(&taken).zip(&before) {
            if operand.access == Access::Read {
                assert!(
                    after == before,
                    "{} wrote to {key:?}, which it reads",
                    what.name
                );
            }
        }
        for (key, _, memory) in taken {
            assert!(
                self.memory.insert(key, memory).is_none(),
                "{key:?} twice in {}",
                what.name
            );
        }
    }
}

/// Whose memory an operand is, and its length.
fn resolve(workload: &Workload, unit: usize, what: What) -> (Key, usize) {
    let u = &workload.units[unit];
    let elements = |i: ParamId| workload.params[i].elements as usize;
    match what {
        What::Local(i) => {
            let bytes = u.tensors[i].bytes.usize();
            // An input and its gradient are where the unit that puts it out has them.
            let names = |input: &&Input| [input.tensor, input.gradient].contains(&i);
            let Some(input) = u.inputs.iter().find(names) else {
                return (Key::Local(unit, i), bytes);
            };
            let below = &workload.units[input.unit as usize];
            let there = match input.tensor == i {
                true => below.output,
                false => below.d_output,
            };
            (Key::Local(input.unit as usize, there.unwrap()), bytes)
        }
        What::Weight(i) => (
            Key::Weight(i),
            elements(i) * workload.precision.size() as usize,
        ),
        What::Gradient(i) => (Key::Gradient(i), elements(i) * 4),
        What::Cache => (Key::Cache(unit), u.cache.usize()),
        What::Inputs => (Key::Inputs, workload.batch.input_bytes().usize()),
        What::Loss => (Key::Loss, 16),
    }
}

/// Bytes in memory that suits every type.
fn words(bytes: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}
