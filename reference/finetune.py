"""Fine-tunes in PyTorch what a run of lowtide fine-tuned, on the same batches, and compares the losses.

    cargo run --release -p lowtide-trainer --example batches -- RUN.yaml BATCHES
    lowtide train RUN.yaml
    python reference/finetune.py MODEL_DIR BATCHES OUTPUT [--weight-decay X --beta2 X --clip X]

MODEL_DIR is the model that the run began with, OUTPUT the run's output directory: each step's learning rate is read
from its `metrics.jsonl`, its losses are compared, and its model (`OUTPUT/model`) is evaluated by transformers too.
A plain loop: f32 weights under bf16 autocast, AdamW, clipping by the exact norm; documents of a packed row see only
themselves. Prints one JSON object; exits with 1 when the evaluation loss differs by more than 1 %.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM

TOKENS, LABELS, POSITIONS, STARTS = range(4)


def forward(model, micro):
    """Sum of the losses of a micro-batch and the count of its labels."""
    micro = torch.from_numpy(np.ascontiguousarray(micro)).cuda().long()
    place = torch.arange(micro.shape[-1], device="cuda")
    # A place sees those of its own document that are not behind it.
    same = micro[STARTS][:, :, None] == micro[STARTS][:, None, :]
    mask = (same & (place[None, :, None] >= place[None, None, :]))[:, None]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        hidden = model.model(
            input_ids=micro[TOKENS], position_ids=micro[POSITIONS], attention_mask=mask, use_cache=False
        ).last_hidden_state
        wanted = micro[LABELS] != -100
        logits = model.lm_head(hidden[wanted])
    loss = torch.nn.functional.cross_entropy(logits.float(), micro[LABELS][wanted], reduction="sum")
    return loss, int(wanted.sum())


@torch.no_grad()
def evaluate(model, batches):
    total = count = 0
    for micro in batches.reshape(-1, *batches.shape[2:]):
        loss, n = forward(model, micro)
        total, count = total + loss.item(), count + n
    return total / count


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").cuda()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("batches")
    parser.add_argument("output")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--clip", type=float, default=1.0)
    args = parser.parse_args()

    train, held = (np.load(f"{args.batches}/{name}.npy", mmap_mode="r") for name in ("train", "eval"))
    lines = [json.loads(line) for line in open(f"{args.output}/metrics.jsonl")]
    ours = {l["step"]: l for l in lines if "loss" in l}
    ours_eval = [l["eval_loss"] for l in lines if "eval_loss" in l]
    if sorted(ours) != list(range(1, len(train) + 1)):
        sys.exit(f"{args.output}/metrics.jsonl does not have the steps 1 to {len(train)}")

    torch.manual_seed(0)
    model = load(args.model)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, args.beta2), eps=1e-8)
    before = evaluate(model, held)
    losses, seconds = [], []
    for step, batch in enumerate(train, 1):
        began = time.time()
        for group in optimizer.param_groups:
            group["lr"] = ours[step]["learning_rate"]
        optimizer.zero_grad()
        total = 0.0
        labels = int((batch[:, LABELS] != -100).sum())
        for micro in batch:
            loss, _ = forward(model, micro)
            (loss / labels).backward()
            total += loss.item() / labels
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        torch.cuda.synchronize()
        losses.append(total)
        seconds.append(time.time() - began)
    after = evaluate(model, held)
    exported = evaluate(load(f"{args.output}/model"), held)

    far = [abs(ours[s]["loss"] - loss) / loss for s, loss in enumerate(losses, 1)]
    tokens = sum(l["tokens"] for l in ours.values()) / len(ours)
    result = {
        "device": torch.cuda.get_device_name(),
        "steps": len(losses),
        "eval_loss_before": {"lowtide": ours_eval[0], "pytorch": before},
        "eval_loss_after": {"lowtide": ours_eval[-1], "pytorch": after, "lowtide's export in transformers": exported},
        "loss_of_a_step_relative_difference": {"median": statistics.median(far), "greatest": max(far)},
        "pytorch_tokens_per_second": tokens / statistics.median(seconds),
    }
    print(json.dumps(result, indent=2))
    sys.exit(0 if abs(ours_eval[-1] - after) <= 0.01 * after else 1)


main()
