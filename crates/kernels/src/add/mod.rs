//! A multiple of a tensor, alone or with another added: `y = factor·x [+ residual]`.
//!
//! For blocks that add to the residual stream what a product cannot: something normed, or multiplied (OLMo 2, Granite,
//! Gemma 2). Bound: bytes over memory rate, two or three numbers an element.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::Queue;
use lowtide_workload::Dtype;

use crate::number::{expect, size, with_dtype};
use crate::operands::{Views, operands};

operands! {
    /// Operands of [`forward`], all E (n).
    pub struct Forward<F> {
        /// The result; written once, rounded to E.
        pub y: F::Write,
        /// What is multiplied.
        pub x: F::Read,
        /// What is added to it.
        pub residual: Option<F::Read>,
    }
}

/// `y = factor·x [+ residual]`; the product is not rounded to E before the sum.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, n: usize, factor: f32, dtype: Dtype) {
    expect("y", &o.y, n, size(dtype));
    expect("x", o.x, n, size(dtype));
    o.residual
        .into_iter()
        .for_each(|r| expect("residual", r, n, size(dtype)));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, n, factor, dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(o, n, factor)));
}

#[cfg(test)]
mod tests;
