//! Training in subspaces in whole runs: the same bits wherever anything lives and whatever the order, exact training
//! where the projectors are the identity, and a checker that finds what would read a weight of before.

use std::sync::Arc;

use crate::common::{
    Trained, batch, checked, choice, decoder_alone, decoder_lsp, decoder_on, devices, gpt2, hyper,
    llama, open, quick, quick_on, train,
};
use lowtide_device::cuda::Gpu;
use lowtide_executor::{Mode, Trace};
use lowtide_kernels::update::Hyper;
use lowtide_model::Decoder;
use lowtide_planner::{
    Arg, Choice, Clip, LoopOrder, Machine, PartName, Phase, Pieces, Plan, Processor, Saved, SlotId,
    Task, Tensor, Tier, Use, Work, check,
};
use lowtide_session::{Session, SessionOptions};
use lowtide_trainer::inside::Resident;
use lowtide_units::Bytes;
use lowtide_workload::{
    Dtype, Lsp, ModelShape, Optimizer, ParamKind, Projector, UnitKind, Workload,
};

const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

/// All that lives somewhere, by count: weights, state, gradients and inputs by tier; what of activations; loop; pieces;
/// rounds; how far ahead.
fn place(d: &Decoder, i: usize) -> Choice {
    let tiers = Tier::ALL;
    let (weights, optimizer) = (tiers[i % 3], tiers[i / 3 % 3]);
    let mut c = choice(d, weights, optimizer, tiers[i / 9 % 3]);
    let saved = [Saved::Keep, Saved::Recompute, Saved::Host, Saved::Disk][i % 4];
    c.saved.iter_mut().for_each(|s| s.fill(saved));
    c.order = [LoopOrder::LayerMajor, LoopOrder::BatchMajor][i / 2 % 2];
    if i.is_multiple_of(5) {
        (c.round, c.order) = (2, LoopOrder::LayerMajor);
    }
    if i % 4 == 1 {
        // State that lives elsewhere passes through the device for its update.
        c.update.fill(Processor::Device);
    }
    (c.ahead, c.carry) = crate::common::ahead(i);
    if i.is_multiple_of(2) {
        c.pieces = Pieces::Split(256);
    }
    if !i.is_multiple_of(3) {
        // Bases stay on the device alone, of each second unit.
        c.bases = (0..c.weights.len())
            .map(|u| (u + i / 6).is_multiple_of(2))
            .collect();
    }
    c
}

#[test]
fn placements_do_not_change_a_bit() {
    for gpu in devices() {
        placements(gpu.as_ref());
    }
}

fn decoder_lsp_frozen(
    gpu: Option<&Gpu>,
    shape: &ModelShape,
    precision: Dtype,
    freeze: &[&str],
    accumulate: u32,
) -> Arc<Decoder> {
    let lsp = Lsp {
        compression: 4,
        projector: Projector::Random,
    };
    let subspaces = (freeze, Some(lsp));
    let optimizer = Optimizer::default();
    Arc::new(decoder_alone(
        gpu, shape, precision, optimizer, subspaces, accumulate,
    ))
}

