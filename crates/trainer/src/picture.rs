//! A run's step as it is planned, as the value that its page draws.

use lowtide_executor::task_label;
use lowtide_planner::timeline::{Content, Held, TierOver, Timed, timeline};
use lowtide_planner::{Lane, Machine, Phase, Plan, Task, Tier, Work};
use lowtide_report::account::{LaneRow, PlanReport, TaskBox, TierRow};
use lowtide_workload::Workload;

/// A picture has so many places for boxes beside each other; tasks within two of them are one box.
const PLACES: f64 = 600.0;
/// Times of a step at which memory is drawn.
const TIMES: usize = 240;

/// What a task does, as pictures name it.
fn kind(plan: &Plan, task: &Task) -> &'static str {
    match task.work {
        Work::Compute { phase, .. } => match phase {
            Phase::Forward | Phase::Evaluate | Phase::Infer => "forward",
            Phase::Recompute => "recompute",
            Phase::Backward => "backward",
        },
        Work::Update { .. } => "update",
        Work::Fold { .. } | Work::Finish { .. } | Work::AllToAll { .. } => {
            Content::Gradients.name()
        }
        Work::AllGather { piece: Some(_) } => Content::Weights.name(),
        Work::Copy | Work::Read | Work::Write => {
            Content::of(plan.slots[task.args[0].slot].tensor).name()
        }
        Work::AllGather { piece: None }
        | Work::Load { .. }
        | Work::Norm
        | Work::Losses
        | Work::Logits { .. }
        | Work::Commit => Content::Other.name(),
    }
}

/// A step in the middle of a run, as it is planned for a machine.
#[must_use]
pub fn plan_report(plan: &Plan, w: &Workload, machine: &Machine) -> PlanReport {
    let step = timeline(plan, w, machine);
    let lanes = Lane::ALL.iter().filter_map(|&lane| {
        let own = |t: &&Timed| plan.part(t.part)[t.task].lane == lane;
        let tasks: Vec<&Timed> = step.tasks.iter().filter(own).collect();
        let boxes = boxes(&tasks, step.seconds, |t| {
            let task = &plan.part(t.part)[t.task];
            (kind(plan, task), task_label(plan, w, t.part, t.task))
        });
        (!boxes.is_empty()).then(|| LaneRow {
            name: lane.name().to_owned(),
            boxes,
        })
    });
    let tiers = Tier::ALL.iter().map(|&tier| {
        let over = &step.memory[tier];
        TierRow {
            name: tier.name().to_owned(),
            planned_bytes: plan.tier(tier).planned_bytes.0,
            budget_bytes: plan.tier(tier).budget_bytes.0,
            contents: Content::ALL.map(|c| c.name().to_owned()).into(),
            kept: over.kept.into(),
            moving: at_times(over, step.seconds),
        }
    });
    PlanReport {
        seconds: step.seconds,
        rounds_left_out: u64::from(step.rounds_left_out),
        ranks: u64::from(plan.ranks),
        lanes: lanes.collect(),
        tiers: tiers.collect(),
        memory: None,
    }
}

