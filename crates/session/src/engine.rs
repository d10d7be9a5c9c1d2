//! Does the work of a plan's tasks: the model's operations, gradients' ends,
//! updates, norms, inputs and results.
//!
//! One file because the engine is one match from tasks to what does them.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_device::{Dst, Queue, Src, memory};
use lowtide_executor::{Bound, EngineError, Record, TaskCall};
use lowtide_kernels::gradient;
use lowtide_kernels::update::{self, Hyper};
use lowtide_model::{Arg, Call, Decoder, Live, Phase, Rate, store_inputs};
use lowtide_planner::{Clip, Piece, PieceId, Plan, Work};
use lowtide_units::{List, ids};
use lowtide_workload::{Dtype, NORM_CHUNK, OpId, Param, ParamId, Workload};

use crate::commit::{About, Commits};
use crate::outcome::Outcome;
use crate::spikes::{Norms, SpikeAction, SpikeRule};
use crate::step::StepData;

/// How gradients are clipped, and what happens when one is not finite or its norm is far above those before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipRule {
    /// By which norm.
    pub mode: Clip,
    /// Largest norm left as it is.
    pub max_norm: f32,
    /// With `exact`: leave out an update whose norm is not finite instead of stopping.
    pub skip_nonfinite: bool,
    /// What is done at a norm far above those before it.
    pub spikes: Option<SpikeRule>,
}

impl ClipRule {
    /// What gradients of this norm are multiplied by.
    #[must_use]
    pub fn factor(&self, norm: f64) -> f64 {
        match self.mode {
            Clip::None => 1.0,
            // As PyTorch's clip_grad_norm_.
            _ => (f64::from(self.max_norm) / (norm + 1e-6)).min(1.0),
        }
    }
}

/// The clip slot: factor, norm, and whether updates apply, as three `f64`.
const CLIP_WORDS: usize = 3;

/// Numbers of a parameter that a rank has: where they start in what it has of the piece, and which they are.
type Own<'a> = (ParamId, &'a Param, usize, Range<u64>);

/// Runs tasks with a decoder's kernels.
#[derive(Debug)]
pub struct Engine {
    decoder: Arc<Decoder>,
    plan: Arc<Plan>,
    clip: ClipRule,
    /// Each piece's parameters, for kernels that walk them.
    segments: List<PieceId, Vec<gradient::Segment>>,
    /// The same for updates, by how they differ from the run's.
    updates: List<PieceId, Vec<(Rate, Vec<update::Segment>)>>,
    /// Where partial sums of the norm stand, in the order in which they add up; `None`: as they stand.
    norm_order: Option<Vec<usize>>,
    commits: Commits,
    /// Norms of the last steps, where spikes are looked for.
    norms: Mutex<Norms>,
}

