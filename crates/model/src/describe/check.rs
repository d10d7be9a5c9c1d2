//! Sizes that do not go together are told before anything is built from them.

use lowtide_workload::{Family, ModelShape};

use super::Options;
use crate::ModelError;

fn wrong(what: &'static str, have: impl Into<u64>, need: impl Into<String>) -> ModelError {
    ModelError::Dimensions {
        what,
        have: have.into(),
        need: need.into(),
    }
}

/// Whether `shape` is a decoder that can be built.
pub(crate) fn shape(s: &ModelShape) -> Result<(), ModelError> {
    let sizes = [
        ("vocabulary", s.vocab),
        ("hidden size", s.hidden),
        ("intermediate size", s.intermediate),
        ("number of layers", s.layers),
        ("number of heads", s.heads),
        ("number of key/value heads", s.kv_heads),
        ("head size", s.head_dim),
        ("number of positions", s.max_positions),
    ];
    for (what, size) in sizes {
        if size == 0 || size > 1 << 30 {
            return Err(wrong(what, size, "1 to 2^30"));
        }
    }
    // The widest product and the number of tensors stay far inside 64 bits.
    if s.layers > 1 << 12 {
        return Err(wrong("number of layers", s.layers, "at most 4096"));
    }
    let width = u64::from(s.heads) * u64::from(s.head_dim);
    if width > 1 << 30 {
        return Err(wrong("heads times head size", width, "at most 2^30"));
    }
    if !s.heads.is_multiple_of(s.kv_heads) {
        let need = format!("a divisor of the {} heads", s.heads);
        return Err(wrong("number of key/value heads", s.kv_heads, need));
    }
    match s.family {
        Family::Llama => {
            if s.rope.is_none() {
                return Err(wrong(
                    "rotary position embedding",
                    0u32,
                    "one in this family",
                ));
            }
            if !s.head_dim.is_multiple_of(2) {
                return Err(wrong("head size", s.head_dim, "an even number"));
            }
        }
        Family::Gpt2 => {
            if s.kv_heads != s.heads {
                let need = format!("{}, the number of heads", s.heads);
                return Err(wrong("number of key/value heads", s.kv_heads, need));
            }
            let biases = u32::from(s.qkv_bias) + u32::from(s.out_bias) + u32::from(s.mlp_bias);
            if biases != 3 {
                return Err(wrong("places with biases", biases, "all 3 in this family"));
            }
            if s.qk_norm || s.rope.is_some() {
                return Err(wrong(
                    "rotary positions or head norms",
                    1u32,
                    "none in this family",
                ));
            }
        }
    }
    Ok(())
}

/// Whether the batch suits the shape.
pub(crate) fn options(s: &ModelShape, o: &Options) -> Result<(), ModelError> {
    let sizes = [
        ("micro-batch", o.batch.micro_batch),
        ("sequence length", o.batch.seq),
        ("number of micro-batches", o.batch.accumulate),
    ];
    for (what, size) in sizes {
        if size == 0 {
            return Err(wrong(what, size, "at least 1"));
        }
    }
    if o.batch.rows() > 1 << 30 {
        return Err(wrong(
            "tokens of a micro-batch",
            o.batch.rows(),
            "at most 2^30",
        ));
    }
    if o.batch.seq > s.max_positions {
        let need = format!("at most {}, the model's longest sequence", s.max_positions);
        return Err(wrong("sequence length", o.batch.seq, need));
    }
    Ok(())
}
