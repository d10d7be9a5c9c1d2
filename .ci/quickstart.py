"""Checks the JSON that the quickstart ends with, read from standard input."""

import json
import pathlib
import sys

report = json.loads(sys.stdin.read())
problems = []


def need(holds, what):
    if not holds:
        problems.append(what)


def weights_bytes(model):
    """Bytes of the tensors in a model's safetensors files, from their headers."""
    total = 0
    for path in pathlib.Path(model).glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        total += max(ends)
    return total


output = report["output"]
need(output and (pathlib.Path(output) / "config.json").is_file(), f"no model in {output}")
parameters = weights_bytes(output) if output else 0
need(parameters > 0, "the model has no weights")
need(report["loss_last"] < report["loss_first"], "the loss did not fall")
need(report["exact_match_before"] <= 0.2, "it knew the answers before")
need(report["exact_match_after"] >= 0.9, "it does not know the answers")
for lane in ["h2d", "d2h", "disk_read", "disk_write"]:
    moved = report["moved_bytes"][lane]
    need(moved >= parameters, f"{lane} moved {moved} bytes, the parameters have {parameters}")

print(
    f"loss {report['loss_first']:.3f} to {report['loss_last']:.3f}, exact match "
    f"{report['exact_match_before']:.2f} to {report['exact_match_after']:.2f}, {parameters} bytes of "
    f"parameters, moved {report['moved_bytes']}"
)
for problem in problems:
    print("quickstart:", problem, file=sys.stderr)
sys.exit(1 if problems else 0)
