//! The operations of a decoder: what each computes, costs and expects as operands.
//!
//! One file because an operation has an arm in each of a few tables, which are changed together.

use lowtide_device::Make;
use lowtide_kernels::attention::{Attn, Engine};
use lowtide_kernels::gelu::Form;
use lowtide_kernels::head::classes::{self, Classes};
use lowtide_kernels::head::{Bend, Head};
use lowtide_kernels::matmul::Dims;
use lowtide_kernels::operands::{Named, Names, Planes};
use lowtide_kernels::relative::table::Table;
use lowtide_kernels::rmsnorm::Plus;
use lowtide_kernels::rope::Heads;
use lowtide_kernels::route::Routes;
use lowtide_kernels::swiglu::Gate;
use lowtide_kernels::{
    Rows, add, attention, embedding, experts, gelu, grouped, head, layernorm, matmul, qknorm,
    relative, rmsnorm, rope, route, share, swiglu, tanh,
};
use lowtide_units::{Bytes, Flops};
use lowtide_workload::{Dtype, Encoder, Mask, ModelShape, Operand, Stacks};

use super::Options;
use crate::families::{self, Norm};

/// Every size that an operation may need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// B·T: tokens of a micro-batch.
    pub rows: usize,
    pub batch: usize,
    pub seq: usize,
    /// Tokens of a row from which one row of logits is chosen when a model answers.
    pub span: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: Heads,
    /// Of the experts in the MLP's place.
    pub routes: Option<Routes>,
    pub vocab: usize,
    /// What an encoder's embedding has.
    pub encoder: Option<Encoder>,
    /// Whether tokens of a second text have a type of their own.
    pub typed: bool,
    /// Numbers of a row of logits: V, or classes.
    pub labels: usize,
    /// Rows of the position table (GPT-2, encoders).
    pub positions: usize,
    /// Rows of logits at a time.
    pub chunk: usize,
    pub eps: f32,
    /// What is added to the weights of norms.
    pub plus: Plus,
    /// Factor of attention's scores, and their cap.
    pub scale: f32,
    pub cap: Option<f32>,
    /// Between the head's product and its logits.
    pub bend: Bend,
    /// The share of labels that training spreads over all tokens.
    pub smoothing: f32,
    /// Noise that training adds to what the embedding gives: its largest number, and the seed.
    pub noise: Option<(f32, u64)>,
    pub dtype: Dtype,
    /// Scratch differs between makes of device.
    pub make: Make,
    pub attention: Engine,
    /// Of one of two stacks, where it is in the planes of inputs.
    pub stack: Option<Stack>,
    /// Rows that a block computes at a time, where these are not all.
    pub at_once: Option<usize>,
    /// Of a chunk of rows its first one.
    pub first: Option<usize>,
    /// Of a step of decoding: rows of logits. `batch` and `seq` are then places and positions of what is kept.
    pub answers: Option<usize>,
}

/// Spans of a row at most: each costs V numbers of f32.
const SPANS: u32 = 8;
/// Tokens of a span at least: shorter answers with their prompts are rare.
const SHORTEST: u32 = 64;

/// How many tokens of a row one answer gets, so that several prompts share a row. With cuDNN a row is one document.
fn span(options: &Options) -> usize {
    let seq = options.batch.seq;
    let fits = |n: &u32| seq.is_multiple_of(*n) && seq / n >= SHORTEST;
    let spans = match options.attention {
        Engine::Cudnn => 1,
        Engine::Own => (1..=SPANS).rev().find(fits).unwrap_or(1),
    };
    (seq / spans) as usize
}

impl Sizes {
    /// Rows of logits when a model answers: one a span, or of a step of decoding one of each of its first rows.
    pub fn answers(&self) -> usize {
        match self.answers {
            Some(answers) => answers.min(self.rows),
            None => self.rows / self.span,
        }
    }

    /// Of so many rows: of a chunk, or of a step of decoding those that hold anything.
    pub fn of_rows(&self, rows: usize) -> Self {
        Self {
            rows,
            routes: self.routes.map(|routes| Routes { rows, ..routes }),
            ..*self
        }
    }

