//! One folder an operation: what it computes, its checks of shapes and its launcher (`mod.rs`), the
//! CPU version (`cpu.rs`) and a plain version in `f64` (`reference.rs`) against which it is tested.
//!
//! Launchers take [`View`](lowtide_device::View)s of device memory. Three rules hold for all:
//!
//! - **A call is a task of the plan.** The plan gives a task its views and keeps every other user
//!   of the same bytes away while it runs; that is the safety argument of each `unsafe` here. On a
//!   CPU queue the call returns when its work is done, on a CUDA queue when it is in the stream. Shapes that do not fit the views are bugs and panic.
//! - **Storage is bf16 or f32, arithmetic is f32.** Tensors of the model (marked E in the
//!   documentation) have the run's [`Dtype`](lowtide_workload::Dtype); a result is rounded once, to
//!   nearest even, when it is stored. Statistics and gradient accumulators are `f32`, norm partials
//!   and losses are `f64`.
//! - **Bits do not depend on threads.** Work is cut by shape alone, sums have a fixed order, and no
//!   two threads add to one number.
//!
//! Gradients of weights go to `f32` accumulators: `accumulate = false` overwrites (the first
//! micro-batch of a batch), `true` adds. Every other output is overwritten in full. `ws` is scratch
//! of at least the operation's `workspace` bytes, garbage before and after.

// A kernel's operands are its documentation; bundling them in structs would only move the names.
#![allow(clippy::too_many_arguments)]

pub mod adamw;
pub mod attention;
pub mod embedding;
pub mod gelu;
pub mod gradient;
pub mod head;
pub mod layernorm;
pub mod matmul;
pub mod rmsnorm;
pub mod rope;
pub mod swiglu;

mod cuda;
mod number;
mod product;
mod rows;
#[cfg(test)]
mod testing;
