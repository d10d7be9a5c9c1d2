//! Logits and cross-entropy in chunks of rows, so that (rows, V) never exists at once.
//!
//! The loss and its gradient are made together: logits of a chunk are a matrix product, become
//! their own gradient in place, and feed the two products of backward. Bound: 6·rows·C·V
//! operations over the rate of a matrix product.

pub mod classes;
mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::matmul::{self, Dims};
use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Planes, Views, operands};

/// The label of a row without a loss.
pub const NO_LOSS: i32 = -100;

/// What becomes of the product's results before they are logits: x is multiplied by `factor`, then becomes
/// `cap·tanh(x/cap)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bend {
    /// More than 0.
    pub factor: f32,
    /// What logits cannot exceed, more than 0.
    pub cap: Option<f32>,
}

impl Bend {
    /// Logits are the product's results.
    pub const NONE: Self = Self {
        factor: 1.0,
        cap: None,
    };

    /// Whether nothing becomes of them.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// What [`loss`] counts: the bits of its second word, rows in the lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that have a loss.
    pub rows: u32,
    /// Those of them whose label has the largest logit. Of several that are as large the first counts, as in greedy
    /// decoding.
    pub right: u32,
}

impl Counts {
    /// The counts that the second word of a loss holds as its bits.
    #[must_use]
    pub fn of(word: f64) -> Self {
        let bits = word.to_bits();
        Self {
            rows: bits as u32,
            right: (bits >> 32) as u32,
        }
    }

    /// The inverse of [`Self::of`].
    #[must_use]
    pub fn word(self) -> f64 {
        f64::from_bits(u64::from(self.right) << 32 | u64::from(self.rows))
    }
}

/// Sizes of the head, and what becomes of its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// B·T: rows of hidden numbers.
    pub rows: usize,
    /// C: width of a row.
    pub hidden: usize,
    /// V: logits of a row.
    pub vocab: usize,
    /// Rows whose logits exist at once.
    pub chunk: usize,
    /// Between the product and the loss.
    pub bend: Bend,
    /// What share of each label [`train`] spreads evenly over all V tokens: 0 to 1.
    pub smoothing: f32,
}

impl Head {
    /// The chunks of rows, in order: first row and number of rows.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (rows, chunk) = (self.rows, self.chunk.max(1));
        (0..rows)
            .step_by(chunk)
            .map(move |first| (first, chunk.min(rows - first)))
    }

    /// The logits of `n` rows as a matrix product.
    fn dims(&self, n: usize) -> Dims {
        Dims {
            rows: n,
            inner: self.hidden,
            cols: self.vocab,
        }
    }

    /// Numbers between rows of logits on a device: rows start at multiples of 16 bytes, for which cuBLASLt has faster
    /// algorithms (a vocabulary of 50,257: 269 ms for 318 at C = 8192 on an H100).
    fn gap(&self, dtype: Dtype, make: Make) -> usize {
        match make {
            Make::Cpu => 0,
            Make::Cuda => self.vocab.next_multiple_of(16 / size(dtype)) - self.vocab,
        }
    }

    /// Rows of a full chunk.
    fn most(&self) -> usize {
        self.chunk.max(1).min(self.rows)
    }

    fn check(&self, from: &Reads<'_>, dtype: Dtype) {
        expect("h", from.h, self.rows * self.hidden, size(dtype));
        expect("w", from.w, self.vocab * self.hidden, size(dtype));
        expect("labels", from.labels, self.rows, size_of::<i32>());
    }
}

/// What training, loss and logits all read.
#[derive(Clone, Copy)]
struct Reads<'a> {
    h: Src<'a>,
    w: Src<'a>,
    labels: Src<'a>,
}

impl<'a> Reads<'a> {
    fn of(h: Src<'a>, w: Src<'a>, inputs: Planes<'a>) -> Self {
        Self {
            h,
            w,
            labels: inputs.labels,
        }
    }

    /// Those of a chunk: its first row and number of rows.
    fn rows(self, (first, n): (usize, usize), d: &Head, size: usize) -> Self {
        let row = d.hidden * size;
        Self {
            h: self.h.part(first * row, n * row),
            w: self.w,
            labels: self
                .labels
                .part(first * size_of::<i32>(), n * size_of::<i32>()),
        }
    }
}

/// How a chunk's scratch is laid out.
struct Scratch<'a> {
    /// E (chunk, max(V + gap, C)): logits, or rows of h that were gathered.
    logits: Dst<'a>,
    /// f64 (chunk): losses of rows.
    losses: Dst<'a>,
    /// Scratch of the matrix products.
    product: Dst<'a>,
}

impl<'a> Scratch<'a> {
    fn new(ws: Dst<'a>, d: &Head, dtype: Dtype, make: Make) -> Self {
        let [logits, losses, product] = Self::bytes(d, dtype, make);
        let (front, rest) = ws.split_at(logits);
        let (middle, rest) = rest.split_at(losses);
        Self {
            logits: front,
            losses: middle,
            product: rest.part(0, product),
        }
    }

    fn bytes(d: &Head, dtype: Dtype, make: Make) -> [usize; 3] {
        let logits = d.most() * (d.vocab + d.gap(dtype, make)).max(d.hidden) * size(dtype);
        // What the device's libraries want of the products' scratch.
        let align = match make {
            Make::Cpu => 64,
            Make::Cuda => 256,
        };
        let last = d.rows - d.rows / d.most().max(1) * d.most();
        let product = [d.most(), last].map(|n| matmul::workspace(d.dims(n), dtype, make));
        [
            logits.next_multiple_of(64),
            d.most() * 8,
            product[0].max(product[1]),
        ]
        .map(|bytes| bytes.next_multiple_of(align))
    }
}

