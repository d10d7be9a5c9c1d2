//! What can run: buffers, views of them, and queues that run kernels. One face, two makes: [`cpu`]
//! and [`cuda`].
//!
//! A [`View`] is a range of memory without a type. It carries no lifetime of its uses: the plan
//! says who may use which bytes when, the checker has proved it, and the executor hands a task only
//! the views that the plan gave it. That contract is the safety argument of every `unsafe` below.
//!
//! Nothing of CUDA is needed to build this crate, nor to run it on the CPU device: the driver and
//! NVIDIA's libraries are opened when [`cuda::Gpu::open`] is called.

pub mod cpu;
pub mod cuda;
pub mod memory;
mod queue;
mod view;

pub use memory::Memory;
pub use queue::Queue;
pub use view::{Place, Plain, View};

/// Which make of device: what a workload is described for, because scratch differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Make {
    /// The host's cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}
