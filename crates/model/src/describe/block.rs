//! One transformer layer, both directions.
//!
//! Forward writes every tensor once. Backward is forward read from the bottom up; each product's
//! weight gradient comes before its input gradient, so that the saved input is dead before the
//! next gradient needs room.

use lowtide_workload::{Family, Unit, UnitKind};

use super::kind::{Kind, Product};
use super::{Builder, Model, Phase, UnitKinds, gradient, inputs, read, weight, write};

/// Statistics of a norm: mean (layer norm only) and reciprocal root, one f32 a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics {
    mean: Option<u16>,
    rstd: u16,
}

impl Builder<'_> {
    /// Local tensors for a norm's statistics.
    pub(super) fn statistics(&mut self, suffix: &str, layer_norm: bool) -> Statistics {
        let bytes = self.model.rows_f32(1);
        let mean = layer_norm.then(|| self.local(&format!("mean{suffix}"), bytes));
        let rstd = self.local(&format!("rstd{suffix}"), bytes);
        Statistics { mean, rstd }
    }

    /// `y` = norm(`x`), with the parameters `name` and, for a layer norm, `name_bias`.
    pub(super) fn norm(&mut self, phase: Phase, name: &str, y: u16, stats: Statistics, x: u16) {
        let w = weight(self.param(name));
        match stats.mean {
            None => {
                let operands = vec![write(y), write(stats.rstd), read(x), w];
                self.op(phase, name, Kind::RmsNorm, operands);
            }
            Some(mean) => {
                let b = weight(self.param(&format!("{name}_bias")));
                let operands = vec![write(y), write(mean), write(stats.rstd), read(x), w, b];
                self.op(phase, name, Kind::LayerNorm, operands);
            }
        }
    }

    /// `dx` = gradient of the norm's input `x` [+ `residual`].
    pub(super) fn norm_backward(
        &mut self,
        name: &str,
        dx: u16,
        dy: u16,
        (x, stats): (u16, Statistics),
        residual: Option<u16>,
    ) {
        let w = self.param(name);
        let mut operands = vec![write(dx), gradient(w)];
        let with = residual.is_some();
        let kind = match stats.mean {
            None => {
                operands.extend([read(dy), read(x), read(stats.rstd)]);
                Kind::RmsNormBackward { residual: with }
            }
            Some(mean) => {
                let b = self.param(&format!("{name}_bias"));
                operands.extend([gradient(b), read(dy), read(x), read(mean), read(stats.rstd)]);
                Kind::LayerNormBackward { residual: with }
            }
        };
        operands.push(weight(w));
        operands.extend(residual.map(read));
        self.op(Phase::Backward, name, kind, operands);
    }

    /// `y` = `x` · `name`ᵀ [+ `name_bias`] [+ `residual`].
    fn linear(&mut self, name: &str, y: u16, x: u16, dims: Product, residual: Option<u16>) {
        let bias = self.find(&format!("{name}_bias"));
        let mut operands = vec![write(y), read(x), weight(self.param(name))];
        operands.extend(bias.map(weight));
        operands.extend(residual.map(read));
        let kind = Kind::Linear {
            dims,
            bias: bias.is_some(),
            residual: residual.is_some(),
        };
        self.op(Phase::Forward, name, kind, operands);
    }

    /// Gradients of `name` [and `name_bias`], then `dx` = `dy` · `name`.
    fn linear_backward(&mut self, name: &str, dx: u16, dy: u16, x: u16, dims: Product) {
        let w = self.param(name);
        let bias = self.find(&format!("{name}_bias"));
        let mut operands = vec![gradient(w)];
        operands.extend(bias.map(gradient));
        operands.extend([read(dy), read(x)]);
        let kind = Kind::LinearWeight {
            dims,
            bias: bias.is_some(),
        };
        self.op(Phase::Backward, &format!("{name}.weight"), kind, operands);
        let operands = vec![write(dx), read(dy), weight(w)];
        self.op(
            Phase::Backward,
            &format!("{name}.input"),
            Kind::LinearInput { dims },
            operands,
        );
    }

    /// Rotates (and with `qk_rstd` first norms) q and k.
    fn rope(&mut self, y: u16, x: u16, qk_rstd: Option<u16>) {
        let mut operands = vec![write(y), read(x), inputs()];
        if let Some(rstd) = qk_rstd {
            let (q, k) = (self.param("q_norm"), self.param("k_norm"));
            operands.extend([write(rstd), weight(q), weight(k)]);
        }
        self.op(
            Phase::Forward,
            "rope",
            Kind::Rope {
                norm: qk_rstd.is_some(),
            },
            operands,
        );
    }

    fn rope_backward(&mut self, dx: u16, dy: u16, x: u16, qk_rstd: Option<u16>) {
        let mut operands = vec![write(dx), read(dy), inputs()];
        if let Some(rstd) = qk_rstd {
            let (q, k) = (self.param("q_norm"), self.param("k_norm"));
            operands.extend([
                gradient(q),
                gradient(k),
                read(x),
                read(rstd),
                weight(q),
                weight(k),
            ]);
        }
        self.op(
            Phase::Backward,
            "rope",
            Kind::RopeBackward {
                norm: qk_rstd.is_some(),
            },
            operands,
        );
    }
}

