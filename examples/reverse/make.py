"""Writes the words and the tokenizer of this folder: train.jsonl, eval.jsonl, tokenizer.json, tokenizer_config.json.

A source is some letters, its target the same letters backward. No source of eval.jsonl is in train.jsonl.
Run: python make.py (it needs no package).
"""

import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent
LETTERS = "abcdefghijklmnop"
SHORTEST, LONGEST = 2, 7
SPECIAL = ["<pad>", "</s>", "<unk>"]


def words(count):
    draw = random.Random(1)
    found = {}
    while len(found) < count:
        letters = draw.choices(LETTERS, k=draw.randint(SHORTEST, LONGEST))
        found["".join(letters)] = None
    return list(found)


def main():
    every = words(6200)
    for name, part in [("train", every[:6000]), ("eval", every[6000:])]:
        lines = [json.dumps(dict(source=word, target=word[::-1])) + "\n" for word in part]
        (HERE / f"{name}.jsonl").write_text("".join(lines))
    vocab = {text: i for i, text in enumerate(SPECIAL + list(LETTERS))}
    end = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    tokenizer = dict(
        version="1.0", truncation=None, padding=None,
        added_tokens=[
            dict(id=i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
            for i, text in enumerate(SPECIAL)
        ],
        normalizer=None,
        pre_tokenizer=dict(type="Split", pattern=dict(Regex="."), behavior="Isolated", invert=False),
        post_processor=dict(type="TemplateProcessing", single=end, pair=end[:1] + end,
                            special_tokens={"</s>": dict(id="</s>", ids=[1], tokens=["</s>"])}),
        decoder=dict(type="Fuse"), model=dict(type="WordLevel", vocab=vocab, unk_token="<unk>"),
    )
    (HERE / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
    special = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    (HERE / "tokenizer_config.json").write_text(json.dumps(special, indent=1) + "\n")
    print(len(every), "words,", len(vocab), "tokens")


if __name__ == "__main__":
    main()
