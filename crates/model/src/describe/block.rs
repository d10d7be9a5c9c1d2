//! One transformer layer, both directions.
//!
//! One file because a block is read from top to bottom, and what it is built of has no other use.
//!
//! Forward writes every tensor once. Backward is forward read from the bottom up; each product's
//! weight gradient comes before its input gradient, so that the saved input is dead before the
//! next gradient needs room.
//!
//! One file because both directions of a block are read beside each other.

use lowtide_kernels::operands::{Inputs, Kept, Read};
use lowtide_kernels::swiglu::Gate;
use lowtide_kernels::{attention, gelu, layernorm, matmul, qknorm, rmsnorm, rope, swiglu};
use lowtide_units::Bytes;
use lowtide_workload::{LocalId, Unit, UnitKind};

use super::kind::{Kind, Local, Product};
use super::{Builder, Factored, Model, Phase, UnitKinds, read, weight, write};
use crate::families::{Branches, Layer, Mlp, Norm, QkNorm};
use crate::lsp::Side;
use crate::params::Part;

/// Statistics of a norm: mean (layer norm only) and reciprocal root, one f32 a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics {
    mean: Option<LocalId>,
    rstd: LocalId,
}

impl Builder<'_> {
    /// Local tensors for a norm's statistics.
    pub(super) fn statistics(&mut self, suffix: &str, norm: Norm) -> Statistics {
        let bytes = self.model.rows_f32(1);
        let mean = (norm == Norm::Layer).then(|| self.local(&format!("mean{suffix}"), bytes));
        let rstd = self.local(&format!("rstd{suffix}"), bytes);
        Statistics { mean, rstd }
    }

    /// `y` = norm(`x`), with the parameters `part` and, for a layer norm, its bias.
    pub(super) fn norm(
        &mut self,
        phase: Phase,
        part: Part,
        y: LocalId,
        stats: Statistics,
        x: LocalId,
    ) {
        let (y, rstd, x) = (write(y), write(stats.rstd), read(x));
        let w = weight(self.param(part));
        let kind = match stats.mean {
            None => Kind::RmsNorm(rmsnorm::Forward { y, rstd, x, w }),
            Some(mean) => Kind::LayerNorm(layernorm::Forward {
                y,
                mean: write(mean),
                rstd,
                x,
                w,
                b: self.bias(part).map(weight),
            }),
        };
        self.op(phase, part.name(), kind);
    }

    /// `dx` = gradient of the norm's input `x` [+ `residual`].
    pub(super) fn norm_backward(
        &mut self,
        part: Part,
        dx: LocalId,
        dy: LocalId,
        (x, stats): (LocalId, Statistics),
        residual: Option<LocalId>,
    ) {
        let param = self.param(part);
        let (dx, dw, dy) = (write(dx), self.add(param), read(dy));
        let (x, rstd, w) = (read(x), read(stats.rstd), weight(param));
        let residual = residual.map(read);
        let kind = match stats.mean {
            None => Kind::RmsNormBackward(rmsnorm::Backward {
                dx,
                dw,
                dy,
                x,
                rstd,
                w,
                residual,
            }),
            Some(mean) => Kind::LayerNormBackward(layernorm::Backward {
                dx,
                dw,
                db: self.bias(part).and_then(|bias| self.add(bias)),
                dy,
                x,
                mean: read(mean),
                rstd,
                w,
                residual,
            }),
        };
        self.op(Phase::Backward, part.name(), kind);
    }

    /// The matrix `part` as products read it: the parameter, or what is made of base, core and projector, here, into a
    /// tensor of its own. It is made in each phase: kept, it would take a second copy of the weights.
    fn matrix(&mut self, phase: Phase, part: Part, dims: Product) -> Read {
        let base = self.param(part);
        let Some(f) = self.factored(part) else {
            return weight(base);
        };
        let (core, projector) = (weight(f.core), weight(f.projector));
        let (x, w) = match f.factors.side {
            Side::Input => (core, projector),
            Side::Output => (projector, core),
        };
        let suffix = if phase == Phase::Backward { "'" } else { "" };
        let bytes = self.model.numbers(dims.cols * dims.inner);
        let made = self.local(&format!("w_{}{suffix}", part.name()), bytes);
        let operands = matmul::Forward {
            y: write(made),
            x,
            w,
            bias: None,
            residual: Some(weight(base)),
        };
        let dims = Product {
            rows: dims.cols,
            inner: f.factors.rank as usize,
            cols: dims.inner,
        };
        let name = format!("{}.made", part.name());
        self.op(phase, &name, Kind::Linear(operands, dims));
        read(made)
    }

    /// `y` = `x` · `part`ᵀ [+ its bias] [+ `residual`].
    pub(super) fn linear(
        &mut self,
        part: Part,
        y: LocalId,
        x: LocalId,
        dims: Product,
        residual: Option<LocalId>,
    ) {
        self.linear_in(Phase::Forward, part, y, (x, dims), residual);
    }

    /// The same in a phase.
    pub(super) fn linear_in(
        &mut self,
        phase: Phase,
        part: Part,
        y: LocalId,
        (x, dims): (LocalId, Product),
        residual: Option<LocalId>,
    ) {
        let operands = matmul::Forward {
            y: write(y),
            x: read(x),
            w: self.matrix(phase, part, dims),
            bias: self.bias(part).map(weight),
            residual: residual.map(read),
        };
        self.op(phase, part.name(), Kind::Linear(operands, dims));
    }

    /// Gradients of `part` [and its bias], then `dx` = `dy` · `part`.
    pub(super) fn linear_backward(
        &mut self,
        part: Part,
        dx: LocalId,
        dy: LocalId,
        x: LocalId,
        dims: Product,
    ) {
        let name = part.name();
        match self.factored(part) {
            None => self.gradients(part, dy, x, dims),
            Some(f) => self.core_gradient(part, f, (dy, x), dims),
        }
        let operands = matmul::Input {
            dx: write(dx),
            dy: read(dy),
            w: self.matrix(Phase::Backward, part, dims),
        };
        let kind = Kind::LinearInput(operands, dims);
        self.op(Phase::Backward, &format!("{name}.input"), kind);
    }

    /// Gradients of `part` [and its bias].
    fn gradients(&mut self, part: Part, dy: LocalId, x: LocalId, dims: Product) {
        let (w, name) = (self.param(part), part.name());
        let db = self.bias(part).and_then(|bias| self.add(bias));
        match (self.add(w), db) {
            (Some(dw), db) => {
                let (dy, x) = (read(dy), read(x));
                let kind = Kind::LinearWeight(matmul::Weight { dw, db, dy, x }, dims);
                self.op(Phase::Backward, &format!("{name}.weight"), kind);
            }
            (None, Some(db)) => {
                let kind = Kind::LinearBias(matmul::Bias { db, dy: read(dy) }, dims);
                self.op(Phase::Backward, &format!("{name}.bias"), kind);
            }
            (None, None) => {}
        }
    }

    /// Gradients of the core of `part`, dyᵀ·(x·Q) or xᵀ·(dy·P), [and of the bias to `part`]: the chain rule for the
    /// matrix that [`Self::matrix`] makes, whose own gradient nobody needs.
    fn core_gradient(
        &mut self,
        part: Part,
        f: Factored,
        (dy, x): (LocalId, LocalId),
        dims: Product,
    ) {
        let name = part.name();
        let (rows, rank) = (dims.rows, f.factors.rank as usize);
        let (wide, projected, other) = match f.factors.side {
            Side::Input => (x, dims.inner, dims.cols),
            Side::Output => (dy, dims.cols, dims.inner),
        };
        let narrow = self.local(&format!("{name}.narrow"), self.model.rows(rank));
        let operands = matmul::Input {
            dx: write(narrow),
            dy: read(wide),
            w: weight(f.projector),
        };
        let sizes = Product {
            rows,
            inner: rank,
            cols: projected,
        };
        let kind = Kind::LinearInput(operands, sizes);
        self.op(Phase::Backward, &format!("{name}.narrow"), kind);

        let db = self.bias(part).and_then(|bias| self.add(bias));
        let dw = self.add(f.core).expect("a core is trained");
        let sizes = Product {
            cols: other,
            ..sizes
        };
        let (operands, apart) = match f.factors.side {
            Side::Input => {
                let (dy, x) = (read(dy), read(narrow));
                (matmul::Weight { dw, db, dy, x }, None)
            }
            Side::Output => {
                let (dy, x) = (read(x), read(narrow));
                (
                    matmul::Weight {
                        dw,
                        db: None,
                        dy,
                        x,
                    },
                    db,
                )
            }
        };
        let kind = Kind::LinearWeight(operands, sizes);
        self.op(Phase::Backward, &format!("{name}.core"), kind);
        if let Some(db) = apart {
            let kind = Kind::LinearBias(matmul::Bias { db, dy: read(dy) }, dims);
            self.op(Phase::Backward, &format!("{name}.bias"), kind);
        }
    }

    /// Rotates (and with `qk_rstd` first norms) q and k.
    fn rope(&mut self, y: LocalId, x: LocalId, qk_rstd: Option<LocalId>, local: Local) {
        let norm = qk_rstd.map(|rstd| rope::QkNorm {
            rstd: write(rstd),
            wq: weight(self.param(Part::QNorm)),
            wk: weight(self.param(Part::KNorm)),
        });
        let operands = rope::Forward {
            y: write(y),
            x: read(x),
            inputs: Inputs,
            norm,
        };
        self.op(Phase::Forward, "rope", Kind::Rope(operands, local));
    }

    fn rope_backward(
        &mut self,
        dx: LocalId,
        dy: LocalId,
        (x, qk_rstd): (LocalId, Option<LocalId>),
        local: Local,
    ) {
        let norm = qk_rstd.map(|rstd| {
            let (q, k) = (self.param(Part::QNorm), self.param(Part::KNorm));
            rope::QkNormBackward {
                dwq: self.add(q),
                dwk: self.add(k),
                x: read(x),
                rstd: read(rstd),
                wq: weight(q),
                wk: weight(k),
            }
        });
        let operands = rope::Backward {
            dx: write(dx),
            dy: read(dy),
            inputs: Inputs,
            norm,
        };
        let kind = Kind::RopeBackward(operands, local);
        self.op(Phase::Backward, "rope", kind);
    }

    /// Norms all queries, and all keys.
    fn whole_norm(&mut self, y: LocalId, x: LocalId, rstd: LocalId) {
        let operands = qknorm::Forward {
            y: write(y),
            rstd: write(rstd),
            x: read(x),
            wq: weight(self.param(Part::QNorm)),
            wk: weight(self.param(Part::KNorm)),
        };
        self.op(Phase::Forward, "qk_norm", Kind::QkNorm(operands));
    }

    fn whole_norm_backward(&mut self, dx: LocalId, dy: LocalId, x: LocalId, rstd: LocalId) {
        let (q, k) = (self.param(Part::QNorm), self.param(Part::KNorm));
        let operands = qknorm::Backward {
            dx: write(dx),
            dwq: self.add(q),
            dwk: self.add(k),
            dy: read(dy),
            x: read(x),
            rstd: read(rstd),
            wq: weight(q),
            wk: weight(k),
        };
        self.op(Phase::Backward, "qk_norm", Kind::QkNormBackward(operands));
    }

    /// The MLP between its products, on `pre`: gate and up of a gated one, or up alone.
    pub(super) fn activation(&mut self, mlp: Mlp, act: LocalId, pre: LocalId) {
        let (y, x) = (write(act), read(pre));
        let gated = swiglu::Forward { y, gate_up: x };
        let (name, kind) = match mlp {
            Mlp::Swiglu | Mlp::Experts => ("swiglu", Kind::Swiglu(gated, Gate::Silu)),
            Mlp::Geglu => ("geglu", Kind::Swiglu(gated, Gate::Gelu)),
            Mlp::Gelu(form) => ("gelu", Kind::Gelu(gelu::Forward { y, x }, form)),
        };
        self.op(Phase::Forward, name, kind);
    }

    pub(super) fn activation_backward(
        &mut self,
        mlp: Mlp,
        d_pre: LocalId,
        d_act: LocalId,
        pre: LocalId,
    ) {
        let (dx, dy, x) = (write(d_pre), read(d_act), read(pre));
        let gated = swiglu::Backward {
            d_gate_up: dx,
            dy,
            gate_up: x,
        };
        let (name, kind) = match mlp {
            Mlp::Swiglu | Mlp::Experts => ("swiglu", Kind::SwigluBackward(gated, Gate::Silu)),
            Mlp::Geglu => ("geglu", Kind::SwigluBackward(gated, Gate::Gelu)),
            Mlp::Gelu(form) => {
                let operands = gelu::Backward { dx, dy, x };
                ("gelu", Kind::GeluBackward(operands, form))
            }
        };
        self.op(Phase::Backward, name, kind);
    }
}

