//! One or two texts and their class to tokens, as the tokenizer's post-processor has them: `[CLS] a [SEP] b [SEP]`.

use serde_json::Value;
use tokenizers::utils::truncation::{TruncationParams, TruncationStrategy, truncate_encodings};
use tokenizers::{Encoding, PostProcessor, Token, TruncationDirection};

use super::dataset::Classes;
use super::mask::Example;
use super::tokenizer::Tokenizer;
use crate::error::RecordProblem;

/// How texts of one data set become examples.
#[derive(Debug)]
pub(super) struct Pairs<'a> {
    classes: &'a Classes,
    tokenizer: &'a Tokenizer,
}

impl<'a> Pairs<'a> {
    pub fn new(classes: &'a Classes, tokenizer: &'a Tokenizer) -> Self {
        Self { classes, tokenizer }
    }

    /// The example, and whether a text lost its end. What is too long is cut as transformers' `longest_first` has it.
    ///
    /// # Errors
    /// A class that there is not; texts without a token; special tokens that alone are too many.
    pub fn example(
        &self,
        text: &str,
        pair: Option<&str>,
        label: &Value,
    ) -> Result<(Example, bool), RecordProblem> {
        let class = self.class(label)?;
        let encoding = |text: &str, of_type: u32| -> Result<Encoding, RecordProblem> {
            let ids = self.tokenizer.encode(text)?;
            let token = |id: i32| Token::new(id as u32, String::new(), (0, 0));
            Ok(Encoding::from_tokens(
                ids.into_iter().map(token).collect(),
                of_type,
            ))
        };
        let first = encoding(text, 0)?;
        let second = pair.map(|pair| encoding(pair, 1)).transpose()?;
        let around = self.tokenizer.around();
        let added = around.map_or(0, |around| around.added_tokens(second.is_some()));
        let n = first.len() + second.as_ref().map_or(0, Encoding::len);
        if n == 0 {
            return Err(RecordProblem::NoTokens);
        }
        let params = TruncationParams {
            max_length: self.classes.tokens_max.saturating_sub(added),
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        let room = RecordProblem::NoRoom {
            tokens: added,
            max: self.classes.tokens_max,
        };
        if params.max_length == 0 {
            return Err(room);
        }
        let cut = n > params.max_length;
        let (first, second) = truncate_encodings(first, second, &params).map_err(|_| room)?;
        let whole = self.tokenizer.surrounded(first, second)?;
        // A post-processor may leave its texts out.
        if whole.is_empty() {
            return Err(RecordProblem::NoTokens);
        }
        let example = Example {
            tokens: whole.get_ids().iter().map(|&id| id as i32).collect(),
            supervised: whole.get_type_ids().iter().map(|&t| t == 1).collect(),
            class: Some(class),
        };
        Ok((example, cut))
    }

    /// A class by its name or its number, which tables may have as a string.
    fn class(&self, label: &Value) -> Result<i32, RecordProblem> {
        let names = &self.classes.names;
        let number = |n: i64| usize::try_from(n).ok().filter(|&n| n < names.len());
        let found = match label {
            Value::String(text) => {
                let named = names.iter().position(|name| name == text);
                named.or_else(|| number(text.trim().parse().ok()?))
            }
            other => other.as_i64().and_then(number),
        };
        found
            .map(|n| n as i32)
            .ok_or_else(|| RecordProblem::NoSuchClass {
                found: label.to_string().chars().take(80).collect(),
                names: first_of(names),
            })
    }
}

/// The first of the names.
fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 16;
    let some = |name: &String| name.chars().take(40).collect::<String>();
    let all: Vec<String> = names.iter().take(SHOWN).map(some).collect();
    let more = names.len().saturating_sub(SHOWN);
    match more {
        0 => all.join(", "),
        more => format!("{} and {more} more", all.join(", ")),
    }
}

#[cfg(test)]
#[path = "pairs_tests.rs"]
mod tests;
