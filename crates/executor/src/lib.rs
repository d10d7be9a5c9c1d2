//! Runs a plan: one worker a lane, events from the plan only.
//!
//! The executor knows tasks, not layers. Copies and disk transfers it makes itself; all other work
//! it hands, with the bytes that the plan bound to it, to an [`Engine`]. Each lane runs its tasks
//! in plan order; before each it waits until the other lanes have completed as many tasks as the
//! plan's edges ask. Edges point backward in one global order, so lanes cannot deadlock; should one
//! stand still all the same, the watchdog names the chain of tasks that wait for each other.
//!
//! On a CUDA device the gpu, h2d and d2h lanes are streams: their workers give tasks to the stream
//! with the waits that the edges ask, and run ahead of the device.
//!
//! [`Runner`] has real threads. With [`Mode::Shuffled`] one thread runs the tasks in an order drawn
//! from a seed among all that the edges allow: what real threads could do, without luck.

mod bind;
mod disk_lane;
mod error;
mod hold;
mod options;
mod parts;
mod progress;
mod retire;
mod runner;
mod shared;
mod shuffled;
mod standstill;
mod streams;
mod timeline;
mod trace;
mod waits;
mod worker;

pub use bind::held::{Held, HeldUp, Ready};
pub use bind::idle::Idle;
pub use bind::{Bound, Engine, Record, TaskCall, Tiers};
pub use error::{EngineError, ExecError};
pub use hold::HeldFrom;
pub use options::{Mode, Options};
pub use runner::Runner;
pub use timeline::{LaneMeasure, Measured, task_label};
pub use trace::Trace;
