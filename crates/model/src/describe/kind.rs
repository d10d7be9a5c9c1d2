//! The operations of a decoder: what each computes, costs and expects as operands.

use lowtide_device::{Make, Src};
use lowtide_kernels::attention::{Attn, Engine};
use lowtide_kernels::head::Head;
use lowtide_kernels::matmul::Dims;
use lowtide_kernels::rope::Heads;
use lowtide_kernels::{attention, embedding, head, layernorm, matmul, rmsnorm, rope};
use lowtide_units::{Bytes, Flops};
use lowtide_workload::{Dtype, ModelShape};

use super::Options;

/// Every size that an operation may need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// B·T.
    pub rows: usize,
    pub batch: usize,
    pub seq: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: Heads,
    pub vocab: usize,
    /// Rows of the position table (GPT-2).
    pub positions: usize,
    /// Rows of logits at a time.
    pub chunk: usize,
    pub eps: f32,
    pub dtype: Dtype,
    /// Scratch differs between makes of device.
    pub make: Make,
    pub attention: Engine,
}

impl Sizes {
    pub fn new(shape: &ModelShape, options: &Options) -> Self {
        Self {
            rows: options.batch.rows() as usize,
            batch: options.batch.micro_batch as usize,
            seq: options.batch.seq as usize,
            hidden: shape.hidden as usize,
            intermediate: shape.intermediate as usize,
            heads: Heads {
                heads: shape.heads as usize,
                kv_heads: shape.kv_heads as usize,
                head_dim: shape.head_dim as usize,
            },
            vocab: shape.vocab as usize,
            positions: shape.max_positions as usize,
            chunk: options.chunk_rows(shape) as usize,
            eps: shape.norm_eps as f32,
            dtype: options.precision,
            make: options.make,
            attention: options.attention,
        }
    }

    /// H·D.
    pub fn attention_width(&self) -> usize {
        self.heads.heads * self.heads.head_dim
    }

    /// (H + 2·KV)·D.
    pub fn qkv_width(&self) -> usize {
        (self.heads.heads + 2 * self.heads.kv_heads) * self.heads.head_dim
    }

    pub fn attn(&self) -> Attn {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Attn {
            batch: self.batch,
            seq: self.seq,
            heads,
            kv_heads,
            head_dim,
            scale,
            engine: self.attention,
        }
    }

    pub fn head(&self) -> Head {
        Head {
            rows: self.rows,
            hidden: self.hidden,
            vocab: self.vocab,
            chunk: self.chunk,
        }
    }
}

/// What an operation computes. Operands stand in this order, those in brackets where the flag
/// says so; `y` and `dx` are written, gradients (`dw`, `db`) accumulated, the others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// y, inputs, tokens [, positions]
    Embedding { positions: bool },
    /// dtokens [, dpositions], dy, inputs
    EmbeddingBackward { positions: bool, tied: bool },
    /// y, rstd, x, w
    RmsNorm,
    /// dx, dw, dy, x, rstd, w [, residual]
    RmsNormBackward { residual: bool },
    /// y, mean, rstd, x, w, b
    LayerNorm,
    /// dx, dw, db, dy, x, mean, rstd, w [, residual]
    LayerNormBackward { residual: bool },
    /// y, x, w [, bias] [, residual]
    Linear {
        dims: Product,
        bias: bool,
        residual: bool,
    },
    /// dw [, db], dy, x
    LinearWeight { dims: Product, bias: bool },
    /// dx, dy, w
    LinearInput { dims: Product },
    /// y, x, inputs [, qk_rstd (written), q_norm, k_norm]
    Rope { norm: bool },
    /// dx, dy, inputs [, dq_norm, dk_norm, x, qk_rstd, q_norm, k_norm]
    RopeBackward { norm: bool },
    /// out, lse, qkv, inputs
    Attention,
    /// d_qkv, d_out, qkv, out, lse, inputs
    AttentionBackward,
    /// y, gate_up
    Swiglu,
    /// d_gate_up, dy, gate_up
    SwigluBackward,
    /// y, x
    Gelu,
    /// dx, dy, x
    GeluBackward,
    /// dh, dw, loss, h, w, inputs
    HeadTrain,
    /// loss, h, w, inputs
    HeadLoss,
    /// logits, h, w, inputs
    HeadLogits,
}

/// Sizes of a matrix product: in features and out features, over B·T rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    pub inner: usize,
    pub cols: usize,
}

impl Product {
    pub fn dims(self, sizes: &Sizes) -> Dims {
        Dims {
            rows: sizes.rows,
            inner: self.inner,
            cols: self.cols,
        }
    }
}

