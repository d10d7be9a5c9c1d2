//! Training in subspaces: which matrices are a base, a core and a projector, and what these are.
//!
//! A base is made to a weight where it is used, W = W0 + S·Qᵀ (or W0 + P·Sᵀ where the output side is projected), by the
//! product that every linear layer has; [`Merged`] makes the same of whole models that are written. The files'
//! parameters keep ids of their own: [`Layout`] says which of them each parameter of the workload belongs to.
//!
//! Directions are learned from a sketch, Gᵀ·Ψ where the input side is projected: that is the gradient of the core of
//! another layout, in which the other side of each matrix is projected, by Ψ. So one step of that layout is all that a
//! sketch takes ([`crate::Decoder::sketching`]), and [`learn`] makes projectors of it.

use std::ops::{Deref, Range};

use lowtide_device::{Dst, Queue, Src};
use lowtide_kernels::matmul;
use lowtide_units::List;
use lowtide_workload::{Dtype, Lsp, Param, ParamId, ParamKind};

use crate::ModelError;
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
    /// For a tensor that is trained; `None` where it is trained as it is. For sketching, the other side is projected,
    /// by as many columns.
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
        Some(if sketching { own.transposed() } else { own })
    }

    /// The other side of the same matrix, by as many columns.
    pub fn transposed(self) -> Self {
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
            // What pulls a core to zero pulls the weight to its base, not to zero: see `strategy.lsp` in
            // docs/numerics.md.
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
#[derive(Debug)]
pub(crate) struct Layout {
    entries: List<ParamId, Entry>,
    /// What belongs to each of the files' parameters. It is a table because every operation asks for it, and an
    /// untrusted model may have any number of layers.
    of_files: List<ParamId, OfFile>,
}

/// The parameters of a workload that belong to one of the files.
#[derive(Clone, Copy, Debug, Default)]
struct OfFile {
    /// Itself, or its base.
    own: Option<ParamId>,
    core: Option<ParamId>,
    projector: Option<ParamId>,
}

impl Layout {
    fn new(entries: List<ParamId, Entry>, files: usize) -> Self {
        let mut of_files = List::from(vec![OfFile::default(); files]);
        for (id, entry) in entries.pairs() {
            let of: &mut OfFile = &mut of_files[entry.file];
            let place = match entry.kind {
                ParamKind::Own | ParamKind::Base => &mut of.own,
                ParamKind::Core => &mut of.core,
                ParamKind::Projector => &mut of.projector,
            };
            *place = Some(id);
        }
        Self { entries, of_files }
    }

    /// The parameter of the workload that is a parameter of the files, or its base.
    fn own(&self, file: ParamId) -> ParamId {
        self.of_files[file].own.expect("a parameter of the model")
    }

    /// Core and projector of a parameter of the files that is trained in a subspace.
    pub fn beside(&self, file: ParamId) -> Option<(ParamId, ParamId)> {
        let of = &self.of_files[file];
        of.core.zip(of.projector)
    }
}

impl Deref for Layout {
    type Target = List<ParamId, Entry>;

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

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
    Layout::new(all.into(), specs.len())
}

/// Numbers of a matrix that are made at a time, and of a factor that are read at a time.
const BAND: u64 = 1 << 20;

/// A model's matrices as they are used, from bases, cores and projectors: for those who write a model.
///
/// Every number is W0's and the sum over the core's columns, in f32, of numbers as the device reads them. It holds one
/// factor of one matrix in f32 ([`merging_bytes`]), and what bands of about a million numbers take.
#[derive(Debug)]
pub struct Merged<'a> {
    layout: &'a Layout,
    threads: usize,
    /// Its threads; not before there is a matrix to be made.
    queue: Option<Queue>,
    /// The factor that all rows of a matrix are multiplied with, of the last one that was asked for.
    whole: Option<(ParamId, Vec<f32>)>,
}

