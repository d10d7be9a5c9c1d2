//! Plans again while a run goes on, where its lanes are off the rates that it was planned with.
//!
//! The lanes of the last steps are held against the plan ([`Drift`]). Where one is off, a thread of its own plans again
//! at the rates of now, beside the steps; it takes some seconds of one core, at the least priority that Linux has for a
//! usual thread. A plan that is better by enough waits until the run has a moment between two steps
//! ([`Session::replace`](lowtide_session::Session::replace)).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lowtide_executor::Measured;
use lowtide_model::Decoder;
use lowtide_planner::slowdown::Slowdown;
use lowtide_planner::waits::steady_step;
use lowtide_planner::{
    Again, Budgets, Clip, LaneKind, Machine, Pins, Plan, PlanError, Request, plan_again,
};
use rustix::process::setpriority_process;
use serde::Serialize;

use crate::drift::{Drift, Lanes, Off};
use crate::report::busy_of;

/// The share of a step that another plan must save to be taken.
const GAIN: f64 = 0.02;
/// Where fewer steps are left nothing is planned: what it could win is less than it takes.
const LEFT: u64 = 20;
/// Threads that update beside a GPU run at 10; this has a seventh of their weight, and a seventieth of the usual one.
const NICE: i32 = 19;

/// A lane that is off its rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LaneOff {
    /// The lane, as metrics name it.
    pub lane: &'static str,
    /// Seconds of a step at the rates that the plan was made with.
    pub planned_seconds: f64,
    /// Seconds of a step as measured: the median of twenty.
    pub measured_seconds: f64,
}

/// The rates that a slowdown changes: bytes, operations and parameters a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Matrix products of the device, in the run's precision.
    pub matmul: f64,
    /// Host to device.
    pub h2d: f64,
    /// Device to host.
    pub d2h: f64,
    /// Parameters that the host updates.
    pub host_update: f64,
    /// Reads of the drives; left out where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read: Option<f64>,
    /// Writes to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_write: Option<f64>,
}

/// Another plan of the same run, for rates that were measured in it.
#[derive(Clone, Debug, Serialize)]
pub struct Replan {
    /// Always `replan`: what kind of record this is.
    pub event: &'static str,
    /// The step behind which it was taken.
    pub step: u64,
    /// The lanes that are off their rates.
    pub lanes: Vec<LaneOff>,
    /// The rates of the plan before.
    pub rates_before: Rates,
    /// The rates of this one.
    pub rates: Rates,
    /// The number of the plan before ([`Plan::hash`]), in hexadecimal.
    pub plan_before: String,
    /// The number of this one.
    pub plan: String,
    /// A step of the plan before, at the rates of now.
    pub predicted_seconds_before: f64,
    /// A step of this one.
    pub predicted_seconds: f64,
    /// What is to run.
    #[serde(skip)]
    pub to_run: Arc<Plan>,
    /// The machine at the rates of now.
    #[serde(skip)]
    pub machine: Machine,
}

impl Replan {
    /// What a run prints of it.
    #[must_use]
    pub fn line(&self) -> String {
        let off = |l: &LaneOff| {
            let (planned, measured) = (l.planned_seconds, l.measured_seconds);
            format!(
                "{} {planned:.3} s planned, {measured:.3} s measured",
                l.lane
            )
        };
        let lanes: Vec<String> = self.lanes.iter().map(off).collect();
        format!(
            "after step {}: planned again, because lanes are off their rates ({}); a step is predicted to take {:.3} s \
             in place of {:.3} s",
            self.step,
            lanes.join("; "),
            self.predicted_seconds,
            self.predicted_seconds_before
        )
    }
}

/// Planning that is under way.
struct Planning {
    off: Off,
    thread: JoinHandle<Thought>,
}

/// The machine at the rates of now, and what was found by them.
type Thought = (Machine, Result<Option<Again>, PlanError>);

/// Tasks of a plan, in all its parts.
fn tasks(plan: &Plan) -> usize {
    plan.parts.values().map(|part| part.len()).sum()
}