    pub fn new(shape: &ModelShape, options: &Options) -> Self {
        Self {
            rows: options.batch.rows() as usize,
            batch: options.batch.micro_batch as usize,
            seq: options.batch.seq as usize,
            // Of a model that classifies logits are few, and all are given.
            span: match shape.objective.is_next_token() {
                true => span(options),
                false => 1,
            },
            hidden: shape.hidden as usize,
            intermediate: shape.intermediate as usize,
            heads: Heads {
                heads: shape.heads as usize,
                kv_heads: shape.kv_heads as usize,
                head_dim: shape.head_dim as usize,
            },
            routes: shape.experts.map(|e| Routes {
                rows: options.batch.rows() as usize,
                experts: e.count as usize,
                chosen: e.chosen as usize,
                renormalise: e.renormalise,
                dtype: options.precision,
            }),
            vocab: shape.vocab as usize,
            encoder: shape.encoder,
            typed: families::of(shape.family).typed(shape),
            labels: shape.objective.labels(shape.vocab) as usize,
            positions: {
                let before = shape.encoder.map_or(0, |encoder| encoder.first_position);
                shape.max_positions as usize + before as usize
            },
            chunk: options.chunk_rows(shape) as usize,
            eps: shape.norm_eps as f32,
            plus: match families::of(shape.family).norm() {
                Norm::RmsPlusOne => Plus::One,
                Norm::Rms | Norm::Layer => Plus::Nothing,
            },
            scale: match shape.scales.attention {
                Some(factor) => factor as f32,
                None => 1.0 / (shape.head_dim as f32).sqrt(),
            },
            cap: shape.scales.attention_cap.map(|cap| cap as f32),
            bend: Bend {
                factor: (1.0 / shape.scales.logits_divisor) as f32,
                cap: shape.scales.logits_cap.map(|cap| cap as f32),
            },
            smoothing: 0.0,
            noise: None,
            dtype: options.precision,
            make: options.make,
            attention: options.attention,
            stack: None,
            at_once: options.rows_at_once().map(|rows| rows as usize),
            first: None,
            answers: None,
        }
    }

    /// Of both stacks: the encoder's, then the decoder's.
    pub fn of_stacks(shape: &ModelShape, stacks: Stacks, options: &Options) -> [Self; 2] {
        let all = Self::new(shape, options);
        let [source, target] = [options.batch.seq, options.batch.target].map(|t| t as usize);
        let stack = |first: usize, seq: usize, both: bool| Self {
            rows: all.batch * seq,
            seq,
            span: seq,
            chunk: all.chunk.min(all.batch * seq),
            stack: Some(Stack {
                first,
                other: source,
                table: Table {
                    seq,
                    heads: all.heads.heads,
                    buckets: stacks.buckets as usize,
                    most: stacks.distance as usize,
                    both,
                },
            }),
            ..all
        };
        [
            stack(0, source, true),
            stack(all.batch * source, target, false),
        ]
    }

    /// The stack whose these are.
    ///
    /// # Panics
    /// When there is one stack alone: only units of several ask.
    pub fn stack(&self) -> Stack {
        self.stack.expect("a shape of two stacks")
    }

