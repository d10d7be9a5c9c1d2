"""Activation peak and step time by what may become of saved tensors, as SSDTrain's table has it: plans only, nothing is run.

    python3 bench/peak.py PROGRAM SHAPE MICRO_BATCH HOST DEVICE... > peak.jsonl

State and gradients stay on the device, one micro-batch of 1024 tokens a sequence, the RTX 4090 with 12 drives. SHAPE is a
built-in name or a file of bench/shapes. A line for each device budget and strategy.
"""

import json
import os
import subprocess
import sys

GIB = 2**30
RESIDENT = ["plan.weights=device", "plan.optimizer=device", "plan.gradients=device", "optimizer.update=device"]
STRATEGIES = {
    "keep": ["plan.activations=keep", "plan.inputs=device"],
    "recompute": ["plan.activations=recompute", "plan.inputs=device"],
    "disk alone": ["plan.activations=offload", "plan.offload=disk", "plan.inputs=disk"],
    "disk alone and recompute": ["plan.offload=disk", "plan.inputs=disk"],
    "host and disk": ["plan.activations=offload"],
    "auto": [],
}


def main():
    program, shape, micro, host, *budgets = sys.argv[1:]
    file = f"bench/shapes/{shape}.json"
    named = ["bench/shapes/empty.yaml", "--set", f"model.config={file}"] if os.path.exists(file) else ["--shape", shape]
    given = [program, "plan", *named, "--micro-batch", micro, "--seq", "1024", "--accumulate", "1", "--host-memory", host]
    given += ["--disk", "4TB", "--machine", "examples/machines/rtx4090-12ssd.json", "--json"]
    for device in budgets:
        for name, keys in STRATEGIES.items():
            sets = [part for key in RESIDENT + keys for part in ("--set", key)]
            done = subprocess.run([*given, "--device-memory", device, *sets], capture_output=True, text=True)
            line = {"shape": shape, "device": device, "strategy": name}
            if done.returncode == 0:
                plan = json.loads(done.stdout.splitlines()[-1])
                peak = {t: round(plan["tiers"][t]["activations"] / GIB, 2) for t in plan["tiers"]}
                line |= {"step_seconds": plan["step_seconds"], "activations_gib": peak}
            print(json.dumps(line), flush=True)


main()
