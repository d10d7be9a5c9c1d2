"""Reads the raw output of bench/record.sh and prints medians and shares.

Run: python3 bench/summary.py bench/runs/MACHINE-DATE
"""

import json
import pathlib
import re
import statistics
import sys


def main():
    out = pathlib.Path(sys.argv[1])
    last = (out / "host-adamw.txt").read_text().strip().splitlines()[-1]
    print("host AdamW, share of the best copy (median of five):", json.loads(last)["median_share_of_bound"])

    names = sorted({re.sub(r"-\d+$", "", p.stem) for p in out.glob("step-*.txt")})
    for name in names:
        runs = []
        for path in sorted(out.glob(f"{name}-*.txt")):
            line = path.read_text().strip().splitlines()[-1]
            runs.append(json.loads(line))
        measured = statistics.median(r["step_seconds"] for r in runs)
        ratios = [r["predicted_step_seconds"] / r["step_seconds"] for r in runs]
        print(
            f"{name[5:]}: step {measured * 1e3:.1f} ms measured (median of {len(runs)}), "
            f"predicted / measured {statistics.median(ratios):.3f} "
            f"(each: {', '.join(f'{r:.2f}' for r in ratios)})"
        )

    ours = {"read": [], "write": [], "rw": []}
    for path in sorted(out.glob("disk-lowtide-*.txt")):
        found = re.search(r"read ([\d.]+) GB/s, write ([\d.]+) GB/s, mixed 1:1 ([\d.]+) GB/s", path.read_text())
        for key, value in zip(ours, found.groups()):
            ours[key].append(float(value))
    for rw, mine in ours.items():
        theirs = []
        for path in sorted(out.glob(f"disk-fio-{rw}-*.txt")):
            fields = path.read_text().strip().splitlines()[-1].split(";")
            # terse version 3: read bandwidth in KiB/s is field 7, write bandwidth field 48 (from 1).
            theirs.append((int(fields[6]) + int(fields[47])) * 1024 / 1e9)
        a, b = statistics.median(mine), statistics.median(theirs)
        print(f"disk {rw}: {a:.2f} GB/s, fio {b:.2f} GB/s, share {a / b:.2f} (medians of {len(mine)})")


if __name__ == "__main__":
    main()
