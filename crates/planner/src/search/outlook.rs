//! What the plan could gain: from another kind of plan, from one more unit of each budget, and from keys that change
//! numbers.

use std::fmt;
use std::sync::Arc;

use lowtide_units::{Bytes, Seconds};
use lowtide_workload::Workload;
use serde::{Deserialize, Serialize};

use super::climb::Candidate;
use super::links::{Faster, faster};
use super::mix::{Count, Knobs, Mix, pinned_ahead};
use super::{
    Found, PlanError, Request, SURE, Search, Seen, busy_of, found, joined, shorter, timed_parts,
};
use crate::choice::{Budgets, Choice, Clip, Direct, LoopOrder};
use crate::plan::{LaneKind, Plan, Tier};

/// In what a plan differs from the one that was chosen: what would have to be pinned or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Other {
    /// No unit resident, no state streamed.
    #[serde(rename = "every update on the host, nothing resident")]
    HostUpdates,
    /// The state of every unit passes through the device.
    #[serde(rename = "every update on the device, all state streamed")]
    DeviceUpdates,
    /// No saved tensor is stored.
    #[serde(rename = "everything recomputed, bytes to resident units")]
    Recomputed,
    /// No state passes through the device.
    #[serde(rename = "nothing streamed for updates")]
    NotStreamed,
    /// Complete gradients stay where they were made.
    #[serde(rename = "gradients wait on the device")]
    NearGradients,
    /// What saves products and attention is stored, and no unit is resident.
    #[serde(rename = "more saved tensors, no resident units")]
    MoreSaved,
    /// What is stored stays on the device.
    #[serde(rename = "no saved tensor moves")]
    SavedStay,
    /// Block by block where it was micro-batch by micro-batch, or in other rounds.
    #[serde(rename = "the other loop order")]
    Loop,
    /// Device or host, whichever it was not.
    #[serde(rename = "block inputs on the other tier")]
    Inputs,
    /// Complete gradients go to the drives.
    #[serde(rename = "gradients wait on disk")]
    DiskGradients,
}

impl Other {
    /// All of them, in the order in which they are looked at.
    pub const ALL: [Self; 10] = [
        Self::HostUpdates,
        Self::DeviceUpdates,
        Self::Recomputed,
        Self::NotStreamed,
        Self::NearGradients,
        Self::MoreSaved,
        Self::SavedStay,
        Self::Loop,
        Self::Inputs,
        Self::DiskGradients,
    ];
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The words of its serialised form.
        self.serialize(f)
    }
}

/// Why a plan of another kind was not chosen though its step is shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The one that was chosen has all state on the device, and a step of it is about as short.
    Sure,
    /// It writes more to the drives than it may, or than it is worth.
    Writes,
    /// The work of the search ended before it was looked at.
    Unseen,
}

/// A plan of another kind than the one that was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// In what it differs.
    pub kind: Other,
    /// Time of a step.
    pub step_seconds: Seconds,
    /// The lane with the most work.
    pub ruling_lane: LaneKind,
    /// Bytes it needs on each tier, in the order of [`Tier::ALL`].
    pub bytes: [Bytes; 3],
    /// Where its step is shorter than that of the plan: why it was not chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<Why>,
}

/// What more of one budget would buy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct More {
    /// The budget that is larger.
    pub tier: Tier,
    /// How much more.
    pub bytes: Bytes,
    /// Time of a step with it.
    pub step_seconds: Seconds,
}

/// What a key of the numerics key would do. It changes numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The key that changes, with its new value.
    pub change: Change,
    /// Time of a step.
    pub step_seconds: Seconds,
    /// Tokens of a step, padding included, over that.
    pub tokens_per_second: f64,
}

/// A change of the numerics key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Clipping by the norm of the step before.
    ClipPrevious,
    /// This many micro-batches a batch.
    Accumulate(u32),
}

/// What other choices, budgets, links and numerics would give, each beside the plan that was chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// The best plans of other kinds, fastest first.
    pub alternatives: Vec<Alternative>,
    /// One more unit of each budget.
    pub more: Vec<More>,
    /// One GB/s more of each link that the plan uses.
    pub faster: Vec<Faster>,
    /// Changes of the numerics key that make tokens cheaper, best first.
    pub suggestions: Vec<Suggestion>,
}