impl Engine {
    /// An engine for one plan, of this rank of those that run it. Long because it makes every list that tasks walk.
    ///
    /// # Panics
    /// When an optimizer of whole tensors is to update shares.
    #[must_use]
    pub fn new(decoder: Arc<Decoder>, plan: Arc<Plan>, clip: ClipRule, rank: u32) -> Self {
        let w = decoder.workload();
        assert!(
            plan.ranks == 1 || !plan.optimizer.is_shaped(),
            "a rank has no whole tensors"
        );
        // Each parameter of a piece that this rank has numbers of, where they start in what it has of the piece, and
        // which they are.
        let walk = |piece: &Piece| {
            let ranks = if piece.frozen { 1 } else { plan.ranks };
            let offsets = piece.offsets.clone();
            let of = move |(p, offset): (ParamId, u64)| {
                let param = &w.params[p];
                let own = match ranks {
                    1 => 0..param.elements,
                    _ => w.share(param, rank),
                };
                (p, param, (offset / u64::from(ranks)) as usize, own)
            };
            let all = ids(&piece.params).zip(offsets).map(of);
            all.filter(|own| !own.3.is_empty()).collect::<Vec<_>>()
        };
        // Where gradients add up in a tree, a run of the norm ends where a share of its finest cut does.
        let cut = |(_, p, offset, own): Own<'_>| {
            let each = match w.sums() {
                1 => p.elements.max(1),
                _ => w.padded(p) / u64::from(w.cuts()),
            };
            let starts = (own.start..own.end).step_by(each as usize);
            let of = move |start: u64| gradient::Segment {
                offset: offset + (start - own.start) as usize,
                elements: (own.end.min(start + each) - start) as usize,
            };
            starts.map(of).collect::<Vec<_>>()
        };
        let segments = plan
            .pieces
            .iter()
            .map(|piece| walk(piece).into_iter().flat_map(cut).collect())
            .collect();
        let whole = |(param, p, offset, own): Own<'_>| update::Segment {
            offset,
            elements: (own.end - own.start) as usize,
            updated: true,
            decay: p.decay || decoder.rate(param).weight_decay.is_some(),
            param: param.0,
            start: own.start,
            cols: p.cols as usize,
        };
        // A shaped optimizer takes each tensor that is fused in a parameter on its own.
        let tensors = |own: Own<'_>| {
            let (p, offset) = (own.1, own.2);
            let all = whole(own);
            let of = |rows: Range<u64>| {
                let start = rows.start * p.cols;
                update::Segment {
                    offset: offset + start as usize,
                    elements: ((rows.end - rows.start) * p.cols) as usize,
                    start,
                    ..all
                }
            };
            p.tensors().map(of).collect::<Vec<_>>()
        };
        let updates = plan
            .pieces
            .iter()
            .map(|piece| {
                let segments: Vec<update::Segment> = match plan.optimizer.is_shaped() {
                    true => walk(piece).into_iter().flat_map(tensors).collect(),
                    false => walk(piece).into_iter().map(whole).collect(),
                };
                by_rate(&segments, |s| decoder.rate(ParamId(s.param)))
            })
            .collect();
        let norm_order = norm_order(&plan, w);
        Self {
            decoder,
            plan,
            clip,
            segments,
            updates,
            norm_order,
            commits: Commits::default(),
            norms: Mutex::default(),
        }
    }

    fn norms(&self) -> MutexGuard<'_, Norms> {
        self.norms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The norms by which the next step is judged, as bits; of a run that looks for no spikes none.
    pub(crate) fn last_norms(&self) -> Vec<u64> {
        self.norms().bits()
    }

    /// Restores what [`Engine::last_norms`] gave.
    pub(crate) fn restore_norms(&self, bits: &[u64]) {
        if let Some(rule) = &self.clip.spikes {
            *self.norms() = Norms::restored(rule, bits);
        }
    }

    /// Sets what the journal says of the run as a whole, with every commit.
    pub fn set_about(&self, about: About) {
        self.commits.set_about(about);
    }

    fn compute(
        &self,
        q: &Queue,
        mut args: Vec<Bound<'_>>,
        at: (u32, lowtide_planner::Phase, OpId),
        (step, micro_batch): (&StepData, u32),
    ) {
        use lowtide_planner::Phase as P;
        let (unit, phase, op) = at;
        let phase = match phase {
            P::Forward | P::Recompute => Phase::Forward,
            P::Backward => Phase::Backward,
            P::Evaluate => Phase::Evaluate,
            P::Infer => Phase::Infer,
        };
        let unit = unit as usize;
        let ops = phase.ops(&self.decoder.workload().units[unit]);
        let n = ops[op].operands.len();
        let place = args[0].place();
        let scratch = (args.len() > n).then(|| args.remove(n).dst());
        let operands = args.into_iter().map(|a| match a {
            Bound::Read(from) => Arg::Read(from),
            Bound::Write(to) => Arg::Write(to),
            Bound::Update(to) => Arg::Add(to),
        });
        let call = Call {
            unit,
            phase,
            op,
            args: operands.collect(),
            workspace: scratch.unwrap_or_else(|| Dst::none(place)),
            loss_scale: step.loss_scale,
            live: self.live(step),
            training: step.training(micro_batch),
        };
        self.decoder.run(q, call);
    }

    /// How much of a step of decoding holds anything.
    fn live(&self, step: &StepData) -> Option<Live> {
        let decodes = self.decoder.steps().is_some();
        decodes.then(|| Live::of(&step.inputs[0].labels))
    }

    fn finish(&self, q: &Queue, args: Vec<Bound<'_>>, piece: PieceId) {
        let mut args = args.into_iter();
        let mut next = || args.next();
        let (Some(gradient), Some(parts)) = (next(), next()) else {
            panic!("a gradient and its norm parts")
        };
        let (mut gradient, mut parts) = (gradient.dst(), parts.dst());
        let (segments, plan) = (&self.segments[piece], &self.plan);
        let own = plan.own(piece) as usize;
        let sum = next();
        // Of the last share a parameter may have less, so fewer runs; what is not there adds nothing to the norm.
        let runs: usize = segments.iter().map(|s| s.norm_chunks()).sum();
        let used = runs * size_of::<f64>();
        if used < parts.bytes() {
            let none = parts.lend(used, parts.bytes() - used);
            match q.cuda() {
                Some(stream) => stream.fill(none, 0),
                None => none.write::<u8>().fill(0),
            }
        }
        let parts = parts.part(0, used);
        let ranks = plan.ranks as usize;
        if ranks == 1 {
            let sum = sum.map(|sum| sum.src());
            return gradient::finish(q, gradient, parts, sum, segments, own, plan.gradient);
        }
        let shares = sum.expect("all ranks' shares").dst();
        let add_up = match self.decoder.workload().leaves {
            1 => gradient::add_up,
            _ => gradient::add_halves,
        };
        if plan.gradient == Dtype::F32 {
            let _ = add_up(q, shares, Some(gradient.again()), ranks);
            gradient::finish(q, gradient, parts, None, segments, own, Dtype::F32);
        } else {
            let sum = add_up(q, shares, None, ranks);
            let sum = Some(sum.src());
            gradient::finish(q, gradient, parts, sum, segments, own, plan.gradient);
        }
    }

    fn update(
        &self,
        q: &Queue,
        mut args: Vec<Bound<'_>>,
        piece_id: PieceId,
        step: &StepData,
    ) -> Result<(), EngineError> {
        let params = self.plan.pieces[piece_id].of(self.decoder.workload());
        let scratch = match self.plan.optimizer.scratch_bytes(params) {
            0 => None,
            _ => args.pop().map(Bound::dst),
        };
        let mut args = args.into_iter();
        let mut next = || args.next();
        let (Some(weight), Some(state), Some(gradient), Some(clip)) =
            (next(), next(), next(), next())
        else {
            panic!("weight, state, gradient and clip factor")
        };
        // With `exact`, the norm has reported what is not finite before the first update. On a GPU without it, the
        // update looks at its own parts, and the norm reports what it saw.
        let parts = match self.clip.mode {
            Clip::Exact => None,
            _ => next().map(|a| a.src()),
        };
        if let Some(view) = parts.filter(|_| q.cuda().is_none()) {
            let mut parts = vec![0.0f64; view.bytes() / 8];
            memory::load(view, &mut parts);
            if parts.iter().any(|p| !p.is_finite()) {
                let what = "a gradient is not finite".to_owned();
                step.set(|o| o.nonfinite = Some(what.clone()));
                return Err(EngineError::NonFinite(what));
            }
        }
        let hyper = step.update.ok_or_else(|| {
            EngineError::Wrong(
                "an update without settings: the step was submitted wrongly".to_owned(),
            )
        })?;
        let types = update::Types {
            optimizer: self.plan.optimizer,
            precision: self.plan.precision,
            gradient: self.plan.gradient,
        };
        let (mut weight, mut state, gradient) = (weight.dst(), state.dst(), gradient.src());
        let mut scratch = scratch;
        let clip = clip.src().part(0, 8 * CLIP_WORDS);
        for (rate, segments) in &self.updates[piece_id] {
            let operands = update::Operands {
                weight: weight.again(),
                state: state.again(),
                gradient,
                clip,
                parts,
                scratch: scratch.as_mut().map(Dst::again),
            };
            let hyper = at_rate(&hyper, rate);
            let own = self.plan.own(piece_id);
            update::step(q, types, own, operands, segments, &hyper);
        }
        Ok(())
    }

    /// A round's losses, of all ranks, behind those of the rounds before, in the order of the batch: rank by rank, or,
    /// in a tree, one of each rank in turn.
    fn append(&self, all: &mut Vec<(f64, f64)>, round: Src<'_>) {
        let ranks = self.plan.ranks as usize;
        let more = losses(round);
        if self.decoder.workload().leaves > 1 {
            let each = more.len() / ranks;
            all.extend((0..more.len()).map(|m| more[m % ranks * each + m / ranks]));
            return;
        }
        let (old, new) = (all.len() / ranks, more.len() / ranks);
        let of = |rank: usize| {
            let before = all[rank * old..][..old].iter();
            before.chain(&more[rank * new..][..new]).copied()
        };
        *all = (0..ranks).flat_map(of).collect();
    }

    /// Sums the parts in parameter order; writes factor, norm and go-ahead.
    fn norm(
        &self,
        [all, clip, losses_of]: [Bound<'_>; 3],
        step: &StepData,
    ) -> Result<(), EngineError> {
        let mut parts = vec![0.0f64; all.src().bytes() / 8];
        memory::load(all.src(), &mut parts);
        let mut losses = std::mem::take(&mut step.lock().losses);
        self.append(&mut losses, losses_of.src());
        let norm = match &self.norm_order {
            None => parts.iter().sum::<f64>(),
            Some(order) => order.iter().map(|&at| parts[at]).sum(),
        };
        let norm = norm.sqrt();
        let factor = self.clip.factor(norm);
        let finite = norm.is_finite() && losses.iter().all(|l| l.0.is_finite());
        let rule = self.clip.spikes.filter(|_| finite);
        let spike = rule.and_then(|rule| Some((rule, self.norms().take(&rule, norm)?)));
        let action = spike.map(|(rule, _)| rule.action);
        let applies = finite && !matches!(action, Some(SpikeAction::Skip | SpikeAction::Stop));
        let stops = action == Some(SpikeAction::Stop) || (!finite && !self.skips());
        let words = [factor, norm, if applies { 1.0 } else { 0.0 }];
        memory::store(clip.dst().part(0, 8 * CLIP_WORDS), &words);
        let error = stops.then(|| match spike {
            Some((rule, median)) => EngineError::Spike(format!(
                "gradient norm {norm:.4}: more than {} times {median:.4}, the median of the {} steps before",
                rule.factor, rule.window
            )),
            None => {
                let loss: f64 = losses.iter().map(|l| l.0).sum();
                EngineError::NonFinite(format!("loss sum {loss}, gradient norm {norm}"))
            }
        });
        let outcome = Outcome {
            losses,
            norm,
            skipped: !applies && !stops,
            spike: spike.map(|(_, median)| norm / median),
            nonfinite: error.as_ref().map(ToString::to_string),
            done: true,
            ..Outcome::default()
        };
        if let Some(mark) = &step.mark {
            self.commits.note(mark, &outcome);
        }
        step.set(|o| *o = outcome);
        error.map_or(Ok(()), Err)
    }

    /// Whether an update whose norm is not finite is left out.
    fn skips(&self) -> bool {
        self.clip.mode == Clip::Exact && self.clip.skip_nonfinite
    }
}

