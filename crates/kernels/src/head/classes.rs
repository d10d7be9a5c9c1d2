//! Cross-entropy of logits that a product has made before: of a head that classifies documents, whose few logits all
//! exist at once.
//!
//! The losses are those of [`super::train`] and [`super::loss`], by the same functions of a row. Bound: bytes of the
//! logits, of which there are few.

use lowtide_device::{Dst, Place, Queue, Src, memory};
use lowtide_workload::Dtype;

use super::{Bend, Counts, cpu, cuda};
use crate::number::{self, Number, expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};

/// Sizes of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classes {
    /// B·T: rows of logits.
    pub rows: usize,
    /// Numbers of a row, one a class.
    pub classes: usize,
    /// What share of each label [`train`] spreads evenly over all classes: 0 to 1.
    pub smoothing: f32,
}

impl Classes {
    fn numbers(&self) -> usize {
        self.rows * self.classes
    }

    /// Bytes of the losses in the scratch.
    fn losses(&self) -> usize {
        (self.rows * size_of::<f64>()).next_multiple_of(256)
    }
}

/// Bytes of scratch of either operation: a loss a row, and the logits again.
#[must_use]
pub fn workspace(d: &Classes, dtype: Dtype) -> usize {
    d.losses() + d.numbers() * size(dtype)
}

operands! {
    /// Operands of [`train`].
    pub struct Train<F> {
        /// E (rows, classes).
        pub d_logits: F::Write,
        /// Two f64: the sum of losses and the number of rows that have one.
        pub loss: F::Write,
        /// E (rows, classes).
        pub logits: F::Read,
        /// Of which labels, i32 (rows), negative for rows without a loss.
        pub inputs: F::Inputs,
    }
}

operands! {
    /// Operands of [`loss`].
    pub struct Loss<F> {
        /// An f64, the sum of losses, and [`Counts`].
        pub loss: F::Write,
        /// E (rows, classes).
        pub logits: F::Read,
        /// The planes of which the labels are read, i32 (B·T).
        pub inputs: F::Inputs,
    }
}

operands! {
    /// Operands of [`values`].
    pub struct Values<F> {
        /// f32 (rows, classes).
        pub values: F::Write,
        /// E (rows, classes).
        pub logits: F::Read,
    }
}

/// Cross-entropy of the logits against the labels, and its gradients times `scale`, rounded to E; smoothing as
/// [`super::train`]'s. A label of `classes` or more panics; on a CUDA queue it makes the sum of losses, and the
/// gradient of its row, NaN. Finished, or in the stream of a CUDA queue, when the call returns.
pub fn train(q: &Queue, o: Train<Views<'_>>, scale: f32, d: &Classes, dtype: Dtype, ws: Dst<'_>) {
    expect("d_logits", &o.d_logits, d.numbers(), size(dtype));
    let from = (o.logits, o.inputs.labels);
    both(q, (o.loss, o.d_logits), from, Some(scale), (d, dtype), ws);
}

/// The loss alone, without smoothing, and how often the label has the largest logit. Finished, or in the stream of
/// a CUDA queue, when the call returns.
pub fn loss(q: &Queue, o: Loss<Views<'_>>, d: &Classes, dtype: Dtype, ws: Dst<'_>) {
    expect_workspace(&ws, workspace(d, dtype));
    let (losses, copy) = ws.split_at(d.losses());
    let copy = copy.part(0, d.numbers() * size(dtype));
    let from = (o.logits, o.inputs.labels);
    both(q, (o.loss, copy), from, None, (d, dtype), losses);
}

/// The loss of `from` to the first of `to`; the second, a copy of the logits, becomes their gradient.
fn both(
    q: &Queue,
    (loss, mut copy): (Dst<'_>, Dst<'_>),
    (logits, labels): (Src<'_>, Src<'_>),
    scale: Option<f32>,
    (d, dtype): (&Classes, Dtype),
    ws: Dst<'_>,
) {
    expect("loss", &loss, 2, size_of::<f64>());
    expect("logits", logits, d.numbers(), size(dtype));
    expect("labels", labels, d.rows, size_of::<i32>());
    expect_workspace(&ws, d.rows * size_of::<f64>());
    let losses = ws.part(0, d.rows * size_of::<f64>());
    let head = super::Head {
        rows: d.rows,
        hidden: 0,
        vocab: d.classes,
        chunk: d.rows,
        bend: Bend::NONE,
        smoothing: d.smoothing,
    };
    if let Some(q) = q.cuda() {
        if d.rows == 0 {
            return q.fill(loss, 0);
        }
        q.copy(copy.again(), logits);
        let chunk = cuda::Chunk {
            logits: copy,
            losses,
            labels,
            vocab: d.classes,
            gap: 0,
            first: true,
            bend: Bend::NONE,
            smoothing: d.smoothing,
        };
        return cuda::after_product(q, loss, chunk, scale, dtype);
    }
    q.run(|| {
        memory::copy(copy.again(), logits);
        let scratch = super::Scratch {
            logits: copy,
            losses,
            product: Dst::none(Place::Host),
        };
        let (mut total, mut counts) = (0.0, Counts::default());
        let sums = (&mut total, &mut counts);
        with_dtype!(
            dtype,
            cpu::chunk_losses(labels, scale, &head, &scratch, sums)
        );
        let second = match scale {
            Some(_) => f64::from(counts.rows),
            None => counts.word(),
        };
        loss.write().copy_from_slice(&[total, second]);
    });
}

/// The logits as f32.
pub fn values(q: &Queue, o: Values<Views<'_>>, d: &Classes, dtype: Dtype) {
    expect("values", &o.values, d.numbers(), size_of::<f32>());
    expect("logits", o.logits, d.numbers(), size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::widen(q, o.values, o.logits, d.numbers(), dtype);
    }
    q.run(|| with_dtype!(dtype, widen(o, d.numbers())));
}

fn widen<E: Number>(o: Values<Views<'_>>, n: usize) {
    let from = number::read::<E>(o.logits, 0, n);
    let to = o.values.write::<f32>();
    to.iter_mut().zip(from).for_each(|(to, x)| *to = x.widen());
}

#[cfg(test)]
#[path = "classes_tests.rs"]
mod tests;
