//! A decoder as a [`Workload`]: its units, parameters, local tensors and operations, in numbers.
//!
//! Every operation is made by one call of [`Builder::op`] from a [`Kind`], which has its operands by name and
//! also decides how it is run: the list that the planner reads and what [`crate::Decoder`] hands to the kernel
//! come from the same struct ([`lowtide_kernels::operands`]) and cannot drift apart. Nothing large is built: a 96-layer
//! model takes about three thousand operations.
//!
//! One file because what every unit is built with is read beside the order of the units.

mod block;
mod branch;
pub(crate) mod check;
pub(crate) mod chunks;
mod decoding;
mod ends;
mod experts;
pub(crate) mod kind;
mod stacks;

use lowtide_device::Make;
use lowtide_kernels::attention::Engine;
use lowtide_kernels::operands::{Add, Read, Write};
use lowtide_units::{Bytes, Flops, Id, List, ids};
use lowtide_workload::{
    Access, Batch, Dtype, Input, Local, LocalId, Lsp, ModelShape, Op, OpId, Operand, Optimizer,
    Param, ParamId, ParamKind, Unit, UnitKind, What, Workload,
};

use crate::ModelError;
use crate::families;
use crate::lsp::{Factors, Layout, layout};
use crate::params::{Part, Role, Spec, specs};
use chunks::Computed;
pub use decoding::Decoding;
pub(crate) use decoding::build_decoding;
use kind::{Kind, Sizes};

/// Logits of one chunk take at most about this many bytes, when the chunk is chosen here: on the
/// CPU little, on a GPU enough rows to make the products worth its while.
const fn chunk_bytes(make: Make) -> u64 {
    match make {
        Make::Cpu => 64 << 20,
        Make::Cuda => 1 << 30,
    }
}
/// Fewest rows of such a chunk: below, the matrix is read too often.
const CHUNK_ROWS: u64 = 64;

/// What beside the shape decides the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Storage of weights and saved tensors.
    pub precision: Dtype,
    /// What a complete gradient is rounded to.
    pub gradient: Dtype,
    /// What updates the parameters, and how it stores its state.
    pub optimizer: Optimizer,
    /// Parameters that are not trained, by index in [`crate::file_params`], as [`crate::frozen`] finds them.
    pub frozen: Vec<ParamId>,
    /// How the blocks' matrices are trained in subspaces; `None`: as they are.
    pub lsp: Option<Lsp>,
    /// How the batch is cut.
    pub batch: Batch,
    /// Rows of logits that exist at a time; 0 chooses.
    pub logits_chunk: u32,
    /// Rows of a micro-batch that a block computes at a time, but for attention; 0: all.
    pub rows_chunk: u32,
    /// For which make of device: scratch differs.
    pub make: Make,
    /// Who computes attention on a CUDA device.
    pub attention: Engine,
}

impl Options {
    /// Rows of logits that exist at a time, chosen where [`Options::logits_chunk`] is 0: a
    /// multiple of 64 that takes about 64 MiB at most (1 GiB on a GPU), at least 64, never more than B·T.
    #[must_use]
    pub fn chunk_rows(&self, shape: &ModelShape) -> u64 {
        let rows = match self.batch.target {
            0 => self.batch.rows(),
            target => u64::from(self.batch.micro_batch) * u64::from(target),
        };
        let chosen = match self.logits_chunk {
            0 => {
                let fit = chunk_bytes(self.make)
                    / (u64::from(shape.vocab).max(1) * self.precision.size());
                (fit / CHUNK_ROWS * CHUNK_ROWS).max(CHUNK_ROWS)
            }
            n => u64::from(n),
        };
        chosen.min(rows)
    }

    /// Rows of a micro-batch that a block computes at a time, where these are not all.
    #[must_use]
    pub fn rows_at_once(&self) -> Option<u32> {
        let some = (1..self.batch.rows()).contains(&u64::from(self.rows_chunk));
        some.then_some(self.rows_chunk)
    }
}

/// Describes one training step of `shape` at `options`.
///
/// # Errors
/// [`ModelError::Dimensions`] when sizes do not go together (heads, batch, sequence length);
/// [`ModelError::Partly`] and [`ModelError::NothingTrained`] as [`crate::frozen`]; [`ModelError::NothingProjected`]
/// when no matrix can be trained in a subspace.
pub fn describe(shape: &ModelShape, options: &Options) -> Result<Workload, ModelError> {
    Ok(build(shape, options, false)?.workload)
}

