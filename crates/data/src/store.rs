//! Where the tokens of examples lie: in memory, or in a file that is read example by example.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::mask::Example;
use crate::error::DataError;

/// Bytes of a token in memory: its id, and whether it is supervised.
pub(super) const TOKEN_COST: u64 = 5;
/// Bytes of a token in a file: its id, and in the lowest bit whether it is supervised. Behind an example's tokens a
/// word has their CRC-32C.
const WORD: u64 = size_of::<u32>() as u64;

/// Where an example lies in its store, and the number of its data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Tokens before it; in a file words.
    pub from: u64,
    /// How many tokens it has.
    pub len: u32,
    /// Its data file.
    pub file: u32,
}

/// Token ids and masks of examples, end to end.
#[derive(Debug)]
pub(super) enum Store {
    /// [`TOKEN_COST`] bytes a token.
    Memory {
        /// Ids of all examples, one behind the other.
        tokens: Vec<i32>,
        /// For each id whether it carries loss.
        supervised: Vec<bool>,
    },
    /// Words of a file, behind a head of so many bytes.
    File {
        /// Open for reading; it may have lost its name since.
        file: File,
        /// Its name, for errors.
        path: PathBuf,
        /// Bytes before the first word.
        head: u64,
    },
}

impl Default for Store {
    fn default() -> Self {
        Self::Memory {
            tokens: Vec::new(),
            supervised: Vec::new(),
        }
    }
}

impl Store {
    /// The example at a span.
    ///
    /// # Errors
    /// A file that cannot be read, or whose bytes are not those that were written.
    pub fn read(&self, span: Span) -> Result<Example, DataError> {
        let (file, path, head) = match self {
            Self::Memory { tokens, supervised } => {
                let range = span.from as usize..span.from as usize + span.len as usize;
                return Ok(Example {
                    tokens: tokens[range.clone()].to_vec(),
                    supervised: supervised[range].to_vec(),
                    class: None,
                });
            }
            Self::File { file, path, head } => (file, path, head),
        };
        let mut bytes = vec![0; (span.len as usize + 1) * WORD as usize];
        let at = head + span.from * WORD;
        let damaged = |what: String| DataError::Kept {
            path: path.clone(),
            reason: format!("byte {at}: {what}"),
        };
        file.read_exact_at(&mut bytes, at)
            .map_err(|e| damaged(e.to_string()))?;
        let (bytes, check) = bytes.split_at(span.len as usize * WORD as usize);
        if crc32c::crc32c(bytes).to_le_bytes() != check {
            return Err(damaged("an example is not what was written".to_owned()));
        }
        let words = bytes.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w));
        Ok(Example {
            tokens: words.clone().map(|w| (w >> 1) as i32).collect(),
            supervised: words.map(|w| w & 1 == 1).collect(),
            class: None,
        })
    }
}

/// Words of a file that an example of so many tokens takes.
pub(super) fn words_of(len: u32) -> u64 {
    u64::from(len) + 1
}

/// An example's words as they stand in a file.
pub(super) fn words(example: &Example) -> Vec<u8> {
    let both = example.tokens.iter().zip(&example.supervised);
    let words = both.map(|(&token, &supervised)| (token as u32) << 1 | u32::from(supervised));
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}
