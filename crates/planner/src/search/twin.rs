//! The slow twin of the search: tries every mix of homes of a small workload on a coarse grid.

use lowtide_units::{Bytes, BytesPerSecond};
use lowtide_workload::Workload;

use super::{Knobs, Pins, Request, Search, Seen, fits};
use crate::choice::{Ahead, Budgets, Choice, Clip, Direct, LoopOrder, Pieces, Processor, Saved};
use crate::machine::Machine;
use crate::plan::Tier;
use crate::testing::{frozen, machine, workload};

/// What a unit may get.
#[derive(Clone, Copy)]
enum Class {
    Resident,
    Streamed,
    Host,
}

const CLASSES: [Class; 3] = [Class::Resident, Class::Streamed, Class::Host];

fn give(c: &mut Choice, u: usize, class: Class) {
    let (tier, update) = match class {
        Class::Resident => (Tier::Device, Processor::Device),
        Class::Streamed => (Tier::Host, Processor::Device),
        Class::Host => (Tier::Host, Processor::Host),
    };
    c.weights[u] = tier;
    c.optimizer[u] = tier;
    c.update[u] = update;
    if matches!(class, Class::Resident) {
        c.gradients[u] = Tier::Device;
    }
}

/// Of some units what was to stay moves to the host.
fn move_saved(c: &mut Choice, units: std::ops::Range<usize>) {
    for value in c.saved[units].iter_mut().flatten() {
        if *value == Saved::Keep {
            *value = Saved::Host;
        }
    }
}

