//! The compiled step at work: a plan, its memory, the model's kernels, and steps submitted to it.
//!
//! See ARCHITECTURE.md.

mod apart;
mod commit;
mod engine;
mod error;
mod hold;
mod homes;
mod outcome;
mod ranks;
mod requests;
mod resume;
mod session;
mod spikes;
mod step;
mod totals;

pub use apart::{Remote, serve};
pub use commit::{About, CommitRecord, Mark, StepNumbers};
pub use engine::{ClipRule, Engine};
pub use error::SessionError;
pub use hold::{NoSnapshot, Snapshot, can_hold, reads_device, staging_of_reader};
pub use homes::Homes;
pub use outcome::Outcome;
pub use ranks::{Group, RANKS, rank_folder};
pub use requests::Requests;
pub use resume::committed_by_all;
pub use session::{DiskChoice, Session, SessionOptions};
pub use spikes::{SpikeAction, SpikeRule};
pub use step::StepData;
pub use totals::{Odd, Totals};
// What a process that ends without unwinding still has to do.
pub use lowtide_executor::{HeldUp, Ready};
pub use lowtide_tiers::abandon;
