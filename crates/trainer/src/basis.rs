//! What a run's plan is made from, found in the one order there is: device, model, rates, budgets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lowtide_config::Run;
use lowtide_data::Micro;
use lowtide_data::clock::today;
use lowtide_executor::Trace;
use lowtide_measure::{ProbeOptions, RankWork, probe};
use lowtide_model::Decoder;
use lowtide_planner::search::fit::tightened;
use lowtide_planner::search::fits_any;
use lowtide_planner::search::links::Link;
pub use lowtide_planner::search::outlook::Outlook as WhatIf;
use lowtide_planner::search::outlook::plan_with_outlook;
use lowtide_planner::{
    Budgets, Machine, NetRates, Pins, Plan, PlanError, RankLinks, Refusal, Request, Tier,
};
use lowtide_session::Group;
use lowtide_tiers::HostMemory;
use lowtide_units::Bytes;
use lowtide_workload::{Batch, ModelShape};

use crate::beside::{Beside, NOTHING, PlannedAnswers, without};
use crate::device::{Device, Target, target_of};
use crate::error::{Refused, TrainError};
use crate::launch::{held_by_others, net_times, tell_choices};
use crate::planning::{
    Planned, budgets_of, clip_of, cpu_budgets_of, decoder_of, direct_of, load_machine, pins_of,
    probed,
};
use crate::report::{Observer, Phase};
use crate::resident::Resident;
use crate::threads::threads_of;

/// What so many ranks exchange, and take from each other while they copy, measured; none of one rank. On GPUs it
/// connects them, which holds some of each one's memory.
///
/// # Errors
/// Ranks that cannot reach each other.
pub fn net_of(
    gpus: u32,
    device: &Device,
    work: RankWork,
) -> Result<(Option<NetRates>, Option<RankLinks>), TrainError> {
    if gpus == 1 {
        return Ok((None, None));
    }
    let made = Group::threads(gpus, LIMIT);
    let group = device.group.as_ref().unwrap_or(&made);
    let times = net_times(group, work)?;
    Ok((Some(times.net(gpus)), times.links(work.ranks)))
}

/// What each rank of a run does on the host.
pub(crate) fn work_of(run: &Run) -> RankWork {
    RankWork {
        threads: threads_of(run),
        ranks: run.gpus_of_host(),
        optimizer: run.optimizer.what(),
    }
}

/// What a run's ranks exchange by a machine file; none of one rank.
fn exchanges(run: &Run, path: &Path, machine: &Machine) -> Result<Option<NetRates>, TrainError> {
    let found = machine.net_of(run.gpus, run.hosts);
    match run.gpus == 1 || found.is_some() {
        true => Ok(found.or(machine.net)),
        false => Err(TrainError::NoNet {
            path: path.to_owned(),
            gpus: run.gpus,
            hosts: run.hosts,
            have: machine.net.map(|net| net.ranks),
            network: machine.network.is_some(),
        }),
    }
}

/// How long ranks wait for each other while they are measured.
const LIMIT: Duration = Duration::from_secs(60);

/// All GPUs of a run compute a product by the same algorithm: the one that was measured on the first.
pub(crate) fn alike(device: &Device) -> Result<(), TrainError> {
    let (Some(first), Some(group)) = (&device.gpu, &device.group) else {
        return Ok(());
    };
    let choices = first.choices();
    let others = group.gpus.iter().filter(|g| g.ordinal() != first.ordinal());
    for gpu in others {
        gpu.set_choices(&choices)?;
    }
    tell_choices(group, &choices)
}

/// What a run's plan is made from.
#[derive(Clone, Debug)]
pub struct Basis<'a> {
    /// The run file's settings, checked.
    pub run: &'a Run,
    /// The kind of device, and which kernels compute attention there.
    pub target: Target,
    /// The model, at the run's batch.
    pub decoder: Arc<Decoder>,
    /// The rates, as each rank has them.
    pub machine: Machine,
    /// Whether the run is to be made here, so that this machine's memory bounds it.
    pub here: bool,
    /// The machine as it was measured, or as its file has it.
    pub whole: Machine,
    /// What the run allows, with what the process holds on a GPU.
    pub budgets: Budgets,
    /// What its answers take of that beside its steps, where they are made with a cache.
    pub beside: Option<Beside>,
}