    /// Of the inputs' planes the rows of the stack or of the chunk.
    pub fn own<'a>(&self, inputs: Planes<'a>) -> Planes<'a> {
        match (self.stack, self.first) {
            (Some(stack), _) => inputs.rows(stack.first, self.rows),
            (None, Some(first)) => inputs.rows(first, self.rows),
            (None, None) => inputs,
        }
    }

    /// Attention of the stack's queries: to its own keys, or to the encoder's.
    pub fn pair(&self, keys: Keys) -> relative::Pair {
        let stack = self.stack();
        let (len, first, causal) = match keys {
            Keys::Own => (self.seq, stack.first, !stack.table.both),
            Keys::Encoder => (stack.other, 0, false),
        };
        relative::Pair {
            batch: self.batch,
            queries: self.seq,
            keys: len,
            heads: self.heads.heads,
            head_dim: self.heads.head_dim,
            scale: self.scale,
            causal,
            first: [stack.first, first],
        }
    }

    /// # Panics
    /// When the shape has no experts: only a block of experts asks.
    pub fn routes(&self) -> Routes {
        self.routes.expect("a shape with experts")
    }

    /// A product of all experts.
    pub fn grouped(&self, p: Product) -> grouped::Dims {
        grouped::Dims {
            routes: self.routes(),
            inner: p.inner,
            cols: p.cols,
        }
    }

    /// H·D: numbers of a row of attention's output.
    pub fn attention_width(&self) -> usize {
        self.heads.heads * self.heads.head_dim
    }

    /// (H + 2·KV)·D.
    pub fn qkv_width(&self) -> usize {
        (self.heads.heads + 2 * self.heads.kv_heads) * self.heads.head_dim
    }

    /// Attention of a layer. A layer with a window, a full mask or capped scores is computed by the own kernels,
    /// whichever kernels compute the others.
    pub fn attn(&self, mask: Mask) -> Attn {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        Attn {
            batch: self.batch,
            seq: self.seq,
            heads,
            kv_heads,
            head_dim,
            scale: self.scale,
            cap: self.cap,
            mask,
            engine: match (mask, self.cap) {
                (Mask::Causal, None) => self.attention,
                _ => Engine::Own,
            },
        }
    }

    /// B·T rows of `width` numbers.
    pub fn rows_of(&self, width: usize) -> Rows {
        Rows {
            rows: self.rows,
            width,
            dtype: self.dtype,
        }
    }

    /// Norms of all queries and of all keys.
    pub fn qk_norm(&self) -> qknorm::Norm {
        qknorm::Norm {
            rows: self.rows,
            heads: self.heads,
            eps: self.eps,
            dtype: self.dtype,
        }
    }

    pub fn tables(&self) -> embedding::Dims {
        embedding::Dims {
            rows: self.rows_of(self.hidden),
            vocab: self.vocab,
            positions: self.positions,
            first_position: self.encoder.map_or(0, |e| e.first_position as usize),
            types: self.encoder.map_or(0, |e| e.types as usize),
            typed: self.typed,
        }
    }

    /// Logits of a model that classifies.
    pub fn classes(&self) -> Classes {
        Classes {
            rows: self.rows,
            classes: self.labels,
            smoothing: self.smoothing,
        }
    }

    pub fn head(&self) -> Head {
        Head {
            rows: self.answers.map_or(self.rows, |_| self.answers()),
            hidden: self.hidden,
            vocab: self.vocab,
            chunk: self.chunk,
            bend: self.bend,
            smoothing: self.smoothing,
        }
    }
}

/// One of two stacks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// Its first row in each plane of the inputs.
    pub first: usize,
    /// Tokens of a row of the encoder.
    pub other: usize,
    /// Its table of relative positions.
    pub table: Table,
}

/// Whose keys queries see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Those of the same stack.
    Own,
    /// Those of what the encoder puts out.
    Encoder,
}

