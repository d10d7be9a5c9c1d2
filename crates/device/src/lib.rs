//! What can run: buffers, views of them, and queues that run kernels. One face, two makes:
//! [`cpu`] here; CUDA beside it later.
//!
//! A [`View`] is a range of device memory without a type. It carries no lifetime: the plan says
//! who may use which bytes when, the checker has proved it, and the executor hands a task only the
//! views that the plan gave it. That contract is the safety argument of every `unsafe` below.

pub mod cpu;
pub mod memory;

pub use cpu::{Queue, View};
pub use memory::Memory;
