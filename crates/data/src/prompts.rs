//! Prompts with their reference answers, for generating from an evaluation file.

use std::path::Path;

use super::dataset::{LoadOptions, read};
use super::mask::Encoder;
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
    let prompt = |encoder: &Encoder<'_>, line: &str| encoder.prompt(line);
    read(
        &[path.to_owned()],
        options,
        tokenizer,
        prompt,
        |line, (tokens, reference)| {
            all.push(Prompt {
                tokens,
                reference,
                line,
            });
        },
    )?;
    Ok(all)
}
