//! What only a GPU shows: the same digits twice, updates on either side, and a training curve that
//! PyTorch is compared with (`reference/curve.py`).

#![allow(
    clippy::print_stderr,
    reason = "what is skipped, and figures worth reading"
)]

mod common;

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use common::{checked, choice, gpu, quick_on};
use lowtide_data::Micro;
use lowtide_device::cuda::{self, CudaError, Gpu, Library, NoDirect, Pace};
use lowtide_device::{Make, Memory};
use lowtide_kernels::attention::Engine;
use lowtide_kernels::update::Hyper;
use lowtide_model::{Decoder, HfWriter, ModelError, Options, random_init};
use lowtide_planner::{Clip, Direct, Saved, Tier};
use lowtide_session::{ClipRule, DiskChoice, Session, SessionError, SessionOptions};
use lowtide_tiers::{Arena, Fill, TierError};
use lowtide_units::{Bytes, BytesPerSecond};
use lowtide_workload::{
    Batch, Dtype, Family, Layers, ModelShape, Objective, Optimizer, Rope, RopeScaling,
};

const BATCH: Batch = Batch {
    target: 0,
    micro_batch: 16,
    seq: 256,
    accumulate: 1,
};

/// A model that learns something from bytes in 300 steps, with sizes that real ones have: heads of
/// 64 numbers, grouped queries.
fn shape() -> ModelShape {
    ModelShape {
        name: "bytes".into(),
        family: Family::Llama,
        vocab: 256,
        hidden: 256,
        intermediate: 704,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        max_positions: 256,
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
        scales: lowtide_workload::Scales::default(),
        parallel: false,
        gelu_by_tanh: false,
        local_rope: None,
        experts: None,
        encoder: None,
        objective: Objective::default(),
        stacks: None,
    }
}

fn open(gpu: &Gpu, attention: Engine) -> Session {
    let options = Options {
        precision: Dtype::Bf16,
        gradient: Dtype::Bf16,
        optimizer: Optimizer::default(),
        frozen: Vec::new(),
        lsp: None,
        batch: BATCH,
        logits_chunk: 0,
        rows_chunk: 0,
        make: Make::Cuda,
        attention,
    };
    let d = Arc::new(Decoder::new(&shape(), &options).expect("a valid shape"));
    let plan = checked(
        &d,
        &choice(&d, Tier::Device, Tier::Device, Tier::Device),
        Clip::Exact,
    );
    let rule = ClipRule {
        mode: Clip::Exact,
        max_norm: 1.0,
        skip_nonfinite: false,
        spikes: None,
    };
    let options = SessionOptions {
        threads: 4,
        ..quick_on(Some(gpu), false)
    };
    let mut session = Session::open(Arc::clone(&d), plan, rule, options).expect("memory");
    session
        .homes()
        .expect("staging")
        .initialise(
            |p, range, out| -> Result<(), Box<dyn Error + Send + Sync>> {
                random_init(&shape(), 1, p, range, out);
                Ok(())
            },
        )
        .expect("weights are written");
    session
}

fn hyper(step: u64) -> Hyper {
    Hyper {
        lr: 1e-3 * (step as f32 / 20.0).min(1.0),
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

/// Windows of a text, drawn by a generator that fits in one line of any language.
fn windows(text: &[u8], step: u64) -> Micro {
    let (b, t) = (BATCH.micro_batch as usize, BATCH.seq as usize);
    let mut micro = Micro {
        tokens: Vec::new(),
        labels: Vec::new(),
        positions: (0..b * t).map(|i| (i % t) as i32).collect(),
        doc_start: vec![0; b * t],
    };
    for row in 0..b as u64 {
        let mixed = (step * 1_000_003 + row * 7919 + 12345) * 2_654_435_761 % (1 << 32);
        let start = mixed as usize % (text.len() - t - 1);
        let window = &text[start..=start + t];
        micro
            .tokens
            .extend(window[..t].iter().map(|&x| i32::from(x)));
        micro
            .labels
            .extend(window[1..].iter().map(|&x| i32::from(x)));
    }
    micro
}

fn losses(session: &mut Session, text: &[u8], steps: u64) -> Vec<f64> {
    let mut all = Vec::new();
    let mut flying = None;
    for step in 1..=steps {
        let data = session
            .submit(vec![windows(text, step)], hyper(step))
            .expect("submitted");
        if let Some(before) = flying.replace(data) {
            all.push(session.outcome(&before).expect("done").loss());
        }
    }
    all.push(
        session
            .outcome(&flying.expect("a step"))
            .expect("done")
            .loss(),
    );
    session.drain().expect("drained");
    all
}

/// Bytes that look like nothing, but not all alike: for tests that need no language.
fn noise() -> Vec<u8> {
    let mut x = 1u64;
    (0..100_000)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 60) as u8 * 3
        })
        .collect()
}

