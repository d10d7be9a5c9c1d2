//! Several ranks make a step together: the same bits wherever tensors live, in every order that the edges allow, and
//! from run to run; what one rank has learned, any number of ranks goes on with.

mod common;
#[path = "ranks/launched.rs"]
mod launched;
#[path = "ranks/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Trained, batch, checked, choice, decoder_of_ranks, hyper, llama, open, quick, rule, train,
};
use lowtide_device::comm::{CommError, Fault, Faulty};
use lowtide_device::cuda::Gpu;
use lowtide_executor::{ExecError, Mode};
use lowtide_model::Decoder;
use lowtide_planner::{Choice, Clip, LoopOrder, Pieces, Plan, Processor, Saved, Tier};
use lowtide_session::{DiskChoice, Group, Session, SessionOptions};
use lowtide_tiers::TierError;
use lowtide_workload::{Dtype, Moments, Optimizer, OptimizerName};
use tempfile::TempDir;

const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

fn adamw(moments: Moments) -> Optimizer {
    Optimizer {
        moments,
        ..Optimizer::default()
    }
}

fn tiny(ranks: u32, accumulate: u32, precision: Dtype, optimizer: Optimizer) -> Arc<Decoder> {
    let shape = llama(2, true);
    decoder_of_ranks(None, &shape, precision, optimizer, (ranks, accumulate))
}

/// A session of a plan, whose extents are in a folder that is gone with it.
fn opened(d: &Arc<Decoder>, plan: &Arc<Plan>, clip: Clip, mode: Mode) -> (Session, TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let disk = match plan.tier(Tier::Disk).planned_bytes.0 {
        0 => DiskChoice::None,
        _ => DiskChoice::Directories(vec![(dir.path().to_owned(), 1.0)]),
    };
    let options = SessionOptions {
        disk,
        mode,
        watchdog: Duration::from_secs(60),
        ..quick()
    };
    (open(d, plan, clip, options), dir)
}

/// A decoder for the ranks of a group.
fn on(group: &Group, ranks: u32, accumulate: u32) -> Arc<Decoder> {
    let gpu = group.gpus.first();
    let many = (ranks, accumulate);
    decoder_of_ranks(
        gpu,
        &llama(2, true),
        Dtype::Bf16,
        Optimizer::default(),
        many,
    )
}

fn trained(d: &Arc<Decoder>, c: &Choice, clip: Clip, steps: u64) -> Trained {
    let plan = checked(d, c, clip);
    let (mut session, _dir) = opened(d, &plan, clip, Mode::Threads);
    train(&mut session, steps, plan.accumulate * plan.ranks)
}

#[test]
fn placements_of_several_ranks_do_not_change_a_bit() {
    let mut combinations = 0;
    let moments = [Moments::F32, Moments::Bf16, Moments::Int8];
    for (n, (ranks, accumulate)) in [(2, 1), (2, 3), (4, 2)].into_iter().enumerate() {
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let optimizer = match (n + k) % 4 {
                3 => Optimizer {
                    name: OptimizerName::Lion,
                    ..Optimizer::default()
                },
                m => adamw(moments[m]),
            };
            let precision = [Dtype::Bf16, Dtype::Bf16, Dtype::F32][(n + 2 * k) % 3];
            let d = tiny(ranks, accumulate, precision, optimizer);
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let want = trained(&d, &resident, clip, 3);
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            assert_eq!(trained(&d, &resident, clip, 3), want, "from run to run");
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
                        c.order = [LoopOrder::LayerMajor, LoopOrder::BatchMajor][(i / 3 + n) % 2];
                        if accumulate == 3 && i % 2 == 0 {
                            (c.round, c.order) = (1, LoopOrder::LayerMajor);
                        }
                        if i % 4 == 1 {
                            c.update.fill(Processor::Device);
                        }
                        (c.ahead, c.carry) = common::ahead(i + n);
                        if i % 2 == 1 {
                            c.pieces = Pieces::Split(256);
                        }
                        let got = trained(&d, &c, clip, 3);
                        assert_eq!(got, want, "{c:?} {clip:?} {ranks} ranks M {accumulate}");
                        combinations += 1;
                    }
                }
            }
        }
    }
    assert!(combinations >= 60, "{combinations}");
}

/// Several ranks compute what one rank does with all micro-batches: the forward of the first step has the same bits,
/// the sums of gradients differ in their order alone.
#[test]
fn several_ranks_learn_what_one_does() {
    let of = |ranks: u32| {
        let d = tiny(ranks, 4 / ranks, Dtype::Bf16, Optimizer::default());
        let c = choice(&d, Tier::Host, Tier::Host, Tier::Host);
        trained(&d, &c, Clip::Exact, 4).losses
    };
    let one = of(1);
    for ranks in [2, 4] {
        let several = of(ranks);
        assert_eq!(several[0].0, one[0].0, "the first loss");
        for (a, b) in one.iter().zip(&several) {
            for (a, b) in [(a.0, b.0), (a.1, b.1)] {
                let (a, b) = (f64::from_bits(a), f64::from_bits(b));
                assert!((a / b - 1.0).abs() < 2e-3, "{a}, {b} of {ranks} ranks");
            }
        }
    }
}