/// An operation and its operands by name, in the kernels' own structs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Embedding(embedding::Forward<Names>),
    /// `tied`: the head adds to the same table.
    EmbeddingBackward(embedding::Backward<Names>, Tied),
    RmsNorm(rmsnorm::Forward<Names>),
    RmsNormBackward(rmsnorm::Backward<Names>),
    LayerNorm(layernorm::Forward<Names>),
    LayerNormBackward(layernorm::Backward<Names>),
    Linear(matmul::Forward<Names>, Product),
    LinearWeight(matmul::Weight<Names>, Product),
    LinearInput(matmul::Input<Names>, Product),
    /// The bias's gradient alone: the matrix is frozen.
    LinearBias(matmul::Bias<Names>, Product),
    /// A multiple of rows of this many numbers, alone or added to others.
    Add(add::Forward<Names>, usize, f32),
    QkNorm(qknorm::Forward<Names>),
    QkNormBackward(qknorm::Backward<Names>),
    Rope(rope::Forward<Names>, Local),
    RopeBackward(rope::Backward<Names>, Local),
    Attention(attention::Forward<Names>, Mask),
    AttentionBackward(attention::Backward<Names>, Mask),
    /// Of a step of decoding, over what is kept.
    CachedAttention(attention::Cached<Names>, Mask),
    Relative(relative::Forward<Names>, Keys),
    RelativeBackward(relative::Backward<Names>, Keys),
    Positions(relative::table::Forward<Names>),
    PositionsBackward(relative::table::Backward<Names>),
    /// Of the encoder's output, (B·T, C).
    ShareAdd(share::Add<Names>),
    ShareRound(share::Round<Names>),
    Swiglu(swiglu::Forward<Names>, Gate),
    SwigluBackward(swiglu::Backward<Names>, Gate),
    Gelu(gelu::Forward<Names>, Form),
    GeluBackward(gelu::Backward<Names>, Form),
    Route(route::Forward<Names>),
    RouteBackward(route::Backward<Names>),
    /// Rows of C numbers.
    Gather(experts::Gather<Names>),
    Combine(experts::Combine<Names>),
    ExpertsAct(experts::Act<Names>),
    ExpertsActBackward(experts::ActBackward<Names>),
    Grouped(grouped::Forward<Names>, Product),
    GroupedWeight(grouped::Weight<Names>, Product),
    GroupedInput(grouped::Input<Names>, Product),
    HeadTrain(head::Train<Names>),
    HeadLoss(head::Loss<Names>),
    HeadLogits(head::Logits<Names>),
    Tanh(tanh::Forward<Names>),
    TanhBackward(tanh::Backward<Names>),
    ClassesTrain(classes::Train<Names>),
    ClassesLoss(classes::Loss<Names>),
    ClassesValues(classes::Values<Names>),
}

/// Whether rotary positions are those that some layers have in place of the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Local(pub bool);

/// Whether the head's matrix is the tokens' table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tied(pub bool);

/// Sizes of a matrix product: rows, in features and out features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    pub rows: usize,
    pub inner: usize,
    pub cols: usize,
}

impl Product {
    pub fn dims(self) -> Dims {
        Dims {
            rows: self.rows,
            inner: self.inner,
            cols: self.cols,
        }
    }
}

impl Kind {
    /// What the planner reads: every operand with its access, in the order in which a call brings them.
    pub fn operands(self) -> Vec<Operand> {
        let mut list = Vec::new();
        let to = &mut list;
        match self {
            Self::Embedding(o) => o.list(to),
            Self::EmbeddingBackward(o, _) => o.list(to),
            Self::RmsNorm(o) => o.list(to),
            Self::RmsNormBackward(o) => o.list(to),
            Self::LayerNorm(o) => o.list(to),
            Self::LayerNormBackward(o) => o.list(to),
            Self::Linear(o, _) => o.list(to),
            Self::LinearWeight(o, _) => o.list(to),
            Self::LinearInput(o, _) => o.list(to),
            Self::LinearBias(o, _) => o.list(to),
            Self::Add(o, _, _) => o.list(to),
            Self::QkNorm(o) => o.list(to),
            Self::QkNormBackward(o) => o.list(to),
            Self::Rope(o, _) => o.list(to),
            Self::RopeBackward(o, _) => o.list(to),
            Self::Attention(o, _) => o.list(to),
            Self::AttentionBackward(o, _) => o.list(to),
            Self::CachedAttention(o, _) => o.list(to),
            Self::Relative(o, _) => o.list(to),
            Self::RelativeBackward(o, _) => o.list(to),
            Self::Positions(o) => o.list(to),
            Self::PositionsBackward(o) => o.list(to),
            Self::ShareAdd(o) => o.list(to),
            Self::ShareRound(o) => o.list(to),
            Self::Swiglu(o, _) => o.list(to),
            Self::SwigluBackward(o, _) => o.list(to),
            Self::Gelu(o, _) => o.list(to),
            Self::GeluBackward(o, _) => o.list(to),
            Self::Route(o) => o.list(to),
            Self::RouteBackward(o) => o.list(to),
            Self::Gather(o) => o.list(to),
            Self::Combine(o) => o.list(to),
            Self::ExpertsAct(o) => o.list(to),
            Self::ExpertsActBackward(o) => o.list(to),
            Self::Grouped(o, _) => o.list(to),
            Self::GroupedWeight(o, _) => o.list(to),
            Self::GroupedInput(o, _) => o.list(to),
            Self::HeadTrain(o) => o.list(to),
            Self::HeadLoss(o) => o.list(to),
            Self::HeadLogits(o) => o.list(to),
            Self::Tanh(o) => o.list(to),
            Self::TanhBackward(o) => o.list(to),
            Self::ClassesTrain(o) => o.list(to),
            Self::ClassesLoss(o) => o.list(to),
            Self::ClassesValues(o) => o.list(to),
        }
        list
    }

