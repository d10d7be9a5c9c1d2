//! How much a search does, counted in drafted and simulated tasks: the same on every machine.

use lowtide_units::Bytes;

use super::mix::Count;
use super::{
    CLIMBED, IMPROVED, Knobs, MOVING, Pins, Request, Search, Seen, WORK, WORK_IN_ROUNDS, fits,
};
use crate::choice::{Budgets, Choice, Clip, Direct};
use crate::plan::Tier;
use crate::testing::{machine, needs, workload};

/// Blocks and micro-batches of large and long plans.
const BATCHES: [(u32, u32); 2] = [(96, 1), (32, 64)];

/// Work and whether there is a plan, for shares of what a resident plan needs on the device.
fn work(blocks: u32, micro_batches: u32, share: f64, host: f64, disk: bool) -> (u64, bool) {
    let w = workload(blocks, micro_batches);
    let one = workload(blocks, micro_batches.min(4));
    let whole = needs(&one, &Choice::resident(&one), Clip::Exact)[0] as f64;
    let m = machine();
    let budgets = Budgets {
        device: Bytes((whole * share) as u64),
        host: Bytes((whole * host) as u64),
        disk: Bytes(if disk { whole as u64 * 4 } else { 0 }),
    };
    let request = Request {
        workload: &w,
        machine: &m,
        budgets,
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let (knobs, seen) = (Knobs::new(&request, Direct::NONE), Seen::default());
    let search = Search::new(request, &knobs, &seen);
    let found = search.best();
    if let Ok(best) = &found {
        assert!(fits(&search.whole(&best.choice), &budgets));
    }
    (seen.work.get(), found.is_ok())
}

#[test]
fn the_work_of_a_search_is_bounded() {
    let (mut planned, mut refused) = (0, 0);
    for (blocks, micro_batches) in BATCHES {
        // What the search may do from its starts, and as much again for finding them and for the last
        // look of each climb.
        let allowed = if micro_batches > 2 {
            WORK_IN_ROUNDS
        } else {
            WORK
        };
        let [spend, first, best, others] = allowed.map(|w| w as usize);
        let starts = (IMPROVED + 2 * MOVING) * spend + (IMPROVED + MOVING) * first;
        let most = 2 * (starts + best + (2 * CLIMBED - 1) * others) as u64;
        for (share, host, disk) in [
            (0.3, 4.0, false),
            (0.3, 0.3, true),
            (0.05, 4.0, false),
            (0.05, 0.1, true),
            (0.001, 0.001, true),
        ] {
            let (work, fits) = work(blocks, micro_batches, share, host, disk);
            planned += u32::from(fits);
            refused += u32::from(!fits);
            assert!(
                work <= most,
                "{blocks} blocks, {micro_batches} micro-batches, {share} of the device, {host} of the \
                 host, disk {disk}, fits {fits}: {work} done, {most} allowed"
            );
        }
    }
    assert!(
        planned >= 8 && refused == 2,
        "{planned} planned, {refused} refused"
    );
}

/// Where the drives rule, the first that is tried is as much on the device as it holds: half of it, as of anything
/// whose worth is not known, may be all that there is work for.
#[test]
fn what_stays_off_the_drives_comes_first() {
    let w = workload(16, 4);
    let mut m = machine();
    let disk = m.disk.as_mut().expect("a drive");
    for rate in [&mut disk.read, &mut disk.write, &mut disk.mixed] {
        rate.0 *= 0.01;
    }
    let whole = needs(&w, &Choice::resident(&w), Clip::Exact)[0];
    let budgets = Budgets {
        device: Bytes(whole / 2),
        host: Bytes(whole / 6),
        disk: Bytes(whole * 4),
    };
    let request = Request {
        workload: &w,
        machine: &m,
        budgets,
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let knobs = Knobs::new(&request, Direct::NONE);
    let seen = Seen::default();
    let search = Search::new(request, &knobs, &seen);
    let start = search.starts().expect("fits").swap_remove(0);
    assert!(search.ruled_by_drives(&start));
    let full = search.filled(&start.mix, Count::Resident).expect("fits");
    let allowed = [&start.mix, &full].map(|mix| mix.get(Count::Resident));
    let has = |work: u64| {
        let seen = Seen::default();
        let search = Search::new(request, &knobs, &seen);
        search.spend(start.clone(), work).mix.get(Count::Resident)
    };
    let seen: Vec<usize> = (0..30).map(|n| has(1_000 * n)).collect();
    assert!(
        seen.iter().all(|has| allowed.contains(has)),
        "{seen:?}, {allowed:?}"
    );
    assert!(
        allowed.iter().all(|n| seen.contains(n)),
        "{seen:?}, {allowed:?}"
    );
}

/// Updates on the host that win less than a prediction's error are not worth being late.
#[test]
fn state_that_fits_stays_on_the_device_unless_the_host_wins_clearly() {
    let w = workload(6, 1);
    let mut seen_both = [false; 2];
    for host in [2e8, 4e8, 5e8, 6e8, 7e8, 8e8, 1e9, 2e9] {
        let mut m = machine();
        m.updates = crate::testing::updates(host);
        let request = Request {
            workload: &w,
            machine: &m,
            budgets: Budgets::UNLIMITED,
            clip: Clip::Exact,
            pins: Pins::default(),
        };
        let (knobs, seen) = (Knobs::new(&request, Direct::NONE), Seen::default());
        let search = Search::new(request, &knobs, &seen);
        let fastest = search.fastest_of_all().expect("fits");
        if !fastest.choice.optimizer.contains(&Tier::Host) {
            continue;
        }
        let resident = search.resident(&fastest).expect("fits");
        let best = search.best().expect("fits");
        let clearly = resident.seconds > 1.03 * fastest.seconds;
        assert_eq!(best.choice.optimizer.contains(&Tier::Host), clearly);
        seen_both[usize::from(clearly)] = true;
    }
    assert_eq!(
        seen_both, [true; 2],
        "some host wins a little, some host much"
    );
}
