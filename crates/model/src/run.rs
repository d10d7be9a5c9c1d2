//! Runs one operation of a decoder. One file because each kind of operation has its line in one list.
//!
//! The caller owns every byte: it brings one view for each operand, in the order of
//! [`lowtide_workload::Op::operands`], and scratch. Nothing is kept between calls beyond the
//! table of rotary angles, so operations may run in any order that their operands allow, and a
//! recomputed forward gives the same bits.
//!
//! One file because it is one match from kinds of operations to kernels, with what a call brings for them.

mod chunks;

use std::ops::Range;

use lowtide_device::{Dst, Queue};
use lowtide_kernels::embedding::Noise;
use lowtide_kernels::head::classes;
use lowtide_kernels::operands::{Arg, Args, Named};
use lowtide_kernels::rope::{Rotation, Table};
use lowtide_kernels::route::Routes;
use lowtide_kernels::{
    add, attention, embedding, experts, gelu, grouped, head, layernorm, matmul, qknorm, relative,
    rmsnorm, rope, route, share, swiglu, tanh,
};
use lowtide_workload::{
    LocalId, ModelShape, Op, OpId, ParamId, ParamKind, Rope, Unit, What, Workload,
};

use crate::ModelError;
use crate::describe::chunks::Computed;
use crate::describe::kind::{Kind, Local, Sizes};
use crate::describe::{Built, Decoding, Options, Phase, UnitKinds, build, build_decoding};
use crate::lsp::learn::{NotFinite, learned};
use crate::lsp::{Layout, Merged};
use crate::rates::{Rate, RateGroup, groups_of};
use crate::rope::angles;
use crate::weights::Drawn;

/// A decoder of one shape at one batch, ready to run on the make of device that it was described for.
#[derive(Debug)]
pub struct Decoder {
    workload: Workload,
    kinds: Vec<UnitKinds>,
    sizes: Sizes,
    layout: Layout,
    rope: Option<Table>,
    /// Of the layers whose positions are others.
    local_rope: Option<Table>,
    shape: ModelShape,
    decoding: Option<Decoding>,
    /// Tensors that are updated with settings of their own.
    groups: Vec<RateGroup>,
    /// Of each parameter, which of these has it; empty where none has any.
    group_of: Vec<Option<usize>>,
}

/// How much of a step of decoding holds anything: its first rows, and of these the first ones give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Rows, a power of two.
    pub rows: usize,
    /// Rows of logits, a power of two.
    pub answers: usize,
}

impl Live {
    /// Of a step whose rows have these labels: each row that gives logits has one that is not negative, and they
    /// are the first ones.
    ///
    /// # Panics
    /// When they are not, or there are none, or their number is no power of two.
    #[must_use]
    pub fn of(labels: &[i32]) -> Self {
        let marked = labels.iter().position(|&l| l < 0).unwrap_or(labels.len());
        let (rows, answers) = (labels.len(), marked.next_power_of_two());
        assert!(marked > 0, "a step without logits");
        assert!(rows.is_power_of_two(), "a step of {rows} rows");
        let others = &labels[marked..];
        assert!(others.iter().all(|&l| l < 0), "logits of rows in between");
        Self { rows, answers }
    }
}

/// One operation on one micro-batch.
#[derive(Debug)]
pub struct Call<'a> {
    /// Index into [`Workload::units`].
    pub unit: usize,
    /// Which of the unit's lists.
    pub phase: Phase,
    /// Which of that list.
    pub op: OpId,
    /// One for each operand, in order.
    pub args: Vec<Arg<'a>>,
    /// Scratch of at least [`lowtide_workload::Op::workspace`] bytes; garbage before and after.
    pub workspace: Dst<'a>,
    /// What the loss's gradient is multiplied with, usually one over the batch's supervised
    /// tokens. Read by the head's backward only.
    pub loss_scale: f32,
    /// Of a step of decoding, how much of it holds anything; what is behind is neither read nor written.
    pub live: Option<Live>,
    /// Of a step of training, which micro-batch it is on.
    pub training: Option<Training>,
}

/// A micro-batch of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Training {
    /// The step, from 1.
    pub step: u64,
    /// The micro-batch of its batch, that of all ranks, from 0.
    pub micro_batch: u64,
}

impl Decoder {
    /// A decoder for `shape` at `options`. Builds the table of rotary angles, (T, D/2) twice.
    ///
    /// # Errors
    /// As [`crate::describe`].
    pub fn new(shape: &ModelShape, options: &Options) -> Result<Self, ModelError> {
        Ok(Self::of(build(shape, options, false)?, shape))
    }