fn placements(gpu: Option<&Gpu>) {
    let mut combinations = 0;
    for (n, shape) in [llama(2, true), gpt2(2, false)].iter().enumerate() {
        for (precision, accumulate) in [(Dtype::Bf16, 3), (Dtype::F32, 1)] {
            // Of the second model some is frozen: a matrix that would have a base, and others.
            let freeze: &[&str] = match n {
                0 => &[],
                _ => &[
                    "transformer.h.0.attn.c_attn",
                    "transformer.wpe",
                    "transformer.h.1.ln_2",
                ],
            };
            let d = decoder_lsp_frozen(gpu, shape, precision, freeze, accumulate);
            let bases = d
                .workload()
                .params
                .iter()
                .filter(|p| p.kind == ParamKind::Base);
            assert_eq!(bases.count(), 8 - n);
            for (k, clip) in CLIPS.into_iter().enumerate() {
                let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
                let plan = checked(&d, &resident, clip);
                let mut session = open(&d, &plan, clip, quick_on(gpu, true));
                let began = constants(&mut session);
                let want = train(&mut session, 3, accumulate);
                assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
                for i in (0..54).filter(|i| (i + n) % 3 == k) {
                    let c = place(&d, i);
                    let plan = checked(&d, &c, clip);
                    // On a GPU every other one runs ahead of the device; on the CPU with other numbers of threads.
                    let options = SessionOptions {
                        threads: 1 + i % 3,
                        ..quick_on(gpu, i % 2 == 0 || gpu.is_none())
                    };
                    let mut session = open(&d, &plan, clip, options);
                    let got = train(&mut session, 3, accumulate);
                    assert_eq!(got, want, "{} {c:?} {clip:?} {gpu:?}", shape.name);
                    assert!(
                        constants(&mut session) == began,
                        "{c:?}: a constant was written"
                    );
                    combinations += 1;
                }
            }
        }
    }
    assert!(combinations >= 200, "{combinations}");
}

/// Bases and projectors.
fn constants(session: &mut Session) -> Vec<f32> {
    let d = Arc::clone(session.decoder());
    let homes = session.homes().expect("staging");
    let mut all = Vec::new();
    for (p, param) in d.workload().params.pairs() {
        if matches!(param.kind, ParamKind::Base | ParamKind::Projector) {
            let mut numbers = vec![0.0; param.elements as usize];
            homes
                .weights(p, 0..param.elements, &mut numbers)
                .expect("read");
            all.append(&mut numbers);
        }
    }
    assert!(all.iter().any(|&x| x != 0.0));
    all
}

#[test]
fn every_order_gives_the_same_bits() {
    let d = decoder_lsp(None, &llama(2, true), Dtype::Bf16, 4, 2);
    for (k, clip) in CLIPS.into_iter().enumerate() {
        let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
        let want = train(
            &mut open(&d, &checked(&d, &resident, clip), clip, quick()),
            3,
            2,
        );
        for i in [1, 4, 7, 10, 14, 22] {
            let plan = checked(&d, &place(&d, i + k), clip);
            for seed in 0..12 {
                let options = SessionOptions {
                    mode: Mode::Shuffled(seed),
                    ..quick()
                };
                let got = train(&mut open(&d, &plan, clip, options), 3, 2);
                assert_eq!(got, want, "place {} seed {seed}", i + k);
            }
        }
    }
}

/// Losses of twenty steps without weight decay.
fn twenty(d: &Arc<Decoder>) -> Vec<f64> {
    let resident = choice(d, Tier::Device, Tier::Device, Tier::Device);
    let plan = checked(d, &resident, Clip::Exact);
    let mut session = open(d, &plan, Clip::Exact, quick());
    let steps = 1..=20;
    let losses = steps.map(|step| {
        let hyper = Hyper {
            weight_decay: 0.0,
            ..hyper(step)
        };
        let data = session
            .submit(batch(step % 4, 1), hyper)
            .expect("submitted");
        session.outcome(&data).expect("done").loss()
    });
    losses.collect()
}

/// Projectors that are the identity leave nothing of the subspaces but roundings; those of half the directions are
/// another training.
#[test]
fn identity_projectors_are_exact_training() {
    for shape in [llama(2, false), gpt2(2, true)] {
        let exact = twenty(&decoder_on(None, &shape, Dtype::F32, 1));
        let far = |compression| {
            let got = twenty(&decoder_lsp(None, &shape, Dtype::F32, compression, 1));
            let each = got.iter().zip(&exact).map(|(a, b)| (a - b).abs() / b);
            each.fold(0.0, f64::max)
        };
        let (whole, half) = (far(1), far(2));
        assert!(whole < 1e-5, "{}: {whole:e}", shape.name);
        assert!(half > 1e-3, "{}: {half:e}", shape.name);
        assert!(exact[19] < exact[3], "it learns: {exact:?}");
    }
}