fn everywhere(d: &Decoder) -> Choice {
    let mut c = choice(d, Tier::Host, Tier::Host, Tier::Host);
    c.weights[1] = Tier::Device;
    c.update[2] = Processor::Device;
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
    c
}

#[test]
fn every_order_of_several_ranks_gives_the_same_bits() {
    let seeds: u64 = std::env::var("SEEDS").map_or(25, |n| n.parse().expect("a number"));
    for ranks in [2, 4] {
        let d = tiny(ranks, 1, Dtype::Bf16, Optimizer::default());
        for clip in [Clip::Exact, Clip::None] {
            let plan = checked(&d, &everywhere(&d), clip);
            let run = |mode| {
                let (mut session, _dir) = opened(&d, &plan, clip, mode);
                let first = train(&mut session, 3, ranks);
                let loss = session.evaluate(batch(9, ranks)).expect("evaluated").loss();
                let mut one = batch(5, 1).remove(0);
                one.labels.fill(-100);
                (one.labels[4], one.labels[12 + 7]) = (0, 0);
                let logits = session.infer(one).expect("inferred").logits;
                let logits: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
                (first, loss.to_bits(), logits, train(&mut session, 2, ranks))
            };
            let want = run(Mode::Threads);
            for seed in 0..seeds {
                let got = run(Mode::Shuffled(seed));
                assert_eq!(got, want, "{clip:?} seed {seed} of {ranks} ranks");
            }
        }
    }
}

/// All arrays of all parameters, by name.
fn state(session: &mut Session) -> BTreeMap<String, Vec<u8>> {
    let d = Arc::clone(session.decoder());
    let homes = session.homes().expect("staging");
    let mut all = BTreeMap::new();
    for (p, param) in d.workload().params.pairs() {
        for spec in d.workload().arrays(param) {
            let mut bytes = vec![0; (spec.entries(param) * spec.size()) as usize];
            let whole = 0..spec.entries(param);
            homes.read(p, spec.role, whole, &mut bytes).expect("read");
            all.insert(format!("{p}.{}", spec.role.name()), bytes);
        }
    }
    all
}

#[test]
fn any_number_of_ranks_goes_on_from_what_others_have_learned() {
    for moments in [Moments::F32, Moments::Int8] {
        let d = |ranks| tiny(ranks, 4 / ranks, Dtype::Bf16, adamw(moments));
        let (two, clip) = (d(2), Clip::Previous);
        let plan = checked(&two, &everywhere(&two), clip);
        let (mut unbroken, _dir) = opened(&two, &plan, clip, Mode::Threads);
        train(&mut unbroken, 2, 4);
        let (saved, norm) = (state(&mut unbroken), unbroken.clip_words());
        let want = train(&mut unbroken, 2, 4);
        for ranks in [1, 2, 4] {
            let d = d(ranks);
            let plan = checked(&d, &everywhere(&d), clip);
            let (mut session, _dir) = opened(&d, &plan, clip, Mode::Threads);
            let homes = session.homes().expect("staging");
            let fill = |p,
                        range: std::ops::Range<u64>,
                        spec: &lowtide_workload::StateSpec,
                        out: &mut [u8]| {
                let bytes = &saved[&format!("{p}.{}", spec.role.name())];
                out.copy_from_slice(&bytes[(range.start * spec.size()) as usize..][..out.len()]);
                Ok::<(), TierError>(())
            };
            homes.write_all(fill).expect("written");
            drop(homes);
            session.restore_clip(norm).expect("set");
            assert!(state(&mut session) == saved, "{ranks} ranks");
            let got = train(&mut session, 2, 4);
            match ranks {
                2 => assert_eq!(got, want, "as if unbroken"),
                _ => {
                    let (a, b) = (got.losses[0].0, want.losses[0].0);
                    assert_eq!(a, b, "{ranks} ranks: the first loss");
                }
            }
        }
    }
}

