//! The compiled step at work: a plan, its memory, the model's kernels, and steps submitted to it.

mod commit;
mod engine;
mod homes;
mod session;

pub use commit::{About, CommitRecord, Mark, StepNumbers};
pub(crate) use engine::store_inputs;
pub use engine::{ClipRule, Engine, Outcome, StepData};
pub use homes::{Homes, Role};
pub use session::{DiskChoice, Session, SessionOptions};