/// Whether a task computes an operation of this name.
fn is(w: &Workload, task: &Task, name: &str) -> bool {
    let Work::Compute {
        unit, phase, op, ..
    } = task.work
    else {
        return false;
    };
    let unit = &w.units[unit as usize];
    let ops = match phase {
        Phase::Forward | Phase::Recompute => &unit.forward,
        Phase::Backward => &unit.backward,
        Phase::Evaluate => &unit.evaluate,
        Phase::Infer => &unit.infer,
    };
    unit.kind == UnitKind::Block && ops[op].name == name
}

/// Plans that would read a weight which was made of another core than the newest, or before the newest was there.
#[test]
fn a_stale_weight_is_found() {
    let d = decoder_lsp(None, &llama(2, true), Dtype::Bf16, 4, 2);
    let w = d.workload();
    let good = checked(&d, &place(&d, 4), Clip::Previous);
    let refused = |what: &str, plan: &Plan| {
        let found = check::check(plan, w, Clip::Previous);
        assert!(found.is_err(), "let go: {what}");
    };
    let find = |name: &str, from: usize| {
        let tasks = good.part(PartName::Steady).pairs();
        let mut of = tasks.filter(|(_, t)| is(w, t, name)).map(|(i, _)| i);
        of.nth(from).expect("it is in the plan")
    };

    // Backward reads the weight that forward made in the same visit of the same unit, or in another one's.
    let visit = |task: &Task| match task.work {
        Work::Compute {
            unit,
            phase,
            micro_batch,
            ..
        } => (unit, phase, micro_batch),
        _ => unreachable!("an operation"),
    };
    let steady = good.part(PartName::Steady);
    let all = |name: &'static str| steady.pairs().filter(move |(_, t)| is(w, t, name));
    let (mut own, mut others) = (0, 0);
    for (user, task) in all("qkv.input") {
        let (unit, _, micro) = visit(task);
        for (_, made) in all("qkv.made") {
            let (from_unit, phase, from_micro) = visit(made);
            if phase == Phase::Backward || made.args[0].slot == task.args[2].slot {
                continue;
            }
            let mut plan = Plan::clone(&good);
            plan.parts[PartName::Steady][user].args[2] = Arg {
                access: Use::Read,
                ..made.args[0]
            };
            refused("backward reads forward's weight", &plan);
            match (unit, micro) == (from_unit, from_micro) {
                true => own += 1,
                false => others += 1,
            }
        }
    }
    // Two blocks and two micro-batches; a block may be computed again.
    assert!(
        own >= 4 && others >= 4,
        "{own} of its own, {others} of others"
    );

    // It is not made.
    for n in 0..4 {
        let mut plan = Plan::clone(&good);
        let made = find("gate_up.made", n);
        plan.parts[PartName::Steady][made].args.remove(0);
        refused("a weight is not made", &plan);
    }

    // Its core or its projector is those of another matrix.
    let core = |plan: &Plan, name: &str| plan.part(PartName::Steady)[find(name, 0)].args[1];
    let mut plan = Plan::clone(&good);
    let made = find("qkv.made", 0);
    plan.parts[PartName::Steady][made].args[1] = core(&good, "gate_up.made");
    refused("another matrix's core", &plan);

    // Who makes a weight does not wait for who brings its core: it may be made of another than the newest. (An update
    // waits for the gradient, which the same lane makes behind its last reader, so it has no edge of its own to
    // that.)
    let mut without = 0;
    for i in [0, 4, 7, 15, 22] {
        let good = checked(&d, &place(&d, i), Clip::Previous);
        let steady = good.part(PartName::Steady);
        let parts = ["qkv", "o", "gate_up", "down"];
        let makes = |t: &Task| parts.iter().any(|n| is(w, t, &format!("{n}.made")));
        for (at, task) in steady.pairs().filter(|(_, t)| makes(t)) {
            let of_core = task.args[1..].iter();
            let of_core = of_core.filter(|a| match good.slots[a.slot].tensor {
                Tensor::Weight(p) => !good.pieces[p].frozen,
                _ => false,
            });
            let slots: Vec<SlotId> = of_core.map(|a| a.slot).collect();
            for (k, &before) in task.after.iter().enumerate() {
                let mut written = steady[before].args.iter();
                if !written.any(|a| a.access != Use::Read && slots.contains(&a.slot)) {
                    continue;
                }
                let mut plan = Plan::clone(&good);
                plan.parts[PartName::Steady][at].after.remove(k);
                let found = check::check(&plan, w, Clip::Previous);
                assert!(found.is_err(), "let go: place {i}, task {at:?}");
                without += 1;
            }
        }
    }
    assert!(without > 20, "{without}");
}