    /// Operation and sizes, equal for equal work. Long because it is a list of operations.
    pub fn key(self, s: &Sizes) -> String {
        let (t, rows, c) = (s.dtype.name(), s.rows, s.hidden);
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = s.heads;
        let norm = |op: &str, with: &[(bool, &str)]| {
            let with: String = with.iter().filter(|w| w.0).map(|w| w.1).collect();
            format!("{op} {t} rows{rows} c{c}{with}")
        };
        // Without the weight's gradient.
        const FROZEN: &str = " frozen";
        let product = |op: &str, p: Product, with: &[(bool, &str)]| {
            let with: String = with.iter().filter(|w| w.0).map(|w| w.1).collect();
            format!("matmul.{op} {t} m{} n{} k{}{with}", p.rows, p.cols, p.inner)
        };
        let table = |op: &str, with: &[(bool, &str)]| {
            let with: String = with.iter().filter(|w| w.0).map(|w| w.1).collect();
            format!("embedding.{op} {t} rows{rows} c{c} v{}{with}", s.vocab)
        };
        let rotary = |op: &str, with: &[(bool, &str)]| {
            let with: String = with.iter().filter(|w| w.0).map(|w| w.1).collect();
            format!("{op} {t} rows{rows} h{heads} kv{kv_heads} d{head_dim}{with}")
        };
        let attention = |op: &str, mask: Mask| {
            let (b, seq) = (s.batch, s.seq);
            let window = match mask {
                Mask::Causal => String::new(),
                Mask::Window(n) => format!(" window{n}"),
                Mask::Full => " full".to_owned(),
            };
            let cap = if s.cap.is_some() { " cap" } else { "" };
            let sizes = format!("b{b} t{seq} h{heads} kv{kv_heads} d{head_dim}");
            format!("attention.{op} {t} {sizes}{window}{cap}")
        };
        let pair = |op: &str, keys: Keys, bias: bool| {
            let p = s.pair(keys);
            let (b, tq, tk) = (p.batch, p.queries, p.keys);
            let causal = if p.causal { " causal" } else { "" };
            let bias = if bias { " bias" } else { "" };
            format!("relative.{op} {t} b{b} t{tq} k{tk} h{heads} d{head_dim}{causal}{bias}")
        };
        let positions = |op: &str| {
            let of = s.stack().table;
            format!(
                "positions.{op} {t} t{} h{heads} buckets{}",
                of.seq, of.buckets
            )
        };
        let gated = |op: &str| format!("{op} {t} rows{rows} f{}", s.intermediate);
        let routed = |op: &str| {
            let (experts, chosen) = (s.routes().experts, s.routes().chosen);
            format!("{op} {t} rows{rows} experts{experts} chosen{chosen}")
        };
        let grouped = |op: &str, p: Product| {
            let all = routed(&format!("grouped.{op}"));
            format!("{all} n{} k{}", p.cols, p.inner)
        };
        let head = |op: &str| {
            let bent = match (s.bend.is_none(), s.bend.cap) {
                (true, _) => "",
                (false, None) => " factor",
                (false, Some(_)) => " cap",
            };
            let (v, chunk) = (s.vocab, s.chunk);
            format!("head.{op} {t} rows{rows} c{c} v{v} chunk{chunk}{bent}")
        };
        let few = |op: &str| format!("{op} {t} rows{rows} n{}", s.labels);
        match self {
            Self::Embedding(o) => {
                let (positions, types) = (o.positions.is_some(), o.types.is_some());
                table("forward", &[(positions, " positions"), (types, " types")])
            }
            Self::EmbeddingBackward(o, _) => {
                let (positions, frozen) = (o.dpositions.is_some(), o.dtokens.is_none());
                let types = o.dtypes.is_some();
                let with = [
                    (positions, " positions"),
                    (types, " types"),
                    (frozen, FROZEN),
                ];
                table("backward", &with)
            }
            Self::RmsNorm(_) => norm("rmsnorm.forward", &[]),
            Self::RmsNormBackward(o) => {
                let (residual, frozen) = (o.residual.is_some(), o.dw.is_none());
                norm(
                    "rmsnorm.backward",
                    &[(residual, " residual"), (frozen, FROZEN)],
                )
            }
            Self::LayerNorm(_) => norm("layernorm.forward", &[]),
            Self::LayerNormBackward(o) => {
                let (residual, frozen) = (o.residual.is_some(), o.dw.is_none());
                norm(
                    "layernorm.backward",
                    &[(residual, " residual"), (frozen, FROZEN)],
                )
            }
            Self::Linear(o, dims) => {
                let (bias, residual) = (o.bias.is_some(), o.residual.is_some());
                product("forward", dims, &[(bias, " bias"), (residual, " residual")])
            }
            Self::LinearWeight(o, dims) => product("weight", dims, &[(o.db.is_some(), " bias")]),
            Self::LinearInput(_, dims) => product("input", dims, &[]),
            Self::LinearBias(_, dims) => product("bias", dims, &[]),
            Self::Add(o, width, _) => {
                let residual = if o.residual.is_some() {
                    " residual"
                } else {
                    ""
                };
                format!("add {t} rows{rows} c{width}{residual}")
            }
            Self::QkNorm(_) => rotary("qknorm.forward", &[]),
            Self::QkNormBackward(o) => rotary("qknorm.backward", &[(o.dwq.is_none(), FROZEN)]),
            Self::Rope(o, _) => rotary("rope.forward", &[(o.norm.is_some(), " norm")]),
            Self::RopeBackward(o, _) => {
                let frozen = o.norm.is_some_and(|norm| norm.dwq.is_none());
                rotary(
                    "rope.backward",
                    &[(o.norm.is_some(), " norm"), (frozen, FROZEN)],
                )
            }
            Self::Attention(_, mask) => attention("forward", mask),
            Self::AttentionBackward(_, mask) => attention("backward", mask),
            Self::CachedAttention(_, mask) => {
                format!("{} rows{rows}", attention("cached", mask))
            }
            Self::Relative(o, keys) => pair("forward", keys, o.bias.is_some()),
            Self::RelativeBackward(o, keys) => pair("backward", keys, o.bias.is_some()),
            Self::Positions(_) => positions("forward"),
            Self::PositionsBackward(_) => positions("backward"),
            Self::ShareAdd(o) => {
                let last = if o.sum.last { " last" } else { "" };
                format!("share.add {t} rows{} c{c}{last}", s.stack().other * s.batch)
            }
            Self::ShareRound(_) => format!("share.round {t} rows{rows} c{c}"),
            Self::Swiglu(_, Gate::Silu) => gated("swiglu.forward"),
            Self::Swiglu(_, Gate::Gelu) => gated("geglu.forward"),
            Self::SwigluBackward(_, Gate::Silu) => gated("swiglu.backward"),
            Self::SwigluBackward(_, Gate::Gelu) => gated("geglu.backward"),
            Self::Gelu(_, Form::Tanh) => gated("gelu.forward"),
            Self::Gelu(_, Form::Exact) => gated("gelu_exact.forward"),
            Self::Gelu(_, Form::Relu) => gated("relu.forward"),
            Self::GeluBackward(_, Form::Tanh) => gated("gelu.backward"),
            Self::GeluBackward(_, Form::Exact) => gated("gelu_exact.backward"),
            Self::GeluBackward(_, Form::Relu) => gated("relu.backward"),
            Self::Route(_) => routed("route.forward"),
            Self::RouteBackward(_) => routed("route.backward"),
            Self::Gather(_) => format!("{} c{c}", routed("experts.gather")),
            Self::Combine(_) => format!("{} c{c}", routed("experts.combine")),
            Self::ExpertsAct(_) => format!("{} f{}", routed("experts.act"), s.intermediate),
            Self::ExpertsActBackward(_) => {
                format!("{} f{}", routed("experts.act_backward"), s.intermediate)
            }
            Self::Grouped(_, p) => grouped("forward", p),
            Self::GroupedWeight(_, p) => grouped("weight", p),
            Self::GroupedInput(_, p) => grouped("input", p),
            Self::HeadTrain(o) => head(match o.dw {
                Some(_) => "train",
                None => "train frozen",
            }),
            Self::HeadLoss(_) => head("loss"),
            Self::HeadLogits(_) => head("logits"),
            Self::Tanh(_) => format!("tanh.forward {t} rows{rows} c{c}"),
            Self::TanhBackward(_) => format!("tanh.backward {t} rows{rows} c{c}"),
            Self::ClassesTrain(_) => few("classes.train"),
            Self::ClassesLoss(_) => few("classes.loss"),
            Self::ClassesValues(_) => few("classes.values"),
        }
    }

