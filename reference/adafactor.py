"""Writes what transformers' Adafactor says: golden/adafactor.txt, and golden/MODEL/adafactor.safetensors.

As `TrainingArguments(optim="adafactor")` makes it: relative_step and scale_parameter are False, without
beta1. Two kinds of files:

    adafactor.txt               tensors on their own. A line a tensor and step: rows, cols (1: a vector), step,
                                then at a few places the weight, and where there are some the moments of rows and
                                of columns, as the bits of f32 in hexadecimal
    MODEL/adafactor.safetensors ten steps of a model of golden.py on its golden batch in f32: inputs as in
                                golden.safetensors, losses, grad_norms and settings as there

Numbers of adafactor.txt are a hash of their place, the same in Rust (crates/kernels/src/adafactor/tests.rs).

Run: python reference/adafactor.py     (torch 2.11, transformers 5.24)
"""

import pathlib
import struct

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM
from transformers.optimization import Adafactor

HERE = pathlib.Path(__file__).resolve().parent / "golden"
IGNORE = -100
MASK = (1 << 64) - 1

# ---------------------------------------------------------------- tensors


def signed(i):
    """In -1..1, from the hash of i."""
    z = ((i + 0x9E3779B97F4A7C15) & MASK) * 0xBF58476D1CE4E5B9 & MASK
    word = z >> 31 & 0xFFFFFFFF
    word -= (word & 0x80000000) << 1
    return torch.tensor(word, dtype=torch.int64).float().item() / 2.0**31


def numbers(salt, n):
    return torch.tensor([signed(salt << 40 | i) for i in range(n)], dtype=torch.float32)


def bits(x):
    return struct.pack(">f", x).hex()


# Below one band and tile, at their borders, above them, and one row; vectors up to several runs.
SHAPES = [(3, 5), (64, 128), (65, 129), (70, 260), (1, 40), (200, 2), (7, 1), (1030, 1)]
SETTINGS = dict(lr=0.02, eps=(1e-30, 1e-3), clip_threshold=0.9, decay_rate=-0.7, weight_decay=0.1)


def tensors(out):
    for rows, cols in SHAPES:
        n = rows * cols
        shape = (rows, cols) if cols > 1 else (rows,)
        p = torch.nn.Parameter(numbers(rows, n).reshape(shape))
        optimizer = Adafactor([p], scale_parameter=False, relative_step=False, **SETTINGS)
        for step in range(1, 6):
            # Rows of very different size, and steps that are clipped and some that are not.
            size = torch.tensor([2.0 ** (i // cols % 9 - 4) for i in range(n)])
            p.grad = (numbers(step << 8 | cols, n) * size / 4**step).reshape(shape)
            optimizer.step()
            state = optimizer.state[p]
            few = range(0, n, max(1, n // 19))
            words = [p.detach().flatten()[i].item() for i in few]
            if cols > 1:
                words += [state["exp_avg_sq_row"][i].item() for i in (0, rows // 2, rows - 1)]
                words += [state["exp_avg_sq_col"][j].item() for j in (0, cols // 2, cols - 1)]
            else:
                words += [state["exp_avg_sq"][i].item() for i in (0, rows // 2, rows - 1)]
            print(rows, cols, step, *map(bits, words), file=out)


# ---------------------------------------------------------------- models

MODELS = ["llama", "llama-tied", "qwen2", "qwen3", "gpt2"]
MODEL_SETTINGS = dict(lr=3e-3, eps=1e-30, clip_threshold=1.0, decay_rate=-0.8, weight_decay=0.1, max_norm=2.0)


def model(name):
    with safe_open(HERE / name / "golden.safetensors", "pt") as f:
        inputs = {k: f.get_tensor(k) for k in ("tokens", "labels", "positions", "doc_start")}
    net = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager")
    net.eval()
    s = MODEL_SETTINGS
    groups = [
        dict(params=[p for p in net.parameters() if p.ndim == 2], weight_decay=s["weight_decay"]),
        dict(params=[p for p in net.parameters() if p.ndim == 1], weight_decay=0.0),
    ]
    optimizer = Adafactor(
        groups, lr=s["lr"], eps=(s["eps"], 1e-3), clip_threshold=s["clip_threshold"],
        decay_rate=s["decay_rate"], scale_parameter=False, relative_step=False,
    )
    losses, norms = [], []
    for _ in range(10):
        optimizer.zero_grad()
        logits = net(input_ids=inputs["tokens"].long(), position_ids=inputs["positions"].long()).logits
        loss = F.cross_entropy(logits.flatten(0, 1), inputs["labels"].long().flatten(), ignore_index=IGNORE)
        loss.backward()
        norms.append(clip_grad_norm_(net.parameters(), s["max_norm"]).item())
        losses.append(loss.item())
        optimizer.step()
    case = inputs | {"losses": torch.tensor(losses, dtype=torch.float64)}
    case["grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    for key, value in s.items():
        case[f"settings.{key}"] = torch.tensor(value, dtype=torch.float64)
    save_file(case, HERE / name / "adafactor.safetensors")
    print(name, losses[0], losses[-1], norms)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    with open(HERE / "adafactor.txt", "w") as out:
        tensors(out)
    for name in MODELS:
        model(name)