/// Where each partial sum of the norm stands among all ranks', in the order of a rank for each leaf: share by share of
/// the finest cut, in each in parameter order. `None`: they stand in that order.
fn norm_order(plan: &Plan, w: &Workload) -> Option<Vec<usize>> {
    let sums = w.sums();
    if sums == 1 {
        return None;
    }
    let each: u64 = plan.pieces.iter().map(|piece| piece.norm_chunks).sum();
    let mut runs = Vec::new();
    for rank in 0..plan.ranks {
        for piece in plan.pieces.iter().filter(|piece| !piece.frozen) {
            let mut at = u64::from(rank) * each + piece.norm_offset;
            for p in ids(&piece.params) {
                for share in rank * sums..(rank + 1) * sums {
                    let own = w.cut(&w.params[p], share, w.cuts());
                    let end = at + (own.end - own.start).div_ceil(NORM_CHUNK);
                    runs.push((share, p, at..end));
                    at = end;
                }
            }
        }
    }
    runs.sort_unstable_by_key(|&(share, p, _)| (share, p));
    let all = runs.into_iter().flat_map(|(.., at)| at);
    Some(all.map(|at| at as usize).collect())
}

/// The clip slot of a run that has no norm yet: no clipping, updates apply.
#[must_use]
pub(crate) fn first_clip() -> [f64; CLIP_WORDS] {
    [1.0, 0.0, 1.0]
}