impl<'a> Basis<'a> {
    /// On this machine: with the rates of `plan.machine`, or measured now at the run's own shapes, on a sample of its
    /// inputs where there is one. The observer hears of measuring, and that planning comes next.
    ///
    /// # Errors
    /// The machine file, a directory that cannot be measured, budgets beyond what there is.
    pub fn here(
        run: &'a Run,
        device: &Device,
        decoder: Arc<Decoder>,
        sample: impl FnOnce() -> Option<Micro>,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        observer.phase(run.plan.machine.is_none().then_some(Phase::Measuring));
        // Before the rates: what connections hold of a device counts among what the process holds there.
        let (net, links) = net_of(run.gpus, device, work_of(run))?;
        let net = net.map(|net| NetRates {
            hosts: run.hosts,
            ..net
        });
        let mut machine = match &run.plan.machine {
            Some(path) => {
                let mut machine = load_machine(path)?;
                // Rates may be another machine's; what the device is, is known.
                machine.cuda = device.gpu.is_some();
                // Without it the file's reserve of the device lacks what connections hold there.
                if device.gpu.is_some() && run.hosts == 1 {
                    exchanges(run, path, &machine)?;
                }
                machine
            }
            None => {
                let options = ProbeOptions {
                    threads: threads_of(run),
                    drives: probed(run),
                    seconds: 0.1,
                    optimizer: run.optimizer.what(),
                    date: today(),
                    gpu: device.gpu.clone(),
                    direct: direct_of(run),
                    room: Some(budgets_of(run, device)?.device),
                };
                // Of answers, too: what their kernels hold of the device counts, and their products' algorithms are
                // chosen here or nowhere.
                let answers = Beside::decoder(run, decoder.shape(), device.target)?;
                let decoders = [answers.as_deref(), Some(&*decoder)];
                probe(&options, decoders, sample().as_ref())?
            }
        };
        let known = machine.net.map(|net| (net.ranks, net.hosts));
        if run.hosts > 1 || known != Some((run.gpus, 1)) {
            machine.net = net;
        }
        // What a file does not say of another machine's links, this one's do not tell.
        if run.plan.machine.is_none() {
            machine.links = links;
        }
        alike(device)?;
        observer.phase(Some(Phase::Planning));
        Ok(Self {
            run,
            target: device.target,
            decoder,
            machine: machine.share(run.gpus_of_host()),
            here: true,
            whole: machine,
            budgets: budgets_of(run, device)?,
            beside: None,
        })
    }

    /// For a machine of which only the rates are known, from the file `path`. Asks nothing of this one.
    ///
    /// # Errors
    /// A batch that the model does not take; a run of several GPUs, and not a word of what so many exchange.
    pub fn of_machine(
        run: &'a Run,
        shape: &ModelShape,
        (path, mut whole): (&Path, Machine),
    ) -> Result<Self, TrainError> {
        whole.net = exchanges(run, path, &whole)?;
        let machine = whole.share(run.gpus_of_host());
        let target = target_of(run, shape, &machine);
        Ok(Self {
            run,
            target,
            decoder: decoder_of(run, run.batch(), target)?,
            machine,
            here: false,
            whole,
            budgets: cpu_budgets_of(run),
            beside: None,
        })
    }

    /// The same for a run that trains: what its answers with a cache take is set apart
    /// (`eval.generate.cached`).
    ///
    /// # Errors
    /// A model of which keys are not kept.
    pub fn with_answers(self) -> Result<Self, TrainError> {
        let beside = Beside::of(self.run, &self)?;
        Ok(Self { beside, ..self })
    }

