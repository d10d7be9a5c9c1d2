"""Writes the sentences and the tokenizer of this folder: train.jsonl, eval.jsonl, tokenizer.json.

A sentence says of something that it is good or bad, and may say that it is not: the label is what is meant. No
sentence of eval.jsonl is in train.jsonl. Run: python make.py (it needs no package).
"""

import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent
THINGS = "film book play story song meal hotel trip".split()
GOOD = "good great lovely funny clever warm".split()
BAD = "bad dull awful boring cold weak".split()
HOW = ["", "very", "really", "quite"]
WHO = ["the {} was", "this {} is", "i think the {} is", "they say that the {} was"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def sentences():
    for who in WHO:
        for thing in THINGS:
            for how in HOW:
                for no in ["", "not"]:
                    for words, good in [(GOOD, True), (BAD, False)]:
                        for word in words:
                            text = " ".join(f"{who.format(thing)} {no} {how} {word}".split())
                            yield text, "positive" if good != bool(no) else "negative"


def main():
    every = sorted(set(sentences()))
    random.Random(1).shuffle(every)
    train, held = every[:1200], every[1200:1400]
    for name, part in [("train", train), ("eval", held)]:
        lines = [json.dumps(dict(text=text, label=label)) + "\n" for text, label in part]
        (HERE / f"{name}.jsonl").write_text("".join(lines))
    words = sorted({word for text, _ in every for word in text.split()})
    vocab = {word: i for i, word in enumerate(SPECIAL + words)}
    tokenizer = dict(
        version="1.0", truncation=None, padding=None,
        added_tokens=[
            dict(id=i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
            for i, text in enumerate(SPECIAL)
        ],
        normalizer=dict(type="Lowercase"), pre_tokenizer=dict(type="Whitespace"),
        post_processor=dict(type="RobertaProcessing", sep=["</s>", 2], cls=["<s>", 0], trim_offsets=True,
                            add_prefix_space=True),
        decoder=None, model=dict(type="WordLevel", vocab=vocab, unk_token="<unk>"),
    )
    (HERE / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
    print(len(every), "sentences,", len(vocab), "tokens")


if __name__ == "__main__":
    main()
