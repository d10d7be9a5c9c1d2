//! The dimensions of a model, and the built-in shapes by name.
//!
//! One file because all of it is what one value, the shape, can say.

use serde::{Deserialize, Serialize};

/// Which kind of model: what its blocks compute, and how its files name their tensors. Each has a file of its own in
/// `crates/model/src/families`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// RMSNorm, RoPE, SwiGLU, grouped-query attention (Llama, Mistral, Qwen, SmolLM2, TinyLlama).
    Llama,
    /// LayerNorm, learned positions, GELU (tanh), biases (GPT-2, and the papers' GPT-3 shapes).
    Gpt2,
    /// As Llama; its files hold queries, keys and values as one tensor, gate and up too (Phi-3, Phi-4).
    Phi3,
    /// As Llama, with layers that have no positions (SmolLM3).
    SmolLm3,
    /// Norms behind attention and MLP in place of those before them, and norms of all queries and of all keys (OLMo 2).
    Olmo2,
    /// As Llama, with factors of embedding, scores, what a block adds, and logits (Granite).
    Granite,
    /// As Llama, with norms whose weights 1 is added to, scaled embeddings and GeGLU (Gemma 1).
    Gemma,
    /// Norms around attention and MLP whose weights 1 is added to, GeGLU, caps of scores and logits (Gemma 2).
    Gemma2,
    /// Norms around attention and MLP and of each head, all of which add 1 to their weights; GeGLU; other rotary
    /// positions in layers with a window (Gemma 3).
    Gemma3,
    /// Layer norms, GELU, attention and MLP side by side, biases; its files hold the queries, keys and values of a
    /// head one after the other (GPT-NeoX, Pythia).
    GptNeoX,
    /// As Llama, with layer norms (StableLM).
    StableLm,
    /// Attention and MLP side by side behind one layer norm without a bias, and a factor of logits; some layers have
    /// windows, the others no positions (Cohere's Command R and Command R7B).
    Cohere,
    /// As Llama, with experts in the MLP's place (Mixtral).
    Mixtral,
    /// As Qwen3, with experts in the MLP's place (Qwen3-MoE).
    Qwen3Moe,
    /// An encoder: full attention, layer norms of sums, learned positions and types, GELU, biases; it classifies by its
    /// first token (BERT).
    Bert,
    /// As BERT, with positions that begin at the table's third row and another head (RoBERTa).
    Roberta,
    /// An encoder and a decoder: norms without a bias, relative positions, ReLU or a gated GELU (T5, T5 v1.1, Flan-T5).
    T5,
}

/// What a model is trained for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Objective {
    /// The token that follows each one: a label a token, of V.
    #[default]
    NextToken,
    /// The class of each document, of so many, 2 at least: a label at a document's first token.
    Classes(u32),
}

impl Objective {
    /// Whether it is [`Objective::NextToken`].
    #[must_use]
    pub fn is_next_token(&self) -> bool {
        *self == Self::NextToken
    }

    /// Values that a label has, of a vocabulary of so many.
    #[must_use]
    pub fn labels(self, vocab: u32) -> u32 {
        match self {
            Self::NextToken => vocab,
            Self::Classes(n) => n,
        }
    }
}

/// What an encoder's embedding has that a decoder's has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Encoder {
    /// Rows of the table of types, at least 1.
    pub types: u32,
    /// The row of the table of positions that a document's first token has; rows before it are not used.
    pub first_position: u32,
}

/// Which keys of its document a token sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mask {
    /// Itself and all before it.
    #[default]
    Causal,
    /// So many at most, at least 1: itself and those before it.
    Window(u32),
    /// All, before it and behind it.
    Full,
}

impl Mask {
    /// Keys that a token sees at most among `seq` tokens.
    #[must_use]
    pub fn longest(self, seq: u32) -> u32 {
        match self {
            Self::Causal | Self::Full => seq,
            Self::Window(n) => seq.min(n),
        }
    }

    /// Twice the mean number of keys of a token among `seq`, but for the half key by which a token sees itself whole:
    /// `seq` of causal attention, twice that of full. Counts of work are made from it.
    #[must_use]
    pub fn keys(self, seq: u32) -> f64 {
        let (n, seq) = (f64::from(self.longest(seq)), f64::from(seq));
        if self == Self::Full {
            return 2.0 * seq;
        }
        // The first n tokens see n/2 on average, the others n.
        if n == seq { seq } else { 2.0 * n - n * n / seq }
    }
}