/// The operations of one unit, one list a phase, as [`Unit`] has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnitKinds {
    pub forward: List<OpId, Computed>,
    pub backward: List<OpId, Computed>,
    pub evaluate: List<OpId, Computed>,
    pub infer: List<OpId, Computed>,
    /// Where they are not those of the head.
    pub sizes: Option<Sizes>,
}

/// A workload and how each of its operations is run.
#[derive(Debug)]
pub(crate) struct Built {
    pub workload: Workload,
    pub kinds: Vec<UnitKinds>,
    pub sizes: Sizes,
    pub layout: Layout,
}

/// `sketching`: of what is trained in subspaces the other side is projected ([`crate::lsp`]).
pub(crate) fn build(
    shape: &ModelShape,
    options: &Options,
    sketching: bool,
) -> Result<Built, ModelError> {
    let specs = checked(shape, options)?;
    let mut frozen = List::from(vec![false; specs.len()]);
    for &p in &options.frozen {
        frozen[p] = true;
    }
    check::frozen(&specs, &frozen)?;
    let layout = layout(&specs, &frozen, options.lsp, sketching);
    check::projected(&layout, options.lsp)?;
    laid_out(shape, options, layout, Sizes::new(shape, options))
}

/// The parameters of the files, when shape and batch go together.
fn checked(shape: &ModelShape, options: &Options) -> Result<List<ParamId, Spec>, ModelError> {
    check::shape(shape)?;
    check::options(shape, options)?;
    Ok(specs(shape))
}

/// The workload over laid out parameters.
fn laid_out(
    shape: &ModelShape,
    options: &Options,
    layout: Layout,
    sizes: Sizes,
) -> Result<Built, ModelError> {
    let params: List<ParamId, Param> = layout.iter().map(|e| e.param()).collect();
    let model = Model {
        shape,
        sizes,
        layout: &layout,
        params: &params,
        lowest: lowest(shape, &params),
    };

    let (units, model_flops, sizes) = match shape.stacks {
        None => {
            let mut units = vec![ends::embedding(&model)];
            let family = families::of(shape.family);
            let layers = 0..shape.layers;
            units.extend(layers.map(|l| block::block(&model, family.layer(shape, l), l)));
            units.push(ends::head(&model));
            (units, model_flops(&model, options.batch), model.sizes)
        }
        Some(stacks) => {
            let both = Sizes::of_stacks(shape, stacks, options);
            let [source, target] = both.map(|sizes| Model { sizes, ..model });
            let both = [&source, &target];
            let flops = stacks::model_flops(both) * f64::from(options.batch.accumulate);
            (stacks::units(both), flops, target.sizes)
        }
    };
    let (units, kinds) = units.into_iter().unzip();
    let workload = Workload {
        model: shape.name.clone(),
        batch: options.batch,
        precision: options.precision,
        gradient: options.gradient,
        optimizer: options.optimizer,
        ranks: 1,
        leaves: 1,
        units,
        params,
        model_flops,
    };
    check::workload(&workload)?;
    Ok(Built {
        workload,
        kinds,
        sizes,
        layout,
    })
}

/// The lowest unit with a parameter that is trained: backward ends there.
fn lowest(shape: &ModelShape, params: &List<ParamId, Param>) -> u32 {
    let trained = params.iter().filter(|p| !p.frozen);
    trained.map(|p| p.unit).min().unwrap_or(shape.layers + 1)
}

/// Six operations a number and token: two in forward, two for the input's gradient, two for the weight's. Backward
/// has neither below the lowest parameter that is trained. A tied head's product counts where its table is.
fn model_flops(model: &Model<'_>, batch: Batch) -> Flops {
    let shape = model.shape;
    // Of experts those that a token takes.
    let chosen = shape
        .experts
        .map_or(1.0, |e| f64::from(e.chosen) / f64::from(e.count));
    let share = |part: Part| match part {
        Part::GateUp | Part::Down => chosen,
        _ => 1.0,
    };
    let numbers = |of: &dyn Fn(&Param) -> bool| -> f64 {
        let all = model.params.iter().zip(model.layout.iter());
        let params = all.filter(|(p, _)| of(p));
        params
            .map(|(p, entry)| share(entry.spec.part) * p.elements as f64)
            .sum()
    };
    let embedding_used_above = |p: &Param| shape.tied && p.unit == 0;
    let own = |p: &Param| p.kind.of_the_model();
    let forward = numbers(&own);
    let input = numbers(&|p| own(p) && (p.unit >= model.lowest || embedding_used_above(p)));
    let weight = numbers(&|p| !p.frozen || p.kind == ParamKind::Projector);
    let first = model.lowest.saturating_sub(1).min(shape.layers); // with a backward
    let each = |l| {
        let both = if l >= first { 6.0 } else { 2.0 };
        both * (f64::from(shape.hidden) * shape.mask(l).keys(batch.seq))
    };
    let attention: f64 = (0..shape.layers).map(each).sum();
    Flops((2.0 * (forward + input + weight) + attention) * batch.tokens() as f64)
}

