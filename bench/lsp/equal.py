"""Time to equal loss, exact training beside `strategy.name: lsp`, on a real model of 135M parameters and GSM8K.

    python3 bench/lsp/equal.py LOWTIDE FOLDER OUT [--seconds 560] [--small]
    python3 bench/lsp/equal.py --table OUT [--plot FILE.svg]

FOLDER has `model` and `data` (bench/smollm2/record.sh makes them), LOWTIDE is a built program. Three parts, each into OUT:

- sweep.jsonl: each arm at its learning rates, seed 0, several runs at once. Which rate is best is decided by the loss at the last evaluation.
- seeds.jsonl: each arm at its best rates, three seeds.
- times.jsonl: seconds a step and of learning projectors, one run at a time, links slowed down by LOWTIDE_PACE, for each budget. Where a tensor lives
  changes no number, so losses over steps of the first two parts hold for each of these, and time to a loss is steps to it times seconds a step, with what
  learning took before the first; whole.jsonl has two whole runs under one of these budgets, their losses and their times, to show just that.

An evaluation's own time is left out, of all arms. Losses: of the first 64 rows of GSM8K's test part, every 25 steps.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

TOKENS = ["train.micro_batch=2", "train.seq=1024", "train.schedule=constant", "train.warmup_steps=20"]
ARMS = {
    "exact": (["strategy.name=exact"], [2.5e-5, 5e-5, 1e-4]),
    "lsp 4": (["strategy.name=lsp", "strategy.lsp.compression=4"], [5e-5, 1e-4, 2e-4]),
    "lsp 8": (["strategy.name=lsp", "strategy.lsp.compression=8"], [1e-4]),
    "lsp 16": (["strategy.name=lsp", "strategy.lsp.compression=16"], [1e-4, 2e-4]),
}
# How many steps an arm gets: as many as it may need for the loss of exact's step 1000.
STEPS = {"exact": 1000, "lsp 4": 1500, "lsp 8": 1500, "lsp 16": 1800}
TARGETS = [300, 1000]
PACES = [24, 12]
BUDGETS = ["1200MiB", "1500MiB"]
WHOLE = (24, "1500MiB")


class Runs:
    def __init__(self, lowtide, folder, out, seconds):
        self.lowtide, self.folder, self.out = lowtide, folder, out
        self.until = time.monotonic() + seconds
        self.lock = threading.Lock()

    def run(self, part, arm, rate, seed, steps, budget="20GiB", pace=None, machine=None, every=25):
        name = f"{part}-{arm}-{rate}-{seed}-{pace}-{budget}".replace(" ", "")
        output = self.folder / "runs" / name
        sets = [f"output={output}", f"train.learning_rate={rate}", f"seed={seed}", f"train.steps={steps}", f"budget.device={budget}"]
        sets += ["threads=4", f"eval.every_steps={every}", "eval.batches=32", "log.trace=false", "log.tensorboard=false", *TOKENS, *ARMS[arm][0]]
        if machine:
            sets.append(f"plan.machine={machine}")
        environment = dict(os.environ)
        environment.pop("LOWTIDE_PACE", None)
        if pace:
            environment["LOWTIDE_PACE"] = f"h2d:{pace}GB/s,d2h:{pace}GB/s"
        line = [str(self.lowtide), "train", str(self.folder / "run.yaml"), "--json"]
        for s in sets:
            line += ["--set", s]
        left = self.until - time.monotonic()
        result = dict(arm=arm, rate=rate, seed=seed, steps=steps, budget=budget, pace=pace, command=" ".join(line))
        if left < 5:
            return self.keep(part, dict(result, error="no time was left"))
        begun = time.monotonic()
        try:
            done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            return self.keep(part, dict(result, error="stopped: no time was left"))
        if done.returncode != 0:
            return self.keep(part, dict(result, error=done.stderr[-2000:]))
        learning = re.findall(r"learning projectors from the first batch: ([0-9.]+) (ms|s)", done.stderr)
        # Less than 2 s is not told: those are counted whole.
        least = 2.0 if arm != "exact" and not learning else 0.0
        result["learning_seconds"] = least or sum(float(n) / (1000 if unit == "ms" else 1) for n, unit in learning)
        result["wall_seconds"] = round(time.monotonic() - begun, 1)
        report = json.loads(done.stdout.strip().splitlines()[-1])
        for key in ("step_seconds", "predicted_step_seconds"):
            result[key] = report.get(key)
        lines = [json.loads(x) for x in (output / "metrics.jsonl").read_text().splitlines()]
        result["losses"] = [[x["step"], x["eval_loss"]] for x in lines if "eval_loss" in x]
        result["seconds"] = round(sum(x.get("seconds", 0.0) for x in lines if "loss" in x), 3)
        shutil.rmtree(output)
        self.keep(part, result)
        return result

    def keep(self, part, result):
        with self.lock, open(self.out / f"{part}.jsonl", "a") as file:
            file.write(json.dumps(result) + "\n")
        shown = {k: v for k, v in result.items() if k not in ("losses", "command")}
        last = result.get("losses", [[0, None]])[-1]
        print(part, json.dumps(shown), last, flush=True)

    def together(self, jobs, workers):
        jobs = list(jobs)
        lock = threading.Lock()
        results = []

        def work():
            while True:
                with lock:
                    if not jobs:
                        return
                    job = jobs.pop(0)
                result = self.run(**job)
                if result:
                    results.append(result)

        threads = [threading.Thread(target=work) for _ in range(workers)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return results


def reached(losses, target):
    """The step, between evaluations by a line, at which a loss is first not above the target."""
    before = None
    for step, loss in losses:
        if loss <= target:
            if before is None:
                return step
            s, l = before
            return s + (step - s) * (l - target) / max(l - loss, 1e-12)
        before = (step, loss)
    return None


def at(losses, step):
    return dict((s, l) for s, l in losses)[step]


def lines_of(path):
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def table(out, targets=TARGETS):
    """Markdown: steps and time to exact's losses."""
    runs = [r for r in lines_of(out / "seeds.jsonl") if "losses" in r]
    times = [r for r in lines_of(out / "times.jsonl") if "step_seconds" in r]
    rows = ["| exact's loss at step | pace | device budget | arm | rate | steps, each seed | ms a step | learning | seconds | exact's over these |", "|---|---|---|---|---|---|---|---|---|---|"]
    for target in targets:
        # Exact at the rate that is best at this step, by the mean of its seeds.
        rates: dict = {}
        for r in runs:
            if r["arm"] == "exact":
                rates.setdefault(r["rate"], []).append(at(r["losses"], target))
        if not rates:
            return "no run of exact training has come to its end"
        best = min(rates, key=lambda x: sum(rates[x]) / len(rates[x]))
        goal = {r["seed"]: at(r["losses"], target) for r in runs if r["arm"] == "exact" and r["rate"] == best}
        needed = {("exact", best): [target] * len(goal)}
        for r in runs:
            if r["arm"] != "exact" and r["seed"] in goal:
                needed.setdefault((r["arm"], r["rate"]), []).append(reached(r["losses"], goal[r["seed"]]))
        rows += rows_of(target, needed, times, best)
    return "\n".join(rows)