/// Bytes of the largest factor that [`Merged`] holds for a model of these parameters.
#[must_use]
pub fn merging_bytes(params: &List<ParamId, Param>) -> u64 {
    let factors = params
        .iter()
        .filter(|p| matches!(p.kind, ParamKind::Core | ParamKind::Projector));
    4 * factors.map(|p| p.elements).max().unwrap_or(0)
}

impl<'a> Merged<'a> {
    pub(crate) fn new(layout: &'a Layout, threads: usize) -> Self {
        Self {
            layout,
            threads,
            queue: None,
            whole: None,
        }
    }

    /// Fills `out` with the elements `range` of a parameter of the files; `weights` gives those of a parameter of the
    /// workload.
    ///
    /// # Errors
    /// Those of `weights`; [`ModelError::Threads`] when the system starts none to compute with.
    ///
    /// # Panics
    /// When the model has no such parameter.
    pub fn read<E: From<ModelError>>(
        &mut self,
        file: ParamId,
        range: Range<u64>,
        out: &mut [f32],
        mut weights: impl FnMut(ParamId, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let own = self.layout.own(file);
        let entry = &self.layout[own];
        let (Some(factors), Some((core, projector))) = (entry.factors, self.layout.beside(file))
        else {
            return weights(own, range, out);
        };
        let cols = entry.spec.cols;
        let (by_rows, whole) = match factors.side {
            Side::Input => (core, projector),
            Side::Output => (projector, core),
        };
        self.hold(whole, cols * factors.rank, &mut weights)?;
        let mut from = range.start;
        let mut rest = out;
        while from < range.end {
            // Whole rows, of which the ends may not have been asked for.
            let first = from / cols;
            let rows = first..range.end.div_ceil(cols).min(first + 1 + BAND / cols);
            let end = range.end.min(rows.end * cols);
            let (now, later) = rest.split_at_mut((end - from) as usize);
            let skip = (from - first * cols) as usize;
            self.rows((own, by_rows), rows, (skip, now), &mut weights)?;
            (from, rest) = (end, later);
        }
        Ok(())
    }

    /// Reads a factor of so many numbers, unless it is the one that is held.
    fn hold<E>(
        &mut self,
        factor: ParamId,
        numbers: u64,
        weights: &mut impl FnMut(ParamId, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.whole.as_ref().is_some_and(|(id, _)| *id == factor) {
            return Ok(());
        }
        // Two at a time would be more than is counted.
        self.whole = None;
        let mut all = vec![0.0; numbers as usize];
        for (from, part) in (0..)
            .step_by(BAND as usize)
            .zip(all.chunks_mut(BAND as usize))
        {
            weights(factor, from..from + part.len() as u64, part)?;
        }
        self.whole = Some((factor, all));
        Ok(())
    }

    /// Makes `rows` of a base, and fills `out` with their numbers from `skip` on.
    fn rows<E: From<ModelError>>(
        &mut self,
        (base, by_rows): (ParamId, ParamId),
        rows: Range<u64>,
        (skip, out): (usize, &mut [f32]),
        weights: &mut impl FnMut(ParamId, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let whole = &self.whole.as_ref().expect("just read").1;
        let cols = self.layout[base].spec.cols;
        let rank = self.layout[by_rows].spec.cols;
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
        let queue = match self.queue.take() {
            Some(queue) => queue,
            None => Queue::start("merge", self.threads).map_err(|e| ModelError::Threads {
                threads: self.threads,
                why: e.to_string(),
            })?,
        };
        let no_scratch = Dst::of::<u8>(&mut []);
        matmul::forward(&queue, operands, dims, Dtype::F32, no_scratch);
        self.queue = Some(queue);
        out.copy_from_slice(&made[skip..][..out.len()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lowtide_device::Make;
    use lowtide_kernels::attention::Engine;
    use lowtide_workload::{Batch, Family, Layers, ModelShape, Objective, Optimizer, Projector};

    use super::*;
    use crate::{Decoder, Options};

    /// A block whose factors are larger than a band, on both sides.
    fn wide() -> Decoder {
        let shape = ModelShape {
            name: "wide".to_owned(),
            family: Family::Gpt2,
            vocab: 16,
            hidden: 512,
            intermediate: 3000,
            layers: 1,
            heads: 8,
            kv_heads: 8,
            head_dim: 64,
            max_positions: 16,
            norm_eps: 1e-5,
            tied: true,
            qkv_bias: true,
            out_bias: true,
            mlp_bias: true,
            qk_norm: false,
            rope: None,
            window: None,
            unrotated: Layers::default(),
            scales: lowtide_workload::Scales::default(),
            parallel: false,
            gelu_by_tanh: false,
            local_rope: None,
            experts: None,
            encoder: None,
            objective: Objective::default(),
            stacks: None,
        };
        let options = Options {
            precision: Dtype::F32,
            gradient: Dtype::F32,
            optimizer: Optimizer::default(),
            frozen: Vec::new(),
            lsp: Some(Lsp {
                compression: 1,
                projector: Projector::Random,
            }),
            batch: Batch {
                target: 0,
                micro_batch: 1,
                seq: 16,
                accumulate: 1,
            },
            logits_chunk: 0,
            rows_chunk: 0,
            make: Make::Cpu,
            attention: Engine::Own,
        };
        Decoder::new(&shape, &options).expect("a shape")
    }

    /// A number of a parameter, without a pattern.
    fn number(p: ParamId, at: u64) -> f32 {
        let x = (at + (u64::from(p.0) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (x >> 40) as f32 / (1 << 24) as f32 - 0.5
    }

    /// Threads are there when a matrix is made and not before, as many as were asked for; a whole matrix is made of
    /// parts of a bounded size; and its numbers are what they must.
    #[test]
    fn matrices_are_made_in_bands() {
        let decoder = wide();
        let layout = decoder.layout();
        let mut merged = Merged::new(layout, 2);
        let mut largest = 0;
        for file in layout.of_files.ids() {
            let own = layout.own(file);
            let (rows, cols) = (layout[own].spec.rows, layout[own].spec.cols);
            let mut out = vec![f32::NAN; (rows * cols) as usize];
            let made = layout.beside(file);
            assert_eq!(merged.queue.is_some(), largest > 0, "{own:?}");
            let weights = |p, range: Range<u64>, out: &mut [f32]| {
                assert_eq!(range.end - range.start, out.len() as u64);
                if made.is_some() {
                    assert!(range.end - range.start <= BAND + cols, "{p:?} {range:?}");
                    largest = largest.max(range.end - range.start);
                }
                for (x, at) in out.iter_mut().zip(range) {
                    *x = number(p, at);
                }
                Ok::<(), ModelError>(())
            };
            merged
                .read(file, 0..rows * cols, &mut out, weights)
                .expect("numbers");
            for at in (0..rows * cols).step_by(9973) {
                let mut want = f64::from(number(own, at));
                if let (Some((core, projector)), Some(f)) = (made, layout[own].factors) {
                    let (row, col) = (at / cols, at % cols);
                    let (of_core, of_projector) = match f.side {
                        Side::Input => (row, col),
                        Side::Output => (col, row),
                    };
                    let product = |j: u64| {
                        f64::from(number(core, of_core * f.rank + j))
                            * f64::from(number(projector, of_projector * f.rank + j))
                    };
                    want += (0..f.rank).map(product).sum::<f64>();
                }
                let got = f64::from(out[at as usize]);
                assert!((got - want).abs() < 1e-4, "{own:?} {at}: {got} {want}");
            }
        }
        assert!(largest > BAND / 2, "{largest}");
        assert_eq!(merged.queue.map(|q| q.threads()), Some(2));
        let params = &decoder.workload().params;
        assert_eq!(merging_bytes(params), 4 * 512 * 3000);
    }
}
