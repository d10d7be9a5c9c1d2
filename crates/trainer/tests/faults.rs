//! What goes wrong under a training session ends in the same bits or in an error that says what
//! and where, never in other numbers.
//!
//! One file because all tests run the same two blocks on a disk with another fault.

#![allow(clippy::print_stderr, reason = "ends reached are worth reading")]
#![allow(clippy::result_large_err, reason = "as the trainer's own functions")]

use std::sync::Arc;
use std::time::Duration;

use crate::common::{
    Trained, batch, checked, choice, decoder, hyper, llama, open, quick, ram_disk, rule, train,
};
use lowtide_executor::{EngineError, ExecError, Mode};
use lowtide_model::{Decoder, random_init};
use lowtide_planner::{
    Arg, Choice, Clip, Lane, PartName, PieceId, Plan, Saved, Slot, Task, TaskId, Tensor, Tier, Use,
    check,
};
use lowtide_session::{ClipRule, DiskChoice, Session, SessionError, SessionOptions};
use lowtide_tiers::{
    ChosenFault, Disk, Extent, Fault, Faults, Kind, RamConfig, RamDisk, TierError,
};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, ParamId, Role};

const ACCUMULATE: u32 = 2;
const STEPS: u64 = 3;
const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EINTR_EAGAIN: [i32; 2] = [4, 11];

fn two_blocks() -> Arc<Decoder> {
    decoder(&llama(2, true), Dtype::Bf16, ACCUMULATE)
}

/// Weights and optimizer state on disk, and block inputs, gradients and saved tensors too.
fn all_on_disk(d: &Decoder) -> Choice {
    let mut c = choice(d, Tier::Disk, Tier::Disk, Tier::Disk);
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
    c
}

fn disk_plan(d: &Decoder, clip: Clip) -> Arc<Plan> {
    checked(d, &all_on_disk(d), clip)
}

fn resident(d: &Arc<Decoder>, clip: Clip) -> Trained {
    let plan = checked(
        d,
        &choice(d, Tier::Device, Tier::Device, Tier::Device),
        clip,
    );
    train(&mut open(d, &plan, clip, quick()), STEPS, ACCUMULATE)
}

/// Two drives of small blocks, so that every transfer is several operations.
fn faulty(plan: &Plan, faults: Faults, verify_reads: Option<Bytes>) -> (Disk, RamDisk) {
    try_faulty(plan, faults, verify_reads).expect("memory for a disk")
}

fn try_faulty(
    plan: &Plan,
    faults: Faults,
    verify_reads: Option<Bytes>,
) -> Result<(Disk, RamDisk), TierError> {
    RamDisk::open(&RamConfig {
        weights: vec![1.0, 2.0],
        block: Bytes::KIB * 8,
        stripe: Bytes::KIB * 16,
        verify_reads,
        faults,
        ..RamConfig::new(plan.tier(Tier::Disk).planned_bytes)
    })
}

fn on(
    disk: Disk,
    d: &Arc<Decoder>,
    plan: &Arc<Plan>,
    rule: ClipRule,
) -> Result<Session, SessionError> {
    let options = SessionOptions {
        disk: DiskChoice::Open(disk),
        ..quick()
    };
    let mut session = Session::open(Arc::clone(d), Arc::clone(plan), rule, options)?;
    session
        .homes()?
        .initialise(|p, range, out| -> Result<(), TierError> {
            random_init(d.shape(), 7, p, range, out);
            Ok(())
        })?;
    Ok(session)
}

/// As [`train`], with errors.
fn try_train(session: &mut Session) -> Result<Trained, SessionError> {
    let mut losses = Vec::new();
    for step in 1..=STEPS {
        let data = session.submit(batch(step, ACCUMULATE), hyper(step))?;
        let o = session.outcome(&data)?;
        losses.push((o.loss().to_bits(), o.norm.to_bits()));
    }
    session.drain()?;
    Ok(Trained {
        losses,
        state: session.homes()?.fingerprint()?.0,
    })
}

