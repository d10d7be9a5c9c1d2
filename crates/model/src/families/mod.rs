//! The families of models, a file each: how a configuration is read and written, which tensors the files hold, and what
//! a block computes. All else of the crate asks [`of`] and names no family.
//!
//! A new family is a file here, its name in [`Family`], a line in [`ALL`], and a model in `reference/golden.py`;
//! where its block computes something that no other does, also what [`Layer`] says of it and the kernel.

mod bert;
mod cohere;
mod experts;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod granite;
mod like_bert;
mod like_llama;
mod llama;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen3_moe;
mod roberta;
mod rope;
mod smollm3;
mod stablelm;
mod t5;

use std::sync::LazyLock;

use lowtide_kernels::gelu::Form;
use lowtide_workload::{Dtype, Family, Mask, ModelShape, Scales};
use serde_json::Value;

use crate::ModelError;
use crate::config_json::keys::Config;
use crate::describe::check::wrong;
use crate::params::{List, Part};

/// The families, in the order in which errors list their types.
const ALL: [(Family, &dyn Architecture); 17] = [
    (Family::Llama, &llama::Llama),
    (Family::Phi3, &phi3::Phi3),
    (Family::SmolLm3, &smollm3::SmolLm3),
    (Family::Olmo2, &olmo2::Olmo2),
    (Family::Granite, &granite::Granite),
    (Family::Gemma, &gemma::Gemma),
    (Family::Gemma2, &gemma2::Gemma2),
    (Family::Gemma3, &gemma3::Gemma3),
    (Family::Gpt2, &gpt2::Gpt2),
    (Family::GptNeoX, &gpt_neox::GptNeoX),
    (Family::StableLm, &stablelm::StableLm),
    (Family::Cohere, &cohere::Cohere),
    (Family::Mixtral, &mixtral::Mixtral),
    (Family::Qwen3Moe, &qwen3_moe::Qwen3Moe),
    (Family::Bert, &bert::Bert),
    (Family::Roberta, &roberta::Roberta),
    (Family::T5, &t5::T5),
];

/// How the inputs of attention, MLP and head are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    /// By the root mean square, times a weight.
    Rms,
    /// By the root mean square, times one and a parameter.
    RmsPlusOne,
    /// By mean and deviation, times a weight, plus a bias.
    Layer,
}

/// Where a block's norms stand, by attention and by the MLP alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Before each, of its input.
    Before,
    /// Behind each, of what it adds to the residual stream.
    After,
    /// Before each, of its input, and behind each, of what it adds.
    Around,
    /// Behind each, of the sum of what it read and what it adds: the residual stream is what the norm makes.
    OfSum,
}

impl Norms {
    pub fn before(self) -> bool {
        matches!(self, Self::Before | Self::Around)
    }

    pub fn after(self) -> bool {
        matches!(self, Self::After | Self::Around)
    }
}

/// How queries and keys are normed before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkNorm {
    None,
    /// Each head by itself.
    Heads,
    /// All query heads together, and all key heads.
    Whole,
}

/// What an MLP computes between its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mlp {
    /// `silu(gate)·up`, of one product that makes both.
    Swiglu,
    /// `gelu(gate)·up`, by tanh, of one product that makes both.
    Geglu,
    /// `gelu(up)`.
    Gelu(Form),
    /// `silu(gate)·up` in each expert that a token takes.
    Experts,
}

/// What the MLP reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branches {
    /// The residual stream with attention added.
    InTurn,
    /// The residual stream that attention reads, by a norm of its own.
    Parallel,
    /// What attention reads: one norm before both.
    ParallelOneNorm,
}

/// What the block of one layer computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    /// The norms of attention and MLP, and where they stand.
    pub norm: Norm,
    pub norms: Norms,
    pub qk_norm: QkNorm,
    /// Queries and keys are rotated by their position.
    pub rotated: bool,
    /// By the positions that some layers have in place of the others'.
    pub local: bool,
    /// Which keys a query sees.
    pub mask: Mask,
    pub mlp: Mlp,
    pub branches: Branches,
    /// What the results of attention and MLP are multiplied by before they are added.
    pub residual: f32,
}

/// Features of a shape that few families have; the others refuse them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allows {
    /// A part of each head is rotated.
    pub part_of_heads: bool,
    /// Attention and MLP side by side.
    pub parallel: bool,
    /// GELU by tanh beside the exact one.
    pub gelu_by_tanh: bool,
    /// Other rotary positions in some layers.
    pub local_rope: bool,
    /// Experts in the MLP's place; the family then has nothing else there.
    pub experts: bool,
    /// An encoder, which classifies; the family then has no decoder.
    pub encoder: bool,
    /// An encoder before the decoder.
    pub stacks: bool,
}

