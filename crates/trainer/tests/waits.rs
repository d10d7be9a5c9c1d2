//! What the gpu lane waited for, as measured, is what was done to it.

#![allow(clippy::print_stderr, reason = "measured times are worth reading")]

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{batch, checked, choice, decoder, hyper, llama, open, quick, rule};
use lowtide_model::{Decoder, random_init};
use lowtide_planner::waits::Cause;
use lowtide_planner::{Clip, Lane, Plan, Tier};
use lowtide_session::{DiskChoice, Session, SessionOptions};
use lowtide_tiers::{Faults, RamConfig, RamDisk, TierError};
use lowtide_workload::Dtype;

const STEPS: u64 = 6;

/// Seconds by cause of some steps, what they took in all, and the gpu lane's work in them.
struct Waited {
    causes: Vec<(Cause, f64)>,
    seconds: f64,
    /// From before the step in front of them: its last tasks may be counted after its outcome is known,
    /// and then they are among these causes.
    at_most: f64,
    busy: f64,
}

impl Waited {
    fn of(&self, cause: Cause) -> f64 {
        let found = self.causes.iter().find(|(c, _)| *c == cause);
        found.expect("every cause is there").1
    }

    fn sum(&self) -> f64 {
        self.causes.iter().map(|(_, s)| s).sum()
    }
}

/// Steps one after the other, `pause` between the end of each and the next.
fn steps(session: &mut Session, pause: Duration) -> Waited {
    let step = |session: &mut Session, s: u64| {
        let data = session.submit(batch(s, 1), hyper(s)).expect("submits");
        session.outcome(&data).expect("steps");
    };
    let earlier = Instant::now();
    step(session, 1);
    let (before, begin) = (session.measured(), Instant::now());
    for s in 2..2 + STEPS {
        sleep(pause);
        step(session, s);
    }
    session.drain().expect("drains");
    let measured = session.measured().since(&before);
    let waited = Waited {
        causes: Cause::ALL.into_iter().zip(measured.gpu_waits).collect(),
        seconds: begin.elapsed().as_secs_f64(),
        at_most: earlier.elapsed().as_secs_f64(),
        busy: measured.lane(Lane::GPU).busy_seconds,
    };
    eprintln!(
        "{:.3} s, busy {:.3} s, waits {:?}",
        waited.seconds, waited.busy, waited.causes
    );
    waited
}

fn plan(d: &Decoder, tier: Tier, clip: Clip) -> Arc<Plan> {
    checked(d, &choice(d, tier, tier, tier), clip)
}

#[test]
fn work_and_waits_fill_the_time_and_a_late_submission_is_named() {
    let d = decoder(&llama(2, true), Dtype::Bf16, 1);
    let plan = plan(&d, Tier::Device, Clip::Exact);
    let mut session = open(&d, &plan, Clip::Exact, quick());
    let pause = Duration::from_millis(40);
    let waited = steps(&mut session, pause);
    let paused = pause.as_secs_f64() * STEPS as f64;
    // A pause begins with the end of the step before, whose last tasks may end behind its outcome.
    assert!(waited.of(Cause::Unsubmitted) >= 0.9 * paused);
    assert!(waited.busy + waited.sum() <= waited.at_most);
    // Between the tasks of a stretch there is next to nothing, but on a machine that others use, too.
    assert!(waited.busy + waited.sum() >= waited.seconds * 0.6);
    assert_eq!(waited.of(Cause::Disk), 0.0);
}

#[test]
fn a_slow_disk_is_named() {
    let d = decoder(&llama(2, true), Dtype::Bf16, 1);
    let plan = plan(&d, Tier::Disk, Clip::Exact);
    let (disk, _medium) = RamDisk::open(&RamConfig {
        faults: Faults {
            latency_max: Duration::from_millis(10),
            ..Faults::default()
        },
        ..RamConfig::new(plan.tier(Tier::Disk).planned_bytes)
    })
    .expect("memory for a disk");
    let options = SessionOptions {
        disk: DiskChoice::Open(disk),
        ..quick()
    };
    let mut session = Session::open(
        Arc::clone(&d),
        Arc::clone(&plan),
        rule(Clip::Exact),
        options,
    )
    .expect("opens");
    let homes = session.homes().expect("is idle");
    homes
        .initialise(|p, range, out| {
            random_init(d.shape(), 7, p, range, out);
            Ok::<(), TierError>(())
        })
        .expect("writes");
    drop(homes);
    let waited = steps(&mut session, Duration::ZERO);
    let rest = waited.sum() - waited.of(Cause::Disk) - waited.of(Cause::Unsubmitted);
    // Copies and updates of a model this small take microseconds, its reads milliseconds. Where the
    // reads of a step begin before its first task, the pause ends with the last of them. On a machine that others
    // use the rest is a third of what the disk takes, on an idle one a fiftieth.
    assert!(waited.of(Cause::Disk) > rest.max(0.004));
}
