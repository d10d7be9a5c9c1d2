//! The command as its users meet it. All tests are one program: while one of them runs alone, others take the other
//! cores.

mod cases;
mod common;
mod documents;
mod errors;
mod faults;
mod kept;
mod keys;
mod kills;
mod plan;
mod recipes;
mod run;
mod shell;
