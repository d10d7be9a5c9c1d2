//! A batch cut into rounds trains to the same bits as the whole batch at once, wherever tensors live and
//! in every order that the edges allow.

use std::sync::Arc;

use crate::common::{batch, checked, choice, decoder, gpt2, hyper, llama, open, quick};
use lowtide_executor::Mode;
use lowtide_model::Decoder;
use lowtide_planner::{Choice, Clip, PartName, Pieces, Saved, Tier};
use lowtide_session::{Session, SessionOptions};
use lowtide_workload::Dtype;

const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];
/// Micro-batches of a batch: with rounds of one, two and three the last is whole, short, short.
const ACCUMULATE: u32 = 7;

/// Losses and norms of four steps, the loss of an evaluation and the state, as bits.
fn show(session: &mut Session) -> Vec<u64> {
    let mut shown = Vec::new();
    for steps in [1..=3, 4..=4] {
        let running: Vec<_> = steps
            .map(|step| session.submit(batch(step, ACCUMULATE), hyper(step)))
            .collect::<Result<_, _>>()
            .expect("submitted");
        session.drain().expect("drained");
        for data in running {
            let o = data.peek();
            assert_eq!(o.losses.len(), ACCUMULATE as usize);
            shown.extend([o.loss().to_bits(), o.norm.to_bits()]);
        }
        let o = session.evaluate(batch(9, ACCUMULATE)).expect("evaluated");
        assert_eq!(o.losses.len(), ACCUMULATE as usize);
        assert_eq!(o.right.len(), ACCUMULATE as usize);
        shown.extend(o.right.iter().copied().map(u64::from));
        shown.push(o.loss().to_bits());
        let homes = session.homes().expect("staging");
        shown.push(homes.fingerprint().expect("read").0);
    }
    shown
}

fn run(d: &Arc<Decoder>, c: &Choice, clip: Clip, options: SessionOptions) -> Vec<u64> {
    let plan = checked(d, c, clip);
    let cut = !plan.rounds().one();
    assert_eq!(cut, !plan.part(PartName::Last).is_empty());
    show(&mut open(d, &plan, clip, options))
}

/// Everything on the device; offloaded; in turn on all tiers; durable.
fn homes(d: &Decoder, round: u32) -> Vec<Choice> {
    let mut offloaded = choice(d, Tier::Host, Tier::Disk, Tier::Host);
    offloaded
        .saved
        .iter_mut()
        .for_each(|s| s.fill(Saved::Recompute));
    (offloaded.ahead, offloaded.carry) = crate::common::ahead(6);
    let mut mixed = choice(d, Tier::Disk, Tier::Disk, Tier::Disk);
    let ways = [Saved::Host, Saved::Disk, Saved::Keep, Saved::Recompute];
    for saved in &mut mixed.saved {
        (saved.iter_mut().enumerate()).for_each(|(i, s)| *s = ways[i % 4]);
    }
    mixed.pieces = Pieces::Split(256);
    mixed.gradients = (0..mixed.gradients.len())
        .map(|u| Tier::ALL[u % 3])
        .collect();
    let mut durable = offloaded.clone();
    durable.make_durable();
    let mut all = vec![
        choice(d, Tier::Device, Tier::Device, Tier::Device),
        offloaded,
        mixed,
        durable,
    ];
    all.iter_mut().for_each(|c| c.round = round);
    all
}

#[test]
fn rounds_train_to_the_same_bits() {
    for shape in [llama(2, true), llama(2, false), gpt2(2, true)] {
        for precision in [Dtype::Bf16, Dtype::F32] {
            let d = decoder(&shape, precision, ACCUMULATE);
            for clip in CLIPS {
                let whole = choice(&d, Tier::Device, Tier::Device, Tier::Device);
                let want = run(&d, &whole, clip, quick());
                for round in 1..=4 {
                    for c in homes(&d, round) {
                        let got = run(&d, &c, clip, quick());
                        assert_eq!(got, want, "{shape:?} {precision:?} {clip:?} {c:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_order_of_rounds_gives_the_same_bits() {
    let d = decoder(&llama(2, true), Dtype::Bf16, ACCUMULATE);
    let whole = choice(&d, Tier::Device, Tier::Device, Tier::Device);
    for clip in CLIPS {
        let want = run(&d, &whole, clip, quick());
        for seed in 0..24 {
            let all = homes(&d, 1 + seed as u32 % 3);
            let c = &all[seed as usize / 3 % all.len()];
            let mode = Mode::Shuffled(seed);
            let got = run(&d, c, clip, SessionOptions { mode, ..quick() });
            assert_eq!(got, want, "seed {seed} {clip:?} {c:?}");
        }
    }
}
