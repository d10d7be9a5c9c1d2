//! Prompts with their reference answers, for generating from an evaluation file.

use std::path::Path;

use super::dataset::LoadOptions;
use super::mask::Encoder;
use super::place::Place;
use super::reading::read;
use super::tokenizer::Tokenizer;
use crate::error::DataError;

/// Something to answer, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens to go on from.
    pub tokens: Vec<i32>,
    /// The text of the reference answer, without its end of turn.
    pub reference: String,
    /// Where it stands in its file.
    pub place: Place,
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
        |(_, place), (tokens, reference), _| {
            all.push(Prompt {
                tokens,
                reference,
                place,
            });
            Ok(())
        },
    )?;
    Ok(all)
}
