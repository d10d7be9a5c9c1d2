//! Plans a step of decoding, of which only the place of the weights and how far they are fetched ahead is to choose.
//!
//! Units from the first one on are resident, so that there is work while the others' first weights are fetched; of
//! the others the last ones are read from the drives where the host does not hold all. Keys and values are on the
//! device.

use lowtide_units::Bytes;
use lowtide_workload::Workload;

use super::fit::excess;
use super::{PlanError, Refusal, Request, fits};
use crate::build::{assemble, build};
use crate::check::check;
use crate::choice::{Ahead, Budgets, Choice, Direct, Processor};
use crate::draft::{Rates, draft, persistent_bytes};
use crate::layout::{Packing, layout};
use crate::plan::{PartName, Plan, Tier};
use crate::simulate::decoding_seconds;

/// How far weights are fetched ahead, in eighths of the device's budget; the last one goes as far as times ask for.
const AHEAD: [u64; 4] = [0, 2, 5, 8];

/// The fastest of the plans that fit.
///
/// # Errors
/// As [`super::plan`].
pub(super) fn plan(r: &Request<'_>) -> Result<Plan, PlanError> {
    let search = Search::new(r);
    let mut best: Option<(f64, Choice)> = None;
    for choice in search.fitting() {
        let seconds = search.seconds(&choice);
        if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
            best = Some((seconds, choice));
        }
    }
    let Some((_, choice)) = best else {
        return Err(PlanError::Refused(Box::new(search.refusal())));
    };
    let plan = build(r.workload, &choice, r.clip, r.budgets, r.machine);
    check(&plan, r.workload, r.clip).map_err(PlanError::Wrong)?;
    Ok(plan)
}

/// Whether any plan fits.
pub(super) fn fits_any(r: &Request<'_>) -> bool {
    !Search::new(r).fitting().is_empty()
}

struct Search<'a> {
    r: &'a Request<'a>,
    rates: Rates,
}

impl<'a> Search<'a> {
    fn new(r: &'a Request<'a>) -> Self {
        let rates = Rates::new(r.workload, r.machine);
        Self { r, rates }
    }

    fn w(&self) -> &Workload {
        self.r.workload
    }

    /// The first units on the device, then some on the host, the rest on the drives, read as `direct` says; a pinned
    /// tier has them all.
    fn choice(&self, device: usize, host: usize, (ahead, direct): (Ahead, Direct)) -> Choice {
        let mut choice = Choice::resident(self.w());
        for (u, tier) in choice.weights.iter_mut().enumerate() {
            *tier = match self.r.pins.weights {
                Some(tier) => tier,
                None if u < device => Tier::Device,
                None if u < device + host => Tier::Host,
                None => Tier::Disk,
            };
        }
        // There is none; on the device it would have a factor there.
        choice.update.fill(Processor::Host);
        (choice.ahead, choice.direct) = (ahead, direct);
        choice
    }

    fn need(&self, choice: &Choice) -> [u64; 3] {
        let d = draft(
            self.w(),
            &self.rates,
            choice,
            self.r.clip,
            &[PartName::Infer],
        );
        layout(&d.slots, PartName::ALL.len(), Packing::Usual).totals
    }

    fn holds(&self, choice: &Choice) -> bool {
        let stays = persistent_bytes(self.w(), choice, self.r.clip);
        fits(&stays, &self.r.budgets) && fits(&self.need(choice), &self.r.budgets)
    }

    fn seconds(&self, choice: &Choice) -> f64 {
        let (w, clip) = (self.w(), self.r.clip);
        let d = draft(w, &self.rates, choice, clip, &[PartName::Infer]);
        let l = layout(&d.slots, PartName::ALL.len(), Packing::Usual);
        let plan = assemble(w, choice, clip, d, l, &[PartName::Infer]);
        decoding_seconds(&plan, w, self.r.machine).0
    }

    /// For each way of fetching ahead the choice with most units on the device, and of the others most on the host.
    fn fitting(&self) -> Vec<Choice> {
        let n = self.w().units.len();
        let drives = self.r.budgets.disk.0 > 0;
        let aheads = AHEAD.map(|eighths| match eighths {
            0 => Ahead::NONE,
            8 => Ahead::UNLIMITED,
            eighths => Ahead::each(Bytes(self.r.budgets.device.0 / 8 * eighths)),
        });
        let read = Direct {
            read: true,
            write: false,
        };
        let directs = [Some(Direct::NONE), self.r.reaches_device().then_some(read)];
        let directs = directs.into_iter().flatten();
        let ways = directs.flat_map(|direct| aheads.map(|ahead| (ahead, direct)));
        let mut all = Vec::new();
        for way in ways {
            // The host has the rest, or as much of it as it holds.
            let rest = |device: usize| {
                let least = if drives { 0 } else { n - device };
                let mut hosts = (least..=n - device).rev();
                hosts.find_map(|host| {
                    let choice = self.choice(device, host, way);
                    self.holds(&choice).then_some(choice)
                })
            };
            all.extend((0..=n).rev().find_map(rest));
        }
        all
    }

    /// What would fit: everything on one tier, whichever is nearest to what is allowed.
    fn refusal(&self) -> Refusal {
        let (allowed, n) = (self.r.budgets, self.w().units.len());
        let need =
            |device, host| self.need(&self.choice(device, host, (Ahead::NONE, Direct::NONE)));
        let (resident, host, disk) = (need(n, 0), need(0, n), need(0, 0));
        let drives = allowed.disk.0 > 0;
        let ways = [Some(resident), Some(host), drives.then_some(disk)];
        let nearest = ways.into_iter().flatten().min_by(|a, b| {
            let of = |need| excess(need, &allowed);
            of(a).total_cmp(&of(b))
        });
        let need = nearest.expect("there are two at least");
        let budget = |t: Tier| Bytes(need[t as usize].max(allowed.of(t).0));
        let other = |t: Tier| disk[t as usize] <= allowed.of(t).0;
        Refusal {
            needed: Budgets {
                device: Bytes(need[0]),
                host: Bytes(need[1]),
                disk: Bytes(need[2]),
            },
            allowed,
            nearest: Budgets {
                device: budget(Tier::Device),
                host: budget(Tier::Host),
                disk: budget(Tier::Disk),
            },
            with_disk: (!drives && need[2] == 0 && other(Tier::Device) && other(Tier::Host))
                .then_some(Bytes(disk[2])),
        }
    }
}
