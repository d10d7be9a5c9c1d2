//! A data file: records, records, tokens, masks, rows, batches, prompts.

use std::sync::Arc;

use lowtide_data::{
    BatchShape, Batches, Dataset, Dealing, LastBatch, LoadOptions, OnError, Packed, Packing,
    TooLong, prompts,
};

use super::{chat_tokenizer, message};
use crate::scratch;

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let tokenizer = chat_tokenizer();
    let folder = scratch::folder("data");
    let path = folder.join("d.jsonl");
    scratch::write(&path, bytes);
    // Formats that are recognised by the file's name.
    for name in ["d.csv", "d.txt"] {
        let path = folder.join(name);
        scratch::write(&path, bytes);
        let options = LoadOptions {
            line_bytes_max: 4000,
            on_error: OnError::Skip,
            ..LoadOptions::default()
        };
        if let Err(e) = Dataset::load(&[path], &options, tokenizer) {
            assert!(!e.to_string().is_empty());
        }
    }
    let mut read = Ok(());
    for on_error in [OnError::Stop, OnError::Skip] {
        let options = LoadOptions {
            separator: " ".to_owned(),
            line_bytes_max: 4000,
            on_error,
            ..LoadOptions::default()
        };
        if let Err(e) = prompts(&path, &options, tokenizer) {
            assert!(!e.to_string().is_empty());
        }
        let data = match Dataset::load(std::slice::from_ref(&path), &options, tokenizer) {
            Ok(data) => data,
            // All of it is good only where nothing has to be left out.
            Err(e) if on_error == OnError::Stop => {
                read = Err(message(e));
                continue;
            }
            Err(_) => continue,
        };
        let _ = data.remarks().sentences();
        let _ = data.view(0, tokenizer);
        for (packing, too_long) in [
            (Packing::BestFit, TooLong::Split),
            (Packing::No, TooLong::Truncate),
        ] {
            let all: Vec<usize> = (0..data.len()).collect();
            let data = data.select(&all).expect("in memory");
            if let Ok(packed) = Packed::new(data, 32, packing, too_long) {
                deal(packed);
            }
        }
    }
    read
}

fn deal(packed: Packed) {
    let shape = BatchShape {
        micro_batch: 2,
        accumulate: 2,
    };
    let dealing = Dealing {
        seed: Some(7),
        last_batch: LastBatch::Keep,
    };
    let mut batches = Batches::new(Arc::new(packed), shape, dealing).expect("a shape that fits");
    for _ in 0..2 {
        let batch = batches.next_batch().expect("in memory");
        assert!(batch.supervised_tokens <= 4 * 32);
    }
}