fn digits(losses: &[f64]) -> String {
    losses.iter().fold(String::new(), |mut text, loss| {
        writeln!(text, "{loss:?}").expect("a string grows");
        text
    })
}

/// The file of losses of a kind of machine, `losses/<GPU>.txt`: digits change only when numerics do.
fn kept(gpu: &Gpu) -> PathBuf {
    let name = gpu.name().to_lowercase().replace(' ', "-");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/losses/{name}.txt"))
}

#[test]
fn a_hundred_steps_have_the_same_digits_twice_and_as_kept() {
    let Some(gpu) = gpu() else { return };
    let text = noise();
    for attention in [Engine::Own, Engine::Cudnn] {
        let run = || digits(&losses(&mut open(&gpu, attention), &text, 100));
        let (one, two) = (run(), run());
        assert_eq!(one, two, "{attention:?}");
        if attention == Engine::Own {
            let path = kept(&gpu);
            match std::fs::read_to_string(&path) {
                Ok(want) => assert_eq!(one, want, "{}", path.display()),
                Err(_) => eprintln!("no {}: it would hold\n{one}", path.display()),
            }
        }
    }
}

/// Trains on a text; with `LOWTIDE_CURVE` set to a folder, leaves there what `reference/curve.py`
/// needs to do the same in PyTorch.
#[test]
fn a_small_model_learns_shakespeare() {
    let Some(gpu) = gpu() else { return };
    let path = std::env::var_os("LOWTIDE_SHAKESPEARE").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../../shared/data/text/tinyshakespeare.txt")
        },
        PathBuf::from,
    );
    let Ok(text) = std::fs::read(&path) else {
        eprintln!("skipped: {} is not there", path.display());
        return;
    };
    let mut session = open(&gpu, Engine::Cudnn);
    let out = std::env::var_os("LOWTIDE_CURVE").map(PathBuf::from);
    if let Some(out) = &out {
        let model = out.join("model");
        std::fs::create_dir_all(&model).expect("a folder");
        HfWriter::new(&shape(), Dtype::F32, None)
            .write(&model, |p, range, to| -> Result<(), ModelError> {
                random_init(&shape(), 1, p, range, to);
                Ok(())
            })
            .expect("written");
    }
    let all = losses(&mut session, &text, 300);
    let last: f64 = all[280..].iter().sum::<f64>() / 20.0;
    eprintln!("first {:.4}, mean of the last twenty {last:.4}", all[0]);
    assert!(last < 2.2, "{last}");
    if let Some(out) = &out {
        std::fs::write(out.join("losses.txt"), digits(&all)).expect("written");
    }
}

