//! What people and programs see of a run: read from its output directory, as a value, and drawn as text or as a page.
//!
//! [`RunReport::read`] makes the value, with serde it is the JSON; [`text::compare`] and [`page::html`] draw one run or
//! several beside each other; [`arms`] holds runs of one comparison against each other, and [`account`](mod@account) is
//! what a run writes for them beside its metrics; [`data`] is the same for what a run would train on. [`memory`],
//! [`outcome`], [`step`], [`sweep`], [`mod@bench`] and [`rates`] are what commands find, each a value with its text;
//! [`table`] draws what is shown in columns. [`people`] writes bytes and seconds, [`chart`] and `panel` draw curves,
//! [`picture`] a planned step. Nothing here needs a machine, a model or a plan: an output directory of another machine
//! is read as well.
//!
//! See ARCHITECTURE.md.

pub mod account;
mod answers;
pub mod arms;
pub mod bench;
pub mod chart;
pub mod curve;
pub mod data;
mod error;
pub mod memory;
pub mod outcome;
pub mod page;
mod panel;
pub mod people;
pub mod picture;
pub mod rates;
mod run;
pub mod step;
mod style;
pub mod sweep;
pub mod table;
pub mod text;

pub use error::ReportError;
pub use run::{
    Answer, Curves, Evaluation, Figures, Match, PAGE, REPORT, RunReport, State, Step, account,
};
