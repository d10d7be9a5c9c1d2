//! Tiny models, batches and plans for tests of the whole step. One file because they are one set that all tests share.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod places;

use std::sync::Arc;

use lowtide_data::Micro;
use lowtide_device::Make;
use lowtide_device::cuda::Gpu;
use lowtide_kernels::update::Hyper;
use lowtide_model::{Decoder, Options, random_init};
use lowtide_planner::{
    Budgets, Choice, Clip, Machine, Plan, Processor, Tier, UpdateRate, Updates, build, check,
};
use lowtide_session::{ClipRule, DiskChoice, Session, SessionOptions};
use lowtide_tiers::{RamConfig, RamDisk, TierError};
use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::{
    Batch, Dtype, Experts, Family, Layers, LocalRope, Lsp, ModelShape, Objective, Optimizer,
    Projector, Rope, RopeScaling, Scales, Window,
};

pub fn llama(layers: u32, tied: bool) -> ModelShape {
    ModelShape {
        name: "tiny".into(),
        family: Family::Llama,
        vocab: 61,
        hidden: 32,
        intermediate: 48,
        layers,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        max_positions: 64,
        norm_eps: 1e-5,
        tied,
        qkv_bias: true,
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
        stacks: None,
    }
}

/// A window in the even layers, and no positions in the odd ones.
pub fn windows(layers: u32, tied: bool) -> ModelShape {
    ModelShape {
        family: Family::SmolLm3,
        qkv_bias: false,
        window: Some(Window {
            keys: 5,
            layers: Layers::those(layers, |l| l % 2 == 0),
        }),
        unrotated: Layers::those(layers, |l| l % 2 == 1),
        ..llama(layers, tied)
    }
}

/// Norms around, caps, factors, and windows in the even layers.
pub fn gemma2(layers: u32) -> ModelShape {
    ModelShape {
        family: Family::Gemma2,
        qkv_bias: false,
        window: Some(Window {
            keys: 5,
            layers: Layers::those(layers, |l| l % 2 == 0),
        }),
        scales: Scales {
            embedding: 32f64.sqrt(),
            attention: Some(10f64.powf(-0.5)),
            attention_cap: Some(2.0),
            logits_cap: Some(3.0),
            ..Scales::default()
        },
        ..llama(layers, true)
    }
}

/// Norms of heads, and in the even layers windows and other rotary positions.
pub fn gemma3(layers: u32) -> ModelShape {
    let shape = gemma2(layers);
    let even = Layers::those(layers, |l| l % 2 == 0);
    ModelShape {
        family: Family::Gemma3,
        qk_norm: true,
        local_rope: Some(LocalRope {
            rope: Rope {
                theta: 100.0,
                scaling: RopeScaling::None,
                width: None,
            },
            layers: even,
        }),
        scales: Scales {
            attention_cap: None,
            ..shape.scales
        },
        ..shape
    }
}

/// Attention and MLP side by side, behind a norm each or one; layer norms, half of each head rotated.
pub fn side_by_side(layers: u32, one_norm: bool) -> ModelShape {
    let mut shape = llama(layers, false);
    let whole = shape.head_dim;
    shape.rope.as_mut().expect("rotary positions").width = Some(whole / 2);
    shape.parallel = true;
    match one_norm {
        true => shape.family = Family::StableLm,
        false => {
            shape.family = Family::GptNeoX;
            shape.kv_heads = shape.heads;
            (shape.out_bias, shape.mlp_bias) = (true, true);
        }
    }
    shape
}

/// Learned positions and layer norms.
pub fn gpt2(layers: u32, tied: bool) -> ModelShape {
    ModelShape {
        family: Family::Gpt2,
        kv_heads: 4,
        out_bias: true,
        mlp_bias: true,
        rope: None,
        ..llama(layers, tied)
    }
}

pub fn decoder(shape: &ModelShape, precision: Dtype, accumulate: u32) -> Arc<Decoder> {
    decoder_on(None, shape, precision, accumulate)
}

/// The devices of this machine: the CPU, and the first GPU if there is one. Without one, says what
/// is skipped; with `LOWTIDE_REQUIRE_CUDA` set, panics.
pub fn devices() -> Vec<Option<Gpu>> {
    let mut all = vec![None];
    all.extend(gpu().map(Some));
    all
}

/// The first GPU, as [`devices`].
#[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
pub fn gpu() -> Option<Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(e) => {
            assert!(
                std::env::var_os("LOWTIDE_REQUIRE_CUDA").is_none(),
                "a CUDA device is required: {e}"
            );
            eprintln!("skipped on CUDA: {e}");
            None
        }
    }
}

/// Which make a device is.
pub fn make_of(gpu: Option<&Gpu>) -> Make {
    gpu.map_or(Make::Cpu, |_| Make::Cuda)
}

pub fn decoder_on(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    accumulate: u32,
) -> Arc<Decoder> {
    decoder_with(gpu, shape, precision, Optimizer::default(), accumulate)
}

