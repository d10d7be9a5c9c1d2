"""Writes reference/golden/: tiny models and what PyTorch says about them.

Each folder below golden/ is a real Hugging Face model directory (config.json, model.safetensors in
f32) of a model with random weights, and beside it one file a case:

    golden.safetensors        one batch of 2 x 16 tokens: logits, loss, gradients, ten AdamW steps
    packed.safetensors        the same with two documents a row that must not see each other
    accumulation.safetensors  ten AdamW steps of two micro-batches each, unevenly supervised
    bf16.safetensors          ten AdamW steps in bf16 with f32 master weights, 64 x 16 tokens

Tensors in a case file (B rows of T tokens, V the vocabulary):

    tokens, positions   I32 (B, T)     positions restart at each document
    labels              I32 (B, T)     the token to predict at t (already shifted), -100 for none
    doc_start           I32 (B, T)     index inside the row where the token's document starts
    logits              F32 (B, T, V)  before the first step
    loss                F32 ()         mean over the supervised tokens, before the first step
    grad.<name>         F32            gradient of that loss by the weight's name, not clipped
    losses              F64 (10)       loss of steps 1 to 10, each before that step's update
    grad_norms          F64 (10)       global gradient norm of each step, before clipping
    settings.<name>     F64 ()         lr, beta1, beta2, eps, weight_decay, max_norm

The accumulation case has a leading axis of micro-batches, tokens (2, B, T) and so on, and its loss
is the mean over the supervised tokens of both. The accumulation and bf16 cases have no logits, loss
and gradients. Weight decay falls on matrices and embeddings only.

Run: python reference/golden.py           (rewrites everything; see reference/README.md)
     python reference/golden.py phi3 ...  (rewrites these folders' cases of this script)
"""

import json
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

HERE = pathlib.Path(__file__).resolve().parent
ROWS, SEQ, STEPS = 2, 16, 10
IGNORE = -100
# max_norm lies between the first steps' gradient norm and the last steps', so that some steps are
# clipped and some not: AdamW forgets a scale that all gradients share, and a wrong max_norm too.
SETTINGS = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_norm=2.0)
# bf16 rounds differently in every implementation. 1024 tokens and a gentler rate keep what that
# does to the loss near 1e-3 (see README.md); training without f32 master weights is off by 1e-2.
BF16_ROWS = 64
BF16_SETTINGS = SETTINGS | dict(lr=1e-3, max_norm=0.9)


# ---------------------------------------------------------------- models


def llama():
    """Grouped-query attention, untied head."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=64, intermediate_size=88, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def llama_tied():
    """Tied embeddings; llama3 rope scaling, its three bands (kept, blended, stretched) in use."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=101, hidden_size=32, intermediate_size=72, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 72,
            },
        )
    )


def qwen2():
    """Biases on the query, key and value products; rope theta of a million; tied."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=103, hidden_size=32, intermediate_size=72, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        )
    )


def qwen3():
    """Norms of each query and key head, and a head wider than hidden / heads."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=107, hidden_size=32, intermediate_size=72, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
            rms_norm_eps=1e-6, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        )
    )


def gpt2():
    """Learned positions, layer norms with biases, weights stored (in, out), tied."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=109, n_embd=32, n_layer=2, n_head=4, n_positions=32,
            layer_norm_epsilon=1e-5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=1, eos_token_id=2,
        )
    )


def mistral():
    """A window of 5 tokens in every layer, a third of the sequence."""
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=89, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
            rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def qwen2_window():
    """A window from the second layer on."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=83, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-6, tie_word_embeddings=True, use_sliding_window=True,
            sliding_window=6, max_window_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        )
    )


def phi3():
    """Tensors of the file that hold q, k and v, and gate and up; a window."""
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=79, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            original_max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
            sliding_window=7, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def smollm3():
    """Every second layer without rotary positions, and there a window."""
    return SmolLM3ForCausalLM(
        SmolLM3Config(
            vocab_size=73, hidden_size=32, intermediate_size=56, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-6, tie_word_embeddings=True, no_rope_layer_interval=2,
            use_sliding_window=True, sliding_window=6, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 2000000.0},
        )
    )


def qwen3_yarn():
    """YaRN, its three bands in use, and queries and keys that are longer."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=71, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=48,
            rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 1.5,
                "beta_slow": 0.1, "original_max_position_embeddings": 12,
            },
        )
    )


def llama_dynamic():
    """Dynamic NTK, which is plain up to the longest sequence."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=67, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
            rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        )
    )


