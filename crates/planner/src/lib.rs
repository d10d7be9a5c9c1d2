//! Machine, workload and budgets in; a checked plan out. Arithmetic only: no memory, no file, no
//! clock, no model.
//!
//! [`plan::Plan`] is the data; [`search::plan`] chooses; `draft`, `layout` and `edges` make a plan from choices;
//! [`check`](mod@check) proves it; [`simulate`](mod@simulate) predicts it; [`explain`](mod@explain) describes it to
//! people.

mod build;
pub mod check;
pub mod choice;
mod draft;
mod edges;
pub mod explain;
mod fast;
mod lanes;
mod layout;
pub mod machine;
mod parts;
pub mod plan;
mod program;
pub mod rounds;
pub mod search;
pub mod simulate;
pub mod slowdown;
mod speeds;
mod tiers;
pub mod timeline;
pub mod together;
pub mod traffic;
mod updates;
pub mod waits;

pub use build::build;
pub use choice::{
    Activations, Ahead, Budgets, Choice, Clip, Direct, LoopOrder, Pieces, Processor, Saved,
};
pub use machine::{
    BadRate, DirectRates, DiskRates, Machine, NetRates, NetworkRates, RankLinks, Shared, Source,
};
pub use plan::{
    Arg, Lane, LaneKind, PartName, PerLane, PerPart, PerTier, Phase, Piece, PieceId, Plan, Slot,
    SlotId, Task, TaskId, Tensor, Tier, Use, Version, Work,
};
pub use rounds::Rounds;
pub use search::again::{Again, plan_again};
pub use search::{Pins, PlanError, Refusal, Request, plan as make, plan_one_step as make_one_step};
pub use slowdown::Slowdown;
pub use together::Together;
pub use updates::{UpdateRate, Updates};

#[cfg(test)]
mod decode_tests;
#[cfg(test)]
mod direct_tests;
#[cfg(test)]
mod durable_tests;
#[cfg(test)]
mod frozen_tests;
#[cfg(test)]
mod graph_tests;
#[cfg(test)]
mod mutants;
#[cfg(test)]
mod mutants_tests;
#[cfg(test)]
mod ranks_tests;
#[cfg(test)]
mod rounds_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
