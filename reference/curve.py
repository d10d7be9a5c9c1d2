"""Trains in PyTorch what `a_small_model_learns_shakespeare` trains in lowtide, and compares.

    LOWTIDE_CURVE=FOLDER cuda --exact a_small_model_learns_shakespeare   # writes model/, losses.txt
    python reference/curve.py FOLDER tinyshakespeare.txt

Same weights (f32, as lowtide's masters), same windows of the text in the same order, bf16 under
autocast with f32 weights, AdamW with the same settings, clipping at 1.0. Prints one JSON object;
exits with 1 when the means of the last twenty losses differ by more than 1%.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

B, T, STEPS = 16, 256, 300


def windows(text, step):
    rows = []
    for row in range(B):
        mixed = (step * 1_000_003 + row * 7919 + 12345) * 2_654_435_761 % (1 << 32)
        start = mixed % (len(text) - T - 1)
        rows.append(list(text[start : start + T + 1]))
    return torch.tensor(rows, device="cuda")


def main(folder, path):
    torch.manual_seed(0)
    text = open(path, "rb").read()
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32).cuda()
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(step / 20, 1.0)
        rows = windows(text, step)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, 256), rows[:, 1:].reshape(-1)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    ours = [float(x) for x in open(f"{folder}/losses.txt")]
    last = lambda all: sum(all[-20:]) / 20
    far = abs(last(ours) - last(losses)) / last(losses)
    result = {
        "first": [ours[0], losses[0]],
        "last_twenty": [last(ours), last(losses)],
        "relative_difference": far,
        "largest_difference_of_a_step": max(abs(a - b) / b for a, b in zip(ours, losses)),
    }
    print(json.dumps(result))
    sys.exit(0 if far <= 0.01 else 1)


main(*sys.argv[1:])