pub fn decoder_with(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    optimizer: Optimizer,
    accumulate: u32,
) -> Arc<Decoder> {
    decoder_frozen(gpu, shape, precision, optimizer, &[], accumulate)
}

/// In subspaces of so many times fewer directions.
pub fn decoder_lsp(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    compression: u32,
    accumulate: u32,
) -> Arc<Decoder> {
    let lsp = Lsp {
        compression,
        projector: Projector::Random,
    };
    let optimizer = Optimizer::default();
    let subspaces: (&[&str], _) = (&[], Some(lsp));
    Arc::new(decoder_alone(
        gpu, shape, precision, optimizer, subspaces, accumulate,
    ))
}

/// Without training the tensors that these patterns name; behind `!` those that are trained all the same.
pub fn decoder_frozen(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    optimizer: Optimizer,
    patterns: &[&str],
    accumulate: u32,
) -> Arc<Decoder> {
    let plain = (patterns, None);
    Arc::new(decoder_alone(
        gpu, shape, precision, optimizer, plain, accumulate,
    ))
}

/// The same for each of so many ranks, with its own micro-batches.
pub fn decoder_of_ranks(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    optimizer: Optimizer,
    (ranks, accumulate): (u32, u32),
) -> Arc<Decoder> {
    let plain: (&[&str], _) = (&[], None);
    let one = decoder_alone(gpu, shape, precision, optimizer, plain, accumulate);
    Arc::new(one.of_ranks(ranks))
}

/// All of it: what is frozen, in subspaces or not, of one rank.
pub fn decoder_alone(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    optimizer: Optimizer,
    (patterns, lsp): (&[&str], Option<Lsp>),
    accumulate: u32,
) -> Decoder {
    let (on, off): (Vec<&str>, Vec<&str>) = patterns.iter().partition(|p| p.starts_with('!'));
    let off: Vec<String> = off.into_iter().map(str::to_owned).collect();
    let on: Vec<String> = on.into_iter().map(|p| p[1..].to_owned()).collect();
    let options = Options {
        optimizer,
        frozen: lowtide_model::frozen(shape, &off, &on).expect("names of tensors"),
        lsp,
        ..options(gpu, precision, accumulate)
    };
    Decoder::new(shape, &options).expect("a valid shape")
}

/// A decoder whose blocks compute so many of its 24 rows at a time.
pub fn decoder_in_chunks(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    accumulate: u32,
    rows_chunk: u32,
) -> Arc<Decoder> {
    let options = Options {
        rows_chunk,
        ..options(gpu, precision, accumulate)
    };
    Arc::new(Decoder::new(shape, &options).expect("a valid shape"))
}

/// Everything trained by AdamW, in micro-batches of 2 rows of 12 tokens.
fn options(gpu: Option<&Gpu>, precision: Dtype, accumulate: u32) -> Options {
    Options {
        precision,
        gradient: precision,
        optimizer: Optimizer::default(),
        frozen: Vec::new(),
        lsp: None,
        batch: Batch {
            target: 0,
            micro_batch: 2,
            seq: 12,
            accumulate,
        },
        logits_chunk: 16,
        rows_chunk: 0,
        make: make_of(gpu),
        attention: lowtide_kernels::attention::Engine::Own,
    }
}

pub fn machine() -> Machine {
    Machine {
        name: "round figures".into(),
        date: "2026-11-21".into(),
        source: lowtide_planner::Source::Measured,
        note: String::new(),
        matmul_bf16: FlopsPerSecond(1e10),
        matmul_f32: FlopsPerSecond(1e10),
        device_memory: BytesPerSecond(1e10),
        op_overhead: Seconds(1e-5),
        h2d: BytesPerSecond(1e10),
        d2h: BytesPerSecond(1e10),
        copy_overhead: Seconds(1e-6),
        net: None,
        links: None,
        network: None,
        updates: Updates::of(UpdateRate {
            optimizer: Optimizer::default(),
            host: 1e9,
            device: 1e9,
        }),
        host_overhead: Seconds(1e-6),
        disk: None,
        shared: Vec::new(),
        together: Vec::new(),
        device_reserve: Bytes(0),
        host_reserve: Bytes(0),
        cuda: false,
        ops: Default::default(),
    }
}

pub fn micro(seed: u64, rows: usize, seq: usize, vocab: i32) -> Micro {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |n: i32| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % n as u64) as i32
    };
    let n = rows * seq;
    let tokens: Vec<i32> = (0..n).map(|_| next(vocab)).collect();
    let labels = (0..n)
        .map(|_| if next(4) == 0 { -100 } else { next(vocab) })
        .collect();
    // Two documents a row, the second from the middle.
    let half = (seq / 2) as i32;
    let positions = (0..n).map(|i| (i % seq) as i32 % half).collect();
    let doc_start = (0..n)
        .map(|i| if (i % seq) as i32 >= half { half } else { 0 })
        .collect();
    Micro {
        tokens,
        labels,
        positions,
        doc_start,
    }
}

