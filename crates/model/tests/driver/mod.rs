//! Runs a decoder the plain way: every tensor has memory of its own, operations run in order.
//!
//! Memory begins as NaN (all bits set), scratch is NaN before every call, and operands that an
//! operation only reads are compared before and after it.
//!
//! One file because the driver and the shapes that it runs are one to every test that includes it.

#![allow(dead_code, reason = "each test file uses its part")]

mod experts;

use std::collections::{HashMap, HashSet};

use half::bf16;
use lowtide_device::{Dst, Queue};
use lowtide_kernels::head::Counts;
use lowtide_model::{Arg, Call, Decoder, Decoding, Live, Options, Phase, random_init};
use lowtide_units::Id;
use lowtide_workload::{
    Access, Batch, Dtype, Family, Input, Layers, LocalId, LocalRope, ModelShape, Objective, OpId,
    Optimizer, ParamId, ParamKind, Rope, RopeScaling, Scales, What, Window, Workload,
};

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

/// A small Llama with odd sizes: grouped queries, untied, two blocks.
pub fn tiny_llama() -> ModelShape {
    ModelShape {
        name: "tiny".to_owned(),
        family: Family::Llama,
        vocab: 37,
        hidden: 20,
        intermediate: 28,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        max_positions: 32,
        norm_eps: 1e-5,
        tied: false,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        rope: Some(Rope {
            theta: 10_000.0,
            scaling: RopeScaling::None,
            width: None,
        }),
        window: None,
        unrotated: Layers::default(),
        scales: Scales::default(),
        parallel: false,
        gelu_by_tanh: false,
        local_rope: None,
        experts: None,
        encoder: None,
        objective: Objective::default(),
    }
}

/// Gemma 2's factors for these sizes, with some caps.
fn gemma2_scales(attention_cap: Option<f64>, logits_cap: Option<f64>) -> Scales {
    Scales {
        embedding: f64::from(tiny_llama().hidden).sqrt(),
        attention: Some(7f64.powf(-0.5)),
        attention_cap,
        logits_cap,
        ..Scales::default()
    }
}

/// A Gemma 3 whose first layer has other rotary positions than the second, whose are stretched.
fn gemma3(window: Option<Window>, logits_cap: Option<f64>) -> ModelShape {
    let rope = |theta, scaling| Rope {
        theta,
        scaling,
        width: None,
    };
    ModelShape {
        family: Family::Gemma3,
        qk_norm: true,
        window,
        rope: Some(rope(1_000.0, RopeScaling::Linear(2.0))),
        local_rope: Some(LocalRope {
            rope: rope(100.0, RopeScaling::None),
            layers: Layers::those(2, |l| l == 0),
        }),
        scales: gemma2_scales(None, logits_cap),
        ..tiny_llama()
    }
}

/// A window of so many keys in those of two layers.
pub fn window(keys: u32, is: impl Fn(u32) -> bool) -> Option<Window> {
    Some(Window {
        keys,
        layers: Layers::those(2, is),
    })
}

/// A small GPT-2, tied.
pub fn tiny_gpt2() -> ModelShape {
    ModelShape {
        family: Family::Gpt2,
        kv_heads: 4,
        head_dim: 5,
        max_positions: 12,
        tied: true,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        rope: None,
        ..tiny_llama()
    }
}

/// A GPT-NeoX of two heads of ten numbers of which the first `width` are rotated.
fn neox(width: Option<u32>, parallel: bool) -> ModelShape {
    ModelShape {
        family: Family::GptNeoX,
        heads: 2,
        kv_heads: 2,
        head_dim: 10,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        parallel,
        ..rotating(width)
    }
}

/// A StableLM of two query heads and one key head of ten numbers of which the first `width` are rotated.
fn stablelm(width: u32, parallel: bool) -> ModelShape {
    ModelShape {
        family: Family::StableLm,
        heads: 2,
        kv_heads: 1,
        head_dim: 10,
        parallel,
        ..rotating(Some(width))
    }
}