def rows_of(target, needed, times, best):
    rows = []
    for pace in sorted({t["pace"] for t in times}, reverse=True):
        for budget in sorted({t["budget"] for t in times}):
            base = None
            for (arm, rate), steps in needed.items():
                time_of = next((t for t in times if (t["arm"], t["pace"], t["budget"]) == (arm, pace, budget)), None)
                if time_of is None:
                    continue
                told = ", ".join("never" if s is None else f"{s:.0f}" for s in steps)
                seconds = [s * time_of["step_seconds"] + time_of["learning_seconds"] for s in steps if s is not None]
                if len(seconds) < len(steps):
                    rows.append(f"| {target} | {pace} | {budget} | {arm} | {rate:g} | {told} | {time_of['step_seconds'] * 1e3:.1f} | {time_of['learning_seconds']:.1f} s | - | - |")
                    continue
                mean = sum(seconds) / len(seconds)
                base = base or mean
                rows.append(
                    f"| {target} | {pace} | {budget} | {arm} | {rate:g} | {told} | {time_of['step_seconds'] * 1e3:.1f} | {time_of['learning_seconds']:.1f} s | {mean:.1f} | {base / mean:.2f} |"
                )
    return rows


COLOURS = {"exact": "#1b6ca8", "lsp 4": "#c2452d", "lsp 8": "#8a5aa8", "lsp 16": "#7a8b2f"}
# What is drawn: a loss above is that of the first steps.
TOP = 0.76


