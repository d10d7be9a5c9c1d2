"""Writes what PyTorch's cross_entropy(label_smoothing=e) says: golden/label_smoothing.txt.

A line for each e: e, the sum of the losses, then its gradients by h (5, 4) and by w (7, 4), in f64. Logits are h wᵀ; the
label of row 1 is ignored. Numbers of h and w are four times a hash of their place, the same in Rust
(crates/kernels/src/head/tests.rs). transformers' LabelSmoother is held against it.

Run: python reference/label_smoothing.py     (torch 2.15, transformers 5.17)
"""

import pathlib

import torch
import torch.nn.functional as F
from transformers.trainer_pt_utils import LabelSmoother

MASK = (1 << 64) - 1


def signed(i):
    """In -1..1, from the hash of i."""
    z = ((i + 0x9E3779B97F4A7C15) & MASK) * 0xBF58476D1CE4E5B9 & MASK
    word = z >> 31 & 0xFFFFFFFF
    word -= (word & 0x80000000) << 1
    return torch.tensor(word, dtype=torch.int64).float().item() / 2.0**31


def numbers(first, rows, cols):
    all = [4.0 * signed(first + i) for i in range(rows * cols)]
    return torch.tensor(all, dtype=torch.float64).view(rows, cols).requires_grad_()


lines = []
labels = torch.tensor([3, -100, 6, 0, 3])
for e in [0.0, 0.1, 0.5, 1.0]:
    h, w = numbers(0, 5, 4), numbers(1000, 7, 4)
    logits = h @ w.T
    loss = F.cross_entropy(logits, labels, ignore_index=-100, label_smoothing=e, reduction="sum")
    loss.backward()
    if e > 0:
        mean = LabelSmoother(e)({"logits": logits.detach()[None]}, labels[None])
        # It adds up in f32.
        assert abs(mean * 4 - loss) < 1e-5 * loss, (mean * 4, loss)
    values = [loss.detach(), *h.grad.flatten(), *w.grad.flatten()]
    lines.append(" ".join(repr(float(x)) for x in [e, *values]))
path = pathlib.Path(__file__).resolve().parent / "golden" / "label_smoothing.txt"
path.write_text("\n".join(lines) + "\n")
