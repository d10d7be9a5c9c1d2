"""Share of the all-resident speed that offloading keeps, by tokens a step: a table, and a plot as SVG.

    python3 bench/share.py bench/runs/MACHINE-DATE/step-*k.txt --plot share.svg

Reads files named step-SHAPE-resident-TOKENS.txt and step-SHAPE-BUDGET-TOKENS.txt, the last JSON line of each. Where a
shape has no resident run, its share is that of 76 GiB, which is about what a card of 80 GB has.
"""

import json
import math
import os
import re
import sys

COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"]


def whole(budgets):
    """(name, {tokens: run}) of what the others are compared with."""
    name = "resident" if "resident" in budgets else "76GiB"
    return name, budgets.get(name, {})


def read(paths):
    """{shape: {budget: {tokens: run}}}"""
    found = {}
    for path in paths:
        name = re.fullmatch(r"step-(.+)-([^-]+)-(\d+)k\.txt", os.path.basename(path))
        if not name:
            continue
        with open(path) as file:
            lines = [line for line in file if line.startswith("{")]
        if not lines:
            print(f"{path}: no result", file=sys.stderr)
            continue
        run = json.loads(lines[-1])
        if "tokens_per_second" in run:
            found.setdefault(name[1], {}).setdefault(name[2], {})[run["tokens_per_step"]] = run
    return found


def curves(found):
    """(label, [(tokens, share)]) by shape and budget."""
    out = []
    for shape, budgets in sorted(found.items()):
        name, resident = whole(budgets)
        for budget, runs in sorted(budgets.items()):
            if budget == name:
                continue
            points = [
                (tokens, run["tokens_per_second"] / resident[tokens]["tokens_per_second"])
                for tokens, run in sorted(runs.items())
                if tokens in resident
            ]
            out.append((f"{shape} in {budget}, of {name}", points))
    return out


def table(found):
    rows = [
        "| model | tokens a step | compared with | offloaded | share | device GiB | predicted / measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape, budgets in sorted(found.items()):
        name, most = whole(budgets)
        for budget, runs in sorted(budgets.items()):
            if budget == name:
                continue
            for tokens, run in sorted(runs.items()):
                full = most.get(tokens)
                all_resident, share = "-", "-"
                if full:
                    all_resident = f"{full['tokens_per_second']:.0f} ({name})"
                    share = f"{run['tokens_per_second'] / full['tokens_per_second']:.0%}"
                rows.append(
                    f"| {shape} in {budget} | {tokens} | {all_resident} | {run['tokens_per_second']:.0f} | {share} "
                    f"| {run['device_bytes'] / 2**30:.1f} | {run['predicted_step_seconds'] / run['step_seconds']:.2f} |"
                )
    return "\n".join(rows)


def plot(lines, path):
    """Share over tokens a step, logarithmic in tokens."""
    left, top, width, height = 60, 20, 520, 300
    all_tokens = sorted({t for _, points in lines for t, _ in points})
    low, high = math.log2(all_tokens[0]), math.log2(all_tokens[-1])

    def x(tokens):
        return left + width * (math.log2(tokens) - low) / max(high - low, 1e-9)

    def y(share):
        return top + height * (1 - min(share, 1.1) / 1.1)

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 30}" height="{top + height + 60}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for tick in range(0, 11, 2):
        at = y(tick / 10)
        svg.append(f'<line x1="{left}" y1="{at:.1f}" x2="{left + width}" y2="{at:.1f}" stroke="#ddd"/>')
        svg.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{tick * 10}%</text>')
    for tokens in all_tokens:
        svg.append(f'<text x="{x(tokens):.1f}" y="{top + height + 18}" text-anchor="middle">{tokens // 1024}k</text>')
    svg.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">tokens a step</text>')
    for i, (label, points) in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        path_points = " ".join(f"{x(t):.1f},{y(s):.1f}" for t, s in points)
        svg.append(f'<polyline points="{path_points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        svg += [f'<circle cx="{x(t):.1f}" cy="{y(s):.1f}" r="3" fill="{colour}"/>' for t, s in points]
        at = top + height - 20 - 18 * i
        svg.append(f'<text x="{left + width - 10}" y="{at}" text-anchor="end" fill="{colour}">{label}</text>')
    svg.append("</svg>")
    with open(path, "w") as file:
        file.write("\n".join(svg) + "\n")


def main():
    paths = sys.argv[1:]
    to = None
    if "--plot" in paths:
        at = paths.index("--plot")
        to = paths[at + 1]
        del paths[at : at + 2]
    found = read(paths)
    print(table(found))
    lines = [line for line in curves(found) if line[1]]
    if to and lines:
        plot(lines, to)


if __name__ == "__main__":
    main()