/// A whole run on a faulty disk, its first writes included.
fn run(
    d: &Arc<Decoder>,
    plan: &Arc<Plan>,
    faults: Faults,
    verify_reads: Option<Bytes>,
) -> (Result<Trained, SessionError>, RamDisk) {
    let (disk, medium) = faulty(plan, faults, verify_reads);
    let trained =
        on(disk, d, plan, rule(Clip::Exact)).and_then(|mut session| try_train(&mut session));
    (trained, medium)
}

fn inside(extent: &Extent, slot: &Slot) -> bool {
    slot.offset <= extent.offset && extent.offset + extent.bytes <= slot.offset + slot.bytes
}

#[test]
fn slow_interrupted_and_short_transfers_change_no_bit() {
    let d = two_blocks();
    let plan = disk_plan(&d, Clip::Exact);
    let want = resident(&d, Clip::Exact);
    for seed in 0..6 {
        let faults = Faults {
            seed,
            latency_max: Duration::from_micros(300),
            random: vec![(Fault::Short, 0.3), (Fault::Interrupted, 0.2)],
            ..Faults::default()
        };
        let (got, medium) = run(&d, &plan, faults, Some(Bytes::KIB * 4));
        assert_eq!(got.expect("these faults pass"), want, "seed {seed}");
        for fault in [Fault::Short, Fault::Interrupted] {
            assert!(
                medium.count(fault) > 50,
                "{fault:?}: {}",
                medium.count(fault)
            );
        }
    }
}

/// The disk slots whose first failing use is in the middle of a run: everything that the first
/// weights and states are not written to.
fn written_by_tasks_only(plan: &Plan) -> &Slot {
    let mut slots = plan.slots.iter().filter(|s| s.tier == Tier::Disk);
    let home = |t: Tensor| matches!(t, Tensor::Weight(_) | Tensor::State(_));
    slots
        .find(|s| !home(s.tensor))
        .expect("gradients wait on disk")
}

#[test]
fn a_broken_place_stops_the_run_and_is_named() {
    let d = two_blocks();
    let plan = disk_plan(&d, Clip::Exact);
    let (_, state) = plan
        .homes(Tensor::State(PieceId(1)))
        .next()
        .expect("a home");
    let (_, weight) = plan
        .homes(Tensor::Weight(PieceId(2)))
        .next()
        .expect("a home");
    let other = written_by_tasks_only(&plan);
    let cases = [
        (state, Kind::Read),
        (weight, Kind::Read),
        (other, Kind::Write),
    ];
    for (slot, kind) in cases {
        for (fault, codes) in [
            (Fault::IoError, &[EIO][..]),
            (Fault::Interrupted, &EINTR_EAGAIN),
        ] {
            let extent = Extent {
                offset: slot.offset,
                bytes: slot.bytes,
            };
            let chosen = vec![ChosenFault {
                extent,
                kind: Some(kind),
                fault,
                times: u32::MAX,
            }];
            let (disk, _) = faulty(
                &plan,
                Faults {
                    chosen,
                    ..Faults::default()
                },
                None,
            );
            let mut session = on(disk, &d, &plan, rule(Clip::Exact)).expect("not hit yet");
            let error = try_train(&mut session).expect_err("the place is broken");
            let SessionError::Exec(first) = error else {
                panic!("{error}")
            };
            let ExecError::Disk { task, source } = &first else {
                panic!("{first}")
            };
            let TierError::Io {
                action, extent, os, ..
            } = source
            else {
                panic!("{source}")
            };
            assert!(inside(extent, slot), "{extent} of {slot:?}");
            assert_eq!(*action, if kind == Kind::Read { "read" } else { "write" });
            assert!(codes.contains(&os.0), "{os}");
            assert!(
                task.contains(&slot.tensor.name(&plan)),
                "{task} of {slot:?}"
            );
            assert!(first.to_string().contains(&extent.to_string()), "{first}");
            // It stays stopped, for the same reason.
            let again = session.submit(batch(9, ACCUMULATE), hyper(9)).map(|_| ());
            assert_eq!(again, Err(first));
        }
    }
}

