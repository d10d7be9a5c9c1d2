"""Prints lowtide's figures beside a peer's, from the last JSON line of each file given.

    python3 bench/peers/ratios.py bench/runs/MACHINE-DATE/step-*.txt bench/runs/MACHINE-DATE/deepspeed-*.txt
"""

import json
import sys


def last_json(path):
    with open(path) as file:
        lines = [line for line in file if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def main():
    runs = [(path, last_json(path)) for path in sys.argv[1:]]
    for path, run in runs:
        if run is None or "model" not in run:
            print(f"{path}: no result (see its last lines)", file=sys.stderr)
    runs = [run for _, run in runs if run and "model" in run]
    ours = [run for run in runs if "system" not in run]
    peers = [run for run in runs if "system" in run]
    gib = 2**30
    print("| model | tokens a step | lowtide | device, host GiB | peer | tokens/s | device, host GiB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for own in ours:
        same = [p for p in peers if (p["model"], p["tokens_per_step"]) == (own["model"], own["tokens_per_step"])]
        for peer in same:
            print(
                f"| {own['model']} | {own['tokens_per_step']} | {own['tokens_per_second']:.0f} "
                f"| {own['device_bytes'] / gib:.1f}, {own['host_peak_bytes'] / gib:.1f} "
                f"| {peer['mode']} | {peer['tokens_per_second']:.0f} "
                f"| {peer['device_bytes'] / gib:.1f}, {peer['host_peak_bytes'] / gib:.1f} "
                f"| {own['tokens_per_second'] / peer['tokens_per_second']:.2f} |"
            )


if __name__ == "__main__":
    main()