    /// Multiply-adds count two; of attention the pairs that are computed count: half of all, or those of a window.
    pub fn flops(self, s: &Sizes) -> Flops {
        let rows = s.rows as f64;
        let attention = |mask: Mask| rows * (mask.keys(s.seq as u32) * s.attention_width() as f64);
        // Twice the pairs, of causal ones half.
        let pairs = |keys: Keys| {
            let p = s.pair(keys);
            let both = if p.causal { 1.0 } else { 2.0 };
            both * rows * p.keys as f64 * s.attention_width() as f64
        };
        let logits = 2.0 * (s.hidden as f64) * (s.vocab as f64);
        Flops(match self {
            Self::Linear(_, dims) | Self::LinearWeight(_, dims) | Self::LinearInput(_, dims) => {
                2.0 * dims.rows as f64 * dims.inner as f64 * dims.cols as f64
            }
            // The rows of the experts that are chosen, whatever their number.
            Self::Grouped(_, p) | Self::GroupedWeight(_, p) | Self::GroupedInput(_, p) => {
                2.0 * s.routes().sorted() as f64 * p.inner as f64 * p.cols as f64
            }
            Self::Attention(_, mask) => 2.0 * attention(mask),
            Self::AttentionBackward(_, mask) => 5.0 * attention(mask),
            Self::CachedAttention(_, mask) => 2.0 * attention(mask),
            Self::Relative(_, keys) => 2.0 * pairs(keys),
            Self::RelativeBackward(_, keys) => 5.0 * pairs(keys),
            Self::HeadTrain(o) => rows * logits * o.dw.map_or(2.0, |_| 3.0),
            Self::HeadLoss(_) => rows * logits,
            Self::HeadLogits(_) => s.answers() as f64 * logits,
            _ => 0.0,
        })
    }