fn losses(view: Src<'_>) -> Vec<(f64, f64)> {
    let mut words = vec![0.0f64; view.bytes() / 8];
    memory::load(view, &mut words);
    words.chunks_exact(2).map(|p| (p[0], p[1])).collect()
}

impl lowtide_executor::Engine for Engine {
    type Step = StepData;

    fn run(&self, queue: &Queue, call: TaskCall<'_>, step: &StepData) -> Result<(), EngineError> {
        match call.work {
            Work::Compute { .. } if step.breaks_off() => {}
            Work::Compute {
                unit,
                phase,
                op,
                micro_batch,
            } => {
                let of = (step, micro_batch + call.shift);
                self.compute(queue, call.args, (unit, phase, op), of);
            }
            Work::Fold { .. } => {
                let [sums] = call.take();
                let count = self.decoder.workload().sums() as usize;
                let _ = gradient::add_halves(queue, sums.dst(), None, count);
            }
            Work::Finish { piece } => self.finish(queue, call.args, piece),
            Work::Update { piece } => return self.update(queue, call.args, piece, step),
            Work::Norm => return self.norm(call.take(), step),
            Work::Load { micro_batch } => {
                let inputs = &step.inputs[(micro_batch + call.shift) as usize];
                let [to] = call.take();
                let to = match self.live(step) {
                    Some(live) => to.dst().part(0, 16 * live.rows),
                    None => to.dst(),
                };
                store_inputs(inputs.planes(), to);
            }
            Work::Losses => {
                let [from] = call.take();
                let ranks = self.plan.ranks as usize;
                // Of a batch in rounds there are more to come.
                step.set(|o| {
                    self.append(&mut o.losses, from.src());
                    o.done = step.is_evaluated(o.losses.len() / ranks);
                });
            }
            Work::Logits { .. } => {
                let [from] = call.take();
                let mut from = from.src();
                if let (Some(live), Some(how)) = (self.live(step), self.decoder.steps()) {
                    let answers = how.answers() as usize;
                    from = from.part(0, from.bytes() / answers * live.answers);
                }
                let mut logits = vec![0.0f32; from.bytes() / 4];
                memory::load(from, &mut logits);
                step.set(|o| (o.logits, o.done) = (logits, true));
            }
            Work::Copy
            | Work::Read
            | Work::Write
            | Work::Commit
            | Work::AllToAll { .. }
            | Work::AllGather { .. } => {
                return Err(EngineError::Wrong(
                    "a transfer is not the engine's work".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn record(&self, call: TaskCall<'_>, step: &StepData) -> Result<Record, EngineError> {
        let mut words = [0.0f64; CLIP_WORDS];
        let [clip] = call.take();
        memory::load(clip.src().part(0, 8 * CLIP_WORDS), &mut words);
        self.commits.record(step.commits, &words)
    }
}

/// For each rate in a piece, all its segments; only those of that rate are marked as updated.
fn by_rate(
    segments: &[update::Segment],
    of: impl Fn(&update::Segment) -> Rate,
) -> Vec<(Rate, Vec<update::Segment>)> {
    let mut rates: Vec<Rate> = Vec::new();
    for rate in segments.iter().map(&of) {
        if !rates.contains(&rate) {
            rates.push(rate);
        }
    }
    let at = |rate| {
        let segment = |s: &update::Segment| update::Segment {
            updated: of(s) == rate,
            ..*s
        };
        (rate, segments.iter().map(segment).collect())
    };
    rates.into_iter().map(at).collect()
}

/// A step's settings for tensors of a rate of their own; those of the others are as they were.
fn at_rate(hyper: &Hyper, rate: &Rate) -> Hyper {
    if *rate == Rate::default() {
        return *hyper;
    }
    Hyper {
        lr: (f64::from(hyper.lr) * rate.share) as f32,
        weight_decay: rate.weight_decay.map_or(hyper.weight_decay, |d| d as f32),
        ..*hyper
    }
}
