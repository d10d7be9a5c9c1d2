//! Saved tensors that pass through the host to a drive, wherever each of them goes and however slow the drive is.

use std::sync::Arc;

use crate::common::places::{beside, planned, written};
use crate::common::{Trained, batch, choice, decoder, hyper, llama, open, quick, rule, train};
use lowtide_model::{Decoder, random_init};
use lowtide_planner::{Choice, Clip, Lane, PartName, Plan, Saved, TaskId, Tensor, Tier, check};
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

/// Slots are used again when their copies are predicted to have ended. A drive a thousand times slower than that only
/// delays; were it not for the edges, it would corrupt.
#[test]
fn a_drive_slower_than_planned_delays_and_corrupts_nothing() {
    let d = decoder(&llama(3, true), Dtype::Bf16, ACCUMULATE);
    let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
    let plan = planned(&d, &resident, Clip::Exact, &beside(1e9));
    let want = train(
        &mut open(&d, &plan, Clip::Exact, quick()),
        STEPS,
        ACCUMULATE,
    );
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