def phi3_longrope():
    """LongRoPE within the length it was trained at."""
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=61, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=80,
            original_max_position_embeddings=20, rms_norm_eps=1e-5, tie_word_embeddings=False,
            pad_token_id=None,  # the row of a padding token gets no gradient
            bos_token_id=1, eos_token_id=2,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 10000.0,
                "short_factor": [1.0, 1.25, 1.5, 2.0], "long_factor": [1.0, 3.0, 6.0, 9.0],
            },
        )
    )


def phi4_mini():
    """Twelve of sixteen numbers of a head are rotated, by LongRoPE; grouped queries, tied."""
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=61, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=80,
            original_max_position_embeddings=20, rms_norm_eps=1e-5, tie_word_embeddings=True,
            sliding_window=262144, pad_token_id=None, bos_token_id=1, eos_token_id=2,
            partial_rotary_factor=0.75,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 10000.0,
                "short_factor": [1.0, 1.25, 1.5, 2.0, 2.5, 3.0],
                "long_factor": [1.0, 3.0, 6.0, 9.0, 11.0, 13.0],
            },
        )
    )


def olmo2():
    """Norms behind attention and MLP and none before; norms of all query heads, of all key heads."""
    return Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=59, hidden_size=48, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-6, tie_word_embeddings=False, pad_token_id=None, bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        )
    )


def granite():
    """Factors of embedding, scores, what a block adds, and logits, none of them 1."""
    return GraniteForCausalLM(
        GraniteConfig(
            vocab_size=53, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-5, tie_word_embeddings=True, pad_token_id=None, bos_token_id=1,
            eos_token_id=2, embedding_multiplier=5.0, attention_multiplier=0.3,
            residual_multiplier=0.6, logits_scaling=0.8,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def gemma():
    """Weights of norms that 1 is added to, scaled embeddings, GELU before the product with up."""
    return GemmaForCausalLM(
        GemmaConfig(
            vocab_size=43, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
            rms_norm_eps=1e-6, pad_token_id=None, bos_token_id=1, eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def gemma2():
    """Caps that bite, a window in every second layer, norms around, weights that 1 is added to."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=47, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
            rms_norm_eps=1e-6, sliding_window=6, query_pre_attn_scalar=12,
            attn_logit_softcapping=1.5, final_logit_softcapping=3.0, pad_token_id=None,
            bos_token_id=1, eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def gemma3():
    """Norms of heads that 1 is added to, windows in two of three layers with a base of their own."""
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=47, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
            rms_norm_eps=1e-6, sliding_window=6, query_pre_attn_scalar=12, pad_token_id=None,
            bos_token_id=1, eos_token_id=2,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        )
    )


def cohere2():
    """Side by side behind one norm without a bias, neighbours rotated, windows or no positions."""
    return Cohere2ForCausalLM(
        Cohere2Config(
            vocab_size=47, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            layer_norm_eps=1e-5, logit_scale=0.6, sliding_window=6, pad_token_id=None,
            bos_token_id=1, eos_token_id=2,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        )
    )


def gpt_neox():
    """Attention and MLP side by side, the exact GELU, a quarter of each head rotated, untied."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=59, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, layer_norm_eps=1e-5,
            bos_token_id=1, eos_token_id=2,
            rope_parameters={
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
            },
        )
    )


def stablelm():
    """Layer norms around Llama's block, half of each head rotated, biases on queries, keys, values."""
    return StableLmForCausalLM(
        StableLmConfig(
            vocab_size=53, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            layer_norm_eps=1e-5, use_qkv_bias=True, bos_token_id=1, eos_token_id=2,
            rope_parameters={
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            },
        )
    )


def mixtral():
    """Two of five experts a token, their weights renormalised; a window in every layer."""
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=59, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            num_local_experts=5, num_experts_per_tok=2, rms_norm_eps=1e-5,
            tie_word_embeddings=False, sliding_window=7,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def qwen3_moe(experts=6, chosen=3, normed=False, intermediate=24):
    """Weights of experts as the softmax has them; norms of heads, heads wider than hidden / heads."""
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=53, hidden_size=32, intermediate_size=72,
            moe_intermediate_size=intermediate, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-6,
            tie_word_embeddings=False, num_experts=experts, num_experts_per_tok=chosen,
            norm_topk_prob=normed,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        )
    )


def qwen3_moe_unused():
    """Renormalised; more experts than a batch uses."""
    return qwen3_moe(experts=16, chosen=2, normed=True, intermediate=8)