impl Kind {
    /// Operation and sizes, equal for equal work.
    pub fn key(self, s: &Sizes) -> String {
        let (t, rows, c) = (s.dtype.name(), s.rows, s.hidden);
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = s.heads;
        let norm = |op: &str, residual: bool| {
            format!(
                "{op} {t} rows{rows} c{c}{}",
                if residual { " residual" } else { "" }
            )
        };
        let product = |op: &str, p: Product, with: &[(bool, &str)]| {
            let with: String = with.iter().filter(|w| w.0).map(|w| w.1).collect();
            format!("matmul.{op} {t} m{rows} n{} k{}{with}", p.cols, p.inner)
        };
        let table = |op: &str| format!("embedding.{op} {t} rows{rows} c{c} v{}", s.vocab);
        let rotary = |op: &str, norm: bool| {
            let with = if norm { " norm" } else { "" };
            format!("rope.{op} {t} rows{rows} h{heads} kv{kv_heads} d{head_dim}{with}")
        };
        let attention = |op: &str| {
            let (b, seq) = (s.batch, s.seq);
            format!("attention.{op} {t} b{b} t{seq} h{heads} kv{kv_heads} d{head_dim}")
        };
        let gated = |op: &str| format!("{op} {t} rows{rows} f{}", s.intermediate);
        let head = |op: &str| {
            format!(
                "head.{op} {t} rows{rows} c{c} v{} chunk{}",
                s.vocab, s.chunk
            )
        };
        match self {
            Self::Embedding { positions: false } => table("forward"),
            Self::Embedding { positions: true } => table("forward") + " positions",
            Self::EmbeddingBackward {
                positions: false, ..
            } => table("backward"),
            Self::EmbeddingBackward {
                positions: true, ..
            } => table("backward") + " positions",
            Self::RmsNorm => norm("rmsnorm.forward", false),
            Self::RmsNormBackward { residual } => norm("rmsnorm.backward", residual),
            Self::LayerNorm => norm("layernorm.forward", false),
            Self::LayerNormBackward { residual } => norm("layernorm.backward", residual),
            Self::Linear {
                dims,
                bias,
                residual,
            } => product("forward", dims, &[(bias, " bias"), (residual, " residual")]),
            Self::LinearWeight { dims, bias } => product("weight", dims, &[(bias, " bias")]),
            Self::LinearInput { dims } => product("input", dims, &[]),
            Self::Rope { norm } => rotary("forward", norm),
            Self::RopeBackward { norm } => rotary("backward", norm),
            Self::Attention => attention("forward"),
            Self::AttentionBackward => attention("backward"),
            Self::Swiglu => gated("swiglu.forward"),
            Self::SwigluBackward => gated("swiglu.backward"),
            Self::Gelu => gated("gelu.forward"),
            Self::GeluBackward => gated("gelu.backward"),
            Self::HeadTrain => head("train"),
            Self::HeadLoss => head("loss"),
            Self::HeadLogits => head("logits"),
        }
    }

    /// Multiply-adds count two; causal attention counts the half that is computed.
    pub fn flops(self, s: &Sizes) -> Flops {
        let rows = s.rows as f64;
        let attention = rows * (s.seq * s.attention_width()) as f64;
        let logits = 2.0 * (s.hidden as f64) * (s.vocab as f64);
        Flops(match self {
            Self::Linear { dims, .. }
            | Self::LinearWeight { dims, .. }
            | Self::LinearInput { dims } => 2.0 * rows * dims.inner as f64 * dims.cols as f64,
            Self::Attention => 2.0 * attention,
            Self::AttentionBackward => 5.0 * attention,
            Self::HeadTrain => 3.0 * rows * logits,
            Self::HeadLoss => rows * logits,
            Self::HeadLogits => s.batch as f64 * logits,
            _ => 0.0,
        })
    }

    /// Scratch that the kernel wants.
    pub fn workspace(self, s: &Sizes) -> Bytes {
        let m = s.make;
        let bytes = match self {
            Self::EmbeddingBackward { positions, .. } => {
                let table = if positions { s.positions } else { 0 };
                embedding::workspace(s.rows, s.vocab, m).max(embedding::workspace(s.rows, table, m))
            }
            Self::RmsNormBackward { .. } => rmsnorm::workspace(s.rows, s.hidden, m),
            Self::LayerNormBackward { .. } => layernorm::workspace(s.rows, s.hidden, m),
            Self::Linear { dims, .. }
            | Self::LinearWeight { dims, .. }
            | Self::LinearInput { dims } => matmul::workspace(dims.dims(s), s.dtype, m),
            Self::RopeBackward { norm } => rope::workspace(s.rows, s.heads, norm, m),
            Self::Attention | Self::AttentionBackward => {
                attention::workspace(&s.attn(), s.dtype, m)
            }
            Self::HeadTrain | Self::HeadLoss | Self::HeadLogits => {
                head::workspace(&s.head(), s.dtype, m)
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
            Self::Embedding { positions } => rows * c * e * if positions { 3 } else { 2 },
            Self::EmbeddingBackward { positions, tied } => {
                let add = |table: u64| table * c * 4 + rows * c * (8 + e);
                let tokens = if tied { 0 } else { v };
                add(tokens)
                    + if positions {
                        add(s.positions as u64)
                    } else {
                        0
                    }
            }
            // Logits: written, read and overwritten with their gradient, read twice.
            Self::HeadTrain => chunks * v * c * (2 * e + 8) + rows * v * 5 * e + rows * c * 3 * e,
            Self::HeadLoss => chunks * v * c * e + rows * v * 2 * e + rows * c * e,
            Self::HeadLogits => v * c * e + s.batch as u64 * (v * 4 + c * e),
            _ => operands.0,
        })
    }
}

/// Four planes of B·T `i32`: what [`lowtide_workload::Batch::input_bytes`] lays out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub tokens: Src<'a>,
    pub labels: Src<'a>,
    pub positions: Src<'a>,
    pub doc_start: Src<'a>,
}

impl<'a> Inputs<'a> {
    pub fn of(view: Src<'a>, rows: usize) -> Self {
        assert_eq!(
            view.bytes(),
            16 * rows,
            "bytes of the inputs of {rows} tokens"
        );
        let plane = |i: usize| view.part(4 * rows * i, 4 * rows);
        Self {
            tokens: plane(0),
            labels: plane(1),
            positions: plane(2),
            doc_start: plane(3),
        }
    }
}
