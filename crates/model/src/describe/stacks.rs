//! A model of two stacks: an encoder, and a decoder whose blocks also attend to what the encoder puts out.
//!
//! Units, in forward order: of each stack the embedding of its tokens, its table of relative positions spread over all
//! distances, and its blocks; between them the encoder's end, which all blocks of the decoder read; the head. What
//! several units read (the end's output, a stack's positions) gets its gradient from the last reader down, in f32.

use lowtide_kernels::operands::{Inputs, Share};
use lowtide_kernels::{embedding, relative, share};
use lowtide_units::{Bytes, Flops};
use lowtide_workload::{LocalId, Unit, UnitKind};

use super::block::Statistics;
use super::ends::{TOKENS, head_of};
use super::kind::{Keys, Kind, Product, Tied};
use super::{Builder, Model, Phase, UnitKinds, read, weight, write};
use crate::families::{self, Mlp};
use crate::params::Part;

/// Which unit is which.
#[derive(Clone, Copy, Debug)]
struct Units {
    encoder: u32,
    decoder: u32,
}

impl Units {
    /// What the encoder puts out.
    fn end(self) -> u32 {
        2 + self.encoder
    }

    /// The embedding of a stack.
    fn embedding(self, encoder: bool) -> u32 {
        if encoder { 0 } else { self.end() + 1 }
    }

    fn positions(self, encoder: bool) -> u32 {
        self.embedding(encoder) + 1
    }

    /// Block `l` of a stack.
    fn block(self, encoder: bool, l: u32) -> u32 {
        self.positions(encoder) + 1 + l
    }

    fn layers(self, encoder: bool) -> u32 {
        if encoder { self.encoder } else { self.decoder }
    }

    /// What unit block `l` of a stack, or what is behind its last one, reads.
    fn below(self, encoder: bool, l: u32) -> u32 {
        match l {
            0 => self.embedding(encoder),
            l => self.block(encoder, l - 1),
        }
    }
}

