//! Blocks whose rows are computed in chunks (`train.rows_chunk`), so that wide tensors exist for one chunk at a time.
//!
//! Norms, products, rotations and activations compute each row by itself. A run of such operations becomes one
//! operation that makes all of its steps on a chunk of rows, then on the next. Tensors that only this run uses are
//! scratch of one chunk. In backward they are computed again, chunk by chunk, so none of them is ever saved. What is
//! left between such runs is attention, which needs all rows of a sequence.
//!
//! A chunk's share of a parameter's gradient is added to that of the chunks before it. So the sum has another order
//! than over all rows at once, and other bits: how many rows a chunk has belongs to what decides a run's numbers. Where
//! tensors live does not change it.

use std::collections::BTreeSet;
use std::ops::Range;

use lowtide_units::{Bytes, Flops, Id, List, align_up};
use lowtide_workload::{Access, LocalId, Op, OpId, Operand, What};

use super::kind::{Kind, Sizes};
use super::{Builder, Phase};

/// Alignment of scratch tensors, as kernels and libraries want it.
const ALIGN: u64 = 256;

/// How an operation is computed.
#[derive(Clone, Debug)]
pub(crate) enum Computed {
    /// All rows at once.
    Whole(Kind),
    /// Several, on one chunk of rows after the other.
    InChunks(Chunks),
}

impl Computed {
    /// The kind of one that is computed whole.
    pub fn whole(&self) -> Option<Kind> {
        match self {
            Self::Whole(kind) => Some(*kind),
            Self::InChunks(_) => None,
        }
    }
}

/// Operations that run on one chunk of rows after the other.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    /// Rows of a chunk; the last may have fewer.
    pub rows: usize,
    /// In order, on each chunk.
    pub kinds: Vec<Kind>,
    /// Tensors that exist for one chunk, each with the bytes of a row.
    pub scratch: Vec<(LocalId, usize)>,
}

impl Chunks {
    /// First row and number of rows of each chunk, of so many rows in all.
    pub fn each(&self, all: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = self.rows;
        let first = (0..all).step_by(rows);
        first.map(move |first| (first, rows.min(all - first)))
    }

    /// Bytes of a scratch tensor of so many bytes a row.
    pub fn bytes(&self, row: usize) -> usize {
        align_up((row * self.rows) as u64, ALIGN) as usize
    }
}

/// Whether an operation computes each row from the same row of what it reads; gradients of parameters add up over rows.
fn row_by_row(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::RmsNorm(_)
            | Kind::RmsNormBackward(_)
            | Kind::LayerNorm(_)
            | Kind::LayerNormBackward(_)
            | Kind::Linear(..)
            | Kind::LinearWeight(..)
            | Kind::LinearInput(..)
            | Kind::LinearBias(..)
            | Kind::Add(..)
            | Kind::QkNorm(_)
            | Kind::QkNormBackward(_)
            | Kind::Rope(..)
            | Kind::RopeBackward(..)
            | Kind::Swiglu(..)
            | Kind::SwigluBackward(..)
            | Kind::Gelu(..)
            | Kind::GeluBackward(..)
    )
}

/// Local tensors that an operation uses so.
fn locals(kind: Kind, access: Access) -> impl Iterator<Item = LocalId> {
    let of = kind.operands().into_iter();
    of.filter(move |o| o.access == access)
        .filter_map(|o| match o.what {
            What::Local(i) => Some(i),
            _ => None,
        })
}

/// The operations of one phase: runs that compute row by row, and those between them.
struct Listed {
    kinds: Vec<Kind>,
    names: Vec<String>,
    runs: Vec<Range<usize>>,
}

