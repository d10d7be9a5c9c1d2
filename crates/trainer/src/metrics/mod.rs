//! What a run writes down about itself: one JSON object a step, and TensorBoard event files.

pub mod appender;
pub mod jsonl;
pub mod tensorboard;

pub use jsonl::{MetricsLog, first_of, has_step, last_step, last_written, value_at};
pub use tensorboard::EventFile;
