//! The head on a CUDA device.
//!
//! Bound: the products' operations over their rate. In addition, each logit is written, read, and replaced by its
//! gradient: bytes over the memory's rate, a few percent of the products' time.

use lowtide_device::cuda::{self, Source};
use lowtide_device::{Dst, Make, Src};
use lowtide_workload::Dtype;

use super::{Bend, Head, Reads, Scratch, Train};
use crate::cuda::define;
use crate::matmul::{self, Input};
use crate::number::size;
use crate::operands::{Sum, Views};

/// Headers of the head's kernels.
const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../common.cuh")),
    ("head.cuh", include_str!("head.cuh")),
];

static SOURCE: Source = Source {
    name: "head.cu",
    text: include_str!("head.cu"),
    headers: HEADERS,
};
/// Of logits that are [bent](super::Bend).
static BENT: Source = Source {
    name: "head_bent.cu",
    text: include_str!("head_bent.cu"),
    headers: HEADERS,
};

/// For training with [smoothed](Head::smoothing) labels.
static SMOOTHED: Source = Source {
    name: "head_smoothed.cu",
    text: include_str!("head_smoothed.cu"),
    headers: HEADERS,
};

/// Shared memory of a block that the kernels use themselves, with room.
const OWN: usize = 1024;

/// As the operation, except that a label of V or more makes the loss, and the row's gradient, NaN;
/// in the stream when the call returns.
pub(super) fn train(
    q: &cuda::Queue,
    mut o: Train<Views<'_>>,
    scale: f32,
    (d, dtype): (&Head, Dtype),
    mut s: Scratch<'_>,
) {
    let all = Reads::of(o.h, o.w, o.inputs);
    let row = d.hidden * size(dtype);
    begin(q, o.loss.again(), d);
    for (first, n) in d.chunks() {
        let from = all.rows((first, n), d, size(dtype));
        let loss = (o.loss.again(), first == 0);
        chunk(q, loss, from, Some(scale), (d, dtype), &mut s);
        let gap = d.gap(dtype, Make::Cuda);
        let dy = s.logits.src().part(0, n * (d.vocab + gap) * size(dtype));
        let input = Input {
            dx: o.dh.lend(first * row, n * row),
            dy,
            w: o.w,
        };
        matmul::cuda::backward_input(q, input, gap, d.dims(n), dtype, s.product.again());
        let Some(dw) = &mut o.dw else { continue };
        let dw = Sum {
            to: dw.to.again(),
            accumulate: dw.accumulate || first > 0,
        };
        let of = (dy, gap, from.h);
        matmul::cuda::backward_weight(q, dw, of, d.dims(n), dtype, s.product.again());
    }
}

/// As the operation; a label of V or more makes the loss NaN. In the stream when the call returns.
pub(super) fn loss(
    q: &cuda::Queue,
    mut to: Dst<'_>,
    all: Reads<'_>,
    d: &Head,
    dtype: Dtype,
    mut s: Scratch<'_>,
) {
    begin(q, to.again(), d);
    for (first, n) in d.chunks() {
        let from = all.rows((first, n), d, size(dtype));
        chunk(q, (to.again(), first == 0), from, None, (d, dtype), &mut s);
    }
}

/// Without rows there is no first chunk to overwrite the sums.
fn begin(q: &cuda::Queue, loss: Dst<'_>, d: &Head) {
    if d.rows == 0 {
        q.fill(loss, 0);
    }
}

/// Logits of a chunk into the scratch, their losses into `loss` (of the first chunk, or not), and with a
/// scale their gradient in their place.
fn chunk(
    q: &cuda::Queue,
    (loss, first): (Dst<'_>, bool),
    from: Reads<'_>,
    scale: Option<f32>,
    (d, dtype): (&Head, Dtype),
    s: &mut Scratch<'_>,
) {
    let n = from.labels.bytes() / size_of::<i32>();
    let gap = d.gap(dtype, Make::Cuda);
    let mut logits = s.logits.lend(0, n * (d.vocab + gap) * size(dtype));
    let (to, of) = ((logits.again(), gap), (from.h, from.w));
    matmul::cuda::forward_apart_by(q, to, of, d.dims(n), dtype, s.product.again());
    let chunk = Chunk {
        logits,
        losses: s.losses.lend(0, n * size_of::<f64>()),
        labels: from.labels,
        vocab: d.vocab,
        gap,
        first,
        bend: d.bend,
        smoothing: d.smoothing,
    };
    after_product(q, loss, chunk, scale, dtype);
}

/// The rows of a chunk behind its product.
pub(super) struct Chunk<'a> {
    /// E (n, V + gap), of which the first V of a row.
    pub logits: Dst<'a>,
    /// f64 (n), written.
    pub losses: Dst<'a>,
    /// i32 (n).
    pub labels: Src<'a>,
    /// V: logits of a row.
    pub vocab: usize,
    /// Numbers between rows.
    pub gap: usize,
    /// Whether it is the first.
    pub first: bool,
    /// What becomes of logits before the loss.
    pub bend: Bend,
    /// The share of each label that is spread over all tokens, with a scale.
    pub smoothing: f32,
}