#[test]
fn no_space_at_the_start_is_told_before_anything_runs() {
    let d = two_blocks();
    let plan = disk_plan(&d, Clip::Exact);
    let need = plan.tier(Tier::Disk).planned_bytes;
    let free = Bytes(need.0 - 1);
    let full = Faults {
        free: Some(free),
        ..Faults::default()
    };
    match try_faulty(&plan, full, None) {
        Err(TierError::Space {
            need: n, free: f, ..
        }) => assert_eq!((n, f), (need, free)),
        other => panic!("{other:?}"),
    }

    // Real files, and memory: a plan of a pebibyte.
    let too_much = |tier: Tier| {
        let mut plan = Plan::clone(&plan);
        plan.tiers[tier as usize].planned_bytes = Bytes(1 << 50);
        let dir = tempfile::tempdir().expect("a directory");
        let disk = DiskChoice::Directories(vec![(dir.path().to_owned(), 1.0)]);
        let options = SessionOptions { disk, ..quick() };
        let session = Session::open(Arc::clone(&d), Arc::new(plan), rule(Clip::Exact), options);
        let left = std::fs::read_dir(dir.path()).expect("it exists").count();
        assert_eq!(left, 0, "{left} files of a session that did not start");
        match session.err().expect("a pebibyte is too much") {
            SessionError::Tier(e) => e,
            e => panic!("{e}"),
        }
    };
    let error = too_much(Tier::Disk);
    assert!(
        matches!(&error, TierError::Space { need, free, .. } if need > free && free.0 > 0),
        "{error:?}"
    );
    for tier in [Tier::Host, Tier::Device] {
        let error = too_much(tier);
        let TierError::HostMemory { need, have, .. } = error else {
            panic!("{error:?}")
        };
        // Both arenas, and what the process needs beside them.
        assert!(
            need > Bytes(1 << 50) && need < Bytes(1 << 51) && have < need,
            "{need} {have}"
        );
    }
}

#[test]
fn a_drive_that_fills_up_stops_the_run_wherever_it_is() {
    let d = two_blocks();
    let plan = disk_plan(&d, Clip::Exact);
    let want = resident(&d, Clip::Exact);
    let (mut at_start, mut in_run) = (0, 0);
    for n in (5..).step_by(23) {
        let faults = Faults {
            writes_until_full: Some(n),
            ..Faults::default()
        };
        let (got, medium) = run(&d, &plan, faults, None);
        let full = |e: &TierError| {
            assert!(
                matches!(e, TierError::Io { action: "write", os, .. } if os.0 == ENOSPC),
                "{e:?}"
            );
        };
        match got {
            Err(SessionError::Tier(e)) => {
                full(&e);
                at_start += 1;
            }
            Err(SessionError::Exec(ExecError::Disk { source, .. })) => {
                full(&source);
                in_run += 1;
            }
            Err(e) => panic!("{e}"),
            Ok(got) => {
                assert_eq!(got, want, "room for {n} writes a drive");
                assert_eq!(medium.count(Fault::NoSpace), 0);
                break;
            }
        }
    }
    eprintln!("full at the start {at_start} times, in the run {in_run} times");
    assert!(at_start > 0 && in_run > 3, "{at_start} {in_run}");
}

