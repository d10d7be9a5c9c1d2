//! What stands before and behind each operation of a program.

use super::timetable::{Event, Scene, Times};
use super::*;

/// A program, when its tensors are on the device, and where they are otherwise.
pub(super) struct Schedule<'p> {
    pub(super) program: &'p Program,
    pub(super) span: Span,
    pub(super) tiers: FastMap<Tensor, Tier>,
    pub(super) windows: Vec<Window>,
    pub(super) agenda: Agenda,
    /// Pieces in the order in which the part updates them.
    pub(super) order: Vec<PieceId>,
    /// When the operations are predicted to run.
    pub(super) times: Times,
}

/// For each operation, what stands before it, the windows that begin with it and those that end with it.
pub(super) struct Agenda {
    pub(super) events: Lists<Event>,
    pub(super) begin: Lists<usize>,
    pub(super) end: Lists<usize>,
}

/// A list for each operation, all in one piece of memory.
pub(super) struct Lists<T> {
    starts: Vec<usize>,
    items: Vec<T>,
}

impl<T: Copy + Default> Lists<T> {
    /// From pairs of operation and item; items of one operation keep their order.
    pub(super) fn new(n: usize, pairs: &[(usize, T)]) -> Self {
        let mut starts = vec![0; n + 1];
        for &(op, _) in pairs {
            starts[op + 1] += 1;
        }
        for i in 0..n {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut items = vec![T::default(); pairs.len()];
        for &(op, item) in pairs {
            items[next[op]] = item;
            next[op] += 1;
        }
        Self { starts, items }
    }

    pub(super) fn at(&self, op: usize) -> &[T] {
        &self.items[self.starts[op]..self.starts[op + 1]]
    }
}

impl Emitter<'_> {
    /// What is on the device when, in a program.
    pub(super) fn schedule<'p>(
        &self,
        program: &'p Program,
        span: Span,
        updates: Updates,
    ) -> Schedule<'p> {
        let mut tiers: FastMap<Tensor, Tier> = FastMap::default();
        for o in program.ops.iter().flat_map(|op| &op.operands) {
            tiers
                .entry(o.tensor)
                .or_insert_with(|| self.home_tier(o.tensor));
        }
        // Gradients are complete, and the norm is known, at the end of the last round.
        let updates = match updates {
            Updates::UnderForward => updates,
            _ if span.ends => updates,
            _ => Updates::Never,
        };
        let ready = match updates {
            Updates::UnderBackward => ready_order(program, self.pieces),
            _ => Vec::new(),
        };
        let order = match updates {
            Updates::UnderBackward => ready.iter().map(|&(_, p)| p).collect(),
            _ => first_uses(program, self.pieces),
        };
        let times = Times::straight(program, self.rates, self.pieces);
        let outlives = |t: Tensor| !span.ends && self.outer_home(t).is_some();
        let apart = |t: Tensor, last: usize, next: usize| {
            let runs = program.ops[next].run - program.ops[last].run;
            let pause = times.starts[next] - times.ends[last];
            self.moves(t, tiers[&t], runs, pause)
        };
        let windows = program.windows(apart, outlives);
        let scene = Scene {
            program,
            windows: &windows,
            tiers: &tiers,
            order: &order,
            ready: &ready,
        };
        let (agenda, times, forwarded) = self.agenda(&scene, updates, times);
        for t in forwarded {
            tiers.insert(t, Tier::Host);
        }
        Schedule {
            program,
            span,
            tiers,
            windows,
            agenda,
            order,
            times,
        }
    }

    /// Whether a tensor leaves the device in a pause between two uses: if its home is elsewhere and it can be gone
    /// and back in time. With `ahead` zero, everything leaves that may. What one unit hands to the next stays unless
    /// it is to leave. Weights and sums leave after their unit if other units come before the next use, whatever the
    /// predicted pause: they are large, and what they wait for, an update or a drive, often takes longer than the
    /// gpu's own work.
    fn moves(&self, t: Tensor, tier: Tier, runs: u32, pause: f64) -> bool {
        if tier == Tier::Device {
            return false;
        }
        let pressed = self.choice.ahead.device.0 == 0;
        let worth = pause >= self.rates.away(self.tensor_bytes(t), tier, self.direct(t));
        match t {
            Tensor::Local(..) if runs == 0 => false,
            Tensor::Local(..) if runs == 1 => {
                self.choice.carry != Tier::Device && pause > 0.0 && (worth || pressed)
            }
            Tensor::Local(..) => worth || pressed,
            _ => runs > if pressed { 1 } else { 2 },
        }
    }
}

/// First operation that reads each piece's weights.
pub(super) fn first_use_table(windows: &[Window]) -> FastMap<PieceId, usize> {
    let mut table = FastMap::default();
    for w in windows {
        if let Tensor::Weight(p) = w.tensor {
            table.entry(p).or_insert(w.first);
        }
    }
    table
}

/// Pieces that are trained, in order of their first use in forward.
pub(super) fn first_uses(program: &Program, pieces: &List<PieceId, Piece>) -> Vec<PieceId> {
    let used = program
        .ops
        .iter()
        .flat_map(|op| &op.operands)
        .filter_map(|o| match o.tensor {
            Tensor::Weight(p) => Some(p),
            _ => None,
        });
    let mut seen: List<PieceId, bool> = pieces.iter().map(|p| p.frozen).collect();
    let all = seen.ids();
    used.chain(all)
        .filter(|&p| !std::mem::replace(&mut seen[p], true))
        .collect()
}

/// For each piece that is trained, the operation after which it may be updated in the same batch, in that order. Its
/// gradient must be complete, and nothing may read its weights any more: a product's weight gradient comes before its
/// input gradient, which still reads the weight.
pub(super) fn ready_order(
    program: &Program,
    pieces: &List<PieceId, Piece>,
) -> Vec<(usize, PieceId)> {
    let mut ready: List<PieceId, Option<usize>> = vec![None; pieces.len()].into();
    for (i, op) in program.ops.iter().enumerate() {
        if let Work::Finish { piece } = op.work {
            ready[piece] = Some(i);
        }
        for o in &op.operands {
            if let Tensor::Weight(p) = o.tensor {
                ready[p] = Some(i);
            }
        }
    }
    let known = ready.pairs().filter_map(|(p, &i)| Some((i?, p)));
    let trained = known.filter(|&(_, p)| !pieces[p].frozen);
    let mut order: Vec<(usize, PieceId)> = trained.collect();
    order.sort_unstable();
    order
}
