//! Tensors with a learning rate or a decay of their own: one step is that of a run whose every tensor has the rate, and
//! the bits are the same wherever anything lives.

use std::sync::Arc;

use lowtide_device::cuda::Gpu;
use lowtide_kernels::update::Hyper;
use lowtide_model::{Decoder, Rate, RateGroup};
use lowtide_planner::{Choice, Clip, Tier};
use lowtide_workload::{Dtype, Moments, Optimizer, OptimizerName};

use crate::common::{
    batch, checked, choice, decoder_alone, devices, hyper, llama, open, quick_on, train,
};

const ACCUMULATE: u32 = 2;
const SHARE: f64 = 0.25;
const DECAY: f64 = 0.5;

/// The first block at a quarter of the rate; of the rest, norms that decay.
fn groups() -> Vec<RateGroup> {
    let group = |name: &str, share, weight_decay| RateGroup {
        names: vec![name.to_owned()],
        rate: Rate {
            share,
            weight_decay,
        },
    };
    vec![
        group("model.layers.0", SHARE, None),
        group("*norm*", 1.0, Some(DECAY)),
    ]
}

fn decoder(
    gpu: Option<&Gpu>,
    precision: Dtype,
    optimizer: Optimizer,
    groups: &[RateGroup],
) -> Arc<Decoder> {
    let plain: (&[&str], _) = (&[], None);
    let shape = llama(2, true);
    let one = decoder_alone(gpu, &shape, precision, optimizer, plain, ACCUMULATE);
    Arc::new(one.rates(groups))
}

/// Every parameter before the first step and after it.
fn stepped(gpu: Option<&Gpu>, d: &Arc<Decoder>, c: &Choice, hyper: Hyper) -> [Vec<Vec<f32>>; 2] {
    let plan = checked(d, c, Clip::Exact);
    let mut session = open(d, &plan, Clip::Exact, quick_on(gpu, true));
    let read = |session: &mut lowtide_session::Session| {
        session.drain().expect("drained");
        let homes = session.homes().expect("staging");
        let params = d.workload().params.pairs();
        let each = params.map(|(p, param)| {
            let mut numbers = vec![0.0; param.elements as usize];
            let all = 0..param.elements;
            homes.weights(p, all, &mut numbers).expect("read");
            numbers
        });
        each.collect::<Vec<_>>()
    };
    let before = read(&mut session);
    let data = session
        .submit(batch(1, ACCUMULATE), hyper)
        .expect("submitted");
    session.outcome(&data).expect("done");
    [before, read(&mut session)]
}

#[test]
fn a_group_is_updated_as_in_a_run_of_its_rate() {
    for gpu in devices() {
        let gpu = gpu.as_ref();
        for &name in OptimizerName::ALL {
            let optimizer = Optimizer {
                name,
                moments: Moments::F32,
            };
            let own = decoder(gpu, Dtype::F32, optimizer, &groups());
            let plain = decoder(gpu, Dtype::F32, optimizer, &[]);
            let resident = choice(&own, Tier::Device, Tier::Device, Tier::Device);
            let usual = hyper(1);
            let lower = Hyper {
                lr: (f64::from(usual.lr) * SHARE) as f32,
                ..usual
            };
            let [before, got] = stepped(gpu, &own, &resident, usual);
            let [_, at_usual] = stepped(gpu, &plain, &resident, usual);
            let [_, at_lower] = stepped(gpu, &plain, &resident, lower);
            let mut seen = [0; 3];
            for (p, param) in own.workload().params.pairs() {
                let i = p.0 as usize;
                let rate = own.rate(p);
                if rate.share < 1.0 {
                    assert!(got[i] == at_lower[i], "{name:?} {}", param.name);
                    assert!(got[i] != at_usual[i], "{name:?} {}", param.name);
                    seen[0] += 1;
                } else if rate.weight_decay.is_none() {
                    assert!(got[i] == at_usual[i], "{name:?} {}", param.name);
                    seen[1] += 1;
                } else {
                    // A norm does not decay in the other runs: its decay is the difference.
                    let decay = f64::from(usual.lr) * DECAY;
                    for ((a, b), x) in got[i].iter().zip(&at_usual[i]).zip(&before[i]) {
                        let want = f64::from(*b) - decay * f64::from(*x);
                        assert!((f64::from(*a) - want).abs() < 3e-7, "{a} is not {want}");
                        assert!((a - b).abs() > 1e-4, "{name:?} {} decays", param.name);
                    }
                    seen[2] += 1;
                }
            }
            assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
        }
    }
}

#[test]
fn rates_of_groups_give_the_same_bits_everywhere() {
    for gpu in devices() {
        let gpu = gpu.as_ref();
        let optimizers = [
            (OptimizerName::AdamW, Moments::Int8),
            (OptimizerName::AdamW, Moments::Bf16),
            (OptimizerName::Adafactor, Moments::F32),
        ];
        for (name, moments) in optimizers {
            let d = decoder(gpu, Dtype::Bf16, Optimizer { name, moments }, &groups());
            let of = |c: &Choice| {
                let plan = checked(&d, c, Clip::Exact);
                let mut session = open(&d, &plan, Clip::Exact, quick_on(gpu, true));
                train(&mut session, 3, ACCUMULATE)
            };
            let want = of(&choice(&d, Tier::Device, Tier::Device, Tier::Device));
            let mut mixed = choice(&d, Tier::Host, Tier::Host, Tier::Host);
            mixed.update[1] = lowtide_planner::Processor::Device;
            for c in [choice(&d, Tier::Host, Tier::Disk, Tier::Host), mixed] {
                assert_eq!(of(&c), want, "{name:?} {moments:?}");
            }
        }
    }
}

/// Each rank updates its share of every tensor: the bits of one process, whose gradients add up in the same tree.
#[test]
fn shares_of_ranks_have_their_tensors_rates() {
    let of = |ranks: u32| {
        let plain: (&[&str], _) = (&[], None);
        let shape = llama(2, true);
        let (optimizer, accumulate) = (Optimizer::default(), 2 / ranks);
        let one = decoder_alone(None, &shape, Dtype::Bf16, optimizer, plain, accumulate);
        let d = Arc::new(one.of_ranks(ranks).in_a_tree(2).rates(&groups()));
        let plan = checked(
            &d,
            &choice(&d, Tier::Host, Tier::Host, Tier::Host),
            Clip::Exact,
        );
        let mut session = open(&d, &plan, Clip::Exact, quick_on(None, true));
        train(&mut session, 3, 2)
    };
    assert_eq!(of(2), of(1));
}
