//! Blocks that compute their rows in chunks: the same bits wherever tensors live, and nearly those of all rows at once.

use crate::common::places::{Dice, beside, planned, random};
use crate::common::{
    checked, choice, decoder_in_chunks, decoder_on, devices, gemma2, gpt2, llama, open, quick_on,
    side_by_side, train,
};
use lowtide_device::cuda::Gpu;
use lowtide_planner::{Clip, LoopOrder, Pieces, Saved, Tier};
use lowtide_workload::Dtype;

/// 24 rows in 16 and 8: the first chunk ends inside of the second sequence.
const ROWS: u32 = 16;
const ACCUMULATE: u32 = 2;
const STEPS: u64 = 3;

#[test]
fn chunks_train_to_the_same_bits_everywhere() {
    for gpu in devices() {
        everywhere(gpu.as_ref());
    }
}

fn everywhere(gpu: Option<&Gpu>) {
    let mut dice = Dice(0x0c_4a5e);
    let mut combinations = 0;
    for (shape, precision) in [
        (llama(2, true), Dtype::Bf16),
        (llama(2, false), Dtype::F32),
        (gpt2(2, true), Dtype::Bf16),
        (gemma2(2), Dtype::Bf16),
        (side_by_side(2, false), Dtype::Bf16),
    ] {
        let d = decoder_in_chunks(gpu, &shape, precision, ACCUMULATE, ROWS);
        assert_eq!(d.rows_chunk(), Some(u64::from(ROWS)));
        let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
        let plan = checked(&d, &resident, Clip::Exact);
        let want = train(
            &mut open(&d, &plan, Clip::Exact, quick_on(gpu, true)),
            STEPS,
            ACCUMULATE,
        );
        // All rows at once have other bits, and nearly the same losses.
        let whole = decoder_on(gpu, &shape, precision, ACCUMULATE);
        let plan = checked(
            &whole,
            &choice(&whole, Tier::Device, Tier::Device, Tier::Device),
            Clip::Exact,
        );
        let other = train(
            &mut open(&whole, &plan, Clip::Exact, quick_on(gpu, true)),
            STEPS,
            ACCUMULATE,
        );
        for (a, b) in want.losses.iter().zip(&other.losses) {
            let (a, b) = (f64::from_bits(a.0), f64::from_bits(b.0));
            let limit = if precision == Dtype::F32 { 1e-6 } else { 2e-3 };
            assert!((a - b).abs() <= limit * b.abs(), "{a} in chunks, {b} whole");
        }
        // In bf16 a gradient is rounded to fewer digits than the order of its sum shows in.
        assert!(
            precision == Dtype::Bf16 || want != other,
            "a sum in the same order"
        );

        let mut choices = Vec::new();
        for (i, (weights, optimizer)) in Tier::ALL
            .into_iter()
            .flat_map(|w| Tier::ALL.map(|o| (w, o)))
            .enumerate()
        {
            let mut c = choice(&d, weights, optimizer, Tier::ALL[i % 3]);
            let saved = [Saved::Keep, Saved::Recompute, Saved::Host, Saved::Disk][i % 4];
            c.saved.iter_mut().for_each(|s| s.fill(saved));
            c.order = [LoopOrder::LayerMajor, LoopOrder::BatchMajor][i % 2];
            if i % 3 == 0 {
                c.pieces = Pieces::Split(256);
            }
            (c.ahead, c.carry) = crate::common::ahead(i);
            choices.push(c);
        }
        let draws = if gpu.is_some() { 3 } else { 6 };
        choices.extend((0..draws).map(|_| random(&d, &mut dice)));
        for (i, c) in choices.iter().enumerate() {
            let plan = planned(&d, c, Clip::Exact, &beside(1e9));
            let options = quick_on(gpu, i % 2 == 0 || gpu.is_none());
            let got = train(
                &mut open(&d, &plan, Clip::Exact, options),
                STEPS,
                ACCUMULATE,
            );
            assert_eq!(got, want, "{precision:?} {c:?} {gpu:?}");
            combinations += 1;
        }
    }
    assert!(combinations >= 60, "{combinations}");
}
