"""Writes golden.json: texts and pairs of texts as transformers' tokenizers make tokens of them, cut or not.

The tokenizers, bert/ and roberta/, are words of a small vocabulary with BERT's and RoBERTa's post-processors.
Run: python golden.py (transformers 5.17, tokenizers of the version that it brings).
"""

import json
import pathlib

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
WORDS = "a the film book was is good bad very not long short".split()


def make(name, special, processor):
    vocab = {word: i for i, word in enumerate(special + WORDS)}
    t = Tokenizer(models.WordLevel(vocab, unk_token=special[3]))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.add_special_tokens(special)
    t.post_processor = processor(vocab)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    t.save(str(folder / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token=special[1])


def main():
    tokenizers = {
        "bert": make("bert", ["[CLS]", "[PAD]", "[SEP]", "[UNK]"],
                     lambda v: processors.BertProcessing(("[SEP]", v["[SEP]"]), ("[CLS]", v["[CLS]"]))),
        "roberta": make("roberta", ["<s>", "<pad>", "</s>", "<unk>"],
                        lambda v: processors.RobertaProcessing(("</s>", v["</s>"]), ("<s>", v["<s>"]))),
    }
    long = "the film was very very long and not good"
    texts = [("a film", None), ("the book is good", "the film is not"), (long, None), (long, "a book"),
             ("a book", long), (long, long), ("unknown words", "a")]
    cases = []
    for name, tokenizer in tokenizers.items():
        for text, pair in texts:
            for longest in [64, 10, 9, 6]:
                made = tokenizer(text, pair, truncation="longest_first", max_length=longest,
                                 return_token_type_ids=True)
                types = made["token_type_ids"]
                cases.append(dict(tokenizer=name, text=text, pair=pair, longest=longest,
                                  tokens=made["input_ids"], types=types))
    (HERE / "golden.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