/// What distinguishes a family.
pub(crate) trait Architecture: Sync {
    /// The values of `model_type` that are read as this family.
    fn types(&self) -> &'static [&'static str];

    /// The shape of a configuration with this `model_type`, for sequences of at most `longest` tokens.
    fn parse(
        &self,
        c: &Config<'_>,
        kind: &str,
        name: &str,
        longest: u32,
    ) -> Result<ModelShape, ModelError>;

    /// Whether the family has such a shape. Sizes that are 0 or too large were refused before.
    fn check(&self, s: &ModelShape) -> Result<(), ModelError>;

    /// The norm before the head; unless a family says otherwise, it and the next are those of Llama.
    fn norm(&self) -> Norm {
        Norm::Rms
    }

    /// Of the factors and caps of a shape those that the family's configurations can say.
    fn scales(&self, s: &ModelShape) -> Scales {
        let _ = s;
        Scales::default()
    }

    /// Which of the features that few have the family's configurations can say.
    fn allows(&self) -> Allows {
        Allows::default()
    }

    /// What the embedding's rows are multiplied by where numbers are stored as `dtype`.
    fn embedding_factor(&self, s: &ModelShape, dtype: Dtype) -> f32 {
        let _ = dtype;
        s.scales.embedding as f32
    }

    /// What layer `l` computes.
    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        like_llama::layer(s, l)
    }

    /// Adds the embedding's parameters, in order of use in forward; the tokens' table is the first.
    fn embedding(&self, list: &mut List, s: &ModelShape) {
        like_llama::embedding(list, s);
    }

    /// Adds those of layer `l`'s block. Every layer has the same, of the same sizes.
    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        like_llama::block(list, s, l, &like_llama::LLAMA);
    }

    /// Adds the head's, but for its matrix.
    fn head(&self, list: &mut List, s: &ModelShape) {
        like_llama::head(list, s);
    }

    /// Adds those of every unit of a shape with two stacks.
    fn stacks(&self, list: &mut List, s: &ModelShape) {
        let _ = list;
        unreachable!("{} has one stack", s.name);
    }

    /// The deviation of a new model's matrix, where it is not that of GPT-2's.
    fn deviation(&self, part: Part, s: &ModelShape) -> Option<f64> {
        let _ = (part, s);
        None
    }

    /// The head's matrix in a file, where it is not the table of tokens.
    fn lm_head(&self) -> &'static str {
        "lm_head.weight"
    }

    /// The bias of that matrix, where it classifies.
    fn lm_head_bias(&self) -> &'static str {
        "lm_head.bias"
    }

    /// Whether tokens of a second text have another type than those of the first.
    fn typed(&self, s: &ModelShape) -> bool {
        let _ = s;
        false
    }

    /// Whether a tensor of a file is none of this model: a head for another task.
    fn ignores(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// A configuration that [`Self::parse`] and transformers read as `s`, without the stored type.
    fn config_json(&self, s: &ModelShape) -> Value;

    /// The key that says how many positions there are.
    fn positions_key(&self) -> &'static str {
        "max_position_embeddings"
    }
}

/// The family's own file.
pub(crate) fn of(family: Family) -> &'static dyn Architecture {
    let found = ALL.iter().find(|(name, _)| *name == family);
    found.expect("every family is in the table").1
}

/// The family that reads a `model_type`, and the type.
pub(crate) fn of_type(kind: &str) -> Option<(&'static str, &'static dyn Architecture)> {
    ALL.iter().find_map(|(_, family)| {
        let found = family.types().iter().find(|name| **name == kind);
        found.map(|name| (*name, *family))
    })
}

/// Every `model_type`, as a message lists them.
pub(crate) fn types() -> &'static str {
    static TYPES: LazyLock<String> = LazyLock::new(|| {
        let all: Vec<&str> = ALL.iter().flat_map(|(_, f)| f.types()).copied().collect();
        all.join(", ")
    });
    &TYPES
}

/// The hidden size is divided among the heads.
fn divided_heads(s: &ModelShape) -> Result<(), ModelError> {
    match u64::from(s.hidden) == s.attention_width() {
        true => Ok(()),
        false => {
            let need = format!("{}, the heads' sizes, in this family", s.attention_width());
            Err(wrong("hidden size", s.hidden, need))
        }
    }
}

fn no_windows(s: &ModelShape) -> Result<(), ModelError> {
    match &s.window {
        None => Ok(()),
        Some(_) => Err(wrong("window", 1u32, "none in this family")),
    }
}

fn all_rotated(s: &ModelShape) -> Result<(), ModelError> {
    match s.unrotated.is_empty() {
        true => Ok(()),
        false => Err(wrong(
            "layers without positions",
            1u32,
            "none in this family",
        )),
    }
}

fn no_head_norms(s: &ModelShape) -> Result<(), ModelError> {
    match s.qk_norm {
        false => Ok(()),
        true => Err(wrong("head norms", 1u32, "none in this family")),
    }
}

fn no_biases(s: &ModelShape) -> Result<(), ModelError> {
    no_head_norms(s)?;
    match s.qkv_bias || s.out_bias || s.mlp_bias {
        false => Ok(()),
        true => Err(wrong("places with biases", 1u32, "none in this family")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_family() {
        let all: Vec<&str> = ALL.iter().flat_map(|(_, f)| f.types()).copied().collect();
        for kind in &all {
            assert_eq!(all.iter().filter(|k| *k == kind).count(), 1, "{kind}");
            assert_eq!(of_type(kind).map(|(name, _)| name), Some(*kind));
        }
        assert!(of_type("mamba").is_none());
    }
}