    /// The same for so many rows: of a chunk, or of a step of decoding those that hold anything.
    pub fn of_rows(self, rows: usize) -> Self {
        match self {
            Self::Linear(o, dims) => Self::Linear(o, Product { rows, ..dims }),
            Self::LinearWeight(o, dims) => Self::LinearWeight(o, Product { rows, ..dims }),
            Self::LinearInput(o, dims) => Self::LinearInput(o, Product { rows, ..dims }),
            Self::LinearBias(o, dims) => Self::LinearBias(o, Product { rows, ..dims }),
            other => other,
        }
    }

    /// Scratch that the kernel wants; in a step of decoding with any number of rows.
    pub fn workspace(self, s: &Sizes) -> Bytes {
        if s.answers.is_none() {
            return self.scratch(s);
        }
        let most = match self {
            Self::HeadLogits(_) => s.answers(),
            _ => s.rows,
        };
        let rows = (0..=most.ilog2()).map(|i| 1 << i);
        let each = rows.map(|rows| self.of_rows(rows).scratch(&s.of_rows(rows)));
        each.max().unwrap_or(Bytes::ZERO)
    }

    fn scratch(self, s: &Sizes) -> Bytes {
        let m = s.make;
        let bytes = match self {
            Self::EmbeddingBackward(o, _) => {
                let tables = [
                    o.dtokens.map(|_| s.vocab),
                    o.dpositions.map(|_| s.positions),
                    o.dtypes.map(|_| s.tables().types),
                ];
                let each = tables.into_iter().flatten();
                each.map(|table| embedding::workspace(s.rows, table, m))
                    .max()
                    .unwrap_or(0)
            }
            Self::RmsNormBackward(_) => rmsnorm::workspace(s.rows, s.hidden, m),
            Self::LayerNormBackward(_) => layernorm::workspace(s.rows, s.hidden, m),
            Self::Linear(_, dims)
            | Self::LinearWeight(_, dims)
            | Self::LinearInput(_, dims)
            | Self::LinearBias(_, dims) => matmul::workspace(dims.dims(), s.dtype, m),
            Self::Grouped(_, p) | Self::GroupedWeight(_, p) | Self::GroupedInput(_, p) => {
                grouped::workspace(s.grouped(p), m)
            }
            Self::Route(_) => s.routes().workspace(m),
            Self::QkNormBackward(_) => qknorm::workspace(s.rows, s.heads, m),
            Self::RopeBackward(o, _) => rope::workspace(s.rows, s.heads, o.norm.is_some(), m),
            Self::Attention(_, mask) | Self::AttentionBackward(_, mask) => {
                attention::workspace(&s.attn(mask), s.dtype, m)
            }
            Self::Relative(_, keys) | Self::RelativeBackward(_, keys) => {
                relative::workspace(&s.pair(keys), m)
            }
            Self::CachedAttention(_, mask) => attention::cached_workspace(&s.attn(mask), s.rows, m),
            Self::HeadTrain(_) | Self::HeadLoss(_) | Self::HeadLogits(_) => {
                head::workspace(&s.head(), s.dtype, m)
            }
            Self::ClassesTrain(_) | Self::ClassesLoss(_) => {
                classes::workspace(&s.classes(), s.dtype)
            }
            _ => 0,
        };
        Bytes(bytes as u64)
    }

