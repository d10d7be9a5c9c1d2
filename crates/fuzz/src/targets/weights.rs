//! The header of a safetensors file, and the index of one that is cut into several.

use std::path::Path;
use std::sync::OnceLock;

use lowtide_model::{Checkpoint, SafetensorsHeader, parse_config};
use lowtide_workload::{ModelShape, ParamId};
use serde_json::json;

use super::message;
use crate::scratch;

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let header = SafetensorsHeader::read(Path::new("fuzz"), bytes, bytes.len() as u64);
    let dir = scratch::folder("weights");
    // An index is text, a header begins with its length.
    if bytes.first() == Some(&b'{') {
        scratch::write(&dir.join("model.safetensors.index.json"), bytes);
        scratch::write(&dir.join("a.safetensors"), &empty());
    } else {
        scratch::write(&dir.join("model.safetensors"), bytes);
    }
    match Checkpoint::open(&dir, shape()) {
        Ok(checkpoint) => {
            assert!(checkpoint.bytes() <= bytes.len() as u64);
            let _ = checkpoint.check_tied_head().map_err(|e| e.to_string());
            let mut out = [0.0; 16];
            let _ = checkpoint
                .read(ParamId(0), 0..16, &mut out)
                .map_err(|e| e.to_string());
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    header.map(drop).map_err(message)
}

/// A file without a tensor.
fn empty() -> Vec<u8> {
    let mut file = 2u64.to_le_bytes().to_vec();
    file.extend_from_slice(b"{}");
    file
}

/// A model of a few numbers.
fn shape() -> &'static ModelShape {
    static SHAPE: OnceLock<ModelShape> = OnceLock::new();
    SHAPE.get_or_init(|| {
        let config = json!({"model_type": "llama", "hidden_size": 4, "intermediate_size": 4,
            "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 4,
            "tie_word_embeddings": true});
        parse_config(&config, "fuzz").expect("a shape")
    })
}
