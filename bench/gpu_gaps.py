"""Share of a traced steady step in which the gpu lane does nothing, and where its time goes.

    python bench/gpu_gaps.py trace.json
"""

import collections
import json
import re
import sys

events = [e for e in json.load(open(sys.argv[1]))["traceEvents"] if e.get("ph") == "X"]
gpu = [e for e in events if e["tid"] == 0]
steps = sorted({e["args"]["submission"] for e in gpu})
# The last but one is a whole steady step: the last submission drains.
one = sorted((e for e in gpu if e["args"]["submission"] == steps[-2]), key=lambda e: e["ts"])
gaps = [b["ts"] - a["ts"] - a["dur"] for a, b in zip(one, one[1:])]
span = one[-1]["ts"] + one[-1]["dur"] - one[0]["ts"]
print(
    f"step {span / 1e3:.2f} ms, {len(one)} tasks, idle {sum(gaps) / 1e3:.2f} ms "
    f"({100 * sum(gaps) / span:.2f}%), longest gap {max(gaps):.1f} us"
)
sums = collections.defaultdict(float)
for e in one:
    sums[re.sub(r"blocks\.\d+", "block", re.sub(r" \[.*", "", e["name"]))] += e["dur"]
for name, total in sorted(sums.items(), key=lambda x: -x[1]):
    print(f"{total / 1e3:9.3f} ms {100 * total / span:5.1f}%  {name}")
