//! The embedding and the head.

use lowtide_kernels::head::classes;
use lowtide_kernels::operands::Inputs;
use lowtide_kernels::{embedding, head, tanh};
use lowtide_units::Bytes;
use lowtide_workload::{ParamId, Unit, UnitKind};

use super::kind::{Kind, Product, Tied};
use super::{Builder, Model, Phase, UnitKinds, loss, read, weight, write};
use crate::families;
use crate::params::Part;

/// The tokens' table is the first parameter; a tied head refers to it.
pub(super) const TOKENS: ParamId = ParamId(0);

pub(super) fn embedding(model: &Model<'_>) -> (Unit, UnitKinds) {
    let mut b = Builder::new(model, "embedding".to_owned(), UnitKind::Embedding, 0);
    let c = model.sizes.hidden;
    let (tokens, table) = (b.param(Part::Tokens), b.find(Part::Positions, false));
    let types = b.find(Part::Types, false);
    let y = b.local("y", model.rows(c)); // (B·T, C)
    let dy = b.local("dy", model.rows(c)); // (B·T, C)
    let family = families::of(model.shape.family);
    let factor = family.embedding_factor(model.shape, model.sizes.dtype);
    let normed = b.find(Part::Norm, false).is_some();
    // The tables' rows and their gradient, (B·T, C), where the first block gets a multiple or a norm of them.
    let apart = factor != 1.0 || normed;
    let rows = apart.then(|| ["rows", "d_rows"].map(|name| b.local(name, model.rows(c))));
    let [made, d_made] = rows.unwrap_or([y, dy]);

    let operands = embedding::Forward {
        y: write(made),
        inputs: Inputs,
        tokens: weight(tokens),
        positions: table.map(weight),
        types: types.map(weight),
    };
    b.op(Phase::Forward, "embedding", Kind::Embedding(operands));
    if normed {
        let stats = b.statistics("", family.norm());
        b.norm(Phase::Forward, Part::Norm, y, stats, made);
        b.norm_backward(Part::Norm, d_made, dy, (made, stats), None);
    } else if rows.is_some() {
        b.add_up((Phase::Forward, "multiple"), y, made, None, factor);
        b.add_up((Phase::Backward, "multiple"), d_made, dy, None, factor);
    }

    let operands = embedding::Backward {
        dtokens: b.add(tokens),
        dpositions: table.and_then(|table| b.add(table)),
        dtypes: types.and_then(|types| b.add(types)),
        dy: read(d_made),
        inputs: Inputs,
    };
    let kind = Kind::EmbeddingBackward(operands, Tied(model.shape.tied));
    b.op(Phase::Backward, "embedding", kind);

    (b.unit.output, b.unit.d_output) = (Some(y), Some(dy));
    b.done(0)
}

pub(super) fn head(model: &Model<'_>) -> (Unit, UnitKinds) {
    match model.shape.objective.is_next_token() {
        true => next_token(model),
        false => classifier(model),
    }
}

