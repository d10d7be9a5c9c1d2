//! The head on a CUDA device.
//!
//! Bound: the products' operations over their rate. Beside them each logit is written, read, and
//! replaced by its gradient: bytes over the memory's rate, a few percent of the products' time.

use lowtide_device::View;
use lowtide_device::cuda::{self, Source};
use lowtide_workload::Dtype;

use super::cpu::{Inputs, Outputs};
use super::{Head, Scratch};
use crate::cuda::{define, source};
use crate::matmul;
use crate::number::size;

static SOURCE: Source = source!("head", "head.cu");

/// Shared memory of a block that the kernels use themselves, with room.
const OWN: usize = 1024;

/// Where the kernels run: the queue, for the products' launchers, and its stream.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    pub queue: &'a lowtide_device::Queue,
    pub stream: &'a cuda::Queue,
}

/// As the operation, except that a label of V or more makes the loss, and the row's gradient, NaN;
/// in the stream when the call returns.
pub(super) fn train(
    on: On<'_>,
    to: Outputs<'_>,
    from: Inputs<'_>,
    scale: f32,
    d: &Head,
    accumulate: bool,
    dtype: Dtype,
    s: Scratch<'_>,
) {
    let q = on.queue;
    let row = d.hidden * size(dtype);
    begin(on, to.loss, d);
    for (first, n) in d.chunks() {
        let h = from.h.part(first * row, n * row);
        let dlogits = chunk(on, to.loss, h, from, (first, n), Some(scale), d, dtype, s);
        let dh = to.dh.part(first * row, n * row);
        matmul::backward_input(q, dh, dlogits, from.w, d.dims(n), dtype, s.product);
        let add = accumulate || first > 0;
        matmul::backward_weight(q, to.dw, dlogits, h, d.dims(n), add, dtype, s.product);
    }
}

/// As the operation; a label of V or more makes the loss NaN. In the stream when the call returns.
pub(super) fn loss(
    on: On<'_>,
    to: View<'_>,
    from: Inputs<'_>,
    d: &Head,
    dtype: Dtype,
    s: Scratch<'_>,
) {
    let row = d.hidden * size(dtype);
    begin(on, to, d);
    for (first, n) in d.chunks() {
        let h = from.h.part(first * row, n * row);
        chunk(on, to, h, from, (first, n), None, d, dtype, s);
    }
}

/// Without rows there is no first chunk to overwrite the sums.
fn begin(on: On<'_>, loss: View<'_>, d: &Head) {
    if d.rows == 0 {
        on.stream.fill(&loss, 0);
    }
}

/// Logits of a chunk, their losses into `loss`, and with a scale their gradient in their place,
/// which it returns.
fn chunk<'a>(
    on: On<'_>,
    loss: View<'_>,
    h: View<'_>,
    from: Inputs<'_>,
    (first, n): (usize, usize),
    scale: Option<f32>,
    d: &Head,
    dtype: Dtype,
    s: Scratch<'a>,
) -> View<'a> {
    let logits = s.logits.part(0, n * d.vocab * size(dtype));
    matmul::forward(
        on.queue,
        logits,
        h,
        from.w,
        None,
        None,
        d.dims(n),
        dtype,
        s.product,
    );
    let labels = from.labels.part(first * 4, n * 4);
    let losses = s.losses.part(0, n * size_of::<f64>());
    let to = (loss, losses);
    after_product(
        on.stream,
        to,
        logits,
        labels,
        first == 0,
        scale,
        d.vocab,
        dtype,
    );
    logits
}

/// Losses of a chunk's rows, one each, and their sum and number written to `loss`, or added to it unless
/// the chunk is the `first`; with a scale the logits become their gradient.
pub(super) fn after_product(
    stream: &cuda::Queue,
    (loss, losses): (View<'_>, View<'_>),
    logits: View<'_>,
    labels: View<'_>,
    first: bool,
    scale: Option<f32>,
    vocab: usize,
    dtype: Dtype,
) {
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
            .kernel(&SOURCE, define(dtype), name)
            .grid(rows, 1, 1)
            .block(threads)
            .arg(logits)
            .arg(losses)
            .arg(labels)
            .arg(vocab)
    };
    match scale {
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
                .launch();
        }
        None => kernel(if wide { "loss_wide" } else { "loss_narrow" }).launch(),
    }
    stream
        .kernel(&SOURCE, define(dtype), "totals")
        .grid(1, 1, 1)
        .block(256)
        .arg(loss)
        .arg(losses)
        .arg(labels)
        .arg(rows)
        .arg(first)
        .launch();
}

/// As the operation; in the stream when the call returns.
pub(super) fn logits(
    on: On<'_>,
    out: View<'_>,
    from: Inputs<'_>,
    seq: usize,
    d: &Head,
    dtype: Dtype,
    s: Scratch<'_>,
) {
    let row = d.hidden * size(dtype);
    let rows_out = d.rows / seq;
    for first in (0..rows_out).step_by(d.most().max(1)) {
        let n = d.most().min(rows_out - first);
        let rows = s.logits.part(0, n * row);
        on.stream
            .kernel(&SOURCE, define(dtype), "gather")
            .grid(n, 1, 1)
            .block(256)
            .arg(rows)
            .arg(from.h.part(first * seq * row, n * seq * row))
            .arg(from.labels.part(first * seq * 4, n * seq * 4))
            .arg(seq)
            .arg(d.hidden)
            .launch();
        let out = out.part(first * d.vocab * 4, n * d.vocab * 4);
        matmul::cuda::forward_f32(on.stream, out, rows, from.w, d.dims(n), dtype, s.product);
    }
}
