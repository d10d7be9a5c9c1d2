//! Training models of two stacks: every place and order gives the same bits, on every device, and one learns to write
//! a sequence backward.

use std::sync::Arc;

use crate::common::{checked, choice, devices, hyper, make_of, open, quick, quick_on, rule};
use lowtide_data::Micro;
use lowtide_device::cuda::Gpu;
use lowtide_executor::Mode;
use lowtide_kernels::update::Hyper;
use lowtide_model::{Decoder, Options};
use lowtide_planner::{Choice, Clip, LoopOrder, Pieces, Saved, Tier};
use lowtide_session::{Session, SessionOptions};
use lowtide_tiers::TierError;
use lowtide_workload::{
    Batch, Dtype, Family, Layers, ModelShape, Objective, Optimizer, Scales, Stacks,
};

fn t5(layers: u32, tied: bool, gated: bool, vocab: u32) -> ModelShape {
    let hidden = 32;
    ModelShape {
        name: "tiny".into(),
        family: Family::T5,
        vocab,
        hidden,
        intermediate: 64,
        layers,
        heads: 4,
        kv_heads: 4,
        head_dim: 8,
        max_positions: 1 << 20,
        norm_eps: 1e-6,
        tied,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        rope: None,
        window: None,
        unrotated: Layers::default(),
        scales: Scales {
            attention: Some(1.0),
            logits_divisor: if tied { f64::from(hidden).sqrt() } else { 1.0 },
            ..Scales::default()
        },
        parallel: false,
        gelu_by_tanh: false,
        local_rope: None,
        experts: None,
        encoder: None,
        objective: Objective::default(),
        stacks: Some(Stacks {
            encoder: layers,
            buckets: 16,
            distance: 32,
            gated,
        }),
    }
}

fn decoder(gpu: Option<&Gpu>, shape: &ModelShape, precision: Dtype, batch: Batch) -> Arc<Decoder> {
    let options = Options {
        precision,
        gradient: precision,
        optimizer: Optimizer::default(),
        frozen: Vec::new(),
        lsp: None,
        batch,
        logits_chunk: 0,
        rows_chunk: 0,
        make: make_of(gpu),
        attention: lowtide_kernels::attention::Engine::Own,
    };
    Arc::new(Decoder::new(shape, &options).expect("sizes go together"))
}

/// Numbers below others, by an index.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

const START: i32 = 0;
const END: i32 = 1;

/// Pairs of source and target in rows of them, as inputs: all sources, then all targets.
fn micro(rows: &[Vec<(Vec<i32>, Vec<i32>)>], seq: usize, target: usize) -> Micro {
    let mut m = Micro {
        tokens: Vec::new(),
        labels: Vec::new(),
        positions: Vec::new(),
        doc_start: Vec::new(),
    };
    let mut row = |documents: Vec<(Vec<i32>, Vec<i32>)>, len: usize| {
        let mut at = 0;
        let used: usize = documents.iter().map(|d| d.0.len()).sum();
        let rest = (vec![0; len - used], vec![-100; len - used]);
        for (tokens, labels) in documents.into_iter().chain([rest]) {
            m.positions.extend(0..tokens.len() as i32);
            m.doc_start.extend(std::iter::repeat_n(at, tokens.len()));
            at += tokens.len() as i32;
            m.tokens.extend(tokens);
            m.labels.extend(labels);
        }
    };
    for pairs in rows {
        let sources = pairs.iter().map(|(s, _)| (s.clone(), vec![-100; s.len()]));
        row(sources.collect(), seq);
    }
    for pairs in rows {
        let shifted = |t: &[i32]| [&[START], &t[..t.len() - 1]].concat();
        let targets = pairs.iter().map(|(_, t)| (shifted(t), t.clone()));
        row(targets.collect(), target);
    }
    m
}

const SEQ: usize = 11;
const TARGET: usize = 9;

/// A batch of rows of two pairs and of one, with room left.
fn packed(seed: u64, accumulate: u32) -> Vec<Micro> {
    let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut pair = |s: usize, t: usize| {
        let mut some = |n: usize| (0..n).map(|_| 2 + draw.below(59) as i32).collect();
        (some(s), some(t))
    };
    (0..accumulate)
        .map(|m| {
            let rows = [
                vec![pair(5, 3), pair(4, 4)],
                vec![pair(9 + m as usize % 2, 8)],
            ];
            micro(&rows, SEQ, TARGET)
        })
        .collect()
}

fn of_packed(accumulate: u32) -> Batch {
    Batch {
        target: TARGET as u32,
        micro_batch: 2,
        seq: SEQ as u32,
        accumulate,
    }
}

/// Losses and norms of three steps, an evaluation's loss, a step after it, and the state behind them, as bits.
fn show(session: &mut Session, accumulate: u32) -> (Vec<u64>, u64) {
    let mut bits = Vec::new();
    for step in 1..=4 {
        let data = session
            .submit(packed(step, accumulate), hyper(step))
            .expect("submitted");
        if step >= 3 {
            session.drain().expect("drained");
            let o = session.outcome(&data).expect("done");
            bits.extend([o.loss().to_bits(), o.norm.to_bits()]);
            let evaluated = session.evaluate(packed(9, accumulate)).expect("a loss");
            bits.push(evaluated.loss().to_bits());
        }
    }
    let homes = session.homes().expect("staging");
    (bits, homes.fingerprint().expect("read").0)
}