/// How seeds end with lying writes: right, corrupt, silently wrong.
fn lying_writes(fault: Fault, verify_reads: Option<Bytes>) -> [u32; 3] {
    let d = two_blocks();
    let plan = disk_plan(&d, Clip::Exact);
    let want = resident(&d, Clip::Exact);
    let mut ends = [0; 3];
    for seed in 0..24 {
        let faults = Faults {
            seed,
            random: vec![(fault, 0.004)],
            ..Faults::default()
        };
        let (got, medium) = run(&d, &plan, faults, verify_reads);
        let source = match got {
            Ok(got) if got == want => {
                ends[0] += 1;
                continue;
            }
            Err(
                SessionError::Exec(ExecError::Disk { source, .. }) | SessionError::Tier(source),
            ) => source,
            // Other numbers, or what they lead to: not finite.
            Ok(_) | Err(_) => {
                ends[2] += 1;
                continue;
            }
        };
        let TierError::Corrupt { extent, .. } = source else {
            panic!("{source}")
        };
        let known = plan
            .slots
            .iter()
            .any(|s| s.tier == Tier::Disk && inside(&extent, s));
        assert!(known, "{extent} is no slot's");
        assert!(
            medium.count(fault) > 0,
            "nothing happened, yet {extent} is corrupt"
        );
        ends[1] += 1;
    }
    eprintln!(
        "{fault:?}, verified {}: right, corrupt, wrong {ends:?}",
        verify_reads.is_some()
    );
    ends
}

#[test]
fn lying_writes_are_found_when_reads_are_verified() {
    for fault in [Fault::Torn, Fault::Misdirected] {
        let [_, corrupt, wrong] = lying_writes(fault, Some(Bytes::KIB * 4));
        assert_eq!(wrong, 0, "{fault:?}");
        assert!(corrupt >= 5, "{fault:?}: {corrupt}");
        // The faults do change numbers: without checksums nothing sees them.
        let [_, corrupt, wrong] = lying_writes(fault, None);
        assert!(corrupt == 0 && wrong >= 5, "{fault:?}: {corrupt} {wrong}");
    }
}

/// The bytes of every home on the medium.
fn homes_on(medium: &RamDisk, plan: &Plan) -> Vec<Vec<u8>> {
    let home = |s: &&Slot| matches!(s.tensor, Tensor::Weight(_) | Tensor::State(_));
    let slots = plan
        .slots
        .iter()
        .filter(|s| s.persistent && s.tier == Tier::Disk)
        .filter(home);
    slots
        .map(|s| {
            medium.peek(Extent {
                offset: s.offset,
                bytes: s.bytes,
            })
        })
        .collect()
}

/// Overwrites the weights of parameter 0 with `weights`, or with NaN; gives what was there.
fn set_weights(session: &mut Session, weights: Option<&[u8]>) -> Vec<u8> {
    let elements = session.decoder().workload().params[ParamId(0)].elements;
    let homes = session.homes().expect("staging");
    let mut before = vec![0; 2 * elements as usize];
    homes
        .read(ParamId(0), Role::WEIGHT, 0..elements, &mut before)
        .expect("read");
    homes
        .write_all(|p, range, spec, bytes| {
            if (p, spec.role) != (ParamId(0), Role::WEIGHT) {
                return homes.read(p, spec.role, range, bytes);
            }
            let at = 2 * range.start as usize..2 * range.end as usize;
            match weights {
                Some(weights) => bytes.copy_from_slice(&weights[at]),
                None => bytes.fill(0xff),
            }
            Ok::<(), TierError>(())
        })
        .expect("written");
    before
}

