//! Saved tensors that pass through the host to a drive, or straight from the device, wherever each of them goes and
//! however slow the drive is.

use std::sync::Arc;

use crate::common::places::{Dice, beside, planned, random, written};
use crate::common::{Trained, batch, choice, decoder, hyper, llama, open, quick, rule, train};
use lowtide_executor::Mode;
use lowtide_model::{Decoder, random_init};
use lowtide_planner::{
    Choice, Clip, Direct, Lane, PartName, Plan, Saved, TaskId, Tensor, Tier, Work, check,
};
use lowtide_session::{DiskChoice, Session, SessionError, SessionOptions};
use lowtide_tiers::{
    ChosenFault, Extent, Fault, Faults, Kind, Pace, RamConfig, RamDisk, TierError,
};
use lowtide_units::{BytesPerSecond, List};
use lowtide_workload::Dtype;

const ACCUMULATE: u32 = 2;
const STEPS: u64 = 3;

/// Everything that is saved on a drive, state on the host.
fn all_spilled(d: &Decoder) -> Choice {
    let mut c = choice(d, Tier::Host, Tier::Host, Tier::Disk);
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
    c
}

/// A run on a drive in memory that takes its time.
fn on_a_drive(
    d: &Arc<Decoder>,
    plan: &Arc<Plan>,
    pace: Pace,
    faults: Faults,
) -> Result<Trained, SessionError> {
    let (disk, _) = RamDisk::open(&RamConfig {
        weights: vec![1.0, 2.0],
        pace: Some(pace),
        faults,
        ..RamConfig::new(plan.tier(Tier::Disk).planned_bytes)
    })
    .expect("memory for a disk");
    let options = SessionOptions {
        disk: DiskChoice::Open(disk),
        ..quick()
    };
    let mut session = Session::open(Arc::clone(d), Arc::clone(plan), rule(Clip::Exact), options)?;
    let init = |p, range, out: &mut [f32]| -> Result<(), TierError> {
        random_init(d.shape(), 7, p, range, out);
        Ok(())
    };
    session.homes()?.initialise(init)?;
    let mut losses = Vec::new();
    for step in 1..=STEPS {
        let data = session.submit(batch(step, ACCUMULATE), hyper(step))?;
        let o = session.outcome(&data)?;
        losses.push((o.loss().to_bits(), o.norm.to_bits()));
    }
    session.drain()?;
    let state = session.homes()?.fingerprint()?.0;
    Ok(Trained { losses, state })
}

/// The same plan without what makes a lane wait until another one's work is done.
fn without(plan: &Plan, waiting: Lane, waited: Lane) -> Plan {
    let mut plan = plan.clone();
    for name in PartName::ALL {
        let part = &mut plan.parts[name];
        let lanes: List<TaskId, Lane> = part.iter().map(|t| t.lane).collect();
        for task in part.iter_mut().filter(|t| t.lane == waiting) {
            task.after.retain(|&d| lanes[d] != waited);
        }
    }
    plan
}

/// What a model learns with everything on the device.
fn resident(d: &Arc<Decoder>) -> Trained {
    let c = choice(d, Tier::Device, Tier::Device, Tier::Device);
    let plan = planned(d, &c, Clip::Exact, &beside(1e9));
    let mut session = open(d, &plan, Clip::Exact, quick());
    train(&mut session, STEPS, ACCUMULATE)
}

/// Slots are used again when their copies are predicted to have ended. A drive a thousand times slower than that only
/// delays; were it not for the edges, it would corrupt.
#[test]
fn a_drive_slower_than_planned_delays_and_corrupts_nothing() {
    let d = decoder(&llama(3, true), Dtype::Bf16, ACCUMULATE);
    let want = resident(&d);
    let plan = planned(&d, &all_spilled(&d), Clip::Exact, &beside(1e10));
    let n = written(&plan);
    assert!(n > 40, "{n} tensors are written");
    let slow = |write: f64| Pace {
        read: BytesPerSecond(1e10),
        write: BytesPerSecond(write),
    };
    let faults = |seed| Faults {
        seed,
        random: vec![(Fault::Short, 0.2), (Fault::Interrupted, 0.1)],
        ..Faults::default()
    };
    for seed in 0..3 {
        let got = on_a_drive(&d, &plan, slow(1e7), faults(seed)).expect("it only takes longer");
        assert_eq!(got, want, "seed {seed}");
    }
    let wrong = Arc::new(without(&plan, Lane::D2H, Lane::DISK_WRITE));
    assert!(check::check(&wrong, d.workload(), Clip::Exact).is_err());
    let shown = (0..3).any(|seed| {
        let got = on_a_drive(&d, &wrong, slow(1e7), faults(seed));
        got.ok().as_ref() != Some(&want)
    });
    assert!(shown, "no slot is used again before its write has ended");
}

