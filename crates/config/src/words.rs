//! Values that are one word out of a few, each with its spelling and meaning in one place.

use lowtide_workload::{Dtype, Moments, OptimizerName, Projector};
use serde::{Serialize, Serializer};

/// The spellings of a choice, each with its meaning.
pub(crate) type Words = &'static [(&'static str, &'static str)];

/// A type whose values are spelled as one word.
pub(crate) trait Word: Sized {
    /// The value of a spelling in the type's own list.
    fn from_word(word: &str) -> Option<Self>;
}

macro_rules! words {
    ($(#[doc = $about:literal])+ $name:ident {
        $(#[doc = $doc:literal] $variant:ident = $word:literal,)+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = $doc] $variant,)+
        }

        impl $name {
            /// Every spelling with its meaning.
            pub(crate) const WORDS: Words = &[$(($word, $doc),)+];

            /// The spelling in a run file.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl Word for $name {
            fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

words! {
    /// Where the weights come from.
    Init {
        /// the weights in the model's directory
        Pretrained = "pretrained",
        /// drawn from the seed
        Random = "random",
    }
}

words! {
    /// What computes.
    Device {
        /// the first NVIDIA GPU where there is one that can be used, else the processor's cores
        Auto = "auto",
        /// the processor's cores
        Cpu = "cpu",
        /// the first NVIDIA GPU that `CUDA_VISIBLE_DEVICES` shows
        Cuda = "cuda:0",
    }
}

words! {
    /// How an example is laid out in a data file.
    Format {
        /// told from the fields of the first example
        Auto = "auto",
        /// a list of messages with roles, rendered by the chat template
        Chat = "chat",
        /// a prompt and its completion
        Completion = "completion",
        /// plain text
        Text = "text",
        /// `instruction`, perhaps `input`, and `output`, as a conversation where there is a chat template
        Alpaca = "alpaca",
        /// a text, perhaps a second one, and its class, for a model that classifies; what `auto` means there
        Classification = "classification",
        /// a source and its target, for a model with an encoder and a decoder; what `auto` means there
        Seq2seq = "seq2seq",
    }
}

words! {
    /// Which tokens carry loss.
    TrainOn {
        /// the assistant's turns, or the completion; all of plain text
        Assistant = "assistant",
        /// every token
        All = "all",
    }
}

words! {
    /// What becomes of a record that cannot be used.
    OnError {
        /// the run ends with its file, line and cause
        Stop = "stop",
        /// it is left out; how many there were and the first places are told
        Skip = "skip",
    }
}

words! {
    /// What becomes of a run that cannot write a checkpoint on the way.
    OnUnsaved {
        /// it goes on without this one and tries again when the next one is due; its end says which are missing
        Continue = "continue",
        /// it ends with the reason; the newest checkpoint is whole
        Stop = "stop",
    }
}

words! {
    /// By what an evaluation is the best.
    KeepBest {
        /// no checkpoint is kept for its evaluation, and the last model is exported
        None = "none",
        /// the lowest loss on the evaluation data
        Loss = "loss",
        /// the most answers that equal their reference
        ExactMatch = "exact_match",
        /// the most right tokens of the evaluation data, or right classes of a model that classifies
        Accuracy = "accuracy",
    }
}

words! {
    /// What of a plain text is a record.
    TextBy {
        /// all of a file
        File = "file",
        /// what lies between blank lines
        Paragraph = "paragraph",
        /// each line that is not blank
        Line = "line",
    }
}

words! {
    /// What becomes of the rows that are left at the end of an epoch, fewer than a batch.
    LastBatch {
        /// the batch goes on with the first rows of the next epoch, so that all batches are equally large
        Fill = "fill",
        /// a batch of those rows alone, as in transformers; its loss is the mean over its own tokens
        Keep = "keep",
        /// they are left out, other ones each epoch where the data is shuffled
        Drop = "drop",
    }
}

words! {
    /// In which order the gradients of a batch's micro-batches add up.
    Reduce {
        /// one after the other on each GPU, then GPU by GPU: another number of GPUs gives other last bits
        Order = "order",
        /// as a tree: the same bits on every number of GPUs up to `train.leaves`, for more memory
        Tree = "tree",
    }
}

words! {
    /// What is trained.
    Strategy {
        /// every weight that is not frozen
        Exact = "exact",
        /// of each of the blocks' matrices W a smaller S in W + S·Qᵀ, along a few directions Q: gradients, optimizer state, updates and their traffic shrink, and numbers differ from exact training
        Lsp = "lsp",
    }
}

words! {
    /// How the learning rate moves after the warm-up.
    ScheduleShape {
        /// stays at its peak
        Constant = "constant",
        /// falls in a line
        Linear = "linear",
        /// falls along half a cosine
        Cosine = "cosine",
        /// warm-up, stable, decay: stays at its peak, then falls in a line over the last steps
        Wsd = "wsd",
    }
}

words! {
    /// By which norm gradients are clipped.
    ClipMode {
        /// this step's global norm; updates wait until it is known
        Exact = "exact",
        /// the step before's norm (exact at the first); overlaps, and gives other numbers
        Previous = "previous",
        /// no clipping
        None = "none",
    }
}

words! {
    /// What to do at a gradient that is not finite.
    NonFinite {
        /// end the run with an error
        Stop = "stop",
        /// drop the step and go on
        Skip = "skip",
    }
}

words! {
    /// What to do at a gradient whose norm is far above those before it.
    SpikeAction {
        /// say so, and go on
        Warn = "warn",
        /// drop the step and go on
        Skip = "skip",
        /// end the run with an error
        Stop = "stop",
    }
}

words! {
    /// Which processor runs the optimizer.
    UpdateOn {
        /// the host's cores
        Host = "host",
        /// the device
        Device = "device",
    }
}

words! {
    /// What may become of tensors that the forward pass saves for the backward pass.
    Activations {
        /// none moves: what does not stay on the device is computed again
        Recompute = "recompute",
        /// none is computed again: what does not stay on the device moves to the host or to a disk
        Offload = "offload",
        /// all stay on the device
        Keep = "keep",
    }
}

words! {
    /// Where tensors go that the forward pass saves and that do not stay on the device.
    Offload {
        /// host memory
        Host = "host",
        /// the disks of the budget
        Disk = "disk",
    }
}

words! {
    /// Whether bytes may go between disks and the device without passing host memory.
    Direct {
        /// all of them pass it
        Never = "never",
    }
}

words! {
    /// The order of micro-batches and blocks in one step.
    LoopOrder {
        /// for each block all micro-batches, then the next block: weights are fetched once a pass
        LayerMajor = "layer-major",
        /// for each micro-batch all blocks: fewest activations at once
        BatchMajor = "batch-major",
    }
}

words! {
    /// A kind of memory.
    Tier {
        /// the device's memory
        Device = "device",
        /// the host's memory
        Host = "host",
        /// the disks of the budget
        Disk = "disk",
    }
}

words! {
    /// The grain at which a block's weights are fetched.
    Pieces {
        /// a whole block at a time
        Block = "block",
        /// attention and MLP apart: less room, more transfers
        Split = "split",
    }
}

/// Spellings of [`Dtype`].
pub(crate) const DTYPES: Words = &[("bf16", "bfloat16"), ("f32", "IEEE single")];

/// Spellings of [`Dtype`] that other tools use, and ours.
pub(crate) const DTYPE_ALIASES: Words =
    &[("bfloat16", "bf16"), ("fp32", "f32"), ("float32", "f32")];

impl Word for Dtype {
    fn from_word(word: &str) -> Option<Self> {
        [Self::Bf16, Self::F32]
            .into_iter()
            .find(|d| d.name() == word)
    }
}

/// Spellings of [`OptimizerName`].
pub(crate) const OPTIMIZERS: Words = &{
    const ALL: &[OptimizerName] = OptimizerName::ALL;
    let (mut words, mut i) = ([("", ""); ALL.len()], 0);
    while i < ALL.len() {
        words[i] = (ALL[i].name(), ALL[i].about().doc);
        i += 1;
    }
    words
};

/// Spellings of [`OptimizerName`] that other tools use, and ours.
pub(crate) const OPTIMIZER_ALIASES: Words = &{
    const ALL: &[OptimizerName] = OptimizerName::ALL;
    const N: usize = {
        let (mut n, mut i) = (0, 0);
        while i < ALL.len() {
            (n, i) = (n + ALL[i].about().aliases.len(), i + 1);
        }
        n
    };
    let (mut words, mut n, mut i) = ([("", ""); N], 0, 0);
    while i < ALL.len() {
        let (aliases, mut k) = (ALL[i].about().aliases, 0);
        while k < aliases.len() {
            words[n] = (aliases[k], ALL[i].name());
            (n, k) = (n + 1, k + 1);
        }
        i += 1;
    }
    words
};

impl Word for OptimizerName {
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|o| o.name() == word)
    }
}

/// Spellings of [`Projector`].
pub(crate) const PROJECTORS: Words = &[
    (
        "learned",
        "those in which the gradient of the first batch is largest",
    ),
    ("random", "drawn from the seed"),
];

impl Word for Projector {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "learned" => Some(Self::Learned),
            "random" => Some(Self::Random),
            _ => None,
        }
    }
}

/// Spellings of [`Moments`].
pub(crate) const MOMENTS: Words = &[
    ("f32", "IEEE single, 4 bytes a number of each"),
    ("bf16", "bfloat16, rounded stochastically, 2 bytes"),
    (
        "int8",
        "8-bit codes with a scale for each 128 numbers, 1.03 bytes",
    ),
];

/// Spellings of [`Moments`] that other tools use, and ours.
pub(crate) const MOMENT_ALIASES: Words = &[
    ("fp32", "f32"),
    ("float32", "f32"),
    ("bfloat16", "bf16"),
    ("8bit", "int8"),
];

impl Word for Moments {
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == word)
    }
}