/// All units, `models` are those of the encoder and of the decoder: they differ in sizes.
pub(super) fn units(models: [&Model<'_>; 2]) -> Vec<(Unit, UnitKinds)> {
    let shape = models[0].shape;
    let stacks = shape.stacks.expect("a shape of two stacks");
    let units = Units {
        encoder: stacks.encoder,
        decoder: shape.layers,
    };
    let mut all = Vec::new();
    for (model, encoder) in models.into_iter().zip([true, false]) {
        all.push(embedding_of(model, units, encoder));
        all.push(positions(model, units, encoder));
        let layers = 0..units.layers(encoder);
        all.extend(layers.map(|l| block(model, units, encoder, l)));
        all.push(match encoder {
            true => end(model, units),
            false => {
                let last = units.below(false, shape.layers);
                head_of(model, last, last + 1)
            }
        });
    }
    all
}

/// Six operations a number and token that it sees, and those of attention.
pub(super) fn model_flops(models: [&Model<'_>; 2]) -> Flops {
    let [source, target] = models.map(|model| model.sizes);
    let shape = models[0].shape;
    let stacks = shape.stacks.expect("a shape of two stacks");
    let end = Units {
        encoder: stacks.encoder,
        decoder: shape.layers,
    }
    .end();
    let numbers = |of: &dyn Fn(u32, Part) -> bool| -> f64 {
        let all = models[0].params.iter().zip(models[0].layout.iter());
        let own = all.filter(|(p, entry)| of(p.unit, entry.spec.part));
        own.map(|(p, _)| p.elements as f64).sum()
    };
    let table = |part: Part| matches!(part, Part::Tokens | Part::Positions);
    let kv = |part: Part| part == Part::CrossKv;
    // Of tables a product with the head's alone.
    let logits = f64::from(shape.hidden) * f64::from(shape.vocab);
    let head = if shape.tied { logits } else { 0.0 };
    let encoder = numbers(&|unit, part| (unit <= end && !table(part)) || kv(part));
    let decoder = numbers(&|unit, part| unit > end && !table(part) && !kv(part)) + head;
    let width = source.attention_width() as f64;
    let (rows, others) = (source.rows as f64, target.rows as f64);
    let pairs = f64::from(stacks.encoder) * rows * source.seq as f64
        + f64::from(shape.layers) * others * (target.seq as f64 / 2.0 + source.seq as f64);
    Flops(6.0 * (encoder * rows + decoder * others) + 12.0 * pairs * width)
}

fn stack(encoder: bool) -> &'static str {
    if encoder { "encoder" } else { "decoder" }
}

fn embedding_of(model: &Model<'_>, units: Units, encoder: bool) -> (Unit, UnitKinds) {
    let unit = units.embedding(encoder);
    let name = format!("{}.embedding", stack(encoder));
    let mut b = Builder::new(model, name, UnitKind::Embedding, unit);
    let c = model.sizes.hidden;
    let y = b.local("y", model.rows(c)); // (B·T, C)
    let dy = b.local("dy", model.rows(c)); // (B·T, C)
    let operands = embedding::Forward {
        y: write(y),
        inputs: Inputs,
        tokens: weight(TOKENS),
        positions: None,
        types: None,
    };
    b.op(Phase::Forward, "embedding", Kind::Embedding(operands));
    let operands = embedding::Backward {
        dtokens: b.add(TOKENS),
        dpositions: None,
        dtypes: None,
        dy: read(dy),
        inputs: Inputs,
    };
    let kind = Kind::EmbeddingBackward(operands, Tied(true));
    b.op(Phase::Backward, "embedding", kind);
    (b.unit.output, b.unit.d_output) = (Some(y), Some(dy));
    b.done(unit)
}

/// Bytes of a table over all distances of a stack, (H, 2T - 1), f32.
fn spread(model: &Model<'_>) -> Bytes {
    let table = model.sizes.stack().table;
    Bytes((table.heads * table.distances()) as u64 * 4)
}

fn positions(model: &Model<'_>, units: Units, encoder: bool) -> (Unit, UnitKinds) {
    let unit = units.positions(encoder);
    let name = format!("{}.positions", stack(encoder));
    let mut b = Builder::new(model, name, UnitKind::Embedding, unit);
    let y = b.local("y", spread(model));
    let dy = b.local("dy", spread(model));
    let table = b.param(Part::Positions);
    let operands = relative::table::Forward {
        bias: write(y),
        w: weight(table),
    };
    b.op(Phase::Forward, "positions", Kind::Positions(operands));
    if let Some(dw) = b.add(table) {
        let operands = relative::table::Backward {
            dw,
            d_bias: read(dy),
        };
        b.op(
            Phase::Backward,
            "positions",
            Kind::PositionsBackward(operands),
        );
    }
    (b.unit.output, b.unit.d_output) = (Some(y), Some(dy));
    b.done(unit)
}

/// The encoder's end: its last norm, whose output every block of the decoder reads.
fn end(model: &Model<'_>, units: Units) -> (Unit, UnitKinds) {
    let unit = units.end();
    let mut b = Builder::new(model, "encoder.end".to_owned(), UnitKind::Block, unit);
    let c = model.sizes.hidden;
    let norm = families::of(model.shape.family).norm();
    let x = b.local("x", model.rows(c));
    let y = b.local("y", model.rows(c));
    let stats = b.statistics("", norm);
    let sum = b.local("sum", model.rows_f32(c)); // all readers', (B·T, C) f32
    let dy = b.local("dy", model.rows(c));
    let dx = b.local("dx", model.rows(c));
    b.norm(Phase::Forward, Part::Norm, y, stats, x);
    let operands = share::Round {
        y: write(dy),
        sum: read(sum),
    };
    b.op(Phase::Backward, "readers", Kind::ShareRound(operands));
    b.norm_backward(Part::Norm, dx, dy, (x, stats), None);
    b.reads(units.below(true, units.encoder), x, dx);
    (b.unit.output, b.unit.d_output) = (Some(y), Some(sum));
    b.done(unit)
}

/// Attention in a block: its parameters, whose keys it sees, and its tensors.
struct Attention {
    parts: [Part; 4],
    keys: Keys,
    /// Rows of keys.
    rows: usize,
    suffix: &'static str,
    x: LocalId,
    h: LocalId,
    stats: Statistics,
    /// What keys and values are made of.
    from: LocalId,
    bias: Option<LocalId>,
    q: LocalId,
    kv: LocalId,
    att: LocalId,
    lse: LocalId,
    y: LocalId,
}

const OWN: [Part; 4] = [Part::Norm1, Part::Q, Part::Kv, Part::O];
const CROSS: [Part; 4] = [Part::CrossNorm, Part::CrossQ, Part::CrossKv, Part::CrossO];

impl Builder<'_> {
    /// `y` = `x` + attention of the norm of `x`, to itself or to `from`.
    fn attend(&mut self, x: LocalId, from: Option<LocalId>, bias: Option<LocalId>) -> Attention {
        let s = self.model.sizes;
        let (c, q_width) = (s.hidden, s.attention_width());
        let norm = families::of(self.model.shape.family).norm();
        let (parts, keys, rows, suffix) = match from {
            None => (OWN, Keys::Own, s.rows, ""),
            Some(_) => (CROSS, Keys::Encoder, s.batch * s.stack().other, "_cross"),
        };
        let of_keys = |width: usize| self.model.numbers(rows * width);
        let kv_bytes = of_keys(2 * q_width);
        let mut local = |name: &str, bytes| self.local(&format!("{name}{suffix}"), bytes);
        let h = local("h", self_rows(&s, c));
        let q = local("q", self_rows(&s, q_width));
        let kv = local("kv", kv_bytes);
        let att = local("att", self_rows(&s, q_width));
        let lse = local("lse", Bytes((s.rows * s.heads.heads) as u64 * 4)); // (B, H, T)
        let y = local("y", self_rows(&s, c));
        let stats = self.statistics(suffix, norm);
        let a = Attention {
            parts,
            keys,
            rows,
            suffix,
            x,
            h,
            stats,
            from: from.unwrap_or(h),
            bias,
            q,
            kv,
            att,
            lse,
            y,
        };
        let [of_norm, of_q, of_kv, of_o] = parts;
        self.norm(Phase::Forward, of_norm, h, stats, x);
        let (q_dims, kv_dims, o_dims) = self.dims(&a);
        self.linear(of_q, q, h, q_dims, None);
        self.linear(of_kv, kv, a.from, kv_dims, None);
        let operands = relative::Forward {
            out: write(att),
            lse: write(lse),
            q: read(q),
            kv: read(kv),
            bias: bias.map(read),
            inputs: Inputs,
        };
        let name = format!("attention{suffix}");
        self.op(Phase::Forward, &name, Kind::Relative(operands, keys));
        self.linear(of_o, y, att, o_dims, Some(x));
        a
    }

    fn dims(&self, a: &Attention) -> (Product, Product, Product) {
        let s = self.model.sizes;
        let (c, q) = (s.hidden, s.attention_width());
        let product = |rows, inner, cols| Product { rows, inner, cols };
        (
            product(s.rows, c, q),
            product(a.rows, c, 2 * q),
            product(s.rows, q, c),
        )
    }

    /// Gradient of `x` from that of `y`; what it adds to those of the bias and of the encoder's output.
    fn attend_backward(
        &mut self,
        a: &Attention,
        dy: LocalId,
        d_bias: Option<Share>,
        d_from: Option<Share>,
        dx: LocalId,
    ) {
        let s = self.model.sizes;
        let (c, q_width) = (s.hidden, s.attention_width());
        let of_keys = |width: usize| self.model.numbers(a.rows * width);
        let (kv_bytes, from_bytes) = (of_keys(2 * q_width), of_keys(c));
        let suffix = a.suffix;
        let mut local = |name: &str, bytes| self.local(&format!("{name}{suffix}"), bytes);
        let d_att = local("d_att", self_rows(&s, q_width));
        let dq = local("dq", self_rows(&s, q_width));
        let d_kv = local("d_kv", kv_bytes);
        let d_of_kv = local("d_from", from_bytes);
        let d_of_q = local("d_h_q", self_rows(&s, c));
        let [of_norm, of_q, of_kv, of_o] = a.parts;
        let (q_dims, kv_dims, o_dims) = self.dims(a);
        self.linear_backward(of_o, d_att, dy, a.att, o_dims);
        let operands = relative::Backward {
            dq: write(dq),
            d_kv: write(d_kv),
            d_bias,
            d_out: read(d_att),
            q: read(a.q),
            kv: read(a.kv),
            bias: a.bias.map(read),
            out: read(a.att),
            lse: read(a.lse),
            inputs: Inputs,
        };
        let name = format!("attention{suffix}");
        self.op(
            Phase::Backward,
            &name,
            Kind::RelativeBackward(operands, a.keys),
        );
        self.linear_backward(of_kv, d_of_kv, d_kv, a.from, kv_dims);
        self.linear_backward(of_q, d_of_q, dq, a.h, q_dims);
        let d_h = match d_from {
            // Another stack's rows: they go back to it.
            Some(sum) => {
                let operands = share::Add {
                    sum,
                    x: read(d_of_kv),
                };
                self.op(Phase::Backward, "from.share", Kind::ShareAdd(operands));
                d_of_q
            }
            None => {
                let d_h = self.local("d_h", self.model.rows(c));
                let named = (Phase::Backward, "h.both");
                self.add_up(named, d_h, d_of_q, Some(d_of_kv), 1.0);
                d_h
            }
        };
        self.norm_backward(of_norm, dx, d_h, (a.x, a.stats), Some(dy));
    }
}