def plot(out, path):
    """Loss, mean of the seeds, over seconds: a panel for each pace and budget."""
    runs = [r for r in lines_of(out / "seeds.jsonl") if "losses" in r]
    times = [r for r in lines_of(out / "times.jsonl") if "step_seconds" in r]
    curves = {}
    for r in runs:
        curves.setdefault((r["arm"], r["rate"]), []).append(dict((s, l) for s, l in r["losses"]))
    means = {}
    for (arm, rate), seeds in curves.items():
        steps = sorted(set.intersection(*(set(s) for s in seeds)))
        mean = [(s, sum(x[s] for x in seeds) / len(seeds)) for s in steps]
        if arm not in means or mean[-1][1] < means[arm][-1][1]:
            means[arm] = mean
    panels = sorted({(t["pace"], t["budget"]) for t in times}, reverse=True)
    low = min(l for m in means.values() for _, l in m)
    width, height, gap = 330, 220, 60
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * (width + gap) + 20}" height="{((len(panels) + 1) // 2) * (height + gap) + 20}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, (pace, budget) in enumerate(panels):
        left, top = gap + (i % 2) * (width + gap), 30 + (i // 2) * (height + gap)
        of = {t["arm"]: t for t in times if (t["pace"], t["budget"]) == (pace, budget)}
        lines = {
            arm: [(s * of[arm]["step_seconds"] + of[arm]["learning_seconds"], l) for s, l in mean] for arm, mean in means.items() if arm in of
        }
        most = max(x for line in lines.values() for x, _ in line)
        at_x = lambda x: left + width * x / most  # noqa: E731
        at_y = lambda y: top + height * (TOP - y) / (TOP - low + 0.005)  # noqa: E731
        svg.append(f'<text x="{left}" y="{top - 8}">links at {pace} GB/s, device {budget}: evaluation loss over seconds</text>')
        svg.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>')
        for tick in range(int(low * 50) + 1, int(TOP * 50) + 1):
            y = at_y(tick / 50)
            svg.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#eee"/>')
            svg.append(f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{tick / 50:.2f}</text>')
        for tick in range(0, 5):
            svg.append(f'<text x="{left + width * tick / 4:.1f}" y="{top + height + 14}" text-anchor="middle">{most * tick / 4:.0f}</text>')
        for n, (arm, line) in enumerate(lines.items()):
            shown = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line if y <= TOP)
            svg.append(f'<polyline points="{shown}" fill="none" stroke="{COLOURS[arm]}" stroke-width="1.5"/>')
            svg.append(f'<text x="{left + width - 6}" y="{top + 16 + 14 * n}" text-anchor="end" fill="{COLOURS[arm]}">{arm}</text>')
    svg.append("</svg>")
    path.write_text("\n".join(svg) + "\n")


def main():
    if "--table" in sys.argv:
        out = Path(sys.argv[sys.argv.index("--table") + 1])
        print(table(out))
        if "--plot" in sys.argv:
            plot(out, Path(sys.argv[sys.argv.index("--plot") + 1]))
        return
    a = argparse.ArgumentParser()
    a.add_argument("lowtide", type=Path)
    a.add_argument("folder", type=Path)
    a.add_argument("out", type=Path)
    a.add_argument("--seconds", type=float, default=560)
    a.add_argument("--small", action="store_true", help="a few steps of each, to try the script")
    a.add_argument("--parts", default="times,sweep,seeds,whole")
    args = a.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    head = 'source bench/head.sh && record_head "$1" "time to equal loss"'
    root = Path(__file__).resolve().parents[2]
    subprocess.run(["bash", "-c", head, "head", args.out.resolve()], cwd=root, check=True)
    runs = Runs(args.lowtide.resolve(), args.folder.resolve(), args.out, args.seconds)
    steps = {k: 40 for k in STEPS} if args.small else STEPS
    arms = {k: (v[0], v[1][:1]) for k, v in ARMS.items()} if args.small else ARMS
    every = 20 if args.small else 25
    parts = args.parts.split(",")
    if "times" in parts:
        for pace in PACES:
            for budget in BUDGETS:
                for arm, (_, rates) in arms.items():
                    runs.run("times", arm, rates[0], 0, min(60, steps[arm]), budget, pace, every=0)
    if "sweep" in parts:
        jobs = [
            dict(part="sweep", arm=arm, rate=rate, seed=0, steps=steps[arm], every=every) for arm, (_, rates) in arms.items() for rate in rates
        ]
        jobs.sort(key=lambda j: -steps[j["arm"]])
        runs.together(jobs, 1 if args.small else 4)
    best = {}
    for r in lines_of(args.out / "sweep.jsonl"):
        if "losses" not in r:
            continue
        # The best rate at the last step, and the best of a quarter of them, which is where the first target lies.
        for where in (-1, max(len(r["losses"]) // 4 - 1, 0)):
            loss = r["losses"][where][1]
            known = best.get((r["arm"], where))
            if known is None or loss < known[0]:
                best[(r["arm"], where)] = (loss, r["rate"])
    if "seeds" in parts:
        chosen = sorted({(arm, rate) for (arm, _), (_, rate) in best.items()})
        for r in lines_of(args.out / "sweep.jsonl"):
            if (r["arm"], r["rate"]) in chosen and "losses" in r:
                with open(args.out / "seeds.jsonl", "a") as file:
                    file.write(json.dumps(r) + "\n")
        jobs = [dict(part="seeds", arm=arm, rate=rate, seed=seed, steps=steps[arm], every=every) for seed in (1, 2) for arm, rate in chosen]
        runs.together(jobs, 1 if args.small else 4)
    if "whole" in parts:
        for arm in ("exact", "lsp 4"):
            rate = best.get((arm, -1), (0, arms[arm][1][0]))[1]
            runs.run("whole", arm, rate, 0, steps[arm], WHOLE[1], WHOLE[0], every=every)
    print(table(args.out, [20, 40] if args.small else TARGETS))


if __name__ == "__main__":
    main()