fn broken(mut group: Group, at: u64, missing: bool) -> (ExecError, Duration) {
    let d = on(&group, 2, 1);
    let plan = checked(&d, &everywhere(&d), Clip::Exact);
    let inner = Arc::clone(&group.comms[1]);
    let fault = match missing {
        true => Fault::Late(Duration::from_secs(3)),
        false => Fault::Panics,
    };
    group.comms[1] = Arc::new(Faulty::new(inner, at, fault));
    let options = SessionOptions {
        group: Some(group),
        poison: false,
        // A GPU's first kernels are compiled under it, by the ranks that fail: those that are late come after them.
        watchdog: Duration::from_secs(if missing { 2 } else { 30 }),
        ..quick()
    };
    let mut session = Session::open(Arc::clone(&d), plan, rule(Clip::Exact), options).unwrap();
    let fill = |p, range, out: &mut [f32]| {
        lowtide_model::random_init(d.shape(), 7, p, range, out);
        Ok::<(), TierError>(())
    };
    session.homes().unwrap().initialise(fill).unwrap();
    let begin = Instant::now();
    let mut run = || {
        for step in 1..=4 {
            let data = session.submit(batch(step, 2), hyper(step))?;
            session.outcome(&data)?;
        }
        session.drain()
    };
    let error = run().expect_err("a rank has failed");
    drop(session);
    (error, begin.elapsed())
}

