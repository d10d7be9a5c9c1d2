//! Budgets that a refusal names: they are enough, and a tier takes little more than it must.

use lowtide_units::Bytes;

use super::fit::tightened;
use super::{Pins, PlanError, Refusal, Request, fits_any, plan};
use crate::choice::{Budgets, Clip};
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
