//! Training as a whole, on the CPU device. One program: while one of these runs alone, others take the other cores.
//! Beside it, as programs of their own, stand those that run on a GPU too (`cargo xtask gpu`), and two that measure
//! this process or the drive (`memory`, `disk_rate`).

mod adaptive;
mod budgets;
mod common;
mod durable;
mod ends;
mod faults;
mod gsm8k;
mod lsp;
mod mutants;
mod offload;
mod per_tensor;
mod resume;
mod rounds;
mod shuffled;
mod stacks;
mod waits;

// What `mutation` takes of the module above it: in the planner that is the planner.
use lowtide_planner::{Arg, PartName, Phase, Plan, SlotId, Task, TaskId, Tensor, Tier, Use, Work};

/// How the planner's own tests do one task of a plan wrong.
#[path = "../../planner/src/mutants.rs"]
mod mutation;