/// Block `l`, as `layer` has it: attention and MLP, each added to the residual stream. Long because it is read from
/// top to bottom as the block runs, and backward as forward from the bottom up.
pub(super) fn block(model: &Model<'_>, layer: Layer, l: u32) -> (Unit, UnitKinds) {
    let mut b = Builder::new(model, format!("blocks.{l}"), UnitKind::Block, l + 1);
    let s = &model.sizes;
    let (c, f, q, all) = (s.hidden, s.intermediate, s.attention_width(), s.qkv_width());
    // The MLP's first product: gate and up of a gated MLP side by side, or up alone.
    let (wide, up) = match layer.mlp {
        Mlp::Swiglu | Mlp::Geglu | Mlp::Experts => (2 * f, Part::GateUp),
        Mlp::Gelu(_) => (f, Part::Up),
    };

    // Forward's tensors, (B·T, ·).
    let x = b.local("x", model.rows(c));
    let before = layer.norms.before();
    let h1 = if before {
        b.local("h1", model.rows(c))
    } else {
        x
    };
    let stats1 = before.then(|| b.statistics("1", layer.norm));
    let whole = (layer.qk_norm == QkNorm::Whole).then(|| {
        let made = b.local("qkv_made", model.rows(all));
        (made, b.local("qkv_rstd", model.rows_f32(2)))
    });
    let qkv_raw = layer.rotated.then(|| b.local("qkv_raw", model.rows(all)));
    let qkv = b.local("qkv", model.rows(all));
    let qk_rstd = (layer.qk_norm == QkNorm::Heads)
        .then(|| b.local("qk_rstd", model.rows_f32(s.heads.heads + s.heads.kv_heads)));
    let att = b.local("att", model.rows(q));
    let lse = b.local("lse", model.rows_f32(s.heads.heads)); // (B, H, T)
    let x2 = b.local("x2", model.rows(c));
    let sum1 = b.sum("1", layer);
    // The residual stream that the MLP reads, and whether by a norm of its own.
    let (from, own) = match layer.branches {
        Branches::InTurn => (x2, before),
        Branches::Parallel => (x, before),
        Branches::ParallelOneNorm => (x, false),
    };
    let h2 = match layer.branches {
        Branches::ParallelOneNorm => h1,
        _ if own => b.local("h2", model.rows(c)),
        _ => from,
    };
    let stats2 = own.then(|| b.statistics("2", layer.norm));
    let dense = (layer.mlp != Mlp::Experts).then(|| {
        let pre = b.local(up.name(), model.rows(wide));
        (pre, b.local("act", model.rows(f)))
    });
    let y = b.local("y", model.rows(c));
    let sum2 = b.sum("2", layer);

    let product = |inner, cols| Product {
        rows: s.rows,
        inner,
        cols,
    };
    let (qkv_dims, o_dims) = (product(c, all), product(q, c));
    let (up_dims, down_dims) = (product(c, wide), product(f, c));

    let (o, down) = ((Part::O, Part::Norm1After), (Part::Down, Part::Norm2After));

    if let Some(stats) = stats1 {
        b.norm(Phase::Forward, Part::Norm1, h1, stats, x);
    }
    let raw = qkv_raw.unwrap_or(qkv);
    let made = whole.map_or(raw, |(made, _)| made);
    b.linear(Part::Qkv, made, h1, qkv_dims, None);
    if let Some((made, rstd)) = whole {
        b.whole_norm(raw, made, rstd);
    }
    if let Some(raw) = qkv_raw {
        b.rope(qkv, raw, qk_rstd, Local(layer.local));
    }
    let kind = match s.answers {
        None => {
            let operands = attention::Forward {
                out: write(att),
                lse: write(lse),
                qkv: read(qkv),
                inputs: Inputs,
            };
            Kind::Attention(operands, layer.mask)
        }
        Some(_) => {
            let kept = attention::cache_bytes(&s.attn(layer.mask), s.dtype);
            b.unit.cache = Bytes(kept as u64);
            let operands = attention::Cached {
                out: write(att),
                cache: Kept,
                qkv: read(qkv),
                inputs: Inputs,
            };
            Kind::CachedAttention(operands, layer.mask)
        }
    };
    b.op(Phase::Forward, "attention", kind);
    let to = sum1.map_or(x2, |(sum, _)| sum);
    let o_end = b.branch_end(layer, o, to, (att, o_dims), x);
    b.sum_norm(Part::Norm1, x2, sum1);
    if let Some(stats) = stats2 {
        b.norm(Phase::Forward, Part::Norm2, h2, stats, from);
    }
    let (mut routed, mut down_end) = (None, None);
    if let Some((pre, act)) = dense {
        b.linear(up, pre, h2, up_dims, None);
        b.activation(layer.mlp, act, pre);
        let to = sum2.map_or(y, |(sum, _)| sum);
        down_end = b.branch_end(layer, down, to, (act, down_dims), x2);
        b.sum_norm(Part::Norm2, y, sum2);
    } else {
        routed = Some(b.experts(y, h2, x2));
    }

    // Backward's tensors, (B·T, ·).
    let dy = b.local("dy", model.rows(c));
    let d_sum2 = b.sum_norm_backward(Part::Norm2, dy, sum2);
    let d_dense = dense.map(|(pre, act)| {
        let d_act = b.local("d_act", model.rows(f));
        let d_pre = b.local(&format!("d_{}", up.name()), model.rows(wide));
        (pre, act, d_pre, d_act)
    });
    let d_h2 = b.local("d_h2", model.rows(c));
    let one_norm = layer.branches == Branches::ParallelOneNorm;
    let d_x2 = (!one_norm).then(|| b.local("d_x2", model.rows(c)));
    let d_att = b.local("d_att", model.rows(q));
    let d_qkv = b.local("d_qkv", model.rows(all));
    let d_raw = layer.rotated.then(|| b.local("d_qkv_raw", model.rows(all)));
    let d_made = whole.map(|_| b.local("d_qkv_made", model.rows(all)));
    let d_h1 = b.local("d_h1", model.rows(c));
    let d_h = one_norm.then(|| b.local("d_h", model.rows(c)));
    let dx = b.local("dx", model.rows(c));

    if let Some((pre, act, d_pre, d_act)) = d_dense {
        let d_down = b.branch_end_backward(layer, down, d_sum2, down_end);
        b.linear_backward(Part::Down, d_act, d_down, act, down_dims);
        b.activation_backward(layer.mlp, d_pre, d_act, pre);
        b.linear_backward(up, d_h2, d_pre, h2, up_dims);
    }
    if let Some(routed) = routed {
        b.experts_backward(d_h2, dy, h2, routed);
    }
    if let Some(d_x2) = d_x2 {
        b.branch_start_backward(Part::Norm2, d_x2, d_h2, (from, stats2), d_sum2);
    }
    // What attention is added to: what the MLP reads, or the block's result alone.
    let d_sum = match (layer.branches, d_x2) {
        (Branches::InTurn, Some(d_x2)) => b.sum_norm_backward(Part::Norm1, d_x2, sum1),
        _ => dy,
    };
    let d_o = b.branch_end_backward(layer, o, d_sum, o_end);
    b.linear_backward(Part::O, d_att, d_o, att, o_dims);
    let operands = attention::Backward {
        d_qkv: write(d_qkv),
        d_out: read(d_att),
        qkv: read(qkv),
        out: read(att),
        lse: read(lse),
        inputs: Inputs,
    };
    let kind = Kind::AttentionBackward(operands, layer.mask);
    b.op(Phase::Backward, "attention", kind);
    if let (Some(raw), Some(d_raw)) = (qkv_raw, d_raw) {
        b.rope_backward(d_raw, d_qkv, (raw, qk_rstd), Local(layer.local));
    }
    let mut d_product = d_raw.unwrap_or(d_qkv);
    if let (Some((made, rstd)), Some(d_made)) = (whole, d_made) {
        b.whole_norm_backward(d_made, d_product, made, rstd);
        d_product = d_made;
    }
    b.linear_backward(Part::Qkv, d_h1, d_product, h1, qkv_dims);
    if let Some(d_h) = d_h {
        let named = (Phase::Backward, "norm1.both");
        b.add_up(named, d_h, d_h1, Some(d_h2), 1.0);
    }
    let residual = match (sum1, d_x2) {
        (Some(_), _) => d_sum,
        (None, d_x2) => d_x2.unwrap_or(dy),
    };
    let d_h1 = d_h.unwrap_or(d_h1);
    b.branch_start_backward(Part::Norm1, dx, d_h1, (x, stats1), residual);

    b.reads(l, x, dx);
    (b.unit.output, b.unit.d_output) = (Some(y), Some(dy));
    b.done(l + 1)
}