# Both spellings of a config.json are in the wild: "classic" has rope_theta, rope_scaling and
# torch_dtype at the top (every model published before transformers 5), "v5" has rope_parameters.
MODELS = {
    "llama": (llama, 1, "v5"),
    "llama-tied": (llama_tied, 2, "classic"),
    "qwen2": (qwen2, 3, "classic"),
    "qwen3": (qwen3, 4, "v5"),
    "gpt2": (gpt2, 5, "classic"),
    "mistral": (mistral, 6, "classic"),
    "qwen2-window": (qwen2_window, 7, "v5"),
    "phi3": (phi3, 8, "classic"),
    "smollm3": (smollm3, 10, "v5"),
    "qwen3-yarn": (qwen3_yarn, 10, "classic"),
    "llama-dynamic": (llama_dynamic, 11, "classic"),
    "phi3-longrope": (phi3_longrope, 12, "classic"),
    "olmo2": (olmo2, 29, "classic"),
    "granite": (granite, 14, "classic"),
    "gemma2": (gemma2, 30, "classic"),
    "gemma": (gemma, 16, "classic"),
    "phi4-mini": (phi4_mini, 17, "classic"),
    "gemma3": (gemma3, 20, "classic"),
    "cohere2": (cohere2, 31, "classic"),
    "gpt-neox": (gpt_neox, 18, "classic"),
    "stablelm": (stablelm, 19, "v5"),
    "mixtral": (mixtral, 190, "classic"),
    "qwen3-moe": (qwen3_moe, 119, "classic"),
    "qwen3-moe-unused": (qwen3_moe_unused, 162, "v5"),
}


def randomise(model, generator):
    """Gives every weight, bias and norm a random value, none of them left at 0 or 1."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "wpe" in name:
                p.copy_(0.3 * noise)
            elif p.ndim >= 2:
                inputs = p.shape[0] if "c_" in name else p.shape[-1]  # GPT-2 stores (in, out)
                p.copy_(noise / inputs**0.5)
            elif name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "Gemma" in type(model).__name__:
                p.copy_(0.2 * noise)  # 1 is added to it
            else:
                p.copy_(1.0 + 0.2 * noise)


def save_model(model, folder, spelling):
    """Saves the directory as the Hub would hold it, with config.json in the asked-for spelling."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("transformers_version", None)
    if spelling == "classic":
        config["torch_dtype"] = config.pop("dtype")
        rope = config.pop("rope_parameters", None)
        if rope is not None and "full_attention" in rope:
            local, rope = rope["sliding_attention"], rope["full_attention"]
            config["rope_local_base_freq"] = local["rope_theta"]
        if rope is not None:
            neox = config["model_type"] == "gpt_neox"
            config["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
            if "partial_rotary_factor" in rope:
                part = "rotary_pct" if neox else "partial_rotary_factor"
                config[part] = rope.pop("partial_rotary_factor")
            config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# ---------------------------------------------------------------- batches


def batch(vocab, documents, ignored, generator):
    """One micro-batch. documents: lengths of each row's; ignored: share of tokens without label."""
    rows = len(documents)
    tokens = torch.randint(0, vocab, (rows, SEQ), generator=generator)
    tokens[:, 5] = tokens[:, 2]  # repeats: an embedding row that receives several gradients
    tokens[0, 11] = tokens[0, 2]
    labels = torch.roll(tokens, -1, dims=1)
    labels[torch.rand(rows, SEQ, generator=generator) < ignored] = IGNORE
    positions = torch.zeros_like(tokens)
    doc_start = torch.zeros_like(tokens)
    for row, lengths in enumerate(documents):
        assert sum(lengths) == SEQ
        start = 0
        for length in lengths:
            positions[row, start : start + length] = torch.arange(length)
            doc_start[row, start : start + length] = start
            labels[row, start + length - 1] = IGNORE  # the next token is another document's
            start += length
    return dict(tokens=tokens, labels=labels, positions=positions, doc_start=doc_start)


def mask(b, dtype):
    """Additive attention mask (B, 1, T, T): token t sees s where doc_start[t] <= s <= t."""
    t = torch.arange(SEQ)
    seen = (t[None, None, :] <= t[None, :, None]) & (t[None, None, :] >= b["doc_start"][:, :, None])
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def logits_of(model, b):
    # A mask that is given is taken by every layer as it is. Where there are windows, transformers
    # makes the masks; it finds documents by their positions.
    windows = getattr(model.config, "sliding_window", None) is not None
    return model(
        input_ids=b["tokens"],
        position_ids=b["positions"],
        attention_mask=None if windows else mask(b, model.dtype),
        use_cache=False,
    ).logits


def loss_sum(logits, labels):
    """Sum of the supervised tokens' losses, in f32 where the logits are stored as bf16."""
    flat = logits.reshape(-1, logits.shape[-1])
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return F.cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORE, reduction="sum")


