"""Writes golden.txt: the module's formula in exact rational arithmetic, rounded once a line.

Each row is one number in hexadecimal f32 bits: gradient, master weight, moment before the step, then master
weight and moment after it. The first row holds the factors: grad_scale, one_minus_beta1, one_minus_beta2,
keep, minus_rate. Needs nothing but Python: `python3 golden.py > golden.txt`.
"""

import random
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "adamw"))
from golden import bits, rn  # the rounding to f32


def step(c, grad, p, m):
    g = rn(grad * c["grad_scale"])
    a = rn(g - m)
    mixture = rn(c["one_minus_beta1"] * a + m)
    u = (mixture > 0) - (mixture < 0)
    m = rn(c["one_minus_beta2"] * a + m)
    p = rn(p * c["keep"])
    return rn(c["minus_rate"] * u + p), m


def main():
    rng = random.Random(20261126)
    f32 = lambda x: rn(Fraction(x))
    c = {
        "grad_scale": f32(0.73),
        "one_minus_beta1": f32(0.1),
        "one_minus_beta2": f32(0.01),
        "keep": f32(0.99999),
        "minus_rate": f32(-3.1e-4),
    }
    print(*(f"{bits(x):08x}" for x in c.values()))

    def number(low, high):
        """A random f32 of binary exponent low to high, subnormal below -126."""
        x = Fraction(rng.getrandbits(24) | 1 << 23, 1 << 23) * Fraction(2) ** rng.randint(low, high)
        return rn(x * rng.choice((-1, 1)))

    # Usual sizes; wide; subnormal gradients and moments; large ones; a moment that the gradient all but cancels.
    kinds = [(-12, -2, -8, 1), (-60, 20, -60, 20), (-149, -120, -149, 0), (20, 60, 0, 120)]
    for row in range(96):
        low, high, p_low, p_high = kinds[row % 4]
        grad, p, m = number(low, high), number(p_low, p_high), number(low, high)
        if row % 5 == 0 and row % 4 != 2:
            m = rn(-grad * c["grad_scale"] * c["one_minus_beta1"] / (1 - c["one_minus_beta1"]))
        after = step(c, grad, p, m)
        if 0 in after:
            continue  # the sign of a zero is not modelled here
        print(*(f"{bits(x):08x}" for x in (grad, p, m, *after)))


if __name__ == "__main__":
    main()
