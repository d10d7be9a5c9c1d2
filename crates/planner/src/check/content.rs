//! Rule 2 by bytes: which content every byte of a slot holds, and which is the newest.

use super::walk::Walk;
use super::{Fault, size};
use crate::plan::{Arg, PieceId, Tensor, Version, Work};

/// Values by byte range: sorted, without overlap. Bytes that no range covers have none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spans(Vec<(u64, u64, u64)>);

impl Spans {
    /// Gives all bytes from `from` to `to` the value.
    pub(super) fn set(&mut self, from: u64, to: u64, value: u64) {
        if from >= to {
            return;
        }
        self.clear(from, to);
        let at = self.0.partition_point(|s| s.0 < from);
        let joins = |s: Option<&(u64, u64, u64)>| s.is_some_and(|s| s.2 == value);
        let before = at > 0 && self.0[at - 1].1 == from && joins(self.0.get(at - 1));
        let behind = self.0.get(at).is_some_and(|s| s.0 == to) && joins(self.0.get(at));
        match (before, behind) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = to,
            (false, true) => self.0[at].0 = from,
            (false, false) => self.0.insert(at, (from, to, value)),
        }
    }

    /// Takes the value from all bytes from `from` to `to`.
    fn clear(&mut self, from: u64, to: u64) {
        let first = self.0.partition_point(|s| s.1 <= from);
        let mut end = first;
        let mut rest = [None, None];
        while let Some(&(f, t, v)) = self.0.get(end).filter(|s| s.0 < to) {
            if f < from {
                rest[0] = Some((f, from, v));
            }
            if t > to {
                rest[1] = Some((to, t, v));
            }
            end += 1;
        }
        self.0.splice(first..end, rest.into_iter().flatten());
    }

    /// The parts of `from..to` that have a value.
    fn within(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let first = self.0.partition_point(|s| s.1 <= from);
        let spans = self.0[first..].iter().take_while(move |s| s.0 < to);
        spans.map(move |&(f, t, v)| (f.max(from), t.min(to), v))
    }

    /// Whether any byte of `from..to` has a value.
    pub(super) fn any(&self, from: u64, to: u64) -> bool {
        from < to && self.within(from, to).next().is_some()
    }

    /// The first byte of `from..to` without a value.
    fn gap(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from;
        for (f, t, _) in self.within(from, to) {
            if f > at {
                return Some(at);
            }
            at = t;
        }
        (at < to).then_some(at)
    }

    /// The first byte of `from..to` whose value is not that of `other`.
    fn differs(&self, other: &Self, from: u64, to: u64) -> Option<u64> {
        let mut theirs = other.within(from, to).peekable();
        for (mut f, t, v) in self.within(from, to) {
            while f < t {
                while theirs.next_if(|s| s.1 <= f).is_some() {}
                match theirs.peek() {
                    Some(&(a, b, value)) if a <= f && value == v => {
                        f = b.min(t);
                    }
                    _ => return Some(f),
                }
            }
        }
        None
    }
}

