//! From data files to batches of token ids, labels, positions and document starts.
//!
//! The way of a record: `source` takes it out of its file as JSON, [`jsonl`] reads and checks it, [`chat`] renders
//! messages as text, [`mask`] turns it into tokens and marks the supervised ones, [`dataset`] keeps them all (`store`),
//! [`packing`] lays documents into rows of T tokens, [`batches`] deals the rows out, shuffled by (seed, epoch) alone or
//! in the files' order.
//!
//! Everything is tokenised before the first step and held in memory at 5 bytes a token, or in a file of the cache
//! (`kept`) at 4 and read row by row. Tokenising runs at 1 to 2 million tokens a second and thread, so it costs
//! seconds where the training costs hours.
//!
//! Of a stream (`stream`) training begins when the first window of tokens is there.
//!
//! See ARCHITECTURE.md.

mod array;
pub mod batches;
pub mod chat;
pub mod clock;
mod costs;
mod csv;
pub mod dataset;
mod dates;
mod deal;
pub mod error;
mod foreign;
mod frame;
mod guards;
pub mod jsonl;
mod kept;
mod key;
pub mod lines;
mod long;
mod marks;
pub mod mask;
mod messages;
pub mod packing;
mod pairs;
mod parquet;
pub mod place;
mod plain;
mod program;
pub mod prompts;
mod python;
mod reading;
mod remarks;
mod rewrite;
mod source;
mod store;
mod stream;
pub mod targets;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod trial;
mod turns;
mod windows;

pub use batches::{Batch, BatchShape, Batches, Dealing, EvalBatches, LastBatch, Micro, State};
pub use chat::ChatTemplate;
pub use dataset::{Cache, Classes, Dataset, LoadOptions, LoadReport, OnError};
pub(crate) use dates::strftime;
pub use error::{DataError, RecordProblem};
pub use foreign::{ForeignFile, ForeignRecord};
pub use jsonl::{ClassFields, Fields, Format, PairFields};
pub use mask::LossOn;
pub use messages::Instruction;
pub use packing::{NO_LABEL, PackReport, Packed, Packing, SECOND_TEXT, TooLong};
pub use place::Place;
pub use plain::TextBy;
pub use prompts::{Prompt, prompts};
pub use reading::format_of;
pub use remarks::Remarks;
pub use source::Make;
pub use stream::{News, Rest, RowLayout, Rows, Stream, Threads, WINDOW};
pub use targets::{Targets, ends_whole};
pub use tokenizer::Tokenizer;
pub use turns::{EndOfTurn, end_of_turn, generation_prompt};