def backward(model, micro_batches):
    """Leaves the gradient of the mean loss over all supervised tokens in .grad; gives that loss."""
    supervised = sum(int((b["labels"] != IGNORE).sum()) for b in micro_batches)
    model.zero_grad(set_to_none=True)
    total = 0.0
    for b in micro_batches:
        loss = loss_sum(logits_of(model, b), b["labels"]) / supervised
        loss.backward()
        total += loss.item()
    return total


# ---------------------------------------------------------------- training


def adamw(parameters, settings):
    """AdamW with weight decay on matrices and embeddings only, not on norms and biases."""
    parameters, o = list(parameters), settings
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": o["weight_decay"]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], foreach=False,
    )


def train(model, micro_batches, settings):
    """Ten steps on the same batch; changes the model."""
    optimizer = adamw(model.parameters(), settings)
    losses, norms = [], []
    for _ in range(STEPS):
        losses.append(backward(model, micro_batches))
        norms.append(clip_grad_norm_(model.parameters(), settings["max_norm"]).item())
        optimizer.step()
    return losses, norms


def train_bf16(master, model, micro_batches, settings):
    """Ten steps in bf16: the model computes with bf16 weights and gradients; norm, clipping and
    AdamW are f32, on the f32 master weights."""
    optimizer = adamw(master.parameters(), settings)
    losses, norms = [], []
    for _ in range(STEPS):
        with torch.no_grad():
            for low, high in zip(model.parameters(), master.parameters(), strict=True):
                low.copy_(high)
        losses.append(backward(model, micro_batches))
        for low, high in zip(model.parameters(), master.parameters(), strict=True):
            high.grad = low.grad.float()
        norms.append(clip_grad_norm_(master.parameters(), settings["max_norm"]).item())
        optimizer.step()
    return losses, norms


# ---------------------------------------------------------------- cases


def save_case(path, tensors, settings):
    for name, value in settings.items():
        tensors[f"settings.{name}"] = torch.tensor(value, dtype=torch.float64)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path)
    path.chmod(0o644)


def ints(b):
    return {k: v.to(torch.int32) for k, v in b.items()}


def steps_tensors(losses, norms, settings, label):
    """Packs ten steps and insists that they test something."""
    clipped = sum(n > settings["max_norm"] for n in norms)
    print(f"  {label:14} loss {losses[0]:.4f} -> {losses[-1]:.4f}, norm {norms[0]:.2f} -> "
          f"{norms[-1]:.2f}, clipped {clipped} of {STEPS}")
    assert losses[-1] < losses[0] - 0.5, "the steps change too little to test anything"
    assert 3 <= clipped < STEPS, "clipping must bite in some steps and not in others"
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "grad_norms": torch.tensor(norms, dtype=torch.float64),
    }


def stored(model, name, tensor):
    """A weight's tensors by their names in the file, where transformers writes others than the model has."""
    if model.config.model_type == "gpt_neox" and name == "lm_head.weight":
        return {"embed_out.weight": tensor}
    mixtral = model.config.model_type == "mixtral"
    gate, up, down = ["w1", "w3", "w2"] if mixtral else ["gate_proj", "up_proj", "down_proj"]
    if mixtral:
        name = name.replace(".mlp.", ".block_sparse_moe.")
    if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        return {name: tensor}
    at, part = name.rsplit(".", 1)
    every = {}
    for e, expert in enumerate(tensor):
        if part == "down_proj":
            every[f"{at}.{e}.{down}.weight"] = expert
        else:
            every[f"{at}.{e}.{gate}.weight"], every[f"{at}.{e}.{up}.weight"] = expert.chunk(2)
    return every


def plain_experts(model):
    """Experts one after another: what transformers takes by default has no f64."""
    if hasattr(model.config, "num_local_experts"):
        model.set_experts_implementation("eager")


def check_unused(model, b, tensors):
    """Of experts that no token takes the gradients are zero; there are some in some layer."""
    names = [n for n in tensors if ".experts." in n and "gate_proj" in n]
    unused = sum(not tensors[n].any() for n in names)
    print(f"  {unused} of {len(names)} experts are not used")
    assert 0 < unused < len(names) / 2


