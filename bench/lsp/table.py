"""A table of what bench/lsp/m0.py found: mean held-out loss over seeds, and growth of steps.

    python3 bench/lsp/table.py RESULTS.jsonl [...]

Growth at s steps: s over the steps in which exact training, at its best rate, reaches the same loss (straight lines between
evaluations).
"""

import collections
import json
import sys

runs = [json.loads(line) for name in sys.argv[1:] for line in open(name)]
start = next(r["start"] for r in runs if "start" in r)
by = collections.defaultdict(list)
for r in runs:
    if "arm" in r and r["steps"] == 1000:
        by[r["arm"], r["lr"]].append(dict(r["losses"]))


def mean(losses, step):
    return sum(x[step] for x in losses) / len(losses)


best = min((k for k in by if k[0] == "exact"), key=lambda k: mean(by[k], 1000))
exact = [(0, start)] + [(s, mean(by[best], s)) for s in sorted(by[best][0])]


def growth(losses, step):
    loss = mean(losses, step)
    for (a, high), (b, low) in zip(exact, exact[1:]):
        if low <= loss:
            return f"{step / (a + (b - a) * (high - loss) / (high - low)):.2f}"
    return "< 1"


print("| method | rate | seeds | loss at 100 | 300 | 1000 (range) | growth at 300 | at 1000 |")
print("|---|---|---|---|---|---|---|---|")
for (arm, lr), losses in sorted(by.items(), key=lambda x: mean(x[1], 1000)):
    last = [x[1000] for x in losses]
    spread = f" ({max(last) - min(last):.4f})" if len(last) > 1 else ""
    print(
        f"| {arm} | {lr:.0e} | {len(losses)} | {mean(losses, 100):.4f} | {mean(losses, 300):.4f} "
        f"| {mean(losses, 1000):.4f}{spread} | {growth(losses, 300)} | {growth(losses, 1000)} |"
    )