    /// Bytes read and written, given `operands`: the sum over the operands where each is passed
    /// over once (a gradient read and written).
    ///
    /// Tables are touched in the rows that occur; the head passes over its matrix in every chunk.
    pub fn touched(self, s: &Sizes, operands: Bytes) -> Bytes {
        let e = s.dtype.size();
        let (rows, c, v) = (s.rows as u64, s.hidden as u64, s.vocab as u64);
        let chunks = rows.div_ceil(s.chunk as u64);
        Bytes(match self {
            Self::Embedding(o) => {
                let tables = [o.positions.is_some(), o.types.is_some()];
                rows * c * e * (2 + tables.map(u64::from).iter().sum::<u64>())
            }
            Self::EmbeddingBackward(o, tied) => {
                let add = |table: u64| table * c * 4 + rows * c * (8 + e);
                let tokens = if tied.0 { 0 } else { v };
                o.dtokens.map_or(0, |_| add(tokens))
                    + o.dpositions.map_or(0, |_| add(s.positions as u64))
                    + o.dtypes.map_or(0, |_| add(s.tables().types as u64))
            }
            // Logits: written, read and overwritten with their gradient, read twice.
            Self::HeadTrain(o) => {
                let (sum, reads) = o.dw.map_or((0, 4), |_| (8, 5));
                chunks * v * c * (2 * e + sum) + rows * v * reads * e + rows * c * 3 * e
            }
            Self::HeadLoss(_) => chunks * v * c * e + rows * v * 2 * e + rows * c * e,
            Self::HeadLogits(_) => v * c * e + s.answers() as u64 * (v * 4 + c * e),
            _ => operands.0,
        })
    }
}
