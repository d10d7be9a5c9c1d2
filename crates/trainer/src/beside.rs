//! Answers with a KV cache beside the steps of a run (`eval.generate.cached`): a plan and a session of their own.
//!
//! Their memory is held from the start, so that a run whose plan fits does not end at its first answers. The least that
//! they take is set apart before the steps are planned; what the steps leave of the budgets is theirs too. Weights are
//! copied from where they live each time before answers are made.

use std::sync::Arc;

use lowtide_config::Run;
use lowtide_executor::Trace;
use lowtide_model::Decoder;
use lowtide_planner::{Budgets, Pins, Plan, PlanError, Request, Tier};
use lowtide_session::{DiskChoice, Homes, Session};
use lowtide_tiers::TierError;
use lowtide_units::Bytes;
use lowtide_workload::{ModelShape, ParamId, Role, Workload};

use crate::basis::Basis;
use crate::device::Target;
use crate::error::TrainError;
use crate::generate::steps;
use crate::open::open_on;
use crate::planning::{Planned, clip_of, options_of, pins_of};
use crate::resident::TASK;

/// What the answers of a run take beside its steps.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The model, for steps of decoding.
    pub decoder: Arc<Decoder>,
    /// What the least plan takes with all weights on the host, and with all on the device.
    pub ways: [Budgets; 2],
}

/// A plan of answers.
#[derive(Clone, Debug)]
pub struct PlannedAnswers {
    /// The model, for steps of decoding.
    pub decoder: Arc<Decoder>,
    /// One step of decoding, with all weights copied beforehand.
    pub plan: Arc<Plan>,
}

impl Beside {
    /// The model for answers where a run asks for a cache of its own beside the steps.
    ///
    /// # Errors
    /// A model of which keys are not kept.
    pub fn decoder(
        run: &Run,
        shape: &ModelShape,
        target: Target,
    ) -> Result<Option<Arc<Decoder>>, TrainError> {
        let generate = &run.eval.generate;
        let (true, Some(cached)) = (generate.exact_match, generate.cached) else {
            return Ok(None);
        };
        let places = u64::from(cached).min(generate.max_examples) as u32;
        let options = options_of(run, shape, run.batch(), target)?;
        let how = steps(places, run.train.seq);
        Ok(Some(Arc::new(Decoder::decoding(shape, &options, how)?)))
    }

    /// What answers take where a run asks for a cache (`eval.generate.cached`).
    ///
    /// # Errors
    /// A model of which keys are not kept; a plan that its checker refuses.
    pub fn of(run: &Run, basis: &Basis<'_>) -> Result<Option<Self>, TrainError> {
        let decoder = Self::decoder(run, basis.decoder.shape(), basis.target)?;
        let Some(decoder) = decoder else {
            return Ok(None);
        };
        let least = |tier| {
            let request = Request {
                workload: decoder.workload(),
                machine: &basis.machine,
                budgets: NOTHING,
                clip: clip_of(run).mode,
                pins: Pins {
                    weights: Some(tier),
                    ..Pins::default()
                },
            };
            match lowtide_planner::make(&request) {
                Err(PlanError::Refused(refusal)) => Ok(refusal.needed),
                Err(PlanError::Wrong(fault)) => Err(TrainError::WrongPlan(fault)),
                Ok(_) => Ok(NOTHING),
            }
        };
        let ways = [least(Tier::Host)?, least(Tier::Device)?];
        Ok(Some(Self { decoder, ways }))
    }

    /// The fastest plan within what is left of the budgets.
    ///
    /// # Errors
    /// None where the least plan was set apart, but for a plan that its checker refuses.
    pub fn plan(&self, basis: &Basis<'_>, left: Budgets) -> Result<PlannedAnswers, TrainError> {
        let request = Request {
            workload: self.decoder.workload(),
            machine: &basis.machine,
            budgets: left,
            clip: clip_of(basis.run).mode,
            pins: Pins {
                // What the steps have is registered as well.
                bounce: pins_of(basis.run).bounce
                    || !basis.machine.may_register(basis.budgets.device),
                ..Pins::default()
            },
        };
        let plan = lowtide_planner::make(&request).map_err(|e| match e {
            PlanError::Wrong(fault) => TrainError::WrongPlan(fault),
            PlanError::Refused(refusal) => {
                panic!("what was set apart for answers is not there: {refusal}")
            }
        })?;
        Ok(PlannedAnswers {
            decoder: Arc::clone(&self.decoder),
            plan: Arc::new(plan),
        })
    }
}

