//! What came from outside and once went wrong: other people's files, full disks, signals, attacks.
//!
//! One test a case; its files lie under `inputs/`, with a README that says what should happen. The
//! table in docs/robustness.md tells which kind of fault each case stands for.

mod adaptive;
mod answers;
mod best;
mod branches;
mod checked;
mod classes;
mod compare;
mod data;
mod durable;
mod export;
mod families;
mod finished;
mod freeze;
mod hub;
mod launched;
mod long;
mod looks;
mod lost;
mod lsp;
mod masks;
mod memory;
mod outputs;
mod pages;
mod pairs;
mod ranks;
mod records;
pub mod scratch;
mod signals;
mod spikes;
mod strangers;
mod terminal;
mod tokenizers;
mod unwritten;
mod wrong;
