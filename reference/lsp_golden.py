"""Writes lsp.safetensors into each folder of reference/golden/: ten steps of `strategy.name: lsp` in PyTorch.

A twin of what docs/numerics.md says of training in subspaces, by autograd and in f32: of each of the blocks' matrices
W = W0 + S Qt (or W0 + P St where the matrix has fewer rows than columns) S is trained, W0, P and Q stay. Projectors are
drawn here once more, from the words of that page.

    tokens, labels, positions, doc_start   as in golden.safetensors, of its batch
    projector.<name>   F32 (features, r)   drawn with seed 7
    grad.<name>        F32                 gradient of the core before the first step, not clipped
    losses, grad_norms F64 (10)            as in golden.safetensors
    merged.<name>      F32                 the file's tensor after ten steps
    sketch.<name>      F32 (features, r)   what directions are learned from: the whole gradient before the first step, times
                                           a drawn projector of the other side
    settings.<name>    F64 ()              lr, beta1, beta2, eps, weight_decay, max_norm

And what other optimizers and roundings make of it, each with the batch, losses, grad_norms and settings alone (and
settings.compression, by which a reader knows that it is in subspaces):

    lsp-adafactor.safetensors              by transformers' Adafactor, which factors the second moment of each tensor: of a
                                           core whose rows are several of the file's tensors, of each of them
    lsp-bf16.safetensors                   of llama alone: bf16 with f32 master weights, on the batch of bf16.safetensors

Run: python reference/lsp_golden.py    (torch 2.11.0, transformers 5.24.0, safetensors 0.8.0)
"""

import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM
from transformers.optimization import Adafactor

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
MODELS = ["llama", "llama-tied", "qwen2", "qwen3", "gpt2"]
IGNORE, SEED, COMPRESSION = -100, 7, 4
SETTINGS = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, max_norm=3.2)
ADAFACTOR = dict(lr=3e-3, eps=1e-30, clip_threshold=1.0, decay_rate=-0.8, weight_decay=0.0, max_norm=5.0)
BF16 = SETTINGS | dict(lr=1e-3, max_norm=0.9)


# ---------------------------------------------------------------- projectors


