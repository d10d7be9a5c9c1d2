"""Loads a directory that lowtide exported into transformers and compares logits in f32.

Run: python reference/compare_export.py MODEL_DIR LOGITS.safetensors [--tolerance 1e-3]

LOGITS.safetensors holds `tokens` (B, T) and `logits` (B, T, V) as lowtide computed them with that
model in f32, each row one document from position 0. Weights missing from the directory, or in it
without a place in the model, are errors. Exit status 0: within the tolerance; 1: not.
"""

import argparse
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def difference(ours, theirs):
    """(norm of the difference / norm, greatest difference / greatest magnitude)."""
    by_norm = (ours - theirs).norm() / theirs.norm()
    by_greatest = (ours - theirs).abs().max() / theirs.abs().max()
    return by_norm.item(), by_greatest.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir")
    parser.add_argument("logits")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    model, info = AutoModelForCausalLM.from_pretrained(
        args.model_dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"{kind.replace('_', ' ')} in {args.model_dir}: {sorted(info[kind])}")

    case = load_file(args.logits)
    ours = case["logits"].float()
    with torch.no_grad():
        theirs = model(input_ids=case["tokens"].long(), use_cache=False).logits
    if ours.shape != theirs.shape:
        sys.exit(f"logits are {tuple(ours.shape)}, the model's are {tuple(theirs.shape)}")

    by_norm, by_greatest = difference(ours, theirs)
    same_choice = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    print(f"{type(model).__name__}: {tuple(ours.shape)} logits")
    print(f"relative difference by norm {by_norm:.2e}, greatest {by_greatest:.2e}")
    print(f"same most likely token at {same_choice:.2%} of positions")
    within = max(by_norm, by_greatest) <= args.tolerance  # false for NaN
    print("within" if within else "NOT within", f"{args.tolerance:g}")
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