#[test]
fn a_rank_that_fails_ends_all_and_is_named_first() {
    for at in [0, 3, 11, 20] {
        let group = Group::threads(2, Duration::from_secs(1));
        let (error, took) = broken(group, at, false);
        let text = error.to_string();
        assert!(
            matches!(error, ExecError::Panic { .. }) && text.contains("rank 1"),
            "at {at}: {text}"
        );
        assert!(took < Duration::from_secs(20), "at {at}: {took:?}");
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_with_the_collective() {
    let group = Group::threads(2, Duration::from_secs(1));
    let (error, _) = broken(group, 4, true);
    let text = error.to_string();
    let ExecError::Ranks { source, .. } = error else {
        panic!("{text}");
    };
    assert!(
        matches!(source, CommError::Missing { rank: 1, .. }),
        "{text}"
    );
}

/// As on GPUs, where a collective that is broken off ends without an error: what rank 0 then has reaches nobody,
/// neither as a loss nor as a number that is not finite.
#[test]
fn nothing_is_told_that_came_of_bytes_that_never_came() {
    let d = tiny(2, 1, Dtype::Bf16, Optimizer::default());
    let plan = checked(&d, &everywhere(&d), Clip::Exact);
    let run = |at: Option<u64>, poison| {
        let mut group = Group::threads(2, Duration::from_secs(20));
        if let Some(at) = at {
            for (rank, fault) in [Fault::Deaf, Fault::Panics].into_iter().enumerate() {
                let inner = Arc::clone(&group.comms[rank]);
                group.comms[rank] = Arc::new(Faulty::new(inner, at, fault));
            }
        }
        let options = SessionOptions {
            group: Some(group),
            poison,
            ..quick()
        };
        let mut session = open(&d, &plan, Clip::Exact, options);
        let mut told = Vec::new();
        let mut steps = || {
            for step in 1..=3 {
                let data = session.submit(batch(step, 2), hyper(step))?;
                told.push(session.outcome(&data)?);
            }
            session.drain()
        };
        let end = steps();
        (told, end)
    };
    let (want, end) = run(None, false);
    assert_eq!((want.len(), end), (3, Ok(())));
    for at in 0..24 {
        for poison in [false, true] {
            let (told, end) = run(Some(at), poison);
            assert_eq!(told[..], want[..told.len()], "at {at}");
            let text = end.expect_err("a rank has failed").to_string();
            assert!(text.contains("rank 1") && text.contains("cable"), "{text}");
        }
    }
}

/// As on GPUs, where ranks that wait are as silent as the one that they wait for: rank 0 stands still first.
#[test]
fn the_rank_that_all_others_wait_for_is_named() {
    let d = tiny(2, 1, Dtype::Bf16, Optimizer::default());
    let plan = checked(&d, &everywhere(&d), Clip::Exact);
    let mut group = Group::threads(2, Duration::from_secs(60));
    let late = Fault::Late(Duration::from_millis(700));
    let faults = [
        &[(0, Fault::Given), (3, Fault::Hangs)][..],
        &[(0, Fault::Given), (1, late), (2, Fault::Hangs)],
    ];
    for (comm, faults) in group.comms.iter_mut().zip(faults) {
        for &(at, fault) in faults {
            *comm = Arc::new(Faulty::new(Arc::clone(comm), at, fault));
        }
    }
    let options = SessionOptions {
        group: Some(group),
        poison: false,
        watchdog: Duration::from_secs(2),
        ..quick()
    };
    let mut session = open(&d, &plan, Clip::Exact, options);
    let mut run = || {
        let data = session.submit(batch(1, 2), hyper(1))?;
        session.outcome(&data)
    };
    let error = run().expect_err("they stand still");
    let text = error.to_string();
    assert!(matches!(error, ExecError::Stuck { .. }), "{text}");
    assert!(
        text.contains("rank 1: ") && !text.contains("rank 0: "),
        "{text}"
    );
}

/// Makes a way between GPUs of one process.
type Way = fn(Vec<Gpu>, Duration) -> Result<Group, CommError>;

/// As ranks exchange by default, and by NCCL.
const WAYS: [Way; 2] = [Group::cuda, Group::nccl];

/// So many GPUs and the usual way between them, as [`gpus_by`].
pub fn gpus(n: u32) -> Option<Group> {
    gpus_by(n, Group::cuda, Duration::from_secs(150))
}

/// So many GPUs with a way between them, which wait for each other no longer than `limit`. Without them says what is
/// skipped; panics where `LOWTIDE_REQUIRE_GPUS` asks for as many.
#[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
fn gpus_by(n: u32, way: Way, limit: Duration) -> Option<Group> {
    let asked = std::env::var("LOWTIDE_REQUIRE_GPUS").map_or(0, |n| n.parse().expect("a number"));
    let all = (0..n).map(Gpu::open).collect::<Result<Vec<_>, _>>();
    let group = |all| way(all, limit);
    match all.map_err(CommError::Cuda).and_then(group) {
        Ok(group) => {
            eprintln!("{n} GPUs: {}", group.comms[0].by());
            Some(group)
        }
        Err(e) => {
            assert!(asked < n, "{n} GPUs are required: {e}");
            eprintln!("skipped on {n} GPUs: {e}");
            None
        }
    }
}

#[test]
fn several_gpus_give_the_same_bits_wherever_tensors_live() {
    for ranks in [2, 4] {
        let Some(group) = gpus(ranks) else { continue };
        let d = on(&group, ranks, 2);
        for (k, clip) in CLIPS.into_iter().enumerate() {
            let train_by = |group: &Group, c: &Choice, poison| {
                let plan = checked(&d, c, clip);
                let dir = tempfile::tempdir().expect("a folder");
                let disk = match plan.tier(Tier::Disk).planned_bytes.0 {
                    0 => DiskChoice::None,
                    _ => DiskChoice::Directories(vec![(dir.path().to_owned(), 1.0)]),
                };
                let options = SessionOptions {
                    disk,
                    group: Some(group.clone()),
                    poison,
                    ..quick()
                };
                train(&mut open(&d, &plan, clip, options), 3, 2 * ranks)
            };
            let train = |c: &Choice, poison| train_by(&group, c, poison);
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let want = train(&resident, true);
            assert!(want.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
            assert_eq!(train(&resident, false), want, "from run to run");
            let nccl = gpus_by(ranks, Group::nccl, Duration::from_secs(150))
                .expect("as many GPUs as before");
            assert_eq!(train_by(&nccl, &everywhere(&d), false), want, "by NCCL");
            let mut i = 0;
            for weights in Tier::ALL {
                for optimizer in Tier::ALL {
                    for inputs in Tier::ALL {
                        i += 1;
                        if i % 3 != k {
                            continue;
                        }
                        let mut c = choice(&d, weights, optimizer, inputs);
                        let saved = [Saved::Keep, Saved::Recompute, Saved::Host][i % 3];
                        c.saved.iter_mut().for_each(|s| s.fill(saved));
                        (c.ahead, c.carry) = common::ahead(i);
                        if i % 2 == 1 {
                            c.pieces = Pieces::Split(256);
                        }
                        let got = train(&c, i % 2 == 0);
                        assert_eq!(got, want, "{c:?} {clip:?} {ranks} GPUs");
                    }
                }
            }
        }
    }
}

#[test]
fn a_gpu_whose_rank_fails_or_does_not_come_ends_all() {
    let faults = [(0, false), (11, false), (5, true)];
    for (way, (at, missing)) in WAYS.into_iter().flat_map(|way| faults.map(|f| (way, f))) {
        let usual = Duration::from_secs(150);
        let Some(mut group) = gpus_by(2, way, usual) else {
            return;
        };
        // Whoever copies meets the others on the host, where the way has a limit; what waits in a stream for a kernel
        // of NCCL's is found by the watchdog.
        let meets = !group.comms[0].by().contains("NCCL");
        if meets && missing {
            group = gpus_by(2, way, Duration::from_secs(1)).expect("as many GPUs as before");
        }
        let (error, took) = broken(group, at, missing);
        let text = error.to_string();
        let found = match (missing, meets) {
            (false, _) => text.contains("rank 1") && text.contains("cable"),
            (true, false) => matches!(error, ExecError::Stuck { .. }) && text.contains("rank 1: "),
            (true, true) => text.contains("rank 1 did not come"),
        };
        assert!(found, "{text}");
        assert!(took < Duration::from_secs(30), "at {at}: {took:?}");
    }
}