def full_case(model, b, path):
    """Logits, loss, gradients and ten steps of one batch."""
    tensors = ints(b)
    tensors["loss"] = torch.tensor(backward(model, [b]))
    with torch.no_grad():
        tensors["logits"] = logits_of(model, b)
    for name, p in model.named_parameters():
        for part, grad in stored(model, name, p.grad.clone()).items():
            tensors[f"grad.{part}"] = grad
        assert p.grad.norm() > 1e-3, name
    check_against_f64(model, b, tensors)
    if getattr(model.config, "num_local_experts", 0) == 16:
        check_unused(model, b, tensors)
    tensors |= steps_tensors(*train(model, [b], SETTINGS), SETTINGS, path.stem)
    save_case(path, tensors, SETTINGS)


def check_against_f64(model, b, tensors):
    """The golden gradients' own rounding error must be far below the 1e-4 they are compared at."""
    double = type(model)(model.config).to(torch.float64)
    double.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    double.set_attn_implementation("eager")
    plain_experts(double)
    backward(double, [b])
    worst = 0.0
    for n, p in double.named_parameters():
        parts = stored(double, n, p.grad).items()
        off = sum((tensors[f"grad.{part}"] - grad).norm() ** 2 for part, grad in parts) ** 0.5
        worst = max(worst, (off / p.grad.norm()).item())
    print(f"  gradients against f64: worst relative difference {worst:.1e}")
    assert worst < 2e-5


def check_packed_is_separate(model, b):
    """A document packed beside another has the logits it has alone: the mask is right."""
    packed = logits_of(model, b)
    for row in range(ROWS):
        for start in b["doc_start"][row].unique():
            inside = b["doc_start"][row] == start
            alone = model(input_ids=b["tokens"][row : row + 1, inside], use_cache=False).logits[0]
            assert torch.allclose(alone, packed[row, inside], atol=1e-5)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    print("torch", torch.__version__, "transformers", transformers.__version__)
    if not sys.argv[1:]:
        shutil.rmtree(HERE / "golden", ignore_errors=True)

    for name in sys.argv[1:] or MODELS:
        make, seed, spelling = MODELS[name]
        print(name)
        generator = torch.Generator().manual_seed(seed)
        folder = HERE / "golden" / name

        def fresh(dtype=torch.float32, attention="eager"):
            """The saved model itself, so that the golden numbers are those of the file."""
            fresh = type(model).from_pretrained(
                folder, dtype=dtype, attn_implementation=attention
            )
            plain_experts(fresh)
            return fresh

        model = make()
        randomise(model, generator)
        save_model(model, folder, spelling)
        saved = dict(fresh().named_parameters())
        assert all(torch.equal(p, saved[n]) for n, p in model.named_parameters())

        vocab = model.config.vocab_size
        whole = [[SEQ]] * ROWS
        full_case(fresh(), batch(vocab, whole, 0.3, generator), folder / "golden.safetensors")

        if name in ("llama", "mistral", "qwen3-moe"):
            packed = batch(vocab, [[9, 7], [4, 12]], 0.15, generator)
            check_packed_is_separate(fresh(), packed)
            full_case(fresh(), packed, folder / "packed.safetensors")

        if name == "llama":
            # Uneven on purpose: the mean of the micro-batches' means would be another number.
            uneven = [batch(vocab, whole, 0.1, generator), batch(vocab, whole, 0.75, generator)]
            steps = steps_tensors(*train(fresh(), uneven, SETTINGS), SETTINGS, "accumulation")
            stacked = {k: torch.stack([ints(u)[k] for u in uneven]) for k in uneven[0]}
            path = folder / "accumulation.safetensors"
            save_case(path, stacked | steps, SETTINGS)

        if name in ("llama", "mistral", "mixtral"):
            # sdpa: attention's sums in f32 and one rounding at its end, as a fused kernel does it.
            low = fresh(torch.bfloat16, "sdpa")
            assert low.model.rotary_emb.inv_freq.dtype == torch.float32
            b = batch(vocab, [[SEQ]] * BF16_ROWS, 0.1, generator)
            settings = BF16_SETTINGS | ({} if name == "llama" else dict(max_norm=0.78))
            steps = train_bf16(fresh(), low, [b], settings)
            steps = steps_tensors(*steps, settings, "bf16")
            save_case(folder / "bf16.safetensors", ints(b) | steps, settings)

    size = sum(f.stat().st_size for f in (HERE / "golden").rglob("*") if f.is_file())
    print(f"{size / 1e6:.2f} MB in all")
    assert size < 8_000_000


if __name__ == "__main__":
    main()
