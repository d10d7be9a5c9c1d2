"""Writes reference/golden/t5 and reference/golden/t5-v1.1: tiny T5 models with random weights and what PyTorch says of them.

Each folder is a Hugging Face model directory (config.json, model.safetensors in f32) and has one case, golden.safetensors.
A batch has 2 rows of several pairs of source and target each; what PyTorch says is of each pair alone.

Tensors (B rows, S tokens of sources, T of targets, V the vocabulary):

    tokens, labels, positions, doc_start   I32 (B·S + B·T)  all sources, row after row, then all targets
    logits              F32 (B, T, V)  before the first step; 0 where there is no token
    loss                F32 ()         mean over the supervised tokens of all pairs, before the first step
    grad.<name>         F32            gradient of that loss by the weight's name, not clipped
    losses              F64 (10)       loss of steps 1 to 10, each before that step's update
    grad_norms          F64 (10)       global gradient norm of each step, before clipping
    settings.<name>     F64 ()         lr, beta1, beta2, eps, weight_decay, max_norm

Weight decay falls on matrices and tables only.

Run: python reference/t5.py   (needs torch and transformers, see reference/README.md)
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_
from transformers import T5Config, T5ForConditionalGeneration

HERE = pathlib.Path(__file__).resolve().parent
STEPS, SOURCE, TARGET = 10, 12, 9
SETTINGS = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_norm=2.0)
# Tokens of source and target of each pair of each row; what is left of a row is padding.
ROWS = [[(5, 4), (6, 3)], [(12, 9)]]
START, END = 0, 1


def config(tied, proj):
    """Heads that do not add up to the hidden size; distances beyond the exact buckets and beyond the last."""
    return dict(
        vocab_size=61, d_model=16, d_kv=6, num_heads=2, d_ff=24, num_layers=2, num_decoder_layers=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=7,
        feed_forward_proj=proj, dropout_rate=0.0, layer_norm_epsilon=1e-6,
        tie_word_embeddings=tied, decoder_start_token_id=START,
    )


def build(settings, seed):
    """Weights large enough that each is felt, and small enough that ten steps do not part by roundings."""
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(**settings))
    if not settings["tie_word_embeddings"]:
        # Whatever the configuration says, this version of transformers ties what is not in a file.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for name, parameter in model.named_parameters():
        norm = "norm" in name
        torch.nn.init.normal_(parameter, 1.0 if norm else 0.0, 0.2 if norm else deviation(settings))
    return model.eval()


def deviation(settings):
    """Logits of an untied head are not scaled down."""
    return 0.3 if settings["tie_word_embeddings"] else 0.15


def pairs(vocab, seed):
    """Of each row its pairs: source with its end, target with its end."""
    torch.manual_seed(seed)
    draw = lambda n: torch.randint(2, vocab, (n - 1,)).tolist() + [END]
    return [[(draw(s), draw(t)) for s, t in row] for row in ROWS]


def planes(rows):
    """The inputs: sources of all rows, then targets of all rows."""
    out = {name: [] for name in ("tokens", "labels", "positions", "doc_start")}

    def add(documents, length):
        at = 0
        for tokens, labels in documents:
            n = len(tokens)
            out["tokens"] += tokens
            out["labels"] += labels
            out["positions"] += list(range(n))
            out["doc_start"] += [at] * n
            at += n
        rest = length - at
        out["tokens"] += [0] * rest
        out["labels"] += [-100] * rest
        out["positions"] += list(range(rest))
        out["doc_start"] += [at] * rest

    for row in rows:
        add([(s, [-100] * len(s)) for s, _ in row], SOURCE)
    for row in rows:
        add([([START] + t[:-1], t) for _, t in row], TARGET)
    return {name: torch.tensor(all, dtype=torch.int32) for name, all in out.items()}


def run(model, rows):
    """Sum of losses, number of labels, logits."""
    total, count = 0.0, 0
    logits = torch.zeros(len(rows), TARGET, model.config.vocab_size)
    for r, row in enumerate(rows):
        at = 0
        for source, target in row:
            given = torch.tensor([[START] + target[:-1]])
            out = model(input_ids=torch.tensor([source]), decoder_input_ids=given).logits[0]
            total = total + torch.nn.functional.cross_entropy(out, torch.tensor(target), reduction="sum")
            count += len(target)
            logits[r, at : at + len(target)] = out.detach()
            at += len(target)
    return total, count, logits


def write(folder, settings, seed):
    where = HERE / "golden" / folder
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    model = build(settings, seed)
    tied = settings["tie_word_embeddings"]
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] + (["lm_head.weight"] if tied else [])
    state = {k: v.clone().contiguous() for k, v in model.state_dict().items() if k not in copies}
    save_file(state, where / "model.safetensors", metadata={"format": "pt"})
    text = dict(architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True,
                pad_token_id=0, eos_token_id=END, torch_dtype="float32") | settings
    (where / "config.json").write_text(json.dumps(text, indent=2) + "\n")

    # The files say all of it.
    again = T5ForConditionalGeneration.from_pretrained(where, attn_implementation="eager").eval()
    rows = pairs(settings["vocab_size"], seed)
    case = planes(rows)
    total, count, logits = run(model, rows)
    assert torch.allclose(run(again, rows)[2], logits, atol=1e-5), "the files are another model"
    loss = total / count
    loss.backward()
    case |= dict(logits=logits, loss=loss.detach())
    for name, parameter in model.named_parameters():
        case[f"grad.{name}"] = parameter.grad.clone()
    model.zero_grad()

    named = list(model.named_parameters())
    groups = [
        dict(params=[p for n, p in named if "norm" not in n], weight_decay=SETTINGS["weight_decay"]),
        dict(params=[p for n, p in named if "norm" in n], weight_decay=0.0),
    ]
    adamw = torch.optim.AdamW(groups, lr=SETTINGS["lr"], betas=(SETTINGS["beta1"], SETTINGS["beta2"]), eps=SETTINGS["eps"])
    losses, norms = [], []
    for _ in range(STEPS):
        total, count, _ = run(model, rows)
        loss = total / count
        loss.backward()
        norms.append(float(clip_grad_norm_(model.parameters(), SETTINGS["max_norm"])))
        losses.append(float(loss.detach()))
        adamw.step()
        adamw.zero_grad()
    case |= dict(losses=torch.tensor(losses, dtype=torch.float64), grad_norms=torch.tensor(norms, dtype=torch.float64))
    for name, value in SETTINGS.items():
        case[f"settings.{name}"] = torch.tensor(value, dtype=torch.float64)
    save_file(case, where / "golden.safetensors")
    print(folder, "losses", losses[0], losses[-1], "norms", norms[0], norms[-1])


if __name__ == "__main__":
    write("t5", config(True, "relu"), 1)
    write("t5-v1.1", config(False, "gated-gelu"), 2)
