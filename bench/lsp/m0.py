"""Held-out loss over steps of exact training and of subspace methods, on a real model of 135M parameters and GSM8K.

    python3 bench/lsp/m0.py MODEL GSM8K OUT [--seconds 560] [--workers 2] [--jobs FILE] [--small]

MODEL is a Hugging Face directory (reference/smollm2.py), GSM8K a folder with train.jsonl and test.jsonl. First every method at
four learning rates, 300 steps and one seed; then each at its best rate, 1000 steps and three seeds; or, with --jobs, the runs of a
file: a line of JSON each with arm, lr, seed and steps. OUT/results.jsonl gets a line a run: its evaluation losses and what was kept of gradients. Every GPU runs several at once; what does not fit into the
seconds is left out, and said.
"""

import argparse
import json
import math
import os
import queue
import sys
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "reference"))
from lsp import METHODS, Adam  # noqa: E402

BATCH, SEQ, EVAL_BATCH, EVAL = 8, 384, 16, 256
RATES = [0.5e-4, 1e-4, 2e-4, 4e-4]
AT = [25, 50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000]

# Drawn projectors, one-sided ones and the paper's take smaller steps at the same rate.
HIGHER = [1e-4, 2e-4, 4e-4, 8e-4]

# Name, method, its settings, and what is done with embedding and norms.
ARMS = {
    "exact": ("exact", {}),
    "learned 1/16": ("block", dict(r=16)),
    "random 1/16": ("block", dict(r=16, learn="")),
    "paper d=1/2 r=16": ("sparse", dict(r=16)),
    "paper d=1/2 r=4": ("sparse", dict(r=4)),
    "mixed 1/16": ("block", dict(r=16, mixed=0.5)),
    "learned 1/4": ("block", dict(r=32)),
    "learned 1/64": ("block", dict(r=8)),
    "random 1/4": ("block", dict(r=32, learn="")),
    "mixed 1/4": ("block", dict(r=32, mixed=0.5)),
    "one side 1/16": ("one side", {}),
    "one side 1/4": ("one side", dict(share=1 / 4)),
    "one side 1/16, whole gradient": ("one side", dict(learn="full")),
    "galore 1/16": ("galore", {}),
    "apollo 1/16": ("apollo", {}),
    "learned 1/16, every 25": ("block", dict(r=16, every=25)),
    "learned 1/16, every 400": ("block", dict(r=16, every=400)),
    "learned 1/16, once": ("block", dict(r=16, every=0)),
    "random 1/16, every 25": ("block", dict(r=16, learn="", every=25)),
    "learned 1/16, four batches": ("block", dict(r=16, batches=4)),
    "learned 1/16, whole gradient": ("block", dict(r=16, learn="full")),
    "learned 1/64, g=96": ("block", dict(r=12, g=96)),
    "exact, ends frozen": ("exact", dict(ends=False)),
    "learned 1/16, ends frozen": ("block", dict(r=16, ends=False)),
}
SHORT = ["learned 1/16, once", "learned 1/64, g=96"]  # no rates of their own: those of learned 1/16
STACKS = ["qkv", "o", "gate_up", "down"]


def chats(path, tokenizer):
    """Tokens and labels of one question and answer each, those that fit."""
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    for line in open(path):
        r = json.loads(line)
        prompt = f"{system}<|im_start|>user\n{r['question']}<|im_end|>\n<|im_start|>assistant\n"
        p = tokenizer.encode(prompt, add_special_tokens=False).ids
        a = tokenizer.encode(f"{r['answer']}<|im_end|>", add_special_tokens=False).ids
        if len(p) + len(a) <= SEQ + 1:
            ids = p + a
            labels = [-100] * (len(p) - 1) + a
            pad = SEQ - (len(ids) - 1)
            yield ids[:-1] + [2] * pad, labels + [-100] * pad