    /// The plan of the run's answers with a cache in what its steps leave; `None` where it makes none.
    ///
    /// # Errors
    /// A plan that its checker refuses.
    pub fn plan_answers(&self, plan: &Plan) -> Result<Option<PlannedAnswers>, TrainError> {
        let Some(beside) = &self.beside else {
            return Ok(None);
        };
        let taken = Budgets {
            device: plan.tier(Tier::Device).planned_bytes,
            host: plan.tier(Tier::Host).planned_bytes,
            disk: Bytes::ZERO,
        };
        let left = without(self.arenas(), taken).expect("a plan within its budgets");
        let left = Budgets {
            disk: Bytes::ZERO,
            ..left
        };
        beside.plan(self, left).map(Some)
    }

    /// What a plan, and answers beside it, leave of the host's budget.
    #[must_use]
    pub fn host_left(&self, planned: &Planned) -> Bytes {
        self.budgets
            .host
            .saturating_sub(planned.reserved(Tier::Host))
    }

    /// What the arenas may have of the budgets: a process holds more than them on a GPU.
    pub(crate) fn arenas(&self) -> Budgets {
        Budgets {
            device: self
                .budgets
                .device
                .saturating_sub(self.machine.device_reserve),
            ..self.budgets
        }
    }

    /// The run's plan. Touches no memory.
    ///
    /// # Errors
    /// [`TrainError::Refused`] with what would fit.
    pub fn plan(&self) -> Result<Plan, TrainError> {
        self.plan_pinned(pins_of(self.run))
    }

    /// As [`Basis::plan`], under other pins than the run's.
    ///
    /// # Errors
    /// As [`Basis::plan`].
    pub fn plan_pinned(&self, pins: Pins) -> Result<Plan, TrainError> {
        self.make(pins, lowtide_planner::make)
    }

    /// As [`Basis::plan_pinned`], of a step that is made once: planned in a fraction of the time, and not as fast.
    ///
    /// # Errors
    /// As [`Basis::plan`].
    pub fn plan_one_step(&self, pins: Pins) -> Result<Plan, TrainError> {
        self.make(pins, lowtide_planner::make_one_step)
    }

    /// As [`Basis::plan_pinned`], and what was left on the table: other kinds of plans, what more of each budget
    /// would buy, and keys that change numbers. Takes several times as long.
    ///
    /// # Errors
    /// As [`Basis::plan`].
    pub fn look(&self, pins: Pins) -> Result<(Plan, WhatIf), TrainError> {
        let more = 4 * self.run.train.accumulate;
        let batch = Batch {
            accumulate: more,
            ..self.run.batch()
        };
        let larger = decoder_of(self.run, batch, self.target)?;
        let more = [(more, larger.workload())];
        let (plan, mut look) = self.make(pins, |request| plan_with_outlook(request, &more))?;
        // The search knows one rank's part of what the ranks of a host share, a user gives the whole.
        let ranks = self.run.gpus_of_host();
        for more in look.more.iter_mut().filter(|m| m.tier != Tier::Device) {
            more.bytes = Bytes(more.bytes.0 * u64::from(ranks));
        }
        let shared = |link| link == Link::Disk || !self.machine.cuda;
        for faster in look.faster.iter_mut().filter(|f| shared(f.link)) {
            faster.more.0 *= f64::from(ranks);
        }
        Ok((plan, look))
    }

    /// The run with its plan, before anything of it is reserved.
    #[must_use]
    pub fn planned(self, device: Device, plan: Plan, trace: Trace) -> Planned {
        let budgets = self.arenas();
        let (w, machine) = (self.decoder.workload(), &self.machine);
        let near = plan.ranks.min(self.run.gpus_of_host());
        let others = held_by_others(&device);
        let resident = Resident::count((&plan, near), w, machine, trace, &others);
        Planned {
            device,
            decoder: self.decoder,
            plan: Arc::new(plan),
            machine: self.machine,
            whole: self.whole,
            clip: clip_of(self.run),
            resident,
            answers: None,
            staging: None,
            budgets,
        }
    }