impl Listed {
    fn of(ops: &List<OpId, Op>, kinds: &List<OpId, Computed>) -> Self {
        let kinds: Vec<Kind> = kinds.iter().filter_map(Computed::whole).collect();
        let (mut runs, mut first): (Vec<Range<usize>>, usize) = (Vec::new(), 0);
        for same in kinds.chunk_by(|a, b| row_by_row(*a) == row_by_row(*b)) {
            if row_by_row(same[0]) {
                runs.push(first..first + same.len());
            }
            first += same.len();
        }
        let names = ops.iter().map(|op| op.name.clone()).collect();
        Self { kinds, names, runs }
    }

    /// The run that an operation is in.
    fn run(&self, at: usize) -> Option<&Range<usize>> {
        self.runs.iter().find(|run| run.contains(&at))
    }

    /// The operation that writes a tensor.
    fn writer(&self, tensor: LocalId) -> Option<usize> {
        let writes = |kind: &Kind| locals(*kind, Access::Write).any(|i| i == tensor);
        self.kinds.iter().position(writes)
    }

    /// Tensors that a run writes and no operation outside of it reads.
    fn only_in(&self, run: &Range<usize>) -> BTreeSet<LocalId> {
        let outside = (0..self.kinds.len()).filter(|at| !run.contains(at));
        let read: BTreeSet<LocalId> = outside
            .flat_map(|at| locals(self.kinds[at], Access::Read))
            .collect();
        let own = self.kinds[run.clone()].iter();
        let written = own.flat_map(|kind| locals(*kind, Access::Write));
        written.filter(|i| !read.contains(i)).collect()
    }
}