/// Block `l`: attention and MLP, each behind a norm and added to the residual stream.
pub(super) fn block(model: &Model<'_>, l: u32) -> (Unit, UnitKinds) {
    let mut b = Builder::new(model, format!("blocks.{l}"), UnitKind::Block, l + 1);
    let s = &model.sizes;
    let (c, f, q, all) = (s.hidden, s.intermediate, s.attention_width(), s.qkv_width());
    let llama = model.shape.family == Family::Llama;
    // The MLP's first product: gate and up of a gated MLP side by side, or up alone.
    let (wide, up) = if llama { (2 * f, "gate_up") } else { (f, "up") };

    // Forward's tensors, (B·T, ·).
    let x = b.local("x", model.rows(c));
    let h1 = b.local("h1", model.rows(c));
    let stats1 = b.statistics("1", !llama);
    let qkv_raw = llama.then(|| b.local("qkv_raw", model.rows(all)));
    let qkv = b.local("qkv", model.rows(all));
    let qk_rstd = model
        .shape
        .qk_norm
        .then(|| b.local("qk_rstd", model.rows_f32(s.heads.heads + s.heads.kv_heads)));
    let att = b.local("att", model.rows(q));
    let lse = b.local("lse", model.rows_f32(s.heads.heads)); // (B, H, T)
    let x2 = b.local("x2", model.rows(c));
    let h2 = b.local("h2", model.rows(c));
    let stats2 = b.statistics("2", !llama);
    let pre = b.local(up, model.rows(wide));
    let act = b.local("act", model.rows(f));
    let y = b.local("y", model.rows(c));

    let qkv_dims = Product {
        inner: c,
        cols: all,
    };
    let o_dims = Product { inner: q, cols: c };
    let up_dims = Product {
        inner: c,
        cols: wide,
    };
    let down_dims = Product { inner: f, cols: c };

    b.norm(Phase::Forward, "norm1", h1, stats1, x);
    b.linear("qkv", qkv_raw.unwrap_or(qkv), h1, qkv_dims, None);
    if let Some(raw) = qkv_raw {
        b.rope(qkv, raw, qk_rstd);
    }
    let operands = vec![write(att), write(lse), read(qkv), inputs()];
    b.op(Phase::Forward, "attention", Kind::Attention, operands);
    b.linear("o", x2, att, o_dims, Some(x));
    b.norm(Phase::Forward, "norm2", h2, stats2, x2);
    b.linear(up, pre, h2, up_dims, None);
    let (name, forward, backward) = if llama {
        ("swiglu", Kind::Swiglu, Kind::SwigluBackward)
    } else {
        ("gelu", Kind::Gelu, Kind::GeluBackward)
    };
    b.op(Phase::Forward, name, forward, vec![write(act), read(pre)]);
    b.linear("down", y, act, down_dims, Some(x2));

    // Backward's tensors, (B·T, ·).
    let dy = b.local("dy", model.rows(c));
    let d_act = b.local("d_act", model.rows(f));
    let d_pre = b.local(&format!("d_{up}"), model.rows(wide));
    let d_h2 = b.local("d_h2", model.rows(c));
    let d_x2 = b.local("d_x2", model.rows(c));
    let d_att = b.local("d_att", model.rows(q));
    let d_qkv = b.local("d_qkv", model.rows(all));
    let d_raw = llama.then(|| b.local("d_qkv_raw", model.rows(all)));
    let d_h1 = b.local("d_h1", model.rows(c));
    let dx = b.local("dx", model.rows(c));

    b.linear_backward("down", d_act, dy, act, down_dims);
    b.op(
        Phase::Backward,
        name,
        backward,
        vec![write(d_pre), read(d_act), read(pre)],
    );
    b.linear_backward(up, d_h2, d_pre, h2, up_dims);
    b.norm_backward("norm2", d_x2, d_h2, (x2, stats2), Some(dy));
    b.linear_backward("o", d_att, d_x2, att, o_dims);
    let operands = vec![
        write(d_qkv),
        read(d_att),
        read(qkv),
        read(att),
        read(lse),
        inputs(),
    ];
    b.op(
        Phase::Backward,
        "attention",
        Kind::AttentionBackward,
        operands,
    );
    if let (Some(raw), Some(d_raw)) = (qkv_raw, d_raw) {
        b.rope_backward(d_raw, d_qkv, raw, qk_rstd);
    }
    b.linear_backward("qkv", d_h1, d_raw.unwrap_or(d_qkv), h1, qkv_dims);
    b.norm_backward("norm1", dx, d_h1, (x, stats1), Some(d_x2));

    (b.unit.input, b.unit.output) = (Some(x), Some(y));
    (b.unit.d_output, b.unit.d_input) = (Some(dy), Some(dx));
    b.done()
}