class Model:
    """A Llama with its matrices in stacks of equal shapes: f32 masters, bf16 products."""

    def __init__(self, folder, device):
        from safetensors.torch import load_file

        self.c = json.loads((folder / "config.json").read_text())
        t = {k.removeprefix("model."): v.float().to(device) for k, v in load_file(folder / "model.safetensors").items()}
        layers = self.c["num_hidden_layers"]
        of = lambda i, names: torch.cat([t[f"layers.{i}.{n}.weight"] for n in names])
        stack = lambda *names: torch.stack([of(i, names) for i in range(layers)])
        self.w = {
            "qkv": stack("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "o": stack("self_attn.o_proj"),
            "gate_up": stack("mlp.gate_proj", "mlp.up_proj"),
            "down": stack("mlp.down_proj"),
            "norm1": stack("input_layernorm"),
            "norm2": stack("post_attention_layernorm"),
            "norm": t["norm.weight"],
            "embed": t["embed_tokens.weight"],
        }
        heads = self.c["num_attention_heads"]
        self.heads, self.kv, self.width = heads, self.c["num_key_value_heads"], self.c["hidden_size"] // heads
        at = torch.arange(SEQ, device=device).float()
        rate = self.c["rope_theta"] ** (-torch.arange(0, self.width, 2, device=device).float() / self.width)
        angle = torch.outer(at, rate).repeat(1, 2)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.half = torch.bfloat16 if device.type == "cuda" else torch.float32

    def rotate(self, x):
        a, b = x.chunk(2, dim=-1)
        return x * self.cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * self.sin.to(x.dtype)

    def loss(self, w, tokens, labels):
        """Sum of losses and how many they are of."""
        rms = lambda x, g: F.rms_norm(x.float(), x.shape[-1:], g, self.c["rms_norm_eps"]).to(x.dtype)
        half = {k: w[k].to(self.half).unbind(0) for k in STACKS}
        embed = w["embed"].to(self.half)
        n1, n2 = w["norm1"].unbind(0), w["norm2"].unbind(0)
        x = F.embedding(tokens, embed)
        b, t, c = x.shape
        kv = self.kv * self.width
        for i in range(len(n1)):
            q, k, v = F.linear(rms(x, n1[i]), half["qkv"][i]).split([c, kv, kv], dim=-1)
            q, k, v = (y.view(b, t, -1, self.width).transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
            x = x + F.linear(y.transpose(1, 2).reshape(b, t, c), half["o"][i])
            gate, up = F.linear(rms(x, n2[i]), half["gate_up"][i]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, half["down"][i])
        logits = F.linear(rms(x, w["norm"]), embed).float()
        total = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-100, reduction="sum")
        return total, (labels >= 0).sum()


class Bench:
    """A model whose forward and backward are recorded once."""

    def __init__(self, folder, gsm8k, device, small):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tensor = lambda rows: tuple(torch.tensor(x, device=device) for x in zip(*rows))
        self.train = tensor(list(chats(gsm8k / "train.jsonl", tokenizer))[: 64 if small else None])
        self.test = tensor(list(chats(gsm8k / "test.jsonl", tokenizer))[: EVAL_BATCH if small else EVAL])
        self.model, self.device = Model(folder, device), device
        self.start = {k: v.clone() for k, v in self.model.w.items()}
        self.leaves = list(self.model.w.values())
        self.x, self.y = (torch.zeros(BATCH, SEQ, dtype=torch.long, device=device) for _ in range(2))
        self.ex, self.ey = (torch.zeros(EVAL_BATCH, SEQ, dtype=torch.long, device=device) for _ in range(2))
        self.graphs = None
        if device.type == "cuda":
            self.record()

    def forward_backward(self):
        for w in self.leaves:
            w.requires_grad_(True)
        total, n = self.model.loss(self.model.w, self.x, self.y)
        loss = total / n
        grads = torch.autograd.grad(loss, self.leaves)
        for w in self.leaves:
            w.requires_grad_(False)
        return loss.detach(), dict(zip(self.model.w, grads))

    @torch.no_grad()
    def forward(self):
        return self.model.loss(self.model.w, self.ex, self.ey)

    def record(self):
        self.y.fill_(1)
        self.ey.fill_(1)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.forward_backward()
                self.forward()
        torch.cuda.current_stream().wait_stream(side)
        train, test = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(train):
            self.trained = self.forward_backward()
        with torch.cuda.graph(test):
            self.tested = self.forward()
        self.graphs = train, test

    def evaluate(self):
        total, n = 0.0, 0
        for i in range(0, len(self.test[0]), EVAL_BATCH):
            self.ex.copy_(self.test[0][i : i + EVAL_BATCH])
            self.ey.copy_(self.test[1][i : i + EVAL_BATCH])
            if self.graphs:
                self.graphs[1].replay()
            loss, count = self.tested if self.graphs else self.forward()
            total, n = total + loss.item(), n + count.item()
        return total / n

    def run(self, arm, lr, seed, steps):
        name, settings = ARMS[arm]
        settings = dict(settings)
        ends = settings.pop("ends", True)
        begin = time.time()
        with torch.no_grad():
            for k, w in self.model.w.items():
                w.copy_(self.start[k])
        methods = {k: METHODS[name](self.model.w[k], seed=seed * 7919 + i, **settings) for i, k in enumerate(STACKS)}
        others = {k: Adam() for k in self.model.w if k not in STACKS} if ends else {}
        order = torch.randperm(len(self.train[0]), generator=torch.Generator().manual_seed(seed)).to(self.device)
        losses, train_losses = [], []
        for step in range(1, steps + 1):
            at = torch.arange((step - 1) * BATCH, step * BATCH, device=self.device) % len(order)
            self.x.copy_(self.train[0][order[at]])
            self.y.copy_(self.train[1][order[at]])
            if self.graphs:
                self.graphs[0].replay()
            loss, grads = self.trained if self.graphs else self.forward_backward()
            with torch.no_grad():
                square = sum(m.reduce(grads[k], step) for k, m in methods.items())
                square = square + sum(grads[k].square().sum() for k in others)
                scale = (1.0 / (square.sqrt() + 1e-6)).clamp(max=1.0)
                rate = lr * min(1.0, step / 10)
                for m in methods.values():
                    m.update(scale, rate)
                for k, adam in others.items():
                    self.model.w[k].add_(adam.step(grads[k] * scale), alpha=-rate)
            if step in AT or step == steps:
                losses.append((step, self.evaluate()))
                train_losses.append(loss.item())
                if not math.isfinite(losses[-1][1]) or losses[-1][1] > 20:
                    break
        return {
            "arm": arm,
            "lr": lr,
            "seed": seed,
            "steps": steps,
            "losses": losses,
            "train": train_losses,
            "bias": {k: [round(b, 4) for b in m.bias] for k, m in methods.items() if getattr(m, "bias", None)},
            "seconds": time.time() - begin,
        }


def work(rank, device, args, jobs, done, deadline):
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    bench = Bench(Path(args.model), Path(args.gsm8k), device, args.small)
    done.put({"ready": rank, "start": bench.evaluate()})
    while True:
        job = jobs.get()
        if job is None:
            return
        if time.time() > deadline - job.pop("takes", 0):
            done.put({"left": job})
            continue
        try:
            done.put(bench.run(**job))
        except Exception as e:  # one arm that fails does not end the others
            done.put({"failed": job, "error": repr(e)})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("gsm8k")
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs")
    parser.add_argument("--small", action="store_true", help="a few steps on whatever there is, to try the program")
    args = parser.parse_args()
    deadline = time.time() + args.seconds
    gpus = torch.cuda.device_count()
    devices = [f"cuda:{i}" for i in range(gpus)] * args.workers if gpus else ["cpu"]
    mp.set_start_method("spawn")
    jobs, done = mp.Queue(), mp.Queue()
    workers = [mp.Process(target=work, args=(i, d, args, jobs, done, deadline)) for i, d in enumerate(devices)]
    for w in workers:
        w.start()
    out = open(os.path.join(args.out, "results.jsonl"), "a")
    sweep, final = (2, 3) if args.small else (300, 1000)

    def rates(arm):
        high = ARMS[arm][0] not in ("exact", "block") or "random" in arm
        return RATES[1:2] if args.small else HIGHER if high else RATES

    seeds = [0] if args.small else [0, 1, 2]

    def collect(sent):
        found = []
        while len(found) < sent:
            try:
                r = done.get(timeout=5)
            except queue.Empty:
                if not any(w.is_alive() for w in workers):
                    break
                continue
            out.write(json.dumps(r) + "\n")
            out.flush()
            if "ready" in r:
                print(f"worker {r['ready']} ready after {time.time() - deadline + args.seconds:.0f} s, loss {r['start']:.4f}", flush=True)
                continue
            found.append(r)
            if "arm" in r:
                print(f"{r['arm']:32} {r['lr']:.1e} seed {r['seed']} {r['seconds']:5.1f} s {r['losses'][-1]}", flush=True)
            else:
                print(r, flush=True)
        return [r for r in found if "arm" in r]

    def end():
        for _ in workers:
            jobs.put(None)
        for w in workers:
            w.join(timeout=20)
            w.kill()

    if args.jobs:
        asked = [json.loads(line) for line in open(args.jobs)]
        for job in asked:
            jobs.put({"takes": 0.1 * job["steps"], **job})
        collect(len(asked))
        return end()

    # In the order of what matters most, so that what time cuts off is the least.
    tried = [a for a in ARMS if a not in SHORT]
    for arm in tried:
        for lr in rates(arm):
            jobs.put({"arm": arm, "lr": lr, "seed": 0, "steps": sweep})
    best = {}
    for r in collect(sum(len(rates(arm)) for arm in tried)):
        last = r["losses"][-1][1]
        if r["arm"] not in best or last < best[r["arm"]][1]:
            best[r["arm"]] = (r["lr"], last)
    for arm in SHORT:
        if "learned 1/16" in best:
            best[arm] = best["learned 1/16"]
    print(json.dumps(best), flush=True)
    arms = [a for a in ARMS if a in best]
    longest = 0 if args.small else 40
    for seed in seeds:
        for arm in arms:
            jobs.put({"arm": arm, "lr": best[arm][0], "seed": seed, "steps": final, "takes": longest})
    collect(len(arms) * len(seeds))
    end()


if __name__ == "__main__":
    main()