fn refused(error: &ExecError) {
    let ExecError::Engine { task, source } = error else {
        panic!("{error}")
    };
    assert!(task == "norm" || task.starts_with("update"), "{task}");
    assert!(matches!(source, EngineError::NonFinite(_)), "{source}");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_exact_clipping_keeps_the_state() {
    let d = two_blocks();
    for clip in [Clip::Exact, Clip::Previous, Clip::None] {
        let plan = disk_plan(&d, clip);
        let (disk, medium) = faulty(&plan, Faults::default(), None);
        let mut session = on(disk, &d, &plan, rule(clip)).expect("a session");
        try_train(&mut session).expect("a run");
        set_weights(&mut session, None);
        let before = homes_on(&medium, &plan);
        let data = session
            .submit(batch(4, ACCUMULATE), hyper(4))
            .expect("submitted");
        let error = session.outcome(&data).expect_err("the loss is NaN");
        refused(&error);
        assert_eq!(session.drain(), Err(error.clone()), "drained");
        let again = session.submit(batch(5, ACCUMULATE), hyper(5)).map(|_| ());
        assert_eq!(again, Err(error), "submitted again");
        drop(session);
        if clip == Clip::Exact {
            assert!(
                homes_on(&medium, &plan) == before,
                "an update was made of NaN"
            );
        }
    }
}

/// The same in the middle of a pipeline: the update before, which makes the loss explode, runs
/// under the batch that finds it. Each home holds the state before or after that update.
#[test]
fn an_exploding_run_leaves_whole_states() {
    let d = two_blocks();
    let plan = disk_plan(&d, Clip::Exact);
    let start = || {
        let (disk, medium) = faulty(&plan, Faults::default(), None);
        (
            on(disk, &d, &plan, rule(Clip::Exact)).expect("a session"),
            medium,
        )
    };
    let exploding = |step| match step {
        2 => lowtide_kernels::update::Hyper {
            lr: 1e30,
            ..hyper(step)
        },
        _ => hyper(step),
    };
    let states: Vec<_> = [1, 2]
        .into_iter()
        .map(|steps| {
            let (mut session, medium) = start();
            for step in 1..=steps {
                session
                    .submit(batch(step, ACCUMULATE), exploding(step))
                    .expect("submitted");
            }
            session.drain().expect("drained");
            homes_on(&medium, &plan)
        })
        .collect();
    let (mut session, medium) = start();
    let mut last = Ok(());
    for step in 1..=3 {
        assert_eq!(last, Ok(()), "before step {step}");
        let data = session
            .submit(batch(step, ACCUMULATE), exploding(step))
            .expect("submitted");
        last = session.outcome(&data).map(|_| ());
    }
    refused(&last.expect_err("the loss exploded"));
    drop(session);
    for (i, home) in homes_on(&medium, &plan).iter().enumerate() {
        assert!(
            states.iter().any(|s| &s[i] == home),
            "home {i} is neither before nor after"
        );
    }
}

#[test]
fn a_batch_that_is_not_finite_can_be_left_out() {
    let d = two_blocks();
    let mut durable = all_on_disk(&d);
    durable.make_durable();
    for plan in [
        disk_plan(&d, Clip::Exact),
        checked(&d, &durable, Clip::Exact),
    ] {
        one_left_out(&d, &plan);
    }
}

fn one_left_out(d: &Arc<Decoder>, plan: &Arc<Plan>) {
    let skip = ClipRule {
        skip_nonfinite: true,
        ..rule(Clip::Exact)
    };
    let start = || {
        let (disk, _) = faulty(plan, Faults::default(), None);
        on(disk, d, plan, skip).expect("a session")
    };
    let want = try_train(&mut start()).expect("a run");
    let mut session = start();
    let mut losses = Vec::new();
    for step in 1..=STEPS {
        let good = set_weights(&mut session, None);
        let spoilt = session
            .homes()
            .expect("staging")
            .fingerprint()
            .expect("read")
            .0;
        let data = session
            .submit(batch(40 + step, ACCUMULATE), hyper(step))
            .expect("submitted");
        let o = session.outcome(&data).expect("left out, not stopped");
        assert!(
            o.skipped && o.nonfinite.is_none() && !o.norm.is_finite(),
            "{o:?}"
        );
        session.drain().expect("drained");
        let after = session
            .homes()
            .expect("staging")
            .fingerprint()
            .expect("read")
            .0;
        assert_eq!(
            after, spoilt,
            "the batch that was left out changed the state"
        );
        set_weights(&mut session, Some(&good));

        let data = session
            .submit(batch(step, ACCUMULATE), hyper(step))
            .expect("submitted");
        let o = session.outcome(&data).expect("done");
        assert!(!o.skipped);
        losses.push((o.loss().to_bits(), o.norm.to_bits()));
        session.drain().expect("drained");
    }
    let state = session
        .homes()
        .expect("staging")
        .fingerprint()
        .expect("read")
        .0;
    assert_eq!(Trained { losses, state }, want);
}

/// Two tasks of part `first`, on the gpu and on the host-to-device lane, that wait for each other.
fn circle(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    let tasks = &mut plan.parts[PartName::First];
    let fetched = |task: &Task| {
        let on_h2d = |&&t: &&TaskId| tasks[t].lane == Lane::H2D;
        (task.lane == Lane::GPU)
            .then(|| task.after.iter().find(on_h2d).copied())
            .flatten()
    };
    let waits = tasks.pairs().find_map(|(i, t)| Some((i, fetched(t)?)));
    let (gpu, fetch) = waits.expect("the gpu waits for what is fetched");
    tasks[fetch].after.push(gpu);
    plan
}

/// A plan that no checker has seen, whose first norm writes over what it reads: memory safety does not
/// hang on the checker within a task.
#[test]
fn a_task_that_writes_over_its_own_argument_is_not_run() {
    let d = two_blocks();
    let whole = checked(
        &d,
        &choice(&d, Tier::Host, Tier::Host, Tier::Host),
        Clip::Exact,
    );
    let mut plan = Plan::clone(&whole);
    let slots = &whole.slots;
    let tasks = &mut plan.parts[PartName::First];
    let in_place = |t: &&mut Task| {
        let gpu = t.lane == Lane::GPU && t.args[0].access == Use::Write;
        let fits = |a: &Arg| a.access == Use::Read && a.bytes == t.args[0].bytes;
        gpu && t.args.iter().any(fits)
    };
    let task = tasks.iter_mut().find(in_place).expect("a norm");
    let bytes = task.args[0].bytes;
    let read = task.args.iter().position(|a| {
        let device = slots[a.slot].tier == Tier::Device;
        device && a.access == Use::Read && a.bytes == bytes
    });
    (task.args[0].slot, task.args[0].offset) = {
        let read = &task.args[read.expect("found above")];
        (read.slot, read.offset)
    };
    let fault = check::check(&plan, d.workload(), Clip::Exact).expect_err("the checker sees it");
    assert!(fault.what.contains("belongs"), "{fault}");
    let plan = Arc::new(plan);
    for mode in [Mode::Shuffled(1), Mode::Threads] {
        let options = SessionOptions { mode, ..quick() };
        let mut session = open(&d, &plan, Clip::Exact, options);
        let data = session.submit(batch(1, ACCUMULATE), hyper(1));
        let error = session.outcome(&data.expect("submitted"));
        let Err(ExecError::Panic { message, .. }) = &error else {
            panic!("{mode:?}: {error:?}")
        };
        assert!(message.contains("and writes one"), "{message}");
    }
}

#[test]
fn a_standstill_is_reported_with_who_waits_for_whom() {
    let d = two_blocks();
    let whole = checked(
        &d,
        &choice(&d, Tier::Host, Tier::Host, Tier::Host),
        Clip::Exact,
    );
    let plan = circle(&whole);
    let fault = check::check(&plan, d.workload(), Clip::Exact).expect_err("the checker sees it");
    assert!(fault.what.contains("waits for"), "{fault}");
    let plan = Arc::new(plan);
    for mode in [Mode::Shuffled(3), Mode::Threads] {
        for wait in [
            (|s, data| s.outcome(data).map(|_| ())) as fn(&mut Session, &_) -> _,
            |s, _| s.drain(),
        ] {
            let watchdog = Duration::from_millis(400);
            let options = SessionOptions {
                mode,
                watchdog,
                disk: ram_disk(&plan),
                ..quick()
            };
            let mut session = open(&d, &plan, Clip::Exact, options);
            let data = session
                .submit(batch(1, ACCUMULATE), hyper(1))
                .expect("submitted");
            let error = wait(&mut session, &data).expect_err("it cannot end");
            let ExecError::Stuck { chain, .. } = &error else {
                panic!("{error}")
            };
            for part in ["gpu waits with", "h2d waits with", "closes a circle"] {
                assert!(chain.contains(part), "{mode:?}: {chain}");
            }
            assert_eq!(session.drain(), Err(error), "it stays stopped");
        }
    }
}
