//! What must not be in a durable plan, planted and found.

use lowtide_units::Bytes;
use lowtide_workload::Workload;

use crate::build::{assemble, build};
use crate::check::check;
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Pieces, Processor, Saved};
use crate::draft::draft;
use crate::layout::{Packing, layout};
use crate::mutants::without_task;
use crate::plan::{Lane, PartName, Plan, Task, TaskId, Tensor, Tier, Use, Version, Work};
use crate::search::{Pins, PlanError, Request, plan};
use crate::testing::{machine, workload};

fn durable(weights: Tier, update: Processor) -> Choice {
    let w = workload(2, 2);
    let mut c = Choice::resident(&w);
    c.weights.fill(weights);
    c.update.fill(update);
    c.gradients.fill(Tier::Host);
    c.inputs = Tier::Host;
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
    c.make_durable();
    c
}

fn built(c: &Choice, clip: Clip) -> Plan {
    let plan = build(&workload(2, 2), c, clip, Budgets::UNLIMITED, &machine());
    check(&plan, &workload(2, 2), clip).unwrap_or_else(|fault| panic!("{fault}: {c:?}"));
    plan
}

#[track_caller]
fn fails(plan: &Plan, clip: Clip, words: &str) {
    let fault = check(plan, &workload(2, 2), clip).expect_err(words);
    assert!(fault.what.contains(words), "{fault} instead of {words}");
}

const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

/// Position of the first use by a disk task of a version of some weights in a part.
fn first_use(plan: &Plan, part: PartName, work: Work, version: Version) -> (TaskId, usize) {
    let tasks = plan.part(part);
    tasks
        .pairs()
        .filter(|(_, t)| t.work == work)
        .find_map(|(i, t)| {
            let is = |&a: &usize| {
                let s = &plan.slots[t.args[a].slot];
                matches!(s.tensor, Tensor::Weight(_)) && s.version.is_some_and(|v| v.0 == version)
            };
            (0..t.args.len()).find(is).map(|a| (i, a))
        })
        .unwrap_or_else(|| panic!("{part:?} has a {work:?} of {version:?} weights"))
}

fn other_version(plan: &mut Plan, part: PartName, (task, arg): (TaskId, usize)) {
    let slot = &mut plan.parts[part][task].args[arg].slot;
    *slot = plan.slots[*slot].version.expect("durable").1;
}

#[test]
fn a_write_to_the_current_version_is_found() {
    for clip in CLIPS {
        let good = built(&durable(Tier::Disk, Processor::Host), clip);
        for part in [PartName::First, PartName::Steady, PartName::Drain] {
            if !good.commits(part) {
                continue;
            }
            let mut broken = good.clone();
            let at = first_use(&good, part, Work::Write, Version::Next);
            other_version(&mut broken, part, at);
            fails(&broken, clip, "writes the current version");
        }
    }
}

#[test]
fn a_read_of_the_wrong_version_is_found() {
    // Before the update the next version is of the batch before last, after it the current is old.
    let cases = [
        (Clip::Exact, PartName::First, Version::Current),
        (Clip::Exact, PartName::Evaluate, Version::Current),
        (Clip::Exact, PartName::Steady, Version::Next),
        (Clip::Previous, PartName::Steady, Version::Current),
        (Clip::None, PartName::Infer, Version::Current),
    ];
    for (clip, part, version) in cases {
        let good = built(&durable(Tier::Disk, Processor::Host), clip);
        let mut broken = good.clone();
        let at = first_use(&good, part, Work::Read, version);
        other_version(&mut broken, part, at);
        let fault = check(&broken, &workload(2, 2), clip).expect_err("the wrong version");
        let told = ["unwritten", "stale", "still uses"];
        assert!(told.iter().any(|w| fault.what.contains(w)), "{fault}");
    }
}