/// Bytes of scratch of any of the three operations: one chunk's logits, and a product's panels.
#[must_use]
pub fn workspace(d: &Head, dtype: Dtype, make: Make) -> usize {
    Scratch::bytes(d, dtype, make).iter().sum()
}

operands! {
    /// Operands of [`train`].
    pub struct Train<F> {
        /// E (rows, C).
        pub dh: F::Write,
        /// f32 (V, C); none where the matrix is frozen.
        pub dw: Option<F::Add>,
        /// Two f64: the sum of losses and the number of rows that have one.
        pub loss: F::Write,
        /// E (rows, C).
        pub h: F::Read,
        /// E (V, C).
        pub w: F::Read,
        /// Of which labels, i32 (rows), with [`NO_LOSS`] (or anything negative) for rows without a loss.
        pub inputs: F::Inputs,
    }
}

operands! {
    /// Operands of [`loss`], as [`Train`]'s.
    pub struct Loss<F> {
        /// An f64, the sum of losses, and [`Counts`].
        pub loss: F::Write,
        /// E (rows, C).
        pub h: F::Read,
        /// E (V, C).
        pub w: F::Read,
        /// The planes of which the labels are read, i32 (B·T).
        pub inputs: F::Inputs,
    }
}

operands! {
    /// Operands of [`logits`].
    pub struct Logits<F> {
        /// f32 (rows / T, V), not rounded to E.
        pub logits: F::Write,
        /// E (rows, C).
        pub h: F::Read,
        /// E (V, C).
        pub w: F::Read,
        /// The planes of which the labels are read, i32 (B·T).
        pub inputs: F::Inputs,
    }
}

/// Cross-entropy of `h·wᵀ`, [bent](Bend), against the labels, and its gradients times `scale`. With a smoothing e the
/// target is `(1 - e)·onehot + e/V`, as in PyTorch's `cross_entropy(label_smoothing=e)` and transformers'
/// `LabelSmoother`.
///
/// The product's results are rounded to E, bent in f32, and the gradient of each, `(softmax - target)·scale` and what
/// the bend makes of it, is rounded to E. `dw` gains chunk after chunk, in the order of rows. A label of V or more
/// panics; on a CUDA queue it makes the sum of losses, and the gradient of its row, NaN. Finished, or in the stream
/// of a CUDA queue, when the call returns.
pub fn train(q: &Queue, o: Train<Views<'_>>, scale: f32, d: &Head, dtype: Dtype, ws: Dst<'_>) {
    expect("dh", &o.dh, d.rows * d.hidden, size(dtype));
    o.dw.iter()
        .for_each(|dw| expect("dw", &dw.to, d.vocab * d.hidden, size_of::<f32>()));
    expect("loss", &o.loss, 2, size_of::<f64>());
    let from = Reads::of(o.h, o.w, o.inputs);
    d.check(&from, dtype);
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    let scratch = Scratch::new(ws, d, dtype, q.make());
    if let Some(stream) = q.cuda() {
        return cuda::train(stream, o, scale, (d, dtype), scratch);
    }
    q.run(|| with_dtype!(dtype, cpu::train(o, scale, d, scratch)));
}

/// The loss alone, without smoothing, with the same bits as [`train`]'s, and how often the label has the largest of
/// the logits that the loss is made of: rounded to E, then [bent](Bend). Finished, or in the stream of a CUDA queue,
/// when the call returns.
pub fn loss(q: &Queue, o: Loss<Views<'_>>, d: &Head, dtype: Dtype, ws: Dst<'_>) {
    expect("loss", &o.loss, 2, size_of::<f64>());
    let from = Reads::of(o.h, o.w, o.inputs);
    d.check(&from, dtype);
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    let scratch = Scratch::new(ws, d, dtype, q.make());
    if let Some(stream) = q.cuda() {
        return cuda::loss(stream, o.loss, from, d, dtype, scratch);
    }
    q.run(|| with_dtype!(dtype, cpu::loss(o.loss, from, d, scratch)));
}

/// One row of logits, [bent](Bend), for each `seq` rows (a sequence, or a span of one), at its row whose label is not
/// negative (the first, should there be several; zeros where there is none). Finished, or in the stream of a CUDA
/// queue, when the call returns.
pub fn logits(q: &Queue, o: Logits<Views<'_>>, seq: usize, d: &Head, dtype: Dtype, ws: Dst<'_>) {
    assert!(
        seq > 0 && d.rows.is_multiple_of(seq),
        "{} rows in sequences of {seq}",
        d.rows
    );
    expect(
        "logits",
        &o.logits,
        d.rows / seq * d.vocab,
        size_of::<f32>(),
    );
    let from = Reads::of(o.h, o.w, o.inputs);
    d.check(&from, dtype);
    expect_workspace(&ws, workspace(d, dtype, q.make()));
    let scratch = Scratch::new(ws, d, dtype, q.make());
    if let Some(stream) = q.cuda() {
        return cuda::logits(stream, o.logits, from, seq, (d, dtype), scratch);
    }
    q.run(|| with_dtype!(dtype, cpu::logits(o.logits, from, seq, d, scratch)));
}

#[cfg(test)]
mod tests;
