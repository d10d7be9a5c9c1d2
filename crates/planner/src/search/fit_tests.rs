//! Budgets that a refusal names: they are enough, and a tier takes little more than it must.

use lowtide_units::Bytes;

use super::climb::Candidate;
use super::fit::tightened;
use super::mix::Knobs;
use super::{Pins, PlanError, Refusal, Request, SURE, Search, Seen, fits_any, plan};
use crate::choice::{Budgets, Clip, Direct};
use crate::plan::Tier;
use crate::testing::machine;
use crate::testing::workload;

fn refused(r: &Request<'_>) -> Refusal {
    match plan(r) {
        Err(PlanError::Refused(refusal)) => *refusal,
        other => panic!("{:?}", other.map(|p| p.prediction.step_seconds)),
    }
}

#[test]
fn budgets_that_a_refusal_names_are_enough_and_little_more() {
    let (w, m) = (workload(6, 1), machine());
    let request = |budgets| Request {
        workload: &w,
        machine: &m,
        budgets,
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let mut smaller = 0;
    for device in [1, 4 << 10] {
        for host in [1, 400] {
            for disk in [0, 64 << 10] {
                let budgets = Budgets {
                    device: Bytes(device << 10),
                    host: Bytes(host << 10),
                    disk: Bytes(disk << 10),
                };
                if plan(&request(budgets)).is_ok() {
                    continue;
                }
                let first = refused(&request(budgets));
                let tight = tightened(&request(budgets), first.clone());
                let mut enough = vec![tight.nearest];
                enough.extend(tight.with_disk.map(|disk| budgets.with(Tier::Disk, disk)));
                for enough in enough {
                    assert!(plan(&request(enough)).is_ok(), "{enough:?}: {tight}");
                }
                for tier in Tier::ALL {
                    let (enough, before) = (tight.nearest.of(tier), first.nearest.of(tier));
                    assert!(
                        budgets.of(tier) <= enough && enough <= before,
                        "{tier:?}: {tight}"
                    );
                    smaller += usize::from(enough < before);
                    // A tier stays as it was where that does once the others have grown.
                    let as_it_was = tight.nearest.with(tier, budgets.of(tier));
                    if enough > budgets.of(tier) {
                        assert!(!fits_any(&request(as_it_was)), "{as_it_was:?} do: {tight}");
                    }
                    let less = Bytes(enough.0 * 15 / 16);
                    if less > budgets.of(tier) {
                        let less = tight.nearest.with(tier, less);
                        assert!(!fits_any(&request(less)), "{less:?} do, too: {tight}");
                    }
                }
            }
        }
    }
    assert!(smaller > 3, "{smaller}");
    // Much of what the host has no room for lies on the device.
    let budgets = Budgets {
        device: Bytes(4 << 20),
        host: Bytes(1 << 10),
        disk: Bytes(0),
    };
    let first = refused(&request(budgets));
    let tight = tightened(&request(budgets), first.clone());
    assert!(
        tight.nearest.host < Bytes(first.nearest.host.0 / 4),
        "{first} | {tight}"
    );
}

#[test]
fn what_is_called_enough_is_not_rounded_down() {
    for (bytes, shown) in [
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1025, "1.1 KiB"),
        ((1 << 30) + 1, "1.1 GiB"),
        (53 * (1 << 30) / 10, "5.3 GiB"),
        ((534 << 30) / 100, "5.4 GiB"),
        (u64::MAX, "16777216.00 TiB"),
    ] {
        assert_eq!(super::up(Bytes(bytes)).to_string(), shown, "{bytes}");
    }
}

/// A plan with all state on the device is surer than one that is a little faster, not than one that is much faster.
#[test]
fn why_not_is_said_of_plans_that_are_about_as_fast() {
    let (w, m) = (workload(6, 1), machine());
    let r = Request {
        workload: &w,
        machine: &m,
        budgets: Budgets {
            device: Bytes(1 << 40),
            host: Bytes(1 << 40),
            disk: Bytes(0),
        },
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let (knobs, seen) = (Knobs::new(&r, Direct::NONE), Seen::default());
    let search = Search::new(r, &knobs, &seen);
    let all: Vec<Candidate> = search
        .starting_points()
        .into_iter()
        .map(|(mix, choice)| Candidate {
            seconds: search.seconds(&choice),
            mix,
            choice,
        })
        .collect();
    let mut much = 0;
    for best in &all {
        // As if all its state were on the device.
        let mut best = best.clone();
        best.choice.weights.fill(Tier::Device);
        best.choice.optimizer.fill(Tier::Device);
        let seconds = search.seconds(&best.choice);
        for other in all.iter().filter(|other| other.seconds < seconds) {
            let far = seconds > SURE * other.seconds;
            much += usize::from(far);
            let why = search.why_not(&other.choice, &best);
            let want = if far { "Unseen" } else { "Sure" };
            assert_eq!(format!("{why:?}"), want, "{seconds} {}", other.seconds);
        }
    }
    assert!(
        much > 0,
        "{:?}",
        all.iter().map(|c| c.seconds).collect::<Vec<_>>()
    );
}