/// The most tasks that a plan in the place of this one may have: memory is counted for no more.
pub(crate) fn most_tasks(plan: &Plan) -> usize {
    let tasks = tasks(plan);
    tasks + tasks / 4
}

/// Looks after the rates of a run of one rank.
pub struct Adaptive {
    drift: Drift,
    decoder: Arc<Decoder>,
    plan: Arc<Plan>,
    machine: Machine,
    clip: Clip,
    pins: Pins,
    /// The run's last step.
    last: u64,
    most_tasks: usize,
    planning: Option<Planning>,
    stop: Arc<AtomicBool>,
    found: Option<Replan>,
    /// Lanes are said to have its rates, in tests.
    pretended: Option<Machine>,
}

/// What the plan's lanes do in a step, at its rates.
fn expected(plan: &Plan, decoder: &Decoder, machine: &Machine) -> Lanes {
    let step = steady_step(plan, decoder.workload(), machine);
    step.lanes.map(|s| s.0)
}

impl Adaptive {
    /// Of a plan that runs until step `last`, on the machine that it was made for, with what the run holds fast.
    #[must_use]
    pub fn new(
        decoder: &Arc<Decoder>,
        plan: &Arc<Plan>,
        machine: &Machine,
        clip: Clip,
        pins: Pins,
        last: u64,
    ) -> Self {
        Self {
            drift: Drift::new(expected(plan, decoder, machine)),
            decoder: Arc::clone(decoder),
            plan: Arc::clone(plan),
            machine: machine.clone(),
            clip,
            pins,
            last,
            most_tasks: most_tasks(plan),
            planning: None,
            stop: Arc::default(),
            found: None,
            pretended: None,
        }
    }

    /// For tests: from here on lanes take so many times as long as planned, whatever is measured, and steps wait for
    /// the planning. So it is known what is found, and when.
    pub fn pretend(&mut self, slowdown: &Slowdown) {
        self.pretended = Some(self.machine.slowed(slowdown));
    }

    /// Something came between two steps that is no step, or took from their lanes.
    pub fn interrupted(&mut self) {
        self.drift.interrupted();
    }

    /// Takes a step that has just ended: what its lanes did, and how long it took. What there is to tell of a plan that
    /// was looked for and is not taken.
    pub fn step(&mut self, step: u64, lanes: &Measured, seconds: f64) -> Option<String> {
        if self.found.is_some() {
            return None;
        }
        if self.planning.is_some() {
            // It takes from the lanes of the host.
            self.drift.interrupted();
            return self.hear(step);
        }
        if step.saturating_add(LEFT) > self.last {
            return None;
        }
        let (lanes, seconds) = match &self.pretended {
            None => (LaneKind::ALL.map(|kind| busy_of(kind, lanes)), seconds),
            Some(machine) => {
                let lanes = expected(&self.plan, &self.decoder, machine);
                (lanes, lanes.into_iter().fold(0.0, f64::max))
            }
        };
        let off = self.drift.step(step, lanes, seconds)?;
        match self.begin(&off) {
            Ok(thread) => {
                self.planning = Some(Planning { off, thread });
                None
            }
            Err(e) => {
                // As where it was, and found nothing.
                self.machine = self.machine.slowed(&off.slowdown);
                Some(format!("the run was not planned again: {e}"))
            }
        }
    }

    fn begin(&self, off: &Off) -> std::io::Result<JoinHandle<Thought>> {
        let (decoder, plan) = (Arc::clone(&self.decoder), Arc::clone(&self.plan));
        let (clip, pins, stop) = (self.clip, self.pins, Arc::clone(&self.stop));
        let (machine, busy) = (self.machine.clone(), off.busy());
        let thread = std::thread::Builder::new().name("planning".to_owned());
        thread.spawn(move || {
            // Without a process's number Linux means the calling thread. Where it may not, planning takes its share.
            let _ = setpriority_process(None, NICE);
            let machine = machine.fitted(&plan, decoder.workload(), &busy);
            let request = Request {
                workload: decoder.workload(),
                machine: &machine,
                // Those of what is reserved take their place.
                budgets: Budgets::UNLIMITED,
                clip,
                pins,
            };
            let found = plan_again(&request, &plan, &stop);
            (machine, found)
        })
    }

