//! What to do about a model directory.

use lowtide_trainer::error::{Foreign, ModelError};

use super::foreign_advice;

/// What to do about a model directory, a line each.
/// Long because it is one table of errors.
pub fn advice(e: &ModelError) -> Vec<String> {
    let text = match e {
        ModelError::Config { source, .. } => match &**source {
            ModelError::Unsupported { .. } => {
                "lowtide does not compute such a model: which it does, README says under \"Your own model and data\""
            }
            ModelError::MissingKey { .. } => {
                "add the key to that file, as the model's makers published it"
            }
            _ => "correct it in that file, as the model's makers published it",
        },
        ModelError::NothingLike { .. } => {
            "`train.freeze`, `train.unfreeze` and `optimizer.groups` take names of tensors as the model's safetensors have them; a tied \
             head is the embedding's table and has no name of its own"
        }
        ModelError::Partly { .. } => {
            "let `train.freeze` name both, or neither: queries, keys and values are one matrix here, so are gate \
             and up and all experts of a block, and a norm's weight and bias one kernel's"
        }
        ModelError::NoEffect { .. } => {
            "leave the group out of `optimizer.groups`, or let it stand before the others"
        }
        ModelError::Split { .. } => {
            "name both in the same group of `optimizer.groups`, or neither: queries, keys and values are one matrix here, so are gate \
             and up and all experts of a block"
        }
        ModelError::NothingProjected { shorter: 0, .. } => "freeze less, or leave out `strategy`",
        ModelError::NothingProjected { .. } => {
            "lower `strategy.lsp.compression`, or leave out `strategy.name: lsp`"
        }
        ModelError::StacksLack { .. } => {
            "leave it out: README says under \"Not supported yet\" what waits"
        }
        ModelError::NotInChunks { .. } => "leave out `train.rows_chunk`",
        ModelError::ExpertsProjected => "leave out `strategy.name: lsp`",
        ModelError::NothingTrained => {
            "name fewer tensors in `train.freeze`, or some in `train.unfreeze`"
        }
        ModelError::NoConfig { found, .. } => match found.as_deref() {
            Some("params.json") => {
                "it has weights as their makers published them: fetch the version for transformers"
            }
            Some("adapter_config.json") => {
                "it is an adapter (LoRA), not a model: merge it into its base model with peft's \
                 merge_and_unload(), and save that one"
            }
            _ => {
                "a model directory is what save_pretrained(DIR) of transformers writes: config.json, \
                 model.safetensors, tokenizer.json"
            }
        },
        ModelError::NoWeights { found: Some(_), .. } => foreign_advice(Foreign::Zip),
        ModelError::NonFinite { .. } => {
            "the file is damaged, or the model diverged before it was saved: fetch it again, or take an \
             older one"
        }
        ModelError::Dimensions { what, .. } if what.contains("sequence") => {
            "lower train.seq, or take a model of longer sequences"
        }
        ModelError::Dimensions { what, .. } if *what == "length of targets" => {
            "set train.target to the tokens of a target; 0 for a model without an encoder"
        }
        ModelError::Dimensions { what, .. } if what.contains("batch") => {
            "lower train.micro_batch, train.seq or train.accumulate; of answers with a cache eval.generate.cached, too"
        }
        ModelError::Dimensions { what, .. } if *what == "head dimension" => {
            "answer without a KV cache: eval.generate.cached=0, generate --no-cache, eval without --cached"
        }
        ModelError::Dimensions { what, .. } if *what == "train.rows_chunk" => {
            "set train.rows_chunk to 0 or to a multiple of 8 that is shorter than train.seq"
        }
        ModelError::Dimensions { .. } => {
            "the model's config.json says so: get it again from where the model was published, or take another model"
        }
        ModelError::Beyond {
            value,
            dtype: "F16",
            ..
        } if value.is_finite() => "f16 has no such number: export as bf16 or f32",
        ModelError::Beyond { value, .. } if value.is_finite() => {
            "export as f32, or train at a lower rate: no model has such weights"
        }
        ModelError::Beyond { .. } => {
            "the model diverged before this was saved: take an older checkpoint"
        }
        ModelError::TiedHead { .. } => {
            "set tie_word_embeddings to false in config.json if the model has a head of its own (as \
             transformers 5 takes it), or remove the tensor"
        }
        _ => return Vec::new(),
    };
    vec![text.to_owned()]
}