/// No memory at all.
pub(crate) const NOTHING: Budgets = Budgets {
    device: Bytes::ZERO,
    host: Bytes::ZERO,
    disk: Bytes::ZERO,
};

/// Budgets without what is set apart of device and host; `None` where that is more.
pub(crate) fn without(budgets: Budgets, apart: Budgets) -> Option<Budgets> {
    let less = |a: Bytes, b: Bytes| a.0.checked_sub(b.0).map(Bytes);
    Some(Budgets {
        device: less(budgets.device, apart.device)?,
        host: less(budgets.host, apart.host)?,
        ..budgets
    })
}

impl PlannedAnswers {
    /// Reserves what answers take.
    ///
    /// # Errors
    /// What cannot be had.
    pub fn open(&self, run: &Run, planned: &Planned) -> Result<Session, TrainError> {
        let own = Planned {
            device: planned.device.clone(),
            decoder: Arc::clone(&self.decoder),
            plan: Arc::clone(&self.plan),
            machine: planned.machine.clone(),
            whole: planned.whole.clone(),
            clip: planned.clip,
            resident: planned.resident,
            answers: None,
            staging: None,
            budgets: planned.budgets,
        };
        open_on(run, &own, Trace::NONE, DiskChoice::None)
    }

    /// A line of text: how many at once, and the memory of both tiers.
    #[must_use]
    pub fn line(&self) -> String {
        let how = self.decoder.steps().expect("steps of decoding");
        format!(
            "answers: {} at once with a KV cache of {} tokens each; beside the steps they take {} of the device and {} of the \
             host (eval.generate.cached)",
            how.places,
            how.keys,
            self.bytes(Tier::Device),
            self.bytes(Tier::Host)
        )
    }

    /// The same as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let how = self.decoder.steps().expect("steps of decoding");
        serde_json::json!({
            "at_once": how.places,
            "tokens": how.keys,
            "device_bytes": self.bytes(Tier::Device).0,
            "host_bytes": self.bytes(Tier::Host).0,
        })
    }

    /// Host memory that answers hold: their arenas, the CPU device's among them where there is no GPU, and their tasks.
    #[must_use]
    pub fn host_bytes(&self, gpu: bool) -> Bytes {
        let device = if gpu {
            Bytes::ZERO
        } else {
            self.bytes(Tier::Device)
        };
        let tasks = self.plan.parts.values().map(|part| part.len() as u64);
        self.bytes(Tier::Host) + device + Bytes(TASK * tasks.sum::<u64>())
    }

    /// Bytes that it takes of a tier.
    #[must_use]
    pub fn bytes(&self, tier: Tier) -> Bytes {
        self.plan.tier(tier).planned_bytes
    }
}

/// Copies the weights of a session, as the device reads them, to one that makes answers. Nothing runs in either.
///
/// # Errors
/// The drives'.
pub(crate) fn copy_weights(from: &mut Session, to: &mut Session) -> Result<(), TierError> {
    let (trained, decodes) = (Arc::clone(from.decoder()), Arc::clone(to.decoder()));
    let (trained, decodes) = (trained.workload(), decodes.workload());
    let (source, target) = (from.homes()?, to.homes()?);
    copy(&source, trained, &target, decodes)
}

fn copy(
    source: &Homes<'_>,
    trained: &Workload,
    target: &Homes<'_>,
    decodes: &Workload,
) -> Result<(), TierError> {
    let of = |to: ParamId| {
        let param = &decodes.params[to];
        let mut all = trained.params.pairs();
        let same = all.find(|(_, p)| p.name == param.name && p.elements == param.elements);
        same.expect("the same model").0
    };
    let params: Vec<ParamId> = decodes.params.ids().map(of).collect();
    target.write_all(|param, range, spec, bytes| {
        assert_eq!(spec.role, Role::WEIGHT, "answers train nothing");
        source.read(params[param.0 as usize], Role::WEIGHT, range, bytes)
    })
}
