//! When each tensor is fetched, begun and ended, by operation of a program.

use super::*;

/// A program, when its tensors are on the device, and where they are otherwise.
pub(super) struct Schedule<'p> {
    pub(super) program: &'p Program,
    pub(super) span: Span,
    pub(super) tiers: FastMap<Tensor, Tier>,
    pub(super) windows: Vec<Window>,
    pub(super) agenda: Agenda,
    /// First operation that reads each piece's weights.
    pub(super) first_use: FastMap<u32, usize>,
}

/// For each operation, the windows that are read from disk, fetched or begun before it, and those
/// that end after it.
pub(super) struct Agenda {
    pub(super) read: Lists,
    pub(super) fetch: Lists,
    pub(super) begin: Lists,
    pub(super) end: Lists,
}

/// A list for each operation, all in one piece of memory.
pub(super) struct Lists {
    starts: Vec<usize>,
    items: Vec<usize>,
}

impl Lists {
    /// From pairs of operation and item; items of one operation keep their order.
    pub(super) fn new(n: usize, pairs: &[(usize, usize)]) -> Self {
        let mut starts = vec![0; n + 1];
        for &(op, _) in pairs {
            starts[op + 1] += 1;
        }
        for i in 0..n {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut items = vec![0; pairs.len()];
        for &(op, item) in pairs {
            items[next[op]] = item;
            next[op] += 1;
        }
        Self { starts, items }
    }

    pub(super) fn at(&self, op: usize) -> &[usize] {
        &self.items[self.starts[op]..self.starts[op + 1]]
    }
}

impl Agenda {
    pub(super) fn new(
        program: &Program,
        windows: &[Window],
        tiers: &FastMap<Tensor, Tier>,
        prefetch: usize,
    ) -> Self {
        let n = program.ops.len();
        let (mut reads, mut fetches, mut begins, mut ends) = (
            Vec::new(),
            Vec::new(),
            Vec::new(),
            Vec::with_capacity(windows.len()),
        );
        let weights: Vec<usize> = windows
            .iter()
            .filter(|w| is_weight(w.tensor) && tiers[&w.tensor] != Tier::Device)
            .map(|w| w.first)
            .collect();
        let mut nth_weight: usize = 0;
        let mut previous_end: FastMap<Tensor, usize> = FastMap::default();
        for (wi, window) in windows.iter().enumerate() {
            ends.push((window.last, wi));
            let fetched = tiers[&window.tensor] != Tier::Device && !window.fresh;
            if !fetched {
                begins.push((window.first, wi));
                previous_end.insert(window.tensor, window.last);
                continue;
            }
            let earliest = previous_end
                .insert(window.tensor, window.last)
                .map_or(0, |e| e + 1);
            let (fetch, read) = if is_weight(window.tensor) {
                let k = nth_weight;
                nth_weight += 1;
                (
                    weights[k.saturating_sub(prefetch)],
                    weights[k.saturating_sub(2 * prefetch)],
                )
            } else {
                let visit = program.ops[window.first].visit as usize;
                (
                    program.visits[visit.saturating_sub(prefetch)],
                    program.visits[visit.saturating_sub(2 * prefetch)],
                )
            };
            let fetch = fetch.max(earliest).min(window.first);
            fetches.push((fetch, wi));
            reads.push((read.max(earliest).min(fetch), wi));
        }
        Self {
            read: Lists::new(n, &reads),
            fetch: Lists::new(n, &fetches),
            begin: Lists::new(n, &begins),
            end: Lists::new(n, &ends),
        }
    }
}

pub(super) fn is_weight(t: Tensor) -> bool {
    matches!(t, Tensor::Weight(_))
}

/// First operation that reads each piece's weights.
pub(super) fn first_use_table(windows: &[Window]) -> FastMap<u32, usize> {
    let mut table = FastMap::default();
    for w in windows {
        if let Tensor::Weight(p) = w.tensor {
            table.entry(p).or_insert(w.first);
        }
    }
    table
}

/// Pieces in order of their first use in forward.
pub(super) fn first_uses(program: &Program, n_pieces: usize) -> Vec<u32> {
    let used = program
        .ops
        .iter()
        .flat_map(|op| &op.operands)
        .filter_map(|o| match o.tensor {
            Tensor::Weight(p) => Some(p),
            _ => None,
        });
    let mut seen = vec![false; n_pieces];
    used.chain(0..n_pieces as u32)
        .filter(|&p| !std::mem::replace(&mut seen[p as usize], true))
        .collect()
}

/// For each piece the operation after which it may be updated in the same batch: its gradient is
/// complete and nothing reads its weights any more. In that order.
pub(super) fn ready_order(program: &Program) -> Vec<(usize, u32)> {
    let mut ready: BTreeMap<u32, usize> = BTreeMap::new();
    for (i, op) in program.ops.iter().enumerate() {
        if let Work::Finish { piece } = op.work {
            ready.insert(piece, i);
        }
        for o in &op.operands {
            if let Tensor::Weight(p) = o.tensor {
                ready.insert(p, i);
            }
        }
    }
    let mut order: Vec<(usize, u32)> = ready.into_iter().map(|(p, i)| (i, p)).collect();
    order.sort_unstable();
    order
}
