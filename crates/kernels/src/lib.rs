//! One folder an operation: what it computes, its checks of shapes and its launcher (`mod.rs`), the
//! CPU version (`cpu.rs`) and a plain version in `f64` (`reference.rs`) against which it is tested.
//!
//! Launchers take a struct of their operands ([`operands`]: the one definition that a description and a run share),
//! then sizes, then scratch. What is read is a [`Src`](lowtide_device::Src), what is written a
//! [`Dst`](lowtide_device::Dst), so an operation runs in place only where its operands have the bytes once:
//!
//! ```compile_fail,E0505
//! use lowtide_device::{Dst, Queue};
//! let (q, mut numbers) = (Queue::new("gpu", 1), [0.5_f32; 8]);
//! let y = Dst::of(&mut numbers);
//! let x = y.src();
//! let operands = lowtide_kernels::gelu::Forward { y, x };
//! lowtide_kernels::gelu::forward(&q, operands, 8, lowtide_kernels::gelu::Form::Tanh, lowtide_workload::Dtype::F32);
//! ```
//!
//! Three rules hold for all:
//!
//! - **A call is a task of the plan.** On a CPU queue the call returns when its work is done, on a CUDA
//!   queue when it is in the stream. Shapes that do not fit the views are bugs and panic. What is
//!   `unsafe` here is threads that share one output, each of which writes numbers of its own, and launches
//!   (see `cuda.rs`).
//! - **Storage is bf16 or f32, arithmetic is f32.** Tensors of the model (marked E in the
//!   documentation) have the run's [`Dtype`](lowtide_workload::Dtype); a result is rounded once, to
//!   nearest even, when it is stored. Statistics and gradient accumulators are `f32`, norm partials
//!   and losses are `f64`.
//! - **Bits do not depend on threads.** Work is cut by shape alone, sums have a fixed order, and no
//!   two threads add to one number.
//!
//! Gradients of weights go to `f32` accumulators ([`operands::Sum`]): `accumulate = false` overwrites (the first
//! micro-batch of a batch), `true` adds. Every other output is overwritten in full. `ws` is scratch
//! of at least the operation's `workspace` bytes, garbage before and after.

mod adafactor;
mod adamw;
pub mod add;
pub mod attention;
pub mod embedding;
pub mod experts;
pub mod gelu;
pub mod gradient;
pub mod grouped;
pub mod head;
pub mod layernorm;
mod lion;
pub mod matmul;
pub mod operands;
pub mod qknorm;
pub mod relative;
pub mod rmsnorm;
pub mod rope;
pub mod route;
pub mod share;
pub mod swiglu;
pub mod tanh;
pub mod update;

mod cuda;
mod number;
mod product;
mod rows;
pub use rows::Rows;

#[cfg(test)]
mod testing;
