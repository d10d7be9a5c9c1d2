//! A CUDA device: its memory, its streams, and kernels compiled for it when they are first used.
//!
//! The driver and NVIDIA's libraries are opened at run time ([`Libraries`]); a machine without them
//! gets an error that lists what was searched. Everything asynchronous is in the order of one
//! stream a lane ([`Queue`]); [`Event`]s order streams against each other and tell the host when
//! work is done. There is no event but those that the executor records: the plan knows every
//! dependency.

mod blas;
mod copies;
mod cufile;
pub mod dnn;
mod error;
mod event;
mod gpu;
mod libraries;
mod links;
mod memory;
mod module;
mod nccl;
mod nvml;
mod pace;
mod queue;
#[cfg(test)]
mod stub;

pub use blas::{Format, NoAlgorithm, PRODUCT_WORKSPACE, Plus, Product, product};
pub use copies::Copies;
pub use cufile::{NoDirect, direct_rates, reach_direct, try_direct};
pub use error::CudaError;
pub use event::Event;
pub use gpu::Gpu;
pub use libraries::{Libraries, Library};
pub use memory::{DeviceMemory, Pinned};
pub(crate) use memory::{copy_now, fill_now};
pub use module::{Source, compile};
pub use nccl::NcclComm;
pub use nvml::{ProcessMemory, process_memory};
pub use pace::Pace;
pub use queue::{KernelArg, Launch, Pairs, Queue, copy_rounds};
