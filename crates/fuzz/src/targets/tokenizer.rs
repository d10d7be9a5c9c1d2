//! `tokenizer_config.json` beside a tokenizer, with its chat template.

use lowtide_data::Tokenizer;

use super::{TOKENIZER, message, template};
use crate::scratch;

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let dir = scratch::folder("tokenizer");
    scratch::write(&dir.join("tokenizer.json"), TOKENIZER);
    scratch::write(&dir.join("tokenizer_config.json"), bytes);
    // The same bytes as the file that has the special tokens the former lacks.
    scratch::write(&dir.join("special_tokens_map.json"), bytes);
    template::use_of(&Tokenizer::open(&dir).map_err(message)?);
    Ok(())
}
