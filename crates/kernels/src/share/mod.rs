//! The gradient of an output that several units read: it adds up in f32, whatever is stored, one reader after another,
//! and is rounded once by the unit whose output it is.
//!
//! Bound: bytes over memory rate.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::Queue;
use lowtide_workload::Dtype;

use crate::number::{expect, size, with_dtype};
use crate::operands::{Views, operands};

operands! {
    /// Operands of [`add`], both (n).
    pub struct Add<F> {
        /// f32.
        pub sum: F::Share,
        /// E: what a reader adds.
        pub x: F::Read,
    }
}

operands! {
    /// Operands of [`round`], both (n).
    pub struct Round<F> {
        /// E: the sum, rounded.
        pub y: F::Write,
        /// f32: the sum of all readers.
        pub sum: F::Read,
    }
}

/// `sum [+]= x`.
pub fn add(q: &Queue, o: Add<Views<'_>>, n: usize, dtype: Dtype) {
    expect("sum", &o.sum.to, n, size_of::<f32>());
    expect("x", o.x, n, size(dtype));
    if let Some(q) = q.cuda() {
        return cuda::add(q, o, n, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::add(o, n)));
}

/// `y = sum`, rounded.
pub fn round(q: &Queue, o: Round<Views<'_>>, n: usize, dtype: Dtype) {
    expect("y", &o.y, n, size(dtype));
    expect("sum", o.sum, n, size_of::<f32>());
    if let Some(q) = q.cuda() {
        return cuda::round(q, o, n, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::round(o, n)));
}

#[cfg(test)]
mod tests;
