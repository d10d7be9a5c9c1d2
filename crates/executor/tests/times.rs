//! Lanes that take stated times, by sleeping: what plans then take is what the simulator says that they do.

#[path = "../../planner/src/testing/workloads.rs"]
#[allow(dead_code, reason = "the planner's tests use the rest")]
mod workloads;

use std::sync::Arc;
use std::time::Instant;

use lowtide_device::{Memory, Queue};
use lowtide_executor::{Engine, EngineError, Options, Record, Runner, TaskCall, Tiers};
use lowtide_planner::simulate::{alone, simulate};
use lowtide_planner::{
    Ahead, Budgets, Choice, Clip, DiskRates, LoopOrder, Machine, PartName, PerPart, Plan,
    Processor, Saved, Source, Tier, UpdateRate, Updates, build, check,
};
use lowtide_tiers::{Arena, Fill, RamConfig, RamDisk};
use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::{Optimizer, Workload};

/// Computes nothing: times alone are looked at.
struct Nothing;

impl Engine for Nothing {
    type Step = ();

    fn run(&self, _: &Queue, _: TaskCall<'_>, (): &()) -> Result<(), EngineError> {
        Ok(())
    }

    fn record(&self, _: TaskCall<'_>, (): &()) -> Result<Record, EngineError> {
        unreachable!("nothing is durable")
    }
}

/// Rates at which tasks take milliseconds, so that what threads take to wake up is little beside it. No lane takes
/// anything from another: sleeping ones do not. Links and drives move so many bytes a second.
fn machine(links: f64) -> Machine {
    Machine {
        name: "sleeping".into(),
        date: "2026-11-28".into(),
        source: Source::Measured,
        note: String::new(),
        matmul_bf16: FlopsPerSecond(1e12),
        matmul_f32: FlopsPerSecond(1e12),
        device_memory: BytesPerSecond(1e12),
        op_overhead: Seconds(6e-3),
        h2d: BytesPerSecond(links),
        d2h: BytesPerSecond(links),
        copy_overhead: Seconds(2e-3),
        net: None,
        links: None,
        network: None,
        updates: Updates::of(UpdateRate {
            optimizer: Optimizer::default(),
            host: 5e6,
            device: 1e7,
        }),
        host_overhead: Seconds(2e-3),
        disk: Some(DiskRates {
            read: BytesPerSecond(links),
            write: BytesPerSecond(links),
            mixed: BytesPerSecond(2.0 * links),
            latency: Seconds(2e-3),
            rated_writes: None,
            direct: None,
        }),
        shared: Vec::new(),
        together: Vec::new(),
        device_reserve: Bytes(0),
        host_reserve: Bytes(0),
        cuda: false,
        ops: Default::default(),
    }
}

const BATCHES: [PartName; 4] = [
    PartName::First,
    PartName::Steady,
    PartName::Steady,
    PartName::Drain,
];

/// How long the batches take by a plan.
fn measured(plan: &Arc<Plan>, w: &Arc<Workload>, machine: &Machine) -> f64 {
    let arena = |tier| {
        let arena = Arena::new(plan.tier(tier).planned_bytes, Fill::Zero);
        Memory::new(arena.expect("room"))
    };
    let disk = plan.tier(Tier::Disk).planned_bytes;
    let disk = (disk.0 > 0).then(|| RamDisk::open(&RamConfig::new(disk)).expect("room").0);
    let tiers = Tiers {
        device: arena(Tier::Device),
        host: arena(Tier::Host),
        disk,
    };
    let options = Options {
        threads: 1,
        pace: Some(Arc::new(PerPart::of(|part| alone(plan, w, machine, part)))),
        ..Options::default()
    };
    let made = Runner::new(
        Arc::clone(plan),
        Arc::clone(w),
        Arc::new(Nothing),
        tiers,
        options,
    );
    let mut runner = made.expect("a runner of the CPU device");
    let begin = Instant::now();
    for part in BATCHES {
        runner.submit(part, Arc::new(())).expect("it runs");
    }
    runner.wait().expect("it ends");
    begin.elapsed().as_secs_f64()
}

