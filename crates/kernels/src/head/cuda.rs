//! The head on a CUDA device.
//!
//! Bound: the products' operations over their rate. Beside them each logit is written, read, and
//! replaced by its gradient: bytes over the memory's rate, a few percent of the products' time.

use lowtide_device::cuda::{self, Source};
use lowtide_device::{Dst, Src};
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
    mut to: Outputs<'_>,
    from: Inputs<'_>,
    scale: f32,
    d: &Head,
    accumulate: bool,
    dtype: Dtype,
    mut s: Scratch<'_>,
) {
    let q = on.queue;
    let row = d.hidden * size(dtype);
    begin(on, to.loss.again(), d);
    for (first, n) in d.chunks() {
        let h = from.h.part(first * row, n * row);
        let loss = to.loss.again();
        chunk(on, loss, h, from, (first, n), Some(scale), d, dtype, &mut s);
        let dlogits = s.logits.src().part(0, n * d.vocab * size(dtype));
        let dh = to.dh.lend(first * row, n * row);
        let ws = s.product.again();
        matmul::backward_input(q, dh, dlogits, from.w, d.dims(n), dtype, ws);
        let add = accumulate || first > 0;
        let (dw, ws) = (to.dw.again(), s.product.again());
        matmul::backward_weight(q, dw, dlogits, h, d.dims(n), add, dtype, ws);
    }
}

/// As the operation; a label of V or more makes the loss NaN. In the stream when the call returns.
pub(super) fn loss(
    on: On<'_>,
    mut to: Dst<'_>,
    from: Inputs<'_>,
    d: &Head,
    dtype: Dtype,
    mut s: Scratch<'_>,
) {
    let row = d.hidden * size(dtype);
    begin(on, to.again(), d);
    for (first, n) in d.chunks() {
        let h = from.h.part(first * row, n * row);
        chunk(on, to.again(), h, from, (first, n), None, d, dtype, &mut s);
    }
}

/// Without rows there is no first chunk to overwrite the sums.
fn begin(on: On<'_>, loss: Dst<'_>, d: &Head) {
    if d.rows == 0 {
        on.stream.fill(loss, 0);
    }
}

/// Logits of a chunk into the scratch, their losses into `loss`, and with a scale their gradient in
/// their place.
fn chunk(
    on: On<'_>,
    loss: Dst<'_>,
    h: Src<'_>,
    from: Inputs<'_>,
    (first, n): (usize, usize),
    scale: Option<f32>,
    d: &Head,
    dtype: Dtype,
    s: &mut Scratch<'_>,
) {
    let mut logits = s.logits.lend(0, n * d.vocab * size(dtype));
    matmul::forward(
        on.queue,
        logits.again(),
        h,
        from.w,
        None,
        None,
        d.dims(n),
        dtype,
        s.product.again(),
    );
    let labels = from.labels.part(first * 4, n * 4);
    let losses = s.losses.lend(0, n * size_of::<f64>());
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
}

/// Losses of a chunk's rows, one each, and their sum and number written to `loss`, or added to it unless
/// the chunk is the `first`; with a scale the logits become their gradient.
pub(super) fn after_product(
    stream: &cuda::Queue,
    (loss, losses): (Dst<'_>, Dst<'_>),
    logits: Dst<'_>,
    labels: Src<'_>,
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
            .arg(&logits)
            .arg(&losses)
            .arg(labels)
            .arg(vocab)
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
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch.launch();
    }
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        stream
            .kernel(&SOURCE, define(dtype), "totals")
            .grid(1, 1, 1)
            .block(256)
            .arg(&loss)
            .arg(&losses)
            .arg(labels)
            .arg(rows)
            .arg(first)
            .launch();
    }
}

/// As the operation; in the stream when the call returns.
pub(super) fn logits(
    on: On<'_>,
    mut out: Dst<'_>,
    from: Inputs<'_>,
    seq: usize,
    d: &Head,
    dtype: Dtype,
    mut s: Scratch<'_>,
) {
    let row = d.hidden * size(dtype);
    let rows_out = d.rows / seq;
    for first in (0..rows_out).step_by(d.most().max(1)) {
        let n = d.most().min(rows_out - first);
        let rows = s.logits.lend(0, n * row);
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            on.stream
                .kernel(&SOURCE, define(dtype), "gather")
                .grid(n, 1, 1)
                .block(256)
                .arg(&rows)
                .arg(from.h.part(first * seq * row, n * seq * row))
                .arg(from.labels.part(first * seq * 4, n * seq * 4))
                .arg(seq)
                .arg(d.hidden)
                .launch();
        }
        let out = out.lend(first * d.vocab * 4, n * d.vocab * 4);
        let (rows, ws) = (rows.into_src(), s.product.again());
        matmul::cuda::forward_f32(on.stream, out, rows, from.w, d.dims(n), dtype, ws);
    }
}
