"""Writes golden.txt: the module's formula in exact rational arithmetic, rounded once a line.

Each row is one number in hexadecimal f32 bits: gradient, master weight, first and second moment
before the step, then master weight, first and second moment after it. The first row holds the
factors: grad_scale, one_minus_beta1, one_minus_beta2, root_correction2, eps, keep, minus_rate.
Needs nothing but Python: `python3 golden.py > golden.txt`.
"""

import random
import struct
from fractions import Fraction
from math import isqrt


def value(bits):
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def ulp_exponent(x):
    """e such that 2^e is the unit in the last place of the f32 numbers around x > 0."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    if x < Fraction(2) ** e:
        e -= 1
    return max(e, -126) - 23


def rn(x):
    """x rounded to f32, ties to even."""
    if x == 0:
        return Fraction(0)
    unit = Fraction(2) ** ulp_exponent(abs(x))
    y = round(x / unit) * unit  # Python rounds fractions half to even
    assert abs(y) < 2**128, "overflow is not in this table"
    return y


def root(x):
    """The square root of x rounded to f32; never a tie and never subnormal."""
    if x == 0:
        return Fraction(0)
    k = 400
    scaled = isqrt(x.numerator * 4**k // x.denominator)  # floor(sqrt(x) 2^k)
    exact = scaled * scaled * x.denominator == x.numerator * 4**k
    return rn(Fraction(2 * scaled + (0 if exact else 1), 2 ** (k + 1)))


def bits(x):
    return struct.unpack("<I", struct.pack("<f", float(x)))[0]


def step(c, grad, p, m, v):
    g = rn(grad * c["grad_scale"])
    m = rn(c["one_minus_beta1"] * rn(g - m) + m)
    v = rn(c["one_minus_beta2"] * rn(g * g - v) + v)
    d = rn(rn(root(v) / c["root_correction2"]) + c["eps"])
    p = rn(p * c["keep"])
    return rn(c["minus_rate"] * rn(m / d) + p), m, v


def main():
    rng = random.Random(20261121)
    f32 = lambda x: rn(Fraction(x))
    c = {
        "grad_scale": f32(0.73),
        "one_minus_beta1": f32(0.1),
        "one_minus_beta2": f32(0.001),
        "root_correction2": f32(0.0707),
        "eps": f32(1e-8),
        "keep": f32(0.99999),
        "minus_rate": f32(-3.1e-3),
    }
    print(*(f"{bits(x):08x}" for x in c.values()))

    def number(low, high):
        """A random f32 of binary exponent low to high, subnormal below -126."""
        x = Fraction(rng.getrandbits(24) | 1 << 23, 1 << 23) * Fraction(2) ** rng.randint(low, high)
        return rn(x * rng.choice((-1, 1)))

    # Usual sizes; wide; subnormal gradients and moments; large ones; a second moment of zero.
    kinds = [(-12, -2, -8, 1), (-60, 20, -60, 20), (-149, -120, -149, 0), (20, 60, 0, 120)]
    for row in range(96):
        low, high, p_low, p_high = kinds[row % 4]
        grad, p, m = number(low, high), number(p_low, p_high), number(low, high)
        v_low, v_high = max(2 * low, -149), min(max(2 * high, -100), 120)
        v = abs(number(v_low, v_high)) if row % 7 else Fraction(0)
        after = step(c, grad, p, m, v)
        if 0 in after:
            continue  # the sign of a zero is not modelled here
        print(*(f"{bits(x):08x}" for x in (grad, p, m, v, *after)))


if __name__ == "__main__":
    main()
