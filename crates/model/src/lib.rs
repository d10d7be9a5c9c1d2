//! The decoders: what they compute (a [`Workload`](lowtide_workload::Workload)), how each of
//! their operations is run, and their weights from and to Hugging Face files.
//!
//! - [`describe`] writes a shape as units, parameters, tensors and operations, for the planner.
//! - [`Decoder::run`] runs one of these operations on views that the caller brings.
//! - [`Checkpoint`], [`random_init`] and [`HfWriter`] fill and save parameters, any range of any
//!   parameter at a time, so that no second copy of a model ever exists.
//! - [`hf_tensors`] maps the files' tensors to parameters.

#![forbid(unsafe_code)]

mod config_json;
mod describe;
mod error;
mod families;
mod frozen;
mod inputs;
mod lsp;
mod params;
mod rates;
mod rope;
mod run;
mod weights;

pub use config_json::{
    config_json, dropout_of, load_config_for, load_shape, load_shape_for, parse_config,
    parse_config_for, positions_key, read_config,
};
pub use describe::{Decoding, Options, Phase, describe};
pub use error::ModelError;
pub use frozen::frozen;
pub use inputs::store_inputs;
pub use lowtide_kernels::operands::Arg;
pub use lsp::learn::NotFinite;
pub use lsp::{Merged, merging_bytes};
pub use params::{HeadRows, HfTensor, Pairs, file_params, hf_tensors};
pub use rates::{Rate, RateGroup, check_rates};
pub use run::{Call, Decoder, Live, Training};
pub use weights::{
    Checkpoint, FileDtype, HfWriter, SafetensorsHeader, StoredDtype, StoredTensor, random_init,
    weight_files,
};