/// A set of a model's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layers(Vec<u32>);

impl Layers {
    /// Those of `layers` layers for which `is` holds.
    #[must_use]
    pub fn those(layers: u32, is: impl Fn(u32) -> bool) -> Self {
        Self((0..layers).filter(|&l| is(l)).collect())
    }

    /// Whether layer `l` is one.
    #[must_use]
    pub fn has(&self, l: u32) -> bool {
        self.0.binary_search(&l).is_ok()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Attention to the tokens just before alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Keys that a token sees at most, itself among them.
    pub keys: u32,
    /// Where; at least one.
    pub layers: Layers,
}

/// How rotary frequencies are stretched beyond the trained length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by the factor.
    Linear(f64),
    /// Llama 3.x: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// Longest sequence of the model before it was stretched.
        original: f64,
    },
    /// YaRN: frequencies that turn often within the trained length are kept, those that turn rarely are divided, with
    /// a ramp between; and queries and keys are made longer.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// By what rotated queries and keys are multiplied.
        attention: f64,
        /// From so many turns on a frequency is kept.
        beta_fast: f64,
        /// With at most so many it is divided.
        beta_slow: f64,
        /// Longest sequence of the model before it was stretched.
        original: f64,
        /// The ramp begins and ends at whole numbers of the head.
        truncate: bool,
    },
    /// Dynamic NTK, by this factor: plain up to the model's longest sequence, beyond which nothing is trained here.
    Dynamic(f64),
    /// LongRoPE: each frequency divided by a number of its own, and queries and keys are longer.
    LongRope {
        /// Divisors up to the trained length, one a frequency.
        short: Vec<f64>,
        /// Divisors beyond it, where nothing is trained here.
        long: Vec<f64>,
        /// By what rotated queries and keys are multiplied.
        attention: f64,
        /// Trained length, and the longest here.
        original: f64,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched beyond the trained length.
    pub scaling: RopeScaling,
    /// How many numbers of a head are rotated, its first ones; `None`: all. Left out where all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
}

impl Rope {
    /// How many numbers of a head of `head_dim` are rotated.
    #[must_use]
    pub fn rotated(&self, head_dim: u32) -> u32 {
        self.width.unwrap_or(head_dim)
    }
}

/// Rotary positions of some layers, other than those of the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalRope {
    /// Base and stretching of these layers.
    pub rope: Rope,
    /// Where; at least one. Those that have a window, whether it ever slides or not.
    pub layers: Layers,
}

/// Factors and caps that some families have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scales {
    /// What the embedding's rows are multiplied by.
    pub embedding: f64,
    /// What attention's scores are multiplied by; `None`: 1/√D.
    pub attention: Option<f64>,
    /// What is multiplied before it is added to the residual stream: the results of attention and of the MLP.
    pub residual: f64,
    /// What logits are divided by.
    pub logits_divisor: f64,
    /// Scores s become `cap·tanh(s/cap)`.
    pub attention_cap: Option<f64>,
    /// Logits x become `cap·tanh(x/cap)`.
    pub logits_cap: Option<f64>,
}

impl Default for Scales {
    fn default() -> Self {
        Self {
            embedding: 1.0,
            attention: None,
            residual: 1.0,
            logits_divisor: 1.0,
            attention_cap: None,
            logits_cap: None,
        }
    }
}

impl Scales {
    /// Whether they are those of Llama.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// A mixture of experts in the place of each block's MLP: a token takes some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Experts {
    /// Experts of a block. [`ModelShape::intermediate`] is the F of each.
    pub count: u32,
    /// Experts that a token takes.
    pub chosen: u32,
    /// The weights of those that a token takes add up to 1.
    pub renormalise: bool,
}

/// What a model of two stacks has beside its decoder: [`ModelShape::layers`] are the decoder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stacks {
    /// Layers of the encoder.
    pub encoder: u32,
    /// Buckets of relative positions: rows of each stack's table.
    pub buckets: u32,
    /// Distance from which on all are of one bucket.
    pub distance: u32,
    /// The MLP has a gate.
    pub gated: bool,
}

