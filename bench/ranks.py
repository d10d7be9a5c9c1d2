"""What several GPUs give over one: a table, and a plot as SVG.

    python3 bench/ranks.py bench/runs/MACHINE-DATE/ranks/*.txt --plot ranks.svg

Reads what `bench/record-ranks.sh` wrote: files named MODEL-BUDGET-GPUS.txt, the last JSON line of each. Of a run that was
stopped before its report, the steps' own lines, from the third on.
"""

import json
import os
import re
import statistics
import sys

COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"]
STEP = re.compile(r"step (\d+): ([0-9.]+) s, loss")


def read(path):
    """(case, gpus, seconds, predicted, tokens, whether it has a report); None without a timed step."""
    name = re.fullmatch(r"(.+)-(\d+)\.txt", os.path.basename(path))
    if not name:
        return None
    case, gpus = name[1], int(name[2])
    with open(path) as file:
        lines = file.readlines()
    reports = [json.loads(line) for line in lines if line.startswith('{"model"')]
    if reports:
        run = reports[-1]
        return case, gpus, run["step_seconds"], run["predicted_step_seconds"], run["tokens_per_step"], True
    steps = [float(m[2]) for m in map(STEP.match, lines) if m and int(m[1]) > 2]
    predicted = [m for m in (re.match(r"predicted step ([0-9.]+) s,", line) for line in lines) if m]
    if not steps or not predicted:
        return None
    return case, gpus, statistics.median(steps), float(predicted[-1][1]), 8 * 2048 * gpus, False


def table(runs):
    rows = [
        "| run | GPUs | step, s | predicted / measured | tokens/s | times one |",
        "|---|---|---|---|---|---|",
    ]
    one = {case: tokens / seconds for case, gpus, seconds, _, tokens, _ in runs if gpus == 1}
    for case, gpus, seconds, predicted, tokens, whole in runs:
        rate = tokens / seconds
        times = f"{rate / one[case]:.2f}" if case in one else "-"
        mark = "" if whole else " (stopped before its report)"
        rows.append(f"| {case}{mark} | {gpus} | {seconds:.3f} | {predicted / seconds:.2f} | {rate:.0f} | {times} |")
    return "\n".join(rows)


def plot(runs, path):
    """Tokens a second over those of one GPU, by GPUs, with the line of as many times as GPUs."""
    left, top, width, height = 60, 20, 420, 300
    one = {case: tokens / seconds for case, gpus, seconds, _, tokens, _ in runs if gpus == 1}
    most = max(gpus for _, gpus, *_ in runs)
    tall = max(most, max(r[4] / r[2] / one[r[0]] for r in runs if r[0] in one)) * 1.05

    def place(gpus, times):
        return f"{left + width * gpus / most:.1f},{top + height * (1 - times / tall):.1f}"

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 150}" height="{top + height + 50}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<polyline points="{place(0, 0)} {place(most, most)}" stroke="#999" stroke-dasharray="4 4" fill="none"/>',
        f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">GPUs</text>',
        f'<text x="15" y="{top + height / 2}" transform="rotate(-90 15 {top + height / 2})" text-anchor="middle">tokens/s, times one GPU</text>',
    ]
    for n in range(0, int(tall) + 1):
        y = top + height * (1 - n / tall)
        svg.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{n}</text>')
        svg.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
    for gpus in sorted({r[1] for r in runs}):
        svg.append(f'<text x="{left + width * gpus / most:.1f}" y="{top + height + 18}" text-anchor="middle">{gpus}</text>')
    for i, case in enumerate(sorted(one)):
        colour = COLOURS[i % len(COLOURS)]
        points = [place(g, tokens / s / one[case]) for c, g, s, _, tokens, _ in runs if c == case]
        svg.append(f'<polyline points="{" ".join(points)}" stroke="{colour}" stroke-width="2" fill="none"/>')
        svg += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{colour}"/>' for p in points]
        svg.append(f'<text x="{left + width + 10}" y="{top + 20 + 18 * i}" fill="{colour}">{case}</text>')
    svg.append("</svg>")
    with open(path, "w") as file:
        file.write("\n".join(svg) + "\n")


def main():
    paths = sys.argv[1:]
    target = None
    if "--plot" in paths:
        at = paths.index("--plot")
        target = paths[at + 1]
        paths = paths[:at] + paths[at + 2 :]
    runs = sorted(filter(None, map(read, paths)))
    print(table(runs))
    if target:
        plot(runs, target)


main()
