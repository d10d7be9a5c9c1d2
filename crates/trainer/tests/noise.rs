//! Noise on embeddings (NEFTune): the same bits wherever anything lives, however a batch is cut and on every number of
//! ranks; and none of it outside of training.

use std::sync::Arc;

use lowtide_device::cuda::Gpu;
use lowtide_model::Decoder;
use lowtide_planner::{Choice, Clip, Saved, Tier};
use lowtide_workload::{Dtype, ModelShape, Optimizer};

use crate::common::{
    Trained, batch, checked, choice, decoder_alone, devices, gemma2, gpt2, llama, open, quick_on,
    train,
};

/// In rounds of two there are some between the first and the last.
const BATCH: u32 = 8;

/// Of so many ranks, whose gradients add up in a tree.
fn decoder(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    ranks: u32,
    (alpha, seed): (f64, u64),
) -> Arc<Decoder> {
    let plain: (&[&str], _) = (&[], None);
    let (optimizer, accumulate) = (Optimizer::default(), BATCH / ranks);
    let one = decoder_alone(gpu, shape, Dtype::Bf16, optimizer, plain, accumulate);
    Arc::new(one.of_ranks(ranks).in_a_tree(2).neftune(alpha, seed))
}

/// What three steps learn; and of the weights before them the loss of an evaluation.
fn learned(gpu: Option<&Gpu>, d: &Arc<Decoder>, c: &Choice) -> (Trained, u64) {
    let plan = checked(d, c, Clip::Exact);
    let mut session = open(d, &plan, Clip::Exact, quick_on(gpu, true));
    let loss = session.evaluate(batch(9, BATCH)).expect("evaluated").loss();
    (train(&mut session, 3, BATCH), loss.to_bits())
}

#[test]
fn noise_is_the_same_everywhere_and_in_training_alone() {
    for gpu in devices() {
        let gpu = gpu.as_ref();
        for shape in [llama(2, true), gpt2(2, true), gemma2(2)] {
            let resident = |d: &Decoder| choice(d, Tier::Device, Tier::Device, Tier::Device);
            let of = |noise| {
                let d = decoder(gpu, &shape, 1, noise);
                learned(gpu, &d, &resident(&d))
            };
            let want = of((5.0, 1));
            let mut away = {
                let d = decoder(gpu, &shape, 1, (5.0, 1));
                choice(&d, Tier::Host, Tier::Disk, Tier::Host)
            };
            away.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
            let mut rounds = away.clone();
            rounds.round = 2;
            for c in [away, rounds] {
                let d = decoder(gpu, &shape, 1, (5.0, 1));
                assert_eq!(learned(gpu, &d, &c), want, "{shape:?} {c:?}");
            }
            let none = of((0.0, 1));
            assert_eq!(none.1, want.1, "an evaluation has no noise");
            for (what, other) in [
                ("no noise", none),
                ("less noise", of((1.0, 1))),
                ("another seed", of((5.0, 2))),
            ] {
                assert_ne!(other.0.losses[0], want.0.losses[0], "{what}");
            }
            if gpu.is_none() {
                let two = decoder(None, &shape, 2, (5.0, 1));
                let c = choice(&two, Tier::Host, Tier::Host, Tier::Host);
                assert_eq!(learned(None, &two, &c), want, "two ranks");
            }
        }
    }
}
