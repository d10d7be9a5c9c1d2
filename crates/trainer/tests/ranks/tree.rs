//! Gradients that add up in a tree: the same bits on every number of ranks, wherever tensors live.

use std::sync::Arc;

use lowtide_device::cuda::Gpu;
use lowtide_executor::Mode;
use lowtide_model::Decoder;
use lowtide_planner::{Choice, Clip, LoopOrder, Pieces, Processor, Saved, Tier};
use lowtide_session::{DiskChoice, Group, SessionOptions};
use lowtide_workload::{Dtype, ModelShape, Moments, Optimizer, OptimizerName};

use crate::common::{
    Trained, ahead, batch, checked, choice, decoder_alone, llama, open, quick, train,
};
use crate::{CLIPS, adamw, gpus, opened};

const STEPS: u64 = 2;

/// Of so many ranks with so many micro-batches together, whose gradients add up in a tree of so many leaves.
fn decoder_in_a_tree(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    optimizer: Optimizer,
    (ranks, batch, leaves): (u32, u32, u32),
) -> Arc<Decoder> {
    let plain: (&[&str], _) = (&[], None);
    let one = decoder_alone(gpu, shape, precision, optimizer, plain, batch / ranks);
    Arc::new(one.of_ranks(ranks).in_a_tree(leaves))
}

/// What so many ranks learn of a batch, and the loss of another one.
fn learned(d: &Arc<Decoder>, c: &Choice, clip: Clip, mode: Mode) -> (Trained, u64) {
    let plan = checked(d, c, clip);
    let micro_batches = plan.accumulate * plan.ranks;
    let (mut session, _dir) = opened(d, &plan, clip, mode);
    let trained = train(&mut session, STEPS, micro_batches);
    let loss = session
        .evaluate(batch(9, micro_batches))
        .expect("evaluated");
    (trained, loss.loss().to_bits())
}

/// A choice for a number of ranks, another one for each `i`. Of several sums a rank visits unit by unit, in rounds that
/// begin and add to each of them.
fn placed(d: &Decoder, i: usize) -> Choice {
    let w = d.workload();
    let tier = |k: usize| Tier::ALL[(i / k) % 3];
    let mut c = choice(d, tier(1), tier(3), tier(2));
    let saved = [Saved::Keep, Saved::Recompute, Saved::Host][i % 3];
    c.saved.iter_mut().for_each(|s| s.fill(saved));
    let sums = w.sums();
    c.order = match i % 2 == 1 && sums == 1 {
        true => LoopOrder::BatchMajor,
        false => LoopOrder::LayerMajor,
    };
    if i.is_multiple_of(2) && w.batch.accumulate > sums {
        c.round = sums;
    }
    if i % 4 == 1 {
        c.update.fill(Processor::Device);
    }
    (c.ahead, c.carry) = ahead(i);
    if i % 3 == 1 {
        c.pieces = Pieces::Split(256);
    }
    c
}

#[test]
fn a_tree_has_the_same_bits_on_every_number_of_ranks() {
    let int8 = adamw(Moments::Int8);
    let lion = Optimizer {
        name: OptimizerName::Lion,
        ..Optimizer::default()
    };
    let mut combinations = 0;
    for (n, (micro_batches, leaves, precision, optimizer, tied)) in [
        (2, 2, Dtype::Bf16, adamw(Moments::F32), true),
        (4, 4, Dtype::F32, int8, true),
        (4, 4, Dtype::Bf16, lion, false),
        (12, 4, Dtype::Bf16, adamw(Moments::Bf16), true),
        (6, 2, Dtype::F32, adamw(Moments::F32), false),
    ]
    .into_iter()
    .enumerate()
    {
        let shape = llama(2, tied);
        let of = |ranks: u32, leaves: u32| {
            let cut = (ranks, micro_batches, leaves);
            decoder_in_a_tree(None, &shape, precision, optimizer, cut)
        };
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let one = of(1, leaves);
            let resident = choice(&one, Tier::Device, Tier::Device, Tier::Device);
            let want = learned(&one, &resident, clip, Mode::Threads);
            assert!(
                want.0
                    .losses
                    .iter()
                    .all(|l| f64::from_bits(l.0).is_finite())
            );
            for ranks in [1, 2, 4].into_iter().filter(|r| leaves % r == 0) {
                let d = of(ranks, leaves);
                for i in [0, 1].map(|i| 3 * (k + n) + 4 * i + ranks as usize) {
                    let c = placed(&d, i);
                    let got = learned(&d, &c, clip, Mode::Threads);
                    assert_eq!(got, want, "{c:?} {clip:?} {ranks} ranks of {micro_batches}");
                    combinations += 1;
                }
            }
            // In order other ranks have other sums, so equal bits are the tree's.
            if leaves == 4 {
                let bits = |ranks: u32| {
                    let d = of(ranks, 1);
                    let c = choice(&d, Tier::Host, Tier::Host, Tier::Host);
                    learned(&d, &c, clip, Mode::Threads).0.losses
                };
                assert_ne!(bits(1), bits(2), "{clip:?}");
            }
        }
    }
    assert!(combinations >= 60, "{combinations}");
}