/// A link that is slowed down for a bench takes as long as it says, both ways at once too, and brings the same bytes.
#[test]
fn a_paced_link_is_as_slow_as_it_says() {
    let Some(gpu) = gpu() else { return };
    const BYTES: u64 = 32 << 20;
    let rate = BytesPerSecond(4e9);
    let pace = Pace {
        h2d: Some(rate),
        d2h: Some(rate),
    };
    let arena = Arena::new(Bytes(2 * BYTES), Fill::Zero).expect("memory");
    let mut host = Memory::pinned(arena, &gpu).expect("pinned");
    let mut device = Memory::cuda(&gpu, Bytes(2 * BYTES)).expect("memory");
    for (i, byte) in host.part(0, BYTES).write::<u8>().iter_mut().enumerate() {
        *byte = (i % 251) as u8;
    }
    let up = cuda::Queue::paced(&gpu, Some(pace)).expect("a stream");
    let down = cuda::Queue::paced(&gpu, Some(pace)).expect("a stream");
    let mut there = host.all().chunks(BYTES as usize);
    let mut here = device.all().chunks(BYTES as usize);
    let mut rounds = |pairs: [usize; 2]| {
        let (first, second) = (there.split_at_mut(1), here.split_at_mut(1));
        let mut jobs = Vec::new();
        if pairs[0] > 0 {
            jobs.push((&up, vec![(second.0[0].again(), first.0[0].src())]));
        }
        if pairs[1] > 0 {
            jobs.push((&down, vec![(first.1[0].again(), second.1[0].src())]));
        }
        let began = Instant::now();
        cuda::copy_rounds(&mut jobs, 5).expect("copies");
        began.elapsed().as_secs_f64() * rate.0 / (5 * BYTES) as f64
    };
    // What a first copy sets up is not the link's time.
    rounds([1, 1]);
    for pairs in [[1, 0], [0, 1], [1, 1]] {
        let over = rounds(pairs);
        assert!(
            (0.999..1.1).contains(&over),
            "{pairs:?}: {over} of the stated time"
        );
    }
    // What the first went up with comes down again.
    cuda::copy_rounds(&mut [(&down, vec![(there[1].again(), here[0].src())])], 1).expect("a copy");
    drop((there, here));
    let bytes = host.all().into_src();
    let bytes = bytes.read::<u8>();
    assert!(
        bytes[..BYTES as usize] == bytes[BYTES as usize..],
        "other bytes"
    );
}

/// On a GPU such a plan runs where cuFile passes no host memory, to the same bits, and is refused with the reason
/// anywhere else.
#[test]
fn a_gpu_that_drives_do_not_reach_refuses_such_a_plan() {
    let Some(gpu) = gpu() else { return };
    let d = common::decoder_on(Some(&gpu), &common::llama(2, true), Dtype::Bf16, 2);
    let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
    let plan = checked(&d, &resident, Clip::Exact);
    let mut session = common::open(&d, &plan, Clip::Exact, quick_on(Some(&gpu), true));
    let want = common::train(&mut session, 3, 2);
    let mut c = choice(&d, Tier::Host, Tier::Host, Tier::Disk);
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
    c.direct = Direct::BOTH;
    let plan = checked(&d, &c, Clip::Exact);
    let dir = tempfile::tempdir().expect("a directory");
    let options = || SessionOptions {
        disk: DiskChoice::Directories(vec![(dir.path().join("a"), 1.0)]),
        ..quick_on(Some(&gpu), true)
    };
    match Session::open(
        Arc::clone(&d),
        Arc::clone(&plan),
        common::rule(Clip::Exact),
        options(),
    ) {
        Err(SessionError::Direct(why)) => {
            let known = match &why {
                // None, one of before CUDA 12.9, or one that is not on or supports nothing here.
                NoDirect::Cuda(CudaError::Library { library, .. }) => *library == Library::Cufile,
                NoDirect::Cuda(CudaError::BadLibrary { path, .. }) => {
                    path.to_string_lossy().contains("cufile")
                }
                NoDirect::Cuda(CudaError::Call { call, what }) => {
                    let codes = ["error 5001 ", "error 5007 ", "error 5008 ", "error 5009 "];
                    call.starts_with("cuFile") && codes.iter().any(|code| what.starts_with(code))
                }
                NoDirect::Compatibility | NoDirect::Unsupported | NoDirect::NoWay => true,
                // A file system without direct I/O.
                NoDirect::Tier(e) => matches!(e, TierError::Backend { .. }),
                NoDirect::Cuda(_) | NoDirect::Changed { .. } => false,
            };
            assert!(known, "cuFile is there and fails: {why}");
            eprintln!("refused: {why}");
        }
        Err(other) => panic!("{other}"),
        Ok(session) => {
            drop(session);
            let mut session = common::open(&d, &plan, Clip::Exact, options());
            assert_eq!(common::train(&mut session, 3, 2), want);
            eprintln!("the drives reach this GPU");
        }
    }
}