/// Everything moves: on the host and on disk, in both loop orders, in rounds, in pieces, all kinds of saved tensors.
fn ways(d: &Decoder) -> Vec<Choice> {
    let tiers = [Tier::Host, Tier::Disk];
    let each = |k: usize| {
        let mut c = choice(d, tiers[k % 2], tiers[k / 2 % 2], tiers[(k + 1) % 2]);
        let ways = [Saved::Host, Saved::Recompute, Saved::Keep, Saved::Disk];
        for saved in &mut c.saved {
            let each = saved.iter_mut().enumerate();
            each.for_each(|(i, s)| *s = ways[(i + k) % 4]);
        }
        (c.ahead, c.carry) = crate::common::ahead(k);
        c.order = [LoopOrder::LayerMajor, LoopOrder::BatchMajor][k % 2];
        if k == 2 {
            c.round = 2;
        }
        if k == 3 {
            c.pieces = Pieces::Split(256);
        }
        if k == 4 {
            c.make_durable();
        }
        c
    };
    (0..5).map(each).collect()
}

#[test]
fn two_stacks_train_to_the_same_bits_everywhere() {
    // Each way on its threads in one of the cases, and in a shuffled order in the other.
    let cases = [(true, Dtype::Bf16, 5), (false, Dtype::F32, 2)];
    for gpu in devices() {
        for (n, case) in cases.into_iter().enumerate() {
            the_same_bits(gpu.as_ref(), n, case);
        }
    }
}

fn the_same_bits(gpu: Option<&Gpu>, n: usize, (tied, precision, accumulate): (bool, Dtype, u32)) {
    let shape = t5(2, tied, !tied, 61);
    let d = decoder(gpu, &shape, precision, of_packed(accumulate));
    let clip = Clip::Exact;
    let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
    let run = |c: &Choice, mode: Mode| {
        let options = SessionOptions {
            mode,
            ..quick_on(gpu, true)
        };
        let mut session = open(&d, &checked(&d, c, clip), clip, options);
        show(&mut session, accumulate)
    };
    let want = run(&resident, Mode::Threads);
    assert!(want.0.iter().all(|&l| f64::from_bits(l).is_finite()));
    for (k, c) in ways(&d).iter().enumerate() {
        let mode = match (k + n) % 2 {
            _ if gpu.is_some() => Mode::Threads,
            0 => Mode::Threads,
            _ => Mode::Shuffled(k as u64),
        };
        assert_eq!(run(c, mode), want, "{mode:?} {c:?}");
    }
}

/// Rows of one pair each: some tokens, and these backward.
const LETTERS: usize = 4;
const LEN: usize = LETTERS + 1;

fn backward(seed: u64, rows: usize) -> Vec<(Vec<i32>, Vec<i32>)> {
    let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..rows)
        .map(|_| {
            let mut letters: Vec<i32> = (0..LETTERS).map(|_| 2 + draw.below(10) as i32).collect();
            let source = [&letters[..], &[END]].concat();
            letters.reverse();
            (source, [&letters[..], &[END]].concat())
        })
        .collect()
}

/// Answers by the most likely token, one after the other.
fn answers(session: &mut Session, sources: &[Vec<i32>], vocab: usize) -> Vec<Vec<i32>> {
    let mut all = vec![vec![-1; LEN]; sources.len()];
    for t in 0..LEN {
        let pairs = sources.iter().zip(&all);
        let rows: Vec<_> = pairs
            .map(|(s, t)| vec![(s.clone(), t.iter().map(|&t| t.max(0)).collect())])
            .collect();
        let mut inputs = micro(&rows, LEN, LEN);
        let first = sources.len() * LEN;
        inputs.labels.fill(-100);
        (0..sources.len()).for_each(|row| inputs.labels[first + row * LEN + t] = 0);
        let logits = session.infer(inputs).expect("logits").logits;
        for (answer, row) in all.iter_mut().zip(logits.chunks_exact(vocab)) {
            let most = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            answer[t] = most.expect("a vocabulary").0 as i32;
        }
    }
    all
}

#[test]
fn two_stacks_learn_to_write_backward() {
    const ROWS: usize = 32;
    const STEPS: u64 = 250;
    let shape = t5(1, true, false, 12);
    let batch = Batch {
        target: LEN as u32,
        micro_batch: ROWS as u32,
        seq: LEN as u32,
        accumulate: 1,
    };
    let d = decoder(None, &shape, Dtype::F32, batch);
    let plan = checked(
        &d,
        &choice(&d, Tier::Host, Tier::Host, Tier::Host),
        Clip::Exact,
    );
    let options = SessionOptions {
        poison: false,
        ..quick()
    };
    let mut session =
        Session::open(Arc::clone(&d), plan, rule(Clip::Exact), options).expect("room");
    let homes = session.homes().expect("staging");
    let filled = homes.initialise(|p, range, out| -> Result<(), TierError> {
        lowtide_model::random_init(&shape, 3, p, range, out);
        Ok(())
    });
    filled.expect("weights are written");
    drop(homes);
    for step in 1..=STEPS {
        let rows: Vec<_> = backward(step, ROWS).into_iter().map(|p| vec![p]).collect();
        let left = (STEPS - step) as f32 / (0.4 * STEPS as f32);
        let lr = 0.01 * (step as f32 / 20.0).min(left).min(1.0);
        let hyper = Hyper {
            lr,
            weight_decay: 0.0,
            ..hyper(step)
        };
        let data = session.submit(vec![micro(&rows, LEN, LEN)], hyper);
        drop(data.expect("submitted"));
    }
    session.drain().expect("drained");
    let (mut right, mut asked) = (0, 0);
    for seed in 1000..1004 {
        let (sources, want): (Vec<_>, Vec<_>) = backward(seed, ROWS).into_iter().unzip();
        let have = answers(&mut session, &sources, 12);
        right += have.iter().zip(&want).filter(|(a, b)| a == b).count();
        asked += want.len();
    }
    assert!(right * 100 >= asked * 95, "{right} of {asked} are right");
}