/// What all units are built from.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    shape: &'a ModelShape,
    sizes: Sizes,
    layout: &'a Layout,
    params: &'a List<ParamId, Param>,
    /// The lowest unit that has a backward.
    lowest: u32,
}

impl Model<'_> {
    /// Bytes of a (B·T, `width`) tensor in storage precision.
    fn rows(&self, width: usize) -> Bytes {
        Bytes((self.sizes.rows * width) as u64 * self.sizes.dtype.size())
    }

    /// Bytes of a (B·T·k, `width`) tensor in storage precision: a row for each choice of an expert.
    fn sorted(&self, width: usize) -> Bytes {
        self.numbers(self.sizes.routes().sorted() * width)
    }

    /// Bytes of so many numbers in storage precision.
    fn numbers(&self, n: usize) -> Bytes {
        Bytes(n as u64 * self.sizes.dtype.size())
    }

    /// Bytes of a (B·T, `width`) tensor in f32.
    fn rows_f32(&self, width: usize) -> Bytes {
        Bytes((self.sizes.rows * width) as u64 * 4)
    }
}

/// What a base has beside it.
#[derive(Clone, Copy, Debug)]
struct Factored {
    core: ParamId,
    projector: ParamId,
    factors: Factors,
}

/// One unit in the making.
pub(super) struct Builder<'a> {
    model: &'a Model<'a>,
    unit: Unit,
    kinds: UnitKinds,
}

/// Which list an operation is appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The unit's output from its input; also what recomputing runs again.
    Forward,
    /// Gradients; in the head, forward and backward.
    Backward,
    /// The head's loss without gradients.
    Evaluate,
    /// The head's logits at the marked positions.
    Infer,
}

impl Phase {
    /// The phase's operations in `unit`.
    #[must_use]
    pub fn ops(self, unit: &Unit) -> &List<OpId, Op> {
        match self {
            Self::Forward => &unit.forward,
            Self::Backward => &unit.backward,
            Self::Evaluate => &unit.evaluate,
            Self::Infer => &unit.infer,
        }
    }

    pub(crate) fn kinds(self, unit: &UnitKinds) -> &List<OpId, Computed> {
        match self {
            Self::Forward => &unit.forward,
            Self::Backward => &unit.backward,
            Self::Evaluate => &unit.evaluate,
            Self::Infer => &unit.infer,
        }
    }
}

impl<'a> Builder<'a> {
    fn new(model: &'a Model<'a>, name: String, kind: UnitKind, unit_idx: u32) -> Self {
        let layout = model.layout;
        let first = ParamId::new(layout.partition_point(|e| e.spec.unit < unit_idx));
        let end = ParamId::new(layout.partition_point(|e| e.spec.unit <= unit_idx));
        let unit = Unit {
            name,
            kind,
            params: first..end,
            tensors: List::default(),
            inputs: Vec::new(),
            output: None,
            d_output: None,
            logits: None,
            cache: Bytes::ZERO,
            forward: List::default(),
            backward: List::default(),
            evaluate: List::default(),
            infer: List::default(),
        };
        Self {
            model,
            unit,
            kinds: UnitKinds::default(),
        }
    }

    /// Index of this unit's parameter `part`, or of the bias to it; `None` when the shape has none.
    fn find(&self, part: Part, bias: bool) -> Option<ParamId> {
        ids(&self.unit.params).find(|&p| {
            let entry = &self.model.layout[p];
            let is_bias = entry.spec.role == Role::Bias;
            entry.kind.of_the_model() && entry.spec.part == part && is_bias == bias
        })
    }

    /// How this unit's matrix `part` is trained in a subspace: core, projector and their sizes.
    fn factored(&self, part: Part) -> Option<Factored> {
        let entry = &self.model.layout[self.param(part)];
        let (core, projector) = self.model.layout.beside(entry.file)?;
        Some(Factored {
            core,
            projector,
            factors: entry.factors?,
        })
    }

    /// Index of this unit's parameter `part`, which every shape of the family has.
    fn param(&self, part: Part) -> ParamId {
        self.find(part, false)
            .unwrap_or_else(|| panic!("{} has no parameter {part:?}", self.unit.name))
    }

    /// Index of the bias to this unit's parameter `part`, if the shape has it.
    fn bias(&self, part: Part) -> Option<ParamId> {
        self.find(part, true)
    }