/// Bytes of (B·T, width) of a stack.
fn self_rows(s: &super::kind::Sizes, width: usize) -> Bytes {
    Bytes((s.rows * width) as u64 * s.dtype.size())
}

/// Block `l` of a stack. Long because it is read from top to bottom as it runs, and backward from the bottom up.
fn block(model: &Model<'_>, units: Units, encoder: bool, l: u32) -> (Unit, UnitKinds) {
    let unit = units.block(encoder, l);
    let name = format!("{}.blocks.{l}", stack(encoder));
    let mut b = Builder::new(model, name, UnitKind::Block, unit);
    let s = model.sizes;
    let (c, f) = (s.hidden, s.intermediate);
    let layer = families::of(model.shape.family).layer(model.shape, l);
    let (wide, up) = match layer.mlp {
        Mlp::Geglu => (2 * f, Part::GateUp),
        _ => (f, Part::Up),
    };
    let last = l + 1 == units.layers(encoder);
    let product = |inner, cols| Product {
        rows: s.rows,
        inner,
        cols,
    };
    let (up_dims, down_dims) = (product(c, wide), product(f, c));

    // Forward.
    let x = b.local("x", model.rows(c));
    let bias = b.local("bias", spread(model));
    let other = model.numbers(s.batch * s.stack().other * c);
    let from = (!encoder).then(|| b.local("encoded", other));
    let own = b.attend(x, None, Some(bias));
    let cross = from.map(|from| b.attend(own.y, Some(from), None));
    let middle = cross.as_ref().map_or(own.y, |cross| cross.y);
    let h2 = b.local("h2", model.rows(c));
    let stats2 = b.statistics("2", layer.norm);
    let pre = b.local(up.name(), model.rows(wide));
    let act = b.local("act", model.rows(f));
    let y = b.local("out", model.rows(c));
    b.norm(Phase::Forward, Part::Norm2, h2, stats2, middle);
    b.linear(up, pre, h2, up_dims, None);
    b.activation(layer.mlp, act, pre);
    b.linear(Part::Down, y, act, down_dims, Some(middle));

    // Backward.
    let dy = b.local("d_out", model.rows(c));
    let d_act = b.local("d_act", model.rows(f));
    let d_pre = b.local(&format!("d_{}", up.name()), model.rows(wide));
    let d_h2 = b.local("d_h2", model.rows(c));
    let d_middle = b.local("d_middle", model.rows(c));
    b.linear_backward(Part::Down, d_act, dy, act, down_dims);
    b.activation_backward(layer.mlp, d_pre, d_act, pre);
    b.linear_backward(up, d_h2, d_pre, h2, up_dims);
    b.norm_backward(Part::Norm2, d_middle, d_h2, (middle, stats2), Some(dy));
    let share = |gradient| Share { gradient, last };
    let mut d_own = d_middle;
    if let (Some(from), Some(cross)) = (from, &cross) {
        let d_from = b.local(
            "d_encoded",
            Bytes((s.batch * s.stack().other * c) as u64 * 4),
        );
        d_own = b.local("d_own", model.rows(c));
        b.attend_backward(cross, d_middle, None, Some(share(d_from)), d_own);
        b.reads(units.end(), from, d_from);
    }
    let dx = b.local("dx", model.rows(c));
    let d_bias = b.local("d_bias", spread(model));
    b.attend_backward(&own, d_own, Some(share(d_bias)), None, dx);

    b.reads(units.below(encoder, l), x, dx);
    b.reads(units.positions(encoder), bias, d_bias);
    (b.unit.output, b.unit.d_output) = (Some(y), Some(dy));
    b.done(unit)
}
