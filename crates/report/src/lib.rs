//! What people and programs see of a run: read from its output directory, as a value, and drawn as text or as a page.
//!
//! [`RunReport::read`] makes the value, with serde it is the JSON; [`text::compare`] and [`page::html`] draw one run or
//! several beside each other; [`data`] is the same for what a run would train on. [`people`] writes bytes and seconds, [`chart`] draws pictures. Nothing here needs
//! a machine, a model or a plan: an output directory of another machine is read as well.
//!
//! See ARCHITECTURE.md.

pub mod chart;
pub mod data;
mod error;
pub mod page;
pub mod people;
mod run;
pub mod text;

pub use error::ReportError;
pub use run::{Answer, Evaluation, Match, RunReport, State, Step};
