"""Writes the folders of golden/ whose models classify: what PyTorch says of BERT and RoBERTa.

Each has a model directory as those of golden.py, and golden.safetensors: one batch of 2 x 16 tokens, in
which documents lie packed, of one text or of two, and are computed each alone:

    tokens, positions, doc_start   I32 (B, T)     as in golden.py
    labels                         I32 (B, T)     a document's class at its first token; -101 at tokens of a
                                                  second text, -100 elsewhere
    logits                         F32 (D, N)     of each document, in order
    loss                           F32 ()         mean over the documents
    grad.<name>, losses, grad_norms, settings.<name>   as in golden.py

Run: python reference/classifier_golden.py [bert] [roberta]
"""

import sys

import torch
import torch.nn.functional as F
import transformers
from torch.nn.utils import clip_grad_norm_
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import golden

NO_LOSS, SECOND = -100, -101
CLASSES = 3
# Of each row the documents: tokens of the first text and of the second.
DOCUMENTS = [[(5, 4), (7, 0)], [(4, 0), (3, 9)]]
SETTINGS = golden.SETTINGS | dict(lr=2e-3, max_norm=1.2)


def sizes(**more):
    return dict(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ) | more


def bert():
    """Two types, positions from 0 on, a pooler."""
    return BertForSequenceClassification(BertConfig(**sizes(max_position_embeddings=16)))


def roberta():
    """One type, positions that begin behind that of padding, another epsilon, a head of its own."""
    config = sizes(max_position_embeddings=18, type_vocab_size=1, layer_norm_eps=1e-5)
    return RobertaForSequenceClassification(RobertaConfig(**config))


MODELS = {"bert": (bert, 5, "classic"), "roberta": (roberta, 6, "v5")}


def batch(vocab, types, generator):
    shape = (len(DOCUMENTS), golden.SEQ)
    tokens = torch.randint(5, vocab, shape, generator=generator)
    tokens[:, 5] = tokens[:, 2]
    b = dict(tokens=tokens, labels=torch.full(shape, NO_LOSS))
    b["positions"], b["doc_start"] = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for row, documents in enumerate(DOCUMENTS):
        assert sum(map(sum, documents)) == golden.SEQ
        start = 0
        for first, second in documents:
            end = start + first + second
            b["positions"][row, start:end] = torch.arange(end - start)
            b["doc_start"][row, start:end] = start
            if types:
                b["labels"][row, start + first : end] = SECOND
            b["labels"][row, start] = torch.randint(0, CLASSES, (), generator=generator)
            start = end
    return b


def documents(b):
    """Tokens, types and class of each document."""
    for row in range(len(b["tokens"])):
        for start in b["doc_start"][row].unique():
            inside = b["doc_start"][row] == start
            types = (b["labels"][row, inside] == SECOND).long()
            yield b["tokens"][row, inside], types, b["labels"][row, start]


def logits_of(model, b):
    of = [model(input_ids=t[None], token_type_ids=k[None]).logits[0] for t, k, _ in documents(b)]
    return torch.stack(of)


def backward(model, b):
    model.zero_grad(set_to_none=True)
    loss = F.cross_entropy(logits_of(model, b), torch.stack([label for *_, label in documents(b)]))
    loss.backward()
    return loss.item()


def train(model, b):
    optimizer = golden.adamw(model.parameters(), SETTINGS)
    losses, norms = [], []
    for _ in range(golden.STEPS):
        losses.append(backward(model, b))
        norms.append(clip_grad_norm_(model.parameters(), SETTINGS["max_norm"]).item())
        optimizer.step()
    return losses, norms


def check_against_f64(model, b, tensors):
    double = type(model)(model.config).to(torch.float64)
    double.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    double.set_attn_implementation("eager")
    backward(double, b)
    worst = 0.0
    for name, p in double.named_parameters():
        if name.endswith("key.bias"):  # a softmax does not change with it: nothing but rounding
            assert tensors[f"grad.{name}"].norm() < 1e-6
            continue
        off = (tensors[f"grad.{name}"] - p.grad).norm() / p.grad.norm()
        worst = max(worst, off.item())
    print(f"  gradients against f64: worst relative difference {worst:.1e}")
    assert worst < 2e-5


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    print("torch", torch.__version__, "transformers", transformers.__version__)
    for name in sys.argv[1:] or MODELS:
        make, seed, spelling = MODELS[name]
        print(name)
        generator = torch.Generator().manual_seed(seed)
        folder = golden.HERE / "golden" / name
        model = make()
        golden.randomise(model, generator)
        golden.save_model(model, folder, spelling)

        def fresh():
            return type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

        model = fresh()
        b = batch(model.config.vocab_size, model.config.type_vocab_size > 1, generator)
        tensors = golden.ints(b)
        tensors["loss"] = torch.tensor(backward(model, b))
        with torch.no_grad():
            tensors["logits"] = logits_of(model, b)
        for parameter, p in model.named_parameters():
            tensors[f"grad.{parameter}"] = p.grad.clone()
        check_against_f64(model, b, tensors)
        steps = golden.steps_tensors(*train(fresh(), b), SETTINGS, "golden")
        golden.save_case(folder / "golden.safetensors", tensors | steps, SETTINGS)


if __name__ == "__main__":
    main()
