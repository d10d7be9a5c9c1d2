"""Trains the quickstart's tokenizer on its own text and writes it as a Hugging Face one.

A byte-level BPE of 1024 tokens with ChatML's special tokens. The chat template marks what the
assistant says with {% generation %}, the closing <|im_end|> included, so that a trainer knows which
tokens to learn from.

Run: python make_tokenizer.py [--data DIR] [--out DIR]      (needs `pip install tokenizers`)
"""

import argparse
import json
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1024
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def corpus(data):
    """The base model's text, and the chats so that 'user' and 'assistant' are cheap."""
    for line in open(data / "text.jsonl", encoding="utf-8"):
        yield json.loads(line)["text"]
    for line in open(data / "train.jsonl", encoding="utf-8"):
        for message in json.loads(line)["messages"]:
            yield message["role"] + "\n" + message["content"]


def main():
    here = pathlib.Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=here)
    parser.add_argument("--out", type=pathlib.Path, default=here / "base")
    args = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(args.data), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert [tokenizer.token_to_id(t) for t in SPECIAL] == [0, 1, 2]

    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 256,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
