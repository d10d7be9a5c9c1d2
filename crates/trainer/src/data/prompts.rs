//! Prompts with their reference answers, for generating from an evaluation file.

use std::path::Path;

use rayon::prelude::*;

use super::dataset::{LoadOptions, read};
use super::tokenizer::Tokenizer;
use crate::error::DataError;

/// Something to answer, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens to go on from.
    pub tokens: Vec<i32>,
    /// The text of the reference answer, without its end of turn.
    pub reference: String,
    /// Line of the file it stands on, from 1.
    pub line: u64,
}

/// The prompts of a file, in order. Of a conversation the last assistant turn is the reference
/// answer and everything before it the prompt, rendered with the generation prompt. Records of
/// bare text have none and are an error, as is a conversation without an assistant turn.
pub fn prompts(
    path: &Path,
    options: &LoadOptions,
    tokenizer: &Tokenizer,
) -> Result<Vec<Prompt>, DataError> {
    let mut all = Vec::new();
    read(
        &[path.to_owned()],
        options,
        tokenizer,
        |encoder, path, chunk| {
            let new: Result<Vec<Prompt>, DataError> = chunk
                .par_iter()
                .map(|(line, text)| match encoder.prompt(text) {
                    Ok((tokens, reference)) => Ok(Prompt {
                        tokens,
                        reference,
                        line: *line,
                    }),
                    Err(problem) => Err(DataError::record(path, *line, problem)),
                })
                .collect();
            all.extend(new?);
            Ok(())
        },
    )?;
    Ok(all)
}
