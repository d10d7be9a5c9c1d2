//! The same model, described for making answers instead of training.

use lowtide_device::Make;
use lowtide_kernels::attention::{CACHED_HEAD, Engine};
use lowtide_units::List;
use lowtide_workload::{Batch, ModelShape};

use super::kind::Sizes;
use super::{Built, Options, check, checked, laid_out};
use crate::ModelError;
use crate::lsp::layout;

/// How answers are made token by token, with keys and values that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// Answers that are made at once.
    pub places: u32,
    /// Most tokens of an answer with its prompt.
    pub keys: u32,
    /// Most tokens of a step: one of each answer, and of prompts as many as there is room for. A power of two, at
    /// least as many as places.
    pub rows: u32,
}

impl Decoding {
    /// Most rows of logits of a step: those of its first rows.
    #[must_use]
    pub fn answers(self) -> u32 {
        self.places.next_power_of_two()
    }
}

/// A step of decoding: nothing is trained.
pub(crate) fn build_decoding(
    shape: &ModelShape,
    options: &Options,
    how: Decoding,
) -> Result<Built, ModelError> {
    let of = |micro_batch: u32, seq: u32| Options {
        batch: Batch {
            target: 0,
            micro_batch,
            seq,
            accumulate: 1,
        },
        attention: Engine::Own,
        lsp: None,
        rows_chunk: 0,
        ..options.clone()
    };
    if !shape.objective.is_next_token() {
        return Err(ModelError::Classifies);
    }
    if shape.stacks.is_some() {
        let what = "decoded with a KV cache (eval.generate.cached, --cached)";
        return Err(ModelError::StacksLack { what });
    }
    // Places and positions are what a batch of as many sequences would be; rows are tokens wherever they are.
    let specs = checked(shape, &of(how.places, how.keys))?;
    if !how.rows.is_power_of_two() || how.rows < how.answers() || how.rows > 1 << 15 {
        let need = format!("a power of two from {} to 2^15", how.answers());
        return Err(check::wrong("rows of a step", how.rows, need));
    }
    if options.make == Make::Cuda && shape.head_dim as usize > CACHED_HEAD {
        let need = format!("at most {CACHED_HEAD} with kept keys on a GPU");
        return Err(check::wrong("head dimension", shape.head_dim, need));
    }
    let frozen = List::from(vec![true; specs.len()]);
    let layout = layout(&specs, &frozen, None, false);
    let options = of(1, how.rows);
    let sizes = Sizes {
        batch: how.places as usize,
        seq: how.keys as usize,
        span: 1,
        answers: Some(how.answers() as usize),
        ..Sizes::new(shape, &options)
    };
    laid_out(shape, &options, layout, sizes)
}