    fn make<T>(
        &self,
        pins: Pins,
        make: impl Fn(&Request<'_>) -> Result<T, PlanError>,
    ) -> Result<T, TrainError> {
        let whole = self.arenas();
        let apart = match &self.beside {
            None => vec![NOTHING],
            // The host has more room; where it has too little, weights for answers may stay on the device.
            Some(beside) => beside.ways.to_vec(),
        };
        let mut refused = None;
        for apart in apart {
            let request = Request {
                workload: self.decoder.workload(),
                machine: &self.machine,
                // Where there is no room for answers none is left for steps, which need some of both.
                budgets: Budgets {
                    device: whole.device.saturating_sub(apart.device),
                    host: whole.host.saturating_sub(apart.host),
                    ..whole
                },
                clip: clip_of(self.run).mode,
                pins,
            };
            match make(&request) {
                Ok(plan) => return Ok(plan),
                Err(PlanError::Wrong(fault)) => return Err(TrainError::WrongPlan(fault)),
                Err(PlanError::Refused(refusal)) => {
                    refused.get_or_insert((*refusal, request, apart));
                }
            }
        }
        let (refusal, request, apart) = refused.expect("one way at least");
        let mut refusal = tightened(&request, refusal);
        for budgets in [&mut refusal.needed, &mut refusal.nearest] {
            budgets.device += apart.device;
            budgets.host += apart.host;
        }
        refusal.allowed = whole;
        self.refused(refusal, &request, apart)
    }

    /// A refusal in the terms of the run: with what a process holds beside its arena, and with a smaller micro-batch
    /// that would fit.
    fn refused<T>(
        &self,
        mut refusal: Refusal,
        request: &Request<'_>,
        answers: Budgets,
    ) -> Result<T, TrainError> {
        for told in [
            &mut refusal.needed,
            &mut refusal.allowed,
            &mut refusal.nearest,
        ] {
            told.device += self.machine.device_reserve;
            // Of all ranks of a host, as a run file has them.
            told.host = told.host * u64::from(self.run.gpus_of_host());
            told.disk = told.disk * u64::from(self.run.gpus_of_host());
        }
        let of_host = |disk: Bytes| disk * u64::from(self.run.gpus_of_host());
        refusal.with_disk = refusal.with_disk.map(of_host);
        // A budget that is smaller than the reserve leaves nothing, and the reserve was not allowed.
        refusal.allowed.device = refusal.allowed.device.min(self.budgets.device);
        // Of answers no batch of the run is part.
        let mut b = match request.workload.decodes() {
            true => 0,
            false => self.run.train.micro_batch / 2,
        };
        let mut nearest_micro_batch = None;
        while b > 0 {
            let batch = Batch {
                micro_batch: b,
                ..self.run.batch()
            };
            let smaller = decoder_of(self.run, batch, self.target)?;
            let workload = smaller.workload();
            if fits_any(&Request {
                workload,
                ..*request
            }) {
                nearest_micro_batch = Some(b);
                break;
            }
            b /= 2;
        }
        let rows_chunk = match nearest_micro_batch {
            None if !request.workload.decodes() => self.chunk_that_fits(request),
            _ => None,
        };
        Err(TrainError::Refused(Box::new(Refused {
            refusal,
            nearest_micro_batch,
            rows_chunk,
            answers: self.beside.as_ref().map(|_| answers),
            disks: self.run.budget.disk.clone(),
            host_total: self.here.then(|| HostMemory::now().total),
            device_is_host: !self.target.is_gpu(),
        })))
    }

    /// The rows of a chunk with which the run fits, of one that computes all rows at once and has more.
    fn chunk_that_fits(&self, request: &Request<'_>) -> Option<u32> {
        const ROWS: u32 = 4096;
        if self.run.train.rows_chunk != 0 || self.run.batch().rows() <= u64::from(ROWS) {
            return None;
        }
        let mut run = self.run.clone();
        run.train.rows_chunk = ROWS;
        // Not every model can.
        let decoder = decoder_of(&run, run.batch(), self.target).ok()?;
        let workload = decoder.workload();
        fits_any(&Request {
            workload,
            ..*request
        })
        .then_some(ROWS)
    }
}