/// Of the step that was chosen, by how much another one differs at least to be listed: less is below what a
/// prediction can say.
const VISIBLE: f64 = 0.005;

/// How many alternatives are listed.
const TOLD: usize = 3;

/// Work for each question: a fraction of what the plan itself was worth.
const WORK: u64 = 30_000;

/// Tasks of a steady step's parts up to which anything is asked: of more, each look takes seconds.
const LARGE: usize = 200_000;

/// Plans a request and looks around it: as [`super::plan`], and what other choices and budgets would give (of
/// a plan of very many tasks nothing is asked).
/// `more` are the workloads of the same model at other accumulations, with how many micro-batches.
///
/// # Errors
/// As [`super::plan`].
pub fn plan_with_outlook(
    r: &Request<'_>,
    more: &[(u32, &Workload)],
) -> Result<(Plan, Outlook), PlanError> {
    let Found { knobs, seen, best } = found(r)?;
    let search = Search::new(*r, &knobs, &seen);
    let made = search.made(&best)?;
    let steady = made.rounds().steady().into_iter();
    let tasks: usize = steady.map(|(part, _)| made.part(part).len()).sum();
    if tasks > LARGE {
        return Ok((made, Default::default()));
    }
    let known = seen.share();
    let look = || Seen::knowing(Arc::clone(&known));
    let outlook = std::thread::scope(|scope| {
        let alternatives = scope.spawn(|| Search::new(*r, &knobs, &look()).alternatives(&best));
        let budgets = scope.spawn(|| Search::new(*r, &knobs, &look()).more(&best));
        Outlook {
            suggestions: suggestions(r, (&best, made.prediction.step_seconds), more),
            faster: faster(r, &best, &made),
            alternatives: joined(alternatives.join()),
            more: joined(budgets.join()),
        }
    });
    Ok((made, outlook))
}

