"""Loads an encoder with a decoder that lowtide exported into transformers and compares its evaluation in f32.

Run: lowtide eval RUN.yaml --model MODEL_DIR --json > EVAL.json
     python reference/compare_pairs.py MODEL_DIR DATA.jsonl EVAL.json [--seq 64] [--target 64] [--tolerance 1e-5]

DATA.jsonl is the run's `data.eval`, with `source` and `target`; --seq and --target are its `train.seq` and
`train.target`. Each pair goes through the exported tokenizer and model alone; loss and token accuracy are those of
EVAL.json, and where it has answers (`eval.generate.exact_match`), transformers' greedy `generate` gives the same texts.
Weights missing from the directory, or in it without a place in the model, are errors. Exit status 0: within the
tolerance; 1: not.
"""

import argparse
import json
import pathlib
import sys

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("data")
    parser.add_argument("eval")
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    model, info = AutoModelForSeq2SeqLM.from_pretrained(
        args.model_dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model.eval()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"{kind.replace('_', ' ')} in {args.model_dir}: {sorted(info[kind])}")
    tokenizer = AutoTokenizer.from_pretrained(args.model_dir)
    ours = json.loads(pathlib.Path(args.eval).read_text().splitlines()[-1])
    given = ours["answers"]

    total, count, right, same = 0.0, 0, 0, 0
    with open(args.data) as lines, torch.no_grad():
        for i, record in enumerate(map(json.loads, lines)):
            source = tokenizer(record["source"], truncation=True, max_length=args.seq, return_tensors="pt").input_ids
            target = tokenizer(text_target=record["target"], truncation=True, max_length=args.target)["input_ids"]
            out = model(input_ids=source, labels=torch.tensor([target]))
            logits = out.logits[0].double()
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum").item()
            count += len(target)
            right += (logits.argmax(-1) == torch.tensor(target)).sum().item()
            if i < len(given):
                made = model.generate(source, max_new_tokens=args.target, do_sample=False, num_beams=1)
                same += tokenizer.decode(made[0], skip_special_tokens=True) == given[i]["answer"]

    theirs = dict(eval_loss=total / count, eval_accuracy=right / count)
    print(f"{type(model).__name__}: {count} tokens of targets")
    within = True
    for name, value in theirs.items():
        far = abs(ours[name] - value) / max(abs(value), 1e-30)
        within &= far <= args.tolerance  # false for NaN
        print(f"{name}: {ours[name]:.9g}, transformers {value:.9g}, relative difference {far:.1e}")
    print(f"answers: {same} of {len(given)} are those of transformers")
    within &= same == len(given)
    print("within" if within else "NOT within", f"{args.tolerance:g}")
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