#[test]
fn a_commit_that_misses_something_is_found() {
    for clip in CLIPS {
        for weights in Tier::ALL {
            let good = built(&durable(weights, Processor::Host), clip);
            let part = PartName::Steady;
            let at = |plan: &Plan| {
                let tasks = plan.part(part);
                tasks
                    .position(|t| t.work == Work::Commit)
                    .expect("a commit")
            };
            let commit = at(&good);
            let args = good.part(part)[commit].args.len();
            for k in 0..args - 1 {
                let mut broken = good.clone();
                broken.parts[part][commit].args.remove(k);
                fails(&broken, clip, "commits without");
            }
            // No commit at all, and one before the last write.
            let broken = without_task(&good, part, commit);
            fails(&broken, clip, "0 commits");
            let last =
                |t: &Task| t.work == Work::Write && good.slots[t.args[1].slot].version.is_some();
            let tasks = good.part(part);
            let write = tasks.rposition(last).expect("written");
            let mut broken = good.clone();
            let written = broken.parts[part][write].args.clone();
            let committed = broken.parts[part][commit].args.clone();
            let (a, b) = (&written, &committed);
            broken.parts[part][write].args = b.clone();
            broken.parts[part][write].work = Work::Commit;
            broken.parts[part][commit].args = a.clone();
            broken.parts[part][commit].work = Work::Write;
            assert!(
                check(&broken, &workload(2, 2), clip).is_err(),
                "{clip:?} {weights}"
            );
        }
    }
}

/// On the lane of the writes a commit needs no edge. At the end of the gpu's lane it does, and
/// without the one to the next batch's writes the checker refuses.
#[test]
fn a_write_over_the_version_that_is_being_left_waits_for_the_commit() {
    let w = workload(2, 2);
    let clip = Clip::Exact;
    let c = durable(Tier::Host, Processor::Host);
    let rates = crate::draft::Rates::new(&w, &machine());
    let mut d = draft(&w, &rates, &c, clip, &PartName::ALL);
    let mut tasks = d.parts[PartName::Steady].to_vec();
    let commit = tasks.iter().position(|t| t.work == Work::Commit);
    let commit = tasks.remove(commit.expect("a commit"));
    tasks.push(Task {
        lane: Lane::GPU,
        ..commit
    });
    d.parts[PartName::Steady] = tasks.into();
    let l = layout(&d.slots, PartName::ALL.len(), Packing::Usual);
    let mut moved = assemble(&w, &c, clip, d, l, &PartName::ALL);
    moved.tiers = built(&c, clip).tiers;
    check(&moved, &workload(2, 2), clip).expect("edges make up for the lane");
    let mut broken = moved.clone();
    let mut cut = 0;
    for seam in &mut broken.seams {
        let from = &moved.parts[seam.from];
        let before = seam.edges.len();
        seam.edges.retain(|&(_, f)| from[f].work != Work::Commit);
        cut += before - seam.edges.len();
    }
    assert!(cut > 0);
    fails(&broken, clip, "does not wait for lane gpu");
}

/// Of several ranks none writes over a version before all have committed the one behind it.
#[test]
fn a_write_before_all_ranks_have_committed_is_found() {
    let w = Workload {
        ranks: 2,
        ..workload(2, 2)
    };
    for clip in CLIPS {
        for update in [Processor::Host, Processor::Device] {
            let c = durable(Tier::Host, update);
            let good = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
            check(&good, &w, clip).expect("a right plan");
            let exchange = |t: &Task| t.lane == Lane::NET;
            let commit = |part: PartName, t: TaskId| good.parts[part][t].work == Work::Commit;
            let (mut broken, mut cut) = (good.clone(), 0);
            for part in PartName::ALL {
                for task in broken.parts[part].iter_mut().filter(|t| exchange(t)) {
                    let before = task.after.len();
                    task.after.retain(|&d| !commit(part, d));
                    cut += before - task.after.len();
                }
            }
            for seam in &mut broken.seams {
                let (from, to) = (seam.from, seam.to);
                let before = seam.edges.len();
                seam.edges
                    .retain(|&(t, f)| !(exchange(&good.parts[to][t]) && commit(from, f)));
                cut += before - seam.edges.len();
            }
            assert!(cut > 0, "{clip:?}");
            check(&broken, &w, clip).expect_err("ranks may be two steps apart");
        }
    }
}