#[test]
fn every_order_of_a_tree_gives_the_same_bits() {
    for ranks in [1, 2] {
        let cut = (ranks, 4, 4);
        let (shape, optimizer) = (llama(1, true), Optimizer::default());
        let d = decoder_in_a_tree(None, &shape, Dtype::Bf16, optimizer, cut);
        let c = choice(&d, Tier::Host, Tier::Host, Tier::Host);
        let want = learned(&d, &c, Clip::Exact, Mode::Threads);
        for seed in 0..6 {
            let got = learned(&d, &c, Clip::Exact, Mode::Shuffled(seed));
            assert_eq!(got, want, "seed {seed} of {ranks} ranks");
        }
    }
}

/// On GPUs as on the CPU: two with NCCL between them, and four, have the bits of one with all micro-batches.
#[test]
fn a_tree_has_the_same_bits_on_one_gpu_and_on_several() {
    let (shape, optimizer) = (llama(2, true), Optimizer::default());
    let on = |gpu: &Gpu, cut| decoder_in_a_tree(Some(gpu), &shape, Dtype::Bf16, optimizer, cut);
    for (ranks, micro_batches, leaves) in [(2, 2, 2), (2, 8, 4), (4, 4, 4)] {
        let Some(group) = gpus(ranks) else { continue };
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let learned = |ranks: u32, group: Option<&Group>, i: Option<usize>, poison| {
                let gpu = &group_gpu(&group, ranks);
                let d = on(gpu, (ranks, micro_batches, leaves));
                let c = match i {
                    None => choice(&d, Tier::Device, Tier::Device, Tier::Device),
                    Some(i) => placed(&d, i),
                };
                let plan = checked(&d, &c, clip);
                let dir = tempfile::tempdir().expect("a folder");
                let disk = match plan.tier(Tier::Disk).planned_bytes.0 {
                    0 => DiskChoice::None,
                    _ => DiskChoice::Directories(vec![(dir.path().to_owned(), 1.0)]),
                };
                let options = SessionOptions {
                    disk,
                    gpu: (ranks == 1).then(|| gpu.clone()),
                    group: group.cloned(),
                    poison,
                    ..quick()
                };
                train(&mut open(&d, &plan, clip, options), STEPS, micro_batches)
            };
            let want = learned(1, None, None, false);
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            for i in [None, Some(k), Some(k + 4), Some(k + 8)] {
                let poison = i.is_some_and(|i| i % 2 == 0);
                let one = learned(1, None, i, poison);
                assert_eq!(one, want, "one GPU {i:?} {clip:?}");
                let several = learned(ranks, Some(&group), i, poison);
                assert_eq!(several, want, "{ranks} GPUs {i:?} {clip:?}");
            }
        }
    }
}

/// The first GPU of a group, or of this machine.
fn group_gpu(group: &Option<&Group>, ranks: u32) -> Gpu {
    match group {
        Some(group) if ranks > 1 => group.gpus[0].clone(),
        _ => Gpu::open(0).expect("a GPU that was there"),
    }
}