    /// A decoder that is not trained: [`Self::learned`] makes projectors of its first gradients. For each matrix that
    /// [`Self::new`] trains in a subspace, the other side is projected.
    ///
    /// # Errors
    /// As [`crate::describe`].
    pub fn sketching(shape: &ModelShape, options: &Options) -> Result<Self, ModelError> {
        Ok(Self::of(build(shape, options, true)?, shape))
    }

    /// The same model for steps that make answers, with keys and values that are kept. Of `options` the batch, what
    /// is frozen and subspaces mean nothing.
    ///
    /// # Errors
    /// As [`crate::describe`]; [`ModelError::Dimensions`] too when a step has fewer rows than answers.
    pub fn decoding(
        shape: &ModelShape,
        options: &Options,
        how: Decoding,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            decoding: Some(how),
            ..Self::of(build_decoding(shape, options, how)?, shape)
        })
    }

    fn of(built: Built, shape: &ModelShape) -> Self {
        let table = |r: &Rope| {
            let angles = angles(r, shape.head_dim);
            let half = shape.head_dim as usize / 2;
            Table::partial(&angles.inverse, angles.factor, half, built.sizes.seq)
        };
        let rope = shape.rope.as_ref().map(table);
        let local_rope = shape.local_rope.as_ref().map(|local| table(&local.rope));
        Self {
            workload: built.workload,
            kinds: built.kinds,
            sizes: built.sizes,
            layout: built.layout,
            rope,
            local_rope,
            groups: Vec::new(),
            group_of: Vec::new(),
            shape: shape.clone(),
            decoding: None,
        }
    }

    /// The same for each of so many ranks, a power of two, that make a step together.
    #[must_use]
    pub fn of_ranks(mut self, ranks: u32) -> Self {
        self.workload.ranks = ranks;
        self
    }

    /// The same with gradients that add up in a tree of so many leaves, see [`Workload::leaves`].
    #[must_use]
    pub fn in_a_tree(mut self, leaves: u32) -> Self {
        self.workload.leaves = leaves;
        self
    }

    /// The same with labels of which training spreads a share, 0 to 1, evenly over all tokens. Nothing of its workload
    /// depends on it.
    #[must_use]
    pub fn smoothing(mut self, share: f32) -> Self {
        self.sizes.smoothing = share;
        self
    }

    /// The same with noise on what the embedding gives in training (NEFTune): evenly from -1 to 1, times α/√(T·C) of
    /// rows of T tokens and C numbers. With α = 0 none. Not for two stacks, whose embeddings stay as they are. Nothing
    /// of its workload depends on it.
    #[must_use]
    pub fn neftune(mut self, alpha: f64, seed: u64) -> Self {
        let largest = embedding::largest(alpha, self.sizes.seq, self.sizes.hidden);
        self.sizes.noise = (alpha > 0.0).then_some((largest, seed));
        self
    }

    /// The same with tensors that are updated with settings of their own; of several groups that name one the first
    /// holds. Nothing of its workload depends on it. Not for training in subspaces, whose parameters are others.
    #[must_use]
    pub fn rates(mut self, groups: &[RateGroup]) -> Self {
        self.group_of = groups_of(&self.shape, groups);
        self.groups = groups.to_vec();
        self
    }

    /// Which group of [`Self::rates`] a parameter is in.
    #[must_use]
    pub fn group(&self, p: ParamId) -> Option<usize> {
        self.group_of.get(p.0 as usize).copied().flatten()
    }

    /// How a parameter's update differs from the others'.
    #[must_use]
    pub fn rate(&self, p: ParamId) -> Rate {
        self.group(p)
            .map_or_else(Rate::default, |g| self.groups[g].rate)
    }

    #[cfg(test)]
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What [`crate::describe`] says of it.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// How it makes answers, where it does nothing else.
    #[must_use]
    pub fn steps(&self) -> Option<Decoding> {
        self.decoding
    }

    /// Dimensions of the model.
    #[must_use]
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Tokens of a row from which one row of logits is chosen when the model answers: rows are cut into so many, and
    /// several prompts can share one.
    #[must_use]
    pub fn span(&self) -> usize {
        self.sizes.span
    }

    /// Which tensor of a unit says what rows its experts get; `None` where it has no experts.
    #[must_use]
    pub fn routing(&self, unit: usize) -> Option<LocalId> {
        let mut kinds = self.kinds[unit].forward.iter();
        kinds.find_map(|kind| match kind.whole()? {
            Kind::Route(o) => match o.routing.0 {
                What::Local(local) => Some(local),
                _ => None,
            },
            _ => None,
        })
    }

    /// A routing that gives every expert as many rows, for those who run an operation alone, of a step of decoding as
    /// much as `live` says; `None` where there are no experts.
    #[must_use]
    pub fn even_routing(&self, live: Option<Live>) -> Option<Vec<i32>> {
        let rows = live.map_or(self.sizes.rows, |live| live.rows);
        self.sizes.of_rows(rows).routes.map(Routes::even)
    }

    /// Rows that a block computes at a time, where these are not all.
    #[must_use]
    pub fn rows_chunk(&self) -> Option<u64> {
        self.sizes.at_once.map(|rows| rows as u64)
    }

    /// Rows of logits that exist at a time.
    #[must_use]
    pub fn logits_chunk(&self) -> u64 {
        self.sizes.chunk as u64
    }

    /// Fills `out` with the elements `range` of a parameter as they are before the first step. `files` is asked for
    /// the parameters of the model's files, by their index in [`crate::file_params`]; projectors are drawn from
    /// `seed`, and cores begin at zero.
    ///
    /// # Errors
    /// Those of `files`.
    ///
    /// # Panics
    /// When the workload has no such parameter or element.
    pub fn first_values<E>(
        &self,
        seed: u64,
        param: ParamId,
        range: Range<u64>,
        out: &mut [f32],
        files: impl FnOnce(ParamId, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let entry = &self.layout[param];
        match (entry.kind, entry.factors) {
            (ParamKind::Own | ParamKind::Base, _) => files(entry.file, range, out)?,
            (ParamKind::Projector, Some(factors)) => {
                Drawn::new(seed, entry.file, factors.projected, factors.rank).fill(range, out);
            }
            (ParamKind::Projector | ParamKind::Core, _) => out.fill(0.0),
        }
        Ok(())
    }

    /// Of a sketching decoder: the projector that the gradient of a core says of the directions of its matrix; and the
    /// index of the matrix in [`crate::file_params`]. `seed` is that of the drawn projectors.
    ///
    /// # Errors
    /// [`NotFinite`].
    ///
    /// # Panics
    /// When `core` is none, or the gradient not one of its size.
    pub fn learned(
        &self,
        seed: u64,
        core: ParamId,
        gradient: &[f32],
    ) -> Result<(ParamId, Vec<f32>), NotFinite> {
        let entry = &self.layout[core];
        assert_eq!(entry.kind, ParamKind::Core, "{}", entry.spec.name);
        let factors = entry.factors.expect("a core has them").transposed();
        let mut drawn = vec![0.0; gradient.len()];
        let (features, rank) = (factors.projected, factors.rank);
        Drawn::new(seed, entry.file, features, rank).fill(0..features * rank, &mut drawn);
        Ok((entry.file, learned(gradient, &drawn, factors)?))
    }

    /// The matrix that a projector belongs to, by its index in [`crate::file_params`]; `None` of other parameters.
    #[must_use]
    pub fn projects(&self, param: ParamId) -> Option<ParamId> {
        let entry = &self.layout[param];
        (entry.kind == ParamKind::Projector).then_some(entry.file)
    }

    /// The model's matrices as they are used, for those who write them; made on so many threads.
    #[must_use]
    pub fn merged(&self, threads: usize) -> Merged<'_> {
        Merged::new(&self.layout, threads)
    }

    /// Runs one operation on `q` and returns when its results are written.
    ///
    /// # Panics
    /// When the call names no operation of the workload, or a view does not have its operand's
    /// length, or is read where the operation writes: a mistake in the plan or its executor.
    pub fn run(&self, q: &Queue, call: Call<'_>) {
        let unit = &self.workload.units[call.unit];
        let op = &call.phase.ops(unit)[call.op];
        let computed = &call.phase.kinds(&self.kinds[call.unit])[call.op];
        assert_eq!(
            call.args.len(),
            op.operands.len(),
            "operands of {} {:?} {}",
            unit.name,
            call.phase,
            op.name
        );
        assert!(
            call.workspace.bytes() as u64 >= op.workspace.0,
            "{} {} needs {} of scratch, has {} bytes",
            unit.name,
            op.name,
            op.workspace,
            call.workspace.bytes()
        );
        let own = self.kinds[call.unit].sizes.unwrap_or(self.sizes);
        let mut kind = match computed {
            Computed::Whole(kind) => *kind,
            Computed::InChunks(chunks) => {
                let of = (unit, op, &own);
                return self.run_chunks(q, chunks, of, call.args, call.workspace);
            }
        };
        let (mut args, mut sizes) = (call.args, own);
        if let Some(live) = call.live {
            let of = (unit, op, call.phase);
            (args, sizes) = self.of_live(of, self.routing(call.unit), args, live);
            kind = kind.of_rows(sizes.rows);
        }
        let args = &mut Args::new(args);
        let noise = call.training.and_then(|of| {
            let (largest, seed) = sizes.noise?;
            let first = of.micro_batch * sizes.rows as u64;
            Some(Noise::new(largest, seed, of.step, first))
        });
        let how = (call.loss_scale, noise);
        self.launch(q, (kind, &sizes), args, call.workspace, how);
        assert!(args.left() == 0, "operands of {} left over", op.name);
    }

    /// Of an operation of a step of decoding what it uses of each operand, and its sizes: of tensors with a row for
    /// each of the step's the first ones, of inputs planes of as many.
    fn of_live<'a>(
        &self,
        (unit, op, phase): (&Unit, &Op, Phase),
        routing: Option<LocalId>,
        args: Vec<Arg<'a>>,
        live: Live,
    ) -> (Vec<Arg<'a>>, Sizes) {
        let all = &self.sizes;
        let n = match phase {
            Phase::Infer => live.answers,
            _ => live.rows,
        };
        assert!(
            live.rows <= all.rows && live.answers <= live.rows.min(all.answers()),
            "{live:?} of a step of {} rows and {} of logits",
            all.rows,
            all.answers()
        );
        let bytes = |what: What| match what {
            What::Local(i) if unit.logits == Some(i) => {
                Some(unit.tensors[i].bytes.usize() / all.answers() * n)
            }
            What::Local(i) if routing == Some(i) => Some(all.of_rows(n).routes().bytes()),
            What::Local(i) => Some(unit.tensors[i].bytes.usize() / all.rows * n),
            What::Inputs => Some(16 * live.rows),
            _ => None,
        };
        let operands = op.operands.iter().zip(args);
        let args = operands.map(|(o, arg)| match (bytes(o.what), arg) {
            (Some(bytes), Arg::Read(from)) => Arg::Read(from.part(0, bytes)),
            (Some(bytes), Arg::Write(to)) => Arg::Write(to.part(0, bytes)),
            (_, arg) => arg,
        });
        (args.collect(), all.of_rows(n))
    }

    /// Takes the operation's bytes from `args` and hands them to its kernel.
    fn launch(
        &self,
        q: &Queue,
        (kind, s): (Kind, &Sizes),
        args: &mut Args<'_>,
        ws: Dst<'_>,
        (scale, noise): (f32, Option<Noise>),
    ) {
        let (eps, dtype) = (s.eps, s.dtype);
        let (c, f) = (s.rows_of(s.hidden), s.rows_of(s.intermediate));
        match kind {
            Kind::Embedding(o) => {
                let mut o = o.bind(args);
                o.inputs = s.own(o.inputs);
                match noise {
                    Some(noise) => embedding::noisy(q, o, s.tables(), noise),
                    None => embedding::forward(q, o, s.tables()),
                }
            }
            Kind::EmbeddingBackward(o, _) => {
                let mut o = o.bind(args);
                o.inputs = s.own(o.inputs);
                embedding::backward(q, o, s.tables(), ws);
            }
            Kind::RmsNorm(o) => rmsnorm::forward(q, o.bind(args), c, eps, s.plus),
            Kind::RmsNormBackward(o) => rmsnorm::backward(q, o.bind(args), c, s.plus, ws),
            Kind::LayerNorm(o) => layernorm::forward(q, o.bind(args), c, eps),
            Kind::LayerNormBackward(o) => layernorm::backward(q, o.bind(args), c, ws),
            Kind::Linear(o, dims) => matmul::forward(q, o.bind(args), dims.dims(), dtype, ws),
            Kind::LinearWeight(o, dims) => {
                matmul::backward_weight(q, o.bind(args), dims.dims(), dtype, ws);
            }
            Kind::LinearInput(o, dims) => {
                matmul::backward_input(q, o.bind(args), dims.dims(), dtype, ws);
            }
            Kind::LinearBias(o, dims) => {
                matmul::backward_bias(q, o.bind(args), dims.dims(), dtype, ws);
            }
            Kind::Add(o, width, factor) => {
                add::forward(q, o.bind(args), s.rows * width, factor, dtype);
            }
            Kind::QkNorm(o) => qknorm::forward(q, o.bind(args), s.qk_norm()),
            Kind::QkNormBackward(o) => qknorm::backward(q, o.bind(args), s.qk_norm(), ws),
            Kind::Rope(o, local) => {
                let mut o = o.bind(args);
                o.inputs = s.own(o.inputs);
                rope::forward(q, o, self.rotation(local, s));
            }
            Kind::RopeBackward(o, local) => {
                let mut o = o.bind(args);
                o.inputs = s.own(o.inputs);
                rope::backward(q, o, self.rotation(local, s), ws);
            }
            Kind::Attention(o, mask) => {
                attention::forward(q, o.bind(args), &s.attn(mask), dtype, ws);
            }
            Kind::AttentionBackward(o, mask) => {
                attention::backward(q, o.bind(args), &s.attn(mask), dtype, ws);
            }
            Kind::CachedAttention(o, mask) => {
                attention::cached(q, o.bind(args), &s.attn(mask), s.rows, dtype, ws);
            }
            Kind::Relative(o, keys) => {
                relative::forward(q, o.bind(args), &s.pair(keys), dtype, ws);
            }
            Kind::RelativeBackward(o, keys) => {
                relative::backward(q, o.bind(args), &s.pair(keys), dtype, ws);
            }
            Kind::Positions(o) => {
                relative::table::forward(q, o.bind(args), &s.stack().table, dtype);
            }
            Kind::PositionsBackward(o) => {
                relative::table::backward(q, o.bind(args), &s.stack().table);
            }
            Kind::ShareAdd(o) => {
                let rows = s.batch * s.stack().other;
                share::add(q, o.bind(args), rows * s.hidden, dtype);
            }
            Kind::ShareRound(o) => share::round(q, o.bind(args), s.rows * s.hidden, dtype),
            Kind::Swiglu(o, gate) => swiglu::forward(q, o.bind(args), f, gate),
            Kind::SwigluBackward(o, gate) => swiglu::backward(q, o.bind(args), f, gate),
            Kind::Gelu(o, form) => {
                gelu::forward(q, o.bind(args), s.rows * s.intermediate, form, dtype);
            }
            Kind::GeluBackward(o, form) => {
                gelu::backward(q, o.bind(args), s.rows * s.intermediate, form, dtype);
            }
            Kind::Route(o) => route::forward(q, o.bind(args), s.routes(), ws),
            Kind::RouteBackward(o) => route::backward(q, o.bind(args), s.routes()),
            Kind::Gather(o) => experts::gather(q, o.bind(args), s.routes(), s.hidden),
            Kind::Combine(o) => experts::combine(q, o.bind(args), s.routes(), s.hidden),
            Kind::ExpertsAct(o) => experts::act(q, o.bind(args), s.routes(), s.intermediate),
            Kind::ExpertsActBackward(o) => {
                experts::act_backward(q, o.bind(args), s.routes(), s.intermediate);
            }
            Kind::Grouped(o, p) => grouped::forward(q, o.bind(args), s.grouped(p), ws),
            Kind::GroupedWeight(o, p) => {
                grouped::backward_weight(q, o.bind(args), s.grouped(p), ws);
            }
            Kind::GroupedInput(o, p) => {
                grouped::backward_input(q, o.bind(args), s.grouped(p), ws);
            }
            Kind::HeadTrain(o) => {
                let mut o = o.bind(args);
                o.inputs = s.own(o.inputs);
                head::train(q, o, scale, &s.head(), dtype, ws);
            }
            Kind::HeadLoss(o) => {
                let mut o = o.bind(args);
                o.inputs = s.own(o.inputs);
                head::loss(q, o, &s.head(), dtype, ws);
            }
            Kind::HeadLogits(o) => {
                let mut o = o.bind(args);
                o.inputs = s.own(o.inputs);
                if s.answers.is_some() {
                    o.inputs = o.inputs.first(s.rows);
                }
                head::logits(q, o, s.span, &s.head(), dtype, ws);
            }
            Kind::Tanh(o) => tanh::forward(q, o.bind(args), s.rows * s.hidden, dtype),
            Kind::TanhBackward(o) => tanh::backward(q, o.bind(args), s.rows * s.hidden, dtype),
            Kind::ClassesTrain(o) => {
                classes::train(q, o.bind(args), scale, &s.classes(), dtype, ws);
            }
            Kind::ClassesLoss(o) => classes::loss(q, o.bind(args), &s.classes(), dtype, ws),
            Kind::ClassesValues(o) => classes::values(q, o.bind(args), &s.classes(), dtype),
        }
    }

    fn rotation(&self, Local(local): Local, s: &Sizes) -> Rotation<'_> {
        let table = if local { &self.local_rope } else { &self.rope };
        let table = table.as_ref();
        Rotation {
            table: table.expect("a shape with rotary positions has their table"),
            rows: s.rows,
            heads: s.heads,
            eps: self.sizes.eps,
            plus: self.sizes.plus,
            dtype: self.sizes.dtype,
        }
    }
}
