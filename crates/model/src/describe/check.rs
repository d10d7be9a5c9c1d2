//! Sizes that do not go together are errors before anything is built from them.

use lowtide_kernels::route;
use lowtide_units::List;
use lowtide_workload::{Lsp, ModelShape, Objective, ParamId, Rope, RopeScaling, Workload};

use super::Options;
use crate::ModelError;
use crate::families::{self, Allows};
use crate::lsp::{Layout, in_blocks};
use crate::params::{Part, Role, Spec, specs};

/// Sizes that do not go together.
pub(crate) fn wrong(
    what: &'static str,
    have: impl Into<u64>,
    need: impl Into<String>,
) -> ModelError {
    ModelError::Dimensions {
        what,
        have: have.into(),
        need: need.into(),
    }
}

/// Most parameters of a model: 17 trillion, of which the state alone takes 200 TiB.
const PARAMETERS_MAX: u128 = 1 << 44;
/// Most experts of all layers: each has three names, and a list of names is made before any file is read.
const EXPERTS_OF_ALL_LAYERS: u64 = 1 << 16;
/// Most classes of a model that classifies.
pub(crate) const CLASSES_MAX: u32 = 1 << 16;
/// Largest head. Attention's tables and sums are as wide.
const HEAD_MAX: u32 = 1 << 13;
/// Most numbers of the table of rotary angles, T·D: 1 GiB.
const ANGLES_MAX: u64 = 1 << 28;
/// Most that tokens of a micro-batch times parameters may be. No tensor, scratch or count of bytes touched of
/// one unit is more than some twenty times that, so 64 bits hold them all.
const WORK_MAX: u128 = 1 << 58;
/// Most bytes of tensors of a whole batch: sums of them stay far inside 64 bits.
const BATCH_BYTES_MAX: u128 = 1 << 60;

/// Whether `shape` is a model that can be built.
pub(crate) fn shape(s: &ModelShape) -> Result<(), ModelError> {
    let sizes = [
        ("vocabulary", s.vocab),
        ("hidden size", s.hidden),
        ("intermediate size", s.intermediate),
        ("number of layers", s.layers),
        ("number of heads", s.heads),
        ("number of key/value heads", s.kv_heads),
        ("head size", s.head_dim),
        ("number of positions", s.max_positions),
    ];
    for (what, size) in sizes {
        if size == 0 || size > 1 << 30 {
            return Err(wrong(what, size, "1 to 2^30"));
        }
    }
    layers(s.layers)?;
    if s.head_dim > HEAD_MAX {
        return Err(wrong(
            "head size",
            s.head_dim,
            format!("at most {HEAD_MAX}"),
        ));
    }
    let width = u64::from(s.heads) * u64::from(s.head_dim);
    if width > 1 << 30 {
        return Err(wrong("heads times head size", width, "at most 2^30"));
    }
    if !s.heads.is_multiple_of(s.kv_heads) {
        let need = format!("a divisor of the {} heads", s.heads);
        return Err(wrong("number of key/value heads", s.kv_heads, need));
    }
    if let Some(window) = &s.window
        && (window.keys == 0 || window.layers.is_empty())
    {
        return Err(wrong("window", window.keys, "a key or more, in some layer"));
    }
    let family = families::of(s.family);
    family.check(s)?;
    if s.scales != family.scales(s) {
        return Err(wrong(
            "factors or caps",
            1u32,
            "none that the family has not",
        ));
    }
    if s.stacks.is_some() != family.allows().stacks {
        return Err(wrong("stacks", 1u32, "none in this family"));
    }
    features(s, family.allows())?;
    experts(s, family.allows())?;
    encoder(s, family.allows())?;
    let n = parameters(s);
    if n > PARAMETERS_MAX {
        let have = u64::try_from(n).unwrap_or(u64::MAX);
        return Err(wrong("number of parameters", have, "at most 2^44"));
    }
    Ok(())
}

/// What an encoder has, in the families that have it and in no other, and what they are trained for.
fn encoder(s: &ModelShape, allows: Allows) -> Result<(), ModelError> {
    let Some(encoder) = s.encoder.filter(|_| allows.encoder) else {
        return match (allows.encoder || s.encoder.is_some(), s.objective) {
            (false, Objective::NextToken) => Ok(()),
            _ => Err(wrong("encoders", 1u32, "one in families of encoders alone")),
        };
    };
    let (types, first) = (encoder.types, encoder.first_position);
    if types == 0 || types > 1 << 20 {
        return Err(wrong("number of types", types, "1 to 2^20"));
    }
    if first > 1 << 10 {
        return Err(wrong("first position", first, "at most 2^10"));
    }
    match s.objective {
        Objective::Classes(2..=CLASSES_MAX) => Ok(()),
        Objective::Classes(n) => Err(wrong("number of classes", n, format!("2 to {CLASSES_MAX}"))),
        Objective::NextToken => Err(wrong("number of classes", 0u32, "2 or more in this family")),
    }
}

