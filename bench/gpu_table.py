"""Rates of a GPU's operations from a machine file that `lowtide probe` wrote for a run.

    python bench/gpu_table.py machine.json

Products and attention in TFLOP/s and as a share of the large product's rate; the others in TB/s of
the bytes they must move, and as a share of the device's copy bandwidth. Causal attention counts the
half that is computed: 4 D operations a pair forward, 10 D backward.
"""

import json
import re
import sys

m = json.load(open(sys.argv[1]))
peak, copy = m["matmul_bf16"], m["device_memory"]
print(f"{m['name']}, {m['date']}: product {peak / 1e12:.0f} TFLOP/s, copy {copy / 1e12:.2f} TB/s")
for key, seconds in sorted(m["ops"].items()):
    n = {k: int(v) for k, v in re.findall(r"\b(rows|chunk|kv|[bcdfhkmntv])(\d+)", key)}
    flops = moved = None
    if key.startswith("matmul"):
        flops = 2 * n["m"] * n["n"] * n["k"]
    elif key.startswith("attention"):
        each = 4 if "forward" in key else 10
        flops = each * n["b"] * n["h"] * n["t"] ** 2 / 2 * n["d"]
    elif key.startswith("head.train"):
        flops = 6 * n["rows"] * n["c"] * n["v"]
    elif key.startswith("head.loss"):
        flops = 2 * n["rows"] * n["c"] * n["v"]
    elif key.startswith(("rmsnorm", "layernorm")):
        passes = 2 if "forward" in key else 4 if "residual" in key else 3
        moved = passes * 2 * n["rows"] * n["c"]
    elif key.startswith("rope"):
        moved = 4 * n["rows"] * (n["h"] + 2 * n["kv"]) * n["d"]
    elif key.startswith(("swiglu", "gelu")):
        wide = {"swiglu": (3, 5), "gelu": (2, 3)}[key.split(".")[0]]
        moved = wide["backward" in key] * 2 * n["rows"] * n["f"]
    line = f"{seconds * 1e6:10.1f} us  {key:<62}"
    if flops:
        line += f"{flops / seconds / 1e12:8.0f} TFLOP/s {100 * flops / seconds / peak:5.0f}%"
    if moved:
        line += f"{moved / seconds / 1e12:8.2f} TB/s    {100 * moved / seconds / copy:5.0f}%"
    print(line)
print(f"AdamW on the device {26 * m['device_adamw'] / copy * 100:.0f}% of the copy bandwidth")
