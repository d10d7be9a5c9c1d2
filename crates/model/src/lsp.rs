//! Training in subspaces: which matrices are a base, a core and a projector, and what these are.
//!
//! A base is made to a weight where it is used, W = W0 + S·Qᵀ (or W0 + P·Sᵀ where the output side is projected), by the
//! product that every linear layer has; [`Merged`] makes the same of whole models that are written. The files'
//! parameters keep ids of their own: [`Layout`] says which of them each parameter of the workload belongs to.
//!
//! Directions are learned from a sketch, Gᵀ·Ψ where the input side is projected: that is the gradient of the core of
//! another layout, in which the other side of each matrix is projected, by Ψ. So one step of that layout is all that a
//! sketch takes ([`crate::Decoder::sketching`]), and [`learn`] makes projectors of it.

use std::ops::Range;

use lowtide_device::{Dst, Queue, Src};
use lowtide_kernels::matmul;
use lowtide_units::List;
use lowtide_workload::{Dtype, Lsp, Param, ParamId, ParamKind};

use crate::params::{Part, Role, Spec};

pub(crate) mod learn;

/// Which side of a base is projected: the shorter one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Its input features: W0 + S·Qᵀ.
    Input,
    /// Its output features: W0 + P·Sᵀ.
    Output,
}

/// How a base is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Factors {
    pub side: Side,
    /// r: directions that are trained, columns of core and projector.
    pub rank: u64,
    /// Features of the projected side: rows of the projector.
    pub projected: u64,
    /// Features of the other side: rows of the core.
    pub other: u64,
}

impl Factors {
    /// Of a tensor that is trained; `None` where it is trained as it is. For sketching the other side is projected, by as
    /// many columns.
    fn of(spec: &Spec, lsp: Lsp, sketching: bool) -> Option<Self> {
        if !in_blocks(spec) {
            return None;
        }
        let (side, projected, other) = if spec.rows < spec.cols {
            (Side::Output, spec.rows, spec.cols)
        } else {
            (Side::Input, spec.cols, spec.rows)
        };
        let rank = lsp.rank(projected)?;
        let own = Self {
            side,
            rank,
            projected,
            other,
        };
        Some(if sketching { own.turned() } else { own })
    }

    /// The other side of the same matrix, by as many columns.
    pub fn turned(self) -> Self {
        Self {
            side: match self.side {
                Side::Input => Side::Output,
                Side::Output => Side::Input,
            },
            rank: self.rank,
            projected: self.other,
            other: self.projected,
        }
    }
}

/// Whether a tensor is one of the blocks' matrices.
pub(crate) fn in_blocks(spec: &Spec) -> bool {
    use Part::{Down, GateUp, O, Qkv, Up};
    matches!(spec.part, Qkv | O | GateUp | Up | Down) && spec.role != Role::Bias
}

/// A parameter of the workload.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Itself; of a core and a projector with sizes of their own.
    pub spec: Spec,
    pub kind: ParamKind,
    /// The files' parameter that it is, or belongs to.
    pub file: ParamId,
    /// Of a base, its core and its projector.
    pub factors: Option<Factors>,
    pub frozen: bool,
}

impl Entry {
    pub fn param(&self) -> Param {
        Param {
            frozen: self.frozen,
            kind: self.kind,
            // What pulls a core to zero pulls the weight to its base, not to zero: see `strategy.lsp` in docs/numerics.md.
            decay: self.kind != ParamKind::Core && self.spec.param().decay,
            ..self.spec.param()
        }
    }

    /// The core or the projector of a base.
    fn beside(&self, factors: Factors, kind: ParamKind) -> Self {
        let (letter, rows) = match (kind, factors.side) {
            (ParamKind::Core, _) => ("s", factors.other),
            (_, Side::Input) => ("q", factors.projected),
            (_, Side::Output) => ("p", factors.projected),
        };
        // Tensors that are fused in a base's rows are in those of its core.
        let parts = match (kind, factors.side) {
            (ParamKind::Core, Side::Input) => self.spec.parts.clone(),
            _ => vec![(String::new(), rows)],
        };
        Self {
            spec: Spec {
                name: format!("{}_{letter}", self.spec.name),
                rows,
                cols: factors.rank,
                parts,
                ..self.spec.clone()
            },
            kind,
            frozen: kind == ParamKind::Projector,
            ..self.clone()
        }
    }
}

/// The parameters of a workload, in its order.
pub(crate) type Layout = List<ParamId, Entry>;

