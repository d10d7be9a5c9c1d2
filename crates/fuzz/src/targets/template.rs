//! A chat template's source: compiled, rendered, and held against conversations for their masks.

use std::cell::RefCell;
use std::path::Path;

use lowtide_data::jsonl::Schema;
use lowtide_data::mask::Encoder;
use lowtide_data::{
    ChatTemplate, Fields, Format, LossOn, Tokenizer, end_of_turn, generation_prompt,
};

use super::{CHATS, message, small_tokenizer};

thread_local! {
    static TOKENIZER: RefCell<Option<Tokenizer>> = const { RefCell::new(None) };
}

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let source = std::str::from_utf8(bytes).map_err(message)?;
    // Looked at first by itself: opening a tokenizer takes long, and a refusal would lose it.
    let sources = [("default".to_owned(), source.to_owned())];
    ChatTemplate::new(&sources, Vec::new(), 0, Path::new("fuzz")).map_err(message)?;
    let tokenizer = TOKENIZER.take().unwrap_or_else(small_tokenizer);
    let tokenizer = tokenizer
        .with_chat_template(source)
        .expect("it was accepted");
    use_of(&tokenizer);
    TOKENIZER.replace(Some(tokenizer));
    Ok(())
}

/// Does with a tokenizer and its template, if it has one, what a run does.
pub(super) fn use_of(tokenizer: &Tokenizer) {
    let _ = lowtide_trainer::inside::note_of_ends(tokenizer);
    let _ = end_of_turn(tokenizer);
    for line in CHATS {
        let chat: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let messages = chat["messages"].as_array().expect("a list");
        let _ = generation_prompt(tokenizer, messages, chat.get("tools"));
    }
    for loss_on in [LossOn::Answers, LossOn::Everything] {
        let schema = Schema {
            format: Format::Messages,
            fields: Fields::default(),
        };
        let Ok(encoder) = Encoder::new(schema, tokenizer, loss_on, " ") else {
            return;
        };
        for line in CHATS {
            match encoder.example(line) {
                Ok(example) => assert_eq!(example.tokens.len(), example.supervised.len()),
                Err(e) => assert!(!e.to_string().is_empty()),
            }
            let _ = encoder.prompt(line);
        }
    }
}