impl Search<'_> {
    /// The best of each other kind near a candidate.
    fn alternatives(&self, best: &Candidate) -> Vec<Alternative> {
        let mut found: Vec<Alternative> = Vec::new();
        let end = self.seen.work.get() + 4 * WORK;
        let step = self.step_seconds(&best.choice);
        for kind in Other::ALL {
            if self.seen.work.get() > end {
                break;
            }
            let (mut mix, takers) = self.other(kind, &best.mix);
            if !self.applies(kind, &mix) {
                continue;
            }
            for &count in takers {
                if let Some(full) = self.filled(&mix, count) {
                    mix = full;
                }
            }
            let Some(choice) = self.settled(&mix) else {
                continue;
            };
            if choice == best.choice || !self.holds_whole(&choice) {
                continue;
            }
            let other = self.alternative(kind, &choice, best);
            let differs = (other.step_seconds.0 / step - 1.0).abs() >= VISIBLE;
            if differs && !found.iter().any(|a| a.step_seconds == other.step_seconds) {
                found.push(other);
            }
        }
        found.sort_by(|a, b| a.step_seconds.0.total_cmp(&b.step_seconds.0));
        found.truncate(TOLD);
        found
    }

    /// Whether a mix of another kind may be asked for.
    fn applies(&self, kind: Other, mix: &Mix) -> bool {
        let pins = self.knobs;
        match kind {
            Other::Loop => {
                let whole = !self.in_rounds();
                self.r.workload.batch.accumulate > 1
                    && pins.order.is_none()
                    && (whole || mix.round == 0)
                    && (self.r.workload.batch.accumulate > 2 || self.r.workload.sums() == 1)
            }
            Other::Inputs => pins.inputs.is_none(),
            Other::DiskGradients => self.disk && pins.gradients.is_none(),
            _ => true,
        }
    }

    /// A mix of another kind, and the knobs that take the bytes which that leaves.
    fn other(&self, kind: Other, from: &Mix) -> (Mix, &'static [Count]) {
        let (w, pins) = (self.r.workload, self.knobs);
        let with = |counts: &[(Count, usize)]| {
            let each = counts.iter();
            each.fold(from.clone(), |mix, &(count, n)| mix.with(count, n, w, pins))
        };
        let all = usize::MAX;
        let dear = pins.ladders.blocks.len() * pins.ladders.dear();
        let mut mix = from.clone();
        match kind {
            Other::HostUpdates => (
                with(&[(Count::Resident, 0), (Count::Streamed, 0)]),
                &[Count::Staying, Count::Stored],
            ),
            Other::DeviceUpdates => (
                with(&[(Count::Resident, 0), (Count::Streamed, all)]),
                &[Count::Stored],
            ),
            Other::Recomputed => (with(&[(Count::Stored, 0)]), &[Count::Resident]),
            Other::NotStreamed => (with(&[(Count::Streamed, 0)]), &[Count::Resident]),
            Other::NearGradients => (
                with(&[(Count::Resident, 0), (Count::Near, all)]),
                &[Count::Near, Count::Stored],
            ),
            Other::MoreSaved => (
                with(&[(Count::Resident, 0), (Count::Stored, dear)]),
                &[Count::Staying, Count::Near],
            ),
            Other::SavedStay => (
                with(&[(Count::Staying, all)]),
                &[Count::Stored, Count::Resident],
            ),
            Other::Loop => {
                let whole = !self.in_rounds();
                (mix.round, mix.order) = match (w.batch.accumulate, mix.round, mix.order) {
                    (..=2, round, LoopOrder::LayerMajor) => (round, LoopOrder::BatchMajor),
                    (..=2, round, _) => (round, LoopOrder::LayerMajor),
                    (_, round, _) if round > 0 && whole => (0, LoopOrder::LayerMajor),
                    _ => (self.round_of(1), LoopOrder::LayerMajor),
                };
                (mix, &[Count::Resident])
            }
            Other::Inputs => {
                mix.inputs = match mix.inputs {
                    Tier::Device => Tier::Host,
                    _ => Tier::Device,
                };
                (mix, &[Count::Resident])
            }
            Other::DiskGradients => {
                mix.waiting = Tier::Disk;
                (mix.with(Count::Near, 0, w, pins), &[Count::Resident])
            }
        }
    }

    fn alternative(&self, kind: Other, choice: &Choice, best: &Candidate) -> Alternative {
        let Request {
            workload: w,
            clip,
            machine,
            ..
        } = self.r;
        let rounds = choice.rounds(w);
        let d = crate::draft::draft(
            w,
            &self.knobs.rates,
            choice,
            clip,
            &timed_parts(clip, rounds),
        );
        let lanes = busy_of(&d, rounds, w, machine).lanes;
        let busiest = |a: &&LaneKind, b: &&LaneKind| {
            let of = |k: LaneKind| lanes[k as usize].busy_seconds.0;
            of(**a).total_cmp(&of(**b))
        };
        let shorter = self.step_seconds(choice) < self.step_seconds(&best.choice);
        Alternative {
            kind,
            why_not: shorter.then(|| self.why_not(choice, best)),
            step_seconds: Seconds(self.step_seconds(choice)),
            ruling_lane: *LaneKind::ALL
                .iter()
                .max_by(busiest)
                .expect("there are lanes"),
            bytes: self.whole(choice).map(Bytes),
        }
    }

    /// Why a choice with a shorter step was not chosen.
    pub(super) fn why_not(&self, choice: &Choice, best: &Candidate) -> Why {
        let chosen = &best.choice;
        let mut homes = chosen.weights.iter().chain(&chosen.optimizer);
        if !self.may_write(choice) || self.seconds(choice) >= self.seconds(chosen) {
            Why::Writes
        } else if homes.all(|&tier| tier == Tier::Device)
            && self.seconds(chosen) <= SURE * self.seconds(choice)
        {
            Why::Sure
        } else {
            Why::Unseen
        }
    }

    /// One more unit of each budget, from the candidate on.
    fn more(&self, best: &Candidate) -> Vec<More> {
        let units = [
            (Tier::Device, Bytes::GIB),
            (Tier::Host, Bytes::GIB * 8),
            (Tier::Disk, Bytes::GIB * 64),
        ];
        // A drive that was not given is not asked about.
        let asked = |t: &(Tier, Bytes)| t.0 != Tier::Disk || self.disk;
        let each = units.into_iter().filter(asked).map(|(tier, unit)| {
            let have = self.r.budgets.of(tier);
            // For a small model a tenth of what there is says more.
            let unit = if have < unit * 2 && have.0 > 0 {
                Bytes((have.0 / 10).max(1))
            } else {
                unit
            };
            let mut budgets: Budgets = self.r.budgets;
            match tier {
                Tier::Device => budgets.device += unit,
                Tier::Host => budgets.host += unit,
                Tier::Disk => budgets.disk += unit,
            }
            let r = Request { budgets, ..self.r };
            let search = Search::new(r, self.knobs, self.seen);
            // Where state is on disk, more of the host takes it back.
            let settled = search.settled(&best.mix);
            let again = settled.filter(|c| search.holds_whole(c)).map(|choice| {
                let seconds = search.seconds(&choice);
                Candidate {
                    mix: best.mix.clone(),
                    choice,
                    seconds,
                }
            });
            let from = match again {
                Some(again) if again.seconds < best.seconds => again,
                _ => best.clone(),
            };
            let mut better = search.climb(from.clone(), WORK);
            for count in Count::PAID {
                if let Some(mix) = search.filled(&best.mix, count)
                    && let Some(choice) = search.settled(&mix)
                    && search.holds_whole(&choice)
                {
                    let seconds = search.seconds(&choice);
                    if seconds < better.seconds {
                        better = Candidate {
                            mix,
                            choice,
                            seconds,
                        };
                    }
                }
            }
            More {
                tier,
                bytes: unit,
                step_seconds: Seconds(search.step_seconds(&better.choice)),
            }
        });
        each.collect()
    }
}

