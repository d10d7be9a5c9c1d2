//! Where a tensor lives never changes a number: losses, norms and the whole state after some steps,
//! bit for bit, against everything resident.

mod background;
mod chunks;
mod common;
mod noise;
mod rates;
mod replan;

use std::sync::Arc;

use common::places::{Dice, beside, planned, random, written};
use common::{
    Trained, checked, choice, decoder_frozen, decoder_on, decoder_with, devices, experts, gemma2,
    gemma3, gpt2, gpu, llama, open, quick_on, side_by_side, train, windows,
};
use lowtide_device::cuda::Gpu;
use lowtide_kernels::update::split;
use lowtide_model::{Decoder, random_init};
use lowtide_planner::{Clip, LoopOrder, Pieces, Processor, Saved, Tier};
use lowtide_session::Session;
use lowtide_workload::{Dtype, ModelShape, Moments, Optimizer, OptimizerName};

const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

#[test]
fn placements_do_not_change_a_bit() {
    for gpu in devices() {
        placements(gpu.as_ref());
    }
}

fn placements(gpu: Option<&Gpu>) {
    let mut combinations = 0;
    // Blocks that are not alike too: a window in one, no positions and so another tensor in the other. Of the last
    // ones, which have nothing more that moves, a third of the combinations.
    for (shape, accumulate, thin) in [
        (llama(2, true), 1, 1),
        (llama(2, true), 4, 1),
        (windows(2, false), 2, 1),
        (gemma2(2), 2, 1),
        (gemma3(2), 2, 3),
        (side_by_side(2, false), 2, 3),
        (experts(2), 2, 3),
    ] {
        let d = decoder_on(gpu, &shape, Dtype::Bf16, accumulate);
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = checked(&d, &resident, clip);
            let resident = open(&d, &plan, clip, quick_on(gpu, true));
            let want = train(&mut { resident }, 3, accumulate);
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            let mut i = 0;
            for weights in Tier::ALL {
                for optimizer in Tier::ALL {
                    for inputs in Tier::ALL {
                        for saved in [Saved::Keep, Saved::Recompute] {
                            for order in [LoopOrder::LayerMajor, LoopOrder::BatchMajor] {
                                i += 1;
                                // A third of the combinations for each clipping mode.
                                if i % (3 * thin) != k {
                                    continue;
                                }
                                let mut c = choice(&d, weights, optimizer, inputs);
                                c.saved.iter_mut().for_each(|s| s.fill(saved));
                                c.order = order;
                                (c.ahead, c.carry) = common::ahead(i);
                                if i % 2 == 0 {
                                    c.pieces = Pieces::Split(256);
                                }
                                let plan = checked(&d, &c, clip);
                                // On a GPU every other one runs ahead of the device.
                                let options = quick_on(gpu, i % 2 == 0 || gpu.is_none());
                                let mut session = open(&d, &plan, clip, options);
                                let got = train(&mut session, 3, accumulate);
                                assert_eq!(got, want, "{c:?} {clip:?} M {accumulate} {gpu:?}");
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

#[test]
fn any_way_of_any_tensor_trains_to_the_same_bits() {
    for gpu in devices() {
        any_way(gpu.as_ref());
    }
}

fn any_way(gpu: Option<&Gpu>) {
    let (accumulate, steps) = (2, 3);
    // Each on a GPU takes its weights there and back.
    let draws = if gpu.is_some() { 4 } else { 34 };
    let mut dice = Dice(0x5eed_1234);
    let mut sum = 0;
    for precision in [Dtype::Bf16, Dtype::F32] {
        let d = decoder_on(gpu, &llama(2, true), precision, accumulate);
        for clip in CLIPS {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = planned(&d, &resident, clip, &beside(1e9));
            let mut session = open(&d, &plan, clip, quick_on(gpu, true));
            let want = train(&mut session, steps, accumulate);
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            for _ in 0..draws {
                let c = random(&d, &mut dice);
                let drive = [1e9, 1e7, 1e6][dice.below(3)];
                let plan = planned(&d, &c, clip, &beside(drive));
                sum += written(&plan);
                let mut session = open(&d, &plan, clip, quick_on(gpu, true));
                let got = train(&mut session, steps, accumulate);
                assert_eq!(got, want, "{precision:?} {clip:?} {drive} {c:?} {gpu:?}");
            }
        }
    }
    let least = 15 * draws;
    assert!(
        sum > least,
        "{sum} tensors were written in {} plans",
        6 * draws
    );
}

/// Frozen parameters stay as they are, wherever they live, and what is trained is the same bits as with everything
/// resident. A first step without clipping makes of it what it makes where everything is trained.
#[test]
fn frozen_parameters_stay_and_the_rest_may_live_anywhere() {
    for gpu in devices() {
        frozen(gpu.as_ref());
    }
}

fn frozen(gpu: Option<&Gpu>) {
    let mut normed = llama(2, false);
    normed.qk_norm = true;
    let cases: [(ModelShape, &[&str]); 6] = [
        (llama(3, true), &["model.embed_tokens", "model.layers.0"]),
        (
            llama(2, false),
            &[
                "*",
                "!model.layers.1.mlp",
                "!*v_proj.bias",
                "!*q_proj.bias",
                "!*k_proj.bias",
            ],
        ),
        (normed, &["*norm*", "lm_head"]),
        (
            gpt2(2, true),
            &["transformer.wpe", "*.ln_1", "*c_fc.weight"],
        ),
        (gpt2(2, false), &["transformer.wte", "*.bias", "*ln_*"]),
        (llama(2, false), &["*", "!lm_head"]),
    ];
    let mut combinations = 0;
    for (n, (shape, patterns)) in cases.iter().enumerate() {
        let accumulate = [1, 3][n % 2];
        let optimizer = Optimizer::default();
        let d = decoder_frozen(gpu, shape, Dtype::Bf16, optimizer, patterns, accumulate);
        let all = decoder_on(gpu, shape, Dtype::Bf16, accumulate);
        first_step_is_that_of_all(gpu, &d, &all, accumulate);
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = checked(&d, &resident, clip);
            let want = train(
                &mut open(&d, &plan, clip, quick_on(gpu, true)),
                3,
                accumulate,
            );
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            let mut i = 0;
            for weights in Tier::ALL {
                for optimizer in Tier::ALL {
                    for inputs in Tier::ALL {
                        i += 1;
                        if i % 3 != k {
                            continue;
                        }
                        let mut c = choice(&d, weights, optimizer, inputs);
                        let saved = [Saved::Keep, Saved::Recompute, Saved::Host][(i + n) % 3];
                        c.saved.iter_mut().for_each(|s| s.fill(saved));
                        c.order = [LoopOrder::LayerMajor, LoopOrder::BatchMajor][(i + n) % 2];
                        if accumulate == 3 && i % 4 == 0 {
                            (c.round, c.order) = (2, LoopOrder::LayerMajor);
                        }
                        (c.ahead, c.carry) = common::ahead(i + n);
                        if i % 2 == 0 {
                            c.pieces = Pieces::Split(256);
                        }
                        let plan = checked(&d, &c, clip);
                        let options = quick_on(gpu, i % 2 == 0 || gpu.is_none());
                        let mut session = open(&d, &plan, clip, options);
                        let got = train(&mut session, 3, accumulate);
                        assert_eq!(got, want, "{patterns:?} {c:?} {clip:?} {gpu:?}");
                        stays(&d, &mut session);
                        combinations += 1;
                    }
                }
            }
        }
    }
    assert!(combinations > 150, "{combinations}");
}

/// Frozen weights are those that the run began with.
fn stays(d: &Arc<Decoder>, session: &mut Session) {
    let homes = session.homes().expect("staging");
    for (p, param) in d.workload().params.pairs().filter(|(_, p)| p.frozen) {
        let (mut began, mut now) = (vec![0.0; param.elements as usize], Vec::new());
        random_init(d.shape(), 7, p, 0..param.elements, &mut began);
        now.resize(began.len(), 0.0);
        homes.weights(p, 0..param.elements, &mut now).expect("read");
        let rounded = began.iter().map(|&x| split(x).0).map(widened);
        assert!(rounded.eq(now), "{}", param.name);
    }
}

fn widened(high: u16) -> f32 {
    f32::from_bits(u32::from(high) << 16)
}

fn first_step_is_that_of_all(
    gpu: Option<&Gpu>,
    some: &Arc<Decoder>,
    all: &Arc<Decoder>,
    accumulate: u32,
) {
    let [mut some, mut all] = [some, all].map(|d| {
        let resident = choice(d, Tier::Device, Tier::Device, Tier::Device);
        let plan = checked(d, &resident, Clip::None);
        let mut session = open(d, &plan, Clip::None, quick_on(gpu, true));
        train(&mut session, 1, accumulate);
        session
    });
    let d = Arc::clone(some.decoder());
    let w = d.workload();
    let (some, all) = (
        some.homes().expect("staging"),
        all.homes().expect("staging"),
    );
    for (p, param) in w.params.pairs().filter(|(_, p)| !p.frozen) {
        for spec in w.arrays(param) {
            let entries = spec.entries(param);
            let [mut x, mut y] = [0u8, 1].map(|fill| vec![fill; (entries * spec.size()) as usize]);
            some.read(p, spec.role, 0..entries, &mut x).expect("read");
            all.read(p, spec.role, 0..entries, &mut y).expect("read");
            assert!(x == y, "{} of {}", spec.role.name(), param.name);
        }
    }
}

/// Weights and optimizer state in two versions on disk: the same bits, wherever copies of weights
/// stay and updates run.
#[test]
fn durable_state_does_not_change_a_bit() {
    for gpu in devices() {
        durable(gpu.as_ref());
    }
}

fn durable(gpu: Option<&Gpu>) {
    let shape = llama(2, true);
    let mut combinations = 0;
    for accumulate in [1, 3] {
        let d = decoder_on(gpu, &shape, Dtype::Bf16, accumulate);
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = checked(&d, &resident, clip);
            let mut session = open(&d, &plan, clip, quick_on(gpu, true));
            let want = train(&mut session, 4, accumulate);
            let mut i = 0;
            for weights in Tier::ALL {
                for update in [Processor::Host, Processor::Device] {
                    for inputs in Tier::ALL {
                        for order in [LoopOrder::LayerMajor, LoopOrder::BatchMajor] {
                            i += 1;
                            // A third of the combinations for each clipping mode.
                            if (i + accumulate as usize) % 3 != k {
                                continue;
                            }
                            let mut c = choice(&d, weights, Tier::Disk, inputs);
                            c.make_durable();
                            c.update.fill(update);
                            c.order = order;
                            (c.ahead, c.carry) = common::ahead(i);
                            if i % 5 < 2 {
                                c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
                            }
                            if i % 2 == 0 {
                                c.pieces = Pieces::Split(256);
                            }
                            let plan = checked(&d, &c, clip);
                            let options = quick_on(gpu, i % 2 == 0 || gpu.is_none());
                            let mut session = open(&d, &plan, clip, options);
                            let got = train(&mut session, 4, accumulate);
                            assert_eq!(got, want, "{c:?} {clip:?} M {accumulate} {gpu:?}");
                            combinations += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(combinations >= 70, "{combinations}");
}

/// On a GPU an update runs on the host, on the device with its state there, or on the device with
/// its state fetched and sent back: the same bits. Runs ahead of the device and in turn alike, and
/// twice the same.
#[test]
fn the_place_of_an_update_does_not_change_a_bit() {
    let Some(gpu) = gpu() else { return };
    let shape = llama(3, false);
    for (clip, by) in CLIPS
        .into_iter()
        .flat_map(|clip| Optimizer::all().map(move |by| (clip, by)))
    {
        for precision in [Dtype::Bf16, Dtype::F32] {
            let d = decoder_with(Some(&gpu), &shape, precision, by, 2);
            let run = |update, optimizer, weights, poison| {
                let mut c = choice(&d, weights, optimizer, Tier::Host);
                c.update.fill(update);
                let plan = checked(&d, &c, clip);
                let mut session = open(&d, &plan, clip, quick_on(Some(&gpu), poison));
                train(&mut session, 20, 2)
            };
            let want = run(Processor::Host, Tier::Host, Tier::Host, true);
            for update in [Processor::Host, Processor::Device] {
                for (optimizer, weights) in [
                    (Tier::Device, Tier::Device),
                    (Tier::Host, Tier::Device),
                    (Tier::Host, Tier::Host),
                    (Tier::Disk, Tier::Host),
                    (Tier::Disk, Tier::Disk),
                ] {
                    if update == Processor::Host && optimizer == Tier::Device {
                        continue; // the host does not reach state on the device
                    }
                    let got = run(update, optimizer, weights, false);
                    assert_eq!(
                        got, want,
                        "{update:?} {optimizer} {weights} {clip:?} {by:?}"
                    );
                }
            }
        }
    }
}

/// The same for every optimizer and every storage of its moments: state on every tier, updates on host and device,
/// pieces cut both ways, each with other numbers of threads. Kinds of moments differ among each other.
#[test]
fn placements_do_not_change_a_bit_of_small_moments() {
    for gpu in devices() {
        for precision in [Dtype::Bf16, Dtype::F32] {
            let all: Vec<Trained> = Optimizer::all()
                .map(|by| small_moments(gpu.as_ref(), precision, by))
                .collect();
            for (i, a) in all.iter().enumerate() {
                for b in &all[..i] {
                    assert_ne!(a.state, b.state, "{precision:?}");
                    assert_ne!(a.losses, b.losses, "{precision:?}");
                }
            }
        }
    }
}

fn small_moments(gpu: Option<&Gpu>, precision: Dtype, by: Optimizer) -> Trained {
    let shape = llama(2, true);
    let d = decoder_with(gpu, &shape, precision, by, 2);
    let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
    let resident = checked(&d, &resident, Clip::Exact);
    let want = train(
        &mut open(&d, &resident, Clip::Exact, quick_on(gpu, true)),
        4,
        2,
    );
    assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
    for (i, (optimizer, update)) in [
        (Tier::Device, Processor::Device),
        (Tier::Host, Processor::Host),
        (Tier::Host, Processor::Device),
        (Tier::Disk, Processor::Host),
        (Tier::Disk, Processor::Device),
    ]
    .into_iter()
    .enumerate()
    {
        for pieces in [Pieces::Unit, Pieces::Split(256)] {
            let weights = Tier::ALL[i % 3];
            let mut c = choice(&d, weights, optimizer, Tier::Host);
            c.update.fill(update);
            c.pieces = pieces;
            let plan = checked(&d, &c, Clip::Exact);
            let mut options = quick_on(gpu, true);
            options.threads = 1 + i;
            let got = train(&mut open(&d, &plan, Clip::Exact, options), 4, 2);
            assert_eq!(got, want, "{c:?} {precision:?} {by:?} {gpu:?}");
        }
    }
    want
}

/// Moments of fewer bits train to nearly the same loss: over the last ten of a hundred steps on the
/// same batches, the means differ by less than the bound, in parts of the way that f32 went.
#[test]
fn small_moments_learn_as_f32_does() {
    let learned = |by: Optimizer| {
        let d = decoder_with(None, &llama(2, true), Dtype::Bf16, by, 1);
        let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
        let plan = checked(&d, &resident, Clip::Exact);
        let mut session = open(&d, &plan, Clip::Exact, quick_on(None, false));
        let losses: Vec<f64> = (1..=100)
            .map(|step| {
                // Four batches in turn: small enough to be learned by heart.
                let data = session
                    .submit(common::batch(step % 4, 1), common::hyper(step))
                    .expect("submitted");
                session.drain().expect("drained");
                session.outcome(&data).expect("done").loss()
            })
            .collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        (mean(&losses[..4]), mean(&losses[90..]))
    };
    let factored = Optimizer {
        name: OptimizerName::Adafactor,
        ..Optimizer::default()
    };
    let (first, last) = learned(factored);
    assert!(last < 0.5 * first, "Adafactor: {first} to {last}");
    for (name, bounds) in [
        (OptimizerName::AdamW, [0.005, 0.01]),
        (OptimizerName::Lion, [0.01, 0.02]),
    ] {
        let with = |moments| Optimizer { name, moments };
        let (first, want) = learned(with(Moments::F32));
        assert!(
            want < 0.5 * first,
            "{name:?}: {first} to {want}, nothing was learned"
        );
        for (moments, bound) in [Moments::Bf16, Moments::Int8].into_iter().zip(bounds) {
            let (_, got) = learned(with(moments));
            let off = (got - want).abs() / (first - want);
            assert!(
                off < bound,
                "{name:?} {moments:?}: {got} for {want} from {first}, {off} off"
            );
        }
    }
}