impl Walk<'_> {
    /// The bytes of an argument that its tensor has: transfers move whole sectors, and what lies
    /// behind the tensor there has no meaning.
    fn meant(&self, a: &Arg) -> (u64, u64) {
        let size = size(self.plan, self.w, self.tensor(a.slot));
        (a.offset.min(size), (a.offset + a.bytes).min(size))
    }

    /// Rule 2: every byte of the argument holds its tensor in the newest version. Gives the version
    /// of the first.
    pub(super) fn read(&self, a: &Arg) -> Result<(Tensor, u64), Fault> {
        let tensor = self.tensor(a.slot);
        let (from, to) = self.meant(a);
        let name = || tensor.name(self.plan);
        let Some(held) = self.held.get(&a.slot) else {
            return self.fault(format!("reads {} unwritten", name()));
        };
        if let Some(at) = held.content.gap(from, to) {
            let whole = if held.content.any(0, u64::MAX) {
                format!(" from byte {at} on")
            } else {
                String::new()
            };
            return self.fault(format!("reads {} unwritten{whole}", name()));
        }
        let newest = self.latest.get(&tensor);
        let stale = newest.is_none_or(|newest| held.content.differs(newest, from, to).is_some());
        if stale && from < to {
            return self.fault(format!("reads {} stale", name()));
        }
        let version = held.content.within(from, to).next().map_or(0, |s| s.2);
        Ok((tensor, version))
    }

    /// The argument's bytes have new content.
    pub(super) fn written(&mut self, a: &Arg) {
        let (from, to) = self.meant(a);
        self.renewed(a, from, to);
    }

    /// A parameter's share of a gradient is written: with it the padding behind it, which no
    /// operation reads or writes.
    pub(super) fn shared(&mut self, a: &Arg, piece: PieceId) {
        let p = &self.plan.pieces[piece];
        // In its sum.
        let each = p.elements * 4;
        let (sum, at) = (a.offset / each * each, a.offset % each);
        let k = p.offsets.partition_point(|&o| o * 4 <= at);
        let end = p.offsets.get(k).map_or(p.elements, |&next| next) * 4;
        self.renewed(a, a.offset, sum + end);
    }

    fn renewed(&mut self, a: &Arg, from: u64, to: u64) {
        let tensor = self.tensor(a.slot);
        self.version += 1;
        let version = self.version;
        self.outdated(tensor, version);
        let newest = self.latest.entry(tensor).or_default();
        newest.set(from, to, version);
        if let Some(held) = self.held.get_mut(&a.slot) {
            held.content.set(from, to, version);
        }
    }

    /// What was made of all ranks' is of an older version now.
    fn outdated(&mut self, own: Tensor, version: u64) {
        match own {
            Tensor::Shard(p) => self.whole_weight(p, version),
            Tensor::Losses => drop(self.latest.remove(&Tensor::LossesOfAll)),
            Tensor::AllNormParts => drop(self.latest.remove(&Tensor::NormPartsOfAll)),
            _ => {}
        }
    }

    /// A piece's weights, all ranks' shares together, have this version: that of the shares.
    fn whole_weight(&mut self, p: PieceId, version: u64) {
        let tensor = Tensor::Weight(p);
        let bytes = size(self.plan, self.w, tensor);
        let mut newest = Spans::default();
        newest.set(0, bytes, version);
        self.latest.insert(tensor, newest);
    }

    /// What every rank has comes together.
    pub(super) fn gathered(
        &mut self,
        piece: Option<PieceId>,
        from: &Arg,
        to: &Arg,
    ) -> Result<(), Fault> {
        let (_, version) = self.read(from)?;
        let Some(p) = piece else {
            self.written(to);
            return Ok(());
        };
        self.whole_weight(p, version);
        let (start, end) = self.meant(to);
        if let Some(held) = self.held.get_mut(&to.slot) {
            held.content.set(start, end, version);
        }
        Ok(())
    }

    /// A transfer: the same content in another place, or what may be renamed.
    pub(super) fn moved(&mut self, from: &Arg, to: &Arg) -> Result<(), Fault> {
        let (tensor, _) = self.read(from)?;
        let target = self.tensor(to.slot);
        if tensor == target {
            if from.offset != to.offset {
                return self.fault(format!("moves {} to another place", tensor.name(self.plan)));
            }
            let (start, end) = self.meant(from);
            let spans: Vec<_> = self
                .held
                .get(&from.slot)
                .map(|h| h.content.within(start, end).collect())
                .unwrap_or_default();
            if let Some(held) = self.held.get_mut(&to.slot) {
                spans.iter().for_each(|s| held.content.set(s.0, s.1, s.2));
            }
            return Ok(());
        }
        // A copy may also rename: partial sums into the table of all, a complete f32 accumulator
        // into the gradient.
        let fits = match (tensor, target) {
            (Tensor::NormParts(p), Tensor::AllNormParts) => {
                let piece = &self.plan.pieces[p];
                let (start, bytes) = (piece.norm_offset * 8, piece.norm_chunks * 8);
                (from.offset, from.bytes) == (0, bytes) && (to.offset, to.bytes) == (start, bytes)
            }
            (Tensor::Accumulator(p), Tensor::Gradient(q)) if p == q => {
                let whole = self.plan.ranks == 1 && super::sums(self.w) == 1;
                from.offset == to.offset && self.complete.contains(&p) && whole
            }
            _ => false,
        };
        if !fits {
            return self.fault(format!(
                "moves {} into the slot of {}",
                tensor.name(self.plan),
                target.name(self.plan)
            ));
        }
        self.written(to);
        Ok(())
    }

    /// A batch begins: of the one before only weights, state, the clip factor, keys and values, and gradients that wait
    /// for their update with their norm parts have a meaning.
    pub(super) fn begin_batch(&mut self) {
        self.batch.clear();
        self.shares.clear();
        self.handed.clear();
        self.latest.retain(|t, _| {
            matches!(
                t,
                Tensor::Weight(_)
                    | Tensor::Shard(_)
                    | Tensor::State(_)
                    | Tensor::Clip
                    | Tensor::Cache(_)
                    | Tensor::Gradient(_)
                    | Tensor::AllNormParts
            )
        });
    }

    /// Rule 7, of an operation's share in a gradient: the first of a batch overwrites it, every other
    /// one adds, in one order, and none comes when the gradient is complete.
    pub(super) fn adds_up(&mut self, work: Work, a: &Arg, first: bool) -> Result<(), Fault> {
        let tensor = self.tensor(a.slot);
        let Work::Compute {
            unit,
            op,
            micro_batch,
            ..
        } = work
        else {
            return Ok(());
        };
        let (Tensor::Accumulator(p) | Tensor::Gradient(p)) = tensor else {
            return Ok(());
        };
        if self.sent.contains(&p) {
            let name = tensor.name(self.plan);
            return self.fault(format!("adds to {name}, which was sent"));
        }
        if self.folded.contains(&p) {
            let name = tensor.name(self.plan);
            return self.fault(format!("adds to {name}, which is added up"));
        }
        let sum = a.offset / (self.plan.pieces[p].elements * 4);
        if sum != u64::from(micro_batch + self.shift) % super::sums(self.w) {
            let name = tensor.name(self.plan);
            return self.fault(format!("adds to sum {sum} of {name}, of another leaf"));
        }
        if self.complete.contains(&p) {
            let name = tensor.name(self.plan);
            return self.fault(format!("adds to {name}, which is complete"));
        }
        let turn = (
            self.w.units.len() as u32 - unit,
            micro_batch + self.shift,
            op,
        );
        let last = self.shares.insert((p, a.offset), turn);
        if last.is_none() {
            // The norm parts are those of the batch before.
            let piece = &self.plan.pieces[p];
            let (from, bytes) = (piece.norm_offset * 8, piece.norm_chunks * 8);
            if let Some(all) = self.latest.get_mut(&Tensor::AllNormParts) {
                all.clear(from, from + bytes);
            }
        }
        match last {
            None if !first => self.fault(format!(
                "adds to {} of the batch before",
                tensor.name(self.plan)
            )),
            Some(_) if first => self.fault(format!(
                "overwrites {}, which is not complete",
                tensor.name(self.plan)
            )),
            Some(last) if last >= turn => self.fault(format!(
                "adds to {} in another order",
                tensor.name(self.plan)
            )),
            _ => Ok(()),
        }
    }

    /// Rule 7, of the gradient of an output that several units read: they add to it from the last one down, and the one
    /// whose output it is reads it behind them all. (That the last one overwrites it and each other one adds once is
    /// the workload's, and the work's to be complete.)
    pub(super) fn handed_down(&mut self, work: Work, a: &Arg) -> Result<(), Fault> {
        let (Work::Compute { unit, .. }, Tensor::Local(u, i, _)) = (work, self.tensor(a.slot))
        else {
            return Ok(());
        };
        if !self.read_often.contains(&(u, i)) {
            return Ok(());
        }
        let tensor = self.tensor(a.slot);
        let turn = self.w.units.len() as u32 - unit;
        match self.handed.insert(tensor, turn) {
            Some(last) if last > turn => self.fault(format!(
                "adds to {} in another order",
                tensor.name(self.plan)
            )),
            _ => Ok(()),
        }
    }

    /// Rule 7, of the ends of a gradient: it is finished once, then an update takes it, then the next
    /// batch's begins.
    pub(super) fn turns(&mut self, work: Work) -> Result<(), Fault> {
        let gradient = |p| Tensor::Gradient(p).name(self.plan);
        let apart = super::sums(self.w) > 1;
        match work {
            Work::Fold { piece } => {
                let waits = self.complete.contains(&piece) || self.sent.contains(&piece);
                match self.folded.insert(piece) && !waits {
                    true => Ok(()),
                    false => self.fault(format!("adds up {} again", gradient(piece))),
                }
            }
            Work::AllToAll { piece } if apart && !self.folded.remove(&piece) => {
                self.fault(format!("sends {} before it is added up", gradient(piece)))
            }
            Work::Finish { piece }
                if apart && self.plan.ranks == 1 && !self.folded.remove(&piece) =>
            {
                let name = gradient(piece);
                self.fault(format!("finishes {name} before it is added up"))
            }
            Work::AllToAll { piece } => {
                // All that is ever added is in the shares.
                self.latest.remove(&Tensor::Accumulator(piece));
                match self.sent.insert(piece) && !self.complete.contains(&piece) {
                    true => Ok(()),
                    false => self.fault(format!("sends {} again", gradient(piece))),
                }
            }
            Work::Finish { piece } if self.plan.ranks > 1 && !self.sent.remove(&piece) => {
                self.fault(format!("finishes {}, which was not sent", gradient(piece)))
            }
            Work::Finish { piece } if !self.complete.insert(piece) => {
                self.fault(format!("finishes {} again", gradient(piece)))
            }
            Work::Update { piece } if !self.complete.remove(&piece) => self.fault(format!(
                "updates by {}, which is not complete",
                gradient(piece)
            )),
            Work::Finish { piece } => {
                // Rounded in place it is the gradient already.
                if !self.w.sums_in_place() {
                    self.latest.remove(&Tensor::Accumulator(piece));
                }
                self.latest.remove(&Tensor::Shares(piece));
                Ok(())
            }
            Work::Update { piece } => {
                self.latest.remove(&Tensor::Gradient(piece));
                self.latest.remove(&Tensor::Accumulator(piece));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Rule 5.
    pub(super) fn drained(&self) -> Result<(), Fault> {
        if let Some(&p) = self.complete.iter().min() {
            let name = Tensor::Gradient(p).name(self.plan);
            return self.fault(format!("{name} still waits when the run is drained"));
        }
        for (i, s) in self.plan.slots.pairs() {
            if s.persistent
                && matches!(
                    s.tensor,
                    Tensor::Weight(_) | Tensor::Shard(_) | Tensor::State(_)
                )
            {
                if matches!(s.version, Some((Version::Next, _))) {
                    continue;
                }
                let bytes = size(self.plan, self.w, s.tensor);
                let held = self.held.get(&self.place(i));
                let newest = self.latest.get(&s.tensor);
                let fresh = held.zip(newest).is_some_and(|(held, newest)| {
                    held.content.gap(0, bytes).is_none()
                        && held.content.differs(newest, 0, bytes).is_none()
                });
                if !fresh {
                    return self.fault(format!(
                        "{} is stale on the {} when the run is drained",
                        s.tensor.name(self.plan),
                        s.tier
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Spans;

    /// Against one value a byte.
    #[test]
    fn spans_are_what_their_bytes_are() {
        const N: u64 = 24;
        let mut x = 7u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) % n
        };
        for _ in 0..200 {
            let (mut a, mut b) = (Spans::default(), Spans::default());
            let mut bytes = [[0u64; N as usize]; 2];
            for _ in 0..12 {
                let (from, to, value) = (next(N), next(N + 1), next(4));
                let which = next(2) as usize;
                let spans = [&mut a, &mut b];
                for at in from..to {
                    bytes[which][at as usize] = value;
                }
                match value {
                    0 if from < to => spans.into_iter().nth(which).unwrap().clear(from, to),
                    0 => {}
                    v => spans.into_iter().nth(which).unwrap().set(from, to, v),
                }
            }
            for from in 0..N {
                for to in from..=N {
                    let range = || (from..to).map(|i| i as usize);
                    let gap = range().find(|&i| bytes[0][i] == 0).map(|i| i as u64);
                    assert_eq!(a.gap(from, to), gap);
                    assert_eq!(a.any(from, to), range().any(|i| bytes[0][i] != 0));
                    let differs = range().find(|&i| bytes[0][i] != 0 && bytes[0][i] != bytes[1][i]);
                    assert_eq!(a.differs(&b, from, to), differs.map(|i| i as u64));
                }
            }
            assert!(
                a.0.windows(2)
                    .all(|s| s[0].1 < s[1].0 || s[0].1 == s[1].0 && s[0].2 != s[1].2)
            );
        }
    }
}