/// Writes the losses of a chunk's rows, one each, and writes their sum and number to `loss`, or adds them unless the
/// chunk is the first. With a scale, the logits become their gradient. Without one, the number is
/// [`Counts`](super::Counts), and the first logit of each row says whether its label has the largest. Long because
/// each argument of a launch is a line.
pub(super) fn after_product(
    stream: &cuda::Queue,
    loss: Dst<'_>,
    chunk: Chunk<'_>,
    scale: Option<f32>,
    dtype: Dtype,
) {
    let Chunk {
        logits,
        losses,
        labels,
        vocab,
        gap,
        first,
        bend,
        smoothing,
    } = chunk;
    let smooth = smoothing != 0.0 && scale.is_some();
    let source = match (smooth, bend.is_none()) {
        (true, _) => &SMOOTHED,
        (false, true) => &SOURCE,
        (false, false) => &BENT,
    };
    let e = size(dtype);
    let (rows, bytes) = (labels.bytes() / 4, vocab * e);
    let wide = bytes.is_multiple_of(16) && logits.address().is_multiple_of(16);
    // Small rows share a multiprocessor, so that one's barriers are another's copies.
    let threads = match bytes {
        0..=57_344 => 256,
        57_345..=114_688 => 512,
        _ => 1024,
    };
    let kernel = |name| {
        stream
            .kernel(source, define(dtype), name)
            .grid(rows, 1, 1)
            .block(threads)
            .arg(&logits)
            .arg(&losses)
            .arg(labels)
            .arg(vocab)
            .arg(vocab + gap)
    };
    let launch = match scale {
        Some(scale) => {
            // How much of a row is kept on chip shows in no bit, so it may be the device's affair.
            let unit = if wide { 16 } else { e };
            let most = stream.gpu().shared_memory() as usize;
            let kept = bytes.min(most.saturating_sub(OWN)) / unit;
            let name = if wide {
                "gradient_wide"
            } else {
                "gradient_narrow"
            };
            kernel(name)
                .shared((kept * unit).next_multiple_of(16))
                .arg(scale)
                .arg(kept as u32)
        }
        None => kernel(if wide { "loss_wide" } else { "loss_narrow" }),
    };
    let launch = match bend.is_none() && !smooth {
        true => launch,
        false => launch.arg(bend.factor).arg(bend.cap.unwrap_or(0.0)),
    };
    let launch = if smooth {
        launch.arg(smoothing)
    } else {
        launch
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch.launch();
    }
    let totals = Totals {
        loss: &loss,
        losses: &losses,
        labels,
        first,
        right: scale.is_none().then_some((&logits, vocab + gap)),
    };
    totals.add_up(stream, dtype);
}

/// What a chunk's rows add to the loss.
struct Totals<'a, 'b> {
    loss: &'a Dst<'b>,
    losses: &'a Dst<'b>,
    labels: Src<'b>,
    first: bool,
    /// In an evaluation what says which labels have the largest logit, and numbers from a row to the next.
    right: Option<(&'a Dst<'b>, usize)>,
}

impl Totals<'_, '_> {
    fn add_up(self, stream: &cuda::Queue, dtype: Dtype) {
        let kernel = |name| {
            stream
                .kernel(&SOURCE, define(dtype), name)
                .grid(1, 1, 1)
                .block(256)
                .arg(self.loss)
                .arg(self.losses)
                .arg(self.labels)
                .arg(self.labels.bytes() / 4)
                .arg(self.first)
        };
        let launch = match self.right {
            None => kernel("totals"),
            Some((logits, stride)) => kernel("totals_right").arg(logits).arg(stride),
        };
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            launch.launch();
        }
    }
}

/// As the operation; in the stream when the call returns.
pub(super) fn logits(
    q: &cuda::Queue,
    mut out: Dst<'_>,
    from: Reads<'_>,
    seq: usize,
    (d, dtype): (&Head, Dtype),
    mut s: Scratch<'_>,
) {
    let row = d.hidden * size(dtype);
    let rows_out = d.rows / seq;
    for first in (0..rows_out).step_by(d.most().max(1)) {
        let n = d.most().min(rows_out - first);
        let rows = s.logits.lend(0, n * row);
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            q.kernel(&SOURCE, define(dtype), "gather")
                .grid(n, 1, 1)
                .block(256)
                .arg(&rows)
                .arg(from.h.part(first * seq * row, n * seq * row))
                .arg(from.labels.part(first * seq * 4, n * seq * 4))
                .arg(seq)
                .arg(d.hidden)
                .launch();
        }
        let mut out = out.lend(first * d.vocab * 4, n * d.vocab * 4);
        let (rows, ws) = (rows.into_src(), s.product.again());
        matmul::cuda::forward_f32(q, out.again(), rows, from.w, d.dims(n), dtype, ws);
        if d.bend.is_none() {
            continue;
        }
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            q.kernel(&BENT, define(dtype), "bend")
                .grid((n * d.vocab).div_ceil(1024), 1, 1)
                .block(256)
                .arg(&out)
                .arg(n * d.vocab)
                .arg(d.bend.factor)
                .arg(d.bend.cap.unwrap_or(0.0))
                .launch();
        }
    }
}

/// `to` = `from` as f32; in the stream when the call returns.
pub(super) fn widen(q: &cuda::Queue, to: Dst<'_>, from: Src<'_>, n: usize, dtype: Dtype) {
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&SOURCE, define(dtype), "widen_all")
            .grid(n.div_ceil(256), 1, 1)
            .block(256)
            .arg(&to)
            .arg(from)
            .arg(n)
            .launch();
    }
}