/// The class of each document by its first token: a product, a tangent and a product. Every row goes through them,
/// of which those without a label get no gradient.
fn classifier(model: &Model<'_>) -> (Unit, UnitKinds) {
    let layers = model.shape.layers;
    let mut b = Builder::new(model, "head".to_owned(), UnitKind::Head, layers + 1);
    let s = &model.sizes;
    let (rows, c, n) = (s.rows, s.hidden, s.labels);
    let product = |cols| Product {
        rows,
        inner: c,
        cols,
    };
    let x = b.local("x", model.rows(c)); // (B·T, C)
    let dense = b.local("dense", model.rows(c)); // (B·T, C)
    let act = b.local("act", model.rows(c)); // (B·T, C)
    let logits = b.local("logits", model.rows(n)); // (B·T, classes)
    let d_logits = b.local("d_logits", model.rows(n)); // (B·T, classes)
    let d_act = b.local("d_act", model.rows(c)); // (B·T, C)
    let d_dense = b.local("d_dense", model.rows(c)); // (B·T, C)
    let dx = b.local("dx", model.rows(c)); // (B·T, C)
    let values = b.local("values", Bytes((s.answers() * n) as u64 * 4)); // (B·T, classes), f32

    for phase in [Phase::Backward, Phase::Evaluate, Phase::Infer] {
        b.linear_in(phase, Part::Dense, dense, (x, product(c)), None);
        let operands = tanh::Forward {
            y: write(act),
            x: read(dense),
        };
        b.op(phase, "tanh", Kind::Tanh(operands));
        b.linear_in(phase, Part::LmHead, logits, (act, product(n)), None);
    }
    let operands = classes::Train {
        d_logits: write(d_logits),
        loss: loss(),
        logits: read(logits),
        inputs: Inputs,
    };
    b.op(Phase::Backward, "loss", Kind::ClassesTrain(operands));
    b.linear_backward(Part::LmHead, d_act, d_logits, act, product(n));
    let operands = tanh::Backward {
        dx: write(d_dense),
        dy: read(d_act),
        y: read(act),
    };
    b.op(Phase::Backward, "tanh", Kind::TanhBackward(operands));
    b.linear_backward(Part::Dense, dx, d_dense, x, product(c));
    let operands = classes::Loss {
        loss: loss(),
        logits: read(logits),
        inputs: Inputs,
    };
    b.op(Phase::Evaluate, "loss", Kind::ClassesLoss(operands));
    let operands = classes::Values {
        values: write(values),
        logits: read(logits),
    };
    b.op(Phase::Infer, "logits", Kind::ClassesValues(operands));

    b.reads(layers, x, dx);
    b.unit.logits = Some(values);
    b.done(layers + 1)
}

/// The next token of each.
fn next_token(model: &Model<'_>) -> (Unit, UnitKinds) {
    let layers = model.shape.layers;
    head_of(model, layers, layers + 1)
}

/// The head, unit `unit`, which reads the output of `below`.
pub(super) fn head_of(model: &Model<'_>, below: u32, unit: u32) -> (Unit, UnitKinds) {
    let mut b = Builder::new(model, "head".to_owned(), UnitKind::Head, unit);
    let c = model.sizes.hidden;
    let logit_bytes = Bytes((model.sizes.answers() * model.sizes.vocab) as u64 * 4);
    let w = if model.shape.tied {
        TOKENS
    } else {
        b.param(Part::LmHead)
    };
    let x = b.local("x", model.rows(c)); // (B·T, C)
    let h = b.local("h", model.rows(c)); // (B·T, C)
    let norm = families::of(model.shape.family).norm();
    let stats = b.statistics("", norm);
    let dh = b.local("dh", model.rows(c)); // (B·T, C)
    let dx = b.local("dx", model.rows(c)); // (B·T, C)
    let logits = b.local("logits", logit_bytes); // (B·T / span, V), f32

    let phases: &[Phase] = match model.sizes.answers {
        Some(_) => &[Phase::Infer],
        None => &[Phase::Backward, Phase::Evaluate, Phase::Infer],
    };
    for &phase in phases {
        b.norm(phase, Part::Norm, h, stats, x);
    }
    let trains = phases.len() > 1;
    let (dw, h, w) = (b.add(w), read(h), weight(w));
    let operands = head::Train {
        dh: write(dh),
        dw,
        loss: loss(),
        h,
        w,
        inputs: Inputs,
    };
    if trains {
        b.op(Phase::Backward, "loss", Kind::HeadTrain(operands));
        b.norm_backward(Part::Norm, dx, dh, (x, stats), None);
    }
    let operands = head::Loss {
        loss: loss(),
        h,
        w,
        inputs: Inputs,
    };
    if trains {
        b.op(Phase::Evaluate, "loss", Kind::HeadLoss(operands));
    }
    let operands = head::Logits {
        logits: write(logits),
        h,
        w,
        inputs: Inputs,
    };
    b.op(Phase::Infer, "logits", Kind::HeadLogits(operands));

    b.reads(below, x, dx);
    b.unit.logits = Some(logits);
    b.done(unit)
}