impl Builder<'_> {
    /// Computes the unit's rows so many at a time.
    pub(super) fn in_chunks(&mut self, rows: usize) {
        let forward = Listed::of(&self.unit.forward, &self.kinds.forward);
        let backward = Listed::of(&self.unit.backward, &self.kinds.backward);
        // What others than backward's runs read of forward is a tensor of all rows.
        let between = (0..backward.kinds.len()).filter(|&at| backward.run(at).is_none());
        let mut shared: BTreeSet<LocalId> = between
            .flat_map(|at| locals(backward.kinds[at], Access::Read))
            .collect();
        shared.extend(self.unit.output);
        let inputs = self.unit.inputs.iter().map(|input| input.gradient);
        let given: BTreeSet<LocalId> = inputs.collect();

        let mut again: BTreeSet<LocalId> = BTreeSet::new();
        self.replace(
            Phase::Forward,
            &forward,
            |run| {
                let inner: BTreeSet<LocalId> = &forward.only_in(run) - &shared;
                again.extend(&inner);
                (Vec::new(), inner)
            },
            rows,
        );
        self.replace(
            Phase::Backward,
            &backward,
            |run| {
                let reads = backward.kinds[run.clone()].iter();
                let reads = reads.flat_map(|kind| locals(*kind, Access::Read));
                let reruns = reruns(&forward, &again, reads.collect());
                let made = reruns.iter().flat_map(|kind| locals(*kind, Access::Write));
                let inner = &backward.only_in(run) - &given;
                let inner = inner.into_iter().chain(made).collect();
                (reruns, inner)
            },
            rows,
        );
    }

    /// Replaces each run of a phase by one operation. `of` a run says what runs before it on each chunk, and which
    /// tensors exist for one chunk.
    fn replace(
        &mut self,
        phase: Phase,
        listed: &Listed,
        mut of: impl FnMut(&Range<usize>) -> (Vec<Kind>, BTreeSet<LocalId>),
        rows: usize,
    ) {
        let (mut ops, mut kinds) = (List::default(), List::default());
        let mut at = 0;
        while at < listed.kinds.len() {
            let Some(run) = listed.run(at) else {
                let id = OpId::new(at);
                let (old, computed) = match phase {
                    Phase::Backward => (&self.unit.backward[id], &self.kinds.backward[id]),
                    _ => (&self.unit.forward[id], &self.kinds.forward[id]),
                };
                ops.push(old.clone());
                kinds.push(computed.clone());
                at += 1;
                continue;
            };
            let (before, inner) = of(run);
            let all = before.iter().chain(&listed.kinds[run.clone()]);
            let (op, chunks) = self.chunks(
                &listed.names[run.clone()],
                all.copied().collect(),
                &inner,
                rows,
            );
            ops.push(op);
            kinds.push(Computed::InChunks(chunks));
            at = run.end;
        }
        match phase {
            Phase::Backward => (self.unit.backward, self.kinds.backward) = (ops, kinds),
            _ => (self.unit.forward, self.kinds.forward) = (ops, kinds),
        }
    }

    /// One operation of several.
    fn chunks(
        &self,
        names: &[String],
        kinds: Vec<Kind>,
        inner: &BTreeSet<LocalId>,
        rows: usize,
    ) -> (Op, Chunks) {
        let all = &self.model.sizes;
        let row = |i: LocalId| self.unit.tensors[i].bytes.usize() / all.rows;
        let chunks = Chunks {
            rows,
            scratch: inner.iter().map(|&i| (i, row(i))).collect(),
            kinds,
        };
        let mut operands: Vec<Operand> = Vec::new();
        let (mut touched, mut flops) = (Bytes::ZERO, Flops(0.0));
        let times = all.rows.div_ceil(rows) as u64;
        for kind in &chunks.kinds {
            let own = kind.operands();
            // What has no rows passes once a chunk.
            let passed = own.iter().map(|o| match o.what {
                What::Weight(_) | What::Gradient(_) => Bytes(self.bytes(o).0 * times),
                _ => self.bytes(o),
            });
            touched += kind.touched(all, passed.sum());
            flops = Flops(flops.0 + kind.flops(all).0);
            let outer = |o: &Operand| !matches!(o.what, What::Local(i) if inner.contains(&i));
            for o in own.into_iter().filter(outer) {
                if operands.iter().all(|other| other.what != o.what) {
                    operands.push(o);
                }
            }
        }
        let part = all.of_rows(rows);
        let key = |kind: &Kind| kind.of_rows(rows).key(&part);
        let keys: Vec<String> = chunks.kinds.iter().map(key).collect();
        let mut distinct: Vec<&str> = Vec::new();
        for name in names
            .iter()
            .map(|name| name.split('.').next().unwrap_or(name))
        {
            if !distinct.contains(&name) {
                distinct.push(name);
            }
        }
        let op = Op {
            name: distinct.join("+"),
            key: format!("rows{} in chunks: {}", all.rows, keys.join(", ")),
            operands,
            workspace: Bytes(chunks.workspace(all)),
            flops,
            touched,
        };
        (op, chunks)
    }
}

impl Chunks {
    /// Bytes of all scratch tensors, and behind them what the kernels want.
    fn workspace(&self, all: &Sizes) -> u64 {
        let tensors: usize = self.scratch.iter().map(|&(_, row)| self.bytes(row)).sum();
        let last = all.rows - (all.rows - 1) / self.rows * self.rows;
        let of_kernels = [self.rows, last].into_iter().flat_map(|rows| {
            let part = all.of_rows(rows);
            let each = self.kinds.iter();
            each.map(move |kind| kind.of_rows(rows).workspace(&part).0)
        });
        tensors as u64 + of_kernels.max().unwrap_or(0)
    }
}

/// Forward's operations that make the tensors of `wanted` again that exist for one chunk, in order.
fn reruns(forward: &Listed, once: &BTreeSet<LocalId>, mut wanted: Vec<LocalId>) -> Vec<Kind> {
    let mut ops = BTreeSet::new();
    while let Some(tensor) = wanted.pop() {
        let Some(at) = forward.writer(tensor).filter(|_| once.contains(&tensor)) else {
            continue;
        };
        if ops.insert(at) {
            wanted.extend(locals(forward.kinds[at], Access::Read));
        }
    }
    ops.into_iter().map(|at| forward.kinds[at]).collect()
}
