//! The embedding and the head.

use lowtide_kernels::operands::Inputs;
use lowtide_kernels::{embedding, head};
use lowtide_workload::{ParamId, Unit, UnitKind};

use super::kind::{Kind, Tied};
use super::{Builder, Model, Phase, UnitKinds, loss, read, weight, write};
use crate::families;
use crate::params::Part;

/// The tokens' table is the first parameter; a tied head refers to it.
const TOKENS: ParamId = ParamId(0);

pub(super) fn embedding(model: &Model<'_>) -> (Unit, UnitKinds) {
    let mut b = Builder::new(model, "embedding".to_owned(), UnitKind::Embedding, 0);
    let c = model.sizes.hidden;
    let (tokens, table) = (b.param(Part::Tokens), b.find(Part::Positions, false));
    let y = b.local("y", model.rows(c)); // (B·T, C)
    let dy = b.local("dy", model.rows(c)); // (B·T, C)
    let family = families::of(model.shape.family);
    let factor = family.embedding_factor(model.shape, model.sizes.dtype);
    // The table's rows and their gradient, (B·T, C), where the first block gets a multiple of them.
    let rows = (factor != 1.0).then(|| ["rows", "d_rows"].map(|name| b.local(name, model.rows(c))));
    let [made, d_made] = rows.unwrap_or([y, dy]);

    let operands = embedding::Forward {
        y: write(made),
        inputs: Inputs,
        tokens: weight(tokens),
        positions: table.map(weight),
    };
    b.op(Phase::Forward, "embedding", Kind::Embedding(operands));
    if rows.is_some() {
        b.add_up((Phase::Forward, "multiple"), y, made, None, factor);
        b.add_up((Phase::Backward, "multiple"), d_made, dy, None, factor);
    }

    let operands = embedding::Backward {
        dtokens: b.add(tokens),
        dpositions: table.and_then(|table| b.add(table)),
        dy: read(d_made),
        inputs: Inputs,
    };
    let kind = Kind::EmbeddingBackward(operands, Tied(model.shape.tied));
    b.op(Phase::Backward, "embedding", kind);

    (b.unit.output, b.unit.d_output) = (Some(y), Some(dy));
    b.done(0)
}

pub(super) fn head(model: &Model<'_>) -> (Unit, UnitKinds) {
    let layers = model.shape.layers;
    let mut b = Builder::new(model, "head".to_owned(), UnitKind::Head, layers + 1);
    let c = model.sizes.hidden;
    let logit_bytes = lowtide_units::Bytes((model.sizes.answers() * model.sizes.vocab) as u64 * 4);
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

    b.reads(layers, x, dx);
    b.unit.logits = Some(logits);
    b.done(layers + 1)
}
