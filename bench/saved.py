"""The table of bench/record-activations.sh, from its raw output: python3 bench/saved.py FOLDER"""

import json
import os
import re
import sys

ARMS = {
    "kept": "all kept, in 72 GiB",
    "recomputed": "kept or computed again",
    "host": "kept or moved to host memory",
    "drive": "kept or moved, host 8 GiB and the drive",
    "host-and-drive": "kept or moved, host 12 GiB and the drive",
    "chosen": "chosen, host 60 GiB",
    "chosen-drive": "chosen, host 8 GiB and the drive",
}


def row(text):
    """Activations' bytes of each tier as planned, the report, and whether the run got so far."""
    planned = re.search(r"^  activations +(\S+(?: \S+B)?|-) +(\S+(?: \S+B)?|-) +(\S+(?: \S+B)?|-)$", text, re.M)
    last = [line for line in text.splitlines() if line.startswith("{")]
    steps = [float(s) for s in re.findall(r"^step \d+: ([0-9.]+) s", text, re.M)][2:]
    return planned, json.loads(last[-1]) if last else None, steps


def main(folder):
    print("| saved tensors | step, predicted | moved a step, each way | device, host, drive of activations |\n|---|---|---|---|")
    for name, what in ARMS.items():
        path = os.path.join(folder, name + ".txt")
        if not os.path.exists(path):
            continue
        planned, report, steps = row(open(path).read())
        tiers = ", ".join(planned.groups()) if planned else "?"
        if report and "error" in report:
            seconds, bytes_moved = "refused: " + report["error"], "-"
        elif report:
            moved = report["moved_bytes_per_step"]
            seconds = f"{report['step_seconds'] * 1e3:.0f} ms, {report['predicted_step_seconds'] * 1e3:.0f}"
            bytes_moved = f"link {moved['d2h'] / 1e9:.1f} GB, drive {moved['disk_write'] / 1e9:.1f} GB"
        else:
            seconds = f"{sorted(steps)[len(steps) // 2] * 1e3:.0f} ms, stopped by its limit" if steps else "did not run"
            bytes_moved = "?"
        print(f"| {what} | {seconds} | {bytes_moved} | {tiers} |")


if __name__ == "__main__":
    main(sys.argv[1])
