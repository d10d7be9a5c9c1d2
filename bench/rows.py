"""Predicted rows of the activation planner (docs/journal.md, "A timetable"): one line of JSON a row.

    python3 bench/rows.py PROGRAM [ROW ...] > rows.jsonl
    python3 bench/rows.py --table BEFORE.jsonl AFTER.jsonl

Plans only; runs nothing. Rows are named as in ROWS.
"""

import json
import os
import subprocess
import sys
import time

SSD, H200 = "examples/machines/rtx4090-12ssd.json", "examples/machines/h200.json"
GIB = 2**30


def row(shape, micro, seq, accumulate, machine, host, disk="0", device="24GiB", sets=()):
    given = ["--micro-batch", micro, "--seq", seq, "--accumulate", accumulate, "--device-memory", device]
    given += ["--host-memory", host, "--machine", machine]
    given += ["--disk", disk] if disk != "0" else []
    for key in sets:
        given += ["--set", key]
    file = f"bench/shapes/{shape}.json"
    # A run file may be no more than overrides: the shape of a file is a key.
    named = ["bench/shapes/empty.yaml", "--set", f"model.config={file}"] if os.path.exists(file) else ["--shape", shape]
    return named + [str(g) for g in given]


A3 = dict(machine=SSD, host="48GiB", disk="4TB", device="120GiB")
D5 = dict(machine=H200, device="24GiB")

# Name: what is planned.
ROWS = {
    "S1 13B 16x1024": row("gpt3-13b", 16, 1024, 1, SSD, "220GiB", "1TB"),
    "S2 13B 64x1024": row("gpt3-13b", 64, 1024, 1, SSD, "220GiB", "1TB"),
    "S3 14B 32x1024": row("qwen2.5-14b", 32, 1024, 1, SSD, "220GiB", "1TB"),
    "S4 175B 16x1024x2, no clipping": row("gpt3-175b", 16, 1024, 2, SSD, "220GiB", "4TB", sets=["train.clip.mode=none"]),
    "S4 175B 16x1024x2, exact": row("gpt3-175b", 16, 1024, 2, SSD, "220GiB", "4TB"),
    "S13 14B 64x1024": row("qwen2.5-14b", 64, 1024, 1, SSD, "220GiB", "1TB"),
    "S13 13B 8x1024x8": row("gpt3-13b", 8, 1024, 8, SSD, "220GiB", "1TB"),
    "D5 3B 1x131072, host 110": row("qwen2.5-3b-128k", 1, 131072, 1, H200, "110GiB"),
    "D5 3B 1x131072, host 60": row("qwen2.5-3b-128k", 1, 131072, 1, H200, "60GiB"),
    "D5 3B 1x131072, host 60 and 40 of the drive": row("qwen2.5-3b-128k", 1, 131072, 1, H200, "60GiB", "40GiB"),
}


def plan(program, given):
    begun = time.time()
    done = subprocess.run([program, "plan", "--json", *given], capture_output=True, text=True)
    took = time.time() - begun
    answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    tiers = answer.get("tiers", {})
    each = lambda what: {t: round(tiers[t][what] / GIB, 2) for t in tiers}
    return {
        "args": " ".join(given),
        "code": done.returncode,
        "step_seconds": answer.get("step_seconds"),
        "ruling_lane": answer.get("ruling_lane"),
        "planned_gib": each("planned_bytes"),
        "activations_gib": each("activations"),
        "written_gib": round(answer.get("disk_bytes_written_per_step", 0) / GIB, 2),
        "hash": answer.get("hash"),
        "planning_seconds": round(took, 1),
        "text": done.stderr if done.returncode else None,
    }


def table(before, after):
    read = lambda path: {r["row"]: r for r in map(json.loads, open(path))}
    before, after = read(before), read(after)
    print("| row | before | now | GiB of device, host, disk now | written a step, GiB |\n|---|---|---|---|---|")
    second = lambda r: f"{r['step_seconds']:.4g}" if r and r["step_seconds"] else "refused"
    for name, r in after.items():
        g = r["planned_gib"]
        places = ", ".join(f"{g[t]:.0f}" for t in ("device", "host", "disk")) if g else "–"
        print(f"| {name} | {second(before.get(name))} | {second(r)} | {places} | {r['written_gib']:.0f} |")


def main():
    if sys.argv[1] == "--table":
        return table(*sys.argv[2:])
    program, wanted = sys.argv[1], sys.argv[2:]
    for name, given in ROWS.items():
        if not wanted or any(name.startswith(w) for w in wanted):
            print(json.dumps({"row": name, **plan(program, given)}), flush=True)


main()