/// Every parameter of the files, and of those that are trained in subspaces core and projector. In each unit what is
/// only read stands before what is trained, so that a piece of it is all of one kind.
pub(crate) fn layout(
    specs: &List<ParamId, Spec>,
    frozen: &List<ParamId, bool>,
    lsp: Option<Lsp>,
    sketching: bool,
) -> Layout {
    let mut all = Vec::new();
    let (mut bases, mut rest): (Vec<Entry>, Vec<Entry>) = (Vec::new(), Vec::new());
    let mut unit = 0;
    for ((file, spec), &frozen) in specs.pairs().zip(frozen) {
        if spec.unit != unit {
            all.extend(bases.drain(..).chain(rest.drain(..)));
            unit = spec.unit;
        }
        let factors = lsp.filter(|_| !frozen);
        let factors = factors.and_then(|lsp| Factors::of(spec, lsp, sketching));
        let own = Entry {
            spec: spec.clone(),
            kind: ParamKind::Own,
            file,
            factors,
            frozen,
        };
        let Some(factors) = factors else {
            rest.push(own);
            continue;
        };
        let base = Entry {
            kind: ParamKind::Base,
            frozen: true,
            ..own
        };
        rest.push(base.beside(factors, ParamKind::Core));
        let projector = base.beside(factors, ParamKind::Projector);
        bases.extend([base, projector]);
    }
    all.extend(bases.into_iter().chain(rest));
    all.into()
}

/// The parameter of the workload that is this to a parameter of the files.
pub(crate) fn find(layout: &Layout, file: ParamId, kind: ParamKind) -> Option<ParamId> {
    layout.position(|e| e.file == file && e.kind == kind)
}

/// A model's matrices as they are used, from bases, cores and projectors: for those who write a model.
///
/// Every number is W0's and the sum over the core's columns, in f32, of numbers as the device reads them.
#[derive(Debug)]
pub struct Merged<'a> {
    layout: &'a Layout,
    queue: Queue,
    /// The factor that all rows of a matrix are multiplied with, of the last one that was asked for.
    whole: Option<(ParamId, Vec<f32>)>,
}

impl<'a> Merged<'a> {
    pub(crate) fn new(layout: &'a Layout) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            layout,
            queue: Queue::new("merge", threads),
            whole: None,
        }
    }

    /// Fills `out` with the elements `range` of a parameter of the files; `weights` gives those of a parameter of the
    /// workload.
    ///
    /// # Errors
    /// Those of `weights`.
    ///
    /// # Panics
    /// When the model has no such parameter.
    pub fn read<E>(
        &mut self,
        file: ParamId,
        range: Range<u64>,
        out: &mut [f32],
        mut weights: impl FnMut(ParamId, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = |kind| find(self.layout, file, kind);
        if let Some(own) = at(ParamKind::Own) {
            return weights(own, range, out);
        }
        let ids = [ParamKind::Base, ParamKind::Core, ParamKind::Projector].map(at);
        let [base, core, projector] = ids.map(|id| id.expect("a parameter of the model"));
        let entry = &self.layout[base];
        let factors = entry.factors.expect("a base has them");
        let (rank, cols) = (factors.rank, entry.spec.cols);
        let (by_rows, whole) = match factors.side {
            Side::Input => (core, projector),
            Side::Output => (projector, core),
        };
        if self.whole.as_ref().is_none_or(|(id, _)| *id != whole) {
            let mut numbers = vec![0.0; (cols * rank) as usize];
            weights(whole, 0..cols * rank, &mut numbers)?;
            self.whole = Some((whole, numbers));
        }
        let whole = &self.whole.as_ref().expect("just read").1;
        // Whole rows, of which the ends may not have been asked for.
        let rows = range.start / cols..range.end.div_ceil(cols);
        let n = (rows.end - rows.start) as usize;
        let mut band = vec![0.0; n * rank as usize];
        weights(by_rows, rows.start * rank..rows.end * rank, &mut band)?;
        let mut residual = vec![0.0; n * cols as usize];
        weights(base, rows.start * cols..rows.end * cols, &mut residual)?;
        let mut made = vec![0.0f32; residual.len()];
        let operands = matmul::Forward {
            residual: Some(Src::of(&residual)),
            ..matmul::Forward::product(Dst::of(&mut made), Src::of(&band), Src::of(whole))
        };
        let dims = matmul::Dims {
            rows: n,
            inner: rank as usize,
            cols: cols as usize,
        };
        matmul::forward(
            &self.queue,
            operands,
            dims,
            Dtype::F32,
            Dst::of::<u8>(&mut []),
        );
        let skip = (range.start - rows.start * cols) as usize;
        out.copy_from_slice(&made[skip..][..out.len()]);
        Ok(())
    }
}