/// The dimensions of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Name for people.
    pub name: String,
    /// Kind of model.
    pub family: Family,
    /// V: rows of the embedding.
    pub vocab: u32,
    /// C: width of the residual stream.
    pub hidden: u32,
    /// F: width of the MLP, or of one expert.
    pub intermediate: u32,
    /// L: number of blocks.
    pub layers: u32,
    /// H: query heads.
    pub heads: u32,
    /// KV: key heads, and as many value heads.
    pub kv_heads: u32,
    /// D: numbers of a head.
    pub head_dim: u32,
    /// Longest sequence (GPT-2: rows of the position table; an encoder has some more before them).
    pub max_positions: u32,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// The head's matrix is the embedding's.
    pub tied: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on the attention's output product.
    pub out_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMSNorm of q and k: of each head (Qwen3), or of all heads together where the family has it so (OLMo 2).
    pub qk_norm: bool,
    /// Rotary positions (all but GPT-2).
    pub rope: Option<Rope>,
    /// Layers whose attention has a window. This key and the next two are left out where there are none, so that
    /// checkpoints from before they existed have the same shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Layers whose queries and keys are not rotated (SmolLM3).
    #[serde(default, skip_serializing_if = "Layers::is_empty")]
    pub unrotated: Layers,
    /// Factors and caps; left out where they are Llama's.
    #[serde(default, skip_serializing_if = "Scales::is_plain")]
    pub scales: Scales,
    /// Attention and MLP read the same residual stream, and are added to it together; left out where the MLP reads what
    /// attention is added to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parallel: bool,
    /// GELU by tanh where the family has the exact one as well (GPT-NeoX); left out where it is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gelu_by_tanh: bool,
    /// Layers whose rotary positions are others (Gemma 3); left out where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_rope: Option<LocalRope>,
    /// Experts in the MLP's place; left out where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// What an encoder has; left out of decoders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<Encoder>,
    /// What it is trained for; left out where that is the next token.
    #[serde(default, skip_serializing_if = "Objective::is_next_token")]
    pub objective: Objective,
    /// An encoder, and relative positions; left out where there is a decoder alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stacks: Option<Stacks>,
}

/// Names that [`ModelShape::builtin`] knows.
#[must_use]
pub fn builtin_names() -> Vec<&'static str> {
    TABLE.iter().map(|r| r.0).collect()
}