/// Changes of the numerics key that give more tokens a second.
fn suggestions(
    r: &Request<'_>,
    (best, step): (&Candidate, Seconds),
    more: &[(u32, &Workload)],
) -> Vec<Suggestion> {
    // Of all ranks: the workload is one's.
    let tokens_of = |w: &Workload| w.batch.tokens() as f64 * f64::from(w.ranks);
    let now = tokens_of(r.workload) / step.0;
    let mut found: Vec<Suggestion> = Vec::new();
    let mut ask = |change: Change, request: Request<'_>| {
        let Ok(step_seconds) = quick(&request, &best.mix, best.choice.direct) else {
            return;
        };
        let tokens_per_second = tokens_of(request.workload) / step_seconds.0;
        // Less is not worth other numbers.
        if tokens_per_second > now * 1.02 {
            found.push(Suggestion {
                change,
                step_seconds,
                tokens_per_second,
            });
        }
    };
    if r.clip == Clip::Exact {
        let clip = Clip::Previous;
        ask(Change::ClipPrevious, Request { clip, ..*r });
    }
    for &(accumulate, workload) in more {
        let request = Request { workload, ..*r };
        if shorter::looked_at(&request).is_none() {
            ask(Change::Accumulate(accumulate), request);
        }
    }
    found.sort_by(|a, b| b.tokens_per_second.total_cmp(&a.tokens_per_second));
    found
}

/// Time of a step of a plan that was looked for only a little, around one for another request.
fn quick(r: &Request<'_>, near: &Mix, direct: Direct) -> Result<Seconds, PlanError> {
    let (knobs, seen) = (Knobs::new(r, direct), Seen::default());
    let search = Search::new(*r, &knobs, &seen);
    // A batch that was planned as one may now be too long for that.
    let near = match near.round {
        0 if search.in_rounds() => Mix {
            round: search.round_of(search.most_in_a_part()),
            ..near.clone()
        },
        _ => near.clone(),
    };
    // What has more in motion may leave no room on the device for anything else.
    let away = Mix {
        inputs: r.pins.inputs.unwrap_or(Tier::Host),
        counts: Default::default(),
        ..near.clone()
    };
    let just_in_time = Mix {
        ahead: r.pins.prefetch.map_or([0; 3], pinned_ahead),
        ..away.clone()
    };
    let fitted = [near, away, just_in_time].into_iter().find_map(|near| {
        let filled = search.filled(&near, Count::Resident);
        let mix = filled.unwrap_or(near);
        let choice = search.settled(&mix)?;
        search.holds_whole(&choice).then_some((mix, choice))
    });
    let best = match fitted {
        Some((mix, choice)) => Candidate {
            mix,
            seconds: search.seconds(&choice),
            choice,
        },
        None => {
            let starts = search.starts()?;
            search.spend(starts.into_iter().next().expect("not empty"), WORK)
        }
    };
    let best = search.climb(best, WORK);
    Ok(Seconds(search.step_seconds(&best.choice)))
}
