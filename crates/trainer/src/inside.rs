//! Parts of the crate that its own tests, examples and the fuzzer look at from outside. For no program: they change
//! without notice.

pub use crate::adaptive::{Adaptive, Rates};
pub use crate::device::Target;
pub use crate::fit::train_slowed;
pub use crate::generate::{Decoder, Decoding, Places, decode, steps};
pub use crate::inputs::{Inputs, dealing, load_inputs, load_options, open_tokenizer};
pub use crate::output::folder::Folder;
pub use crate::planning::{clip_of, load_machine, pins_of, shape_of};
pub use crate::resident::Resident;
pub use crate::stops::{Stops, note_of_ends, stops_of};

/// Checkpoints and what reads them.
pub mod checkpoint {
    pub use crate::checkpoint::background::{Sink, StagingPlan, Writer, write_out};
    pub use crate::checkpoint::{
        differences, directory, list, look, read_run, run_path, verify, write_state,
    };
}