def philox(counter, key):
    """Philox 4x32-10."""
    c, key, mask = list(counter), list(key), 0xFFFFFFFF
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ key[0], b & mask, a >> 32 ^ c[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return c


def projector(parameter, features, rank):
    """(features, rank): vectors of the discrete cosine transform, each feature with a sign of its own."""
    key = (SEED & 0xFFFFFFFF, SEED >> 32)

    def words(i, what):
        return philox((i & 0xFFFFFFFF, i >> 32, parameter, what), key)

    def below(i, n):
        a, b, *_ = words(i, 1)
        return (a | b << 32) * n >> 64

    order = list(range(features))
    for i in range(rank):
        j = i + below(i, features - i)
        order[i], order[j] = order[j], order[i]
    k = torch.tensor(order[:rank], dtype=torch.float64)
    i = torch.arange(features, dtype=torch.float64)
    signs = torch.tensor([-1.0 if words(int(x), 2)[0] & 1 else 1.0 for x in i], dtype=torch.float64)
    q = torch.cos(math.pi * (2 * i[:, None] + 1) * k[None, :] / (2 * features))
    length = torch.full_like(k, math.sqrt(2.0)).masked_fill(k == 0, 1.0)
    q = q * length[None, :] * signs[:, None] / math.sqrt(rank)
    gram = q.T @ q - torch.eye(rank, dtype=torch.float64) * features / rank
    assert gram.abs().max() < 1e-10
    return q.float()


# ---------------------------------------------------------------- models


def matrices(name, net):
    """Of each of the blocks' matrices: its name and index in lowtide, and the file's tensors that are its rows."""
    gpt2 = name == "gpt2"
    config = net.config
    index = 2 if gpt2 else 1
    for layer in range(config.num_hidden_layers):
        if gpt2:
            at = f"transformer.h.{layer}"
            names = [("ln_1",), "qkv", ("attn.c_attn.bias",), "o", ("bias",), ("ln_2",), "up", ("bias",), "down", ("bias",)]
            sizes = {("ln_1",): 2, ("ln_2",): 2}
            tensors = dict(qkv=["attn.c_attn"], o=["attn.c_proj"], up=["mlp.c_fc"], down=["mlp.c_proj"])
        else:
            at = f"model.layers.{layer}"
            names = [("norm",), "qkv"]
            if name == "qwen2":
                names.append(("bias",))
            if name == "qwen3":
                names += [("q_norm",), ("k_norm",)]
            names += ["o", ("norm",), "gate_up", "down"]
            sizes = {}
            tensors = dict(
                qkv=[f"self_attn.{p}_proj" for p in "qkv"], o=["self_attn.o_proj"],
                gate_up=["mlp.gate_proj", "mlp.up_proj"], down=["mlp.down_proj"],
            )
        for part in names:
            if isinstance(part, tuple):
                index += sizes.get(part, 1)
                continue
            yield f"blocks.{layer}.{part}", index, [f"{at}.{t}.weight" for t in tensors[part]]
            index += 1


class Subspaces:
    def __init__(self, name, net):
        self.net, self.turned = net, name == "gpt2"
        self.frozen, self.cores, self.projectors, self.names, self.index = {}, {}, {}, {}, {}
        own = dict(net.named_parameters())
        for part, index, tensors in matrices(name, net):
            w = torch.cat([own[t].detach().T if self.turned else own[t].detach() for t in tensors])
            rows, columns = w.shape
            rank = min(rows, columns) // COMPRESSION // 8 * 8
            self.frozen[part], self.names[part], self.index[part] = w.clone(), tensors, index
            self.projectors[part] = projector(index, min(rows, columns), rank)
            self.cores[part] = torch.zeros(max(rows, columns), rank, requires_grad=True)
        inside = {t for tensors in self.names.values() for t in tensors}
        self.rest = {n: p for n, p in own.items() if n not in inside}

    def whole(self):
        """The file's tensors of all matrices."""
        all_of = {}
        for part, w0 in self.frozen.items():
            s, q = self.cores[part], self.projectors[part]
            w = w0 + (q @ s.T if w0.shape[0] < w0.shape[1] else s @ q.T)
            sizes = [self.rows(t) for t in self.names[part]]
            for t, piece in zip(self.names[part], w.split(sizes)):
                all_of[t] = piece.T if self.turned else piece
        return all_of

    def sketches(self, b):
        """Of every matrix: its whole gradient, on the side that is projected, times a drawn projector of the other side."""
        leaves = {part: w.clone().requires_grad_() for part, w in self.frozen.items()}
        cores = self.cores
        self.cores = {part: torch.zeros_like(core) for part, core in cores.items()}
        frozen, self.frozen = self.frozen, leaves
        self.loss(b).backward()
        self.cores, self.frozen = cores, frozen
        for part, leaf in leaves.items():
            g = leaf.grad.T if leaf.shape[0] >= leaf.shape[1] else leaf.grad
            psi = projector(self.index[part], g.shape[1], cores[part].shape[1])
            yield part, g @ psi

    def rows(self, tensor):
        shape = self.net.get_parameter(tensor).shape
        return shape[1] if self.turned else shape[0]

    def loss(self, b):
        inputs = dict(input_ids=b["tokens"].long(), position_ids=b["positions"].long(), use_cache=False)
        logits = functional_call(self.net, self.whole(), (), inputs).logits
        labels = b["labels"].long().flatten()
        return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORE)


def opened(name, case="golden"):
    """A model and the batch of one of its cases."""
    with safe_open(GOLDEN / name / f"{case}.safetensors", "pt") as f:
        batch = {k: f.get_tensor(k) for k in ("tokens", "labels", "positions", "doc_start")}
    net = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32, attn_implementation="eager")
    net.eval()
    return Subspaces(name, net), batch