pub fn batch(seed: u64, accumulate: u32) -> Vec<Micro> {
    (0..accumulate)
        .map(|m| micro(seed * 31 + u64::from(m), 2, 12, 61))
        .collect()
}

pub fn hyper(step: u64) -> Hyper {
    Hyper {
        lr: 3e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip_threshold: 1.0,
        decay_rate: -0.8,
        step,
        grad_scale: 1.0,
    }
}

pub fn choice(d: &Decoder, weights: Tier, optimizer: Tier, inputs: Tier) -> Choice {
    let w = d.workload();
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.weights = vec![weights; n];
    c.optimizer = vec![optimizer; n];
    let on_device = optimizer == Tier::Device;
    c.update = vec![
        if on_device {
            Processor::Device
        } else {
            Processor::Host
        };
        n
    ];
    c.inputs = inputs;
    c.gradients = vec![inputs; n];
    c
}

pub fn checked(d: &Decoder, c: &Choice, clip: Clip) -> Arc<Plan> {
    let plan = build(d.workload(), c, clip, Budgets::UNLIMITED, &machine());
    check::check(&plan, d.workload(), clip).unwrap_or_else(|e| panic!("{e}"));
    Arc::new(plan)
}

pub fn rule(mode: Clip) -> ClipRule {
    // Small enough to bite.
    ClipRule {
        mode,
        max_norm: 0.5,
        skip_nonfinite: false,
        spikes: None,
    }
}

pub fn ram_disk(plan: &Plan) -> DiskChoice {
    match plan.tier(Tier::Disk).planned_bytes {
        Bytes(0) => DiskChoice::None,
        bytes => {
            let config = RamConfig {
                weights: vec![1.0, 2.0],
                ..RamConfig::new(bytes)
            };
            DiskChoice::Open(RamDisk::open(&config).expect("memory for a disk").0)
        }
    }
}

pub fn open(d: &Arc<Decoder>, plan: &Arc<Plan>, clip: Clip, options: SessionOptions) -> Session {
    let options = match options.disk {
        DiskChoice::None => SessionOptions {
            disk: ram_disk(plan),
            ..options
        },
        _ => options,
    };
    let mut session = Session::open(Arc::clone(d), Arc::clone(plan), rule(clip), options)
        .expect("memory for a tiny model");
    session
        .homes()
        .expect("staging")
        .initialise(|p, range, out| -> Result<(), TierError> {
            d.first_values(7, p, range, out, |p, range, out| {
                random_init(d.shape(), 7, p, range, out);
                Ok(())
            })
        })
        .expect("weights are written");
    session
}

/// Loss and norm of each step as bits, and the fingerprint of the state after them.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    pub losses: Vec<(u64, u64)>,
    pub state: u64,
}

pub fn train(session: &mut Session, steps: u64, accumulate: u32) -> Trained {
    let mut losses = Vec::new();
    let mut running = None;
    for step in 1..=steps {
        let data = session
            .submit(batch(step, accumulate), hyper(step))
            .expect("submitted");
        if let Some(before) = running.replace(data) {
            let o = session.outcome(&before).expect("the step before is done");
            losses.push((o.loss().to_bits(), o.norm.to_bits()));
        }
    }
    let o = session
        .outcome(&running.expect("one step at least"))
        .expect("done");
    losses.push((o.loss().to_bits(), o.norm.to_bits()));
    session.drain().expect("drained");
    let state = session
        .homes()
        .expect("staging")
        .fingerprint()
        .expect("read")
        .0;
    Trained { losses, state }
}

/// As [`quick`] on a device. Poison makes a GPU wait for every task; without, it runs ahead.
pub fn quick_on(gpu: Option<&Gpu>, poison: bool) -> SessionOptions {
    SessionOptions {
        gpu: gpu.cloned(),
        poison,
        ..quick()
    }
}

pub fn quick() -> SessionOptions {
    SessionOptions {
        threads: 1,
        poison: true,
        ..SessionOptions::default()
    }
}

/// How far copies run ahead: just in time, bounded in two ways, and as far as times ask for; each with what units
/// hand over on the device and on its way.
pub fn ahead(i: usize) -> (lowtide_planner::Ahead, lowtide_planner::Tier) {
    use lowtide_planner::{Ahead, Tier};
    let each = |n| Ahead::each(lowtide_units::Bytes(n));
    let aheads = [Ahead::NONE, each(1 << 14), each(1 << 20), Ahead::UNLIMITED];
    (aheads[i % 4], [Tier::Device, Tier::Host][i / 4 % 2])
}

/// Experts in the MLP's place, of which a token takes three of seven.
pub fn experts(layers: u32) -> ModelShape {
    ModelShape {
        family: Family::Qwen3Moe,
        qkv_bias: false,
        qk_norm: true,
        intermediate: 24,
        experts: Some(Experts {
            count: 7,
            chosen: 3,
            renormalise: true,
        }),
        ..llama(layers, false)
    }
}