/// Experts, in the families that have them and in no other.
fn experts(s: &ModelShape, allows: Allows) -> Result<(), ModelError> {
    let Some(of) = s.experts else {
        return match allows.experts {
            true => Err(wrong("number of experts", 0u32, "some in this family")),
            false => Ok(()),
        };
    };
    if !allows.experts {
        return Err(wrong("number of experts", of.count, "none in this family"));
    }
    let most = route::EXPERTS_MAX as u32;
    if of.count == 0 || of.count > most {
        let need = format!("1 to {most}");
        return Err(wrong("number of experts", of.count, need));
    }
    let most = of.count.min(route::CHOSEN_MAX as u32);
    if of.chosen == 0 || of.chosen > most {
        let need = format!("1 to {most} of {}", of.count);
        return Err(wrong("experts that a token takes", of.chosen, need));
    }
    let all = u64::from(of.count) * u64::from(s.layers);
    if all > EXPERTS_OF_ALL_LAYERS {
        let need = format!("at most {EXPERTS_OF_ALL_LAYERS}");
        return Err(wrong("number of experts of all layers", all, need));
    }
    Ok(())
}

/// What few families have, where the shape's has it.
fn features(s: &ModelShape, allows: Allows) -> Result<(), ModelError> {
    if let Some(width) = s.rope.as_ref().and_then(|rope| rope.width) {
        let d = s.head_dim;
        if !allows.part_of_heads {
            let need = format!("{d}, all, in this family");
            return Err(wrong("rotated numbers of a head", width, need));
        }
        if width == 0 || width >= d || !width.is_multiple_of(2) {
            let need = format!("an even number below the head size {d}");
            return Err(wrong("rotated numbers of a head", width, need));
        }
    }
    let not = |what| Err(wrong(what, 1u32, "none in this family"));
    if s.parallel && !allows.parallel {
        return not("attention beside the MLP");
    }
    if s.gelu_by_tanh && !allows.gelu_by_tanh {
        return not("GELU by tanh in place of another");
    }
    match &s.local_rope {
        Some(_) if !allows.local_rope => not("other rotary positions in some layers"),
        Some(local) if local.layers.is_empty() || local.rope.width.is_some() => {
            let need = "some, whose heads are rotated whole";
            Err(wrong("layers with other rotary positions", 0u32, need))
        }
        _ => Ok(()),
    }
}

/// No more layers than a list of them may have: the number comes from an untrusted file.
pub(crate) fn layers(layers: u32) -> Result<(), ModelError> {
    match layers > 1 << 12 {
        true => Err(wrong("number of layers", layers, "at most 4096")),
        false => Ok(()),
    }
}

/// Parameters of a shape whose sizes are at most 2^30 and layers at most 2^12, in numbers that hold them.
fn parameters(s: &ModelShape) -> u128 {
    if s.stacks.is_some() {
        let all = specs(s);
        let count = |spec: &Spec| u128::from(spec.rows) * u128::from(spec.cols);
        return all.iter().map(count).sum();
    }
    let one = ModelShape {
        layers: 1,
        ..s.clone()
    };
    let count = |spec: &Spec| u128::from(spec.rows) * u128::from(spec.cols);
    let (block, ends): (Vec<Spec>, _) = specs(&one).into_iter().partition(|spec| spec.unit == 1);
    let block: u128 = block.iter().map(count).sum();
    block * u128::from(s.layers) + ends.iter().map(count).sum::<u128>()
}

/// Whether something is trained, and of gradients that one kernel makes all or none.
pub(crate) fn frozen(
    specs: &List<ParamId, Spec>,
    frozen: &List<ParamId, bool>,
) -> Result<(), ModelError> {
    if frozen.iter().all(|&f| f) {
        return Err(ModelError::NothingTrained);
    }
    // Weight and bias of a layer norm, and the norms of queries and keys, stand behind one another.
    let one = |a: &Spec, b: &Spec| {
        let norm = a.role == Role::Norm && b.role == Role::Bias && a.part == b.part;
        a.unit == b.unit && (norm || (a.part, b.part) == (Part::QNorm, Part::KNorm))
    };
    let all = || specs.iter().zip(frozen.iter());
    for ((a, p), (b, q)) in all().zip(all().skip(1)) {
        if one(a, b) && p != q {
            let (a, b) = (&a.parts[0].0, &b.parts[0].0);
            let (frozen, trained) = if *p { (a, b) } else { (b, a) };
            return Err(ModelError::Partly {
                frozen: frozen.clone(),
                trained: trained.clone(),
            });
        }
    }
    Ok(())
}

/// Whether some matrix is trained in a subspace where that was asked for.
pub(crate) fn projected(layout: &Layout, lsp: Option<Lsp>) -> Result<(), ModelError> {
    let Some(lsp) = lsp else { return Ok(()) };
    if layout.iter().any(|e| e.factors.is_some()) {
        return Ok(());
    }
    let trained = layout.iter().filter(|e| !e.frozen && in_blocks(&e.spec));
    let shorter = trained.map(|e| e.spec.rows.min(e.spec.cols)).max();
    Err(ModelError::NothingProjected {
        shorter: shorter.unwrap_or(0),
        compression: lsp.compression,
    })
}