def save(path, case, settings, losses, norms):
    case["losses"] = torch.tensor(losses, dtype=torch.float64)
    case["grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    for key, value in settings.items():
        case[f"settings.{key}"] = torch.tensor(value, dtype=torch.float64)
    save_file({k: v.detach().contiguous() for k, v in case.items()}, path)
    path.chmod(0o644)
    clipped = sum(n > settings["max_norm"] for n in norms)
    at = f"{path.parent.name}/{path.stem}"
    print(f"{at:24} loss {losses[0]:.4f} -> {losses[-1]:.4f}, norm {norms[0]:.2f} -> {norms[-1]:.2f}, clipped {clipped}")
    assert losses[-1] < losses[0] - 0.3 and 2 <= clipped < 10


def write_adafactor(name):
    model, batch = opened(name)
    s = ADAFACTOR
    # Rows of a core are those of its matrix where the input side is projected.
    trained = []
    for part, core in model.cores.items():
        sizes = [model.rows(t) for t in model.names[part]]
        rows, columns = model.frozen[part].shape
        cut = sizes if rows >= columns else [len(core)]
        leaves = [torch.zeros(rows, core.shape[1], requires_grad=True) for rows in cut]
        trained += leaves
        model.cores[part] = leaves
    made, model.cores = model.cores, None
    trained += model.rest.values()
    optimizer = Adafactor(
        [dict(params=trained, weight_decay=0.0)], lr=s["lr"], eps=(s["eps"], 1e-3), clip_threshold=s["clip_threshold"],
        decay_rate=s["decay_rate"], scale_parameter=False, relative_step=False,
    )
    losses, norms = [], []
    for _ in range(10):
        optimizer.zero_grad()
        model.cores = {part: torch.cat(leaves) for part, leaves in made.items()}
        loss = model.loss(batch)
        loss.backward()
        norms.append(clip_grad_norm_(trained, s["max_norm"]).item())
        losses.append(loss.item())
        optimizer.step()
    save(GOLDEN / name / "lsp-adafactor.safetensors", dict(batch), s | dict(compression=COMPRESSION), losses, norms)


def rounded(x):
    return x.detach().bfloat16()


def write_bf16(name):
    """Weights, activations and complete gradients in bf16, masters and moments in f32."""
    model, batch = opened(name, "bf16")
    s = BF16
    masters = [*model.cores.values(), *(p.detach().clone().requires_grad_() for p in model.rest.values())]
    parts, rest = list(model.cores), list(model.rest)
    optimizer = torch.optim.AdamW(
        masters, lr=s["lr"], betas=(s["beta1"], s["beta2"]), eps=s["eps"], weight_decay=0.0, foreach=False
    )
    model.frozen = {part: rounded(w).float() for part, w in model.frozen.items()}
    model.projectors = {part: rounded(q).float() for part, q in model.projectors.items()}
    net = model.net.bfloat16()
    losses, norms = [], []
    for _ in range(10):
        low = [rounded(m).requires_grad_() for m in masters]
        model.cores = {part: x.float() for part, x in zip(parts, low)}
        weights = {t: w.bfloat16() for t, w in model.whole().items()} | dict(zip(rest, low[len(parts) :]))
        inputs = dict(input_ids=batch["tokens"].long(), position_ids=batch["positions"].long(), use_cache=False)
        logits = functional_call(net, weights, (), inputs).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].long().flatten(), ignore_index=IGNORE)
        loss.backward()
        for m, x in zip(masters, low):
            m.grad = x.grad.float()
        norms.append(clip_grad_norm_(masters, s["max_norm"]).item())
        losses.append(loss.item())
        optimizer.step()
    save(GOLDEN / name / "lsp-bf16.safetensors", dict(batch), s | dict(compression=COMPRESSION), losses, norms)


def write(name):
    model, batch = opened(name)
    s = SETTINGS
    trained = [*model.cores.values(), *model.rest.values()]
    optimizer = torch.optim.AdamW(
        trained, lr=s["lr"], betas=(s["beta1"], s["beta2"]), eps=s["eps"], weight_decay=0.0, foreach=False
    )
    case = dict(batch)
    case |= {f"sketch.{part}": z for part, z in model.sketches(batch)}
    losses, norms = [], []
    for step in range(10):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        if step == 0:
            for part, core in model.cores.items():
                case[f"grad.{part}"] = core.grad.clone()
                case[f"projector.{part}"] = model.projectors[part]
        norms.append(clip_grad_norm_(trained, s["max_norm"]).item())
        losses.append(loss.item())
        optimizer.step()
    with torch.no_grad():
        case |= {f"merged.{t}": w.clone() for t, w in model.whole().items() if ".0." in t}
    save(GOLDEN / name / "lsp.safetensors", case, s, losses, norms)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in MODELS:
        write(name)
        write_adafactor(name)
    write_bf16("llama")