/// Tasks of a step that move bytes between a drive and the device's memory: reads and writes.
fn straight(plan: &Plan) -> [usize; 2] {
    let count = |work: Work| {
        let tasks = plan.part(PartName::Steady).iter();
        tasks
            .filter(|t| t.work == work && plan.is_direct(t))
            .count()
    };
    [count(Work::Read), count(Work::Write)]
}

/// On the CPU device drives reach its memory as they reach the host's: the same disk, queues and orders as on a GPU.
#[test]
fn transfers_that_pass_no_host_memory_train_to_the_same_bits() {
    let ways = [(true, true), (true, false), (false, true)];
    let mut dice = Dice(0x6d5_1234);
    let mut sums = [0; 2];
    for (precision, draws) in [(Dtype::Bf16, 7), (Dtype::F32, 3)] {
        let d = decoder(&llama(2, true), precision, ACCUMULATE);
        for clip in [Clip::Exact, Clip::Previous, Clip::None] {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = planned(&d, &resident, clip, &beside(1e9));
            let want = train(&mut open(&d, &plan, clip, quick()), STEPS, ACCUMULATE);
            for draw in 0..draws {
                let mut c = random(&d, &mut dice);
                if draw % 2 == 0 {
                    let (optimizer, update) = (c.optimizer.clone(), c.update.clone());
                    c = Choice {
                        order: c.order,
                        round: c.round,
                        ahead: c.ahead,
                        ..choice(&d, Tier::Disk, Tier::Disk, Tier::Disk)
                    };
                    c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
                    (c.optimizer, c.update) = (optimizer, update);
                }
                let (read, write) = ways[dice.below(3)];
                c.direct = Direct { read, write };
                let drive = [1e9, 1e7, 1e6][dice.below(3)];
                let plan = planned(&d, &c, clip, &beside(drive));
                for (sum, n) in sums.iter_mut().zip(straight(&plan)) {
                    *sum += n;
                }
                let mode = match draw % 3 {
                    0 => Mode::Shuffled(draw),
                    _ => Mode::Threads,
                };
                let options = SessionOptions { mode, ..quick() };
                let got = train(&mut open(&d, &plan, clip, options), STEPS, ACCUMULATE);
                assert_eq!(got, want, "{precision:?} {clip:?} {drive} {c:?}");
            }
        }
    }
    assert!(sums.iter().all(|&n| n > 200), "{sums:?}");
}

/// A slot of the device that a drive still writes from, or reads into, is not used before that has ended, however long
/// it takes.
#[test]
fn a_slow_drive_that_reaches_the_device_corrupts_nothing() {
    let d = decoder(&llama(3, true), Dtype::Bf16, ACCUMULATE);
    let want = resident(&d);
    let c = Choice {
        direct: Direct::BOTH,
        ..all_spilled(&d)
    };
    let plan = planned(&d, &c, Clip::Exact, &beside(1e10));
    let [read, wrote] = straight(&plan);
    assert!(read > 40 && wrote > 40, "{read} {wrote}");
    let pace = |rate: f64| Pace {
        read: BytesPerSecond(rate),
        write: BytesPerSecond(rate),
    };
    let faults = |seed| Faults {
        seed,
        random: vec![(Fault::Short, 0.2), (Fault::Interrupted, 0.1)],
        ..Faults::default()
    };
    let got = on_a_drive(&d, &plan, pace(1e7), faults(1)).expect("it only takes longer");
    assert_eq!(got, want);
    for lane in [Lane::DISK_READ, Lane::DISK_WRITE] {
        let wrong = Arc::new(without(&plan, Lane::GPU, lane));
        assert!(check::check(&wrong, d.workload(), Clip::Exact).is_err());
        let shown = (0..3).any(|seed| {
            let got = on_a_drive(&d, &wrong, pace(1e7), faults(seed));
            got.ok().as_ref() != Some(&want)
        });
        assert!(shown, "the gpu lane waits for {lane} in vain");
    }
}

#[test]
fn a_place_that_cannot_be_read_or_written_is_named() {
    let d = decoder(&llama(2, true), Dtype::Bf16, ACCUMULATE);
    let plan = planned(&d, &all_spilled(&d), Clip::Exact, &beside(1e10));
    let fast = Pace {
        read: BytesPerSecond(1e10),
        write: BytesPerSecond(1e10),
    };
    let saved = plan
        .slots
        .iter()
        .find(|s| s.tier == Tier::Disk && !s.persistent && matches!(s.tensor, Tensor::Local(..)));
    let slot = saved.expect("a saved tensor on the drive");
    for kind in [Kind::Write, Kind::Read] {
        let faults = Faults {
            chosen: vec![ChosenFault {
                extent: Extent {
                    offset: slot.offset,
                    bytes: slot.bytes,
                },
                kind: Some(kind),
                fault: Fault::IoError,
                times: u32::MAX,
            }],
            ..Faults::default()
        };
        let error = on_a_drive(&d, &plan, fast, faults).expect_err("the place is broken");
        let told = format!("{error:?}");
        assert!(told.contains(&slot.offset.to_string()), "{kind:?}: {told}");
    }
}