    /// Takes what the thread has found, if it has ended.
    fn hear(&mut self, step: u64) -> Option<String> {
        let waits = self.pretended.is_some();
        let ended = |p: &mut Planning| waits || p.thread.is_finished();
        let Planning { off, thread } = self.planning.take_if(ended)?;
        let not =
            |why: &dyn std::fmt::Display| Some(format!("the run was not planned again: {why}"));
        let Ok((machine, found)) = thread.join() else {
            self.machine = self.machine.slowed(&off.slowdown);
            return not(&"planning failed");
        };
        // The plan was judged by these rates, taken or not.
        let before = std::mem::replace(&mut self.machine, machine);
        match found {
            Ok(Some(again)) if tasks(&again.plan) > self.most_tasks => {
                not(&"the plan has more tasks than there is memory for")
            }
            Ok(Some(again)) if again.gain() >= GAIN => {
                self.found = Some(self.replan(step, &off, &before, again));
                None
            }
            Ok(Some(again)) => {
                let gain = 100.0 * again.gain().max(0.0);
                not(&format!("by {gain:.1}% it is not worth it"))
            }
            Ok(None) => not(&"nothing fits what is reserved"),
            Err(e) => not(&e),
        }
    }

    fn replan(&self, step: u64, off: &Off, before: &Machine, again: Again) -> Replan {
        let drifted = LaneKind::ALL.iter().enumerate().filter(|&(l, _)| {
            // Others are as they were.
            off.measured[l].to_bits() != off.expected[l].to_bits()
        });
        let lanes = drifted.map(|(l, kind)| LaneOff {
            lane: kind.name(),
            planned_seconds: off.expected[l],
            measured_seconds: off.measured[l],
        });
        let name = |plan: &Plan| format!("{:016x}", plan.hash());
        Replan {
            event: "replan",
            step,
            lanes: lanes.collect(),
            rates_before: self.rates(before),
            rates: self.rates(&self.machine),
            plan_before: name(&self.plan),
            plan: name(&again.plan),
            predicted_seconds_before: again.before.0,
            predicted_seconds: again.plan.prediction.step_seconds.0,
            to_run: Arc::new(again.plan),
            machine: self.machine.clone(),
        }
    }

    fn rates(&self, machine: &Machine) -> Rates {
        let w = self.decoder.workload();
        Rates {
            matmul: match w.precision {
                lowtide_workload::Dtype::Bf16 => machine.matmul_bf16.0,
                lowtide_workload::Dtype::F32 => machine.matmul_f32.0,
            },
            h2d: machine.h2d.0,
            d2h: machine.d2h.0,
            host_update: machine.updates.nearest(w.optimizer).host,
            disk_read: machine.disk.map(|d| d.read.0),
            disk_write: machine.disk.map(|d| d.write.0),
        }
    }

    /// Whether there is a better plan.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.found.is_some()
    }

    /// The better plan, if there is one.
    #[must_use]
    pub fn better(&self) -> Option<&Arc<Plan>> {
        self.found.as_ref().map(|found| &found.to_run)
    }

    /// The better plan could not be run: the one before runs on.
    pub fn give_up(&mut self) {
        self.found = None;
        self.drift.interrupted();
    }

    /// The better plan, if there is one, which runs from here on, behind this step.
    pub fn take(&mut self, step: u64) -> Option<Replan> {
        let found = Replan {
            step,
            ..self.found.take()?
        };
        self.plan = Arc::clone(&found.to_run);
        let lanes = expected(&self.plan, &self.decoder, &self.machine);
        self.drift.expect(lanes);
        Some(found)
    }
}

impl Drop for Adaptive {
    /// Nobody takes another plan any more: planning ends before what it reads goes.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(planning) = self.planning.take() {
            // What it found, or why it failed, matters no more.
            let _ = planning.thread.join();
        }
    }
}
