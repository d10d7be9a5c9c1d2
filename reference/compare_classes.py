"""Loads a classifier that lowtide exported into transformers and compares its evaluation in f32.

Run: lowtide eval RUN.yaml --model MODEL_DIR --json > EVAL.json
     python reference/compare_classes.py MODEL_DIR DATA.jsonl EVAL.json [--seq 32] [--tolerance 1e-5]

DATA.jsonl is the run's `data.eval`, with `text`, perhaps `text_pair`, and `label`; --seq its `train.seq`. Each document
goes through the exported tokenizer and model alone; loss, accuracy and F1 are those of EVAL.json. Weights missing from
the directory, or in it without a place in the model, are errors. Exit status 0: within the tolerance; 1: not.
"""

import argparse
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification


def f1(labels, taken, classes):
    """Of two classes that of the second, of more the mean of all that occur."""
    each = []
    for c in range(classes):
        both = sum(a == c == b for a, b in zip(labels, taken))
        either = labels.count(c) + taken.count(c)
        each.append(2 * both / either if either else None)
    if classes == 2:
        return each[1] or 0.0
    there = [x for x in each if x is not None]
    return sum(there) / len(there)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("data")
    parser.add_argument("eval")
    parser.add_argument("--seq", type=int, default=32)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    model, info = AutoModelForSequenceClassification.from_pretrained(
        args.model_dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"{kind.replace('_', ' ')} in {args.model_dir}: {sorted(info[kind])}")
    tokenizer = Tokenizer.from_file(str(args.model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(args.seq, strategy="longest_first")

    numbers = model.config.label2id
    total, labels, taken = 0.0, [], []
    with open(args.data) as lines, torch.no_grad():
        for record in map(json.loads, lines):
            label = numbers[record["label"]]
            encoding = tokenizer.encode(record["text"], record.get("text_pair"))
            inputs = {"input_ids": torch.tensor([encoding.ids])}
            if model.config.type_vocab_size > 1:
                inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
            logits = model(**inputs).logits[0].double()
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(label)).item()
            labels.append(label)
            taken.append(logits.argmax().item())

    right = sum(a == b for a, b in zip(labels, taken)) / len(labels)
    theirs = dict(eval_loss=total / len(labels), eval_accuracy=right, eval_f1=f1(labels, taken, len(numbers)))
    ours = json.loads(pathlib.Path(args.eval).read_text().splitlines()[-1])
    print(f"{type(model).__name__}: {len(labels)} documents, classes {model.config.id2label}")
    within = True
    for name, value in theirs.items():
        far = abs(ours[name] - value) / max(abs(value), 1e-30)
        within &= far <= args.tolerance  # false for NaN
        print(f"{name}: {ours[name]:.9g}, transformers {value:.9g}, relative difference {far:.1e}")
    print("within" if within else "NOT within", f"{args.tolerance:g}")
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