    /// Adds to a parameter's gradient, unless it is frozen.
    fn add(&self, param: ParamId) -> Option<Add> {
        (!self.model.params[param].frozen).then_some(Add(param))
    }

    /// Takes away the operations of backward of which nothing comes: all where nothing below is trained, and those
    /// that lead only to the gradient of an input that nobody wants.
    fn prune(&mut self, unit_idx: u32) {
        let lowest = self.model.lowest;
        let mut wanted: Vec<LocalId> = Vec::new();
        if unit_idx > lowest {
            wanted.extend(self.unit.inputs.iter().map(|input| input.gradient));
        }
        let mut keep = List::from(vec![false; self.unit.backward.len()]);
        for (i, op) in self.unit.backward.pairs().rev() {
            let operand = |access: Access| {
                let of = op.operands.iter().filter(move |o| o.access == access);
                of.map(|o| o.what)
            };
            let made = operand(Access::Write).any(|what| match what {
                What::Local(local) => wanted.contains(&local),
                what => what == What::Loss,
            });
            keep[i] = made || operand(Access::Accumulate).next().is_some();
            if keep[i] {
                wanted.extend(operand(Access::Read).filter_map(|what| match what {
                    What::Local(local) => Some(local),
                    _ => None,
                }));
            }
        }
        kept(&mut self.unit.backward, &keep);
        kept(&mut self.kinds.backward, &keep);
    }

    /// A new local tensor.
    fn local(&mut self, name: &str, bytes: Bytes) -> LocalId {
        self.unit.tensors.push(Local {
            name: name.to_owned(),
            bytes,
        })
    }

    /// Reads the output of another unit as the local tensor `tensor`, whose gradient is `gradient`.
    fn reads(&mut self, unit: u32, tensor: LocalId, gradient: LocalId) {
        self.unit.inputs.push(Input {
            unit,
            tensor,
            gradient,
        });
    }

    /// Appends an operation.
    fn op(&mut self, phase: Phase, name: &str, kind: Kind) {
        let sizes = &self.model.sizes;
        let operands = kind.operands();
        let passed = operands.iter().map(|o| self.bytes(o)).sum();
        let op = Op {
            name: name.to_owned(),
            key: kind.key(sizes),
            operands,
            workspace: kind.workspace(sizes),
            flops: kind.flops(sizes),
            touched: kind.touched(sizes, passed),
        };
        let (ops, kinds) = match phase {
            Phase::Forward => (&mut self.unit.forward, &mut self.kinds.forward),
            Phase::Backward => (&mut self.unit.backward, &mut self.kinds.backward),
            Phase::Evaluate => (&mut self.unit.evaluate, &mut self.kinds.evaluate),
            Phase::Infer => (&mut self.unit.infer, &mut self.kinds.infer),
        };
        ops.push(op);
        kinds.push(Computed::Whole(kind));
    }

    /// Bytes that pass when an operand is passed over once.
    fn bytes(&self, operand: &Operand) -> Bytes {
        let elements = |i: ParamId| self.model.params[i].elements;
        match operand.what {
            What::Local(i) => self.unit.tensors[i].bytes,
            What::Weight(i) => Bytes(elements(i) * self.model.sizes.dtype.size()),
            What::Gradient(i) => Bytes(elements(i) * 8),
            What::Cache => self.unit.cache,
            // One of the four planes.
            What::Inputs => Bytes(4 * self.model.sizes.rows as u64),
            What::Loss => Bytes(16),
        }
    }

    /// The unit, whose index this is, with a backward as far as it is wanted.
    fn done(mut self, unit_idx: u32) -> (Unit, UnitKinds) {
        self.kinds.sizes = self.model.sizes.stack.map(|_| self.model.sizes);
        self.prune(unit_idx);
        if let (UnitKind::Block, Some(rows)) = (self.unit.kind, self.model.sizes.at_once) {
            self.in_chunks(rows);
        }
        (self.unit, self.kinds)
    }
}

/// Those of a list that are marked; they get new ids.
fn kept<T>(list: &mut List<OpId, T>, keep: &List<OpId, bool>) {
    let all = std::mem::take(list).into_iter().zip(keep);
    *list = all
        .filter(|(_, keep)| **keep)
        .map(|(item, _)| item)
        .collect();
}

/// Reads local tensor `i`.
fn read(i: LocalId) -> Read {
    Read(What::Local(i))
}

/// Writes local tensor `i`.
fn write(i: LocalId) -> Write {
    Write(What::Local(i))
}

/// Reads a parameter's weight.
fn weight(param: ParamId) -> Read {
    Read(What::Weight(param))
}

/// Writes the micro-batch's loss.
fn loss() -> Write {
    Write(What::Loss)
}