/// Every choice of the grid: a class for each unit (the head has that of the last block, because it is small here);
/// gradients of the other units on the device or the host; how many of the last blocks keep their saved tensors, and
/// whether the costly ones of the other blocks move; inputs; copies ahead.
fn grid(w: &Workload) -> Vec<Choice> {
    let n = w.units.len();
    let blocks = n - 2;
    let mut all = Vec::new();
    for code in 0..CLASSES.len().pow(n as u32 - 1) {
        for gradients in [Tier::Device, Tier::Host] {
            for kept in 0..=blocks {
                for (light, moved) in [(0, false), (blocks - kept, false), (blocks - kept, true)] {
                    for inputs in [Tier::Device, Tier::Host] {
                        for ahead in [Bytes(64 << 10), Bytes(64 << 20)] {
                            for weights in [Tier::Device, Tier::Host] {
                                let mut c = Choice::resident(w);
                                c.order = LoopOrder::LayerMajor;
                                c.pieces = Pieces::Unit;
                                c.gradients = vec![gradients; n];
                                (c.inputs, c.ahead) = (inputs, Ahead::each(ahead));
                                let mut rest = code;
                                for u in 0..n {
                                    let digit = rest % CLASSES.len();
                                    give(&mut c, u, CLASSES[digit]);
                                    if u < n - 2 {
                                        rest /= CLASSES.len();
                                    }
                                    if weights == Tier::Device {
                                        c.weights[u] = Tier::Device;
                                    }
                                }
                                c.keep_blocks(w, kept, light);
                                if moved {
                                    move_saved(&mut c, 1..1 + light);
                                }
                                all.push(c);
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

/// Machines that differ in what is scarce.
fn machines() -> Vec<(&'static str, Machine)> {
    let with = |change: &dyn Fn(&mut Machine)| {
        let mut m = machine();
        // Small tasks, so small overheads.
        m.op_overhead = lowtide_units::Seconds(1e-7);
        m.copy_overhead = lowtide_units::Seconds(1e-7);
        m.host_overhead = lowtide_units::Seconds(1e-7);
        change(&mut m);
        m
    };
    vec![
        ("round rates", with(&|_| ())),
        (
            "slow host",
            with(&|m| m.updates = crate::testing::updates(2e8)),
        ),
        (
            "slow links",
            with(&|m| (m.h2d, m.d2h) = (BytesPerSecond(1e9), BytesPerSecond(1e9))),
        ),
        (
            "slow device",
            with(&|m| m.matmul_bf16 = lowtide_units::FlopsPerSecond(1e10)),
        ),
    ]
}

#[test]
fn the_search_is_within_three_percent_of_trying_everything() {
    let w = workload(3, 1);
    let all = grid(&w);
    let whole = crate::testing::needs(&w, &Choice::resident(&w), Clip::Exact)[0];
    let mut worst: f64 = 0.0;
    for (name, m) in machines() {
        let seen = Seen::default();
        for share in [0.3, 0.5, 0.7] {
            let budgets = Budgets {
                device: Bytes((whole as f64 * share) as u64),
                host: Bytes(64 << 20),
                disk: Bytes(0),
            };
            let request = Request {
                workload: &w,
                machine: &m,
                budgets,
                clip: Clip::Exact,
                pins: Pins::default(),
            };
            let knobs = Knobs::new(&request, Direct::NONE);
            let search = Search::new(request, &knobs, &seen);
            let mut best = f64::INFINITY;
            let mut which = None;
            for c in &all {
                let size = search.size(c);
                if size.bound < best && fits(&size.need, &budgets) && search.holds_whole(c) {
                    let seconds = search.seconds(c);
                    if seconds < best {
                        (best, which) = (seconds, Some(c));
                    }
                }
            }
            let fresh = Seen::default();
            let candidate = Search::new(request, &knobs, &fresh).best().expect("fits");
            let found = candidate.seconds;
            worst = worst.max(found / best - 1.0);
            assert!(
                found <= best * 1.03,
                "{name}, {share} of the device: {found} found, {best} exists\n{:?}\n{which:?}",
                candidate.mix
            );
        }
    }
    // The grid is coarse: the search may be better, never by finding another problem.
    assert!(worst > -0.5, "{worst}");
}

/// Every choice of where the weights of each unit are: all on the host, all with a copy on the device, or only the
/// frozen ones there; with gradients on either side and all or none of the saved tensors kept.
fn grid_of_bases(w: &Workload) -> Vec<Choice> {
    let n = w.units.len();
    let mut all = Vec::new();
    for code in 0..3usize.pow(n as u32) {
        for gradients in [Tier::Device, Tier::Host] {
            for kept in [0, n - 2] {
                let mut c = Choice::resident(w);
                c.gradients = vec![gradients; n];
                c.bases = vec![false; n];
                let mut rest = code;
                for u in 0..n {
                    give(&mut c, u, Class::Host);
                    match rest % 3 {
                        0 => {}
                        1 => c.weights[u] = Tier::Device,
                        _ => c.bases[u] = true,
                    }
                    rest /= 3;
                }
                c.ahead = Ahead::each(Bytes(64 << 20));
                c.keep_blocks(w, kept, 0);
                all.push(c);
            }
        }
    }
    all
}

/// Of blocks that have a frozen matrix beside a trained one, as in training in subspaces: where links are slow and the
/// device cannot hold all of both, frozen ones stay there alone.
#[test]
fn bases_that_stay_alone_are_found() {
    let w = frozen(workload(3, 1), &[2, 5, 8]);
    let (all, whole) = (
        grid_of_bases(&w),
        crate::testing::needs(&w, &Choice::resident(&w), Clip::Exact)[0],
    );
    let (_, m) = machines().swap_remove(2);
    let (seen, mut gains) = (Seen::default(), 0);
    for share in [0.2, 0.25, 0.3, 0.35, 0.4] {
        let budgets = Budgets {
            device: Bytes((whole as f64 * share) as u64),
            host: Bytes(64 << 20),
            disk: Bytes(0),
        };
        let request = Request {
            workload: &w,
            machine: &m,
            budgets,
            clip: Clip::Exact,
            // Updates on the host, so that bytes of the device are for weights.
            pins: Pins {
                optimizer: Some(Tier::Host),
                update: Some(Processor::Host),
                ..Pins::default()
            },
        };
        let knobs = Knobs::new(&request, Direct::NONE);
        let search = Search::new(request, &knobs, &seen);
        // The fastest without bases that stay alone, and with.
        let mut best = [f64::INFINITY; 2];
        for c in &all {
            let size = search.size(c);
            let with = usize::from(c.bases.contains(&true));
            if size.bound < best[with] && fits(&size.need, &budgets) && search.holds_whole(c) {
                best[with] = best[with].min(search.seconds(c));
            }
        }
        let fresh = Seen::default();
        let found = Search::new(request, &knobs, &fresh).best().expect("fits");
        assert!(
            found.seconds <= best[0].min(best[1]) * 1.03,
            "{share} of the device: {} found, {best:?} exist\n{:?}",
            found.seconds,
            found.mix
        );
        let uses = found.choice.bases.contains(&true);
        gains += usize::from(uses && found.seconds < 0.99 * best[0]);
    }
    assert!(gains > 0, "no plan is faster for it");
}