/// Whether the tensors of all micro-batches can be counted in 64 bits.
pub(crate) fn workload(w: &Workload) -> Result<(), ModelError> {
    let tensors = w.units.iter().flat_map(|unit| &unit.tensors);
    let bytes: u128 = tensors.map(|t| u128::from(t.bytes.0)).sum();
    let bytes = bytes * u128::from(w.batch.accumulate);
    match bytes <= BATCH_BYTES_MAX {
        true => Ok(()),
        false => {
            let have = u64::try_from(bytes).unwrap_or(u64::MAX);
            Err(wrong("bytes of a batch's tensors", have, "at most 2^60"))
        }
    }
}

/// What models of two stacks do not do yet.
fn not_of_stacks(o: &Options) -> Result<(), ModelError> {
    let what = match o {
        _ if o.lsp.is_some() => "trained in subspaces (strategy.name: lsp)",
        _ if !o.frozen.is_empty() => "trained with frozen parameters (train.freeze)",
        _ => return Ok(()),
    };
    Err(ModelError::StacksLack { what })
}

/// Rows of which chunks are multiples: they begin at multiples of 16 bytes, as kernels want it.
const CHUNK_OF: u32 = 8;

/// Whether rows can be computed in chunks where that is asked for.
fn in_chunks(s: &ModelShape, o: &Options) -> Result<(), ModelError> {
    if !o.rows_chunk.is_multiple_of(CHUNK_OF) {
        let need = format!("0 or a multiple of {CHUNK_OF}");
        return Err(wrong("train.rows_chunk", o.rows_chunk, need));
    }
    let what = match (o.rows_chunk, s.stacks, s.experts, o.lsp) {
        (0, ..) => return Ok(()),
        (_, Some(_), ..) => "a model with an encoder and a decoder",
        (_, _, Some(_), _) => "a mixture of experts",
        (.., Some(_)) => "training in subspaces (strategy.name: lsp)",
        _ => return Ok(()),
    };
    Err(ModelError::NotInChunks { what })
}

/// Whether the batch suits the shape.
pub(crate) fn options(s: &ModelShape, o: &Options) -> Result<(), ModelError> {
    let sizes = [
        ("micro-batch", o.batch.micro_batch),
        ("sequence length", o.batch.seq),
        ("number of micro-batches", o.batch.accumulate),
    ];
    for (what, size) in sizes {
        if size == 0 {
            return Err(wrong(what, size, "at least 1"));
        }
    }
    match (s.stacks, o.batch.target) {
        (Some(_), 0) => return Err(wrong("length of targets", 0u32, "at least 1")),
        (None, target) if target > 0 => {
            let need = "none: the model has no encoder";
            return Err(wrong("length of targets", target, need));
        }
        (Some(_), _) => not_of_stacks(o)?,
        _ => {}
    }
    if o.batch.target > s.max_positions {
        let need = format!("at most {}", s.max_positions);
        return Err(wrong("length of targets", o.batch.target, need));
    }
    if o.batch.input_rows() > 1 << 30 {
        return Err(wrong(
            "tokens of a micro-batch",
            o.batch.input_rows(),
            "at most 2^30",
        ));
    }
    if let Some(of) = s.experts {
        if o.lsp.is_some() {
            return Err(ModelError::ExpertsProjected);
        }
        let sorted = o.batch.rows() * u64::from(of.chosen);
        if sorted >= 1 << 31 {
            let what = "tokens of a micro-batch times the experts that each takes";
            return Err(wrong(what, sorted, "below 2^31"));
        }
    }
    in_chunks(s, o)?;
    if o.batch.seq > s.max_positions {
        let need = format!("at most {}, the model's longest sequence", s.max_positions);
        return Err(wrong("sequence length", o.batch.seq, need));
    }
    // Beyond its trained length the angles of a batch depend on its longest document.
    if let Some(Rope {
        scaling: RopeScaling::LongRope { original, .. },
        ..
    }) = s.rope
        && f64::from(o.batch.seq) > original
    {
        let need = format!("at most {original}, the length that longrope was trained at");
        return Err(wrong("sequence length", o.batch.seq, need));
    }
    let angles = u64::from(o.batch.seq) * u64::from(s.head_dim);
    if s.rope.is_some() && angles > ANGLES_MAX {
        let need = format!("at most {ANGLES_MAX}");
        return Err(wrong("sequence length times head size", angles, need));
    }
    let work = u128::from(o.batch.input_rows()) * parameters(s);
    if work > WORK_MAX {
        let have = u64::try_from(work).unwrap_or(u64::MAX);
        let what = "tokens of a micro-batch times parameters";
        return Err(wrong(what, have, "at most 2^58"));
    }
    Ok(())
}