/// Tasks of a lane in their order as boxes: short ones that follow each other are one, of the kind and the name of the
/// longest among them.
fn boxes(
    tasks: &[&Timed],
    seconds: f64,
    name: impl Fn(&Timed) -> (&'static str, String),
) -> Vec<TaskBox> {
    let place = seconds / PLACES;
    let mut all: Vec<TaskBox> = Vec::new();
    let mut longest = 0.0;
    for t in tasks {
        let long = t.end - t.start;
        if let Some(last) = all.last_mut()
            && t.start - last.end < place
            && t.end - last.start < 2.0 * place
        {
            last.end = t.end;
            last.tasks += 1;
            if long > longest {
                longest = long;
                let (kind, name) = name(t);
                (last.kind, last.name) = (kind.to_owned(), name);
            }
            continue;
        }
        longest = long;
        let (kind, name) = name(t);
        all.push(TaskBox {
            start: t.start,
            end: t.end,
            kind: kind.to_owned(),
            name,
            tasks: 1,
        });
    }
    all
}

/// What comes and goes, at some times of the step: of each stretch the moment at which most is held.
fn at_times(over: &TierOver, seconds: f64) -> Vec<(f64, Vec<u64>)> {
    let most = |held: &Held| held.iter().sum::<u64>();
    let mut all: Vec<(f64, Vec<u64>)> = Vec::new();
    let mut next = 0;
    let mut now = Held::default();
    for i in 0..TIMES {
        let [from, to] = [i, i + 1].map(|n| seconds * n as f64 / TIMES as f64);
        // What is held as the stretch begins counts too, unless that ends right there.
        let mut highest = None;
        while let Some(&(at, held)) = over.moving.get(next)
            && (at < to || i + 1 == TIMES)
        {
            if at > from && highest.is_none() {
                highest = Some(now);
            }
            now = held;
            if highest.is_none_or(|h| most(&h) < most(&now)) {
                highest = Some(now);
            }
            next += 1;
        }
        let held: Vec<u64> = highest.unwrap_or(now).into();
        if all.last().is_none_or(|last| last.1 != held) {
            all.push((from, held));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use lowtide_planner::{PartName, TaskId};

    use super::*;

    #[test]
    fn pictures_have_a_colour_for_every_kind() {
        let others = ["forward", "recompute", "backward", "update"];
        let all = Content::ALL.iter().map(|c| c.name()).chain(others);
        for kind in all {
            assert!(lowtide_report::picture::KINDS.contains(&kind), "{kind}");
        }
    }

    #[test]
    fn a_hundred_thousand_tasks_are_few_boxes_and_none_is_lost() {
        let timed = |i: u32| Timed {
            part: PartName::Steady,
            task: TaskId(i),
            start: f64::from(i),
            end: f64::from(i) + 0.5,
        };
        let many: Vec<Timed> = (0..100_000).map(timed).collect();
        let of = |all: &[Timed]| {
            let refs: Vec<&Timed> = all.iter().collect();
            boxes(&refs, 100_000.0, |t| ("forward", t.task.0.to_string()))
        };
        let drawn = of(&many);
        assert!((300..=600).contains(&drawn.len()), "{}", drawn.len());
        assert_eq!(drawn.iter().map(|b| b.tasks).sum::<u64>(), 100_000);
        assert_eq!(
            (drawn[0].start, drawn[drawn.len() - 1].end),
            (0.0, 99_999.5)
        );
        // Long ones stay alone.
        let mut two = [timed(0), timed(20_000)];
        (two[0].end, two[1].end) = (20_000.0, 99_000.0);
        assert_eq!(of(&two).iter().map(|b| b.tasks).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn the_most_that_is_held_stays_in_the_picture() {
        let held = |n: u64| [n, 0, 0, 0, 0];
        let mut moving: Vec<(f64, Held)> = (0..10_000)
            .map(|i| (f64::from(i), held(u64::from(i as u32 % 7))))
            .collect();
        moving[4_321].1 = held(99);
        let over = TierOver {
            kept: held(5),
            moving,
        };
        let told = at_times(&over, 10_000.0);
        assert!(told.len() <= TIMES && told[0].0 == 0.0);
        let high: Vec<f64> = told.iter().filter(|t| t.1[0] == 99).map(|t| t.0).collect();
        assert!(
            matches!(high[..], [at] if at <= 4_321.0 && at + 42.0 > 4_321.0),
            "{high:?}"
        );
        assert!(told.iter().all(|t| [6, 99].contains(&t.1[0])));
        // Fewer changes than times: each where it is.
        let over = TierOver {
            kept: held(0),
            moving: vec![(0.0, held(1)), (5_000.0, held(3))],
        };
        let told = at_times(&over, 10_000.0);
        assert_eq!(told, [(0.0, held(1).to_vec()), (5_000.0, held(3).to_vec())]);
    }
}