/// When the last task of a plan's batches ends, by the simulator.
fn predicted(plan: &Plan, w: &Workload, machine: &Machine) -> f64 {
    let run = simulate(plan, w, machine, &BATCHES);
    (0..BATCHES.len()).map(|k| run.end(k)).fold(0.0, f64::max)
}

/// State on the host, updated there; saved tensors as said.
fn on_host(w: &Workload, saved: Saved) -> Choice {
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Host; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.ahead = Ahead::UNLIMITED;
    c.saved.iter_mut().for_each(|s| s.fill(saved));
    c
}

/// By how much a plan may take longer than predicted: threads wake up late, and cores may have other work.
const LATE: f64 = 1.08;

/// How often a plan that is late is tried again.
const TRIES: usize = 5;

#[test]
fn a_plan_takes_the_time_that_the_simulator_says() {
    let resident = |w: &Workload| Choice::resident(w);
    let with = |saved| move |w: &Workload| on_host(w, saved);
    let ahead = |w: &Workload| Choice {
        ahead: Ahead::NONE,
        ..on_host(w, Saved::Host)
    };
    let by_batch = |w: &Workload| Choice {
        order: LoopOrder::BatchMajor,
        ..on_host(w, Saved::Recompute)
    };
    let state_on_disk = |w: &Workload| Choice {
        optimizer: vec![Tier::Disk; w.units.len()],
        ..on_host(w, Saved::Keep)
    };
    type Way<'a> = (&'a str, u32, f64, Clip, &'a dyn Fn(&Workload) -> Choice);
    let ways: [Way<'_>; 8] = [
        ("all on the device", 2, 1e7, Clip::Exact, &resident),
        ("kept", 1, 1e7, Clip::Exact, &with(Saved::Keep)),
        (
            "computed again",
            1,
            1e7,
            Clip::None,
            &with(Saved::Recompute),
        ),
        ("moved to the host", 1, 2e6, Clip::Exact, &with(Saved::Host)),
        ("fetched just in time", 1, 1e7, Clip::Previous, &ahead),
        ("moved to a drive", 1, 2e6, Clip::Exact, &with(Saved::Disk)),
        ("state on a drive", 1, 5e6, Clip::Exact, &state_on_disk),
        (
            "one micro-batch after the other",
            2,
            1e7,
            Clip::None,
            &by_batch,
        ),
    ];
    let (mut overlaps, mut waits) = (0, 0);
    for (name, accumulate, links, clip, choice) in ways {
        let machine = machine(links);
        let w = Arc::new(workloads::workload(2, accumulate));
        let plan = build(&w, &choice(&w), clip, Budgets::UNLIMITED, &machine);
        check::check(&plan, &w, clip).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        let plan = Arc::new(plan);
        let says = predicted(&plan, &w, &machine);
        let mut least = f64::INFINITY;
        for _ in 0..TRIES {
            let takes = measured(&plan, &w, &machine);
            assert!(takes >= says, "{name}: {takes} s, {says} predicted");
            least = least.min(takes);
            if least <= says * LATE {
                break;
            }
        }
        assert!(least <= says * LATE, "{name}: {least} s, {says} predicted");
        // Lanes that take turns, and lanes that wait for nothing, are far outside of what is allowed.
        let times = |part| alone(&plan, &w, &machine, part);
        let in_turn: f64 = BATCHES.iter().flat_map(|&p| times(p)).map(|t| t.0).sum();
        overlaps += usize::from(in_turn > says * LATE);
        let mut free = (*plan).clone();
        for part in PartName::ALL {
            free.parts[part].iter_mut().for_each(|t| t.after.clear());
        }
        free.seams.iter_mut().for_each(|seam| seam.edges.clear());
        waits += usize::from(predicted(&free, &w, &machine) * LATE < says);
    }
    assert!(overlaps >= 6 && waits >= 6, "{overlaps} {waits}");
}
