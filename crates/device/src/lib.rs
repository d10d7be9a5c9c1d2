//! What can run: buffers, views of them, and queues that run kernels. One interface, two backends: [`cpu`] and
//! [`cuda`].
//!
//! A [`Src`] is a range of memory to read, a [`Dst`] one to write, both without a type: what `&[u8]` and
//! `&mut [u8]` are to the processor's memory, they are to memory of any device. The plan says who may
//! use which bytes when and the checker has proved it, so the executor makes views where it binds a
//! task's arguments (`unsafe`, once); everybody else borrows.
//!
//! Nothing of CUDA is needed to build this crate, nor to run it on the CPU device: the driver and
//! NVIDIA's libraries are opened when [`cuda::Gpu::open`] is called.

pub mod comm;
pub mod cpu;
pub mod cuda;
mod lend;
pub mod memory;
mod queue;
mod view;

pub use lend::{Lender, Lent};
pub use memory::Memory;
pub use queue::Queue;
pub use view::{Dst, Place, Plain, Src};

/// A backend: what a workload is described for, because scratch differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Make {
    /// The host's cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}