/// Every task of a plan done wrong in every way is found, or is known to be right.
#[test]
fn mutants_of_its_tasks_are_found() {
    let d = decoder_lsp(None, &llama(2, true), Dtype::Bf16, 4, 2);
    let mut let_go = 0;
    for (i, clip) in [(4, Clip::Exact), (15, Clip::Previous)] {
        let good = checked(&d, &place(&d, i), clip);
        for mutant in crate::mutation::mutants(&good) {
            if check::check(&mutant.plan, d.workload(), clip).is_ok() {
                let why = mutant.equivalent(d.workload());
                assert!(why.is_some(), "let go: {mutant}");
                let_go += 1;
            }
        }
    }
    assert!(let_go > 0);
}

/// What the export needs to make matrices, the largest factor in f32, is part of the memory that is reported.
#[test]
fn the_memory_of_an_export_is_counted() {
    let d = decoder_lsp(None, &llama(2, true), Dtype::Bf16, 4, 1);
    let w = d.workload();
    let plan = checked(&d, &place(&d, 4), Clip::None);
    // A reserve that what the process holds by now does not show beside.
    let machine = Machine {
        host_reserve: Bytes(1 << 40),
        ..crate::common::machine()
    };
    let count = |w: &Workload| Resident::count((&plan, 1), w, &machine, Trace::NONE, &[]).beside;
    let mut exact = w.clone();
    exact
        .params
        .iter_mut()
        .for_each(|p| p.kind = ParamKind::Own);
    let largest = w.params.iter().filter(|p| p.kind == ParamKind::Core);
    let largest = largest.map(|p| p.elements).max().expect("cores");
    assert_eq!(count(w) - count(&exact), Bytes(4 * largest));
}

/// Losses and state do not depend on which of two runs of the same is looked at; another seed's projectors train to
/// other numbers.
#[test]
fn projectors_are_of_the_seed() {
    let d = decoder_lsp(None, &llama(1, false), Dtype::Bf16, 4, 1);
    let plan = checked(
        &d,
        &choice(&d, Tier::Host, Tier::Host, Tier::Host),
        Clip::None,
    );
    let run = |seed: u64| -> Trained {
        let mut session = open(&d, &plan, Clip::None, quick());
        let homes = session.homes().expect("staging");
        let filled = homes.initialise(|p, range, out| {
            d.first_values(seed, p, range, out, |p, range, out| {
                lowtide_model::random_init(d.shape(), 7, p, range, out);
                Ok::<(), lowtide_tiers::TierError>(())
            })
        });
        filled.expect("weights are written");
        train(&mut session, 2, 1)
    };
    assert_eq!(run(7), run(7));
    let (a, b) = (run(7), run(8));
    assert_eq!(
        a.losses[0].0, b.losses[0].0,
        "the first loss is the model's own"
    );
    assert_ne!(a.losses[1], b.losses[1]);
}
