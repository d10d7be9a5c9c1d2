//! Where a tensor lives never changes a number: losses, norms and the whole state after some steps,
//! bit for bit, against everything resident.

mod common;

use common::{checked, choice, decoder, llama, open, quick, train};
use lowtide_planner::{Clip, LoopOrder, Pieces, Saved, Tier};
use lowtide_workload::Dtype;

const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

#[test]
fn placements_do_not_change_a_bit() {
    let shape = llama(2, true);
    let mut combinations = 0;
    for accumulate in [1, 4] {
        let d = decoder(&shape, Dtype::Bf16, accumulate);
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = checked(&d, &resident, clip);
            let want = train(&mut open(&d, &plan, clip, quick()), 3, accumulate);
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            let mut i = 0;
            for weights in Tier::ALL {
                for optimizer in Tier::ALL {
                    for inputs in Tier::ALL {
                        for saved in [Saved::Keep, Saved::Recompute] {
                            for order in [LoopOrder::LayerMajor, LoopOrder::BatchMajor] {
                                i += 1;
                                // A third of the combinations for each clipping mode.
                                if i % 3 != k {
                                    continue;
                                }
                                let mut c = choice(&d, weights, optimizer, inputs);
                                c.saved.iter_mut().for_each(|s| s.fill(saved));
                                c.order = order;
                                c.prefetch = (i % 4) as u8;
                                if i % 2 == 0 {
                                    c.pieces = Pieces::Split(256);
                                }
                                let plan = checked(&d, &c, clip);
                                let mut session = open(&d, &plan, clip, quick());
                                let got = train(&mut session, 3, accumulate);
                                assert_eq!(got, want, "{c:?} {clip:?} M {accumulate}");
                                combinations += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(combinations >= 100, "{combinations}");
}