fn rotating(width: Option<u32>) -> ModelShape {
    let mut shape = tiny_llama();
    shape.rope.as_mut().expect("rotary positions").width = width;
    shape
}

/// A Cohere of two query heads and one key head of ten numbers, with a factor of logits that is no power of two.
fn cohere(window: Option<Window>, unrotated: Layers, bias: bool) -> ModelShape {
    ModelShape {
        family: Family::Cohere,
        heads: 2,
        kv_heads: 1,
        head_dim: 10,
        tied: true,
        qkv_bias: bias,
        out_bias: bias,
        parallel: true,
        window,
        unrotated,
        scales: Scales {
            logits_divisor: 1.0 / 0.8,
            ..Scales::default()
        },
        ..tiny_llama()
    }
}

/// One of each feature, by name.
pub fn tiny_shapes() -> Vec<ModelShape> {
    let named = |name: &str, shape: ModelShape| ModelShape {
        name: name.to_owned(),
        ..shape
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original: 16.0,
    };
    let rope = |scaling| {
        Some(Rope {
            theta: 100.0,
            scaling,
            width: None,
        })
    };
    let base = tiny_llama;
    let mut all = vec![
        named("llama", base()),
        named(
            "llama tied",
            ModelShape {
                tied: true,
                ..base()
            },
        ),
        named(
            "llama 3 rope",
            ModelShape {
                rope: rope(llama3),
                ..base()
            },
        ),
        named(
            "linear rope",
            ModelShape {
                rope: rope(RopeScaling::Linear(2.0)),
                ..base()
            },
        ),
        named(
            "yarn",
            ModelShape {
                qk_norm: true,
                rope: rope(RopeScaling::Yarn {
                    factor: 3.0,
                    attention: 1.25,
                    beta_fast: 4.0,
                    beta_slow: 0.5,
                    original: 8.0,
                    truncate: false,
                }),
                ..base()
            },
        ),
        named(
            "dynamic rope",
            ModelShape {
                rope: rope(RopeScaling::Dynamic(2.0)),
                ..base()
            },
        ),
        named(
            "llama with all biases",
            ModelShape {
                qkv_bias: true,
                out_bias: true,
                mlp_bias: true,
                ..base()
            },
        ),
        named(
            "qwen2",
            ModelShape {
                qkv_bias: true,
                tied: true,
                ..base()
            },
        ),
        named(
            "qwen3",
            ModelShape {
                qk_norm: true,
                tied: true,
                ..base()
            },
        ),
        named(
            "mistral with a window",
            ModelShape {
                window: window(3, |_| true),
                ..base()
            },
        ),
        named(
            "qwen2 with a window above",
            ModelShape {
                qkv_bias: true,
                window: window(2, |l| l == 1),
                ..base()
            },
        ),
        named(
            "phi3",
            ModelShape {
                family: Family::Phi3,
                window: window(4, |_| true),
                ..base()
            },
        ),
        named(
            "phi3 with longrope",
            ModelShape {
                family: Family::Phi3,
                rope: rope(RopeScaling::LongRope {
                    short: vec![1.0, 1.5, 2.5],
                    long: vec![1.0, 4.0, 9.0],
                    attention: 1.125,
                    original: 9.0,
                }),
                ..base()
            },
        ),
        named(
            "phi3 with a part of each head rotated",
            ModelShape {
                family: Family::Phi3,
                head_dim: 10,
                rope: Some(Rope {
                    width: Some(6),
                    ..rope(RopeScaling::LongRope {
                        short: vec![1.0, 1.5, 2.5],
                        long: vec![1.0, 4.0, 9.0],
                        attention: 1.125,
                        original: 9.0,
                    })
                    .unwrap()
                }),
                ..base()
            },
        ),
        named(
            "smollm3",
            ModelShape {
                family: Family::SmolLm3,
                tied: true,
                unrotated: Layers::those(2, |l| l == 1),
                ..base()
            },
        ),
        named(
            "smollm3 with biases and windows",
            ModelShape {
                family: Family::SmolLm3,
                qkv_bias: true,
                out_bias: true,
                mlp_bias: true,
                unrotated: Layers::those(2, |l| l == 0),
                window: window(3, |l| l == 0),
                ..base()
            },
        ),
        named(
            "olmo2",
            ModelShape {
                family: Family::Olmo2,
                qk_norm: true,
                ..base()
            },
        ),
        named(
            "olmo2 with biases",
            ModelShape {
                family: Family::Olmo2,
                qk_norm: true,
                qkv_bias: true,
                out_bias: true,
                tied: true,
                ..base()
            },
        ),
        named(
            "granite",
            ModelShape {
                family: Family::Granite,
                mlp_bias: true,
                scales: Scales {
                    embedding: 3.0,
                    attention: Some(0.3),
                    residual: 0.6,
                    logits_divisor: 0.7,
                    ..Scales::default()
                },
                ..base()
            },
        ),
        named(
            "gemma",
            ModelShape {
                family: Family::Gemma,
                tied: true,
                scales: Scales {
                    embedding: f64::from(base().hidden).sqrt(),
                    ..Scales::default()
                },
                ..base()
            },
        ),
        named(
            "gemma2",
            ModelShape {
                family: Family::Gemma2,
                tied: true,
                window: window(3, |l| l == 0),
                scales: gemma2_scales(Some(0.8), Some(1.1)),
                ..base()
            },
        ),
        named("gemma3", gemma3(window(3, |l| l == 0), Some(1.2))),
        named(
            "gemma3 whose windows never slide",
            ModelShape {
                local_rope: gemma3(None, None).local_rope.map(|mut local| {
                    local.rope.scaling = RopeScaling::Linear(3.0);
                    local
                }),
                qkv_bias: true,
                out_bias: true,
                tied: true,
                ..gemma3(None, None)
            },
        ),
        named(
            "gemma2 without caps and windows",
            ModelShape {
                family: Family::Gemma2,
                qkv_bias: true,
                out_bias: true,
                scales: gemma2_scales(None, None),
                ..base()
            },
        ),
        named("gpt_neox", neox(Some(4), true)),
        named(
            "gpt_neox in turn, without biases of attention",
            ModelShape {
                qkv_bias: false,
                out_bias: false,
                gelu_by_tanh: true,
                ..neox(None, false)
            },
        ),
        named(
            "stablelm",
            ModelShape {
                qkv_bias: true,
                tied: true,
                ..stablelm(2, false)
            },
        ),
        named("stablelm side by side", stablelm(6, true)),
        named("cohere", cohere(None, Layers::default(), true)),
        named(
            "cohere with windows",
            cohere(window(3, |l| l == 0), Layers::those(2, |l| l == 1), false),
        ),
        named(
            "cohere whose windows never slide",
            cohere(None, Layers::those(2, |l| l == 0), false),
        ),
        named("gpt2", tiny_gpt2()),
        named(
            "gpt2 untied",
            ModelShape {
                tied: false,
                ..tiny_gpt2()
            },
        ),
    ];
    all.extend(experts::shapes());
    all
}

pub fn options(precision: Dtype, micro_batch: u32, seq: u32) -> Options {
    let batch = Batch {
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
        make: lowtide_device::Make::Cpu,
        attention: lowtide_kernels::attention::Engine::Own,
    }
}

/// Tokens, labels, positions and document starts of two rows of packed documents.
pub fn inputs(workload: &Workload, vocab: u32) -> Vec<i32> {
    let (b, t) = (
        workload.batch.micro_batch as usize,
        workload.batch.seq as usize,
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

    /// Leaves a label only at the tokens `at`, counted over all rows.
    pub fn mark(&mut self, at: &[usize]) {
        let rows = self.decoder.workload().batch.rows() as usize;
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
                    (_, Key::Cache(_)) => Arg::Add(bytes),
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