#[test]
fn every_edge_of_a_durable_plan_is_needed() {
    for (ranks, clip) in [
        (1, Clip::Exact),
        (1, Clip::Previous),
        (2, Clip::Exact),
        (2, Clip::None),
    ] {
        let w = Workload {
            ranks,
            ..workload(2, if ranks == 1 { 2 } else { 1 })
        };
        let c = durable(Tier::Disk, Processor::Device);
        let good = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
        check(&good, &w, clip).expect("a right plan");
        for part in PartName::ALL {
            for task in good.part(part).ids() {
                for k in 0..good.part(part)[task].after.len() {
                    let mut broken = good.clone();
                    broken.parts[part][task].after.remove(k);
                    assert!(check(&broken, &w, clip).is_err(), "{part:?} {task} {k}");
                }
            }
        }
        for s in 0..good.seams.len() {
            for k in 0..good.seams[s].edges.len() {
                let mut broken = good.clone();
                broken.seams[s].edges.remove(k);
                assert!(check(&broken, &w, clip).is_err(), "seam {s} {k}");
            }
        }
    }
}

#[test]
fn durable_state_takes_twice_the_disk_and_the_traffic_of_the_weights() {
    let w = workload(3, 1);
    let request = |durable, optimizer, disk| Request {
        workload: &w,
        machine: Box::leak(Box::new(machine())),
        budgets: Budgets {
            device: Bytes(8 << 20),
            host: Bytes(16 << 20),
            disk: Bytes(disk),
        },
        clip: Clip::Exact,
        pins: Pins {
            durable,
            optimizer,
            ..Pins::default()
        },
    };
    let found = plan(&request(true, None, 64 << 20)).expect("fits");
    let state_only = plan(&request(false, Some(Tier::Disk), 64 << 20)).expect("fits");
    let stays = |p: &Plan| p.tier(Tier::Disk).weights.0 + p.tier(Tier::Disk).optimizer.0;
    let parameters: u64 = found.pieces.iter().map(|p| p.elements).sum();
    assert!(stays(&found) >= 24 * parameters && stays(&found) < 25 * parameters);
    let written = |p: &Plan| p.prediction.disk_bytes_written.0;
    let more = written(&found) - written(&state_only);
    assert!(
        (2 * parameters..3 * parameters).contains(&more),
        "{more} of {parameters}"
    );
    // Which version a read means says the table of slots; where they lie, the pieces alone.
    let other = plan(&Request {
        budgets: Budgets {
            device: Bytes(2 << 20),
            host: Bytes(3 << 20),
            disk: Bytes(96 << 20),
        },
        pins: Pins {
            pieces: Some(found.choice.pieces),
            gradients: Some(Tier::Disk),
            ..request(true, None, 0).pins
        },
        ..request(true, None, 0)
    })
    .expect("fits");
    assert_ne!(other.choice, found.choice);
    assert_eq!(other.durable_layout(), found.durable_layout());
    let cut = Pieces::Split(1 << 10);
    let otherwise = built(
        &Choice {
            pieces: cut,
            order: LoopOrder::BatchMajor,
            ..durable(Tier::Host, Processor::Host)
        },
        Clip::Exact,
    );
    let whole = built(&durable(Tier::Host, Processor::Host), Clip::Exact);
    assert_ne!(otherwise.durable_layout(), whole.durable_layout());
    // A disk that holds one version only.
    let refused = plan(&request(true, None, 14 * parameters));
    let Err(PlanError::Refused(r)) = refused else {
        panic!("{refused:?}")
    };
    assert!(r.nearest.disk.0 >= 24 * parameters, "{r}");
}

#[test]
fn nothing_of_another_plan_is_durable() {
    let w = workload(2, 1);
    let mut c = Choice::resident(&w);
    c.optimizer.fill(Tier::Disk);
    c.weights.fill(Tier::Disk);
    c.update.fill(Processor::Host);
    let plain = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    assert!(plain.slots.iter().all(|s| s.version.is_none()));
    assert!(PartName::ALL.iter().all(|&p| !plain.commits(p)));
    // A durable plan with a home of one version.
    let mut broken = built(&durable(Tier::Host, Processor::Host), Clip::Exact);
    let mut slots = broken.slots.ids();
    let slot = slots
        .find(|&s| broken.slots[s].version.is_some())
        .expect("durable");
    let (_, other) = broken.slots[slot].version.take().expect("as above");
    broken.slots[other].version = None;
    fails(&broken, Clip::Exact, "is not durable");
    let reads = |p: &Plan| {
        let tasks = p.parts.values().flatten();
        let on = |a: &crate::plan::Arg| p.slots[a.slot].tier == Tier::Disk;
        tasks
            .flat_map(|t| &t.args)
            .filter(|a| on(a) && a.access != Use::Read)
            .count()
    };
    assert!(reads(&plain) > 0);
}