type Row = (&'static str, u32, u32, u32, u32, u32, u32, u32, bool);
/// name, V, C, F, L, H, KV, positions, tied.
const TABLE: [Row; 18] = [
    ("bert-base", 30522, 768, 3072, 12, 12, 12, 512, false),
    ("bert-large", 30522, 1024, 4096, 24, 16, 16, 512, false),
    ("gpt3-13b", 50257, 5120, 20480, 40, 40, 40, 2048, true),
    ("gpt3-175b", 50257, 12288, 49152, 96, 96, 96, 2048, true),
    ("llama2-7b", 32000, 4096, 11008, 32, 32, 32, 4096, false),
    ("llama3-8b", 128_256, 4096, 14336, 32, 32, 8, 8192, false),
    ("llama3-70b", 128_256, 8192, 28672, 80, 64, 8, 8192, false),
    ("mixtral-8x7b", 32000, 4096, 14336, 32, 32, 8, 32768, false),
    ("qwen2.5-0.5b", 151_936, 896, 4864, 24, 14, 2, 32768, true),
    ("qwen2.5-1.5b", 151_936, 1536, 8960, 28, 12, 2, 32768, true),
    ("qwen2.5-3b", 151_936, 2048, 11008, 36, 16, 2, 32768, true),
    ("qwen2.5-7b", 152_064, 3584, 18944, 28, 28, 4, 32768, false),
    ("qwen2.5-14b", 152_064, 5120, 13824, 48, 40, 8, 32768, false),
    ("qwen2.5-32b", 152_064, 5120, 27648, 64, 40, 8, 32768, false),
    ("qwen2.5-72b", 152_064, 8192, 29568, 80, 64, 8, 32768, false),
    ("roberta-base", 50265, 768, 3072, 12, 12, 12, 512, false),
    ("roberta-large", 50265, 1024, 4096, 24, 16, 16, 512, false),
    ("qwen3-30b-a3b", 151_936, 2048, 768, 48, 32, 4, 40960, false),
];

impl ModelShape {
    /// A shape by name, for planning and benches without weights. `None` for an unknown name.
    #[must_use]
    pub fn builtin(name: &str) -> Option<Self> {
        let &(name, vocab, hidden, intermediate, layers, heads, kv_heads, max_positions, tied) =
            TABLE.iter().find(|r| r.0 == name)?;
        let gpt = name.starts_with("gpt3");
        let qwen = name.starts_with("qwen");
        let experts = |count, chosen| Experts {
            count,
            chosen,
            renormalise: true,
        };
        let encoder = |types, first_position| Encoder {
            types,
            first_position,
        };
        let encoder = match name.split_once('-') {
            Some(("bert", _)) => Some(encoder(2, 0)),
            Some(("roberta", _)) => Some(encoder(1, 2)),
            _ => None,
        };
        let biases = gpt || encoder.is_some();
        let (family, experts) = match name {
            "mixtral-8x7b" => (Family::Mixtral, Some(experts(8, 2))),
            "qwen3-30b-a3b" => (Family::Qwen3Moe, Some(experts(128, 8))),
            _ if gpt => (Family::Gpt2, None),
            _ if name.starts_with("bert") => (Family::Bert, None),
            _ if name.starts_with("roberta") => (Family::Roberta, None),
            _ => (Family::Llama, None),
        };
        let qwen3 = family == Family::Qwen3Moe;
        let theta = if qwen || family == Family::Mixtral {
            1_000_000.0
        } else if name.starts_with("llama3") {
            500_000.0
        } else {
            10_000.0
        };
        Some(Self {
            name: name.to_owned(),
            family,
            vocab,
            hidden,
            intermediate,
            layers,
            heads,
            kv_heads,
            head_dim: if qwen3 { 128 } else { hidden / heads },
            max_positions,
            norm_eps: match family {
                Family::Bert => 1e-12,
                _ if qwen => 1e-6,
                _ => 1e-5,
            },
            tied,
            qkv_bias: biases || (qwen && !qwen3),
            out_bias: biases,
            mlp_bias: biases,
            qk_norm: qwen3,
            rope: (!biases).then_some(Rope {
                theta,
                scaling: RopeScaling::None,
                width: None,
            }),
            window: None,
            unrotated: Layers::default(),
            scales: Scales::default(),
            parallel: false,
            gelu_by_tanh: false,
            local_rope: None,
            experts,
            encoder,
            objective: match encoder {
                Some(_) => Objective::Classes(2),
                None => Objective::NextToken,
            },
            stacks: None,
        })
    }

    /// Which keys layer `l` sees.
    #[must_use]
    pub fn mask(&self, l: u32) -> Mask {
        match &self.window {
            _ if self.encoder.is_some() => Mask::Full,
            Some(window) if window.layers.has(l) => Mask::Window(window.keys),
            _ => Mask::Causal,
        }
    }

    /// Whether every layer's attention has a window.
    #[must_use]
    pub fn all_windows(&self) -> bool {
        (0..self.layers).all(|l| matches!(self.mask(l), Mask::Window(_)))
    }

    /// A model of some of the layers of this one, in this order, each with what it has here.
    #[must_use]
    pub fn of_layers(&self, layers: &[u32]) -> Self {
        let n = layers.len() as u32;
        let kept = |of: &Layers| Layers::those(n, |i| of.has(layers[i as usize]));
        let window = self.window.as_ref().map(|w| Window {
            keys: w.keys,
            layers: kept(&w.layers),
        });
        let local = self.local_rope.as_ref().map(|local| LocalRope {
            rope: local.rope.clone(),
            layers: kept(&local.layers),
        });
        Self {
            local_rope: local.filter(|local| !local.layers.is_empty()),
            layers: n,
            window: window.filter(|w| !w.layers.is_empty()),
            unrotated: kept(&self.unrotated),
            ..self.clone()
        }
    }

    /// Width of q, k and v together: (H + 2·KV)·D.
    #[must_use]
    pub fn qkv_width(&self) -> u64 {
        (u64::from(self.heads) + 2 * u64::from(self.kv_heads)) * u64::from(self.head_dim)
    }

    /// Width of the attention's output: H·D.
    #[must_use]
    pub fn attention_width(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.head_dim)
    }
}
