"""Writes what transformers' hook for NEFTune makes of an embedding's output: golden/neftune.txt.

A line for each alpha: alpha, T, C, seed, step and first row, then the output (T, C) of inputs i/8 - 2, in f64. The hook
draws by `uniform_(-m, m)`; here that gives the numbers of crates/kernels/src/embedding, written once more, times m.

Run: python reference/neftune.py     (torch 2.15, transformers 5.17)
"""

import pathlib
import types

import torch
from transformers.integrations.neftune import neftune_post_forward_hook

torch.set_default_dtype(torch.float64)
MASK = (1 << 64) - 1
HALF = (1 << 32) - 1


def mix(x):
    """A step of SplitMix64."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def drawn(seed, step, row, column):
    """From -1 to 1."""
    z = mix((mix((mix(seed) + step) & MASK) + row) & MASK)
    a, b = z & HALF, z >> 32
    x = (column + a) & HALF
    x = (x ^ x >> 16) * 0x21F0AAAD & HALF
    x = (x ^ x >> 15 ^ b) * 0xD35A2D97 & HALF
    x ^= x >> 15
    return (x >> 8) / 2**23 - 1


lines = []
for alpha, seq, width, seed, step, first in [(5.0, 3, 4, 1, 1, 0), (15.0, 2, 6, 42, 1000, 7), (0.5, 4, 3, 1 << 40, 3, 1 << 33)]:
    own = [[drawn(seed, step, first + t, c) for c in range(width)] for t in range(seq)]
    own = torch.tensor(own, dtype=torch.float64)[None]

    def uniform(self, low, high):
        assert low == -high
        return self + own * high

    y = torch.arange(seq * width, dtype=torch.float64).view(1, seq, width) / 8 - 2
    module = types.SimpleNamespace(training=True, neftune_noise_alpha=alpha)
    before = torch.Tensor.uniform_
    torch.Tensor.uniform_ = uniform
    try:
        out = neftune_post_forward_hook(module, None, y)
    finally:
        torch.Tensor.uniform_ = before
    values = [alpha, seq, width, seed, step, first, *out.flatten().tolist()]
    lines.append(" ".join(repr(float(x)) for x in values))
path = pathlib.Path(__file__).resolve().parent / "golden" / "neftune.txt"
path.write_text("\n".join(lines) + "\n")
