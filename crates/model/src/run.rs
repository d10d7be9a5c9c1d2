//! Runs one operation of a decoder.
//!
//! The caller owns every byte: it brings one view for each operand, in the order of
//! [`lowtide_workload::Op::operands`], and scratch. Nothing is kept between calls beyond the
//! table of rotary angles, so operations may run in any order that their operands allow, and a
//! recomputed forward gives the same bits.

use lowtide_device::{Dst, Queue, Src};
use lowtide_kernels::rope::{QkNorm, QkNormBack, Table};
use lowtide_kernels::{attention, embedding, gelu, head, layernorm, matmul, rmsnorm, rope, swiglu};
use lowtide_workload::{ModelShape, Workload};

use crate::ModelError;
use crate::describe::kind::{Inputs, Kind, Sizes};
use crate::describe::{Options, Phase, UnitKinds, build};
use crate::rope::inverse_frequencies;

/// A decoder of one shape at one batch, ready to run on the CPU device.
#[derive(Debug)]
pub struct Decoder {
    workload: Workload,
    kinds: Vec<UnitKinds>,
    sizes: Sizes,
    rope: Option<Table>,
    shape: ModelShape,
}

/// One operand of a call: the bytes of its tensor exactly, without padding.
#[derive(Debug)]
pub enum Arg<'a> {
    /// It is read.
    Read(Src<'a>),
    /// It is overwritten; a gradient to which nothing was added in this batch yet too. Gradients of one
    /// operation that belong to one kernel (a norm's scale and bias) are treated as the first is.
    Write(Dst<'a>),
    /// A gradient to which is added.
    Add(Dst<'a>),
}

/// One operation on one micro-batch.
#[derive(Debug)]
pub struct Call<'a> {
    /// Index into [`Workload::units`].
    pub unit: usize,
    /// Which of the unit's lists.
    pub phase: Phase,
    /// Index into that list.
    pub op: usize,
    /// One for each operand, in order.
    pub args: Vec<Arg<'a>>,
    /// Scratch of at least [`lowtide_workload::Op::workspace`] bytes; garbage before and after.
    pub workspace: Dst<'a>,
    /// What the loss's gradient is multiplied with, usually one over the batch's supervised
    /// tokens. Read by the head's backward only.
    pub loss_scale: f32,
}

impl Decoder {
    /// A decoder for `shape` at `options`. Builds the table of rotary angles, (T, D/2) twice.
    ///
    /// # Errors
    /// As [`crate::describe`].
    pub fn new(shape: &ModelShape, options: &Options) -> Result<Self, ModelError> {
        let built = build(shape, options)?;
        let rope = shape.rope.map(|r| {
            let inverse = inverse_frequencies(&r, shape.head_dim);
            Table::new(&inverse, 1.0, built.sizes.seq)
        });
        let (workload, kinds, sizes) = (built.workload, built.kinds, built.sizes);
        Ok(Self {
            workload,
            kinds,
            sizes,
            rope,
            shape: shape.clone(),
        })
    }

    /// What [`crate::describe`] says of it.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Its dimensions.
    #[must_use]
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Runs one operation on `q` and returns when its results are written.
    ///
    /// # Panics
    /// When the call names no operation of the workload, or a view does not have its operand's
    /// length, or is read where the operation writes: a mistake in the plan or its executor.
    pub fn run(&self, q: &Queue, call: Call<'_>) {
        let unit = &self.workload.units[call.unit];
        let op = &call.phase.ops(unit)[call.op];
        let kind = call.phase.kinds(&self.kinds[call.unit])[call.op];
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
        let (ws, scale) = (call.workspace, call.loss_scale);
        let args = &mut Args {
            rest: call.args.into_iter(),
        };
        match kind {
            Kind::Embedding { .. }
            | Kind::EmbeddingBackward { .. }
            | Kind::HeadTrain
            | Kind::HeadLoss
            | Kind::HeadLogits => self.run_ends(q, kind, args, ws, scale),
            Kind::RmsNorm
            | Kind::RmsNormBackward { .. }
            | Kind::LayerNorm
            | Kind::LayerNormBackward { .. } => self.run_norm(q, kind, args, ws),
            Kind::Linear { .. } | Kind::LinearWeight { .. } | Kind::LinearInput { .. } => {
                self.run_linear(q, kind, args, ws);
            }
            Kind::Rope { .. }
            | Kind::RopeBackward { .. }
            | Kind::Attention
            | Kind::AttentionBackward => self.run_attention(q, kind, args, ws),
            Kind::Swiglu | Kind::SwigluBackward | Kind::Gelu | Kind::GeluBackward => {
                self.run_activation(q, kind, args);
            }
        }
        assert!(
            args.rest.next().is_none(),
            "operands of {} left over",
            op.name
        );
    }

    fn run_ends(&self, q: &Queue, kind: Kind, args: &mut Args<'_>, mut ws: Dst<'_>, scale: f32) {
        let s = &self.sizes;
        let (rows, c, v, dtype) = (s.rows, s.hidden, s.vocab, s.dtype);
        match kind {
            Kind::Embedding { positions } => {
                let (y, inputs) = (args.dst(), Inputs::of(args.src(), rows));
                let tokens = args.src();
                let table = positions.then(|| (args.src(), inputs.positions));
                embedding::forward(q, y, inputs.tokens, tokens, table, rows, c, v, dtype);
            }
            Kind::EmbeddingBackward { positions, .. } => {
                let (dw, add) = args.gradient();
                let table = positions.then(|| args.gradient());
                let (dy, inputs) = (args.src(), Inputs::of(args.src(), rows));
                let scratch = ws.again();
                embedding::backward(q, dw, dy, inputs.tokens, rows, c, v, add, dtype, scratch);
                if let Some((dp, add)) = table {
                    let p = s.positions;
                    embedding::backward(q, dp, dy, inputs.positions, rows, c, p, add, dtype, ws);
                }
            }
            Kind::HeadTrain => {
                let (dh, (dw, add), loss) = (args.dst(), args.gradient(), args.dst());
                let (h, w, inputs) = (args.src(), args.src(), Inputs::of(args.src(), rows));
                let labels = inputs.labels;
                head::train(
                    q,
                    dh,
                    dw,
                    loss,
                    h,
                    w,
                    labels,
                    scale,
                    &s.head(),
                    add,
                    dtype,
                    ws,
                );
            }
            Kind::HeadLoss => {
                let (loss, h, w) = (args.dst(), args.src(), args.src());
                let labels = Inputs::of(args.src(), rows).labels;
                head::loss(q, loss, h, w, labels, &s.head(), dtype, ws);
            }
            Kind::HeadLogits => {
                let (out, h, w) = (args.dst(), args.src(), args.src());
                let labels = Inputs::of(args.src(), rows).labels;
                head::logits(q, out, h, w, labels, s.seq, &s.head(), dtype, ws);
            }
            other => unreachable!("{other:?} is not at an end"),
        }
    }

    fn run_norm(&self, q: &Queue, kind: Kind, args: &mut Args<'_>, ws: Dst<'_>) {
        let s = &self.sizes;
        let (rows, c, eps, dtype) = (s.rows, s.hidden, s.eps, s.dtype);
        match kind {
            Kind::RmsNorm => {
                let (y, rstd, x, w) = (args.dst(), args.dst(), args.src(), args.src());
                rmsnorm::forward(q, y, rstd, x, w, rows, c, eps, dtype);
            }
            Kind::RmsNormBackward { residual } => {
                let (dx, (dw, add)) = (args.dst(), args.gradient());
                let (dy, x, rstd, w) = (args.src(), args.src(), args.src(), args.src());
                let with = residual.then(|| args.src());
                rmsnorm::backward(q, dx, dw, dy, x, rstd, w, with, rows, c, add, dtype, ws);
            }
            Kind::LayerNorm => {
                let (y, mean, rstd) = (args.dst(), args.dst(), args.dst());
                let (x, w, b) = (args.src(), args.src(), args.src());
                layernorm::forward(q, y, mean, rstd, x, w, b, rows, c, eps, dtype);
            }
            Kind::LayerNormBackward { residual } => {
                let (dx, (dw, add), (db, _)) = (args.dst(), args.gradient(), args.gradient());
                let (dy, x, mean) = (args.src(), args.src(), args.src());
                let (rstd, w) = (args.src(), args.src());
                let with = residual.then(|| args.src());
                layernorm::backward(
                    q, dx, dw, db, dy, x, mean, rstd, w, with, rows, c, add, dtype, ws,
                );
            }
            other => unreachable!("{other:?} is not a norm"),
        }
    }

    fn run_linear(&self, q: &Queue, kind: Kind, args: &mut Args<'_>, mut ws: Dst<'_>) {
        let s = &self.sizes;
        match kind {
            Kind::Linear {
                dims,
                bias,
                residual,
            } => {
                let (y, x, w) = (args.dst(), args.src(), args.src());
                let bias = bias.then(|| args.src());
                let residual = residual.then(|| args.src());
                matmul::forward(q, y, x, w, bias, residual, dims.dims(s), s.dtype, ws);
            }
            Kind::LinearWeight { dims, bias } => {
                let (dw, add) = args.gradient();
                let db = bias.then(|| args.gradient());
                let (dy, x) = (args.src(), args.src());
                let scratch = ws.again();
                matmul::backward_weight(q, dw, dy, x, dims.dims(s), add, s.dtype, scratch);
                if let Some((db, add)) = db {
                    matmul::backward_bias(q, db, dy, dims.dims(s), add, s.dtype, ws);
                }
            }
            Kind::LinearInput { dims } => {
                let (dx, dy, w) = (args.dst(), args.src(), args.src());
                matmul::backward_input(q, dx, dy, w, dims.dims(s), s.dtype, ws);
            }
            other => unreachable!("{other:?} is not a product"),
        }
    }

    fn run_attention(&self, q: &Queue, kind: Kind, args: &mut Args<'_>, ws: Dst<'_>) {
        let s = &self.sizes;
        let (rows, dtype) = (s.rows, s.dtype);
        match kind {
            Kind::Rope { norm } => {
                let (y, x) = (args.dst(), args.src());
                let at = Inputs::of(args.src(), rows).positions;
                let norm = norm.then(|| {
                    let (rstd, wq, wk) = (args.dst(), args.src(), args.src());
                    QkNorm {
                        wq,
                        wk,
                        rstd,
                        eps: s.eps,
                    }
                });
                rope::forward(q, y, x, at, self.table(), norm, rows, s.heads, dtype);
            }
            Kind::RopeBackward { norm } => {
                let (dx, dy) = (args.dst(), args.src());
                let at = Inputs::of(args.src(), rows).positions;
                let norm = norm.then(|| {
                    let ((dwq, add), (dwk, _)) = (args.gradient(), args.gradient());
                    let (x, rstd, wq, wk) = (args.src(), args.src(), args.src(), args.src());
                    QkNormBack {
                        x,
                        rstd,
                        wq,
                        wk,
                        dwq,
                        dwk,
                        accumulate: add,
                    }
                });
                rope::backward(q, dx, dy, at, self.table(), norm, rows, s.heads, dtype, ws);
            }
            Kind::Attention => {
                let (out, lse, qkv) = (args.dst(), args.dst(), args.src());
                let doc_start = Inputs::of(args.src(), rows).doc_start;
                attention::forward(q, out, lse, qkv, doc_start, &s.attn(), dtype, ws);
            }
            Kind::AttentionBackward => {
                let (d_qkv, d_out, qkv) = (args.dst(), args.src(), args.src());
                let (out, lse) = (args.src(), args.src());
                let start = Inputs::of(args.src(), rows).doc_start;
                attention::backward(q, d_qkv, d_out, qkv, out, lse, start, &s.attn(), dtype, ws);
            }
            other => unreachable!("{other:?} is not of the attention"),
        }
    }

    fn run_activation(&self, q: &Queue, kind: Kind, args: &mut Args<'_>) {
        let s = &self.sizes;
        let (rows, f, dtype) = (s.rows, s.intermediate, s.dtype);
        match kind {
            Kind::Swiglu => swiglu::forward(q, args.dst(), args.src(), rows, f, dtype),
            Kind::SwigluBackward => {
                swiglu::backward(q, args.dst(), args.src(), args.src(), rows, f, dtype);
            }
            Kind::Gelu => gelu::forward(q, args.dst(), args.src(), rows * f, dtype),
            Kind::GeluBackward => {
                gelu::backward(q, args.dst(), args.src(), args.src(), rows * f, dtype);
            }
            other => unreachable!("{other:?} is not an activation"),
        }
    }

    fn table(&self) -> &Table {
        self.rope
            .as_ref()
            .expect("a shape with rotary positions has their table")
    }
}

/// The operands of a call, taken from the front.
struct Args<'a> {
    rest: std::vec::IntoIter<Arg<'a>>,
}

impl<'a> Args<'a> {
    fn next(&mut self) -> Arg<'a> {
        self.rest.next().expect("as many arguments as operands")
    }

    fn src(&mut self) -> Src<'a> {
        match self.next() {
            Arg::Read(from) => from,
            other => panic!("{other:?} is only read"),
        }
    }

    fn dst(&mut self) -> Dst<'a> {
        match self.next() {
            Arg::Write(to) => to,
            other => panic!("{other:?} is overwritten"),
        }
    }

    /// A gradient's accumulator, and whether to add to it.
    fn gradient(&mut self) -> (Dst<'a>, bool) {
        match self.next() {
            Arg::Write(to) => (to, false),
            Arg::Add(to) => (to, true),
            Arg::Read(from) => panic!("{from:?} is a gradient"),
        }
    }
}
